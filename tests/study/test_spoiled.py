"""One odd run folder among good ones: it is named and left out, and the others count."""

import itertools
import json
import shutil

import pytest
import study_runs
from spoiled import LEFT_OUT, READ, edit

from keras_nowcast import records
from keras_nowcast.checked import NewerVersion
from keras_nowcast.errors import InputError
from keras_nowcast.study import claims, planner, table


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A study of two good runs, and a third one to spoil."""
    folder = tmp_path_factory.mktemp("good")
    for name, filters in (("a", 16), ("b", 32), ("bad", 8)):
        study_runs.write_run(folder / name, filters=filters, joules=50.0, gpus=["A100"])
    return folder


@pytest.fixture
def study(good, tmp_path):
    return shutil.copytree(good, tmp_path / "study")


def answers(folder):
    """Returns all that a study computes from a folder, as text, and {path: reason} of the odd."""
    found, left_out = records.find_runs([folder])
    runs = table.read(found)
    skill = table.choose_skill(runs)
    planned = planner.Planner(runs)
    shown = [
        [run.row for run in runs],
        claims.claims(runs),
        skill,
        planner.reaching(runs, skill, 0.0) and None,
        [planner.text_row(each) for each in planned.next_sizes()],
        [list(run.folder.read_power()) for run in runs],
    ]
    return repr(shown).replace(str(folder), ""), left_out


@pytest.mark.parametrize("how", LEFT_OUT)
def test_an_odd_run_is_left_out(study, how):
    spoil, named = LEFT_OUT[how]
    spoil(study / "bad")
    found, left_out = records.find_runs([study])
    assert [run.path.name for run, _ in found] == ["a", "b"]
    assert list(left_out) == [study / "bad"]
    (reason,) = left_out.values()
    assert named in reason and str(study / "bad") in reason and "\n" not in reason


@pytest.mark.parametrize("how", READ)
def test_a_run_is_used_as_far_as_it_goes(study, how):
    READ[how](study / "bad")
    found, left_out = answers(study)
    assert left_out == {} and "bad" in found


def test_only_odd_runs_are_an_error(study):
    for run in study.iterdir():
        (run / "record.json").write_text("{}")
    with pytest.raises(InputError, match="at least one run that can be read.*a/record.json must"):
        records.find_runs([study])


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_did_not_complete_needs_nothing(study, status):
    """It was killed or refused before most of it was known."""
    (study / "bad" / "record.json").write_text(json.dumps({"schema": 4, "status": status}))
    (study / "bad" / "epochs.csv").unlink()
    found, left_out = answers(study)
    assert left_out == {} and status in found


def test_a_refused_cell_keeps_its_flags(study):
    edit(study / "bad", lambda record: record.update(status="failed"))
    edit(study / "bad", lambda record: record["config"].update(depth=9, grid=None))
    assert answers(study)[1] == {}


def test_a_newer_version_is_told_apart(study):
    edit(study / "bad", lambda record: record.update(schema=99))
    with pytest.raises(NewerVersion, match="made by a newer version; update keras_nowcast"):
        records.RunFolder(study / "bad").read_record()


SCRIPTS = [
    *itertools.product(["record list", "epochs absent", "power empty"], ["plan.py", "reach"]),
    *itertools.product(["epochs absent", "rate negative"], ["compare.py"]),
    ("record list", "sweep.py"),
]


@pytest.mark.parametrize(("how", "script"), SCRIPTS)
def test_the_scripts_name_it(script_here, study, tmp_path, how, script):
    LEFT_OUT[how][0](study / "bad")
    if script == "compare.py":
        done = script_here("compare.py", study / "a", study / "bad")
        assert done.returncode == 2 and done.stdout == ""
    elif script == "sweep.py":
        flags = ("--dry-run", "--data", data(tmp_path), "--sweep-dir", tmp_path / "none")
        done = script_here("sweep.py", *flags, "--grid", 24, "--depth", 1, "--measured", study)
        assert done.returncode == 0 and "1 run left out, 2 used" in done.stdout
    else:
        done = script_here("plan.py", study, *(("--reach", 0) if script == "reach" else ()))
        assert done.returncode == 0 and "1 run left out, 2 used" in done.stderr
        assert script == "plan.py" or "validation CSI" in done.stdout
    assert LEFT_OUT[how][1] in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def data(tmp_path):
    from keras_nowcast.data import synthetic

    synthetic.write_synthetic(tmp_path / "data", events=10, size=24, progress=False)
    return tmp_path / "data"


def test_figures_and_report_name_it(script_here, study, tmp_path):
    LEFT_OUT["epochs val_loss"][0](study / "bad")
    LEFT_OUT["record list"][0](study / "b")
    READ["dollars"](study / "a")
    (study / "a").rename(study / "a $x$ \\frac{")
    done = script_here("plot_figures.py", study, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 runs left out, 1 used" in done.stderr and "1 runs (2 left out)" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "is left out" in page and "epochs.csv must have the columns" in page
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_figures_are_drawn_whatever_is_odd(script_here, study, tmp_path):
    """One study of every spoiled run."""
    odd = {**{how: spoil for how, (spoil, _) in LEFT_OUT.items()}, **READ}
    for number, spoil in enumerate(odd.values()):
        spoil(shutil.copytree(study / "bad", study / f"bad-{number}"))
    done = script_here("plot_figures.py", study, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"{len(LEFT_OUT)} runs left out, {3 + len(READ)} used" in done.stderr
    rows = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 + len(READ)


def test_links_to_run_folders_are_read_once_each(good, tmp_path, script_here):
    links = tmp_path / "links"
    links.mkdir()
    for name in ("x", "y"):
        (links / name).symlink_to(good / "a")
    (links / "deeper").mkdir()
    (links / "deeper" / "back").symlink_to(links)  # a circle
    (links / "deeper" / "all").symlink_to(good)
    (links / "gone").symlink_to("nothing")
    found, left_out = records.find_runs([links, good])
    assert sorted(run.path.resolve().name for run, _ in found) == ["a", "b", "bad"]
    assert left_out == {}
    (links / "self").symlink_to("self")
    assert len(records.find_runs([links / "x"])[0]) == 1
    assert script_here("plan.py", links / "x").returncode == 0


def test_a_run_that_is_being_trained_is_found_through_a_link(tmp_path):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "config.json").write_text("{}")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x").symlink_to(tmp_path / "runs")
    assert len(records.unrecorded_runs([tmp_path / "links", tmp_path / "runs"])) == 1


def test_a_name_that_is_no_text_is_left_out(good, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(good / "a", study / "a")
    shutil.copytree(good / "b", study / "b\udcff")
    found, left_out = records.find_runs([study])
    assert [run.path.name for run, _ in found] == ["a"]
    (line, count) = table.left_out_lines(left_out, len(found))
    assert "must have a name in UTF-8" in line and line.isprintable()


@pytest.mark.parametrize("words", [["absent"], ["."]])
def test_measured_on_nothing_is_refused(script_here, tmp_path, words):
    done = script_here("sweep.py", "--dry-run", "--measured", *(tmp_path / word for word in words))
    assert done.returncode == 2 and done.stderr.startswith("error: `--measured` must")


def test_measured_without_a_dry_run_is_refused(script_here, good):
    done = script_here("sweep.py", "--measured", good)
    assert done.returncode == 2 and "`--measured` must be given with --dry-run" in done.stderr
