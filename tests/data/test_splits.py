"""The sets that the events of a data set are divided into."""

import datetime

import pytest

from keras_nowcast.data import catalog, sevir, splits
from keras_nowcast.errors import InputError


def _event(time, **values):
    defaults = {"id": "S0", "file": None, "index": 0, "missing_share": 0.0, "frames": 49, "size": 8}
    if isinstance(time, str):
        time = datetime.datetime.fromisoformat(time)
    return catalog.Event(time=time, **defaults | values)


def test_selection_by_share_of_missing_pixels():
    events = [_event("2018-01-01", missing_share=share) for share in (0, 0.1, 0.2)]
    assert len(splits.select_events(events, 1)) == 3
    assert len(splits.select_events(events, 0.1)) == 2
    assert len(splits.select_events(events, 0)) == 1
    with pytest.raises(InputError, match=r"`--max-missing`.*0\.1"):
        splits.select_events(events[1:], 0)


def test_split_by_the_authors_dates():
    times = ["2019-06-01 00:05", "2019-06-01 00:00", "2018-01-01"]
    split = splits.split_events([_event(time) for time in times])
    assert [event.time.year for event in split.train] == [2018, 2019]
    assert [event.time.minute for event in split.test] == [5]
    assert "2 events to train and 1 to test" in split.note


def test_split_by_given_dates_leaves_what_lies_between():
    events = [_event(f"2018-01-0{day}") for day in range(1, 7)]
    day = [datetime.datetime(2018, 1, day) for day in range(1, 7)]
    split = splits.split_events(events, day[1], day[3])
    assert [event.time.day for event in split.train] == [1, 2]
    assert [event.time.day for event in split.test] == [5, 6]


@pytest.mark.parametrize("year", [2010, 2025])
@pytest.mark.parametrize(("events", "test"), [(2, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_the_last_fifth_where_all_lie_on_one_side(year, events, test):
    split = splits.split_events([_event(f"{year}-01-{k + 1:02d}") for k in range(events)])
    assert len(split.test) == test
    assert len(split.train) == events - test
    assert max(event.time for event in split.train) < min(event.time for event in split.test)
    assert "last fifth" in split.note


def test_events_of_one_time_are_not_divided():
    days = [1, 2, 3, 3, 3, 3, 3, 3]
    split = splits.split_events([_event(f"2010-01-{day:02d}") for day in days])
    assert [event.time.day for event in split.train] == [1, 2]
    assert len(split.test) == 6


def test_an_empty_side_is_an_error():
    events = [_event("2010-01-01"), _event("2010-01-02")]
    date = datetime.datetime(2015, 1, 1)
    with pytest.raises(InputError, match="must leave test events"):
        splits.split_events(events, train_before=date)
    with pytest.raises(InputError, match="must leave test events"):
        splits.split_events(events, test_from=date)
    early = datetime.datetime(2000, 1, 1)
    split = splits.split_events(events, test_from=datetime.datetime(2010, 1, 1, 12))
    assert [event.time.day for event in split.train + split.test] == [1, 2]
    with pytest.raises(InputError, match="must leave training events"):
        splits.split_events(events, early, early)
    with pytest.raises(InputError, match="two or more times"):
        splits.split_events([_event("2010-01-01"), _event("2010-01-01")])
    with pytest.raises(InputError, match="both sets"):
        splits.split_events(events, date, early)


def test_the_authors_rule_gives_the_published_numbers(tmp_path, catalog_row, write_catalog):
    """A catalog of the real one's size: incomplete events, repeated ids, unfilled batches."""

    def rows(prefix, year, complete):
        for k in range(complete + 5):  # the last five do not fill a batch
            yield catalog_row(id=f"{prefix}{k}", time_utc=f"{year}-01-01 00:00:00")
        for k in range(100):
            yield catalog_row(id=f"{prefix}M{k}", pct_missing=0.1)
        for k in range(100):  # repeated rows, also at other times and with gaps in one
            yield catalog_row(id=f"{prefix}R{k}")
            yield catalog_row(id=f"{prefix}R{k}", time_utc="2018-06-01 12:00:00")
        yield catalog_row(id="S0", time_utc=f"{year}-01-01 00:00:00", pct_missing=0.2)

    write_catalog(tmp_path, [*rows("S", 2018, 8 * 1865), *rows("T", 2020, 8 * 506)])
    split = splits.authors_split(tmp_path, say=str)
    windows = [
        sum(len(sevir.window_starts(event.frames)) for event in side)
        for side in (split.train, split.test)
    ]
    assert windows == [44760, 12144]


def test_the_authors_rule_needs_a_batch_on_each_side(tmp_path, catalog_row, write_catalog):
    rows = [catalog_row(id=f"S{k}", time_utc=f"{2018 + k // 8}-01-01") for k in range(23)]
    write_catalog(tmp_path, rows)
    with pytest.raises(
        InputError, match="`--authors-split` needs at least 8 .* Received: 16 and 7"
    ):
        splits.authors_split(tmp_path, say=str)
