"""Searches for HDF5 files that are read otherwise than h5py reads them, guided by coverage.

    pip install atheris
    python tests/data/fuzz_reader.py --seconds 3600 --out build/fuzz

Each case is the bytes of a small HDF5 file, changed at random. Changes that reach another line of
`hdf5.py` or `sevir.py` are kept and changed further. They start from the files of `corpus/`, one of
each kind of storage, and of earlier searches. A case passes if each event that the reader returns
has the pixels of h5py, and if everything else is refused by one of the errors that mean so.

A case that does not pass is written to `--out`, as are files on which HDF5 crashes (crash-...) or
takes longer than 20 minutes (timeout-...). The exit status is 1 if a case did not pass.
"""

import argparse
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[2]
LINKED = "gzip-earliest.h5"
MOST_BYTES = 2**20  # of a data set; larger ones take time and reach nothing new
EVENTS_READ = 4


def write_corpus(folder):
    """Writes one small file of each kind of storage."""
    rng = np.random.default_rng(3)
    codes = np.repeat(rng.integers(0, 256, (3, 6, 2, 4), np.uint8), 3, axis=2)
    one = (1, *codes.shape[1:])
    storages = {
        "contiguous": {},
        "gzip": {"chunks": one, "compression": "gzip"},
        "cut": {"chunks": (2, 4, 4, 3), "compression": "gzip", "shuffle": True},
        "plain": {"chunks": one},
        "grows": {"chunks": one, "compression": "gzip", "maxshape": (None, *codes.shape[1:])},
        "checked": {"chunks": one, "compression": "lzf", "fletcher32": True},
        "filled": {"chunks": one, "compression": "gzip", "fillvalue": 7},
    }
    for name, storage in storages.items():
        for libver in ("earliest", "latest"):
            for block in (0, 512) if name in ("contiguous", "gzip") else (0,):
                path = folder / f"{name}-{libver}{'-block' * (block > 0)}.h5"
                with h5py.File(path, "w", libver=libver, userblock_size=block) as file:
                    file["id"] = np.array([b"S0", b"S1", b"S2"])
                    file.create_dataset("vil", data=codes, **storage)
    with h5py.File(folder / "soft.h5", "w") as file:
        file["id"], file["real"] = np.array([b"S0", b"S1", b"S2"]), codes
        file["vil"] = h5py.SoftLink("/real")
    with h5py.File(folder / "external.h5", "w") as file:
        file["id"] = np.array([b"S0", b"S1", b"S2"])
        file["vil"] = h5py.ExternalLink(LINKED, "/vil")


def difference(path):
    """Returns what is wrong with the reading of a file as text, or None."""
    from keras_nowcast.data import hdf5, sevir
    from keras_nowcast.errors import InputError

    try:
        with hdf5.open_file(path) as file:
            if not 0 < math.prod(file["vil"].shape) <= MOST_BYTES:
                return None
            if math.prod(file["vil"].chunks or (0,)) > MOST_BYTES:
                return None
    except (*hdf5.READ_ERRORS, AttributeError):
        pass  # the reader must refuse it
    try:
        layout = sevir._read_contents(path).layout
    except (InputError, *hdf5.READ_ERRORS):
        return None
    for index in range(min(layout.shape[0], EVENTS_READ)):
        try:
            here = hdf5.read_item(layout, index)
        except hdf5.READ_ERRORS:
            continue
        try:
            with hdf5.open_file(path) as file:
                there = file["vil"][index]
        except hdf5.READ_ERRORS as error:
            return f"event {index} is read, and h5py refuses it: {error}"
        if not np.array_equal(here, there):
            return f"event {index} differs in {np.mean(here != there):.1%} of its pixels"
    return None


def search(options, out):
    """Searches in this process until its time is over or HDF5 crashes."""
    import atheris

    with atheris.instrument_imports(include=["keras_nowcast.data"]):
        from keras_nowcast.data import hdf5, sevir  # noqa: F401

    def one(data):
        path.write_bytes(data)
        try:
            wrong = difference(path)
        except Exception as error:  # a traceback is a find
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            name = hashlib.sha256(data).hexdigest()[:12]
            (out / f"find-{name}.h5").write_bytes(data)
            (out / f"find-{name}.txt").write_text(wrong + "\n")

    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "a.h5"
        shutil.copy(CORPUS / LINKED, folder)
        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()


def search_on(seconds, out):
    """Searches, and again after each crash; returns the number of cases."""
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + seconds
    cases = 0
    while (left := int(ends - time.monotonic())) > 0:
        options = [
            f"-max_total_time={left}",
            "-max_len=16384",
            "-timeout=1200",
            "-rss_limit_mb=3000",
            "-print_final_stats=1",
            f"-artifact_prefix={out}/",
            str(out / "corpus"),
            str(CORPUS),
        ]
        command = [sys.executable, __file__, "--out", str(out), "--child", *options]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        counted = re.findall(
            r"number_of_executed_units: (\d+)|^#(\d+)\t", done.stderr, re.MULTILINE
        )
        if not counted:
            raise SystemExit(done.stderr[-3000:])
        last = counted[-1]
        cases += int(last[0] or last[1])
        print(f"{cases} cases, {left} s were left, exit status {done.returncode}", flush=True)
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600, help="time of the search")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="folder of finds")
    parser.add_argument("--write-corpus", action="store_true", help="write corpus/ and end")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.write_corpus:
        CORPUS.mkdir(exist_ok=True)
        write_corpus(CORPUS)
        return
    out = arguments.out.absolute()
    if arguments.child is not None:
        search(arguments.child, out)
        return
    cases = search_on(arguments.seconds, out)
    kinds = Counter(path.name.partition("-")[0] for path in out.glob("*-*") if path.suffix != ".h5")
    print(f"{cases} cases in {arguments.seconds} s; did not pass: {dict(kinds) or 'none'}; {out}")
    sys.exit(bool(kinds))


if __name__ == "__main__":
    main()
