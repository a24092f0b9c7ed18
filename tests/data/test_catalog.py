"""The forms that a catalog may have, what it may leave out, and what is refused or counted."""

import datetime

import pytest

from keras_nowcast.data import catalog, packed
from keras_nowcast.errors import InputError


@pytest.fixture
def read(tmp_path, write_catalog):
    """Returns a function that reads a catalog of rows: its Events, and the lines it printed."""

    def read(*rows):
        write_catalog(tmp_path, rows)
        said = []
        return catalog.read_catalog(tmp_path, said.append), said

    return read


@pytest.mark.parametrize(
    ("text", "km"),
    [
        ("384000", 384.0),
        ("16e3", 16.0),
        ("", None),
        ("x", None),
        ("nan", None),
        ("-1", None),
        (None, None),
    ],
)
def test_the_width_is_read_if_it_is_stated(tmp_path, write_catalog, catalog_row, text, km):
    columns = [c for c in catalog.CATALOG_COLUMNS if c != "width_m" or text is not None]
    write_catalog(tmp_path, [catalog_row(width_m=text)], columns)
    assert catalog.read_catalog(tmp_path)[0].width_km == km


def test_pixels_that_are_not_square(read, catalog_row):
    read(catalog_row(width_m=384000.0, height_m=384000.0))
    read(catalog_row(width_m=384000.0, height_m=""))
    with pytest.raises(InputError, match="line 2: `height_m` must be width_m, 384000"):
        read(catalog_row(width_m=384000.0, height_m=192000.0))


# ---- dates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("2019-06-01 00:05:00", "2019-06-13 00:00:00"),
        ("2019-06-01 02:05:00+02:00", "2019-06-13"),
        ("6/1/19 0:05", "6/13/19 0:00"),
        ("06/01/2019 00:05", "12/31/1999 0:00:59"),
        ("1/6/19 0:05", "13/6/19 0:00"),
        ("01/06/2019 00:05:00", "31/12/2019 23:59"),
        ("1/6/19 0:05", "2019-06-13T00:00"),
    ],
)
def test_forms_of_the_date(read, catalog_row, text, other):
    """A column that makes sense only with the month first, or the day first, is read that way."""
    rows = [catalog_row(time_utc=text), catalog_row(id="S1", time_utc=other)]
    if other == "2019-06-13T00:00":
        rows.append(catalog_row(id="S2", time_utc="28/6/19 0:05"))
    events, _ = read(*rows)
    times = {event.id: event.time for event in events}
    assert times["S0"] == datetime.datetime(2019, 6, 1, 0, 5)


def test_a_date_that_is_the_same_in_both_ways(read, catalog_row):
    events, _ = read(catalog_row(time_utc="6/6/68 0:05"))
    assert events[0].time == datetime.datetime(2068, 6, 6, 0, 5)


def test_dates_that_begin_with_the_month_or_the_day(read, catalog_row):
    with pytest.raises(
        InputError, match="`time_utc` may begin with the month or .* in 6/1/19 0:05"
    ):
        read(catalog_row(time_utc="6/1/19 0:05"), catalog_row(id="S1", time_utc="5/5/19 0:00"))
    with pytest.raises(InputError, match="`time_utc` begins here and there with the month or"):
        read(catalog_row(time_utc="13/6/19 0:05"), catalog_row(id="S1", time_utc="6/13/19 0:00"))


@pytest.mark.parametrize("text", ["13/13/19 0:00", "6/13/19", "6/13/19 24:00", "0/1/19 0:00", "x"])
def test_a_date_that_is_none(read, catalog_row, text):
    with pytest.raises(InputError, match=r"line 3: `time_utc` must be a time.*Received: '"):
        read(catalog_row(time_utc="6/14/19 0:00"), catalog_row(id="S1", time_utc=text))


# ---- types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["VIL", "Vil", " vil "])
def test_the_type_in_other_letters(tmp_path, read, catalog_row, text):
    events, said = read(catalog_row(img_type=text, file_index=3, episode_id="7"))
    assert [event.index for event in events] == [3] and said == []
    root = tmp_path / "data" / "vil/2018/a.h5"
    assert catalog.read_column(tmp_path, "episode_id") == {(root, 3): "7"}
    places = {("vil/2018/a.h5", 3): (0, 8)}
    assert packed._catalog_text(tmp_path / "CATALOG.csv", places).count(text) == 1


def test_rows_of_an_unknown_type_are_counted(read, catalog_row):
    rows = [catalog_row(id=f"S{k}", img_type=kind) for k, kind in enumerate(["vil", "vill", ""])]
    events, said = read(*rows, catalog_row(img_type="lght"))
    assert len(events) == 1
    assert said == [
        "left out 2 catalog rows that are not of an img_type of SEVIR (the first has 'vill')"
    ]


@pytest.mark.parametrize("separator, name", [(";", "semicolons"), ("\t", "tabs")])
def test_cells_that_are_not_separated_by_commas(
    tmp_path, write_catalog, catalog_row, separator, name
):
    write_catalog(tmp_path, [catalog_row()])
    path = tmp_path / "CATALOG.csv"
    path.write_text(path.read_text().replace(",", separator))
    with pytest.raises(InputError, match=rf"separated by commas.*CATALOG\.csv, where {name}"):
        catalog.read_catalog(tmp_path)


# ---- minutes ----------------------------------------------------------------------------------

MINUTES = [5 * k - 120 for k in range(49)]


@pytest.mark.parametrize(
    "minutes",
    [
        [2 * each for each in MINUTES],
        [each + 60 * (k >= 20) for k, each in enumerate(MINUTES)],
        MINUTES[::-1],
        [MINUTES[0], *MINUTES[:-1]],
        [*MINUTES[:7], MINUTES[7] + 1, *MINUTES[8:]],
        [0] * 49,
    ],
    ids=["10 minutes", "a gap", "the last first", "one twice", "one off", "all the same"],
)
def test_frames_that_are_not_5_minutes_apart(read, catalog_row, minutes):
    odd = {"minute_offsets": ":".join(map(str, minutes))}
    events, said = read(catalog_row(), catalog_row(id="S1", **odd), catalog_row(id="S2", **odd))
    assert [event.id for event in events] == ["S0"]
    assert said == [
        "left out 2 of 3 events whose frames are not 5 minutes apart, by `minute_offsets` (the "
        "first is S1 2018-05-01 12:00)"
    ]
    with pytest.raises(InputError, match="5 minutes apart.*none of 1 events.*the first is S1"):
        read(catalog_row(id="S1", **odd))


def test_each_minute_must_be_a_number(read, catalog_row):
    with pytest.raises(InputError, match="`minute_offsets` must be a whole number"):
        read(catalog_row(minute_offsets="0:5:ten:15"))


def test_events_of_one_frame(read, catalog_row):
    assert read(catalog_row(minute_offsets="7"))[0][0].frames == 1
