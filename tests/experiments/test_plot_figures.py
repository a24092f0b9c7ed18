"""From run folders to table, figures, report and plans, by the scripts themselves."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import study_runs

ROOT = Path(__file__).parents[2]


def script(name, *arguments, cwd=ROOT):
    command = [sys.executable, ROOT / "experiments" / name, *arguments]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture
def study(tmp_path):
    for depth in (3, 4):
        for filters in (4, 16):
            study_runs.write_run(
                tmp_path / "runs" / f"d{depth}-f{filters}",
                depth=depth,
                filters=filters,
                seconds=filters / 4 + depth,
                joules=10.0 * filters,
            )
    return tmp_path / "runs"


@pytest.mark.slow
def test_everything_is_made_from_run_folders(study, tmp_path):
    out = tmp_path / "out"
    done = script("plot_figures.py", study, "--out", out)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in out.iterdir()}
    drawn = {
        "training_curves",
        "cost_by_size",
        "skill_by_cost",
        "roofline",
        "memory_by_size",
        "power_traces",
        *(f"power_d{d}-f{f}" for d in (3, 4) for f in (4, 16)),
    }
    assert made == {f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")} | {
        "table.csv",
        "report.html",
    }
    with open(out / "table.csv", newline="") as file:
        assert [row["energy_joules"] for row in csv.DictReader(file)] == [
            "640.0",
            "160.0",
            "640.0",
            "160.0",
        ]
    assert "scaling is not drawn: no two completed runs differ" in done.stdout
    assert "% trainable parameters cost +300.0% energy" in " ".join(done.stdout.split())
    assert "not measured here: it needs a completed run in float32" in done.stdout
    report = (out / "report.html").read_text()
    assert report.count("<svg") == 6 and "not measured here" in report


def test_a_folder_that_cannot_be_written(script_here, study, tmp_path):
    (tmp_path / "file").write_text("")
    done = script_here("plot_figures.py", study, "--out", tmp_path / "file" / "out")
    assert done.returncode == 2 and "`--out` must be a folder" in done.stderr


def test_the_plan_answers(script_here, study):
    done = script_here(
        "plan.py",
        study,
        "--depth",
        3,
        4,
        "--filters",
        8,
        "--max-joules",
        1e6,
        "--max-hours",
        1e-6,
        "--max-memory-gib",
        64,
    )
    assert done.returncode == 0, done.stderr
    assert "depth 4, 8 filters" in done.stdout
    assert "none of these models is predicted to be within it" in done.stdout
    assert (
        "leave-one-out prediction errors" in done.stdout
        and "time of training: median" in done.stdout
    )


def test_the_plan_names_the_cheapest_that_reached_a_skill(script_here, study):
    done = script_here("plan.py", study, "--reach", 0.15)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("measured runs that reached ") and lines[0].endswith(
        "cheapest first by energy:"
    )
    assert lines[1] == (
        "  d3-f4: 4 s of training, 40 J by nvml_counter, epoch 1 of 4; after the last 0.2000"
    )
    assert (
        "The first step of each start, which includes compilation, counts with the mean" in lines[5]
    )
    done = script_here("plan.py", study, "--reach", 0.9)
    assert "no measured run reached" in done.stdout and "the best was 0.2000" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--max-joules", "-1"], "`--max-joules` must be above 0"),
        (["--np", "0"], "`--np` must be above 0"),
        (["--depth", "6"], "`--depth` must suit the grid"),
        (["--precision", "half"], "`--precision` must be one of"),
        (["--filters", "x"], "`--filters` must be of type int"),
    ],
)
def test_bad_plans_are_one_line(script_here, study, arguments, words):
    done = script_here("plan.py", study, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_two_runs_are_compared_as_the_paper_does(script_here, study):
    done = script_here("compare.py", study / "d4-f4", study / "d4-f16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:4] == [
        "  trainable parameters: +1,489%",
        "  training time per window: +60.00%",
        "  energy per window: +300% (by nvml_counter)",
    ]
    study_runs.write_run(study / "other", filters=8, joules=5.0, source="rapl")
    done = script_here("compare.py", study / "d4-f4", study / "other")
    assert done.stdout.splitlines()[3] == (
        "  energy per window: not measured here (joules of different sensors cannot be compared: "
        "nvml_counter and rapl)"
    )
    done = script_here("compare.py", study, study / "d4-f16")
    assert done.returncode == 2 and "must each be a run folder" in done.stderr


def test_failed_cells_alone_still_make_a_report(script_here, tmp_path):
    config = {**study_runs.CONFIG, "precision": "auto", "grid": None}
    record = {
        "status": "failed",
        "status_reason": "unfittable: 96 pixels",
        "config": config,
        "environment": {"world_size": 1, "gpus": None, "hosts": None},
        "model": {},
        "training": {},
        "energy": {"source": "none", "devices": []},
        "memory": {},
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    done = script_here("plot_figures.py", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "0 figures" in done.stdout
    assert "unfittable: 96 pixels" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("blocks", [0, 20])  # of 512 bytes: for no file, and for the table alone
def test_a_full_disk_is_one_line(study, tmp_path, blocks):
    """A limit on the size of files stands for it; what is drawn is larger."""
    command = [sys.executable, ROOT / "experiments" / "plot_figures.py", study, "--out", tmp_path]
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {blocks} && exec "$@"', "limited", *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the disk must have space for the results. Received: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.png"))
