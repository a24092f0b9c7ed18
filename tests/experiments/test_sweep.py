"""experiments/sweep.py from the shell: real cells, signals, kills, and the files they leave."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import valid_record

from keras_nowcast.training.runlock import RunLock

ROOT = Path(__file__).parents[2]
SWEEP = [sys.executable, str(ROOT / "experiments" / "sweep.py")]
EPOCHS = 16  # of a sweep that is killed: long enough to be killed before the last
TINY = [
    "--depth",
    "1",
    "--filters",
    "2",
    "--precision",
    "float32",
    "--power-source",
    "none",
    "--batch-per-replica",
    "8",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=10, size=32, progress=False)
    return root


@pytest.fixture
def start(root, tmp_path):
    """Starts sweeps in tmp_path; kills those that a failed test leaves."""
    started = []

    def start(*flags, folder=tmp_path):
        words = [*SWEEP, *TINY, "--data", root, "--sweep-dir", folder, *flags]
        started.append(
            subprocess.Popen(
                [str(word) for word in words],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def sweep(start):
    """Runs a sweep to its end and returns its exit status and its output."""

    def sweep(*flags, **more):
        process = start(*flags, **more)
        printed, _ = process.communicate(timeout=1200)
        return process.returncode, printed

    return sweep


def cell(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def record(folder):
    """Returns a cell's record, which must be valid."""
    found = json.loads((folder / "record.json").read_text())
    assert valid_record.violations(found) == []
    return found


def starts(folder):
    """Returns how often a cell's training was started."""
    return sum(line.startswith("$ ") for line in (folder / "console.log").open())


def wait_for_checkpoint(process, folder, pattern, more_than=0):
    give_up = time.monotonic() + 1200
    while len(list(folder.glob(f"{pattern}/checkpoint/*.npz"))) <= more_than:
        assert process.poll() is None and time.monotonic() < give_up, process.stdout.read()
        time.sleep(0.1)


def test_a_cell_is_trained_once_and_only_evaluate_reads_the_test_set(
    root, sweep, script_here, tmp_path
):
    """The file of the test events has corrupt bytes; whatever chooses works without it."""
    own = Path(shutil.copytree(root, tmp_path / "own"))
    (of_test,) = (own / "data").rglob("*_0602_1231.h5")
    of_test.write_bytes(b"corrupt" * 1000)
    folder = tmp_path / "sweep"
    cells = ("--data", own, "--filters", 2, 3, "--epochs", 1)
    for _ in range(2):
        status, printed = sweep(*cells, folder=folder)
        assert status == 0 and "2 cells: 2 completed" in printed, printed
    first, second = sorted(folder.glob("d1-*"))
    for each in (first, second):
        assert record(each)["status"] == "completed" and starts(each) == 1
    assert record(first)["data"]["test_windows"] == 6  # by the catalog
    for words in (
        ("plot_figures.py", folder, "--out", tmp_path / "figures"),
        ("plan.py", folder, "--depth", 1, "--filters", 4, "--reach", 0),
        ("compare.py", first, second),
    ):
        done = script_here(*words)
        assert done.returncode == 0, done.stderr
        assert "validation" in done.stdout or words[0] == "plot_figures.py"
    for chosen in ("validation", "test"):
        done = script_here("evaluate.py", first, "--set", chosen)
        if chosen == "validation":
            assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and str(of_test) in errors[0]


@pytest.mark.slow
def test_killed_twice_and_restarted_by_two_at_once_each_cell_is_run_once(start, tmp_path):
    """Ctrl-C in the first cell, SIGKILL in the second, then two sweeps together."""
    several = importlib.util.find_spec("horovod") is not None
    axis = ["--np", "1", "2"] if several else ["--seed", "0", "1"]
    second = "*-np2-*" if several else "*-s1-*"
    flags = ["--epochs", EPOCHS, *axis]

    process = start(*flags)
    wait_for_checkpoint(process, tmp_path, "*-np1-s0-*")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=1200)
    assert process.returncode == 75, printed
    assert "run the same command again" in printed
    first = cell(tmp_path, "*-np1-s0-*")
    assert record(first)["status"] in ("interrupted", "completed")

    process = start(*flags)
    wait_for_checkpoint(process, tmp_path, second)
    process.kill()
    process.wait()

    both = [start(*flags) for _ in range(2)]
    for process in both:
        printed, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, printed
        assert "2 cells: 2 completed" in printed
    for each in (first, cell(tmp_path, second)):
        assert record(each)["status"] == "completed"
        with open(each / "epochs.csv", newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == [str(k) for k in range(EPOCHS)]
        assert starts(each) <= 2
    assert record(cell(tmp_path, second))["environment"]["world_size"] == (2 if several else 1)


@pytest.mark.slow
def test_what_fails_is_kept_and_retried_only_on_request(sweep, tmp_path):
    """Too little time, then too little memory, and a cell that no model fits."""
    flags = ["--epochs", "1", "--depth", "1", "6", "--center-filters", "4", "400000"]
    status, printed = sweep(*flags, "--timeout-minutes", "0.01")
    assert status == 0, printed
    assert "time left not known yet" in printed and "about" not in printed
    by_center = {record(each)["config"]["center_filters"]: each for each in tmp_path.glob("d1-*")}
    small, large = by_center[4], by_center[400000]
    for each in (small, large):
        assert record(each)["status"] == "failed"
        assert record(each)["status_reason"] == "timeout: stopped after 0.01 minutes"
    for each in tmp_path.glob("d6-*"):
        assert record(each)["status_reason"].startswith("unfittable: `--grid` must be a multiple")
        assert not (each / "console.log").exists()

    status, printed = sweep(*flags)
    assert status == 0 and "4 cells: 4 failed" in printed
    assert starts(small) == starts(large) == 1

    status, printed = sweep(*flags, "--retry", "--evaluate")
    assert status == 0 and "1 completed, 3 failed" in printed
    assert record(small)["status"] == "completed" and (small / "scores.csv").exists()
    assert record(large)["status_reason"].startswith("out of memory: ")
    assert record(large)["last_lines"]
    assert starts(small) == 2 and starts(large) == 2


def test_a_dry_run_trains_nothing(sweep, tmp_path):
    status, printed = sweep("--filters", "2", "4", "--dry-run", folder=tmp_path / "absent")
    assert status == 0 and not (tmp_path / "absent").exists()
    lines = [line for line in printed.splitlines() if line.startswith("d1-f")]
    assert len(lines) == 2 and all("not known yet" in line for line in lines)


def test_a_dry_run_tells_what_another_job_trains(sweep, tmp_path):
    lines = sweep("--filters", "2", "4", "--dry-run")[1].splitlines()
    cell = tmp_path / next(line.split()[0] for line in lines if line.startswith("d1-f2"))
    lock = RunLock(cell)
    cell.mkdir()
    (cell / "config.json").write_text("{}")
    lock.take()
    lock.begin()
    try:
        lines = sweep("--filters", "2", "4", "--dry-run")[1].splitlines()
    finally:
        lock.release()
    assert [line.split()[1] for line in lines if line.startswith("d1-f")] == ["running", "new"]
    assert any(line.startswith("2 left to run") for line in lines)
    lines = sweep("--filters", "2", "--dry-run")[1].splitlines()
    assert [line.split()[1] for line in lines if line.startswith("d1-f")] == ["interrupted"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--np", "0"], "`--np` must be at least 1"),
        (["--depth", "9"], "`--depth` must be from 1 to"),
        (["--data", "absent"], "`--data` must be a folder"),
        (["--preset", "absent"], "`--preset` must be one of"),
        (["--timeout-minutes", "0"], "`--timeout-minutes` must be above 0"),
        (["--run-dir", "here"], "`--run-dir` is not a flag of this script"),
        (["--run-cell", "0"], "`--run-cell` must be an index into"),
        (["--depth", "6"], "`--grid` must be a multiple of 64"),
    ],
)
def test_bad_flags(root, script_here, tmp_path, flags, words):
    folder = tmp_path / "absent"
    done = script_here("sweep.py", *TINY, "--data", root, "--sweep-dir", folder, *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert not folder.exists()
