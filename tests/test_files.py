"""HDF5 files on a disk that ends: one error, nothing incomplete, and the process lives on."""

import contextlib
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_nowcast.files import new_hdf5, size_text

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def largest_file(count):
    """Lets no file of this process grow beyond so many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(path, **storage):
    codes = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 5), np.uint8)
    with new_hdf5(path) as (file, check):
        file["id"] = np.array([b"S%d" % k for k in range(6)])
        vil = file.create_dataset("vil", codes.shape, np.uint8, **storage)
        for k in range(6):
            vil[k] = codes[k]
            check()
    return codes


STORAGES = (
    {},
    {"chunks": (1, 20, 20, 5), "compression": "gzip"},
    {"chunks": (1, 5, 5, 5), "maxshape": (None, 20, 20, 5)},
)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_new_file_is_that_of_h5py(tmp_path, storage):
    codes = write(tmp_path / "a.h5", **storage)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["vil"][...], codes)
        assert file["id"][5] == b"S5"


@pytest.mark.parametrize("storage", STORAGES)
def test_wherever_the_disk_ends_the_error_is_raised(tmp_path, storage):
    write(tmp_path / "whole.h5", **storage)
    size = (tmp_path / "whole.h5").stat().st_size
    for count in range(0, size, size // 40):
        with pytest.raises(OSError, match="File too large"), largest_file(count):
            write(tmp_path / "a.h5", **storage)
    codes = write(tmp_path / "a.h5", **storage)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["vil"][...], codes)


def test_an_exception_of_the_writer_comes_first(tmp_path):
    with pytest.raises(KeyboardInterrupt), largest_file(1000):
        with new_hdf5(tmp_path / "a.h5") as (file, _):
            file["vil"] = np.zeros(5000, np.uint8)
            raise KeyboardInterrupt


def test_every_writer_ends_in_one_line(tmp_path):
    """In another process, since HDF5 may crash when a process exits after a failed write."""
    code = f"""
import datetime, resource
import numpy as np
from keras_nowcast.data import catalog, packed, synthetic
from keras_nowcast.errors import InputError
from keras_nowcast.verification.forecasts import saved_forecasts

root = {str(tmp_path)!r}
synthetic.write_synthetic(root + "/whole", events=5, size=16, frames=25, progress=False)
files, text = packed.sevir_files(root + "/whole")

def pack(out):
    packed.write_files(out, files, text, say=str)

def save(out):
    with saved_forecasts(out, "model", catalog.CATALOG_COLUMNS, 8) as append:
        for k in range(20):
            codes = np.random.default_rng(k).uniform(0, 254, (8, 8, 12))
            append(f"S{{k}}", datetime.datetime(2020, 1, 1), codes)

def make(out):
    synthetic.write_synthetic(out, events=5, size=16, frames=25, progress=False)

for count in (0, 600, 2000, 5000, 8000):
    for writer in (make, pack, save):
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, -1))
        try:
            writer(root + "/" + writer.__name__)
        except InputError as error:
            print(writer.__name__, "refused:", "File too large" in str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    refusals = done.stdout.split("\n")[:-1]
    assert refusals == [f"{name} refused: True" for name in ("make", "pack", "save")] * 5
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".h5"]
    assert all(name.startswith("SEVIR_VIL_SYNTHETIC") for name in left)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "pack"}


def test_sizes_as_text():
    counts = (0, 999, 1000, 3_140_000, 5 * 10**9)
    assert [*map(size_text, counts)] == ["0 bytes", "999 bytes", "1.0 kB", "3.1 MB", "5.0 GB"]
