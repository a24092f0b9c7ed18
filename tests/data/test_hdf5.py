"""Every layout reads as with h5py, with any number of threads."""

import ctypes
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from keras_nowcast.data import hdf5

SHAPE = (5, 12, 12, 9)
ONE = (1, *SHAPE[1:])

# name: (arguments of create_dataset, whether chunks are decoded without HDF5)
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
    assert layout.is_decoded_by_hdf5 != is_found
    for index in range(len(codes)):
        item = hdf5.read_item(layout, index)
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
        items = list(executor.map(lambda index: hdf5.read_item(layout, index), order))
    np.testing.assert_array_equal(items, codes[order])


@pytest.mark.parametrize("more", [{}, {"compression": "gzip"}, {"compression": "lzf"}])
def test_chunks_never_written_are_told(tmp_path, codes, more):
    """HDF5 would return its fill value for them: no echo although nothing was observed."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset("vil", SHAPE, np.uint8, chunks=(1, 12, 6, 9), **more)
        vil[1], vil[2, :, :6] = codes[1], codes[2, :, :6]
    layout = _layout(path)
    np.testing.assert_array_equal(hdf5.read_item(layout, 1), codes[1])
    for index in (0, 2):
        with pytest.raises(hdf5.READ_ERRORS, match="never written"):
            hdf5.read_item(layout, index)


def test_a_contiguous_set_never_written_is_told(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", SHAPE, np.uint8)
    with pytest.raises(hdf5.READ_ERRORS, match="never written"):
        _layout(path)


def test_a_chunk_stored_without_its_filter(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset("vil", SHAPE, np.uint8, chunks=ONE, compression="gzip")
        vil.id.write_direct_chunk((0, 0, 0, 0), codes[0].tobytes(), filter_mask=1)
    np.testing.assert_array_equal(hdf5.read_item(_layout(path), 0), codes[0])


def test_contiguous_elements_that_the_header_does_not_have_are_refused(tmp_path, codes):
    """HDF5 reads them as zeros, or as they are, depending on what else is read."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["vil"] = codes
        place = struct.pack("<QQ", file["vil"].id.get_offset(), codes.size)
    raw = path.read_bytes()
    assert raw.count(place) == 1
    path.write_bytes(raw.replace(place, place[:8] + struct.pack("<Q", codes.size - 43)))
    with h5py.File(path) as file:
        assert file["vil"].shape == codes.shape  # without an error
        with pytest.raises(OSError, match=f"{codes.size - 43} bytes where {codes.size} should be"):
            hdf5.read_layout(file["vil"])


@pytest.mark.parametrize("block", [0, 512])
def test_a_chunk_that_inflates_to_fewer_bytes_is_refused(tmp_path, codes, block):
    """HDF5 returns what its memory held before in the place of the others."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=block) as file:
        vil = file.create_dataset("vil", data=codes, chunks=ONE, compression="gzip")
        vil.id.write_direct_chunk((1, 0, 0, 0), zlib.compress(codes[1].tobytes()[:50]))
    with h5py.File(path) as file:
        layout = hdf5.read_layout(file["vil"])
        assert file["vil"][1].shape == codes.shape[1:]  # without an error
    np.testing.assert_array_equal(hdf5.read_item(layout, 0), codes[0])
    with pytest.raises(OSError, match="a chunk of 50 bytes where"):
        hdf5.read_item(layout, 1)


@pytest.mark.parametrize("storage", [{}, {"chunks": ONE, "compression": "gzip"}])
def test_a_file_with_a_user_block(tmp_path, codes, storage):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("vil", data=codes, **storage)
    np.testing.assert_array_equal(hdf5.read_item(_layout(path), 3), codes[3])


def test_elements_in_other_files_are_refused(tmp_path, codes):
    """HDF5 would read them as zeros if the other file is absent or too short."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        virtual = h5py.VirtualLayout(SHAPE, np.uint8)
        virtual[:] = h5py.VirtualSource("absent.h5", "vil", SHAPE)
        file.create_virtual_dataset("vil", virtual)
    with pytest.raises(hdf5.READ_ERRORS, match="other files"):
        _layout(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", SHAPE, np.uint8, external=[("raw", 0, codes.size)])
    with pytest.raises(hdf5.READ_ERRORS, match="other files"):
        _layout(path)


def _with_key(path, old, new, count=1):
    """Changes a chunk's key (its length, its skipped filters, its first indices) in the B-tree."""
    raw = path.read_bytes()
    assert raw.count(old) == count
    path.write_bytes(raw.replace(old, new))


def _key(size, mask, event):
    return struct.pack("<IIQQQQQ", size, mask, event, 0, 0, 0, 0)


@pytest.mark.parametrize("more", [{"compression": "gzip"}, {}])
def test_two_chunks_of_one_place(tmp_path, codes, more):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset("vil", data=codes, chunks=ONE, **more)
        size = vil.id.get_chunk_info(3).size
    _with_key(path, _key(size, 0, 3), _key(size, 0, 2))
    with pytest.raises(hdf5.READ_ERRORS, match=r"two chunks at \(2, 0, 0, 0\)"):
        _layout(path)


def test_two_chunks_that_share_bytes(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset("vil", data=codes, chunks=ONE)
        offsets = [vil.id.get_chunk_info(k).byte_offset for k in range(5)]
    _with_key(path, struct.pack("<Q", offsets[3]), struct.pack("<Q", offsets[3] ^ 1))
    with pytest.raises(hdf5.READ_ERRORS, match="two chunks share the bytes"):
        _layout(path)


def test_filters_that_are_skipped_by_mistake(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        vil = file.create_dataset(
            "vil", data=codes // 64, chunks=ONE, compression="gzip", fletcher32=True
        )
        size = vil.id.get_chunk_info(3).size
    _with_key(path, _key(size, 0, 3), _key(size, 3, 3))
    with pytest.raises(hdf5.READ_ERRORS, match="a chunk of .* bytes where"):
        _layout(path)


@pytest.mark.parametrize(("precision", "offset"), [(7, 0), (4, 4)])
def test_bytes_of_fewer_bits_are_no_bytes(tmp_path, codes, precision, offset):
    path = tmp_path / "a.h5"
    stored = h5py.h5t.STD_U8LE.copy()
    with h5py.File(path, "w") as file:
        file["whole"] = codes
        stored.set_precision(precision)
        stored.set_offset(offset)
        space = h5py.h5s.create_simple(SHAPE)
        h5py.h5d.create(file.id, b"part", stored, space)
        assert file["part"].dtype == np.uint8
        assert hdf5.is_of_bytes(file["whole"])
        assert not hdf5.is_of_bytes(file["part"])


def test_bytes_that_are_not_there(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["vil"] = codes
    layout = _layout(path)
    with open(path, "r+b") as file:
        file.truncate(layout.offset + codes[0].size * 2 - 1)
    np.testing.assert_array_equal(hdf5.read_item(layout, 0), codes[0])
    with pytest.raises(hdf5.READ_ERRORS, match="bytes"):
        hdf5.read_item(layout, 1)


def test_a_damaged_chunk(tmp_path, codes):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=codes, chunks=ONE, compression="gzip")
    layout = _layout(path)
    with open(path, "r+b") as file:
        file.seek(layout.chunks[2, 0, 0, 0][0])
        file.write(b"\0" * 64)
    with pytest.raises(hdf5.READ_ERRORS):
        hdf5.read_item(layout, 2)


@pytest.mark.parametrize("storage", [{}, {"chunks": (2, 12, 5, 4), "compression": "gzip"}])
def test_a_sample_is_compared_with_h5py(tmp_path, codes, storage):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=codes, **storage)
    layout = _layout(path)
    with h5py.File(path) as file:
        hdf5.check_sample(file["vil"], layout)
    codes[2] ^= 1  # the middle item, which is in the middle chunk
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file.create_dataset("vil", data=codes, **storage)
        with pytest.raises(hdf5.Unsupported, match="reads other elements"):
            hdf5.check_sample(file["vil"], layout)


@pytest.mark.parametrize("more", [{"compression": "gzip"}, {}])
def test_filters_in_an_unusual_order_or_twice(tmp_path, codes, more):
    """Inflating once does not undo two compressions."""
    path = tmp_path / "a.h5"
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(ONE)
    settings.set_deflate(6)
    settings.set_shuffle()
    if more:
        settings.set_deflate(1)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(SHAPE)
        h5py.h5d.create(file.id, b"vil", h5py.h5t.STD_U8LE, space, settings)
        file["vil"][...] = codes
    layout = _layout(path)
    assert layout.is_decoded_by_hdf5 == bool(more)
    for index in range(len(codes)):
        np.testing.assert_array_equal(hdf5.read_item(layout, index), codes[index])


def test_chunks_at_the_edge_without_their_filters(tmp_path, codes):
    """HDF5 1.10 and newer leave them so on request, with no mark at the chunk."""
    [library] = {line.split()[-1] for line in open("/proc/self/maps") if "/libhdf5-" in line}
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((1, 8, 8, 9))
    settings.set_deflate(4)
    request = ctypes.CDLL(library).H5Pset_chunk_opts
    request.argtypes = [ctypes.c_int64, ctypes.c_uint]
    assert request(settings.id, 2) == 0  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS; h5py has no call
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        space = h5py.h5s.create_simple(SHAPE)
        h5py.h5d.create(file.id, b"vil", h5py.h5t.STD_U8LE, space, settings)
        file["vil"][...] = codes
    layout = _layout(path)
    for index in range(len(codes)):
        np.testing.assert_array_equal(hdf5.read_item(layout, index), codes[index])
