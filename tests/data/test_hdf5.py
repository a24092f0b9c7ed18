"""Every layout gives what h5py gives, by as many threads as may be."""

from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from keras_nowcast.data import hdf5

SHAPE = (5, 12, 12, 9)
ONE = (1, *SHAPE[1:])

# name: (arguments of create_dataset, whether the bytes are found without HDF5)
LAYOUTS = {
    "contiguous": ({}, True),
    "gzip, a chunk an event": ({"chunks": ONE, "compression": "gzip"}, True),
    "shuffled": ({"chunks": ONE, "compression": "gzip", "shuffle": True}, True),
    "chunked, not compressed": ({"chunks": ONE}, True),
    "events cut in space and time": (
        {"chunks": (1, 5, 4, 9), "compression": "gzip", "shuffle": True},
        True,
    ),
    "chunks of several events": ({"chunks": (2, 12, 5, 4), "compression": "gzip"}, True),
    "chunks larger than an event": (
        {"chunks": (1, 16, 13, 9), "compression": "gzip", "maxshape": (None,) * 4},
        True,
    ),
    "as h5py chooses": ({"chunks": True, "compression": "gzip"}, True),
    "lzf": ({"chunks": ONE, "compression": "lzf"}, False),
    "checksummed": ({"chunks": ONE, "compression": "gzip", "fletcher32": True}, False),
}


@pytest.fixture
def codes():
    return np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)


def _layout(path):
    with h5py.File(path) as file:
        return hdf5.read_layout(file["vil"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_equals_h5py(tmp_path, codes, name):
    storage, is_found = LAYOUTS[name]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=codes, **storage)
    layout = _layout(path)
    assert (layout.offset is not None or layout.chunks is not None) == is_found
    for index in range(len(codes)):
        item = hdf5.read_item(path, layout, index)
        assert item.dtype == np.uint8
        assert item.flags.c_contiguous
        np.testing.assert_array_equal(item, codes[index])


def test_threads_read_what_one_reads(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=codes, chunks=ONE, compression="gzip")
    layout = _layout(path)
    order = np.random.default_rng(0).integers(0, len(codes), 200)
    with ThreadPoolExecutor(8) as executor:
        items = list(executor.map(lambda index: hdf5.read_item(path, layout, index), order))
    np.testing.assert_array_equal(items, codes[order])


def test_chunks_never_written_hold_the_fill_value(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset("vil", SHAPE, np.uint8, chunks=ONE, fillvalue=255)
        vil[1] = codes[1]
    layout = _layout(path)
    np.testing.assert_array_equal(hdf5.read_item(path, layout, 0), np.full(SHAPE[1:], 255))
    np.testing.assert_array_equal(hdf5.read_item(path, layout, 1), codes[1])


def test_a_contiguous_set_never_written_holds_the_fill_value(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", SHAPE, np.uint8, fillvalue=7)
    np.testing.assert_array_equal(
        hdf5.read_item(path, _layout(path), 0), np.full(SHAPE[1:], 7, np.uint8)
    )


def test_a_chunk_stored_without_its_filter(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset("vil", SHAPE, np.uint8, chunks=ONE, compression="gzip")
        vil.id.write_direct_chunk((0, 0, 0, 0), codes[0].tobytes(), filter_mask=1)
    np.testing.assert_array_equal(hdf5.read_item(path, _layout(path), 0), codes[0])


@pytest.mark.parametrize("storage", [{}, {"chunks": ONE, "compression": "gzip"}])
def test_a_file_with_a_user_block(tmp_path, codes, storage):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("vil", data=codes, **storage)
    np.testing.assert_array_equal(hdf5.read_item(path, _layout(path), 3), codes[3])


def test_a_virtual_set(tmp_path, codes):
    parts = tmp_path / "parts.h5"
    with h5py.File(parts, "w") as file:
        file["vil"] = codes
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        virtual = h5py.VirtualLayout(SHAPE, np.uint8)
        virtual[:] = h5py.VirtualSource(parts, "vil", SHAPE)
        file.create_virtual_dataset("vil", virtual)
    np.testing.assert_array_equal(hdf5.read_item(path, _layout(path), 2), codes[2])


def test_bytes_that_are_not_there(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["vil"] = codes
    layout = _layout(path)
    with open(path, "r+b") as file:
        file.truncate(layout.offset + codes[0].size * 2 - 1)
    np.testing.assert_array_equal(hdf5.read_item(path, layout, 0), codes[0])
    with pytest.raises(hdf5.READ_ERRORS, match="bytes"):
        hdf5.read_item(path, layout, 1)


def test_a_damaged_chunk(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=codes, chunks=ONE, compression="gzip")
    layout = _layout(path)
    with open(path, "r+b") as file:
        file.seek(layout.chunks[2, 0, 0, 0][0])
        file.write(b"\0" * 64)
    with pytest.raises(hdf5.READ_ERRORS):
        hdf5.read_item(path, layout, 2)
