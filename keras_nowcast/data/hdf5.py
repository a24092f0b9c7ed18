"""Reads single items of one-byte HDF5 data sets without the global lock of HDF5.

h5py lets only one thread at a time into HDF5, and decompresses there. This module therefore asks
HDF5 once per file where the bytes are. After that, each thread reads its bytes and decompresses
them outside any lock. An item is the part of a data set at one index of the first axis. This module
does not depend on SEVIR.

The bytes are those of the object that HDF5 finds, past any links. `check_sample` compares a part of
a data set with h5py.
"""

import contextlib
import itertools
import math
import operator
import os
from dataclasses import dataclass

import numpy as np

try:
    from deflate import DeflateError as InflateError
    from deflate import zlib_decompress as _inflate  # the same result 2.5 times as fast
except ImportError:  # no wheel for this machine
    import zlib
    from zlib import error as InflateError

    def _inflate(stored, size):
        return zlib.decompress(stored, bufsize=size)


# Raised for a corrupted file. h5py raises whatever the step that meets the corruption raises.
READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    InflateError,
)


# Of the HDF Group's list of registered filters, those that are common in data of this kind.
_FILTER_NAMES = {
    4: "szip",
    307: "bzip2",
    32000: "lzf",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32026: "Blosc2",
}


class Unsupported(OSError):
    """A data set is not read here, although its file may be complete; the text has the reason."""


@dataclass(frozen=True)
class Layout:
    """The places of the bytes of a data set.

    Attributes:
      path: absolute path of the file that has the bytes. It is another one than the file that was
        opened if the data set is behind an external link.
      name: name of the data set in that file.
      shape: its shape; items are along the first axis.
      offset: first byte of a contiguous data set, otherwise None.
      chunk: shape of a chunk, or None if there are no chunks.
      chunks: {indices of the first element of a chunk: (first byte, bytes, mask of skipped
        filters)}, or None if there are no chunks.
      deflate: position of zlib among the filters, or None if nothing is compressed.
      is_decoded_by_hdf5: whether the chunks have filters that only HDF5 can undo.
      is_found_by_hdf5: whether only HDF5 knows where the chunks are: the file has a user block, and
        some versions count offsets from the end of it.
    """

    path: str
    name: str
    shape: tuple
    offset: int | None
    chunk: tuple | None
    chunks: dict | None
    deflate: int | None
    is_decoded_by_hdf5: bool
    is_found_by_hdf5: bool = False


def open_file(path):
    """Opens a file for reading without a lock, since locks fail on network file systems."""
    import h5py

    return h5py.File(path, "r", locking=False)


def link_of(file, name):
    """Returns what a link in an open file points to, as text, or None if it is no such link."""
    import h5py

    try:
        link = file.get(name, getlink=True)
    except READ_ERRORS:
        return None
    if isinstance(link, h5py.ExternalLink):
        return f"an external link to {link.path} in {link.filename}"
    if isinstance(link, h5py.SoftLink):
        return f"a soft link to {link.path}"
    return None


def file_of(dataset):
    """Returns the absolute path of the file that has an h5py data set, past any links to it."""
    return os.path.abspath(os.fsdecode(dataset.file.filename))


def missing_filters(dataset):
    """Returns the filters that reading a data set needs and that are not installed, as texts."""
    import h5py

    settings = dataset.id.get_create_plist()
    if settings.get_layout() != h5py.h5d.CHUNKED:
        return []
    missing = {}
    for place in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(place)
        if not _can_decode(code):
            name = name.decode(errors="replace").strip("\0 ") or _FILTER_NAMES.get(code)
            missing[place] = f"filter {code} ({name})" if name else f"filter {code}"
    if missing:  # a chunk may skip a filter
        masks = {mask for _, _, mask in _read_chunk_places(dataset).values()}
        missing = {
            place: text
            for place, text in missing.items()
            if any(not mask >> place & 1 for mask in masks)
        }
    return list(missing.values())


def _can_decode(code):
    import h5py

    if not h5py.h5z.filter_avail(code):
        return False
    return bool(h5py.h5z.get_filter_info(code) & h5py.h5z.FILTER_CONFIG_DECODE_ENABLED)


def is_of_bytes(dataset):
    """Returns True for an h5py data set of plain uint8, with exactly the eight bits of a byte."""
    import h5py

    stored = dataset.id.get_type()
    if not isinstance(stored, h5py.h5t.TypeIntegerID) or dataset.dtype != np.uint8:
        return False
    return (stored.get_precision(), stored.get_offset()) == (8, 0)


def read_layout(dataset):
    """Returns the Layout of an h5py data set of one-byte elements.

    If `offset` and `chunks` are both None, only HDF5 can read it: it is in the header, or after a
    user block.

    Raises:
      Unsupported: the elements are in other files, of which HDF5 reads absent ones as zeros.
      one of READ_ERRORS: the places of the chunks contradict each other, so the file is corrupted.
    """
    import h5py

    if dataset.is_virtual or dataset.external:
        raise Unsupported(
            "its elements are in other files, virtual or external; copy them into one data set"
        )
    settings = dataset.id.get_create_plist()
    offset = chunks = deflate = None
    is_decoded_by_hdf5 = False
    if settings.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        if offset is None:
            raise OSError("it was never written")
        stored, needed = dataset.id.get_storage_size(), math.prod(dataset.shape)
        if stored != needed:  # HDF5 reads some of the others as zeros
            raise OSError(f"it has {stored} bytes where {needed} should be")
    elif settings.get_layout() == h5py.h5d.CHUNKED:
        stages = [settings.get_filter(i) for i in range(settings.get_nfilters())]
        filters = [code for code, *_ in stages]
        chunks = _read_chunk_places(dataset)
        is_decoded_by_hdf5 = not _is_inflated(stages) or _has_plain_edges(dataset, chunks)
        if h5py.h5z.FILTER_DEFLATE in filters:
            deflate = filters.index(h5py.h5z.FILTER_DEFLATE)
        if is_decoded_by_hdf5:
            _check_skipped(chunks, dataset.chunks, filters)
    has_user_block = bool(dataset.file.userblock_size)
    if has_user_block:
        offset = None
    return Layout(
        path=file_of(dataset),
        name=dataset.name,
        shape=dataset.shape,
        offset=offset,
        chunk=dataset.chunks,
        chunks=chunks,
        deflate=deflate,
        is_decoded_by_hdf5=is_decoded_by_hdf5,
        is_found_by_hdf5=has_user_block and chunks is not None,
    )


def _is_inflated(stages):
    """Returns True if decompressing once with zlib, or not at all, undoes the filters.

    Args:
      stages: the filters as HDF5 describes them, (code, flags, parameters, name) each.
    """
    import h5py

    codes = [code for code, *_ in stages]
    # Shuffling the bytes of one-byte elements changes nothing. Its parameter is the element's size.
    shuffled = [values[:1] for code, _, values, _ in stages if code == h5py.h5z.FILTER_SHUFFLE]
    return (
        set(codes) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}
        and codes.count(h5py.h5z.FILTER_DEFLATE) <= 1
        and all(values == (1,) for values in shuffled)
    )


def _has_plain_edges(dataset, chunks):
    """Returns True if chunks that extend beyond the data set may have been left without filters.

    An option of HDF5's newer format does so, and does not mark these chunks.
    """
    size = math.prod(dataset.chunks)
    return any(
        count == size
        and any(map(operator.gt, map(operator.add, corner, dataset.chunks), dataset.shape))
        for corner, (_, count, _) in chunks.items()
    )


def check_sample(dataset, layout):
    """Compares a part of an h5py data set with the same part as it is read here.

    The part is the middle one of the chunks, or the middle item of a contiguous data set. What
    HDF5 decodes anyway, and a part that is unreadable here and will be refused, are not compared.

    Raises:
      one of READ_ERRORS: HDF5 cannot read the part, or reads other elements.
    """
    if layout.is_decoded_by_hdf5 or not (layout.chunks or layout.offset is not None):
        return
    middle = layout.shape[0] // 2
    place = (slice(middle, middle + 1),)
    try:
        if layout.chunks:
            corner = sorted(layout.chunks)[len(layout.chunks) // 2]
            place = tuple(map(slice, corner, map(sum, zip(corner, layout.chunk, strict=True))))
            with _opened(layout) as read:
                here = _read_chunk(read, layout, corner)
        else:
            here = read_item(layout, middle)[np.newaxis]
    except READ_ERRORS:
        return
    there = dataset[place]
    if not np.array_equal(here[tuple(map(slice, there.shape))], there):
        raise Unsupported(
            "HDF5 reads other elements than those found without it, at index "
            f"{place[0].start}; copy the data set to a new file with h5py"
        )


def _read_chunk_places(dataset):
    """Returns Layout.chunks.

    The index of the chunks has no checksum in the usual format of HDF5. A changed bit in it shows
    as two chunks at the same place in the data set or in the file.
    """
    places = {}

    def note(chunk):
        if chunk.chunk_offset in places:
            raise OSError(f"two chunks at {chunk.chunk_offset}")
        places[chunk.chunk_offset] = chunk.byte_offset, chunk.size, chunk.filter_mask

    dataset.id.chunk_iter(note)
    end = 0
    for offset, count, _ in sorted(places.values()):
        if offset < end:
            raise OSError(f"two chunks share the bytes at {offset}")
        end = offset + count
    return places


def _check_skipped(chunks, chunk, filters):
    """Checks the length of each chunk that skips filters, which HDF5 does not check.

    Raises:
      OSError: a chunk has another length than it must have.
    """
    import h5py

    size = math.prod(chunk)
    for corner, (_, count, skipped) in chunks.items():
        left_out = {name for place, name in enumerate(filters) if skipped >> place & 1}
        applied = {name for place, name in enumerate(filters) if not skipped >> place & 1}
        if left_out <= {h5py.h5z.FILTER_SHUFFLE}:
            continue  # shuffling changes neither the length nor, for single bytes, the elements
        whole = size + 4 * (h5py.h5z.FILTER_FLETCHER32 in applied)
        if count != whole:
            raise OSError(f"a chunk of {count} bytes where {whole} should be, at {corner}")


def read_item(layout, index):
    """Reads one item.

    Each chunk that has a part of the item is read and decompressed once. A chunk with several items
    is decompressed again for each of them.

    Args:
      layout: a Layout.
      index: index on the first axis.

    Returns:
      uint8 array of shape layout.shape[1:], contiguous, possibly read-only.

    Raises:
      one of READ_ERRORS: the file is corrupted.
    """
    if layout.offset is not None:
        return _read_contiguous(layout, index)
    corners = [] if layout.chunks is None else _corners(layout, index)
    if not all(corner in layout.chunks for corner in corners):
        raise OSError("a part of it was never written")  # HDF5 would return fill values
    if layout.chunks is None or layout.is_decoded_by_hdf5:
        with open_file(layout.path) as file:
            return file[layout.name][index]
    return _read_chunked(layout, index, corners)


def _corners(layout, index):
    """Returns the first indices of each chunk that has a part of an item."""
    first = index - index % layout.chunk[0]
    steps = map(range, itertools.repeat(0), layout.shape[1:], layout.chunk[1:])
    return list(itertools.product([first], *steps))


def _read_contiguous(layout, index):
    count = math.prod(layout.shape[1:])
    with open(layout.path, "rb") as file:
        raw = _read_bytes(file, layout.offset + index * count, count)
    return np.frombuffer(raw, np.uint8).reshape(layout.shape[1:])


@contextlib.contextmanager
def _opened(layout):
    """Opens the file of a Layout; gives a function that returns the stored bytes of a chunk."""
    if layout.is_found_by_hdf5:
        with open_file(layout.path) as file:
            dataset = file[layout.name].id
            yield lambda corner: dataset.read_direct_chunk(corner)[1]
        return
    with open(layout.path, "rb") as file:
        yield lambda corner: _read_bytes(file, *layout.chunks[corner][:2])


def _read_chunked(layout, index, corners):
    shape, step = layout.shape[1:], layout.chunk[1:]
    item = np.empty(shape, np.uint8)
    with _opened(layout) as read:
        for first, *corner in corners:
            chunk = _read_chunk(read, layout, (first, *corner))[index - first]
            if chunk.shape == shape:  # it is the complete item, so no copy is needed
                return chunk
            target = item[tuple(map(slice, corner, map(sum, zip(corner, step, strict=True))))]
            target[...] = chunk[
                tuple(map(slice, target.shape))
            ]  # chunks at the edge extend beyond it
    return item


def _read_chunk(read, layout, corner):
    """Returns a chunk. HDF5 would not notice if it inflates to fewer bytes than a chunk has."""
    skipped, size = layout.chunks[corner][2], math.prod(layout.chunk)
    raw = read(corner)
    if layout.deflate is not None and not skipped >> layout.deflate & 1:
        raw = _inflate(raw, size)
    if len(raw) != size:
        raise OSError(f"a chunk of {len(raw)} bytes where {size} should be")
    return np.frombuffer(raw, np.uint8).reshape(layout.chunk)


def _read_bytes(file, offset, count):
    raw = os.pread(file.fileno(), count, offset)
    if len(raw) != count:
        raise OSError(f"{len(raw)} bytes at {offset} where {count} should be")
    return raw
