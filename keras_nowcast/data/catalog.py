"""The catalog of a SEVIR data set: reads CATALOG.csv into events.

A faulty catalog is refused in one line that names the file, the row and the column.
"""

import contextlib
import csv
import dataclasses
import datetime
import functools
import math
import os
import re
import reprlib
import sys
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
_OTHER_TYPES = ("vis", "ir069", "ir107", "lght")  # of SEVIR
_SLASHED_TIME = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}|\d{2}) (\d{1,2}):(\d{2})(?::(\d{2}))?")


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
      projection: as in the catalog (proj); empty if it does not state one.
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
    projection: str = ""

    @property
    def name(self):
        """The id and time as text, which identify the event."""
        return f"{self.id} {self.time:%Y-%m-%d %H:%M}"

    def frame_time(self, frame):
        """Returns the time of a frame, as a naive datetime, UTC."""
        return self.time + datetime.timedelta(minutes=self.first_minute + frame * FRAME_MINUTES)


def read_catalog(root, say=print):
    """Reads the radar (`vil`) events of a SEVIR data set.

    Rows of SEVIR's other image types are ignored, and rows of unknown types are counted. Events
    whose frames are not 5 minutes apart throughout are dropped. An id with several rows of the same
    time is ambiguous and is dropped; the same id at another time is another event. Events whose
    file is absent are dropped, since SEVIR is often downloaded in part.

    Args:
      root: the folder with CATALOG.csv and data/.
      say: function that takes one line about what was dropped, if anything was.

    Returns:
      Events sorted by time, then id, file and index.

    Raises:
      InputError: there is no folder, catalog, vil row or file, or a row is faulty; no event has
        frames 5 minutes apart; or it is unclear whether dates such as 6/1/19 begin with the month.

    Source: despite its name, pct_missing is a fraction from 0 to 1: only then is 0.546938 of a
    published event a whole number of its 49 x 384 x 384 pixels. Choice: a catalog in which it
    exceeds 1 is read as percent.
    """
    root, events = read_rows(root, say)
    events = drop_ambiguous(events, lambda event: (event.id, event.time), say)
    return drop_absent(root, events, say)


def present_events(root, say=print):
    """Reads all radar events whose file exists, including those of a repeated id.

    Raises:
      InputError: as for read_catalog.
    """
    return drop_absent(*read_rows(root, say), say)


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
            if is_radar(row["img_type"])
        }


def is_radar(img_type):
    """Returns True if a cell of img_type says vil, in whatever letters."""
    return img_type.strip().lower() == "vil"


def read_rows(root, say):
    """Returns the root as an absolute path, and one Event per vil row, sorted.

    Events whose frames are not 5 minutes apart are left out; `say` gets a line about them, and
    about rows of unknown types.
    """
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
            events = _parse_rows(root, path, csv.reader(file, strict=True), say)
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


def _parse_rows(root, path, rows, say):
    place = _columns(path, next(rows, []))
    radar, unknown = [], Counter()
    for row in rows:
        img_type = row[place["img_type"]] if len(row) > place["img_type"] else ""
        if is_radar(img_type):
            radar.append((rows.line_num, row))
        elif row and img_type.strip().lower() not in _OTHER_TYPES:
            unknown[img_type] += 1
    if unknown:
        say(
            f"left out {unknown.total()} catalog rows that are not of an img_type of SEVIR "
            f"(the first has {reprlib.repr(next(iter(unknown)))})"
        )
    cells = [row[place["time_utc"]] for _, row in radar if len(row) > place["time_utc"]]
    day_first = _is_day_first(path, cells)
    events, uneven = [], []
    for line, row in radar:
        try:
            event, is_even = _parse_row(root, row, place, day_first)
        except _FaultyCell as fault:
            raise InputError(
                f"`--data` has a faulty row in {path}, line {line}: {fault}; correct "
                "the row, or remove it."
            ) from None
        (events if is_even else uneven).append(event)
    _check_even(path, events, uneven, say)
    return events


def _check_even(path, events, uneven, say):
    """Reports the events whose frames are not 5 minutes apart; raises if no others are left."""
    if not uneven:
        return
    if not events:
        raise InputError(
            f"`--data` must have events whose frames are {FRAME_MINUTES} minutes apart, by "
            f"`minute_offsets` of the catalog, since forecasts are for every {FRAME_MINUTES} "
            f"minutes. Received: {path}, where none of {len(uneven)} events has such frames; the "
            f"first is {uneven[0].name}."
        )
    say(
        f"left out {len(uneven)} of {len(events) + len(uneven)} events whose frames are not "
        f"{FRAME_MINUTES} minutes apart, by `minute_offsets` (the first is {uneven[0].name})"
    )


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
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and set(needed) <= set(header[0].split(separator)):
            raise InputError(
                f"`--data` must have a catalog whose cells are separated by commas. Received: "
                f"{path}, where {name} separate them; save it with commas."
            )
    if absent:
        raise InputError(
            f"`--data` must have a catalog like SEVIR's. Received: {path} without the columns "
            f"{', '.join(absent)}."
        )
    optional = ("width_m", "height_m", "proj", *_CORNERS)
    return {name: header.index(name) for name in (*needed, *optional) if name in header}


class _FaultyCell(ValueError):
    """A cell of the catalog breaks its rule."""

    def __init__(self, name, rule, text):
        super().__init__(f"`{name}` must be {rule}. Received: {reprlib.repr(text)}")


def _parse_row(root, row, place, day_first):
    """Returns the Event of a row, and whether its frames are 5 minutes apart throughout."""
    if len(row) <= max(place.values()):
        raise _FaultyCell("row", "as long as the header", row)
    value = {name: row[column] for name, column in place.items()}
    if not 1 <= len(value["id"]) <= _LONGEST_ID:
        raise _FaultyCell("id", f"of 1 to {_LONGEST_ID} characters", value["id"])
    size = _whole_number("size_x", value["size_x"], least=1)
    if _whole_number("size_y", value["size_y"], least=1) != size:
        raise _FaultyCell("size_y", f"size_x, {size}", value["size_y"])
    first, last, frames, is_even = _parse_offsets(value["minute_offsets"])
    time = _parse_time(value["time_utc"], day_first)
    for minute in (first, last):
        try:
            time + datetime.timedelta(minutes=minute)
        except OverflowError:
            raise _FaultyCell("minute_offsets", f"minutes from {time}", str(minute)) from None
    width_km, height_km = (_parse_length(value.get(name, "")) for name in ("width_m", "height_m"))
    if width_km and height_km and not math.isclose(width_km, height_km, rel_tol=0.01):
        raise _FaultyCell("height_m", f"width_m, {value['width_m']}", value["height_m"])
    event = Event(
        id=value["id"],
        file=root / "data" / _parse_file_name(value["file_name"]),
        index=_whole_number("file_index", value["file_index"], least=0),
        time=time,
        missing_share=_parse_share(value["pct_missing"]),
        frames=frames,
        first_minute=first,
        size=size,
        event_type=value["event_type"],
        width_km=width_km,
        box=_parse_box([value.get(name, "") for name in _CORNERS]),
        projection=sys.intern(" ".join(value.get("proj", "").split())),
    )
    return event, is_even


@functools.lru_cache(maxsize=1024)  # nearly all events of a catalog have the same text
def _parse_offsets(text):
    """Returns the first and last minute, the number of frames, and whether they are even."""
    minutes = [_whole_number("minute_offsets", each) for each in text.split(":")]
    even = range(minutes[0], minutes[0] + FRAME_MINUTES * len(minutes), FRAME_MINUTES)
    return minutes[0], minutes[-1], len(minutes), minutes == list(even)


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


def _parse_length(text):
    """Returns meters as km, or None if the text is no length."""
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


def _is_day_first(path, cells):
    """Returns True if dates such as 13/6/19 begin with the day, by all cells of the column.

    Raises:
      InputError: it is unclear, or some begin with the month and some with the day.
    """
    readings = {text: [_slashed_time(text, way) for way in (False, True)] for text in cells}
    readings = {text: both for text, both in readings.items() if any(both)}
    by_month, by_day = (all(both[way] for both in readings.values()) for way in (0, 1))
    unclear = [text for text, (month, day) in readings.items() if month != day]
    if unclear and by_month == by_day:
        raise InputError(
            f"`--data` must have dates that can be read in one way. Received: {path}, whose "
            f"`time_utc` {'may begin' if by_month else 'begins here and there'} with the month or "
            f"with the day, as in {unclear[0]}; write it as 2019-06-01 00:00:00."
        )
    return by_day and not by_month


def _slashed_time(text, day_first):
    """Returns the time of a text as spreadsheets write it (6/1/19 0:00), or None."""
    match = _SLASHED_TIME.fullmatch(text)
    if match is None:
        return None
    month, day, year, hour, minute, second = (int(each or 0) for each in match.groups())
    if day_first:
        month, day = day, month
    if len(match[3]) == 2:
        year += 2000 if year < 69 else 1900  # as POSIX reads two digits
    with contextlib.suppress(ValueError):
        return datetime.datetime(year, month, day, hour, minute, second)
    return None


def _parse_time(text, day_first):
    """Parses a time in the form of SEVIR, or in that of a spreadsheet."""
    with contextlib.suppress(ValueError, OverflowError):
        time = datetime.datetime.fromisoformat(text)
        return time.astimezone(datetime.timezone.utc).replace(tzinfo=None) if time.tzinfo else time
    time = _slashed_time(text, day_first)
    if time is None:
        raise _FaultyCell("time_utc", "a time, as 2019-06-01 00:00:00", text)
    return time


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
