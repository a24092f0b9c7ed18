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

from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder

TOUCH_EVERY_S = 2.0
LOOK_S = 0.1  # far longer than a look at the lock takes
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """The lock on a run folder; rank 0 alone has one.

    Attributes:
      lost: [from, to] in unix time of work that was done, that no checkpoint in use holds, and that
        was done again; they do not overlap.
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

    @property
    def follows(self):
        """Whether another job was in the folder before this one."""
        return bool(self._former)

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
        """Writes who runs from now on, and finds what the jobs before this one lost.

        That is all they did after the checkpoint was saved: the last job's when it was killed; when
        a newer checkpoint is damaged, also what that one had held, of whichever job.

        Args:
          saved_unix_s: when the checkpoint was saved that the run goes on from, None without one.
          zero_unix_s: what the power trace counts from.
        """
        former = self._former
        starts = list(former.get("starts", []))
        if former:
            until = former.get("saved_unix_s") or self._last_alive
            starts.append([former["since_unix_s"], until])
        undone = [[max(since, saved_unix_s or 0.0), until] for since, until in starts]
        self.lost = _union([*former.get("lost", []), *undone])
        self._holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since_unix_s": time.time(),
            "zero_unix_s": zero_unix_s,
            "starts": starts,
            "lost": self.lost,
        }
        self._write(self._holder)

    def touch(self, last=False):
        """Gives a sign of life; unless it is to be the last, at most every two seconds."""
        is_due = last or time.monotonic() - self._touched > TOUCH_EVERY_S
        if self._file is not None and is_due:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # it is a sign, nothing depends on it
                os.utime(self._file, (time.time(), time.time()))

    def end(self, saved_unix_s):
        """Notes that nothing is lost: all that was done was saved at that time."""
        self._write({**self._holder, "saved_unix_s": saved_unix_s})

    def release(self):
        """Lets go of the lock."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _write(self, content):
        # In place: a file renamed here would be another one, without the lock. At once and over all
        # that was there, so that it can be read at any moment.
        text = json.dumps(content).encode()
        os.pwrite(self._file, text.ljust(os.fstat(self._file).st_size - 1) + b"\n", 0)


def _union(intervals):
    """Returns the intervals, by time, with those that overlap made one and the empty ones left out.

    So no second counts twice.
    """
    union = []
    for begin, end in sorted(each for each in intervals if each[0] < each[1]):
        if union and begin <= union[-1][1]:
            union[-1][1] = max(union[-1][1], end)
        else:
            union.append([begin, end])
    return union


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
