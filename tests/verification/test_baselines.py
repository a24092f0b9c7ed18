import contextlib
import io
import sys

import numpy as np
import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.verification import baselines, evaluate
from keras_nowcast.vil import MISSING

METHODS = [getattr(baselines, name) for name in baselines.PYSTEPS_METHODS]
each_method = pytest.mark.parametrize("method", METHODS, ids=baselines.PYSTEPS_METHODS)


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


@each_method
def test_each_method_carries_an_echo_along(method):
    pytest.importorskip("pysteps")
    vil = moving_blob(1.0)
    forecast = method(vil[..., :13], 12)
    assert forecast.shape == (1, 64, 64, 12) and forecast.dtype == np.float32
    truth = vil[..., 13:]
    still = baselines.persistence(vil[..., :13], 12)

    def error(field):
        return np.abs(field - truth).mean((0, 1, 2))

    assert (error(forecast)[1:] < 0.35 * error(still)[1:]).all()


@each_method
def test_fields_without_echo_without_data_or_without_change(method):
    pytest.importorskip("pysteps")
    vil = np.zeros((4, 32, 32, 13), np.uint8)
    vil[1] = MISSING
    vil[2] = 40
    vil[3, ..., :12] = 40
    forecast = method(vil, 12)
    assert (forecast[[0, 1, 3]] == 0).all()
    np.testing.assert_allclose(forecast[2], 40)


@each_method
def test_a_method_is_the_same_in_every_batch(method):
    pytest.importorskip("pysteps")
    vil = np.concatenate([moving_blob(1.0), moving_blob(2.0)])[..., :13]
    vil[0, :10] = MISSING
    together = method(vil, 3)
    apart = np.concatenate([method(vil[i : i + 1], 3) for i in (0, 1)])
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize(("side", "levels"), [(4, 1), (7, 1), (8, 2), (32, 4), (96, 5), (384, 6)])
def test_the_coarsest_level_keeps_four_pixels(side, levels):
    assert baselines._pyramid_levels((side, 384)) == levels


def test_a_grid_too_small_for_a_motion():
    pytest.importorskip("pysteps")
    with pytest.raises(InputError, match="3 x 8"):
        baselines.extrapolation(np.ones((1, 3, 8, 13), np.uint8), 12)


@each_method
def test_pysteps_keeps_quiet(method, capfd):
    pytest.importorskip("pysteps")
    for name in [name for name in sys.modules if name.split(".")[0] == "pysteps"]:
        sys.modules.pop(name)
    method(moving_blob(1.0)[..., :13], 2)
    assert capfd.readouterr() == ("", "")


@each_method
def test_without_pysteps_one_clear_line(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "pysteps.motion.proesmans", None)
    monkeypatch.setitem(sys.modules, "pysteps.extrapolation.semilagrangian", None)
    with pytest.raises(InputError, match=r"keras_nowcast\[baselines\]"):
        method(np.zeros((1, 8, 8, 13), np.uint8), 12)


def rainy_windows(count=2, size=48):
    """(b, y, x, 25) codes: smooth echoes that move, grow and decay, with gaps; seeded."""
    from scipy.ndimage import gaussian_filter

    draw = np.random.default_rng(3)
    windows = []
    for _ in range(count):
        noise = gaussian_filter(draw.normal(size=(2, size, size + 60)), (0, 3, 3))
        frames = [
            np.roll(noise[0] + t / 40 * noise[1], t, axis=-1)[:, 30 : 30 + size] for t in range(25)
        ]
        codes = np.clip(1500 * np.stack(frames, axis=-1) - 20, 0, 250).astype(np.uint8)
        codes[:6, 10:14] = MISSING
        codes[20, 20, 5] = MISSING
        windows.append(codes)
    return np.stack(windows)


def by_hand(name, window, leads):
    """The forecast of one window (y, x, 13), from calls of pysteps that share no code with ours."""
    from pysteps import nowcasts
    from pysteps.motion import get_method

    frames = np.where(window == MISSING, 0.0, window).transpose(2, 0, 1)
    motion = get_method("proesmans")(frames[-2:], num_levels=4)  # 48, 24, 12 and 6 pixels

    def forecast(method, fields, **options):
        with contextlib.redirect_stdout(io.StringIO()):
            return nowcasts.get_method(method)(fields, motion, leads, **options)

    carried = forecast("extrapolation", frames[-1])
    codes = {
        "extrapolation": lambda: carried,
        "sprog": lambda: forecast(
            "sprog", frames[-3:], precip_thr=1, probmatching_method="mean", n_cascade_levels=6
        ),
        "anvil": lambda: forecast("anvil", frames[-4:], ar_window_radius=None, n_cascade_levels=6),
    }[name]()
    for lead in range(leads):
        for y, x in np.argwhere(np.isnan(codes[lead])):
            value = carried[lead, y, x]
            codes[lead, y, x] = frames[-1, y, x] if np.isnan(value) else value
    return codes.transpose(1, 2, 0)


@pytest.mark.parametrize("name", baselines.PYSTEPS_METHODS)
def test_numbers_are_those_of_pysteps_by_hand(name):
    """Done by hand, with persistence where pysteps has no value."""
    pytest.importorskip("pysteps")
    vil = rainy_windows()[..., :13]
    forecast = getattr(baselines, name)(vil, 12)
    expected = np.stack([by_hand(name, window, 12) for window in vil])
    np.testing.assert_allclose(forecast, expected, rtol=1e-6, atol=1e-4)
    if name != "extrapolation":  # no method falls back on another one
        assert np.abs(forecast - baselines.extrapolation(vil, 12)).mean() > 1


@each_method
def test_pixels_with_inflow_keep_their_last_code(method):
    pytest.importorskip("pysteps")
    vil = moving_blob(2.0)[..., :13]
    ramp = np.linspace(20, 60, 64)[None, :, None, None]
    vil = np.maximum(vil, ramp).astype(np.uint8)
    vil[0, 5, 0, 12] = MISSING
    forecast = method(vil, 12)
    assert np.isfinite(forecast).all()
    (motion,) = baselines.motion_fields(vil)
    from pysteps.extrapolation.semilagrangian import extrapolate

    field = np.where(vil[0, ..., 12] == MISSING, 0.0, vil[0, ..., 12])
    inflow = np.isnan(extrapolate(field, motion, 12))
    assert inflow[-1, :, 0].mean() > 0.5  # the blob moves away from this edge
    for lead in range(12):
        np.testing.assert_array_equal(forecast[0, ..., lead][inflow[lead]], field[inflow[lead]])
    assert inflow[-1, 5, 0] and forecast[0, 5, 0, -1] == 0


def test_every_method_is_scored_on_the_same_pixels():
    pytest.importorskip("pysteps")
    vil = rainy_windows()
    vil[0, :, 30:, 20] = MISSING
    motion = baselines.shared_motion()
    methods = {method.__name__: lambda x, m=method: m(x, 12, motion) for method in METHODS}
    methods["persistence"] = lambda x: baselines.persistence(x, 12)
    methods["nothing"] = lambda x: np.full((*x.shape[:3], 12), np.nan, np.float32)
    windows = [(str(i), window[..., :13], window[..., 13:]) for i, window in enumerate(vil)]
    totals = evaluate.accumulate(windows, methods, (16, 74)).totals()
    valid = (vil[..., 13:] != MISSING).sum((0, 1, 2))
    assert valid[7] < valid[6]
    for total in totals.values():
        np.testing.assert_array_equal(total.n(), valid)


def test_a_shared_motion_is_computed_once_for_each_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(baselines, "motion_fields", lambda vil: seen.append(vil) or [len(seen)])
    first, second = np.zeros((1, 4, 4, 13)), np.zeros((1, 4, 4, 13))
    motion = baselines.shared_motion()
    assert [motion(each) for each in (first, first, second, second, first)] == [
        [1],
        [1],
        [2],
        [2],
        [3],
    ]


@each_method
def test_no_field_is_too_poor_for_a_forecast(method):
    """Single pixels, echoes that come or go, and frames without change: finite codes, no error."""
    pytest.importorskip("pysteps")
    draw = np.random.default_rng(1)
    vil = np.zeros((40, 16, 16, 13), np.uint8)
    for window in vil[:30]:
        for frame in range(9, 13):
            for _ in range(draw.integers(0, 4)):
                window[draw.integers(16), draw.integers(16), frame] = draw.choice([1, 16, 200])
    vil[30:35] = draw.integers(0, 250, (5, 16, 16, 1))  # nothing changes
    vil[35:38, ..., -1] = draw.integers(0, 250, (3, 16, 16))  # the first echo
    vil[38, ..., 12] = vil[39, ..., 9:12] = MISSING
    vil[39, 3:9, 3:9, 12] = 90
    forecast = method(vil, 12)
    assert np.isfinite(forecast).all()
    assert (forecast >= 0).all() and (forecast <= 1000).all()
    last = np.where(vil[..., -1] == MISSING, 0, vil[..., -1])
    assert (forecast[last.any((1, 2))].max((1, 2, 3)) > 0).all()
