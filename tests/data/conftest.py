"""Small SEVIR data sets of random codes."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_nowcast.data import catalog
from keras_nowcast.vil import MISSING

RADAR = Path(__file__).parents[3] / "shared" / "radar"


@pytest.fixture
def radar():
    if not RADAR.is_dir():
        pytest.skip("no ../shared/radar here")
    return RADAR


@pytest.fixture
def catalog_row():
    return _catalog_row


@pytest.fixture
def write_catalog():
    return _write_catalog


@pytest.fixture
def write_sevir():
    return _write_sevir


@pytest.fixture
def event(tmp_path, write_sevir):
    """The second of three compressed events."""
    write_sevir(tmp_path, events=3, chunks=(1, 16, 16, 49), compression="gzip")
    return catalog.read_catalog(tmp_path)[1]


def _catalog_row(**values):
    """Returns a row of the catalog as a dict; `values` replace the defaults."""
    defaults = {
        "id": "S0",
        "file_name": "vil/2018/a.h5",
        "file_index": 0,
        "img_type": "vil",
        "time_utc": "2018-05-01 12:00:00",
        "minute_offsets": ":".join(str(5 * k - 120) for k in range(49)),
        "event_type": "Hail",
        "size_x": 16,
        "size_y": 16,
        "pct_missing": 0.0,
    }
    return dict.fromkeys(catalog.CATALOG_COLUMNS, "") | defaults | values


def _write_catalog(root, rows, columns=catalog.CATALOG_COLUMNS):
    """Writes CATALOG.csv; creates an empty file for each row whose file is absent."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "CATALOG.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for name in {row["file_name"] for row in rows}:
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _write_sevir(root, events, size=16, frames=49, seed=0, per_file=4, **storage):
    """Writes `events` events of random codes, one per hour, every fifth after 2019-06-01.

    Returns:
      The codes, (events, y, x, time), a tenth of them missing.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (events, size, size, frames), np.uint8)
    codes[rng.random(codes.shape) < 0.1] = MISSING
    rows = []
    for k in range(events):
        year = 2020 if k % 5 == 4 else 2018
        rows.append(
            _catalog_row(
                id=f"S{k}",
                file_name=f"vil/{k // per_file}.h5",
                file_index=k % per_file,
                time_utc=f"{year}-01-{1 + k // 24:02d} {k % 24:02d}:00:00",
                minute_offsets=":".join(str(5 * i) for i in range(frames)),
                size_x=size,
                size_y=size,
                pct_missing=f"{(codes[k] == MISSING).mean():.6f}",
            )
        )
    _write_catalog(root, rows)
    for first in range(0, events, per_file):
        members = range(first, min(first + per_file, events))
        with h5py.File(root / "data" / f"vil/{first // per_file}.h5", "w") as file:
            file["id"] = np.array([f"S{k}" for k in members], "S10")
            file.create_dataset("vil", data=codes[members.start : members.stop], **storage)
    return codes
