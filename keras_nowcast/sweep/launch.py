"""Starts a cell as a user would, attends it until it ends, and hands signals on to it.

No shell takes part: commands are lists of words. What is started here has a session of its own,
holds the lock of its folder while it lives, and is told to stop when the sweep that started it
dies: nothing goes on training unnoticed.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from keras_nowcast.config import MAY_CHANGE_ON_RESUME, RunConfig, as_arguments
from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock
from keras_nowcast.records import RunFolder

LAUNCHERS = ("horovodrun", "mpirun")
POLL_S = 0.2
# From the request to stop to the end: the step under way and a checkpoint. Then it is killed.
GRACE_S = 120
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


# ---- what is started --------------------------------------------------------------------------


@dataclass(frozen=True)
class Launcher:
    """How the processes of a cell are started.

    Attributes:
      name: one of LAUNCHERS, for cells of several processes; one process needs none.
      scripts: folder with train.py and evaluate.py.
    """

    name: str
    scripts: Path

    def check(self):
        """Raises InputError unless the launcher's program is there."""
        self._program()

    def training(self, config, processes):
        """Returns the command that trains, or goes on training, a RunConfig in its run_dir."""
        if config.resume:
            # The folder says how the run was started; only what may differ is given again.
            free = MAY_CHANGE_ON_RESUME - {"epochs"}
            config = RunConfig(**{name: getattr(config, name) for name in free})
        return [
            *self._prefix(processes),
            sys.executable,
            str(self.scripts / "train.py"),
            *as_arguments(vars(config)),
        ]

    def evaluation(self, folder):
        """Returns the command that scores the run in a folder."""
        return [sys.executable, str(self.scripts / "evaluate.py"), str(folder)]

    def stop_signal(self, processes):
        """Returns the signal to the launcher that ends a training with a checkpoint.

        OpenMPI's mpirun kills its ranks at the others and hands SIGUSR1 on; horovodrun hands
        SIGTERM on and kills its ranks five seconds later, in the middle of a slow step. So it is
        sent only where rank 0 cannot be told (`rank_0_of`).
        """
        through_mpi = self.name == "mpirun" and processes > 1
        return signal.SIGUSR1 if through_mpi else signal.SIGTERM

    def _prefix(self, processes):
        if processes == 1:
            return []
        if self.name == "mpirun":
            return [self._program(), "-np", str(processes), "-bind-to", "none"]
        return [self._program(), "-np", str(processes), "--gloo"]

    def _program(self):
        beside = Path(sys.executable).with_name(self.name)
        program = str(beside) if beside.exists() else shutil.which(self.name)
        if program is None:
            raise InputError(
                f"`--launcher` must be a program that is installed; cells of several processes "
                f"need it. Received: {self.name}; run `make install`, or choose another."
            )
        return program


# ---- who may run a cell -----------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder):
    """Makes a folder and locks it against other sweeps.

    Gives the open lock file, or None where another process holds the lock or trains in the folder.
    The kernel frees a lock when the last process that has the file open is gone, however it ended;
    so a process that inherits it is known to live. The file itself stays: removing it would let
    two in.

    Raises:
      InputError: the folder cannot be written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    except OSError as error:
        raise InputError(
            f"`--sweep-dir` must be a folder that can be written. Received: {folder} ({error})."
        ) from None
    with file:
        # A run holds a lock of its own: started by hand, or ranks that outlive their launcher.
        free = _take(file) and not RunFolder(folder).is_running()
        yield file if free else None


def _take(file):
    try:
        return take_lock(file)
    except OSError as error:
        raise InputError(
            f"`--sweep-dir` must be on a file system with locks. Received: {file.name} ({error})."
        ) from None


def rank_0_of(folder):
    """Returns the id of the process that trains in a folder as rank 0; None if not known here.

    Known is who has running.json open on this host: a former run's id may be another's by now.
    """
    lock_file = RunFolder(folder).lock_file
    try:
        holder = json.loads(lock_file.read_text())
        opened = _open_files(holder["pid"])
    except (OSError, ValueError, KeyError):  # no run yet, or it has ended
        return None
    is_it = holder["host"] == socket.gethostname() and str(lock_file.resolve()) in opened
    return holder["pid"] if is_it else None


def _open_files(process):
    """Returns the paths of the files that a process has open."""
    paths = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            paths.append(os.readlink(link))
    return paths


# ---- from its start to its end ----------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: its exit status, negative for a signal.
      stopped: the sweep was told to stop, and handed that on.
      timed_out: it was stopped for lack of time.
      seconds: how long it lived.
      printed: what it printed, at most the last 64 KiB.
    """

    status: int
    stopped: bool
    timed_out: bool
    seconds: float
    printed: str


def attend(command, log, lock, stop_signal, signals, timeout_s=None, tick=lambda: None):
    """Runs a command to its end.

    Args:
      command: list of words.
      log: Path of the file that its output is appended to, in the cell's folder.
      lock: the open file from `locked`; the process inherits it.
      stop_signal: what makes it stop in order, unless rank 0 in the cell's folder can be told.
      signals: the Signals of the sweep. At the first the process is asked to stop, at the second
        it is killed.
      timeout_s: it is asked to stop after this time; None for never.
      tick: called a few times a second.

    Returns:
      An Ended.
    """
    with open(log, "a+b") as console:
        console.write(f"$ {' '.join(command)}\n".encode())
        console.flush()
        begin = console.seek(0, os.SEEK_END)
        since = time.monotonic()
        process = _start(command, console, lock, stop_signal)
        stopped_at = None
        timed_out = False
        while process.poll() is None:
            tick()
            late = timeout_s is not None and time.monotonic() - since > timeout_s
            if stopped_at is None and (signals.received or late):
                timed_out = not signals.received
                stopped_at = time.monotonic()
                _ask_to_stop(process, stop_signal, log.parent)
            elif signals.received > 1 or (stopped_at and time.monotonic() - stopped_at > GRACE_S):
                _kill(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        console.seek(max(begin, console.seek(0, os.SEEK_END) - 2**16))
        printed = console.read().decode(errors="replace")
    stopped = stopped_at is not None and not timed_out
    return Ended(process.returncode, stopped, timed_out, time.monotonic() - since, printed)


def _start(command, console, lock, stop_signal):
    sweep = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def stop_with_the_sweep():
        libc.prctl(_PR_SET_PDEATHSIG, stop_signal)
        if os.getppid() != sweep:  # it died before this was set
            os.kill(os.getpid(), signal.SIGKILL)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C in a terminal reaches the sweep alone, which hands it on
        pass_fds=[lock.fileno()],
        preexec_fn=stop_with_the_sweep,
    )


def _ask_to_stop(process, stop_signal, folder):
    """Tells rank 0, which tells the others after the same step; else the process that was started.

    A rank that is not known yet has trained nothing that could be lost.
    """
    rank_0 = rank_0_of(folder)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if rank_0 is not None:
            os.kill(rank_0, signal.SIGUSR1)
            return
    process.send_signal(stop_signal)


def _kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
