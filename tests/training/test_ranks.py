"""Complete runs on several real processes, from the shell as a user starts them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launch import ROOT, run  # noqa: E402

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)
GLOO = (Path(sys.executable).with_name("horovodrun"), "-np", "2", "--gloo")
MPI = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "-bind-to", "none")


def training(root, run_dir, *flags):
    return [
        sys.executable,
        ROOT / "experiments" / "train.py",
        "--data",
        root,
        "--run-dir",
        run_dir,
        "--depth",
        "1",
        "--filters",
        "2",
        "--batch-per-replica",
        "2",
        "--precision",
        "float32",
        *flags,
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("mpi")
def test_two_ranks_under_mpirun(small_sevir, tmp_path):
    done = run([*MPI, *training(small_sevir, tmp_path, "--epochs", "1")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_bad_input_ends_all_ranks_with_one_line(tmp_path):
    done = run([*GLOO, *training(tmp_path / "absent", tmp_path / "run")])
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error: " in line and "`--data`" in line]
    assert len(lines) == 1
    assert "Exit code: 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_with_another_seed_ends_the_job_before_it_trains(small_sevir, tmp_path):
    words = training(small_sevir, tmp_path / "run", "--epochs", "1")
    differ = 'if [ "$HOROVOD_RANK" = 1 ]; then set -- "$@" --seed 7; fi; exec "$@"'
    done = run([*GLOO, "bash", "-c", differ, "rank", *words])
    assert done.returncode != 0 and "Exit code: 2" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "rank 1 on " in line and "has --seed 7 instead of 0; give every rank the same" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_bad_flag_of_one_rank_is_reported(small_sevir, tmp_path):
    words = training(small_sevir, tmp_path / "run", "--epochs", "1")
    differ = 'if [ "$HOROVOD_RANK" = 1 ]; then set -- "$@" --filters 0; fi; exec "$@"'
    done = run([*GLOO, "bash", "-c", differ, "rank", *words])
    assert done.returncode != 0
    assert "error: rank 1: `--filters` must be at least 1. Received: 0." in done.stderr
