"""Files that appear complete or not at all, HDF5 on a full disk, and locks on files."""

import contextlib
import fcntl
import io
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


@contextlib.contextmanager
def new_hdf5(path):
    """Gives a new h5py File at `path`, and a function that raises the first error of its disk.

    The function is to be called now and then while much is written. It is called at the end, when
    the bytes are on disk (fsync).

    HDF5 does not survive a write that fails, on a full disk for example: closing the file fails as
    well, and the process can crash when it exits. Such an error is therefore kept from it.

    Raises:
      OSError: the disk refused a write; the file at `path` is incomplete.
    """
    import h5py

    with open(path, "w+b", buffering=0) as raw:
        disk = _Disk(raw)
        with h5py.File(disk, "w") as file:
            yield file, disk.check
        disk.check()
        os.fsync(raw.fileno())


class _Disk(io.RawIOBase):
    """A file that keeps its first error for `check`, and accepts every write after it."""

    def __init__(self, raw):
        self._raw = raw
        self._error = None

    def check(self):
        if self._error is not None:
            raise self._error

    def seek(self, offset, whence=io.SEEK_SET):
        return self._raw.seek(offset, whence)

    def tell(self):
        return self._raw.tell()

    def readinto(self, buffer):
        count = self._raw.readinto(buffer)
        buffer[count:] = bytes(len(buffer) - count)  # was not written, because of the error
        return len(buffer)

    def write(self, data):
        view = memoryview(data)
        try:
            while view and self._error is None:
                view = view[self._raw.write(view) :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size=None):
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size


def size_text(count):
    """Returns a number of bytes as text, for example 3.1 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


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
