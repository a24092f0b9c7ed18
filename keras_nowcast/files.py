"""Files that appear complete or not at all, and locks on files."""

import contextlib
import fcntl
import json
import os
import re
import threading
from pathlib import Path

_BESIDE = re.compile(r"\..+\.\d+(\.(npz|json|csv|keras))?")


@contextlib.contextmanager
def written_whole(path, new=False):
    """Gives a temporary path next to `path`; on leaving without an exception it becomes `path`.

    The bytes are on disk (fsync) before the rename. After an exception the previous file is
    unchanged and the temporary one is gone. The temporary path has the suffix of `path`, because
    writers choose the format by it.

    Args:
      path: the file.
      new: whether the file must not exist yet; if two processes write at once, one succeeds.

    Raises:
      FileExistsError: `new`, and the file exists.
    """
    path = Path(path)
    # Named by thread, since two threads of a process may write the same file.
    beside = path.with_name(f".{path.stem}.{threading.get_native_id()}{path.suffix}")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        if new:
            _name_new(beside, path)
        else:
            os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _name_new(beside, path):
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(beside, path)


def _sync_folder(folder):
    """Writes a rename to disk, so that a power failure does not undo it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:  # some network file systems cannot sync a folder
        pass
    finally:
        os.close(opened)


def remove_unfinished(folder):
    """Removes the temporary files of `written_whole` that a killed process left in a folder.

    The caller must know that no other process is writing there.
    """
    for file in Path(folder).glob(".*"):
        if _BESIDE.fullmatch(file.name):
            file.unlink(missing_ok=True)


def write_json(path, value, new=False):
    """Writes `value` as JSON, atomically; `new` is as for `written_whole`.

    Raises:
      ValueError: a number is NaN or infinite, which JSON does not have.
    """
    with written_whole(path, new) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def take_lock(file, *, shared=False, wait=False):
    """Locks an open file with flock, until the last process that has it open closes it or ends.

    The content of the file plays no part; the file must stay where it is, since another one of the
    same name would have another lock.

    Args:
      file: an open file, or its descriptor.
      shared: whether others may hold a shared lock at the same time.
      wait: whether to wait for the lock.

    Returns:
      True, or False if another process holds the lock (only without `wait`).

    Raises:
      OSError: the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
