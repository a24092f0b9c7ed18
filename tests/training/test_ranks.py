"""Complete runs on several real processes, from the shell as a user starts them."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launch import HORUN, LONGEST_S, ROOT, run  # noqa: E402

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)
GLOO = (HORUN, "-np", "2", "--gloo")
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
        "2",
        "--filters",
        "4",
        "--batch-per-replica",
        "2",
        "--precision",
        "float32",
        *flags,
    ]


@pytest.mark.slow
def test_two_ranks_under_horovodrun_of_which_one_times_the_layers(small_sevir, tmp_path):
    flags = ("--epochs", "2", "--depth", "1", "--layer-times")
    done = run([*GLOO, *training(small_sevir, tmp_path, *flags)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1]<stdout>" not in done.stdout  # only rank 0 prints
    assert done.stdout.count("timed the layers") == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "completed"
    assert record["environment"]["world_size"] == 2
    assert record["training"]["steps"] == 12  # 24 windows in batches of 2 on 2 ranks, twice
    assert (tmp_path / "model.keras").exists()
    assert record["training"]["setup_seconds"] > 0
    assert record["roofs"]["compute_flops_per_second"]["float32"] > 0
    lines = (tmp_path / "layers.csv").read_text().splitlines()
    assert len(lines) == 1 + 20  # a head, 19 layers of depth 1, the optimizer


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun")
def test_two_ranks_under_mpirun(small_sevir, tmp_path):
    done = run([*MPI, *training(small_sevir, tmp_path, "--epochs", "1")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on(start, small_sevir, tmp_path):
    command = [*GLOO, *training(small_sevir, tmp_path, "--epochs", "1000000")]
    job = start(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    give_up = time.monotonic() + LONGEST_S
    while not list(tmp_path.glob("checkpoint/*.npz")):
        assert job.poll() is None and time.monotonic() < give_up, job.stdout.read()
        time.sleep(0.2)
    os.kill(_rank_process(tmp_path, 1), signal.SIGTERM)
    printed, _ = job.communicate(timeout=LONGEST_S)
    assert "Exit code: 75" in printed  # of the first rank to end, as Horovod reports it
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "interrupted", printed
    assert "run again with --resume" in printed

    done_epochs = record["training"]["epochs"]
    more = ["--resume", "--epochs", str(done_epochs + 2)]
    done = run([*GLOO, *training(small_sevir, tmp_path, *more)])
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "completed"
    assert record["training"]["epochs"] == done_epochs + 2
    newest = sorted(tmp_path.glob("checkpoint/*.npz"))[-1]
    with np.load(newest) as archive:
        assert archive["statistics/0"].shape[0] == 2  # one set of statistics per rank


def _rank_process(run_dir, rank):
    """Returns the process id of a rank of the job that writes to run_dir."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environ = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        mine = str(run_dir).encode() in words and words[0] == sys.executable.encode()
        if mine and b"HOROVOD_RANK=%d" % rank in environ and b"python" in words[0]:
            return int(folder.name)
    raise AssertionError("no such process")


@pytest.mark.slow
def test_bad_input_ends_all_ranks_with_one_line(tmp_path):
    done = run([*GLOO, *training(tmp_path / "absent", tmp_path / "run")])
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error: " in line and "`--data`" in line]
    assert len(lines) == 1
    assert "Exit code: 2" in done.stderr
    assert not (tmp_path / "run").exists()
