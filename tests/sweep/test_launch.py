"""Commands, locks and real processes: starting, stopping and killing them."""

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.process import Signals
from keras_nowcast.records import RunFolder
from keras_nowcast.sweep import launch
from keras_nowcast.sweep.launch import Launcher, attend, locked

SCRIPTS = Path("experiments")
PATIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""


def test_one_process_needs_no_launcher():
    config = RunConfig(depth=3, augment=True, run_dir="runs/a")
    words = Launcher("mpirun", SCRIPTS).training(config, 1)
    assert words == [
        sys.executable,
        "experiments/train.py",
        "--run-dir",
        "runs/a",
        "--depth",
        "3",
        "--augment",
    ]


def test_a_run_that_goes_on_is_told_only_what_may_differ():
    config = RunConfig(depth=3, run_dir="runs/a", resume=True, data="here", power_source="none")
    words = Launcher("horovodrun", SCRIPTS).training(config, 1)[2:]
    assert sorted(words) == sorted(
        ["--data", "here", "--run-dir", "runs/a", "--resume", "--power-source", "none"]
    )


@pytest.mark.parametrize("name", launch.LAUNCHERS)
def test_several_processes(name, tmp_path, monkeypatch):
    program = tmp_path / name
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    launcher = Launcher(name, SCRIPTS)
    words = launcher.training(RunConfig(), 4)
    assert words[:3] == [str(program), "-np", "4"] and words[-1] == "experiments/train.py"
    # mpirun kills its ranks at SIGTERM.
    expected = signal.SIGUSR1 if name == "mpirun" else signal.SIGTERM
    assert launcher.stop_signal(4) == expected
    assert launcher.stop_signal(1) == signal.SIGTERM


def test_a_launcher_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="`--launcher` must be an installed program"):
        Launcher("mpirun", SCRIPTS).check()


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path / "cell") as first:
        with locked(tmp_path / "cell") as second:
            assert first is not None and second is None
    with locked(tmp_path / "cell") as third:
        assert third is not None


def test_a_cell_in_which_someone_trains_is_not_free(tmp_path):
    with open(RunFolder(tmp_path).lock_file, "w") as training:
        fcntl.flock(training, fcntl.LOCK_EX)
        with locked(tmp_path) as lock:
            assert lock is None
    with locked(tmp_path) as lock:
        assert lock is not None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="`--sweep-dir` must be a folder that can be written"):
        with locked(tmp_path / "file" / "cell"):
            pass


def attended(folder, code, *, signals=None, timeout_s=None, tick=lambda: None):
    """Runs Python code as a cell's process."""
    with locked(folder) as lock:
        command = [sys.executable, "-c", code]
        log = folder / "console.log"
        signals = signals or Signals()
        return attend(command, log, lock, signal.SIGTERM, signals, timeout_s, tick)


def test_the_output_is_kept(tmp_path):
    for number in (1, 2):
        code = f"import sys; print('out {number}'); print('err', file=sys.stderr); sys.exit(3)"
        ended = attended(tmp_path, code)
    assert (ended.status, ended.stopped, ended.timed_out) == (3, False, False)
    assert ended.printed == "out 2\nerr\n"  # of this start only
    assert (tmp_path / "console.log").read_text().count("out ") == 4  # commands and output


def test_a_signal_is_handed_on(tmp_path):
    with Signals() as signals:

        def when_ready():
            if "ready\n" in (tmp_path / "console.log").read_text() and not signals.received:
                os.kill(os.getpid(), signal.SIGINT)

        ended = attended(tmp_path, PATIENT, signals=signals, tick=when_ready)
    assert (ended.status, ended.stopped) == (75, True)


SLOW_STEP = """
import os, sys, time
from keras_nowcast.process import Signals
from keras_nowcast.training.runlock import RunLock

run_dir = sys.argv[sys.argv.index("--run-dir") + 1]
saved = os.path.join(run_dir, "saved")
with Signals() as signals:
    if os.environ["HOROVOD_RANK"] == "0":
        lock = RunLock(run_dir)
        lock.take()
        lock.begin()
        print("ready", flush=True)
        while not signals.received:
            time.sleep(0.05)
        time.sleep(7)  # the current step
        open(saved, "w").close()
    while not os.path.exists(saved):
        time.sleep(0.05)
sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="there is no horovodrun")
def test_a_step_longer_than_horovodrun_waits_is_saved(tmp_path):
    (tmp_path / "train.py").write_text(SLOW_STEP)
    folder = tmp_path / "cell"
    launcher = Launcher("horovodrun", tmp_path)
    with locked(folder) as lock, Signals() as signals:

        def when_ready():
            if "ready\n" in (folder / "console.log").read_text() and not signals.received:
                os.kill(os.getpid(), signal.SIGINT)

        ended = attend(
            launcher.training(RunConfig(run_dir=str(folder)), 2),
            folder / "console.log",
            lock,
            launcher.stop_signal(2),
            signals,
            tick=when_ready,
        )
    assert ended.stopped and (folder / "saved").exists(), ended.printed


def test_rank_0_is_who_holds_the_lock_here_and_nobody_else(tmp_path):
    assert launch.rank_0_of(tmp_path) is None
    lock_file = RunFolder(tmp_path).lock_file
    me = {"pid": os.getpid(), "host": launch.socket.gethostname()}
    lock_file.write_text(json.dumps(me))
    assert launch.rank_0_of(tmp_path) is None  # of a run that ended; another process has its id now
    with open(lock_file):
        assert launch.rank_0_of(tmp_path) == os.getpid()
        lock_file.write_text(json.dumps({**me, "host": "another"}))
        assert launch.rank_0_of(tmp_path) is None
        lock_file.write_text("{")
        assert launch.rank_0_of(tmp_path) is None


def test_a_second_signal_kills(tmp_path):
    stubborn = PATIENT.replace("sys.exit(75)", "None")
    with Signals() as signals:

        def when_ready():
            if "ready\n" in (tmp_path / "console.log").read_text():
                os.kill(os.getpid(), signal.SIGINT)

        ended = attended(tmp_path, stubborn, signals=signals, tick=when_ready)
    assert (ended.status, ended.stopped) == (-signal.SIGKILL, True)


def test_a_process_that_does_not_stop_in_time_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_S", 0.5)
    default = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the process inherits
    try:
        ended = attended(tmp_path, "import time; time.sleep(600)", timeout_s=0.5)
    finally:
        signal.signal(signal.SIGTERM, default)
    assert (ended.status, ended.timed_out, ended.stopped) == (-signal.SIGKILL, True, False)


def test_a_process_dies_with_its_sweep_and_holds_the_lock_so_long(tmp_path):
    """The sweep is killed; its process gets a signal, ends later, and holds the lock until then."""
    end = tmp_path / "end"
    linger = f"[time.sleep(0.05) for _ in iter(lambda: os.path.exists({str(end)!r}), True)]"
    lingering = "import os" + PATIENT.replace("sys.exit(75)", f"({linger}, sys.exit(75))")
    sweep = subprocess.Popen(
        [sys.executable, "-c", _SWEEP.format(folder=str(tmp_path), code=lingering)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    _until(lambda: "ready\n" in _text(tmp_path / "console.log"))
    sweep.kill()
    sweep.wait()
    with locked(tmp_path) as lock:
        assert lock is None  # its process still lives
    end.touch()

    def is_free():
        with locked(tmp_path) as lock:
            return lock is not None

    _until(is_free)


_SWEEP = """
from pathlib import Path
import signal, sys
from keras_nowcast.process import Signals
from keras_nowcast.sweep.launch import attend, locked
folder = Path({folder!r})
with locked(folder) as lock:
    command = [sys.executable, "-c", {code!r}]
    attend(command, folder / "console.log", lock, signal.SIGTERM, Signals())
"""


def _text(path):
    return path.read_text() if path.exists() else ""


def _until(holds, seconds=120):
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.1)
