"""The sets that the events of a data set are divided into."""

import datetime
import time

import pytest

from keras_nowcast.data import catalog, sevir, splits
from keras_nowcast.errors import InputError

DATE = datetime.datetime.fromisoformat
PLACES = {"west": (30.0, -100.0, 33.0, -96.0), "east": (30.0, -90.0, 33.0, -86.0)}


def _event(time, **values):
    defaults = {"id": "S0", "file": None, "index": 0, "missing_share": 0.0, "frames": 49, "size": 8}
    if isinstance(time, str):
        time = DATE(time)
    return catalog.Event(time=time, **defaults | values)


def _events(*times):
    return [_event(time) for time in times]


def _days(count, year=2010):
    return [_event(DATE(f"{year}-03-01 12:00") + datetime.timedelta(k)) for k in range(count)]


def _times(events):
    return [f"{event.time:%m-%d %H:%M}" for event in events]


def _counts(split):
    return len(split.train), len(split.validation), len(split.test)


def test_selection_by_share_of_missing_pixels():
    events = [_event("2018-01-01", missing_share=share) for share in (0, 0.1, 0.2)]
    assert len(splits.select_events(events, 1)) == 3
    assert len(splits.select_events(events, 0.1)) == 2
    assert len(splits.select_events(events, 0)) == 1
    with pytest.raises(InputError, match=r"`--max-missing`.*0\.1"):
        splits.select_events(events[1:], 0)


# ---- the dates --------------------------------------------------------------------------------


def test_the_dates_of_the_published_tables():
    times = ["2019-06-01 00:05", "2019-06-01 00:00", "2018-02-03", "2019-01-01 00:05"]
    times += ["2019-01-01 00:00", "2019-11-30"]
    split = splits.split_events([_event(time, frames=1) for time in times])
    assert _times(split.train) == ["02-03 00:00", "01-01 00:00"]
    assert _times(split.validation) == ["01-01 00:05", "06-01 00:00"]
    assert _times(split.test) == ["06-01 00:05", "11-30 00:00"]
    assert (split.train_before, split.test_from) == (DATE("2019-01-01"), DATE("2019-06-01"))


def test_a_catalog_of_sevirs_dates(tmp_path, catalog_row, write_catalog):
    """Counted by hand: one event a day at noon, 2017-06-13 to 2019-11-30, no pixels."""
    first = datetime.datetime(2017, 6, 13, 12)
    days = (datetime.datetime(2019, 11, 30, 12) - first).days + 1
    rows = [
        catalog_row(id=f"S{k}", time_utc=str(first + datetime.timedelta(k)), file_index=k)
        for k in range(days)
    ]
    write_catalog(tmp_path, rows)
    split = splits.read_split(tmp_path, 1.0, None, None, say=pytest.fail)
    # 202 days of 2017 and 365 of 2018; January to May of 2019; June to November.
    assert _counts(split) == (202 + 365, 31 + 28 + 31 + 30 + 31, 30 + 31 + 31 + 30 + 31 + 30)
    assert split.left_out == 0
    windows = [sevir.count_windows(each) for each in (split.train, split.validation, split.test)]
    assert windows == [3 * 567, 3 * 151, 3 * 183]
    assert [sevir.count_windows(split.test, most=most) for most in (500, 600)] == [500, 549]


def test_given_dates_have_what_lies_between_for_validation():
    events = _days(6)
    dates = DATE("2010-03-02 12:00"), DATE("2010-03-04 12:00")
    split = splits.split_events(events, *dates)
    assert _times(split.train) == ["03-01 12:00", "03-02 12:00"]
    assert _times(split.validation) == ["03-03 12:00", "03-04 12:00"]
    assert _times(split.test) == ["03-05 12:00", "03-06 12:00"]
    assert (split.train_before, split.test_from) == dates
    assert split.note == (
        "2 events to train, 2 to validate and 2 to test (training up to 2010-03-02 12:00:00, "
        "validation up to 2010-03-04 12:00:00, test later)"
    )


@pytest.mark.parametrize(
    ("given", "train_before", "test_from"),
    [
        ({"train_before": "2018-06-01"}, "2018-06-01", "2019-06-01"),
        ({"train_before": "2020-06-01"}, "2020-03-06 23:59:59", "2020-06-01"),
        ({"test_from": "2020-03-09"}, "2019-01-01", "2020-03-09"),
        ({"test_from": "2018-03-06"}, "2018-03-04 23:59:59", "2018-03-06"),
    ],
)
def test_one_date_is_given_and_the_other_is_the_default_unless_that_crosses_it(
    given, train_before, test_from
):
    events = _days(10, 2018) + _days(10, 2019) + _days(13, 2020)
    split = splits.split_events(events, **{name: DATE(text) for name, text in given.items()})
    assert (split.train_before, split.test_from) == (DATE(train_before), DATE(test_from))


def test_an_empty_set_is_an_error_except_for_the_test():
    events = _days(10)
    late = DATE("2015-01-01")
    for dates in ({"train_before": late}, {"test_from": late}):
        split = splits.split_events(events, **dates)
        assert _counts(split) == (8, 2, 0)
    early = DATE("2000-01-01")
    with pytest.raises(InputError, match="must leave training events, of 10 from 2010-03-01"):
        splits.split_events(events, early, early)
    with pytest.raises(InputError, match="no event is in two sets"):
        splits.split_events(events, late, early)


# ---- fifths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("events", "validation"), [(2, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_the_last_fifth_of_the_training_days_validates_where_nothing_lies_between(
    events, validation
):
    split = splits.split_events(_days(events, 2018) + _days(4, 2020))
    assert _counts(split) == (events - validation, validation, 4)
    last = f"2018-03-{events - validation:02d} 23:59:59"
    assert (split.train_before, split.test_from) == (DATE(last), DATE("2019-06-01"))
    assert "validation is the last fifth of the events up to 2019-01-01" in split.note
    assert "between days" in split.note


@pytest.mark.parametrize("year", [2010, 2025])
@pytest.mark.parametrize(
    ("events", "counts"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (11, (5, 3, 3))]
)
def test_60_20_20_percent_where_all_lie_on_one_side(year, events, counts):
    split = splits.split_events(_days(events, year))
    assert _counts(split) == counts
    assert split.train_before == DATE(f"{year}-03-{counts[0]:02d} 23:59:59")
    assert split.test_from == DATE(f"{year}-03-{counts[0] + counts[1]:02d} 23:59:59")
    assert "60, 20 and 20% by time, between days" in split.note


def test_60_20_20_percent_without_training_events():
    assert _counts(splits.split_events(_days(5, 2019) + _days(5, 2020))) == (6, 2, 2)


def test_days_are_not_divided():
    """Two days have a fifth of nine events each; the first has one, and is left for training."""
    hours = ["01 12", "02 01", "02 05", "02 13", "02 17", "02 21", "03 02", "03 07", "03 20"]
    split = splits.split_events(_events(*(f"2010-01-{hour}:00" for hour in hours)))
    assert _counts(split) == (1, 5, 3)


def test_times_are_divided_where_days_do_not_suffice():
    times = [f"2010-01-0{day} {hour:02d}:00" for day in (1, 2) for hour in (1, 6, 11, 16, 21)]
    split = splits.split_events(_events(*times))
    assert _counts(split) == (6, 2, 2)
    assert split.train_before == DATE("2010-01-02 01:00")
    assert "between times" in split.note


def test_events_of_one_time_are_not_divided():
    times = ["01 00", "01 05", *["01 10"] * 6, *["01 20"] * 2]
    split = splits.split_events(_events(*(f"2010-01-{time}:00" for time in times)))
    assert _counts(split) == (2, 6, 2)


def test_few_events_before_one_large_day():
    """The last day has nearly all events; each set has at least one day."""
    split = splits.split_events([*_days(2), *[_event("2010-03-09")] * 98])
    assert _counts(split) == (1, 1, 98)
    split = splits.split_events([*[_event("2010-03-01")] * 98, *_days(3)[1:]])
    assert _counts(split) == (98, 1, 1)


def test_too_few_times():
    with pytest.raises(InputError, match="at 3 or more times.* Received: 3 events at 2 times"):
        splits.split_events(_events("2010-01-01", "2010-01-01", "2010-01-02"))
    with pytest.raises(InputError, match="at 2 or more times.* Received: 2 events at 1 time\\."):
        splits.split_events(_events("2010-01-01", "2010-01-01", "2020-01-02"))


@pytest.mark.parametrize(
    "events",
    [
        _days(10),
        _days(10, 2018) + _days(3, 2020),
        _days(4, 2018) + _days(4, 2019) + _days(2, 2020),
        _events(*(f"2018-01-01 {hour:02d}:00" for hour in range(0, 24, 5)), "2020-01-01"),
    ],
)
def test_its_own_dates_give_the_same_split(events):
    """So a resumed run, whose configuration has these dates, has the same sets."""
    split = splits.split_events(events)
    again = splits.split_events(events, split.train_before, split.test_from)
    assert _counts(again) == _counts(split) and again.train == split.train
    assert (again.train_before, again.test_from) == (split.train_before, split.test_from)


# ---- overlap ----------------------------------------------------------------------------------


def _overlapping(first, second, boxes=("west", "west"), **values):
    """Returns the number of events that are left out of a set because the next one has another."""
    pair = [
        _event(time, box=PLACES.get(box), **values)
        for time, box in zip((first, second), boxes, strict=True)
    ]
    others = [_event(time, box=PLACES["west"]) for time in ("2018-01-01", "2019-03-01")]
    return splits.split_events([*pair, *others, _event("2020-01-01")]).left_out


def test_an_event_whose_frames_run_into_the_next_set_is_left_out():
    """49 frames 5 minutes apart last 240 minutes, to the first instant of the last frame."""
    assert _overlapping("2018-12-31 22:00", "2019-01-01 02:00") == 1
    assert _overlapping("2018-12-31 22:00", "2019-01-01 02:05") == 0
    assert _overlapping("2019-05-31 22:00", "2019-06-01 02:00") == 1
    assert _overlapping("2019-05-31 22:00", "2019-06-01 02:05") == 0
    assert _overlapping("2018-12-31 22:00", "2019-01-01 02:00", frames=48) == 0
    assert _overlapping("2018-12-31 22:00", "2018-12-31 22:00") == 0  # of one set


def test_an_event_elsewhere_does_not_overlap():
    times = "2018-12-31 22:00", "2019-01-01 01:00"
    assert _overlapping(*times, boxes=("west", "east")) == 0
    assert _overlapping(*times, boxes=("west", "unknown")) == 1
    assert _overlapping(*times, boxes=("unknown", "east")) == 1


def test_boxes_that_touch_do_not_overlap():
    def left_out(box):
        pair = [
            _event("2018-12-31 22:00", box=(30.0, -100.0, 33.0, -96.0)),
            _event("2019-01-01 01:00", box=box),
        ]
        return splits.split_events([*pair, *_events("2018-01-01", "2020-01-01")]).left_out

    assert left_out((30.0, -96.0, 33.0, -92.0)) == left_out((33.0, -100.0, 36.0, -96.0)) == 0
    assert left_out((32.9, -96.1, 36.0, -92.0)) == 1


def test_the_later_set_keeps_its_event_and_the_number_is_in_the_note():
    events = _events("2018-01-01", "2018-12-31 23:00", "2019-01-01 01:00", "2019-05-31 23:00")
    events += _events("2019-06-01 01:00")
    split = splits.split_events(events)
    assert _times(split.train) == ["01-01 00:00"]
    assert _times(split.validation) == ["01-01 01:00"]
    assert _times(split.test) == ["06-01 01:00"]
    assert split.left_out == 2
    assert split.note.endswith("; 2 left out, which overlap an event of a later set")


def test_an_event_that_overlaps_only_one_that_is_left_out_stays():
    """The second validation event is left out, so the training event before it overlaps none."""
    dates = DATE("2019-05-31 20:00"), DATE("2019-06-01 00:00")
    times = ["2019-05-01", "2019-05-31 20:00", "2019-05-31 23:00", "2019-06-01 02:00"]
    events = [
        _event(times[0]),
        _event(times[1], frames=40),  # until 23:15
        _event(times[2]),
        _event(times[3]),
    ]
    with pytest.raises(InputError, match="must leave validation events.* with 1 events left out"):
        splits.split_events(events, *dates)
    events.append(_event("2019-05-31 20:05", frames=1, box=PLACES["east"]))
    events[1] = _event(times[1], frames=40, box=PLACES["west"])
    split = splits.split_events(events, *dates)
    assert (_counts(split), split.left_out) == ((2, 1, 1), 1)


def test_all_left_out_is_an_error_of_one_line():
    events = _events("2018-12-31 23:00", "2019-01-01 01:00", "2020-01-01")
    with pytest.raises(InputError, match="must leave training events.* with 1 events") as raised:
        splits.split_events(events)
    assert "\n" not in str(raised.value)


def test_twenty_thousand_events_are_compared_fast():
    """One an hour from 2017-06-13: the four before each boundary reach into the next set."""
    first = DATE("2017-06-13")
    events = [_event(first + datetime.timedelta(hours=k)) for k in range(20000)]
    started = time.process_time()
    split = splits.split_events(events)
    assert split.left_out == 4 + 4
    assert split.train[-1].time == DATE("2018-12-31 20:00")
    assert split.validation[-1].time == DATE("2019-05-31 20:00")
    assert time.process_time() - started < 5  # comparing them in pairs takes minutes


def test_many_events_at_one_time_in_other_places():
    """The slowest case: every event is near the boundary."""
    events = [
        _event(
            "2018-12-31 22:00" if k < 2000 else "2019-01-01 01:00",
            box=(k / 100, 0.0, (k + 0.5) / 100, 1.0),
        )
        for k in range(4000)
    ]
    split = splits.split_events([*events, _event("2020-01-01")])
    assert (_counts(split), split.left_out) == ((2000, 2000, 1), 0)


def test_a_time_beyond_the_last_year_is_no_fault():
    events = [_event("9999-12-31 23:55", frames=49), *_events("2018-01-01", "2019-02-01")]
    assert _counts(splits.split_events(events)) == (1, 1, 1)


def test_corners_of_the_catalog_are_the_box(tmp_path, catalog_row, write_catalog):
    names = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon")

    def box(*corners):
        write_catalog(tmp_path, [catalog_row(**dict(zip(names, corners, strict=True)))])
        (event,) = catalog.read_catalog(tmp_path)
        return event.box

    assert box(30, -100.5, "33.25", -96) == (30.0, -100.5, 33.25, -96.0)
    for unknown in ((0, 0, 0, 0), ("", "", "", ""), (33, -100, 30, -96), ("x", 0, 1, 1)):
        assert box(*unknown) is None
    assert box("nan", 0, 1, 1) is None
    columns = [name for name in catalog.CATALOG_COLUMNS if name not in names]
    write_catalog(tmp_path, [catalog_row()], columns)
    assert catalog.read_catalog(tmp_path)[0].box is None


# ---- the authors' sets ------------------------------------------------------------------------


def test_the_authors_rule_gives_the_published_numbers(tmp_path, catalog_row, write_catalog):
    """A catalog of the real one's size: incomplete events, repeated ids, unfilled batches."""

    def rows(prefix, year, complete):
        for k in range(complete + 5):  # the last five do not fill a batch; 200 or 50 events a day
            day = datetime.date(year, 1, 1) + datetime.timedelta(k // 200)
            yield catalog_row(id=f"{prefix}{k:05d}", time_utc=f"{day} 00:00:00")
        for k in range(100):
            yield catalog_row(id=f"{prefix}M{k}", pct_missing=0.1)
        for k in range(100):  # repeated rows, also at other times and with gaps in one
            yield catalog_row(id=f"{prefix}R{k}")
            yield catalog_row(id=f"{prefix}R{k}", time_utc="2018-06-01 12:00:00")
        yield catalog_row(id="S00000", time_utc=f"{year}-01-01 00:00:00", pct_missing=0.2)

    write_catalog(tmp_path, [*rows("S", 2018, 8 * 1865), *rows("T", 2020, 8 * 506)])
    split = splits.authors_split(tmp_path, say=str)
    windows = [sevir.count_windows(each) for each in (split.train, split.validation, split.test)]
    assert windows[0] + windows[1] == 44760 and windows[2] == 12144
    # 74 days of 200 events and one of 120: a fifth of them, 2984, is reached by 120 + 15 x 200.
    assert windows[1] == 3 * (120 + 15 * 200) and split.left_out == 0
    assert split.train_before == datetime.datetime(2018, 2, 28, 23, 59, 59)
    assert split.test_from == datetime.datetime(2019, 6, 1)


def test_the_authors_rule_needs_a_batch_on_each_side(tmp_path, catalog_row, write_catalog):
    rows = [catalog_row(id=f"S{k}", time_utc=f"{2018 + k // 8}-01-01") for k in range(23)]
    write_catalog(tmp_path, rows)
    with pytest.raises(
        InputError, match="`--authors-split` needs at least 8 .* Received: 16 and 7"
    ):
        splits.authors_split(tmp_path, say=str)


# ---- one set, to score ------------------------------------------------------------------------


def _written(tmp_path, catalog_row, write_catalog, times):
    write_catalog(tmp_path, [catalog_row(id=f"S{k}", time_utc=t) for k, t in enumerate(times)])
    return tmp_path


def test_a_set_by_the_dates_of_a_run(tmp_path, catalog_row, write_catalog):
    times = ["2018-01-01", "2019-05-31 23:00", "2019-03-01", "2019-06-01 01:00", "2019-08-01"]
    root = _written(tmp_path, catalog_row, write_catalog, times)
    dates = DATE("2019-01-01"), DATE("2019-06-01")
    said = []
    test = splits.read_set("test", root, 1.0, *dates, say=said.append)
    assert [event.id for event in test] == ["S3", "S4"]
    assert said[0].startswith("2 events of the test set (training up to 2019-01-01")
    validation = splits.read_set("validation", root, 1.0, *dates, say=str)
    assert [event.id for event in validation] == ["S2"]  # S1 overlaps the test set


def test_a_data_set_wholly_in_the_test_period(tmp_path, catalog_row, write_catalog):
    root = _written(tmp_path, catalog_row, write_catalog, ["2019-07-01", "2019-08-01"])
    dates = DATE("2019-01-01"), DATE("2019-06-01")
    assert len(splits.read_set("test", root, 1.0, *dates, say=str)) == 2
    with pytest.raises(InputError, match="must leave validation events.*training up to 2019-01-01"):
        splits.read_set("validation", root, 1.0, *dates, say=str)


def test_training_events_are_never_of_another_set(tmp_path, catalog_row, write_catalog):
    root = _written(tmp_path, catalog_row, write_catalog, ["2018-07-01", "2018-08-01"])
    dates = DATE("2019-01-01"), DATE("2019-06-01")
    with pytest.raises(InputError, match="must leave test events.*2018-07-01.*2018-08-01"):
        splits.read_set("test", root, 1.0, *dates, say=str)


def test_the_authors_test_events_without_their_training_events(
    tmp_path, catalog_row, write_catalog
):
    root = _written(
        tmp_path, catalog_row, write_catalog, [f"2019-07-{k + 1:02d}" for k in range(19)]
    )
    dates = DATE("2018-06-01"), DATE("2019-06-01")
    assert len(splits.read_set("test", root, 1.0, *dates, authors=True, say=str)) == 16


# ---- two sets, as in earlier versions -----------------------------------------------------------


def _earlier(tmp_path, catalog_row, write_catalog, times, *dates):
    root = _written(tmp_path, catalog_row, write_catalog, times)
    return splits.read_split_of_earlier_version(root, 1.0, *(dates or (None, None)), say=str)


@pytest.mark.parametrize("year", [2010, 2025])
@pytest.mark.parametrize(("events", "test"), [(2, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_earlier_versions_held_out_the_last_fifth_where_all_lie_on_one_side(
    tmp_path, catalog_row, write_catalog, year, events, test
):
    times = [f"{year}-01-{k + 1:02d}" for k in range(events)]
    split = _earlier(tmp_path, catalog_row, write_catalog, times)
    assert _counts(split) == (events - test, test, test)
    assert split.validation is split.test
    assert max(event.time for event in split.train) < min(event.time for event in split.test)
    assert (split.train_before, split.test_from) == (None, None)


def test_earlier_versions_split_at_2019_06_01(tmp_path, catalog_row, write_catalog):
    times = ["2019-06-01 00:05", "2019-06-01 00:00", "2018-01-01"]
    split = _earlier(tmp_path, catalog_row, write_catalog, times)
    assert [event.time.year for event in split.train] == [2018, 2019]
    assert [event.time.minute for event in split.test] == [5]
    given = datetime.datetime(2018, 6, 1)
    split = _earlier(tmp_path, catalog_row, write_catalog, times, None, given)
    assert [len(split.train), len(split.test)] == [1, 2]


def test_earlier_versions_needed_both_sets(tmp_path, catalog_row, write_catalog):
    with pytest.raises(InputError, match="must leave training and test events"):
        _earlier(tmp_path, catalog_row, write_catalog, ["2010-01-01", "2010-01-01"])


def test_events_without_a_valid_pixel(tmp_path, catalog_row, write_catalog):
    write_catalog(tmp_path, [catalog_row(id=f"S{k}", pct_missing=1) for k in range(4)])
    with pytest.raises(InputError, match="must have events with valid pixels. Received: 4 events"):
        splits.read_split(tmp_path, 1, None, None, say=str)
