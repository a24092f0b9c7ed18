"""One job per run folder, and the lost work of a killed one."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from types import SimpleNamespace

import pytest

from keras_nowcast.energy.lost import lost_energy
from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder
from keras_nowcast.training.record import RecordWriter
from keras_nowcast.training.runlock import RunLock

HOLD = (
    "import sys, time\n"
    "from keras_nowcast.training.runlock import RunLock\n"
    "lock = RunLock(sys.argv[1]); lock.take(); lock.begin(); print('held', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_job_is_refused_and_a_killed_one_lets_go(tmp_path, holder):
    lock = RunLock(tmp_path)
    with pytest.raises(InputError, match=f"in use by another job.*process {holder.pid} on "):
        lock.take()
    holder.kill()
    holder.wait()
    lock.take()
    lock.begin()
    lock.release()


def test_others_see_whether_a_job_runs(tmp_path, holder):
    run = RunFolder(tmp_path)
    assert run.is_running() is True
    holder.kill()
    holder.wait()
    assert run.is_running() is False
    assert RunFolder(tmp_path / "absent").is_running() is False


def test_a_look_at_the_lock_keeps_no_job_out(tmp_path):
    (tmp_path / "running.json").touch()
    with open(tmp_path / "running.json") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        timer = threading.Timer(0.02, fcntl.flock, (look, fcntl.LOCK_UN))
        timer.start()
        lock = RunLock(tmp_path)
        lock.take()
        lock.release()
        timer.join()


def test_what_a_killed_job_lost(tmp_path, holder):
    holder.kill()
    holder.wait()
    died = time.time() + 100
    os.utime(tmp_path / "running.json", (died, died))
    lock = RunLock(tmp_path)
    lock.take()
    lock.begin(saved_unix_s=died - 7)
    assert lock.lost == [[pytest.approx(died - 7), pytest.approx(died)]]
    lock.release()  # killed again, without a heartbeat after its checkpoint: nothing is added
    again = RunLock(tmp_path)
    again.take()
    again.begin(saved_unix_s=died + 10)
    assert again.lost == lock.lost
    again.end(died + 20)
    again.release()
    last = RunLock(tmp_path)  # that job ended with everything saved
    last.take()
    last.begin(saved_unix_s=died + 20)
    assert last.lost == lock.lost
    last.release()


def start(folder, saved, since, until=None):
    """Runs a job that resumes from the checkpoint saved at `saved`; returns the lock it leaves.

    It begins at `since` and is killed at `until`, or keeps running if that is None.
    """
    lock = RunLock(folder)
    lock.take()
    lock.begin(saved)
    content = json.loads((folder / "running.json").read_text()) | {"since_unix_s": since}
    (folder / "running.json").write_text(json.dumps(content))
    if until is not None:
        os.utime(folder / "running.json", (until, until))
    lock.release()
    return lock


def test_what_a_damaged_checkpoint_had_held_is_lost_too(tmp_path):
    """Saved at 20 and 30, ended normally, and the newer checkpoint is corrupted."""
    first = RunLock(tmp_path)
    first.take()
    first.begin()
    content = json.loads((tmp_path / "running.json").read_text())
    first._holder = content | {"since_unix_s": 10.0}
    first.end(30.0)
    first.release()
    assert start(tmp_path, 20.0, 40.0, 50.0).lost == [[20.0, 30.0]]


def test_each_second_is_lost_once_whichever_checkpoint_is_used(tmp_path):
    """Saved at 20 and 30, killed at 35 and again before a save; then that of 30 is corrupted."""
    start(tmp_path, None, 10.0, 35.0)
    assert start(tmp_path, 30.0, 40.0, 50.0).lost == [[30.0, 35.0]]
    assert start(tmp_path, 20.0, 60.0, 65.0).lost == [[20.0, 35.0], [40.0, 50.0]]
    assert start(tmp_path, 20.0, 70.0).lost == [[20.0, 35.0], [40.0, 50.0], [60.0, 65.0]]


def test_who_runs_can_be_read_at_any_moment(tmp_path, monkeypatch):
    """The new text is shorter than the old, and is written in one call."""
    (tmp_path / "running.json").write_text(json.dumps({"since_unix_s": 1.0, "of old": "x" * 999}))
    lock = RunLock(tmp_path)
    lock.take()
    seen = []

    def look(call):
        def call_and_look(*arguments):
            call(*arguments)
            seen.append(json.loads((tmp_path / "running.json").read_text()))

        return call_and_look

    for name in ("pwrite", "ftruncate"):
        monkeypatch.setattr(os, name, look(getattr(os, name)))
    lock.begin()
    assert seen[-1]["pid"] == os.getpid() and "of old" not in seen[-1]
    lock.release()


def readings(*traces):
    """Returns readings one second apart: the watts of each device from second 0 on."""
    for second, watts in enumerate(zip(*traces, strict=True)):
        for number, each in enumerate(watts):
            yield ("a", f"GPU-{number}"), float(second), each


def test_energy_of_what_was_lost():
    """200 W, and 100 W that rise by 10 W per second, for 5.5 s."""
    traces = [200.0] * 20, [100.0 + 10 * second for second in range(20)]
    joules, coverage = lost_energy(readings(*traces), [[1004.5, 1010.0]], 1000.0, 1.0)
    assert joules == pytest.approx(200 * 5.5 + (100 + 10 * 7.25) * 5.5)
    assert coverage == pytest.approx(1.0)


def test_what_was_not_read_is_not_made_up():
    """A reading of one device failed: two of its ten seconds are unknown."""
    traces = [200.0] * 20, [100.0] * 7 + [float("nan")] + [100.0] * 12
    joules, coverage = lost_energy(readings(*traces), [[1002.0, 1012.0]], 1000.0, 1.0)
    assert joules == pytest.approx(2000 + 800) and coverage == pytest.approx(18 / 20)
    # Nothing was read in a second stretch of the same length.
    intervals = [[1002.0, 1012.0], [2005.0, 2015.0]]
    joules, coverage = lost_energy(readings([200.0] * 20), intervals, 1000.0, 1.0)
    assert joules == pytest.approx(2000) and coverage == pytest.approx(0.5)
    assert lost_energy(readings([200.0] * 20), [[2005.0, 2010.0]], 1000.0, 1.0) == (None, 0.0)


def test_a_long_trace_takes_no_more_memory(tmp_path):
    folder = RunFolder(tmp_path)
    peaks = []
    for rows in (100, 20_000):
        with open(folder.power_file, "w") as file:
            file.write(
                "time_s,host,device,watts,utilization_percent,memory_mib,sm_mhz,"
                "temperature_c,throttle_reasons\n"
            )
            for row in range(rows):
                file.write(f"{row / 10:.3f},a,GPU-0,100.000,,,,60,\n")
        tracemalloc.start()
        intervals = [[0.0, rows / 10 - 0.1]]
        joules, _ = lost_energy(folder.power_readings(), intervals, 0.0, 1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert joules == pytest.approx(10 * (rows - 1))
    assert peaks[1] < peaks[0] + 50_000


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    import errno

    from keras_nowcast import files

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    said = []
    (tmp_path / "running.json").touch()
    assert RunFolder(tmp_path).is_running() is None
    RunLock(tmp_path, said.append).take()
    assert "cannot be locked here (No locks available)" in said[0]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
def test_lost_energy_of_a_trace_that_is_none_is_absent_with_its_reason(tmp_path, content):
    """A run that resumes does not end by what it finds in power.csv."""
    (tmp_path / "power.csv").write_text(content)
    writer = object.__new__(RecordWriter)
    writer._folder, writer._lock = RunFolder(tmp_path), SimpleNamespace(lost=[(0.0, 1.0)])
    writer._progress = SimpleNamespace(zero_unix_s=0.0)
    writer._config = SimpleNamespace(power_interval_s=0.1)
    lost = writer._lost_energy()
    assert lost["lost_joules"] is None and lost["lost_coverage"] is None
    assert "power.csv must have the columns" in lost["lost_joules_reason"]


@pytest.mark.parametrize(
    "content",
    [
        "\0\0\0",
        "[]",
        "null",
        "{}",
        '{"since_unix_s": "now"}',
        '{"since_unix_s": 1.0, "starts": [3]}',
        '{"since_unix_s": 1.0, "lost": [[1.0]]}',
        '{"since_unix_s": 1.0, "zero_unix_s": [1]}',
    ],
)
def test_an_odd_lock_file_is_a_line_and_no_traceback(tmp_path, content):
    (tmp_path / "running.json").write_text(content)
    said = []
    lock = RunLock(tmp_path, said.append)
    lock.take()
    assert said == [
        f"{tmp_path}/running.json cannot be read: the lost work of earlier starts is not counted"
    ]
    assert lock.follows  # so that the record does not state that no work was lost
    lock.begin(saved_unix_s=5.0)
    assert lock.lost == []
    lock.end(6.0)
    lock.release()
    again = RunLock(tmp_path, said.append)
    again.take()
    assert len(said) == 1 and again.follows
    again.release()
