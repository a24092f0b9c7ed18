"""Files that appear whole or not at all."""

import contextlib
import json
import os
import re
import threading
from pathlib import Path

_BESIDE = re.compile(r"\..+\.\d+(\.(npz|json|csv|keras))?")


@contextlib.contextmanager
def written_whole(path, new=False):
    """Gives a path beside `path` to write to; on leaving without an exception it becomes `path`.

    The bytes are on disk (fsync) before the rename, and an exception leaves the former file
    untouched and nothing beside it. The suffix of `path` is kept, because writers choose the
    format by it.

    Args:
      path: the file.
      new: whether it must not be there yet; of two that write at once, one gets it.

    Raises:
      FileExistsError: it is there and should be new.
    """
    path = Path(path)
    # By thread: two of a process may write the same file.
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
    """Brings a rename to disk, so that a power cut does not undo it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:  # some network file systems sync no folders
        pass
    finally:
        os.close(opened)


def remove_unfinished(folder):
    """Removes what `written_whole` left in a folder when its process was killed.

    For whoever knows that nobody else is writing there.
    """
    for file in Path(folder).glob(".*"):
        if _BESIDE.fullmatch(file.name):
            file.unlink(missing_ok=True)


def write_json(path, value, new=False):
    """Writes `value` as JSON, whole. NaN and infinity are refused: JSON has neither.

    `new` is `written_whole`'s.
    """
    with written_whole(path, new) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
