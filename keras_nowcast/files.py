"""Files that appear whole or not at all."""

import contextlib
import json
import os
from pathlib import Path


@contextlib.contextmanager
def written_whole(path):
    """Gives a path beside `path` to write to; on leaving without an exception it becomes `path`.

    The bytes are on disk (fsync) before the rename, and an exception leaves the former file
    untouched and nothing beside it. The suffix of `path` is kept, because writers choose the
    format by it.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path, value):
    """Writes `value` as JSON, whole. NaN and infinity are refused: JSON has neither."""
    with written_whole(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
