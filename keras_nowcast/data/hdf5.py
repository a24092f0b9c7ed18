"""Reads single items of one-byte HDF5 data sets without HDF5's global lock.

h5py lets one thread at a time into HDF5, and decompresses there. So HDF5 is asked once per file
where the bytes lie; after that each thread reads its own bytes and decompresses them outside of
any lock. An item is what one index of the first axis holds. Nothing of SEVIR is known here.
"""

import itertools
import math
import os
from dataclasses import dataclass

import numpy as np

try:
    from isal import isal_zlib as zlib  # the same bytes in half the time
except ImportError:  # no wheel for this machine
    import zlib

READ_ERRORS = (OSError, RuntimeError, zlib.error)  # of a damaged file


@dataclass(frozen=True)
class Layout:
    """Where the bytes of a data set lie.

    Attributes:
      name: of the data set.
      shape: of the data set; items are along the first axis.
      offset: first byte of a contiguous data set, else None.
      chunk: shape of a chunk, None where there are none.
      chunks: {indices of a chunk's first element: (first byte, bytes, mask of skipped filters)},
        else None.
      deflate: place of zlib's among the filters, None when nothing is compressed.
      fill: value of elements that were never written.
    """

    name: str
    shape: tuple
    offset: int | None
    chunk: tuple | None
    chunks: dict | None
    deflate: int | None
    fill: int


def open_file(path):
    """Opens a file for reading, unlocked: locks fail on the network file systems of clusters."""
    import h5py

    return h5py.File(path, "r", locking=False)


def read_layout(dataset):
    """Returns the Layout of an h5py data set of one-byte elements.

    Where `offset` and `chunks` are both None only HDF5 can read it: compressed by something else
    than zlib, virtual, in other files, in the header, or never written.
    """
    import h5py

    settings = dataset.id.get_create_plist()
    offset = chunks = deflate = None
    if dataset.file.userblock_size == 0:  # else some versions of HDF5 count offsets from its end
        if settings.get_layout() == h5py.h5d.CONTIGUOUS and not dataset.external:
            offset = dataset.id.get_offset()
        elif settings.get_layout() == h5py.h5d.CHUNKED:
            chunks, deflate = _read_chunk_places(dataset, settings)
    return Layout(
        name=dataset.name,
        shape=dataset.shape,
        offset=offset,
        chunk=dataset.chunks,
        chunks=chunks,
        deflate=deflate,
        fill=int(dataset.fillvalue),
    )


def _read_chunk_places(dataset, settings):
    from h5py import h5z

    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    # Shuffling the bytes of one-byte elements changes nothing.
    if not set(filters) <= {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE}:
        return None, None
    places = {}

    def note(chunk):
        places[chunk.chunk_offset] = chunk.byte_offset, chunk.size, chunk.filter_mask

    dataset.id.chunk_iter(note)
    is_deflated = h5z.FILTER_DEFLATE in filters
    return places, filters.index(h5z.FILTER_DEFLATE) if is_deflated else None


def read_item(path, layout, index):
    """Reads one item.

    Each chunk that holds a part of it is read and decompressed once; a chunk that holds several
    items, again for each of them.

    Args:
      path: the file that `layout` is of.
      layout: a Layout.
      index: of the first axis.

    Returns:
      uint8 array of shape layout.shape[1:], contiguous, perhaps read-only.

    Raises:
      one of READ_ERRORS: the file is damaged.
    """
    if layout.offset is not None:
        return _read_contiguous(path, layout, index)
    if layout.chunks is not None:
        return _read_chunked(path, layout, index)
    with open_file(path) as file:
        return file[layout.name][index]


def _read_contiguous(path, layout, index):
    count = math.prod(layout.shape[1:])
    with open(path, "rb") as file:
        raw = _read_bytes(file, layout.offset + index * count, count)
    return np.frombuffer(raw, np.uint8).reshape(layout.shape[1:])


def _read_chunked(path, layout, index):
    shape, step = layout.shape[1:], layout.chunk[1:]
    first = index - index % layout.chunk[0]
    item = np.empty(shape, np.uint8)
    with open(path, "rb") as file:
        for corner in itertools.product(*map(range, itertools.repeat(0), shape, step)):
            chunk = _read_chunk(file, layout, (first, *corner))[index - first]
            if chunk.shape == shape:  # the whole item: no need to copy it
                return chunk
            target = item[tuple(map(slice, corner, map(sum, zip(corner, step, strict=True))))]
            target[...] = chunk[tuple(map(slice, target.shape))]  # chunks at the end stick out
    return item


def _read_chunk(file, layout, corner):
    if corner not in layout.chunks:  # never written
        return np.full(layout.chunk, layout.fill, np.uint8)
    offset, count, skipped = layout.chunks[corner]
    size = math.prod(layout.chunk)
    raw = _read_bytes(file, offset, count)
    if layout.deflate is not None and not skipped >> layout.deflate & 1:
        raw = zlib.decompress(raw, bufsize=size)
    if len(raw) != size:
        raise OSError(f"a chunk of {len(raw)} bytes where {size} should be")
    return np.frombuffer(raw, np.uint8).reshape(layout.chunk)


def _read_bytes(file, offset, count):
    raw = os.pread(file.fileno(), count, offset)
    if len(raw) != count:
        raise OSError(f"{len(raw)} bytes at {offset} where {count} should be")
    return raw
