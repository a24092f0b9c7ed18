"""The SEVIR data set: its constants, its catalogue, its events and how they are read.

A root holds `CATALOG.csv` and `data/<file_name>`; a file holds `id` and `vil`, uint8 codes of
shape (event, y, x, time), 1 km and 5 minutes apart. No TensorFlow here.

Source: Veillette et al., NeurIPS 2020, and the catalogue published with the data.
"""

import contextlib
import csv
import dataclasses
import datetime
import functools
import os
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from keras_nowcast.data import hdf5
from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAME_MINUTES, FRAMES_IN, FRAMES_OUT, MISSING

WINDOW_STRIDE = 12  # frames; the authors' windows start at 0, 12 and 24
SPLIT_TIME = datetime.datetime(2019, 6, 1)
AUTHORS_BATCH = 8  # events; the authors drop what does not fill a batch

CATALOGUE_COLUMNS = (
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
_LONGEST_ID = 100  # characters; SEVIR's have 14 at most
_DATE_FORMS = ("%m/%d/%y %H:%M", "%m/%d/%Y %H:%M", "%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S")


# ---- the catalogue ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One event of the catalogue: `frames` radar images of `size` x `size` pixels.

    Attributes:
      id: the catalogue's id; several events may share it, at different times.
      file: absolute path of the HDF5 file.
      index: the event's place on the first axis of `vil`.
      time: time_utc, naive, UTC.
      missing_share: share of missing pixels over all frames, 0 to 1.
      frames: number of frames.
      size: pixels along a side.
      event_type: "Hail", "Tornado", ...; empty for SEVIR's random events.
      first_minute: of the first frame, counted from `time`.
    """

    id: str
    file: Path
    index: int
    time: datetime.datetime
    missing_share: float
    frames: int
    size: int
    event_type: str = ""
    first_minute: int = 0

    @property
    def name(self):
        """The event among all others, in words: id and time."""
        return f"{self.id} {self.time:%Y-%m-%d %H:%M}"

    def frame_time(self, frame):
        """Returns when a frame was observed, as a naive datetime, UTC."""
        return self.time + datetime.timedelta(minutes=self.first_minute + frame * FRAME_MINUTES)


@dataclass(frozen=True)
class Split:
    """Training and test events, each sorted by time, and one line that says how they were split."""

    train: list
    test: list
    note: str


def read_catalogue(root, say=print):
    """Reads the radar (`vil`) events of a SEVIR data set.

    Rows of other image types are passed over. An id with several rows of one time is ambiguous
    and dropped; the same id at another time is another event. Events whose file is absent are
    dropped, since SEVIR is often downloaded in part.

    Args:
      root: the folder with CATALOG.csv and data/.
      say: called with one line about what was dropped, if anything was.

    Returns:
      Events sorted by time, then id, file and index.

    Raises:
      InputError: no folder, no catalogue, no vil rows, a faulty row, or none of the files there.

    Source: pct_missing is a share from 0 to 1 in spite of its name (0.546938 of a published event
    is a whole number of its 49 x 384 x 384 pixels only so). Choice: a catalogue in which it
    exceeds 1 is read as percent.
    """
    root, events = _read_rows(root)
    events = _drop_ambiguous(events, lambda event: (event.id, event.time), say)
    return _drop_absent(root, events, say)


def present_events(root, say=print):
    """Reads all radar events whose file is there, also those of an id that is repeated.

    Raises:
      InputError: as read_catalogue does.
    """
    return _drop_absent(*_read_rows(root), say)


def _read_rows(root):
    """Returns the root as an absolute path and an Event of every vil row, sorted."""
    root = Path(root).absolute()
    path = root / "CATALOG.csv"
    if not os.path.isdir(root):  # not Path.is_dir, which raises where a name is too long
        raise InputError(
            f"`--data` must be a folder with CATALOG.csv and data/. Received: {root}, no folder."
        )
    if not path.is_file():
        raise InputError(
            f"`--data` must be a folder with CATALOG.csv and data/. Received: {root}, which has "
            "no CATALOG.csv."
        )
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            # Strict: a quote that never ends would else swallow the rows after it.
            events = _parse_rows(root, path, csv.reader(file, strict=True))
    except (OSError, csv.Error) as error:  # of csv: quotes that never end, bytes that are no text
        raise InputError(
            f"`--data` must have a catalogue that can be read. Received: {path} ({error})."
        ) from None
    if not events:
        raise InputError(
            f"`--data` must have radar events, rows with img_type vil. Received: {path}, which "
            "has none."
        )
    return root, sorted(_shares(path, events), key=_by_time)


def _parse_rows(root, path, rows):
    place = _columns(path, next(rows, []))
    events = []
    for row in rows:
        if len(row) > place["img_type"] and row[place["img_type"]] == "vil":
            try:
                events.append(_parse_row(root, row, place))
            except _FaultyCell as fault:
                raise InputError(
                    f"`--data` has a faulty row in {path}, line {rows.line_num}: {fault}. Correct "
                    "the row, or take it out."
                ) from None
    return events


def _columns(path, header):
    needed = (
        "id",
        "file_name",
        "file_index",
        "img_type",
        "time_utc",
        "minute_offsets",
        "event_type",
        "size_x",
        "size_y",
        "pct_missing",
    )
    absent = [name for name in needed if name not in header]
    if absent:
        raise InputError(
            f"`--data` must have SEVIR's catalogue. Received: {path} without the columns "
            f"{', '.join(absent)}."
        )
    return {name: header.index(name) for name in needed}


class _FaultyCell(ValueError):
    """A cell of the catalogue breaks its rule."""

    def __init__(self, name, rule, text):
        super().__init__(f"`{name}` must be {rule}. Received: {reprlib.repr(text)}")


def _parse_row(root, row, place):
    if len(row) <= max(place.values()):
        raise _FaultyCell("row", "as long as the header", row)
    value = {name: row[column] for name, column in place.items()}
    if not 1 <= len(value["id"]) <= _LONGEST_ID:
        raise _FaultyCell("id", f"of 1 to {_LONGEST_ID} characters", value["id"])
    size = _whole_number("size_x", value["size_x"], least=1)
    if _whole_number("size_y", value["size_y"], least=1) != size:
        raise _FaultyCell("size_y", f"size_x, {size}", value["size_y"])
    offsets = value["minute_offsets"].split(":")
    first, *_, last = [_whole_number("minute_offsets", each) for each in [*offsets, offsets[-1]]]
    time = _parse_time(value["time_utc"])
    for minute in (first, last):
        try:
            time + datetime.timedelta(minutes=minute)
        except OverflowError:
            raise _FaultyCell("minute_offsets", f"minutes from {time}", str(minute)) from None
    return Event(
        id=value["id"],
        file=root / "data" / _parse_file_name(value["file_name"]),
        index=_whole_number("file_index", value["file_index"], least=0),
        time=time,
        missing_share=_parse_share(value["pct_missing"]),
        frames=len(offsets),
        first_minute=first,
        size=size,
        event_type=value["event_type"],
    )


def _whole_number(name, text, least=None):
    with contextlib.suppress(ValueError):
        number = int(text)
        if least is None or number >= least:
            return number
    rule = "a whole number" if least is None else f"a whole number of at least {least}"
    raise _FaultyCell(name, rule, text)


def _parse_share(text):
    with contextlib.suppress(ValueError):
        share = float(text)
        if 0 <= share <= 100:  # NaN is not
            return share
    raise _FaultyCell("pct_missing", "a number from 0 to 100", text)


def _parse_file_name(text):
    """A catalogue is data like any other: it may not name files outside of its own folder."""
    name = PurePosixPath(text)
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise _FaultyCell("file_name", "a path below data/", text)
    return name


def _parse_time(text):
    """Reads SEVIR's own form, or that of copies which went through a spreadsheet (6/1/19 0:00)."""
    with contextlib.suppress(ValueError, OverflowError):
        time = datetime.datetime.fromisoformat(text)
        return time.astimezone(datetime.timezone.utc).replace(tzinfo=None) if time.tzinfo else time
    for form in _DATE_FORMS:
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(text, form)
    raise _FaultyCell("time_utc", "a time, as 2019-06-01 00:00:00", text)


def _shares(path, events):
    """Returns the events with missing_share from 0 to 1, also where the catalogue has percent."""
    if max(event.missing_share for event in events) <= 1:
        return events
    return [dataclasses.replace(event, missing_share=event.missing_share / 100) for event in events]


def _by_time(event):
    return event.time, event.id, str(event.file), event.index


def _drop_ambiguous(events, key, say):
    rows = Counter(map(key, events))
    kept = [event for event in events if rows[key(event)] == 1]
    if not kept:
        raise InputError(
            f"`--data` must have events of unique id. Received: {len(events)} rows, all repeated."
        )
    if len(kept) < len(events):
        say(f"dropped {len(events) - len(kept)} catalogue rows whose id is repeated")
    return kept


def _drop_absent(root, events, say):
    there = {file for file in {event.file for event in events} if os.path.isfile(file)}
    kept = [event for event in events if event.file in there]
    if not kept:
        raise InputError(
            f"`--data` must hold the catalogue's files under data/. Received: {root}, where none "
            f"of them is; the first would be {events[0].file}."
        )
    if len(kept) < len(events):
        absent = sorted({event.file for event in events} - there)
        say(
            f"dropped {len(events) - len(kept)} of {len(events)} events whose file is absent "
            f"({len(absent)} file{'s' * (len(absent) > 1)}, {absent[0].name} the first)"
        )
    return kept


def select_events(events, max_missing):
    """Returns the events of which at most a share `max_missing` (0 to 1) of pixels is missing.

    Raises:
      InputError: none is left.
    """
    kept = [event for event in events if event.missing_share <= max_missing]
    if not kept:
        least = min(event.missing_share for event in events)
        raise InputError(
            f"`--max-missing` leaves none of {len(events)} events; the most complete one lacks "
            f"{least:.6f} of its pixels. Received: {max_missing}."
        )
    return kept


def split_events(events, train_before=None, test_from=None):
    """Splits events by time into training and test.

    Args:
      events: Events.
      train_before: datetime; events up to it, inclusive, are for training.
      test_from: datetime; events strictly later are for the test. Where one of the two is None it
        is the other; where both are, 2019-06-01.

    Returns:
      A Split. If neither date is given and all events lie on one side of 2019-06-01, the test set
      is the last fifth by time: the fewest last times that hold at least a fifth of the events.
      Events of one time are never divided, because they may be crops of one storm.

    Raises:
      InputError: one side is empty, or an event would be on both.

    Source: the dates are the authors'. Choice: the last fifth.
    """
    events = sorted(events, key=_by_time)
    by_default = train_before is None and test_from is None
    train_before, test_from = (
        train_before or test_from or SPLIT_TIME,
        test_from or train_before or SPLIT_TIME,
    )
    if test_from < train_before:
        raise InputError(
            "`--test-from` must not be before `--train-before`, or events would be in both sets. "
            f"Received: {test_from} and {train_before}."
        )
    train = [event for event in events if event.time <= train_before]
    test = [event for event in events if event.time > test_from]
    how = f"up to {train_before:%Y-%m-%d %H:%M} and after {test_from:%Y-%m-%d %H:%M}"
    if by_default and not (train and test):
        train, test = _last_fifth(events)
        how = f"the last fifth by time, since none lies on the other side of {SPLIT_TIME:%Y-%m-%d}"
    for name, side in (("training", train), ("test", test)):
        if not side:
            raise InputError(
                f"`--train-before` and `--test-from` leave no {name} events of {len(events)} from "
                f"{events[0].time} to {events[-1].time}. Received: {train_before} and {test_from}."
            )
    note = f"{len(train)} events to train and {len(test)} to test ({how})"
    return Split(train, test, note)


def _last_fifth(events):
    times = sorted({event.time for event in events})
    for first in reversed(times[1:]):
        test = [event for event in events if event.time >= first]
        if 5 * len(test) >= len(events):
            break
    else:
        raise InputError(
            f"`--data` must have events at two times at least, to train and to test. Received: "
            f"{len(events)} events at {len(times)} time."
        )
    return [event for event in events if event.time < first], test


def authors_split(root, say=print):
    """Splits a SEVIR data set as its authors did.

    Complete events only; an id which then still has several rows is dropped, whatever their
    times; on each side of 2019-06-01 the events are taken in the order of their ids and what does
    not fill a batch of 8 is dropped. The published catalogue gives 3 x 8 x 1,865 training and
    3 x 8 x 506 test windows so.

    Raises:
      InputError: as read_catalogue, select_events and split_events do; or a side has no batch.

    Source: the data generator of the SEVIR authors.
    """
    root, events = _read_rows(root)
    events = _drop_ambiguous(select_events(events, 0), lambda event: event.id, say)
    split = split_events(_drop_absent(root, events, say), SPLIT_TIME, SPLIT_TIME)
    train, test = (_whole_batches(side) for side in (split.train, split.test))
    if not (train and test):
        raise InputError(
            f"`--authors-split` needs {AUTHORS_BATCH} complete events at least on each side of "
            f"{SPLIT_TIME:%Y-%m-%d}. Received: {len(split.train)} and {len(split.test)}; leave it "
            "out for a small data set."
        )
    note = f"{len(train)} events to train and {len(test)} to test (the authors' rule)"
    return Split(train, test, note)


def read_split(root, max_missing, train_before, test_from, authors=False, say=print):
    """Reads a data set's catalogue and splits its events.

    Args:
      root, say: as read_catalogue takes them.
      max_missing: as select_events takes it.
      train_before, test_from: as split_events takes them.
      authors: whether to follow authors_split, which has its own rules for all of these.

    Raises:
      InputError: as those functions do.
    """
    if authors:
        return authors_split(root, say)
    events = select_events(read_catalogue(root, say), max_missing)
    return split_events(events, train_before, test_from)


def _whole_batches(events):
    kept = len(events) // AUTHORS_BATCH * AUTHORS_BATCH
    return sorted(sorted(events, key=lambda event: event.id)[:kept], key=_by_time)


def window_starts(frames, stride=WINDOW_STRIDE):
    """Returns the first frame of each window of 13 + 12 frames: 0, stride, 2 stride, ..."""
    return range(0, frames - FRAMES_IN - FRAMES_OUT + 1, stride)


def cut_window(vil, start, out=None):
    """Cuts one window out of an event.

    Args:
      vil: (y, x, time) uint8, contiguous.
      start: the window's first frame.
      out: where to put it, two contiguous arrays as returned; None makes them.

    Returns:
      (y, x, 13) input and (y, x, 12) target codes, uint8, each contiguous.
    """
    y, x, _ = vil.shape
    if out is None:
        out = np.empty((y, x, FRAMES_IN), np.uint8), np.empty((y, x, FRAMES_OUT), np.uint8)
    for frames in out:
        # The frames of a pixel are copied as one item, in half the time of byte by byte.
        item = f"V{frames.shape[-1]}"
        items = np.ndarray((y, x), item, frames)
        items[...] = np.ndarray((y, x), item, vil, start, vil.strides[:2])
        start += frames.shape[-1]
    return out


# ---- the pixels -------------------------------------------------------------------------------


def read_event(event, grid=None):
    """Reads all frames of an event.

    The file is read once, and what is compressed is decompressed outside of any lock, so that
    threads can read at the same time.

    Args:
      event: an Event.
      grid: pixels along a side of the result, a divisor of the stored size; None for that size.

    Returns:
      (y, x, time) uint8 codes, contiguous, perhaps read-only. On a coarser grid the block_mean.

    Raises:
      InputError: a damaged file, or one that does not hold what the catalogue says.
    """
    contents = _contents(event.file)
    _check_event(event, contents)
    try:
        vil = hdf5.read_item(event.file, contents.layout, event.index)
    except hdf5.READ_ERRORS as error:
        raise InputError(
            f"event {event.id} in {event.file} cannot be read; is the file whole? "
            f"Received: {_one_line(error)}."
        ) from None
    if grid is None or grid == event.size:
        return vil
    return block_mean(vil, block_factor(event, grid))


def block_factor(event, grid):
    """Returns how many stored pixels make one of the grid's along a side.

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
    """Averages blocks of factor x factor pixels over their valid ones.

    Args:
      vil: (y, x, time) uint8 codes.
      factor: pixels along a side of a block; divides y and x.

    Returns:
      (y / factor, x / factor, time) uint8: the mean code, rounded to the nearest, halves up; 255
      where a block has no valid pixel.
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
    """Opens each file of the events once and compares it with the catalogue.

    Raises:
      InputError: a file cannot be opened, lacks `vil` or `id`, or holds another shape, type,
        number of events or id than the catalogue says.
    """
    for event in events:
        _check_event(event, _contents(event.file))


def _check_event(event, contents):
    size, frames, stored = event.size, event.frames, contents.layout.shape
    if stored[1:] != (size, size, frames):
        raise InputError(
            f"`vil` in {event.file} must have the catalogue's shape, (events, {size}, {size}, "
            f"{frames}) for {event.id}. Received: {stored}."
        )
    if event.index >= min(stored[0], len(contents.ids)):
        raise InputError(
            f"`vil` in {event.file} must hold event {event.id} at index {event.index}, as the "
            f"catalogue says. Received: {stored[0]} events and {len(contents.ids)} ids."
        )
    id_ = contents.ids[event.index]
    if id_ != event.id.encode()[: contents.id_bytes]:
        raise InputError(
            f"`id` in {event.file} must be the catalogue's, {event.id}, at index {event.index}. "
            f"Received: {id_.decode(errors='replace')}."
        )


@dataclass(frozen=True)
class _Contents:
    """What a file holds: the ids (bytes) of its events and where their pixels lie."""

    ids: list
    id_bytes: int | None  # ids of a fixed length were cut to it
    layout: hdf5.Layout


def _contents(path):
    try:
        status = os.stat(path)
        return _read_contents(path, status.st_size, status.st_mtime_ns)
    except InputError:
        raise
    except hdf5.READ_ERRORS as error:
        raise InputError(
            f"{path} cannot be read as HDF5; is it whole? Received: {_one_line(error)}."
        ) from None


@functools.lru_cache(maxsize=4096)
def _read_contents(path, size, mtime_ns):
    """Size and time are there so that a file that was replaced is read anew."""
    import h5py

    with hdf5.open_file(path) as file:
        for name in ("id", "vil"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise InputError(
                    f"{path} must hold the data set `{name}`. Received: {reprlib.repr(list(file))}."
                )
        ids, vil = file["id"], file["vil"]
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
        return _Contents(
            # No more than there are events: a damaged length may be anything.
            ids=[id_ if isinstance(id_, bytes) else str(id_).encode() for id_ in ids[: len(vil)]],
            id_bytes=ids.dtype.itemsize if ids.dtype.kind == "S" else None,
            layout=hdf5.read_layout(vil),
        )


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__
