"""The catalog of a SEVIR data set: reads CATALOG.csv into events.

A faulty catalog is refused in one line that names the file, the row and the column.
"""

import contextlib
import csv
import dataclasses
import datetime
import math
import os
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAME_MINUTES

CATALOG_COLUMNS = (
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
_CORNERS = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon")  # optional
_LONGEST_ID = 100  # characters; SEVIR's have 14 at most
_DATE_FORMS = ("%m/%d/%y %H:%M", "%m/%d/%Y %H:%M", "%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S")


@dataclass(frozen=True)
class Event:
    """One event of the catalog: `frames` radar images of `size` x `size` pixels.

    Attributes:
      id: as in the catalog; several events at different times may share it.
      file: absolute path of the HDF5 file.
      index: index of the event on the first axis of `vil`.
      time: time_utc, naive, UTC.
      missing_share: fraction of missing pixels over all frames, 0 to 1.
      frames: number of frames.
      size: pixels along a side.
      event_type: "Hail", "Tornado", ...; empty for the random events of SEVIR.
      first_minute: minutes from `time` to the first frame.
      width_km: width of the images, or None if the catalog does not state it.
      box: (south, west, north, east) in degrees, of its lower left and upper right corners. A tile
        that is tilted against the meridians reaches a little further. None if the catalog does not
        state the corners, or not as such a box.
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
    width_km: float | None = None
    box: tuple | None = None

    @property
    def name(self):
        """The id and time as text, which identify the event."""
        return f"{self.id} {self.time:%Y-%m-%d %H:%M}"

    def frame_time(self, frame):
        """Returns the time of a frame, as a naive datetime, UTC."""
        return self.time + datetime.timedelta(minutes=self.first_minute + frame * FRAME_MINUTES)


def read_catalog(root, say=print):
    """Reads the radar (`vil`) events of a SEVIR data set.

    Rows of other image types are ignored. An id with several rows of the same time is ambiguous and
    is dropped; the same id at another time is another event. Events whose file is absent are
    dropped, since SEVIR is often downloaded in part.

    Args:
      root: the folder with CATALOG.csv and data/.
      say: function that takes one line about what was dropped, if anything was.

    Returns:
      Events sorted by time, then id, file and index.

    Raises:
      InputError: there is no folder, catalog, vil row or file, or a row is faulty.

    Source: despite its name, pct_missing is a fraction from 0 to 1: only then is 0.546938 of a
    published event a whole number of its 49 x 384 x 384 pixels. Choice: a catalog in which it
    exceeds 1 is read as percent.
    """
    root, events = read_rows(root)
    events = drop_ambiguous(events, lambda event: (event.id, event.time), say)
    return drop_absent(root, events, say)


def present_events(root, say=print):
    """Reads all radar events whose file exists, including those of a repeated id.

    Raises:
      InputError: as for read_catalog.
    """
    return drop_absent(*read_rows(root), say)


def read_column(root, name):
    """Reads one more column of a catalog that `read_catalog` has accepted.

    Returns:
      {(file, index) of an Event: its text in the column}, None if there is no such column.
    """
    root = Path(root).absolute()
    with open(root / "CATALOG.csv", newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file, strict=True)
        if name not in rows.fieldnames:
            return None
        return {
            (root / "data" / row["file_name"], int(row["file_index"])): row[name]
            for row in rows
            if row["img_type"] == "vil"
        }


def read_rows(root):
    """Returns the root as an absolute path, and one Event per vil row, sorted."""
    root = Path(root).absolute()
    path = root / "CATALOG.csv"
    if not os.path.isdir(root):  # not Path.is_dir, which raises if a name is too long
        raise InputError(
            f"`--data` must be a folder with CATALOG.csv and data/. Received: {root}, "
            "which is not a folder."
        )
    if not path.is_file():
        raise InputError(
            f"`--data` must be a folder with CATALOG.csv and data/. Received: {root}, which has "
            "no CATALOG.csv."
        )
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            # Strict, since otherwise an unclosed quote swallows the rows after it.
            events = _parse_rows(root, path, csv.reader(file, strict=True))
    except (OSError, csv.Error) as error:  # from csv: an unclosed quote, or bytes that are not text
        raise InputError(
            f"`--data` must have a readable catalog. Received: {path} ({error}); correct the file."
        ) from None
    if not events:
        raise InputError(
            f"`--data` must have radar events, rows with img_type vil. Received: {path}, which "
            "has none."
        )
    return root, sorted(_shares(path, events), key=by_time)


def _parse_rows(root, path, rows):
    place = _columns(path, next(rows, []))
    events = []
    for row in rows:
        if len(row) > place["img_type"] and row[place["img_type"]] == "vil":
            try:
                events.append(_parse_row(root, row, place))
            except _FaultyCell as fault:
                raise InputError(
                    f"`--data` has a faulty row in {path}, line {rows.line_num}: {fault}; correct "
                    "the row, or remove it."
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
            f"`--data` must have a catalog like SEVIR's. Received: {path} without the columns "
            f"{', '.join(absent)}."
        )
    optional = ("width_m", *_CORNERS)
    return {name: header.index(name) for name in (*needed, *optional) if name in header}


class _FaultyCell(ValueError):
    """A cell of the catalog breaks its rule."""

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
        width_km=_parse_width(value.get("width_m", "")),
        box=_parse_box([value.get(name, "") for name in _CORNERS]),
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


def _parse_width(text):
    """Returns meters as km, or None if the text is no width; only the power spectrum needs it."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:  # NaN is not
            return float(text) / 1000
    return None


def _parse_box(corners):
    """Returns four numbers as a box, or None if they are none; nothing else depends on them."""
    with contextlib.suppress(ValueError):
        south, west, north, east = map(float, corners)
        if -90 <= south < north <= 90 and -180 <= west < east <= 360:  # NaN is not
            return south, west, north, east
    return None


def _parse_file_name(text):
    """Returns a relative path; a catalog must not name files outside its folder."""
    name = PurePosixPath(text)
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise _FaultyCell("file_name", "a path below data/", text)
    return name


def _parse_time(text):
    """Parses a time in the form of SEVIR, or in that of a spreadsheet (6/1/19 0:00)."""
    with contextlib.suppress(ValueError, OverflowError):
        time = datetime.datetime.fromisoformat(text)
        return time.astimezone(datetime.timezone.utc).replace(tzinfo=None) if time.tzinfo else time
    for form in _DATE_FORMS:
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(text, form)
    raise _FaultyCell("time_utc", "a time, as 2019-06-01 00:00:00", text)


def _shares(path, events):
    """Returns the events with missing_share from 0 to 1, also if the catalog has percent."""
    if max(event.missing_share for event in events) <= 1:
        return events
    return [dataclasses.replace(event, missing_share=event.missing_share / 100) for event in events]


def by_time(event):
    """Returns the key that sorts events: time, then id, file and index."""
    return event.time, event.id, str(event.file), event.index


def drop_ambiguous(events, key, say):
    """Returns the events whose `key(event)` is unique; `say` gets one line about the others.

    Raises:
      InputError: no event is left.
    """
    rows = Counter(map(key, events))
    kept = [event for event in events if rows[key(event)] == 1]
    if not kept:
        raise InputError(
            f"`--data` must have events with unique ids. Received: {len(events)} rows, all "
            "repeated."
        )
    if len(kept) < len(events):
        say(f"dropped {len(events) - len(kept)} catalog rows whose id is repeated")
    return kept


def drop_absent(root, events, say):
    """Returns the events whose file exists; `say` gets one line about the others.

    Raises:
      InputError: no event is left.
    """
    there = {file for file in {event.file for event in events} if os.path.isfile(file)}
    kept = [event for event in events if event.file in there]
    if not kept:
        raise InputError(
            f"`--data` must have the files of the catalog under data/. Received: {root}, which has "
            f"none of them; the first is {events[0].file}."
        )
    if len(kept) < len(events):
        absent = sorted({event.file for event in events} - there)
        say(
            f"dropped {len(events) - len(kept)} of {len(events)} events whose file is absent "
            f"({len(absent)} file{'s' * (len(absent) > 1)}, the first is {absent[0].name})"
        )
    return kept
