"""One job a run folder, and how much a killed one lost."""

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder
from keras_nowcast.training.runlock import RunLock, lost_joules

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
    lock.release()  # killed again, without a sign of life after its checkpoint: nothing is added
    again = RunLock(tmp_path)
    again.take()
    again.begin(saved_unix_s=time.time() + 10)
    assert again.lost == lock.lost
    again.end()
    again.release()
    last = RunLock(tmp_path)  # that one ended with everything saved
    last.take()
    last.begin()
    assert last.lost == lock.lost
    last.release()


def test_joules_of_what_was_lost():
    """200 W and 100 W for 5 s, of which one reading failed; another device was not read then."""
    seconds = [float(each) for each in range(20)]
    traces = {
        ("a", "GPU-0"): (seconds, [200.0] * 20),
        ("a", "GPU-1"): (seconds, [100.0] * 7 + [float("nan")] + [100.0] * 12),
        ("b", "GPU-2"): ([0.0, 19.0], [50.0, 50.0]),
    }
    assert lost_joules(traces, [[1005.0, 1010.0]], 1000.0) == pytest.approx(1500)
    assert lost_joules(traces, [[2005.0, 2010.0]], 1000.0) is None


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    import errno

    from keras_nowcast.training import runlock

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runlock.fcntl, "flock", refuse)
    said = []
    (tmp_path / "running.json").touch()
    assert RunFolder(tmp_path).is_running() is None
    RunLock(tmp_path, said.append).take()
    assert "cannot be locked here (No locks available)" in said[0]
