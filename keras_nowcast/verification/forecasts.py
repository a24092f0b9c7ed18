"""Forecasts on disk, in the layout of SEVIR: CATALOG.csv and an HDF5 file of `id` and `vil`."""

import contextlib
import csv
import os
import shutil
from pathlib import Path

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.files import new_hdf5
from keras_nowcast.vil import FRAME_MINUTES, FRAMES_OUT, MISSING


@contextlib.contextmanager
def saved_forecasts(root, method, columns, grid):
    """Gives a function that appends forecasts to a new folder `root`.

    The function takes (id, time, forecast): the unique id of the forecast; the time of the last
    input frame (naive, UTC); and (y, x, l) codes. They are stored as the nearest code from 0 to
    254, and NaN as 255, missing. A count made from the file can therefore differ slightly from one
    made from the float forecast. Memory does not grow with the number of forecasts.

    On leaving without an exception the folder is complete; otherwise nothing is left. It holds
    `CATALOG.csv` and `data/vil/FORECAST_<method>.h5` with `id` (bytes) and `vil`, (forecast, y,
    x, l) uint8. time_utc is the time of the last input frame and minute_offsets the leads.

    Args:
      root: a folder that does not exist yet.
      method: name of the method, part of the file name and the event_type of the catalog.
      columns: the columns of SEVIR's catalog.
      grid: pixels along a side.

    Raises:
      InputError: `root` exists, or its disk is full.
    """
    root = Path(root).absolute()
    if root.exists():
        raise InputError(
            f"`--save-forecasts` must name a folder that does not exist. Received: {root}"
        )
    beside = root.with_name(f".{root.name}.{os.getpid()}")
    file_name = f"vil/FORECAST_{method}.h5"
    try:
        (beside / "data" / "vil").mkdir(parents=True)
        with (
            new_hdf5(beside / "data" / file_name) as (file, check),
            open(beside / "CATALOG.csv", "w", newline="", encoding="utf-8") as catalog,
        ):
            rows = csv.DictWriter(catalog, columns, restval="", lineterminator="\n")
            rows.writeheader()
            ids, vil = _create_datasets(file, grid)

            def append(id_, time, forecast):
                n = len(vil)
                codes = _codes(forecast)
                for dataset in (ids, vil):
                    dataset.resize(n + 1, axis=0)
                ids[n], vil[n] = id_.encode(), codes
                check()
                place = {"id": id_, "file_name": file_name, "file_index": n, "event_type": method}
                rows.writerow(place | _described(codes, time))

            yield append
        os.replace(beside, root)
    except OSError as error:
        raise InputError(
            f"`--save-forecasts` must be on a disk with space for them. Received: {root} "
            f"({error.strerror or error}), of which nothing is left; make space, or give another "
            "folder."
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _create_datasets(file, grid):
    """Returns the empty, growing datasets `id` and `vil` of an open HDF5 file."""
    import h5py

    shape = (grid, grid, FRAMES_OUT)
    ids = file.create_dataset(
        "id", (0,), h5py.string_dtype("utf-8", 64), maxshape=(None,), chunks=(1024,)
    )
    vil = file.create_dataset(
        "vil",
        (0, *shape),
        np.uint8,
        maxshape=(None, *shape),
        chunks=(1, *shape),
        compression="gzip",
        compression_opts=1,
    )
    return ids, vil


def _described(codes, time):
    """Returns the catalog columns that describe one forecast, by name."""
    return {
        "img_type": "vil",
        "time_utc": time.isoformat(" ", "seconds"),
        "minute_offsets": ":".join(str(FRAME_MINUTES * (lead + 1)) for lead in range(FRAMES_OUT)),
        "size_x": codes.shape[1],
        "size_y": codes.shape[0],
        "data_min": codes.min(),
        "data_max": codes.max(),
        "pct_missing": f"{(codes == MISSING).mean():.6f}",
    }


def _codes(forecast):
    nearest = np.clip(np.rint(np.nan_to_num(forecast)), 0, MISSING - 1)
    return np.where(np.isnan(forecast), MISSING, nearest).astype(np.uint8)
