"""Starts a cell as a user would, waits until it ends, and forwards signals to it.

Commands are lists of words; no shell interprets them. A started process has its own session and
holds the lock of its folder while it lives. If the sweep that started it dies, the kernel sends it
the signal to stop, so no cell continues to train unnoticed.
"""

import contextlib
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

from keras_nowcast.config import MAY_CHANGE_ON_RESUME, RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock
from keras_nowcast.flags import as_arguments
from keras_nowcast.process import ends_with_parent
from keras_nowcast.records import RunFolder

LAUNCHERS = ("horovodrun", "mpirun")
POLL_S = 0.2
# Time to stop after the request, for the current step and a checkpoint; then the cell is killed.
GRACE_S = 120


# ---- commands ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launcher:
    """How the processes of a cell are started.

    Attributes:
      name: one of LAUNCHERS, for cells of several processes; a single process needs no launcher.
      scripts: folder of train.py and evaluate.py.
    """

    name: str
    scripts: Path

    def check(self):
        """Raises InputError if the launcher is not installed."""
        self._program()

    def training(self, config, processes):
        """Returns the command that trains a RunConfig in its run_dir, or resumes it."""
        if config.resume:
            # The run folder holds the config; only fields that may change are given again.
            free = MAY_CHANGE_ON_RESUME - {"epochs"}
            config = RunConfig(**{name: getattr(config, name) for name in free})
        return [
            *self._prefix(processes),
            sys.executable,
            str(self.scripts / "train.py"),
            *as_arguments(vars(config)),
        ]

    def evaluation(self, folder):
        """Returns the command that evaluates the run in a folder."""
        return [sys.executable, str(self.scripts / "evaluate.py"), str(folder)]

    def stop_signal(self, processes):
        """Returns the signal to the launcher that ends a training with a checkpoint.

        It is sent only if rank 0 cannot be signaled directly (`rank_0_of`). Open MPI's mpirun
        forwards SIGUSR1 and kills its ranks at other signals. horovodrun forwards SIGTERM but
        kills its ranks five seconds later, which can be in the middle of a slow step.
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
        of_this_python = Path(sys.executable).with_name(self.name)
        program = str(of_this_python) if of_this_python.exists() else shutil.which(self.name)
        if program is None:
            raise InputError(
                "`--launcher` must be an installed program, for cells of several processes. "
                f"Received: {self.name}; run `make install`, or choose another launcher."
            )
        return program


# ---- the lock of a cell -----------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder):
    """Creates a folder and locks it against other sweeps.

    The kernel releases the lock when the last process that has the file open has ended, in
    whatever way. A process that inherits the open file therefore holds the lock while it lives.
    The file is never deleted: two processes could then each lock a file of that name.

    Yields:
      The open lock file, or None if another process holds the lock or trains in the folder.

    Raises:
      InputError: the folder cannot be written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    except OSError as error:
        raise InputError(
            f"`--sweep-dir` must be a folder that can be written. Received: {folder} ({error}); "
            "choose another folder."
        ) from None
    with file:
        # A run has its own lock: it may be started by hand, or ranks may outlive their launcher.
        free = _take(file) and not RunFolder(folder).is_running()
        yield file if free else None


def _take(file):
    try:
        return take_lock(file)
    except OSError as error:
        raise InputError(
            f"`--sweep-dir` must be on a file system with locks. Received: {file.name} ({error}); "
            "choose a folder on another file system."
        ) from None


def rank_0_of(folder):
    """Returns the id of the process that trains in a folder as rank 0, or None if unknown.

    The process must have running.json open on this host, because the id that a previous run
    wrote there may belong to another process by now.
    """
    lock_file = RunFolder(folder).lock_file
    try:
        holder = json.loads(lock_file.read_text())
        pid, host = holder["pid"], holder["host"]
        opened = _open_files(pid)
    # The run has not started yet, or it has ended, or something else wrote the file.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_it = host == socket.gethostname() and str(lock_file.resolve()) in opened
    return pid if is_it else None


def _open_files(process):
    """Returns the paths of the open files of a process."""
    paths = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            paths.append(os.readlink(link))
    return paths


# ---- from start to end ------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: exit status; minus the number of the signal if a signal ended it.
      stopped: True if the sweep received a signal and asked the process to stop.
      timed_out: True if it was asked to stop because its time limit had passed.
      seconds: seconds from its start to its end.
      printed: its output, at most the last 64 KiB.
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
      log: Path of the file in the cell's folder that its output is appended to.
      lock: the open file from `locked`; the process inherits it.
      stop_signal: signal that makes it stop with a checkpoint; not used if rank 0 of the cell can
        be signaled directly.
      signals: the Signals of the sweep. After the first signal the process is asked to stop, after
        the second it is killed.
      timeout_s: seconds after which it is asked to stop; None for no limit.
      tick: function that is called a few times per second.

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
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C in a terminal reaches only the sweep, which forwards it
        pass_fds=[lock.fileno()],
        preexec_fn=ends_with_parent(stop_signal),
    )


def _ask_to_stop(process, stop_signal, folder):
    """Signals rank 0, with which all ranks stop after the same step, or the process `process`.

    The latter is used while rank 0 is unknown: then no training that could be lost was done yet.
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
