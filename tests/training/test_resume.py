"""A run resumes with another number of processes: from 2 to 1 and to 3, and from 1 to 2.

Runs of one process run in this one, which has TensorFlow already.
"""

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launch import HORUN, ROOT, run  # noqa: E402

from keras_nowcast.command_line import parse_config  # noqa: E402
from keras_nowcast.data.pipeline import windows_in_steps  # noqa: E402
from keras_nowcast.errors import Interrupted  # noqa: E402
from keras_nowcast.training import callbacks, checkpoint  # noqa: E402
from keras_nowcast.training.trainer import train  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("float32_after"),
    pytest.mark.skipif(
        importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
    ),
]
TRAIN = ROOT / "experiments" / "train.py"
FAULT = ROOT / "tests" / "training" / "ranks_fault.py"


def launch(ranks, *words):
    command = [*HORUN, "-np", ranks, "--gloo", sys.executable, *words]
    return run(command, env={"TF_NUM_INTRAOP_THREADS": "1"})


def train_here(*words):
    config = parse_config("", list(map(str, words)))
    train(config, time.monotonic())


def flags(root, run_dir):
    """24 windows per epoch in batches of 2 per rank."""
    return (
        "--data",
        root,
        "--run-dir",
        run_dir,
        "--depth",
        1,
        "--filters",
        2,
        "--batch-per-replica",
        2,
        "--precision",
        "float32",
        "--epochs",
        3,
    )


@pytest.fixture(scope="module")
def on_two(small_sevir, tmp_path_factory):
    """A run on two ranks that a signal to one of them stopped in its second epoch."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    done = launch(2, FAULT, "signal", 1, 8, *flags(small_sevir, run_dir))
    assert "Exit code: 75" in done.stdout + done.stderr  # of the first rank to end
    assert "run again with --resume" in done.stderr, done.stderr
    record = json.loads((run_dir / "record.json").read_text())
    assert (record["status"], record["training"]["epochs"]) == ("interrupted", 1)
    return run_dir


def resumed(run_dir, ranks, capsys):
    words = "--resume", "--run-dir", run_dir
    if ranks == 1:
        train_here(*words)
        printed = capsys.readouterr().out
    else:
        done = launch(ranks, TRAIN, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        printed = done.stdout
    record = json.loads((run_dir / "record.json").read_text())
    rows = [line.split(",") for line in (run_dir / "epochs.csv").read_text().splitlines()]
    return printed, record, [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_from_two_processes(on_two, tmp_path, ranks, capsys):
    """Two ranks had seen 4 of epoch 2's 24 windows per step: the remaining ones are seen once."""
    run_dir = Path(shutil.copytree(on_two, tmp_path / "run"))
    before, _, _ = checkpoint.read_checkpoint(run_dir / "checkpoint")
    stopped_at = before["step"]
    assert (before["epoch"], before["layout"]["world_size"]) == (1, 2)
    left = 24 - 4 * stopped_at
    printed, record, rows = resumed(run_dir, ranks, capsys)
    assert f"continues with {ranks}: {left} windows of epoch 2 are left" in printed
    of_rest, of_epoch = -(-left // (2 * ranks)), 24 // (2 * ranks)
    training = record["training"]
    assert record["status"] == "completed" and training["epochs"] == 3
    assert training["steps"] == 6 + stopped_at + of_rest + of_epoch
    assert [each["world_size"] for each in training["starts"]] == [2, ranks]
    compiling = windows_in_steps(left, ranks, 2, 1)  # the step that is not timed
    assert [int(row["samples"]) for row in rows] == [20, 24 - compiling, 24]
    # Two ranks had reached twice the rate of one; three rise from there within an epoch.
    after_two, after_three = (float(row["learning_rate"]) for row in rows[1:])
    if ranks == 1:
        assert (after_two, after_three) == (pytest.approx(1e-3), pytest.approx(1e-3))
    else:
        assert 2e-3 < after_two < after_three == pytest.approx(3e-3, rel=0.2)
    _, arrays, _ = checkpoint.read_checkpoint(run_dir / "checkpoint")
    assert arrays["statistics/0"].shape[0] == ranks


@pytest.mark.slow
def test_from_one_process_to_two(small_sevir, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    original = callbacks.EpochRecorder.on_train_batch_end

    def signal_after_step_15(self, batch, logs=None):
        original(self, batch, logs)
        if self._progress.steps == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(callbacks.EpochRecorder, "on_train_batch_end", signal_after_step_15)
    with pytest.raises(Interrupted):
        train_here(*flags(small_sevir, run_dir))
    before, arrays, _ = checkpoint.read_checkpoint(run_dir / "checkpoint")
    assert (before["epoch"], before["step"]) == (1, 3)
    printed, record, rows = resumed(run_dir, 2, capsys)
    assert "continues with 2: 18 windows of epoch 2 are left" in printed
    assert record["training"]["steps"] == 15 + 5 + 6
    assert float(rows[2]["learning_rate"]) == pytest.approx(2e-3, rel=0.1)
    assert 1e-3 < float(rows[1]["learning_rate"]) < 2e-3
    newest, after, _ = checkpoint.read_checkpoint(run_dir / "checkpoint")
    assert newest["origin"] == [15, 1.25, 1.0]
    assert not np.array_equal(after["replicated/0"], arrays["replicated/0"])
    assert after["statistics/0"].shape[0] == 2  # one set of statistics per rank
