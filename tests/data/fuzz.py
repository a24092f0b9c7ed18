"""Spoils SEVIR data sets at random and reads them: no traceback, no hang, no wrong pixel.

    python tests/data/fuzz.py --cases 1000 --seed 7

Each case is a small data set with one or two faults: files cut short, filled up, with holes or
flipped bits (in HDF5's headers, its B-trees, compressed pixels, ids), data sets of another shape,
type or storage, a catalogue with noise. Another process reads it as training does, under a limit
of time and memory, so that a crash or hang inside HDF5's C library is found too. A case passes
when every event that was read has the very pixels of the intact data set and everything else was
refused with an InputError in plain words. Exit status 1 when one does not pass; its seed and case
make it again: `--seed 7 --only 123`.

What is left alone: where pixels carry no checksum (contiguous storage, or chunks without gzip or
fletcher32), a changed pixel byte is a pixel like any other, and so is what a changed address of
pixels in the header points to. Nothing in such a file tells them from the intact one.
"""

import argparse
import contextlib
import csv
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

LIMIT_BYTES = 8 * 2**30  # of address space
LONGEST_MESSAGE = 1500  # characters; paths are in it
SIZE, FRAMES, EVENTS, PER_FILE = 16, 25, 6, 3
SHAPE = (SIZE, SIZE, FRAMES)
COLUMNS = (
    "id",
    "file_name",
    "file_index",
    "img_type",
    "time_utc",
    "minute_offsets",
    "episode_id",
    "event_id",
    "event_type",
    "llcrnrlat",
    "llcrnrlon",
    "urcrnrlat",
    "urcrnrlon",
    "proj",
    "size_x",
    "size_y",
    "height_m",
    "width_m",
    "data_min",
    "data_max",
    "pct_missing",
)

# name: (arguments of create_dataset, h5py's libver, whether pixels carry a checksum)
STORAGES = {
    "gzip": ({"chunks": (1, *SHAPE), "compression": "gzip"}, "earliest", True),
    "gzip, new format": ({"chunks": (1, *SHAPE), "compression": "gzip"}, "latest", True),
    "gzip, extendable": (
        {"chunks": (1, *SHAPE), "compression": "gzip", "maxshape": (None, *SHAPE)},
        "latest",
        True,
    ),
    "gzip, shuffled, cut": (
        {"chunks": (2, 8, 16, 20), "compression": "gzip", "shuffle": True},
        "earliest",
        True,
    ),
    "gzip and fletcher32": (
        {"chunks": (1, *SHAPE), "compression": "gzip", "fletcher32": True},
        "earliest",
        True,
    ),
    "contiguous": ({}, "earliest", False),
    "contiguous, new format": ({}, "latest", False),
    "chunks as they are": ({"chunks": (1, *SHAPE)}, "earliest", False),
}


# ---- intact data sets -------------------------------------------------------------------------


def write_intact(root, storage):
    """Writes a data set of EVENTS events; returns {id: its codes}."""
    arguments, libver, _ = STORAGES[storage]
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (EVENTS, SIZE, SIZE // 4, FRAMES), np.uint8)
    codes = np.repeat(coarse, 4, axis=2)  # something to compress
    rows = []
    for first in range(0, EVENTS, PER_FILE):
        name = f"vil/{2018 + first}/{first}.h5"
        path = root / "data" / name
        path.parent.mkdir(parents=True)
        members = range(first, first + PER_FILE)
        with h5py.File(path, "w", libver=libver) as file:
            file["id"] = np.array([f"S{k}" for k in members], "S10")
            file.create_dataset("vil", data=codes[first : first + PER_FILE], **arguments)
        rows += [_row(k, name, k - first, codes[k]) for k in members]
    _write_catalogue(root, [COLUMNS, *rows])
    return {f"S{k}": codes[k] for k in range(EVENTS)}


def _row(k, name, index, codes):
    values = {
        "id": f"S{k}",
        "file_name": name,
        "file_index": index,
        "img_type": "vil",
        "time_utc": f"{2018 + k // 3}-0{1 + k}-01 00:05:00",
        "minute_offsets": ":".join(str(5 * frame) for frame in range(FRAMES)),
        "event_type": "Hail",
        "size_x": SIZE,
        "size_y": SIZE,
        "pct_missing": f"{(codes == 255).mean():.6f}",
    }
    return [values.get(column, "") for column in COLUMNS]


def _write_catalogue(root, rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    (root / "CATALOG.csv").write_bytes(text.getvalue().encode())


# ---- faults in the bytes of a file ------------------------------------------------------------


def _protected(path):
    """Returns a mask of the bytes that may be damaged: False where nothing could tell."""
    raw = path.read_bytes()
    mask = np.ones(len(raw), bool)
    with h5py.File(path) as file:
        vil = file["vil"]
        if vil.compression or vil.fletcher32:
            return mask
        if vil.chunks:
            infos = [vil.id.get_chunk_info(i) for i in range(vil.id.get_num_chunks())]
            spans = [(info.byte_offset, info.size) for info in infos]
        else:
            spans = [(vil.id.get_offset(), vil.id.get_storage_size())]
    for first, count in spans:
        mask[first : first + count] = False
        address = raw.find(struct.pack("<Q", first))
        while address >= 0:
            mask[address : address + 8] = False
            address = raw.find(struct.pack("<Q", first), address + 1)
    return mask


def _pixel_bytes(path):
    """Returns a mask of the bytes that hold compressed pixels."""
    mask = np.zeros(path.stat().st_size, bool)
    with h5py.File(path) as file:
        vil = file["vil"]
        for i in range(vil.id.get_num_chunks() if vil.chunks else 0):
            info = vil.id.get_chunk_info(i)
            mask[info.byte_offset : info.byte_offset + info.size] = True
    return mask


def flip_bits(root, rng):
    """Flips bits anywhere, in headers and trees, near a signature of HDF5, or in pixels."""
    path = _a_file(root, rng)
    raw = bytearray(path.read_bytes())
    free, pixels = _protected(path), _pixel_bytes(path)
    where = rng.choice(["anywhere", "metadata", "metadata", "signature", "signature", "pixels"])
    places = free
    if where == "metadata":
        places = free & ~pixels
    elif where == "pixels" and (free & pixels).any():
        places = free & pixels
    elif where == "signature":
        signatures = (
            b"\x89HDF",
            b"TREE",
            b"SNOD",
            b"HEAP",
            b"OHDR",
            b"FAHD",
            b"FADB",
            b"EAHD",
            b"EAIB",
            b"BTHD",
            b"BTLF",
        )
        found = [raw.find(each) for each in signatures if raw.find(each) >= 0]
        first = rng.choice(found)
        near = np.zeros_like(free)
        near[first : first + 256] = True
        places = near & free if (near & free).any() else free
    choices = np.flatnonzero(places)
    count = rng.choice([1, 1, 1, 2, 3, 8])
    for place in rng.choices(choices, k=count):
        raw[place] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return f"{count} bits, {where}"


def overwrite_bytes(root, rng):
    """Overwrites a run of bytes with zeros, ones, or noise, as a failed disk or copy leaves."""
    path = _a_file(root, rng)
    raw = np.frombuffer(path.read_bytes(), np.uint8).copy()
    free = _protected(path)
    first = rng.choice(np.flatnonzero(free).tolist())
    count = rng.choice([1, 4, 8, 64, 512, 4096])
    span = np.zeros_like(free)
    span[first : first + count] = True
    filling = rng.choice([0, 255, None])
    noise = np.frombuffer(rng.randbytes(len(raw)), np.uint8)
    raw[span & free] = noise[span & free] if filling is None else filling
    path.write_bytes(raw.tobytes())
    return f"{count} bytes of {filling}"


def truncate(root, rng):
    """Cuts a file short: anywhere, to nothing, or by one byte."""
    path = _a_file(root, rng)
    raw = path.read_bytes()
    kept = rng.choice([rng.randrange(len(raw)), rng.randrange(3000), 0, 1, 8, len(raw) - 1])
    path.write_bytes(raw[:kept])
    return f"{kept} of {len(raw)} bytes"


def grow(root, rng):
    """Puts bytes before or after a file's."""
    path = _a_file(root, rng)
    raw, more = path.read_bytes(), rng.randbytes(rng.choice([1, 512, 4000]))
    before = rng.random() < 0.5
    path.write_bytes(more + raw if before else raw + more)
    return f"{len(more)} bytes {'before' if before else 'after'}"


def replace_file(root, rng):
    """Leaves something else in a file's place."""
    path = _a_file(root, rng)
    kind = rng.choice(["absent", "folder", "text", "noise", "fifo", "loop", "other file"])
    other = next(each for each in sorted(root.rglob("*.h5")) if each != path)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("<html>404 Not Found</html>\n")
    elif kind == "noise":
        path.write_bytes(rng.randbytes(5000))
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "other file":
        shutil.copy(other, path)
    return kind


# ---- faults in what a file holds --------------------------------------------------------------


def change_contents(root, rng):
    """Replaces `vil` or `id` by a data set of another shape, type or storage, or none."""
    path = _a_file(root, rng)
    with h5py.File(path) as file:
        vil, ids = file["vil"][...], file["id"][...]
    change = rng.choice(sorted(_CHANGES))
    with h5py.File(path, "w") as file:
        _CHANGES[change](file, vil, ids, rng)
        if "vil" not in file.keys() and not change.startswith("no vil"):
            file["vil"] = vil
        if "id" not in file.keys() and not change.startswith("no id"):
            file["id"] = ids
    return change


def _set(name, make):
    def change(file, vil, ids, rng):
        file[name] = make(vil, ids, rng)

    return change


def _create(make):
    def change(file, vil, ids, rng):
        file.create_dataset("vil", **make(vil))

    return change


def _written_in_part(file, vil, ids, rng):
    chunks = (1, *vil.shape[1:])
    fill = rng.choice([0, 7, 255])
    target = file.create_dataset(
        "vil", vil.shape, np.uint8, chunks=chunks, compression="gzip", fillvalue=fill
    )
    target[1] = vil[1]


def _virtual(file, vil, ids, rng):
    layout = h5py.VirtualLayout(vil.shape, np.uint8)
    layout[:] = h5py.VirtualSource("absent.h5", "vil", vil.shape)
    file.create_virtual_dataset("vil", layout)


_OTHER_FILTERS = ({"compression": "lzf"}, {"scaleoffset": 8}, {"fletcher32": True})


def _filtered(file, vil, ids, rng):
    file.create_dataset("vil", data=vil, chunks=(1, *vil.shape[1:]), **rng.choice(_OTHER_FILTERS))


_CHANGES = {
    "no vil": lambda file, vil, ids, rng: None,
    "no id": lambda file, vil, ids, rng: None,
    "vil a group": lambda file, vil, ids, rng: file.create_group("vil"),
    "vil a type": lambda file, vil, ids, rng: file.__setitem__("vil", np.dtype("u1")),
    "no vil: broken link": lambda file, vil, ids, rng: file.__setitem__(
        "vil", h5py.SoftLink("/nowhere")
    ),
    "no vil: link to itself": lambda file, vil, ids, rng: file.__setitem__(
        "vil", h5py.SoftLink("/vil")
    ),
    "no vil: another file": lambda file, vil, ids, rng: file.__setitem__(
        "vil", h5py.ExternalLink("absent.h5", "/vil")
    ),
    "vil empty": _set("vil", lambda vil, ids, rng: h5py.Empty("u1")),
    "vil scalar": _set("vil", lambda vil, ids, rng: np.uint8(3)),
    "vil without events": _set("vil", lambda vil, ids, rng: vil[:0]),
    "vil one event": _set("vil", lambda vil, ids, rng: vil[:1]),
    "vil without frames": _set("vil", lambda vil, ids, rng: vil[..., :0]),
    "vil time first": _set("vil", lambda vil, ids, rng: np.moveaxis(vil, -1, 1)),
    "vil narrower": _set("vil", lambda vil, ids, rng: vil[:, :, : rng.randrange(SIZE)]),
    "vil shorter": _set("vil", lambda vil, ids, rng: vil[..., : rng.randrange(FRAMES)]),
    "vil longer": _set("vil", lambda vil, ids, rng: np.concatenate([vil, vil], -1)),
    "vil of 3 axes": _set("vil", lambda vil, ids, rng: vil[0]),
    "vil of 5 axes": _set("vil", lambda vil, ids, rng: vil[..., None]),
    "vil of float": _set("vil", lambda vil, ids, rng: vil.astype(rng.choice(["f2", "<f4", ">f8"]))),
    "vil of int": _set("vil", lambda vil, ids, rng: vil.astype(rng.choice(["i1", ">u2", "<i4"]))),
    "vil of bool": _set("vil", lambda vil, ids, rng: vil > 99),
    "vil of text": _set("vil", lambda vil, ids, rng: vil.astype("S3")),
    "vil of records": _set("vil", lambda vil, ids, rng: vil.view([("a", "u1")])),
    "vil of enums": _create(
        lambda vil: {"data": vil, "dtype": h5py.enum_dtype({"a": 0}, basetype="u1")}
    ),
    "vil of opaque": _create(lambda vil: {"data": vil.view("V1")}),
    "vil never written": _create(lambda vil: {"shape": vil.shape, "dtype": "u1"}),
    "vil written in part": _written_in_part,
    "vil of huge shape": _create(
        lambda vil: {"shape": (2**40, *vil.shape[1:]), "dtype": "u1", "chunks": (1, *vil.shape[1:])}
    ),
    "vil virtual": _virtual,
    "vil external": _create(
        lambda vil: {"shape": vil.shape, "dtype": "u1", "external": [("absent.raw", 0, 9**6)]}
    ),
    "vil by other filters": _filtered,
    "id empty": _set("id", lambda vil, ids, rng: h5py.Empty("S10")),
    "id scalar": _set("id", lambda vil, ids, rng: np.bytes_(b"S0")),
    "id too short": _set("id", lambda vil, ids, rng: ids[: rng.randrange(len(ids))]),
    "id too long": _set("id", lambda vil, ids, rng: np.concatenate([ids, ids])),
    "id turned": _set("id", lambda vil, ids, rng: ids[::-1]),
    "id of 2 axes": _set("id", lambda vil, ids, rng: np.stack([ids, ids], axis=-1)),
    "id of numbers": _set("id", lambda vil, ids, rng: np.arange(len(ids))),
    "id not UTF-8": _set("id", lambda vil, ids, rng: np.array([b"\xff\xfe"] * len(ids), "S10")),
    "id of text": _set(
        "id", lambda vil, ids, rng: np.array([each.decode() for each in ids], object)
    ),
    "id of records": _set("id", lambda vil, ids, rng: ids.view([("a", "S10")])),
    "id of huge shape": lambda file, vil, ids, rng: file.create_dataset(
        "id", (2**40,), "S10", chunks=(4,)
    ),
}


# ---- faults in the catalogue ------------------------------------------------------------------

_WORDS = (
    "",
    " ",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1e400",
    "NULL",
    "None",
    "-1",
    "-0",
    "0",
    "1",
    "2",
    "3",
    "1e3",
    "1.5",
    "0x10",
    "1_0",
    "١",
    "99999999999999999999",
    "9" * 5000,
    "'",
    '"',
    '""',
    ";",
    "$(touch pwned)",
    "`touch pwned`",
    "%s%n",
    "\r\n",
    "\n",
    "\0",
    "\ufeff",
    "\u202e",
    "🌧" * 100,
    "x" * 300,
    "x" * 200000,
    "../../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "CATALOG.csv",
    "vil/../vil/2018/0.h5",
    "//",
    "vil\\2018\\0.h5",
    "s3://bucket/0.h5",
    "2019-06-01",
    "2019-06-01T00:00:00Z",
    "0001-01-01 00:00:00+23:59",
    "9999-12-31 23:59:59-23:59",
    "2019-02-30 00:00:00",
    "6/1/19 0:00",
    "13/13/2019 0:00",
    "0:5:10",
    ":",
    "0:x",
    "-9" * 30,
    "S1",
    "S5",
    "vil",
    "VIL",
    "ir069",
)


def spoil_cell(root, rng):
    """Puts odd words into one to three cells."""
    rows = _rows(root)
    said = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        column = rng.choice(
            [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 14, 15, 20, 20, rng.randrange(len(COLUMNS))]
        )
        word = rng.choice(_WORDS)
        row = rng.choice(rows[1:])
        row += [""] * (len(COLUMNS) - len(row))  # another fault may have cut it short
        row[column] = word
        said.append(f"{COLUMNS[column]} {word[:30]!r}")
    _write_catalogue(root, rows)
    return ", ".join(said)


def spoil_rows(root, rng):
    """Repeats, leaves out, shuffles, shortens or lengthens rows."""
    rows = _rows(root)
    place = rng.randrange(1, len(rows))
    kind = rng.choice(
        [
            "repeated",
            "repeated id",
            "dropped",
            "shuffled",
            "short",
            "long",
            "blank",
            "all repeated",
            "header again",
            "cells exchanged",
        ]
    )
    if kind == "repeated":
        rows.insert(place, rows[place])
    elif kind == "repeated id":
        rows[place] = [rows[1][0], *rows[place][1:]]
    elif kind == "dropped":
        del rows[place : place + rng.randrange(1, 7)]
    elif kind == "shuffled":
        rows[1:] = rng.sample(rows[1:], len(rows) - 1)
    elif kind == "short":
        rows[place] = rows[place][: rng.randrange(len(COLUMNS))]
    elif kind == "long":
        rows[place] = [*rows[place], "more", "cells"]
    elif kind == "blank":
        rows.insert(place, [])
    elif kind == "all repeated":
        rows += rows[1:]
    elif kind == "header again":
        rows.insert(place, list(COLUMNS))
    else:
        other, column = rng.randrange(1, len(rows)), rng.randrange(len(COLUMNS))
        rows[place][column], rows[other][column] = rows[other][column], rows[place][column]
    _write_catalogue(root, rows)
    return kind


def spoil_columns(root, rng):
    """Leaves out, renames, repeats or shuffles columns."""
    rows = _rows(root)
    kind = rng.choice(["absent", "renamed", "repeated", "shuffled", "no header"])
    place = rng.randrange(len(COLUMNS))
    if kind == "absent":
        rows = [row[:place] + row[place + 1 :] for row in rows]
    elif kind == "renamed":
        rows[0][place] = rows[0][place].upper()
    elif kind == "repeated":
        rows = [[*row, row[place]] for row in rows]
    elif kind == "shuffled":
        order = rng.sample(range(len(COLUMNS)), len(COLUMNS))
        rows = [[row[column] for column in order] for row in rows]
    else:
        del rows[0]
    _write_catalogue(root, rows)
    return kind if kind in ("shuffled", "no header") else f"{COLUMNS[place]} {kind}"


def spoil_text(root, rng):
    """Changes the catalogue's bytes: encoding, ends of lines, quotes, holes, a cut."""
    path = root / "CATALOG.csv"
    raw = path.read_bytes()
    place = rng.randrange(len(raw))
    changed = {
        "BOM": b"\xef\xbb\xbf" + raw,
        "CRLF": raw.replace(b"\n", b"\r\n"),
        "CR": raw.replace(b"\n", b"\r"),
        "UTF-16": raw.decode().encode("utf-16"),
        "not UTF-8": raw[:place] + b"\xff\xfe\xe9" + raw[place:],
        "NUL": raw[:place] + b"\0" + raw[place:],
        "quote": raw[:place] + b'"' + raw[place:],
        "cut": raw[:place],
        "empty": b"",
        "semicolons": raw.replace(b",", b";"),
        "HDF5": b"\x89HDF\r\n\x1a\n" + rng.randbytes(500),
        "one long line": raw.replace(b"\n", b" "),
        "long": raw + b'"' + b"x" * 200000,
        "noise": bytes(each if rng.random() > 0.01 else rng.randrange(256) for each in raw),
    }
    kind = rng.choice([*changed, "folder", "absent"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_bytes(changed[kind])
    return kind


def _rows(root):
    csv.field_size_limit(10**6)
    with open(root / "CATALOG.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _a_file(root, rng):
    return rng.choice(sorted(root.rglob("*.h5")))


FAULTS = (flip_bits,) * 8 + (
    overwrite_bytes,
    overwrite_bytes,
    truncate,
    truncate,
    grow,
    replace_file,
    change_contents,
    change_contents,
    change_contents,
    spoil_cell,
    spoil_cell,
    spoil_cell,
    spoil_cell,
    spoil_rows,
    spoil_columns,
    spoil_text,
    spoil_text,
)


def spoil(root, rng):
    """Spoils the data set in one way, sometimes in two; returns what was done, in words."""
    fault = rng.choice(FAULTS)
    said = f"{fault.__name__}: {fault(root, rng)}"
    if rng.random() < 0.1:
        catalogue = (spoil_cell, spoil_rows) if fault not in (spoil_text, spoil_columns) else ()
        for second in catalogue[: rng.randrange(3)]:
            said += f"; {second.__name__}: {second(root, rng)}"
    return said


# ---- reading, in a process of its own ---------------------------------------------------------


def read_all(root, truth):
    """Reads the catalogue, splits, checks, and every event and window, as training does.

    Returns:
      {read: number of events; refusals: the texts of InputErrors; wrong: events of other pixels;
      traceback: of any other exception; died: None}.
    """
    outcome = {"read": 0, "refusals": [], "wrong": [], "traceback": None, "died": None}
    try:
        _read_all(root, truth, outcome)
    except Exception:
        outcome["traceback"] = traceback.format_exc()
    return outcome


def _read_all(root, truth, outcome):
    from keras_nowcast.data import catalog, sevir, splits
    from keras_nowcast.data.pipeline import WindowPipeline
    from keras_nowcast.errors import InputError

    @contextlib.contextmanager
    def refusing():
        try:
            yield
        except InputError as error:
            outcome["refusals"].append(str(error))

    def compare(event, vil, expected):
        if vil.dtype != np.uint8 or not np.array_equal(vil, expected):
            outcome["wrong"].append(event.name)

    with refusing():
        splits.authors_split(root, str)
    events = []
    with refusing():
        events = splits.select_events(catalog.read_catalog(root, str), 1)
    for check in (splits.split_events, sevir.check_files) if events else ():
        with refusing():
            check(events)
    readable = []
    for event in events:
        with refusing():
            compare(event, sevir.read_event(event), truth.get(event.id))
            outcome["read"] += 1
            readable.append(event)
    if not readable:
        return
    pipeline = WindowPipeline(readable, grid=8, batch_per_replica=2, shuffle=False, threads=2)
    windows = ((x, y) for batch in pipeline.batches() for x, y in zip(*batch, strict=True))
    for event, (x, y) in zip(pipeline.events, windows, strict=True):
        coarse = sevir.block_mean(truth[event.id], 2)
        compare(event, np.concatenate([x, y], axis=-1), coarse)


def _answer(connection, truth):
    """Reads the data sets whose roots come in and sends the outcomes."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    while True:
        connection.send(read_all(connection.recv(), truth))


class Reader:
    """The reading process, started again after a crash or a hang.

    Attributes:
      process: the process, None until it is needed.
    """

    def __init__(self, truth, limit_s=30):
        self._truth = truth
        self._limit_s = limit_s  # of a case, which takes some milliseconds
        self.process = None

    def start(self):
        """Starts the process if there is none."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self.process = context.Process(target=_answer, args=(theirs, self._truth), daemon=True)
            self.process.start()
            theirs.close()

    def read(self, root):
        """Returns the outcome of one data set, as read_all does; `died` says how it died."""
        self.start()
        try:
            self._connection.send(root)
            if self._connection.poll(self._limit_s):
                return self._connection.recv()
            how = f"nothing within {self._limit_s} s"
        except (EOFError, OSError):
            self.process.join()
            status = self.process.exitcode
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self.close()
        return {"read": 0, "refusals": [], "wrong": [], "traceback": None, "died": how}

    def close(self):
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def verdict(outcome):
    """Returns (whether the case passes, how it ended in a word or a few)."""
    if outcome["died"]:
        return False, f"died: {outcome['died']}"
    if outcome["traceback"]:
        return False, "traceback: " + outcome["traceback"].strip().splitlines()[-1][:200]
    if outcome["wrong"]:
        return False, f"wrong pixels: {', '.join(outcome['wrong'])}"
    for message in outcome["refusals"]:
        if "Received:" not in message or len(message) > LONGEST_MESSAGE:
            return False, f"not one clear line: {message[:300]!r}"
    if outcome["read"] == EVENTS:
        return True, "all read"
    if not outcome["refusals"]:
        return True, "events dropped, which is said"
    return True, "read in part" if outcome["read"] else "all refused"


@dataclass(frozen=True)
class Result:
    """One case: its number, the storage and the fault in words, and the verdict."""

    case: int
    storage: str
    fault: str
    passed: bool
    end: str


def run(cases, seed):
    """Makes and reads cases.

    Args:
      cases: their numbers.
      seed: of all that is random; with a case's number it makes that case again.

    Returns:
      A Result a case.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for number, storage in enumerate(STORAGES):
            truth = write_intact(folder / f"intact-{number}", storage)
        with contextlib.closing(Reader(truth)) as reader:
            for case in cases:
                rng = random.Random(f"{seed} {case}")
                number = rng.randrange(len(STORAGES))
                root = folder / "case"
                shutil.copytree(folder / f"intact-{number}", root)
                fault = spoil(root, rng)
                passed, end = verdict(reader.read(root))
                results.append(Result(case, list(STORAGES)[number], fault, passed, end))
                shutil.rmtree(root)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="default: another each time")
    parser.add_argument("--only", type=int, help="make and read this case alone")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    only = arguments.only
    results = run(range(arguments.cases) if only is None else [only], seed)
    kinds = Counter((each.fault.partition(":")[0], each.end.partition(":")[0]) for each in results)
    for (fault, end), count in sorted(kinds.items()):
        print(f"{count:6}  {fault:16} {end}")
    failed = [each for each in results if not each.passed]
    for each in failed:
        print(f"case {each.case} ({each.storage}; {each.fault[:300]}): {each.end}")
    seconds = time.monotonic() - began
    print(f"{len(results)} cases, seed {seed}, {seconds:.0f} s: {len(failed)} did not pass")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
