"""Data sets of any layout and catalogs of any form are read as by h5py and csv, or refused.

hypothesis makes them, the same ones each time. The oracles are h5py, which resolves links, fills,
decodes and assembles in its own way, and csv with the standard library.
"""

import csv
import datetime
import itertools
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from keras_nowcast.data import catalog, hdf5, sevir
from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAME_MINUTES

SOME, ALL = 40, 300  # layouts in `make test` and in `make test-all`
SAME_EACH_TIME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# ---- files ------------------------------------------------------------------------------------


@st.composite
def layouts(draw):
    """A dict that says how a file of events is stored, and how `vil` is found in it."""
    shape = (
        draw(st.integers(1, 5)),
        side := draw(st.integers(1, 9)),
        side,
        draw(st.integers(1, 7)),
    )
    is_chunked = draw(st.integers(0, 3)) > 0
    filters = st.sampled_from(["gzip", "gzip", "shuffle", "fletcher32", "lzf"])
    first = draw(st.sampled_from([[], [], [], ["scale"]]))  # HDF5 has it before all others only
    grows = draw(st.booleans())  # only then may chunks be larger than the data set
    return {
        "shape": shape,
        "chunk": is_chunked and tuple(draw(st.integers(1, n + 2 * grows)) for n in shape),
        "filters": first + draw(st.lists(filters, max_size=3)) if is_chunked else [],
        "grows": grows,
        "early": draw(st.booleans()),
        "compact": draw(st.integers(0, 5)) == 0,
        "fill": draw(st.sampled_from([None, 0, 7, 255])),
        "written": draw(st.sets(st.integers(0, shape[0] - 1))) if draw(st.booleans()) else None,
        "plain chunk": draw(st.integers(0, shape[0] - 1)),
        "libver": draw(st.sampled_from(["earliest", "latest", ("v108", "v110")])),
        "user block": draw(st.sampled_from([0, 0, 0, 512, 1024])),
        "before": draw(st.integers(0, 3)),  # other data sets, which move the pixels
        "link": draw(
            st.sampled_from([None, None, "hard", "soft", "external", "two files", "chain"])
        ),
        "ids": draw(st.sampled_from(["S4", "S2", "text"])),
        "seed": draw(st.integers(0, 99)),
    }


def _settings_of(layout):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if layout["chunk"]:
        made.set_chunk(layout["chunk"])
    elif layout["compact"]:
        made.set_layout(h5py.h5d.COMPACT)
    for each in layout["filters"]:
        if each == "gzip":
            made.set_deflate(4)
        elif each == "shuffle":
            made.set_shuffle()
        elif each == "fletcher32":
            made.set_fletcher32()
        elif each == "lzf":
            made.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
        else:
            made.set_scaleoffset(h5py.h5z.SO_INT, 8)
    if layout["early"] and not layout["compact"]:
        made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    if layout["fill"] is not None:
        made.set_fill_value(np.array(layout["fill"], np.uint8))
    return made


def _write(folder, layout):
    """Writes the file; returns its path."""
    rng = np.random.default_rng(layout["seed"])
    shape, link = layout["shape"], layout["link"]
    real = folder / ("a.h5" if link in (None, "hard", "soft") else "real.h5")
    with h5py.File(real, "w", libver=layout["libver"], userblock_size=layout["user block"]) as file:
        for number in range(layout["before"]):
            file[f"more{number}"] = rng.integers(0, 256, 500, np.uint8)
        kind = h5py.string_dtype() if layout["ids"] == "text" else layout["ids"]
        file.create_dataset("id", data=[f"S{k}".encode() for k in range(shape[0])], dtype=kind)
        most = (h5py.h5s.UNLIMITED,) * 4 if layout["grows"] and layout["chunk"] else shape
        space = h5py.h5s.create_simple(shape, most)
        name = b"vil" if link != "soft" else b"stored"
        vil = h5py.Dataset(
            h5py.h5d.create(file.id, name, h5py.h5t.STD_U8LE, space, _settings_of(layout))
        )
        written = range(shape[0]) if layout["written"] is None else layout["written"]
        for index in written:
            vil[index] = np.repeat(rng.integers(0, 256, (*shape[1:3], 1)), shape[3], axis=2)
        if layout["chunk"] and layout["filters"]:
            corner = [0, 0, 0, 0]
            corner[0] = layout["plain chunk"] // layout["chunk"][0] * layout["chunk"][0]
            mask = 2 ** len(layout["filters"]) - 1
            raw = rng.integers(0, 256, layout["chunk"], np.uint8).tobytes()
            if layout["seed"] % 3 == 0:
                vil.id.write_direct_chunk(tuple(corner), raw, filter_mask=mask)
        if link == "hard":
            file["other"] = file["vil"]
        elif link == "soft":
            file["group/vil"] = h5py.SoftLink("/stored")
            file["vil"] = h5py.SoftLink("/group/vil")
    if link in ("external", "two files", "chain"):
        _link(folder, link, rng)
    return folder / "a.h5"


def _link(folder, link, rng):
    """Writes a.h5, which links to real.h5; other bytes are at the places of the pixels."""
    target = "real.h5"
    if link == "chain":
        target = "between.h5"
        with h5py.File(folder / target, "w") as file:
            file["vil"] = h5py.ExternalLink("real.h5", "/vil")
            file["id"] = h5py.ExternalLink("real.h5", "/id")
    with h5py.File(folder / "a.h5", "w") as file:
        file["vil"] = h5py.ExternalLink(target, "/vil")
        if link == "two files":
            with h5py.File(folder / "real.h5") as real:
                file["id"] = real["id"][...]
        else:
            file["id"] = h5py.ExternalLink(target, "/id")
        file["more"] = rng.integers(0, 256, 20000, np.uint8)


def _may_be_refused(layout, message):
    """Returns True for pixels that were never written, and for chunks that skip a compression.

    HDF5 skips a compression that gains nothing. If a chunk has another one, its length is unknown,
    so that a mark that was set by mistake would go unnoticed.
    """
    if "bytes where" in message:
        return sum(each in ("gzip", "lzf", "scale") for each in layout["filters"]) > 1
    return layout["written"] is not None and "never written" in message


def _compare(layout):
    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder), layout)
        with h5py.File(path, locking=False) as file:
            expected = file["vil"][...]
        frames, size = layout["shape"][-1], layout["shape"][1]
        events = [
            catalog.Event(f"S{k}", path, k, datetime.datetime(2019, 1, 1), 0, frames, size)
            for k in range(len(expected))
        ]
        ends = set()
        for each in events:
            try:
                vil = sevir.read_event(each)
            except InputError as error:
                ends.add("refused: " + str(error).partition("Received: ")[2][:30])
                assert "\n" not in str(error)
                assert _may_be_refused(layout, str(error)), error
            else:
                ends.add("read")
                np.testing.assert_array_equal(vil, expected[each.index])
        for end in ends:
            event(end)


@given(layouts())
@settings(SAME_EACH_TIME, max_examples=SOME)
def test_files_of_any_layout(layout):
    _compare(layout)


@pytest.mark.slow
@given(layouts())
@settings(SAME_EACH_TIME, max_examples=ALL)
def test_many_files_of_any_layout(layout):
    _compare(layout)


def test_a_reader_that_errs_is_found(monkeypatch):
    """What this module would report of a reader that takes one chunk for another."""
    read = hdf5._read_bytes
    monkeypatch.setattr(
        hdf5, "_read_bytes", lambda file, offset, count: read(file, offset ^ 1, count)
    )
    once = settings(SAME_EACH_TIME, max_examples=SOME, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        settings(once, report_multiple_bugs=False)(given(layouts())(_compare))()


# ---- catalogs ---------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
KINDS = st.sampled_from(["vil", "vil", "vil", "VIL", "vis", "lght", "other", ""])
FIRST_MINUTES = st.sampled_from([-120, 0, 7])
STEPS = st.sampled_from([5, 5, 5, 5, 10, -5, 0])


@st.composite
def catalogs(draw):
    """Columns in any order, with more of them, rows as dicts, and how csv is to write them."""
    columns = draw(st.permutations(catalog.CATALOG_COLUMNS))
    columns += draw(st.sampled_from([[], ["note"], ["note", "more"]]))
    rows = []
    for number in range(draw(st.integers(1, 6))):
        first, step, frames = draw(FIRST_MINUTES), draw(STEPS), draw(st.integers(1, 30))
        time = datetime.datetime(2019, 1, 1) + datetime.timedelta(
            minutes=5 * draw(st.integers(0, 200_000))
        )
        row = {
            "id": f"S{draw(st.integers(0, 3))}-{number % 3}",
            "file_name": draw(st.sampled_from(["a.h5", "vil/b c.h5", "vil/d,e.h5"])),
            "file_index": number,
            "img_type": draw(KINDS),
            "time_utc": time.isoformat(draw(st.sampled_from([" ", "T"]))),
            "minute_offsets": ":".join(str(first + step * k) for k in range(frames)),
            "event_type": draw(TEXTS),
            "size_x": 16,
            "size_y": 16,
            "pct_missing": draw(st.sampled_from(["0", "0.25", "1.0"])),
            "note": draw(TEXTS) + draw(st.sampled_from(["", ",", '"', "\n", "\r\n", ";"])),
            "more": draw(TEXTS),
        }
        rows.append(dict.fromkeys(columns, "") | {k: v for k, v in row.items() if k in columns})
    return {
        "columns": columns,
        "rows": rows,
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
    }


def _expected(path):
    """Reads a catalog by the rules in words: {(file, index): (id, time, frames, type)}."""
    kept = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            minutes = [int(each) for each in row["minute_offsets"].split(":")]
            steps = {late - early for early, late in itertools.pairwise(minutes)}
            if row["img_type"].lower() == "vil" and steps <= {FRAME_MINUTES}:
                place = path.parent / "data" / row["file_name"], int(row["file_index"])
                time = datetime.datetime.fromisoformat(row["time_utc"])
                kept[place] = row["id"], time, len(minutes), row["event_type"]
    names = [value[:2] for value in kept.values()]
    return {place: value for place, value in kept.items() if names.count(value[:2]) == 1}


@given(catalogs())
@settings(SAME_EACH_TIME, max_examples=100)
def test_catalogs_of_any_form(made):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "CATALOG.csv"
        how = {key: made[key] for key in ("quoting", "lineterminator")}
        with open(path, "w", newline="", encoding=made["encoding"]) as file:
            writer = csv.DictWriter(file, made["columns"], **how)
            writer.writeheader()
            writer.writerows(made["rows"])
        for row in made["rows"]:
            there = path.parent / "data" / row["file_name"]
            there.parent.mkdir(parents=True, exist_ok=True)
            there.touch()
        expected = _expected(path)
        said = []
        try:
            events = catalog.read_catalog(folder, said.append)
        except InputError as error:
            assert not expected and "\n" not in str(error), error
            event("refused")
            return
    assert expected == {
        (each.file, each.index): (each.id, each.time, each.frames, each.event_type)
        for each in events
    }
    left = len(made["rows"]) - len(events)
    others = sum(row["img_type"] in ("vis", "lght") for row in made["rows"])
    assert bool(said) == (left > others)
    event("read")
