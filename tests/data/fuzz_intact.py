"""The intact data sets that fuzz.py spoils: a few tiny events in each kind of pixel storage."""

import csv
import io

import h5py
import numpy as np

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
    write_catalog(root, [COLUMNS, *rows])
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


def write_catalog(root, rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    (root / "CATALOG.csv").write_bytes(text.getvalue().encode())
