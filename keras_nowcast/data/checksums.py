"""The checksums of packed files, in SHA256SUMS, their verification, and their sources."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
from pathlib import Path

from keras_nowcast.errors import InputError
from keras_nowcast.files import write_json, written_whole

SUMS = "SHA256SUMS"
SOURCES = "SOURCES.json"
_READ_BYTES = 2**22


def hash_bytes(file, count, hashes):
    """Adds the next `count` bytes of an open file to each of some hashes."""
    while count > 0:
        block = file.read(min(count, _READ_BYTES))
        if not block:
            return  # the file is too short, so the checksum will differ
        for each in hashes:
            each.update(block)
        count -= len(block)


def read_sums(root):
    """Returns {path: SHA-256} from SHA256SUMS, empty if there is no such file."""
    try:
        lines = (Path(root) / SUMS).read_text().split("\n")
    except FileNotFoundError:
        return {}
    return {line[66:]: line[:64] for line in lines if line}


def note_sum(root, path, digest):
    """Writes the checksum of one file to SHA256SUMS, which has those of all files."""
    _write_sums(root, {**read_sums(root), str(path): digest})


def forget_sum(root, path):
    """Removes the checksum of a file that is about to be replaced."""
    sums = read_sums(root)
    if sums.pop(str(path), None) is not None:
        _write_sums(root, sums)


def _write_sums(root, sums):
    with written_whole(root / SUMS) as beside:
        beside.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def read_sources(root):
    """Returns {path of a packed file: what `note_sources` wrote}, empty if there is no file."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((root / SOURCES).read_text()))
    return {}


def note_sources(root, path, sources):
    """Writes the sources of one packed file, as JSON, to SOURCES.json, which has those of all."""
    write_json(root / SOURCES, {**read_sources(root), str(path): sources})


def sha256_of(path):
    """Returns the SHA-256 of a file, as hexadecimal text."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        hash_bytes(file, os.fstat(file.fileno()).st_size, [whole])
    return whole.hexdigest()


def verify(root, threads=1, say=print):
    """Compares every file of a packed data set with SHA256SUMS.

    Raises:
      InputError: there is no SHA256SUMS, or a file is missing or differs.
    """
    root = Path(root)
    sums = read_sums(root)
    if not sums:
        raise InputError(
            f"`--verify` must be a folder with {SUMS}, which this script writes. Received: {root}."
        )

    def state(name):
        try:
            return "unchanged" if sha256_of(root / name) == sums[name] else "differs"
        except OSError as error:
            return error.strerror

    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        states = dict(zip(sums, executor.map(state, sums), strict=True))
    for name, found in states.items():
        say(f"{root / name}: {found}")
    wrong = [name for name, found in states.items() if found != "unchanged"]
    if wrong:
        raise InputError(
            f"`--verify` must find every file unchanged. Received: {len(wrong)} of {len(sums)} "
            f"files that are not, first {wrong[0]}; remove them and run the same command again."
        )
