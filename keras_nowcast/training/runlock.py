"""One job at a time in a run folder, and what a job that was killed there lost.

`running.json` is locked with flock while a job runs; the system lets go of it however the job
ends. Its time is the job's last sign of life. On NFS the lock holds between hosts (Linux sends
flock to the server), but for mounts with `nolock` or `local_lock`, where it holds on one host.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder

TOUCH_EVERY_S = 2.0
LOOK_S = 0.1  # far longer than a look at the lock takes
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """The lock on a run folder; rank 0 alone has one.

    Attributes:
      lost: [from, to] in unix time of work that was done, lost with a process that was killed, and
        done again.
      zero_unix_s: what the power trace of the job before this one counts from, None if unknown.
    """

    def __init__(self, run_dir, say=print):
        self._path = RunFolder(run_dir).lock_file
        self._say = say
        self._file = None
        self._former = {}
        self._touched = 0.0
        self.lost = []
        self.zero_unix_s = None

    def take(self):
        """Takes the lock, if it is not held by this process already.

        Raises:
          InputError: another job holds it.
        """
        if self._file is not None:
            return
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file)
        except BlockingIOError:
            holder = _read(file)
            os.close(file)
            job = f", Slurm job {holder['job']}" if holder.get("job") else ""
            raise InputError(
                f"`--run-dir` must not be in use by another job. Received: {self._path.parent}, in "
                f"use by process {holder.get('pid', 'unknown')} on {holder.get('host', 'a host')}"
                f"{job}; wait for it to end, or give another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(file)
                raise
            self._say(f"{self._path} cannot be locked here ({error.strerror}): start no second job")
        self._file = file
        self._former = _read(file)
        self._last_alive = os.fstat(file).st_mtime
        self.zero_unix_s = self._former.get("zero_unix_s")

    def begin(self, saved_unix_s=None, zero_unix_s=None):
        """Writes who runs from now on, and finds what a job before this one lost.

        Args:
          saved_unix_s: when the checkpoint was saved that the run goes on from, None without one.
          zero_unix_s: what the power trace counts from.
        """
        former, self.lost = self._former, list(self._former.get("lost", []))
        if former and not former.get("ended"):
            since = max(saved_unix_s or 0.0, former["since_unix_s"])
            if self._last_alive > since:
                self.lost.append([since, self._last_alive])
        self._holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since_unix_s": time.time(),
            "zero_unix_s": zero_unix_s,
            "lost": self.lost,
        }
        self._write(self._holder)

    def touch(self):
        """Gives a sign of life, at most every two seconds."""
        if self._file is not None and time.monotonic() - self._touched > TOUCH_EVERY_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # it is a sign, nothing depends on it
                os.utime(self._file, (time.time(), time.time()))

    def end(self):
        """Notes that nothing is lost: all that was done is saved."""
        self._write({**self._holder, "ended": True})

    def release(self):
        """Lets go of the lock."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _write(self, content):
        # In place: a file renamed here would be another one, without the lock.
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, (json.dumps(content) + "\n").encode(), 0)


def lost_joules(traces, intervals, zero_unix_s):
    """Returns the energy of `RunLock.lost`, between its first and last readings of power.

    Args:
      traces: as RunFolder.read_power returns them.
      intervals: [from, to] each, unix time.
      zero_unix_s: unix time that the traces count from.

    Returns:
      Joules of all devices; None where no power was read.
    """
    parts = []
    for seconds, watts in traces.values():
        time_s, watts = np.add(seconds, zero_unix_s), np.array(watts)
        for begin, end in intervals:
            inside = (begin <= time_s) & (time_s <= end) & np.isfinite(watts)
            if np.count_nonzero(inside) > 1:
                power = watts[inside]
                parts.append(np.sum(np.diff(time_s[inside]) * (power[1:] + power[:-1]) / 2))
    return float(sum(parts)) if parts else None


def _lock(file):
    """Locks a file, or raises BlockingIOError where a job holds it.

    Who only looks whether a job does (`RunFolder.is_running`) holds it for an instant.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOK_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read(file):
    try:
        return json.loads(os.pread(file, 2**20, 0))
    except ValueError:  # new, or cut short by a kill
        return {}
