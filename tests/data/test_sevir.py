"""The catalog, the windows and the pixels, compared with plain h5py."""

import datetime
import math
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from keras_nowcast.data import catalog, sevir, splits
from keras_nowcast.errors import InputError
from keras_nowcast.vil import MISSING

# ---- the catalog ------------------------------------------------------------------------------


def test_events_are_sorted_by_time(tmp_path, catalog_row, write_catalog):
    times = ["2018-05-01 12:00:00", "2017-01-01 00:00:00", "2019-08-01 00:00:00"]
    rows = [catalog_row(id=f"S{k}", time_utc=time) for k, time in enumerate(times)]
    write_catalog(tmp_path, rows)
    events = catalog.read_catalog(tmp_path, say=pytest.fail)
    assert [event.id for event in events] == ["S1", "S0", "S2"]
    assert events[0] == catalog.Event(
        id="S1",
        file=tmp_path / "data" / "vil/2018/a.h5",
        index=0,
        time=datetime.datetime(2017, 1, 1),
        missing_share=0.0,
        frames=49,
        size=16,
        event_type="Hail",
        first_minute=-120,
    )
    assert events[0].frame_time(12) == datetime.datetime(2016, 12, 31, 23, 0)


def test_other_image_types_are_passed_over(tmp_path, catalog_row, write_catalog):
    lightning = {"file_name": "lght/2018/a.h5", "minute_offsets": "", "size_x": "48"}
    rows = [
        catalog_row(img_type="lght", **lightning),
        catalog_row(),
        catalog_row(img_type="vis", file_name="vis/2018/a.h5", size_x=768, size_y=768),
    ]
    write_catalog(tmp_path, rows)
    assert len(catalog.read_catalog(tmp_path, say=pytest.fail)) == 1


def test_columns_in_another_order(tmp_path, catalog_row, write_catalog):
    write_catalog(tmp_path, [catalog_row(id="S7")], sorted(catalog.CATALOG_COLUMNS) + ["new"])
    assert catalog.read_catalog(tmp_path)[0].id == "S7"


def test_an_id_repeated_at_one_time_is_dropped_and_said(tmp_path, catalog_row, write_catalog):
    rows = [catalog_row(id="S0"), catalog_row(id="S1"), catalog_row(id="S1", file_index=1)]
    write_catalog(tmp_path, rows)
    said = []
    assert [event.id for event in catalog.read_catalog(tmp_path, said.append)] == ["S0"]
    assert said == ["dropped 2 catalog rows whose id is repeated"]


def test_an_id_at_two_times_is_two_events(tmp_path, catalog_row, write_catalog):
    rows = [catalog_row(), catalog_row(time_utc="2018-05-02 12:00:00", file_index=1)]
    write_catalog(tmp_path, rows)
    assert len(catalog.read_catalog(tmp_path, say=pytest.fail)) == 2


def test_nothing_but_repeated_ids(tmp_path, catalog_row, write_catalog):
    write_catalog(tmp_path, [catalog_row(), catalog_row(file_index=1)])
    with pytest.raises(InputError, match="repeated"):
        catalog.read_catalog(tmp_path, say=str)


def test_events_without_their_file_are_dropped_and_said(tmp_path, catalog_row, write_catalog):
    rows = [catalog_row(id=f"S{k}", file_name=f"vil/{k}.h5") for k in range(3)]
    write_catalog(tmp_path, rows)
    (tmp_path / "data/vil/1.h5").unlink()
    said = []
    assert [event.id for event in catalog.read_catalog(tmp_path, said.append)] == ["S0", "S2"]
    assert said == ["dropped 1 of 3 events whose file is absent (1 file, the first is 1.h5)"]


def test_no_file_at_all(tmp_path, catalog_row, write_catalog):
    write_catalog(tmp_path, [catalog_row()])
    (tmp_path / "data/vil/2018/a.h5").unlink()
    with pytest.raises(InputError, match=r"`--data`.*none of them.*vil/2018/a\.h5"):
        catalog.read_catalog(tmp_path)


def test_pct_missing_is_a_share_unless_it_exceeds_one(tmp_path, catalog_row, write_catalog):
    rows = [catalog_row(id="S0", pct_missing=0.5), catalog_row(id="S1", pct_missing=1)]
    write_catalog(tmp_path, rows)
    assert [event.missing_share for event in catalog.read_catalog(tmp_path)] == [0.5, 1]
    rows = [catalog_row(id="S0", pct_missing=0.5), catalog_row(id="S1", pct_missing=65)]
    write_catalog(tmp_path, rows)
    assert [event.missing_share for event in catalog.read_catalog(tmp_path)] == [0.005, 0.65]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": ""}, "`id` must be of 1 to 100 characters"),
        ({"time_utc": "yesterday"}, r"`time_utc` must be a time.*Received: 'yesterday'"),
        ({"time_utc": "0001-01-01 00:00:00+23:59"}, "`time_utc` must be a time"),
        ({"file_index": "x"}, "`file_index` must be a whole number of at least 0"),
        ({"file_index": -1}, r"`file_index`.*Received: '-1'"),
        ({"file_index": "9" * 5000}, r"`file_index`.*Received: '9{12,14}\.\.\.9{12,14}'"),
        ({"size_x": ""}, "`size_x`"),
        ({"size_y": 8}, "`size_y` must be size_x, 16. Received: '8'"),
        ({"pct_missing": ""}, "`pct_missing` must be a number from 0 to 100"),
        ({"pct_missing": "nan"}, "`pct_missing`"),
        ({"pct_missing": 101}, "`pct_missing`"),
        ({"minute_offsets": ""}, "`minute_offsets`"),
        ({"minute_offsets": f"0:{10**15}"}, "`minute_offsets` must be minutes from 2018-05-01"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, catalog_row, write_catalog, values, message):
    write_catalog(tmp_path, [catalog_row(id="S0"), catalog_row(**{"id": "S1"} | values)])
    with pytest.raises(InputError, match=rf"CATALOG\.csv, line 3: {message}"):
        catalog.read_catalog(tmp_path)


@pytest.mark.parametrize("name", ["/a.h5", "vil/../../../a.h5", "..", ""])
def test_a_file_outside_of_the_data_set(tmp_path, catalog_row, write_catalog, name):
    write_catalog(tmp_path, [catalog_row(), catalog_row(id="S1", file_name="vil/b.h5")])
    path = tmp_path / "CATALOG.csv"
    path.write_text(path.read_text().replace("vil/b.h5", name))
    with pytest.raises(InputError, match="line 3: `file_name` must be a path below data/"):
        catalog.read_catalog(tmp_path)


def test_a_row_cut_short(tmp_path, catalog_row, write_catalog):
    write_catalog(tmp_path, [catalog_row(id="S0"), catalog_row(id="S1")])
    path = tmp_path / "CATALOG.csv"
    path.write_text(path.read_text().rstrip()[:-80])
    with pytest.raises(InputError, match="line 3: `row` must be as long as the header"):
        catalog.read_catalog(tmp_path)


def test_a_quote_that_never_ends(tmp_path, catalog_row, write_catalog):
    write_catalog(tmp_path, [catalog_row()])
    with open(tmp_path / "CATALOG.csv", "a") as file:
        file.write('"and so on')
    with pytest.raises(InputError, match="must have a readable catalog"):
        catalog.read_catalog(tmp_path)


def test_no_folder_no_catalog_no_columns_no_vil(tmp_path, catalog_row, write_catalog):
    with pytest.raises(InputError, match="not a folder"):
        catalog.read_catalog(tmp_path / "absent")
    with pytest.raises(InputError, match="not a folder"):
        catalog.read_catalog(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match=r"no CATALOG\.csv"):
        catalog.read_catalog(tmp_path)
    (tmp_path / "CATALOG.csv").write_text("id,file_name\nS0,a.h5\n")
    with pytest.raises(InputError, match="without the columns file_index"):
        catalog.read_catalog(tmp_path)
    (tmp_path / "CATALOG.csv").write_text("")
    with pytest.raises(InputError, match="without the columns id"):
        catalog.read_catalog(tmp_path)
    (tmp_path / "CATALOG.csv").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    with pytest.raises(InputError, match=r"CATALOG\.csv"):
        catalog.read_catalog(tmp_path)
    write_catalog(tmp_path, [catalog_row(img_type="vis")])
    with pytest.raises(InputError, match="has none"):
        catalog.read_catalog(tmp_path)


# ---- windows ----------------------------------------------------------------------------------


def test_starts_of_windows():
    assert list(sevir.window_starts(49)) == [0, 12, 24]
    assert list(sevir.window_starts(48)) == [0, 12]
    assert list(sevir.window_starts(40)) == [0, 12]
    assert list(sevir.window_starts(25)) == [0]
    assert list(sevir.window_starts(24)) == []
    assert list(sevir.window_starts(27, 1)) == [0, 1, 2]
    assert list(sevir.window_starts(49, 10)) == [0, 10, 20]


def test_a_window_is_13_frames_and_the_12_after_them():
    vil = np.random.default_rng(0).integers(0, 256, (6, 5, 49), np.uint8)
    for start in sevir.window_starts(49, 1):
        x, y = sevir.cut_window(vil, start)
        np.testing.assert_array_equal(x, vil[:, :, start : start + 13])
        np.testing.assert_array_equal(y, vil[:, :, start + 13 : start + 25])
        assert x.flags.c_contiguous and y.flags.c_contiguous


def test_windows_of_the_authors():
    vil = np.arange(49, dtype=np.uint8).reshape(1, 1, 49)
    windows = [sevir.cut_window(vil, start) for start in sevir.window_starts(49)]
    first_and_last = [(x[0, 0, 0], x[0, 0, -1], y[0, 0, 0], y[0, 0, -1]) for x, y in windows]
    assert first_and_last == [(0, 12, 13, 24), (12, 24, 25, 36), (24, 36, 37, 48)]


# ---- pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [{}, {"chunks": (1, 16, 16, 49), "compression": "gzip"}])
def test_events_are_those_of_h5py(tmp_path, write_sevir, storage):
    codes = write_sevir(tmp_path, events=10, **storage)
    events = catalog.read_catalog(tmp_path, say=pytest.fail)
    sevir.check_files(events)
    with ThreadPoolExecutor(4) as executor:
        read = list(executor.map(sevir.read_event, events))
    for event, vil in zip(events, read, strict=True):
        with h5py.File(event.file) as file:
            np.testing.assert_array_equal(vil, file["vil"][event.index])
        np.testing.assert_array_equal(vil, codes[int(event.id[1:])])


def test_radar_windows_are_those_of_h5py(radar):
    events = catalog.read_catalog(radar, say=pytest.fail)
    assert len(events) == 12
    split = splits.split_events(events)
    # Days of 2, 2, 2 and 6 events: one day has a fifth, 2.4, and then two together have.
    assert (len(split.train), len(split.validation), len(split.test)) == (2, 4, 6)
    assert split.left_out == 0
    sevir.check_files(events)
    for event in events:
        vil = sevir.read_event(event)
        assert np.mean(vil == MISSING) == pytest.approx(event.missing_share, abs=1e-6)
        with h5py.File(event.file) as file:
            for start in sevir.window_starts(event.frames):
                x, y = sevir.cut_window(vil, start)
                stored = file["vil"][event.index, :, :, start : start + 25]
                np.testing.assert_array_equal(np.concatenate([x, y], axis=-1), stored)


def _slow_block_mean(vil, factor):
    y, x, frames = vil.shape
    means = np.empty((y // factor, x // factor, frames), np.uint8)
    for i, j, t in np.ndindex(means.shape):
        block = vil[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor, t]
        valid = block[block != 255].astype(float)
        means[i, j, t] = math.floor(valid.mean() + 0.5) if valid.size else 255
    return means


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
@pytest.mark.parametrize("missing", [0, 0.3, 0.9])
def test_block_mean_over_valid_pixels(factor, missing):
    rng = np.random.default_rng(factor)
    vil = rng.integers(0, 255, (12, 6, 5), np.uint8)
    vil[rng.random(vil.shape) < missing] = 255
    mean = sevir.block_mean(vil, factor)
    assert mean.dtype == np.uint8
    np.testing.assert_array_equal(mean, _slow_block_mean(vil, factor))


def test_block_mean_by_hand():
    def mean(*block):
        return sevir.block_mean(np.array(block, np.uint8).reshape(2, 2, 1), 2).item()

    assert mean(0, 1, 1, 0) == 1  # a half is rounded up
    assert mean(0, 1, 0, 0) == 0
    assert mean(254, 254, 254, 254) == 254
    assert mean(10, 255, 255, 255) == 10
    assert mean(255, 255, 255, 255) == 255


def test_the_largest_block_does_not_overflow():
    vil = np.full((384, 384, 1), 254, np.uint8)
    assert sevir.block_mean(vil, 384).item() == 254


def test_a_coarser_grid_is_the_block_mean(tmp_path, write_sevir):
    codes = write_sevir(tmp_path, events=1)
    (event,) = catalog.read_catalog(tmp_path)
    np.testing.assert_array_equal(sevir.read_event(event, 16), codes[0])
    np.testing.assert_array_equal(sevir.read_event(event, 4), _slow_block_mean(codes[0], 4))
    for grid in (5, 32, 0):
        with pytest.raises(InputError, match=rf"`--grid` must divide.*Received: {grid}\."):
            sevir.read_event(event, grid)


# ---- damaged files ----------------------------------------------------------------------------


def _refused(event, match):
    for look in (lambda: sevir.check_files([event]), lambda: sevir.read_event(event)):
        with pytest.raises(InputError, match=match) as caught:
            look()
        assert str(event.file) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_file(event):
    with open(event.file, "r+b") as file:
        file.truncate(event.file.stat().st_size // 2)
    _refused(event, "must be readable as HDF5")


def test_an_empty_file(event):
    event.file.write_bytes(b"")
    _refused(event, "must be readable as HDF5")


def test_a_file_that_vanished(event):
    event.file.unlink()
    _refused(event, "must be readable as HDF5")


def test_a_damaged_event_is_named(event):
    sevir.check_files([event])
    raw = event.file.read_bytes()
    with h5py.File(event.file) as file:
        place = file["vil"].id.get_chunk_info(event.index).byte_offset
    event.file.write_bytes(raw[:place] + b"\0" * 64 + raw[place + 64 :])
    sevir.check_files([event])
    with pytest.raises(InputError, match=rf"event {event.id} in {event.file} must be readable"):
        sevir.read_event(event)


def _rewritten(event, vil, ids=(b"S0", b"S1", b"S2")):
    with h5py.File(event.file, "w") as file:
        if vil is not None:
            file["vil"] = vil
        file["id"] = np.array(ids, "S10")


def test_vil_of_another_shape_or_type(event):
    good = np.zeros((3, 16, 16, 49), np.uint8)
    _rewritten(event, good)
    sevir.check_files([event])
    _rewritten(event, good[..., 0])
    _refused(event, r"must be uint8 of shape \(events, y, x, time\)")
    _rewritten(event, good.astype(np.float32))
    _refused(event, r"must be uint8.*Received: float32")
    _rewritten(event, good[:, :8])
    _refused(event, r"must have the shape of the catalog.*Received: \(3, 8, 16, 49\)")
    _rewritten(event, good[..., :48])
    _refused(event, "must have the shape of the catalog")
    _rewritten(event, good[:1])
    _refused(event, "at index 1, as in the catalog. Received: 1 events")
    _rewritten(event, None)
    _refused(event, "must have the data set `vil`")


def test_another_event_at_the_index(event):
    _rewritten(event, np.zeros((3, 16, 16, 49), np.uint8), ids=(b"S1", b"S0", b"S2"))
    _refused(event, r"`id` in .* must be that of the catalog, S1, at index 1. Received: S0\.")


@pytest.mark.parametrize(
    "ids", [np.arange(3), np.array(b"S0"), np.array([[b"S0"]] * 3), h5py.Empty("S10")]
)
def test_ids_of_another_form(event, ids):
    with h5py.File(event.file, "w") as file:
        file["vil"] = np.zeros((3, 16, 16, 49), np.uint8)
        file["id"] = ids
    _refused(event, r"`id` in .* must be texts of shape \(events,\)")


def test_an_id_that_is_no_text(event):
    _rewritten(event, np.zeros((3, 16, 16, 49), np.uint8), ids=(b"S0", b"\xff", b"S2"))
    _refused(event, "must be that of the catalog, S1, at index 1")


def test_a_length_of_ids_that_cannot_be(event):
    with h5py.File(event.file, "w") as file:
        file["vil"] = np.zeros((3, 16, 16, 49), np.uint8)
        file.create_dataset("id", (2**40,), "S10", chunks=(4,))
    _refused(event, "must be that of the catalog, S1, at index 1. Received: ")


def test_ids_cut_to_the_length_of_the_file(tmp_path, catalog_row, write_catalog):
    long = "R18032505027684"
    write_catalog(tmp_path, [catalog_row(id=long)])
    (event,) = catalog.read_catalog(tmp_path)
    _rewritten(event, np.zeros((1, 16, 16, 49), np.uint8), ids=[long.encode()])  # S10
    sevir.check_files([event])


@pytest.mark.parametrize("stated, is_said", [(0.0, True), (0.5, False), (0.515, False)])
def test_more_missing_pixels_than_the_catalog_states(
    tmp_path, catalog_row, write_catalog, stated, is_said
):
    write_catalog(tmp_path, [catalog_row(pct_missing=stated)])
    (event,) = catalog.read_catalog(tmp_path)
    vil = np.zeros((1, 16, 16, 49), np.uint8)
    vil[:, :8] = MISSING
    _rewritten(event, vil, ids=[b"S0"])
    said = []
    sevir.check_missing([event, event], said.append)
    assert said == is_said * [
        "`pct_missing` is too low for 1 of 1 events that were compared with their files: S0 "
        "2018-05-01 12:00 lacks 50.0% of its pixels, and 0.0% by the catalog, by which "
        "--max-missing selects events"
    ]
