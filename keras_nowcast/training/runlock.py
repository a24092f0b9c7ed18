"""The lock on a run folder, which allows one job at a time, and the lost work of killed jobs.

A job holds a flock on `running.json` while it runs; the system releases it however the job ends.
The modification time of the file is the job's last heartbeat. On NFS the lock holds between hosts,
because Linux sends flock to the server, except for mounts with `nolock` or `local_lock`. There it
holds on one host.
"""

import contextlib
import errno
import json
import os
import socket
import time

from keras_nowcast.checked import is_number
from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock
from keras_nowcast.records import RunFolder

TOUCH_EVERY_S = 2.0
RETRY_S = 0.1  # far longer than a check of the lock takes
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TIMES = ("zero_unix_s", "saved_unix_s")


class RunLock:
    """The lock on a run folder; rank 0 alone takes one.

    Args:
      run_dir: path of the run folder.
      say: called with a line if the file system has no locks.

    Attributes:
      lost: [from, to] in Unix time of each stretch of lost work: work that was done, that the
        checkpoint in use does not hold, and that is repeated. They do not overlap.
      zero_unix_s: Unix time from which the power trace of the previous job counts, None if it is
        unknown.
    """

    def __init__(self, run_dir, say=print):
        self._path = RunFolder(run_dir).lock_file
        self._say = say
        self._file = None
        self._previous = {}
        self._is_odd = False
        self._touched = 0.0
        self.lost = []
        self.zero_unix_s = None

    @property
    def follows(self):
        """True if another job was in the folder before this one."""
        return bool(self._previous) or self._is_odd

    def take(self):
        """Takes the lock, unless this process holds it already.

        Raises:
          InputError: another job holds it.
        """
        if self._file is not None:
            return
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            is_free = _lock(file)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(file)
                raise
            self._say(
                f"{self._path} cannot be locked here ({error.strerror}): do not start a second job"
            )
            is_free = True
        if not is_free:
            holder = _read(file)
            os.close(file)
            job = f", Slurm job {holder['job']}" if holder.get("job") else ""
            raise InputError(
                f"`--run-dir` must not be in use by another job. Received: {self._path.parent}, in "
                f"use by process {holder.get('pid', 'unknown')} on {holder.get('host', 'a host')}"
                f"{job}; wait for it to end, or choose another folder."
            )
        self._file = file
        self._previous = _read(file)
        self._is_odd = not self._previous and os.fstat(file).st_size > 0
        if self._is_odd:
            self._say(
                f"{self._path} cannot be read: the lost work of earlier starts is not counted"
            )
        self._last_alive = os.fstat(file).st_mtime
        self.zero_unix_s = self._previous.get("zero_unix_s")

    def begin(self, saved_unix_s=None, zero_unix_s=None):
        """Writes which process runs from now on, and determines the lost work of earlier jobs.

        Lost is all work that was done after the checkpoint in use was saved: that of the last job
        if it was killed, and, if a newer checkpoint is corrupted, also the work that it held, of
        whichever job.

        Args:
          saved_unix_s: Unix time at which the checkpoint was saved from which the run resumes, or
            None if there is none.
          zero_unix_s: Unix time from which the power trace counts.
        """
        previous = self._previous
        starts = list(previous.get("starts", []))
        if previous:
            until = previous.get("saved_unix_s") or self._last_alive
            starts.append([previous["since_unix_s"], until])
        undone = [[max(since, saved_unix_s or 0.0), until] for since, until in starts]
        self.lost = _union([*previous.get("lost", []), *undone])
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
        """Updates the lock file's time as a heartbeat.

        At most every two seconds unless `last` is true.
        """
        is_due = last or time.monotonic() - self._touched > TOUCH_EVERY_S
        if self._file is not None and is_due:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # nothing depends on a single heartbeat
                os.utime(self._file, (time.time(), time.time()))

    def end(self, saved_unix_s):
        """Records that no work is lost, because all of it was saved at that Unix time."""
        self._write({**self._holder, "saved_unix_s": saved_unix_s})

    def release(self):
        """Releases the lock."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _write(self, content):
        # In place, because a renamed file would be another one, without the lock. In one write over
        # all of the old content, so that the file is readable at any moment.
        text = json.dumps(content).encode()
        os.pwrite(self._file, text.ljust(os.fstat(self._file).st_size - 1) + b"\n", 0)


def _union(intervals):
    """Returns the intervals in order of time, overlapping ones merged and empty ones removed.

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
    """Locks a file and returns True, or False if a job holds the lock.

    A process that only checks (`RunFolder.is_running`) holds the lock for an instant, so a second
    try follows.
    """
    if take_lock(file):
        return True
    time.sleep(RETRY_S)
    return take_lock(file)


def _read(file):
    """Returns what the lock file of the last job holds, {} if that is not usable.

    It is new, a kill cut it short, or something else wrote it.
    """
    try:
        content = json.loads(os.pread(file, 2**20, 0))
        times = [content["since_unix_s"], *filter(None, map(content.get, _TIMES))]
        ends = [
            end for name in ("starts", "lost") for pair in content.get(name, []) for end in pair
        ]
        pairs = [len(pair) == 2 for name in ("starts", "lost") for pair in content.get(name, [])]
        usable = all(map(is_number, times + ends)) and all(pairs)
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return content if usable else {}
