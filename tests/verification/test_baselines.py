import sys

import numpy as np
import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.verification import baselines

MISSING = 255


def moving_blob(pixels_per_frame, frames=25, size=64):
    """(1, y, x, time): a smooth echo that moves along x."""
    y, x = np.mgrid[:size, :size]
    centers = 14 + pixels_per_frame * np.arange(frames)
    echo = 200 * np.exp(-((x[..., None] - centers) ** 2 + (y[..., None] - 30) ** 2) / 60)
    return echo.round().astype(np.uint8)[None]


def test_persistence_is_the_last_frame_with_its_gaps_as_no_echo():
    vil = np.zeros((2, 3, 3, 13), np.uint8)
    vil[..., 11] = 50
    vil[..., 12] = 100
    vil[0, 0, 0, 12] = MISSING
    forecast = baselines.persistence(vil, 12)
    assert forecast.shape == (2, 3, 3, 12) and forecast.dtype == np.float32
    assert (forecast[1] == 100).all()
    assert (forecast[0, 0, 0] == 0).all() and (forecast[0, 1:] == 100).all()


def test_extrapolation_carries_an_echo_along():
    pytest.importorskip("pysteps")
    vil = moving_blob(1.0)
    forecast = baselines.extrapolation(vil[..., :13], 12)
    assert forecast.shape == (1, 64, 64, 12) and forecast.dtype == np.float32
    truth = vil[..., 13:]
    still = baselines.persistence(vil[..., :13], 12)

    def error(field):
        return np.abs(np.nan_to_num(field) - truth).mean((0, 1, 2))

    assert (error(forecast)[1:] < 0.35 * error(still)[1:]).all()


def test_extrapolation_of_fields_without_echo_or_without_data():
    pytest.importorskip("pysteps")
    vil = np.zeros((4, 32, 32, 13), np.uint8)
    vil[1] = MISSING
    vil[2] = 40
    vil[3, ..., :12] = 40
    forecast = baselines.extrapolation(vil, 12)
    assert (forecast[[0, 1, 3]] == 0).all()
    np.testing.assert_allclose(forecast[2], 40)


def test_extrapolation_is_the_same_in_every_batch():
    pytest.importorskip("pysteps")
    vil = np.concatenate([moving_blob(1.0), moving_blob(2.0)])[..., :13]
    vil[0, :10] = MISSING
    together = baselines.extrapolation(vil, 3)
    apart = np.concatenate([baselines.extrapolation(vil[i : i + 1], 3) for i in (0, 1)])
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize(("side", "levels"), [(4, 1), (7, 1), (8, 2), (32, 4), (96, 5), (384, 6)])
def test_the_coarsest_level_keeps_four_pixels(side, levels):
    assert baselines._pyramid_levels((side, 384)) == levels


def test_a_grid_too_small_for_a_motion():
    pytest.importorskip("pysteps")
    with pytest.raises(InputError, match="3 x 8"):
        baselines.extrapolation(np.ones((1, 3, 8, 13), np.uint8), 12)


def test_pysteps_keeps_quiet(capfd):
    pytest.importorskip("pysteps")
    for name in [name for name in sys.modules if name.split(".")[0] == "pysteps"]:
        sys.modules.pop(name)
    baselines.extrapolation(moving_blob(1.0)[..., :13], 2)
    assert capfd.readouterr() == ("", "")


def test_without_pysteps_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysteps.motion.proesmans", None)
    monkeypatch.setitem(sys.modules, "pysteps.extrapolation.semilagrangian", None)
    with pytest.raises(InputError, match=r"keras_nowcast\[baselines\]"):
        baselines.extrapolation(np.zeros((1, 8, 8, 13), np.uint8), 12)
