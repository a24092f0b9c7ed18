"""The pixels of a SEVIR data set: reads events, cuts windows, and checks files.

A root folder has `CATALOG.csv` and `data/<file_name>`. A file has `id` and `vil`, uint8 codes of
shape (event, y, x, time), 1 km and 5 minutes apart. TensorFlow is not imported.

Source: Veillette et al., NeurIPS 2020, and the catalog published with the data.
"""

import collections
import concurrent.futures
import contextlib
import os
import reprlib
from dataclasses import dataclass

import numpy as np

from keras_nowcast.data import hdf5
from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

_MOST_CONTENTS = 4096  # files
_CONTENTS = {}  # path: _Contents, which hold for as long as the files have the same stamps
WINDOW_STRIDE = 12  # frames; the windows of the authors start at 0, 12 and 24


def window_starts(frames, stride=WINDOW_STRIDE):
    """Returns the first frame of each window of 13 + 12 frames: 0, stride, 2 stride, ..."""
    return range(0, frames - FRAMES_IN - FRAMES_OUT + 1, stride)


def count_windows(events, stride=WINDOW_STRIDE, most=None):
    """Returns the number of windows of events, by the catalog, at most `most` unless it is None."""
    windows = sum(len(window_starts(event.frames, stride)) for event in events)
    return windows if most is None else min(windows, most)


def cut_window(vil, start, out=None):
    """Cuts one window out of an event.

    Args:
      vil: (y, x, time) uint8, contiguous.
      start: first frame of the window.
      out: two contiguous arrays to write to, of the returned shapes; None for new ones.

    Returns:
      (y, x, 13) input and (y, x, 12) target codes, uint8, each contiguous.
    """
    y, x, _ = vil.shape
    if out is None:
        out = np.empty((y, x, FRAMES_IN), np.uint8), np.empty((y, x, FRAMES_OUT), np.uint8)
    for frames in out:
        # The frames of a pixel are copied as one item, in half the time of a copy byte by byte.
        item = f"V{frames.shape[-1]}"
        items = np.ndarray((y, x), item, frames)
        items[...] = np.ndarray((y, x), item, vil, start, vil.strides[:2])
        start += frames.shape[-1]
    return out


def read_event(event, grid=None):
    """Reads all frames of an event.

    The file is read once, and compressed chunks are decompressed outside any lock, so that threads
    can read at the same time.

    Args:
      event: an Event.
      grid: pixels along a side of the result, a divisor of the stored size; None for that size.

    Returns:
      (y, x, time) uint8 codes, contiguous, possibly read-only; on a coarser grid, block_mean.

    Raises:
      InputError: the file is corrupted, or does not match the catalog.
    """
    contents = _contents(event.file)
    _check_event(event, contents)
    try:
        vil = hdf5.read_item(contents.layout, event.index)
    except hdf5.READ_ERRORS as error:
        raise InputError(
            f"event {event.id} in {event.file} must be readable. Received: {_one_line(error)}; "
            "check that the file is complete."
        ) from None
    if grid is None or grid == event.size:
        return vil
    return block_mean(vil, block_factor(event, grid))


def read_events(events, grid, threads):
    """Yields the codes of the events in order; up to `threads` events are read at once."""
    with concurrent.futures.ThreadPoolExecutor(threads, "read-sevir") as executor:
        waiting = collections.deque()
        try:
            for event in events:
                waiting.append(executor.submit(read_event, event, grid))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def block_factor(event, grid):
    """Returns the number of stored pixels per grid pixel along a side.

    Raises:
      InputError: the grid does not divide the stored size.
    """
    if grid < 1 or event.size % grid:
        raise InputError(
            f"`--grid` must divide the stored size, {event.size} pixels in {event.file}. "
            f"Received: {grid}."
        )
    return event.size // grid


def block_mean(vil, factor):
    """Averages blocks of factor x factor pixels over their valid pixels.

    Args:
      vil: (y, x, time) uint8 codes.
      factor: pixels along a side of a block; divides y and x.

    Returns:
      (y / factor, x / factor, time) uint8: the mean code, rounded to the nearest (halves up), or
      255 if a block has no valid pixel.
    """
    y, x, frames = vil.shape
    valid = vil != MISSING
    sums = _block_sums(vil * valid, factor)
    if valid.all():
        counts = np.uint32(factor * factor)
        return ((2 * sums + counts) // (2 * counts)).astype(np.uint8)
    counts = _block_sums(valid.view(np.uint8), factor)
    means = (2 * sums + counts) // np.maximum(2 * counts, 1)
    return np.where(counts > 0, means, MISSING).astype(np.uint8)


def _block_sums(values, factor):
    y, x, frames = values.shape
    rows = values.reshape(y // factor, factor, x * frames).sum(axis=1, dtype=np.uint32)
    return rows.reshape(y // factor, x // factor, factor, frames).sum(axis=2, dtype=np.uint32)


def check_files(events):
    """Opens each file of the events once and compares it with the catalog.

    Raises:
      InputError: a file cannot be opened, lacks `vil` or `id`, or has another shape, type, number
        of events or id than the catalog.
    """
    for event in events:
        _check_event(event, _contents(event.file))


def check_missing(events, say):
    """Compares `pct_missing` of the catalog with the pixels of one event of each file.

    Missing pixels count in no average, but `--max-missing` goes by the catalog. `say` gets one line
    if a file lacks more pixels than the catalog says. A packed file of coarser pixels lacks fewer.
    """
    sample = {event.file: event for event in reversed(events)}.values()
    wrong = []
    for event in sample:
        with contextlib.suppress(InputError):  # reported by the reader of the event
            share = np.mean(read_event(event) == MISSING)
            if share > event.missing_share + 0.001:
                wrong.append((event, share))
    if wrong:
        event, share = wrong[0]
        say(
            f"`pct_missing` is too low for {len(wrong)} of {len(sample)} events that were compared "
            f"with their files: {event.name} lacks {share:.1%} of its pixels, and "
            f"{event.missing_share:.1%} by the catalog, by which --max-missing selects events"
        )


def stamps(path):
    """Returns the stamp of a file of events, and of the files that it links to, as `stamp`.

    Raises:
      InputError: as for check_files.
    """
    return _contents(path).stamps


def _check_event(event, contents):
    size, frames, stored = event.size, event.frames, contents.layout.shape
    if stored[1:] != (size, size, frames):
        raise InputError(
            f"`vil` in {event.file} must have the shape of the catalog, (events, {size}, {size}, "
            f"{frames}) for {event.id}. Received: {stored}."
        )
    if event.index >= min(stored[0], len(contents.ids)):
        raise InputError(
            f"`vil` in {event.file} must have event {event.id} at index {event.index}, as in "
            f"the catalog. Received: {stored[0]} events and {len(contents.ids)} ids."
        )
    id_ = contents.ids[event.index]
    if id_ != event.id.encode()[: contents.id_bytes]:
        raise InputError(
            f"`id` in {event.file} must be that of the catalog, {event.id}, at index "
            f"{event.index}. Received: {id_.decode(errors='replace')}."
        )


@dataclass(frozen=True)
class _Contents:
    """The contents of a file: the ids (bytes) of its events and the places of their pixels.

    Attributes:
      stamps: a stamp of each file that was read: the file of the catalog, and those it links to.
      ids: the ids, bytes.
      id_bytes: length to which the ids were truncated, or None if it has no limit.
      layout: the hdf5.Layout of `vil`.
    """

    stamps: tuple
    ids: list
    id_bytes: int | None
    layout: hdf5.Layout


def stamp(path):
    """Returns (path, size in bytes, time of change in ns), which identify what a file holds."""
    status = os.stat(path)
    return os.fspath(path), status.st_size, status.st_mtime_ns


def _contents(path):
    try:
        contents = _CONTENTS.get(path)
        if contents is None or contents.stamps != tuple(
            stamp(each) for each, *_ in contents.stamps
        ):
            contents = _read_contents(path)
            if len(_CONTENTS) >= _MOST_CONTENTS:
                _CONTENTS.clear()
            _CONTENTS[path] = contents
        return contents
    except InputError:
        raise
    except hdf5.Unsupported as error:
        raise InputError(
            f"`vil` in {path} must be a data set that can be read here. Received: {error}."
        ) from None
    except hdf5.READ_ERRORS as error:
        raise InputError(
            f"{path} must be readable as HDF5. Received: {_one_line(error)}; check that it is "
            "complete."
        ) from None


def _read_contents(path):
    own = stamp(path)  # before the file is opened, so that a later change is noticed
    with hdf5.open_file(path) as file:
        ids, vil = (_dataset(file, name, path) for name in ("id", "vil"))
        if vil.ndim != 4 or not hdf5.is_of_bytes(vil):
            raise InputError(
                f"`vil` in {path} must be uint8 of shape (events, y, x, time). Received: "
                f"{vil.dtype} of shape {vil.shape}."
            )
        if ids.ndim != 1 or ids.dtype.kind not in "SO":
            raise InputError(
                f"`id` in {path} must be texts of shape (events,). Received: {ids.dtype} of shape "
                f"{ids.shape}."
            )
        layout = hdf5.read_layout(vil)
        hdf5.check_sample(vil, layout)
        linked = {hdf5.file_of(ids), layout.path} - {os.path.abspath(path)}
        return _Contents(
            stamps=(own, *map(stamp, sorted(linked))),
            # At most as many as events, since a corrupted length may be anything.
            ids=[id_ if isinstance(id_, bytes) else str(id_).encode() for id_ in ids[: len(vil)]],
            id_bytes=ids.dtype.itemsize if ids.dtype.kind == "S" else None,
            layout=layout,
        )


def _dataset(file, name, path):
    """Returns a data set of an open file; raises InputError if it has no such data set."""
    import h5py

    link = hdf5.link_of(file, name)
    try:
        found = file.get(name)
    except hdf5.READ_ERRORS:  # what a link leads to is unreadable
        if link is None:
            raise
        found = None
    if isinstance(found, h5py.Dataset):
        _check_filters(found, name, path)
        return found
    if link is not None and found is None:
        raise InputError(
            f"`{name}` in {path} must lead to a data set. Received: {link}, which leads nowhere; "
            "restore what it points to, or correct the link."
        )
    raise InputError(
        f"{path} must have the data set `{name}`. Received: {reprlib.repr(list(file))}."
    )


def _check_filters(dataset, name, path):
    missing = hdf5.missing_filters(dataset)
    if missing:
        raise InputError(
            f"`{name}` in {path} must be compressed by filters that are installed. Received: "
            f"{' and '.join(missing)}, which is a plugin of HDF5; pip install hdf5plugin, and set "
            "HDF5_PLUGIN_PATH to the folder that `python -c 'import hdf5plugin; "
            "print(hdf5plugin.PLUGIN_PATH)'` prints."
        )


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__
