"""report.html is complete and self-contained, and no text from a file is read as markup."""

import fcntl
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import study_runs

from keras_nowcast import records
from keras_nowcast.report import html
from keras_nowcast.study import claims, planner, table

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(folder, **more):
    runs = table.read(records.read_runs([folder]))
    given = {
        "claims_made": claims.claims(runs),
        "figures": {},
        "not_drawn": {},
        "planned": planner.Planner(runs),
        "unrecorded": {},
        "left_out": {},
        "command": "make it",
        **more,
    }
    return html.page(runs, **given)


@pytest.fixture
def study(tmp_path):
    for filters in (4, 8, 16):
        for precision in ("float32", "mixed_bfloat16"):
            study_runs.write_run(
                tmp_path / f"f{filters}-{precision}",
                filters=filters,
                precision=precision,
                joules=filters * 10.0,
                seconds=filters,
            )
    return tmp_path


def test_it_parses_and_has_every_part(study):
    study_runs.write_run(
        study / "broken", status="failed", reason="out of memory: killed", losses=(0.5,), filters=64
    )
    text = page(
        study,
        figures={"roofline": '<svg id="roofline-1"></svg>'},
        not_drawn={"scaling": "no two runs differ"},
        unrecorded={study / "gone": None, study / "dead": False, study / "alive": True},
    )
    found = Page(text)
    assert len(found.ids) == len(set(found.ids))
    anchors = {attrs["href"][1:] for tag, attrs in found.tags if tag == "a"}
    assert anchors <= set(found.ids) and len(anchors) == 7
    rows = re.search(r'<table id="runs">.*?</table>', text, re.DOTALL)[0].count("<tr>")
    assert rows == 1 + 7
    for words in (
        "6 of 7 runs are completed",
        "EPYC",
        "2.21.0",
        "out of memory: killed",
        "no two runs differ",
        "gone has no record",
        "dead was killed: it has no record",
        "alive is running",
        "leave-one-out",
        "+63.22% energy",
        "make it",
        "experiments/train.py",
        "median",
    ):
        assert words in found.text, words


def test_it_needs_nothing_from_outside(study):
    text = page(study)
    for tag, attrs in Page(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base"), tag
        assert "src" not in attrs
        for name in ("href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) == set()


def test_what_comes_from_files_is_text(tmp_path):
    evil = '<script>alert("1")</script>'
    study_runs.write_run(tmp_path / "<b>a", data=evil, status="failed", reason=evil, losses=(0.5,))
    study_runs.write_run(tmp_path / "b&c", data=evil)
    text = page(tmp_path, not_drawn={"scaling": evil}, unrecorded={evil: None}, command=evil)
    assert evil not in text and "<b>a" not in text and "b&c" not in text
    assert len(re.findall("<script>", text)) == 1
    assert evil in Page(text).text


def test_a_picture_without_a_caption_may_not_be_drawn(tmp_path):
    study_runs.write_run(tmp_path / "a")
    text = Page(page(tmp_path, not_drawn={"power_<run>": "13 runs have a trace"})).text
    assert "power_<run> (figure): 13 runs have a trace" in text


def test_an_estimate_is_called_one_everywhere(tmp_path):
    for filters in (4, 8, 12, 16):
        study_runs.write_run(
            tmp_path / str(filters),
            filters=filters,
            joules=filters * 10.0,
            seconds=filters,
            source="estimate",
        )
    text = Page(page(tmp_path)).text
    assert "no sensor: an estimate" in text
    assert "160 (estimate)" in text
    # Of the planner's six sizes, and of the claims.
    assert text.count("(an ESTIMATE, not measured)") >= 8


def test_what_was_skipped_or_lost_is_shown(tmp_path):
    study_runs.write_run(tmp_path / "a", skipped_events=0, lost_seconds=0.0)
    assert "lost work" not in page(tmp_path)
    study_runs.write_run(
        tmp_path / "b",
        seed=1,
        joules=10.0,
        skipped_events=2,
        skipped_steps=7,
        lost_seconds=31.25,
        lost_joules=1234.5,
    )
    study_runs.write_run(tmp_path / "c", seed=2, skipped_events=0, lost_seconds=4.0)
    text = Page(page(tmp_path)).text
    assert "lost J b 2 7 31.2 1,234 c 0 0 4.0 not measured here" in text
    assert "No other time or energy in this report includes them." in text


def test_a_run_that_goes_on_now_is_called_running(tmp_path):
    study_runs.write_run(tmp_path / "a", status="interrupted", reason="interrupted in epoch 2")
    study_runs.write_run(tmp_path / "b", status="interrupted", reason="interrupted in epoch 3")
    with open(records.RunFolder(tmp_path / "a").lock_file, "w") as job:
        fcntl.flock(job, fcntl.LOCK_EX)
        text = Page(page(tmp_path)).text
    assert "a running a job is running it now; its record is older" in text
    assert "b interrupted interrupted in epoch 3" in text


def test_joules_of_two_sensors_are_not_compared(tmp_path):
    for number, source in enumerate(("rapl", "nvml_counter", "rapl", "rapl", "rapl")):
        study_runs.write_run(tmp_path / str(number), filters=4 + number, joules=9.0, source=source)
    text = page(tmp_path)
    assert text.count('data-source="rapl"') == 8 and text.count('data-source="nvml_counter"') == 2
    assert "Energy is as rapl measures it; 1 run with other sensors left out." in Page(text).text


def test_energy_of_parts_of_epochs_is_named(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=9.0, coverages=(0.5,) * 4)
    text = Page(page(tmp_path)).text
    assert "Energy of an epoch of 1 run: no epoch has valid readings for 99% of its time" in text


def test_without_energy_it_says_so(tmp_path):
    study_runs.write_run(tmp_path / "a")
    found = Page(page(tmp_path))
    assert "energy from not measured here" in found.text
    assert f"Energy of 1 run: {study_runs.WHY_NO_ENERGY}" in found.text
    assert '<td class="n" data-v=""></td>' in page(tmp_path)


def test_a_run_is_repeated_as_it_was_started(tmp_path):
    study_runs.write_run(
        tmp_path / "a", data="my data", world_size=2, filters=8, augment=True, center_filters=64
    )
    (run,) = table.read(records.read_runs([tmp_path]))
    assert html.train_command(run) == (
        "horovodrun -np 2 python experiments/train.py --data 'my data' --filters 8 "
        "--center-filters 64 --precision float32 --grid 96 --epochs 4 --augment"
    )


def test_an_installed_package_has_every_file(tmp_path):
    """An installation without -e has the templates and all other files that are not Python."""
    built = tmp_path / "built"
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    kept = {path.relative_to(ROOT) for path in (ROOT / "keras_nowcast").rglob("*.*")}
    kept = {path for path in kept if path.suffix != ".pyc"}
    assert Path("keras_nowcast/report/templates/report.css") in kept
    assert kept == {path.relative_to(built) for path in built.rglob("*.*")}


def test_runs_that_are_left_out_are_listed_whatever_they_are_called(tmp_path):
    study_runs.write_run(tmp_path / "a")
    odd = tmp_path / "b\udcff\n<b>"
    text = page(
        tmp_path,
        left_out={odd: f"{odd}/record.json must be JSON. Received: an empty file"},
        unrecorded={odd: True},
        command=f"plot {odd}",
    )
    text.encode()  # as it is written
    assert "is left out: " in text and "record.json must be JSON" in text and "&lt;b&gt;" in text
