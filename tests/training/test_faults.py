"""What goes wrong while a run trains: its status, its one line, and what is left."""

import importlib.util
import json
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import valid_record

sys.path.insert(0, str(Path(__file__).parent))
from launch import HORUN, ROOT, run  # noqa: E402

from keras_nowcast.config import RunConfig  # noqa: E402
from keras_nowcast.data import catalog, splits
from keras_nowcast.errors import InputError, TrainingFailed  # noqa: E402
from keras_nowcast.records import RunFolder  # noqa: E402
from keras_nowcast.training import callbacks, checkpoint  # noqa: E402
from keras_nowcast.training.runlock import RunLock  # noqa: E402
from keras_nowcast.training.trainer import train  # noqa: E402

pytestmark = pytest.mark.usefixtures("float32_after")
needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)
slow = pytest.mark.slow
GLOO = (*HORUN, "-np", "2", "--gloo")
MPI = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "-bind-to", "none")
SMALL = {"depth": 1, "filters": 2, "batch_per_replica": 4, "precision": "float32"}


def flags(**fields):
    return [
        word
        for name, value in {**SMALL, **fields}.items()
        for word in ("--" + name.replace("_", "-"), value)
    ]


def run_with_fault(what, rank, step, launcher=(), **fields):
    """Runs a training of a million epochs, which ends because of the fault, or not at all."""
    script = ROOT / "tests" / "training" / "ranks_fault.py"
    command = [*launcher, sys.executable, script, what, rank, step]
    return run([*command, *flags(epochs=10**6, **fields)])


def train_here(root, run_dir, **fields):
    config = RunConfig(data=str(root), run_dir=str(run_dir), **{**SMALL, "epochs": 2, **fields})
    train(config, started=time.monotonic())
    return RunFolder(run_dir)


def at_step(monkeypatch, step, action):
    """Calls `action()` after a step of the run, before anything is saved."""
    original = callbacks.EpochRecorder.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        original(self, batch, logs)
        if self._progress.steps == step:
            action()

    monkeypatch.setattr(callbacks.EpochRecorder, "on_train_batch_end", on_train_batch_end)


# ---- a rank that cannot go on -----------------------------------------------------------------


@needs_horovod
@pytest.mark.parametrize(
    "launcher, what, step, line",
    [
        (
            GLOO,
            "killed",
            8,
            "rank 1 on .* exited without a shutdown message: killed, or out of memory",
        ),
        pytest.param(
            GLOO,
            "told",
            8,
            r"rank 1 on .* ran out of memory \(Unable to allocate 8.00 EiB\)",
            marks=slow,
        ),
        pytest.param(
            MPI,
            "killed",
            8,
            "rank 1 on .* exited without a shutdown message",
            marks=slow,
        ),
        pytest.param(MPI, "input", 2, r"rank 1 on .* has waited \d+ s for event", marks=slow),
        pytest.param(GLOO, "stopped", 8, r"rank 1 on .* has not responded for \d+ s", marks=slow),
    ],
)
def test_one_rank_cannot_go_on(small_sevir, tmp_path, request, launcher, what, step, line):
    if launcher is MPI:
        request.getfixturevalue("mpi")
    done = run_with_fault(
        what,
        1,
        step,
        launcher=launcher,
        data=small_sevir,
        run_dir=tmp_path / "run",
        stall_seconds=10 if what in ("input", "stopped") else 300,
        batch_per_replica=2,
    )
    assert done.returncode != 0
    told = [each for each in done.stderr.splitlines() if "failed: " in each]
    assert len(told) == 1 and re.search(f"failed: {line}.*the last checkpoint is kept", told[0])
    record = RunFolder(tmp_path / "run").read_record()
    assert record["status"] == "failed" and re.match(line, record["status_reason"])
    assert valid_record.violations(record) == []  # each null has its reason
    if step > 6:  # an epoch was done
        progress, _, damaged = checkpoint.read_checkpoint(tmp_path / "run" / "checkpoint")
        assert (progress["epoch"], damaged) == (1, [])
        training, (row,) = record["training"], RunFolder(tmp_path / "run").read_epochs()
        assert (training["epochs"], training["seconds"]) == (1, row["seconds"])
        assert training["samples_per_second"] == row["samples"] / row["seconds"]  # no step after it
    if what == "killed" and launcher is GLOO:  # and it goes on, here on one process
        again = train_here(
            small_sevir, tmp_path / "run", epochs=2, batch_per_replica=2, resume=True
        )
        training = again.read_record()["training"]
        assert (again.read_record()["status"], training["epochs"]) == ("completed", 2)
        assert training["lost_seconds"] > 0


@slow
@needs_horovod
def test_horovods_own_stall_check_names_the_rank_under_gloo(small_sevir, tmp_path):
    """Horovod 0.28.1 as published finds nobody missing there; our build's patch mends it."""
    done = run_with_fault(
        "input",
        1,
        2,
        launcher=(*GLOO, "--stall-check-warning-time-seconds", "1"),
        data=small_sevir,
        run_dir=tmp_path / "run",
        stall_seconds=12,
        batch_per_replica=2,
    )
    assert re.search(r"Missing ranks:\n\[0\]<stderr>:1: \[\S*HorovodAllreduce", done.stderr)
    assert re.search(r"failed: rank 1 on .* has waited", done.stderr)


@pytest.mark.slow
def test_a_single_process_that_waits_for_its_input(small_sevir, tmp_path):
    done = run_with_fault(
        "input", 0, 2, data=small_sevir, run_dir=tmp_path / "run", stall_seconds=2
    )
    assert done.returncode == 1
    assert re.search(r"failed: rank 0 on .* has waited \d+ s for event S.*\.h5;", done.stderr)
    assert "Traceback" not in done.stderr


# ---- a folder that cannot be written ----------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_former_checkpoint(small_sevir, tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = (20_000, limits[1])  # bytes; a checkpoint has more, config.json and the record less
    at_step(monkeypatch, 8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, fill))
    try:
        with pytest.raises(TrainingFailed, match="File too large"):
            train_here(small_sevir, tmp_path, epochs=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = RunFolder(tmp_path)
    record = folder.read_record()
    assert record["status"] == "failed" and "File too large" in record["status_reason"]
    progress, _, damaged = checkpoint.read_checkpoint(folder.checkpoints)
    assert (progress["epoch"], damaged) == (1, [])
    assert [each.name for each in folder.checkpoints.iterdir()] == ["state-00001-00000000.npz"]
    monkeypatch.undo()
    assert train_here(small_sevir, tmp_path, epochs=4, resume=True).read_record()["status"] == (
        "completed"
    )


def test_a_folder_that_goes_read_only(small_sevir, tmp_path, monkeypatch):
    run_dir, aside = tmp_path / "run", tmp_path / "aside"
    run_dir.mkdir()

    def lose():
        (run_dir / "checkpoint").rename(aside)
        (run_dir / "checkpoint").write_text("nothing can be written below this")

    at_step(monkeypatch, 8, lose)
    with pytest.raises(TrainingFailed, match="Not a directory"):
        train_here(small_sevir, run_dir, epochs=4)
    assert RunFolder(run_dir).read_record()["status"] == "failed"
    progress, _, damaged = checkpoint.read_checkpoint(aside)
    assert (progress["epoch"], damaged) == (1, [])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
def test_a_folder_that_was_never_writable(small_sevir):
    with pytest.raises(InputError, match="`--run-dir` must be a writable folder"):
        train_here(small_sevir, "/proc/self/run")


@pytest.fixture(scope="module")
def one_epoch(small_sevir, tmp_path_factory):
    """The folder of a run of one epoch, to be copied."""
    return train_here(small_sevir, tmp_path_factory.mktemp("one") / "run", epochs=1).path


@pytest.mark.slow
def test_two_jobs_in_one_folder(one_epoch, small_sevir, tmp_path):
    folder = RunFolder(shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True))
    first = RunLock(tmp_path)
    first.take()
    before = {each: each.read_bytes() for each in tmp_path.rglob("*.*") if each.is_file()}
    # flock parts open files, not processes; tests/training/test_runlock.py has two processes.
    with pytest.raises(InputError, match="`--run-dir` must not be in use by another job"):
        train_here(small_sevir, tmp_path, epochs=3, resume=True)
    assert before == {each: each.read_bytes() for each in before}
    first.release()
    assert train_here(small_sevir, tmp_path, epochs=2, resume=True).read_record()["status"] == (
        "completed"
    )
    assert folder.read_record()["training"]["epochs"] == 2


# ---- input that is damaged half-way -----------------------------------------------------------


@pytest.fixture
def own(small_sevir, tmp_path):
    """A copy of the data set to spoil."""
    return Path(shutil.copytree(small_sevir, tmp_path / "own"))


def spoil(root, count):
    """Overwrites the pixels of the first training events; returns their names."""
    events = splits.split_events(catalog.read_catalog(root)).train[:count]
    for event in events:
        with h5py.File(event.file, "r") as file:
            chunk = file["vil"].id.get_chunk_info_by_coord((event.index, 0, 0, 0))
        size, times = event.file.stat().st_size, os.stat(event.file)
        with open(event.file, "r+b") as file:
            file.seek(chunk.byte_offset)
            file.write(b"\xff" * min(64, size - chunk.byte_offset))
        os.utime(event.file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return [event.name for event in events]


@pytest.mark.slow
def test_a_chunk_that_is_damaged_half_way_stops_the_run(own, tmp_path, monkeypatch):
    at_step(monkeypatch, 7, lambda: spoil(own, 1))
    with pytest.raises(InputError) as raised:
        train_here(own, tmp_path / "run", epochs=6)
    message = str(raised.value)
    assert re.search(r"event S\d+ in \S+\.h5 must be readable", message), message
    assert "--resume --skip-bad-events 1" in message
    record = RunFolder(tmp_path / "run").read_record()
    assert record["status"] == "failed" and record["status_reason"] == message
    assert valid_record.violations(record) == []
    assert checkpoint.read_checkpoint(tmp_path / "run" / "checkpoint")[2] == []

    monkeypatch.undo()
    folder = train_here(own, tmp_path / "run", epochs=6, resume=True, skip_bad_events=1)
    training = folder.read_record()["training"]
    assert (folder.read_record()["status"], training["skipped_events"]) == ("completed", 1)
    (reason,) = training["skipped_event_reasons"]
    assert re.search(r"event S\d+ in \S+\.h5 must be readable", reason)
    assert [row["samples"] for row in folder.read_epochs()][-1] == 24 - 3


def test_a_file_that_vanishes_stops_the_run(own, tmp_path, monkeypatch):
    events = splits.split_events(catalog.read_catalog(own)).train
    at_step(monkeypatch, 7, events[0].file.unlink)
    with pytest.raises(
        InputError, match=r"\.h5 must be readable.*No such file.*--resume"
    ) as raised:
        train_here(own, tmp_path / "run", epochs=6)
    # Without the file, --resume is refused.
    assert "--resume --skip-bad-events" not in str(raised.value)
    assert RunFolder(tmp_path / "run").read_record()["status"] == "failed"


@slow
@needs_horovod
def test_two_ranks_leave_bad_events_out_together_and_one_times_the_layers(own, tmp_path):
    names = spoil(own, 2)
    run_dir = tmp_path / "run"
    script = ROOT / "experiments" / "train.py"
    words = flags(data=own, run_dir=run_dir, epochs=3, batch_per_replica=2, skip_bad_events=2)
    done = run([*GLOO, sys.executable, script, *words, "--layer-times"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1]<stdout>" not in done.stdout  # only rank 0 prints
    record = json.loads((run_dir / "record.json").read_text())
    training = record["training"]
    assert (record["status"], record["environment"]["world_size"]) == ("completed", 2)
    # 24 windows in batches of 2 on 2 ranks, three times; a bad event's windows count for nothing.
    assert (training["skipped_events"], training["steps"]) == (2, 18)
    for name in names:
        assert any(name.split()[0] in each for each in training["skipped_event_reasons"])
    assert done.stdout.count("skipped unreadable event, ") == 2
    assert (run_dir / "model.keras").exists()
    assert training["setup_seconds"] > 0

    assert done.stdout.count("timed the layers") == 1
    assert record["roofs"]["compute_flops_per_second"]["float32"] > 0
    lines = (run_dir / "layers.csv").read_text().splitlines()
    assert len(lines) == 1 + 20  # a head, 19 layers of depth 1, the optimizer


# ---- files that are not ours ------------------------------------------------------------------


class Spiteful:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.slow
def test_a_checkpoint_runs_no_code(one_epoch, small_sevir, tmp_path, capsys):
    shutil.copytree(one_epoch, tmp_path / "run")
    hit = tmp_path / "hit"
    newest = tmp_path / "run" / "checkpoint" / "state-00001-00000001.npz"
    progress = np.array([Spiteful(hit)], dtype=object)
    np.savez(newest, progress=progress, **{"replicated/0": progress})
    record = train_here(small_sevir, tmp_path / "run", epochs=2, resume=True).read_record()
    assert "checkpoint state-00001-00000001.npz is corrupted; resuming from the previous one" in (
        capsys.readouterr().out
    )
    assert not hit.exists()
    assert record["training"]["lost_seconds"] == 0  # that checkpoint had held nothing
