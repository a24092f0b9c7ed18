"""The synthetic SEVIR: the layout of the real one, and weather worth forecasting."""

import csv

import h5py
import numpy as np
import pytest

from keras_nowcast.data import catalog, sevir, splits, synthetic
from keras_nowcast.errors import InputError
from keras_nowcast.vil import VIL_THRESHOLDS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "sevir"
    return synthetic.write_synthetic(root, events=10, size=64, frames=49, progress=False)


def _rows(root):
    with open(root / "CATALOG.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_our_own_reader_reads_it(root):
    events = catalog.read_catalog(root, say=pytest.fail)
    sevir.check_files(events)
    split = splits.split_events(events)
    assert (len(split.train), len(split.validation), len(split.test)) == (6, 2, 2)
    assert {(event.size, event.frames) for event in events} == {(64, 49)}
    for event in events:
        vil = sevir.read_event(event)
        assert event.missing_share == pytest.approx(np.mean(vil == 255), abs=1e-6)
        with h5py.File(event.file) as file:
            np.testing.assert_array_equal(vil, file["vil"][event.index])


def test_layout_of_the_published_files(root):
    for path in sorted(root.glob("data/vil/*/*.h5")):
        with h5py.File(path) as file:
            assert sorted(file) == ["id", "vil"]
            assert file["id"].dtype.kind == "S"
            assert file["vil"].dtype == np.uint8
            assert file["vil"].chunks == (1, 64, 64, 49)
            assert file["vil"].compression == "gzip"


def test_catalog_of_the_published_form(root):
    rows = _rows(root)
    assert tuple(rows[0]) == catalog.CATALOG_COLUMNS
    assert len({row["id"] for row in rows}) == 10
    for row in rows:
        with h5py.File(root / "data" / row["file_name"]) as file:
            index = int(row["file_index"])
            assert file["id"][index].decode() == row["id"]
            valid = file["vil"][index]
            valid = valid[valid != 255]
        assert (float(row["data_min"]), float(row["data_max"])) == (valid.min(), valid.max())
        assert row["minute_offsets"].split(":")[::24] == ["-120", "0", "120"]
        assert 25 < float(row["llcrnrlat"]) < float(row["urcrnrlat"]) < 52
        assert -125 < float(row["llcrnrlon"]) < float(row["urcrnrlon"]) < -70


def test_corners_on_the_earth():
    """The standard point, and a known one: 384 km north of it along its meridian."""
    assert synthetic.latitude_longitude(0.0, 1e-3) == (38.0, -98.0)
    latitude, longitude = synthetic.latitude_longitude(0.0, 384e3)
    degrees = np.degrees(2 * np.arcsin(384e3 / (2 * 6370997.0)))
    assert (latitude, longitude) == (pytest.approx(38 + degrees, abs=1e-5), -98.0)


def test_the_same_seed_gives_the_same_pixels(root, tmp_path):
    again = synthetic.write_synthetic(tmp_path / "b", events=10, size=64, progress=False)
    other = synthetic.write_synthetic(tmp_path / "c", events=1, size=64, seed=1, progress=False)
    for first, second in zip(*(catalog.read_catalog(each) for each in (root, again)), strict=True):
        np.testing.assert_array_equal(sevir.read_event(first), sevir.read_event(second))
    assert (root / "CATALOG.csv").read_text() == (again / "CATALOG.csv").read_text()
    (event,) = catalog.read_catalog(other)
    same = synthetic.event_codes(0, 0, 64, 49)
    assert np.any(sevir.read_event(event) != same)


def test_an_event_does_not_depend_on_how_many_there_are(root, tmp_path):
    few = synthetic.write_synthetic(tmp_path / "few", events=3, size=64, progress=False)
    events = {event.id: event for event in catalog.read_catalog(root)}
    for event in catalog.read_catalog(few):
        assert event.time == events[event.id].time
        np.testing.assert_array_equal(sevir.read_event(event), sevir.read_event(events[event.id]))


def test_contiguous(root, tmp_path):
    flat = synthetic.write_synthetic(
        tmp_path / "flat", events=2, size=64, contiguous=True, progress=False
    )
    for event in catalog.read_catalog(flat):
        with h5py.File(event.file) as file:
            assert file["vil"].chunks is None
        k = int(event.id[1:])
        np.testing.assert_array_equal(sevir.read_event(event), synthetic.event_codes(0, k, 64, 49))


def test_it_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    made = []

    def failing(seed, k, size, frames):
        made.append(k)
        if len(made) == 3:
            raise KeyboardInterrupt
        return np.zeros((size, size, frames), np.uint8)

    monkeypatch.setattr(synthetic, "event_codes", failing)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_synthetic(tmp_path / "a", events=5, size=16, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").touch()
    with pytest.raises(InputError, match=r"`--root` must be a new or an empty folder"):
        synthetic.write_synthetic(tmp_path / "a", events=1, size=16, progress=False)
    for name, value in (("events", 0), ("size", 8), ("frames", 0), ("seed", -1)):
        with pytest.raises(InputError, match=rf"`--{name}` must be at least .*: {value}\."):
            synthetic.write_synthetic(tmp_path / "b", **{"progress": False, name: value})


def test_codes_are_distributed_as_radar_is():
    """Most pixels are dry; a tail reaches the heaviest codes; few events have gaps."""
    codes = np.stack([synthetic.event_codes(0, k, 192, 13) for k in range(8)])
    assert np.mean(codes[:7] == 0) > 0.4
    assert np.all(codes[:7] != 255)
    assert 0.05 < np.mean(codes[7] == 255) < 0.9
    shares = [np.mean(codes[:7] >= threshold) for threshold in VIL_THRESHOLDS]
    assert 0.1 < shares[0] < 0.5
    assert all(
        1.2 * heavier < lighter for lighter, heavier in zip(shares, shares[1:], strict=False)
    )
    assert shares[-1] > 0


def test_storms_move_so_that_carrying_them_along_beats_persistence():
    """Shifting the last frame by the best constant past motion about halves the error."""
    better = 0
    for k in range(6):
        vil = synthetic.event_codes(0, k, 128, 25).astype(float)
        shift = _best_shift(vil[..., 6], vil[..., 12])
        inner = (slice(40, 88), slice(40, 88))
        moved = np.roll(vil[..., 12], shift, (0, 1))[inner]
        truth = vil[..., 18][inner]
        better += np.mean((moved - truth) ** 2) < np.mean((vil[..., 12][inner] - truth) ** 2)
    assert better >= 5


def _best_shift(before, after):
    spectrum = np.fft.fft2(after) * np.conj(np.fft.fft2(before))
    return np.unravel_index(np.argmax(np.fft.ifft2(spectrum).real), before.shape)


@pytest.mark.parametrize("name", ["file/below", "file", "x" * 300])
def test_a_root_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_text("something")
    with pytest.raises(InputError, match="`--root` must be a"):
        synthetic.write_synthetic(tmp_path / name, events=1, size=16, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
