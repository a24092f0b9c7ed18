import datetime

import numpy as np
import pytest

from keras_nowcast.data import catalog, sevir
from keras_nowcast.errors import InputError
from keras_nowcast.verification.forecasts import saved_forecasts
from keras_nowcast.vil import MISSING

TIME = datetime.datetime(2016, 9, 28, 12, 5)


def saving(root):
    return saved_forecasts(root, "model", catalog.CATALOG_COLUMNS, 8)


def forecast(seed):
    codes = np.random.default_rng(seed).uniform(-5, 260, (8, 8, 12)).astype(np.float32)
    codes[0, 0, 0] = np.nan
    return codes


def test_our_own_reader_reads_them(tmp_path):
    with saving(tmp_path / "forecasts") as append:
        for k in range(3):
            append(f"S{k}-0", TIME + datetime.timedelta(hours=k), forecast(k))
    events = catalog.read_catalog(tmp_path / "forecasts")
    sevir.check_files(events)
    assert [event.id for event in events] == ["S0-0", "S1-0", "S2-0"]
    assert events[1].time == TIME + datetime.timedelta(hours=1) and events[1].frames == 12
    codes = sevir.read_event(events[1])
    assert codes[0, 0, 0] == MISSING
    expected = np.clip(np.rint(forecast(1)), 0, 254)
    np.testing.assert_array_equal(codes[1:], expected[1:])


def test_a_plain_h5py_user_reads_them(tmp_path):
    h5py = pytest.importorskip("h5py")
    with saving(tmp_path / "forecasts") as append:
        append("S0-0", TIME, forecast(0))
    with h5py.File(tmp_path / "forecasts/data/vil/FORECAST_model.h5") as file:
        assert file["vil"].shape == (1, 8, 8, 12) and file["vil"].dtype == np.uint8
        assert file["id"][0] == b"S0-0"


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), saving(tmp_path / "forecasts") as append:
        append("S0-0", TIME, forecast(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "forecasts").mkdir()
    with pytest.raises(InputError, match="does not exist"), saving(tmp_path / "forecasts"):
        pass
    assert list((tmp_path / "forecasts").iterdir()) == []
