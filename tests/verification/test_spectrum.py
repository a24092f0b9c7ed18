import numpy as np
import pytest

from keras_nowcast.verification import scores, spectrum

MISSING = 255
KM = 1.0  # side of a pixel
NAN = np.nan


def wave(period, amplitude, shape=(1, 64, 64, 1), axis=2):
    """Returns codes 100 + amplitude * cosine, with `period` in pixels."""
    pixel = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
    return np.broadcast_to(100 + amplitude * np.cos(2 * np.pi * pixel / period), shape)


def codes(field):
    """Returns a wave of whole values as uint8."""
    np.testing.assert_allclose(field, field.round(), atol=1e-12)
    return field.round().astype(np.uint8)


FOUR = codes(wave(4, 40))  # 140, 100, 60, 100: 16 waves in a tile


def below(power, band, side=64):
    return spectrum.power_below(power, band, side * KM)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_wave_is_in_its_ring_and_in_the_two_beside_it(axis):
    # The Hann window spreads 2/3 of a mode's power to the mode, and 1/6 to each neighbor.
    field = codes(wave(4, 40, axis=axis))
    power = spectrum.power_sums(wave(8, 30, axis=axis), field)[0]
    variance = 40**2 / 2
    expected = np.zeros((32, 2))
    expected[15:18, 1] = variance / 6, 2 * variance / 3, variance / 6
    expected[7:10, 0] = 75, 300, 75
    np.testing.assert_allclose(power, expected, atol=1e-9)


def test_power_relative_to_the_observed():
    power = spectrum.power_sums(wave(4, 20), FOUR)
    np.testing.assert_allclose(below(power, 8), 0.25)
    np.testing.assert_allclose(below(power, 16), 0.25)
    np.testing.assert_allclose(spectrum.relative_power(power)[0, 15:18], 0.25)
    np.testing.assert_allclose(below(spectrum.power_sums(FOUR, FOUR), 8), 1)


def test_a_band_ends_at_its_wavelength():
    # 8 waves in 64 km: 8 km. Its power in rings 7, 8 and 9 is 1/6, 2/3 and 1/6.
    observed = FOUR.astype(float) + wave(8, 30) - 100
    power = spectrum.power_sums(observed, FOUR)
    np.testing.assert_allclose(below(power, 8), 1 + (30**2 / 6) / 40**2)  # ring 9 and up
    np.testing.assert_allclose(below(power, 16), 1 + 30**2 / 40**2)  # ring 5 and up
    large = FOUR.astype(float) + wave(64, 50) - 100  # one wave, rings 0 to 2
    np.testing.assert_allclose(below(spectrum.power_sums(large, FOUR), 16), 1)


def test_an_offset_is_no_power():
    power = spectrum.power_sums(FOUR + 50.5, FOUR)
    np.testing.assert_allclose(power[..., 0], power[..., 1], atol=1e-9)
    np.testing.assert_allclose(power[0, 0], 0, atol=1e-12)


def test_only_tiles_without_a_missing_pixel_count():
    shape = (2, 128, 128, 2)
    observed = np.broadcast_to(codes(wave(4, 40, shape)), shape).copy()
    forecast = wave(4, 20, shape).copy()
    forecast[:, :64, :64], forecast[1, ..., 1] = 0, 0  # perfect nowhere there
    observed[:, 5, 5] = MISSING
    observed[1, :, ::64, 1] = MISSING  # every tile of the second window at the second lead
    power = spectrum.power_sums(forecast, observed)
    one = spectrum.power_sums(wave(4, 20), FOUR)[0]
    np.testing.assert_allclose(power[0], 6 * one, atol=1e-9)  # three tiles of two windows
    np.testing.assert_allclose(power[1], 3 * one, atol=1e-9)


@pytest.mark.parametrize(("length", "starts"), [(384, range(0, 384, 64)), (96, (0, 32)), (64, [0])])
def test_tiles_cover_the_field(length, starts):
    assert list(spectrum._starts(length, 64)) == list(starts)


def test_undefined_power():
    nothing = np.zeros((1, 64, 64, 1), np.uint8)
    assert np.isnan(below(spectrum.power_sums(FOUR, nothing), 8))
    gaps = np.full((1, 64, 64, 1), MISSING, np.uint8)
    assert np.isnan(below(spectrum.power_sums(FOUR, gaps), 8))
    power = spectrum.power_sums(FOUR, FOUR)
    assert below(power, 8) == 1
    assert np.isnan(spectrum.power_below(power, 8, None))
    # Pixels of 4 km: the shortest wavelength, two pixels, is 8 km.
    assert np.isnan(spectrum.power_below(power, 8, 64 * 4.0))
    assert spectrum.power_below(power, 16, 64 * 4.0) == 1
    # A tile of 32 km holds two waves of 16 km and four of 8 km.
    small = spectrum.power_sums(FOUR[:, :32, :32], FOUR[:, :32, :32])
    assert np.isnan(below(small, 16, 32)) and below(small, 8, 32) == 1


def test_a_missing_forecast_is_no_echo():
    forecast = FOUR.astype(np.float32)
    forecast[:, 10:20] = NAN
    power = spectrum.power_sums(forecast, FOUR)
    np.testing.assert_array_equal(power, spectrum.power_sums(np.nan_to_num(forecast), FOUR))


@pytest.mark.parametrize("side", [64, 33])
def test_pysteps_agrees(side):
    spectral = pytest.importorskip("pysteps.utils.spectral")
    rng = np.random.default_rng(0)
    observed = rng.integers(0, 255, (1, side, side, 1)).astype(np.uint8)
    forecast = rng.uniform(0, 254, observed.shape)
    power = spectrum.power_sums(forecast, observed)
    window = np.outer(*2 * [np.sin(np.pi * np.arange(side) / side) ** 2])
    y, x = np.indices((side, side)) - side // 2
    modes = np.bincount(np.hypot(y, x).round().astype(int).ravel())
    for k, field in enumerate((forecast, observed)):
        field = field[0, ..., 0].astype(float)
        field = (field - np.average(field, weights=window)) * window
        theirs = spectral.rapsd(field, fft_method=np.fft)  # the mean over the modes of a ring
        expected = theirs * modes[: len(theirs)] / np.square(window).sum()
        np.testing.assert_allclose(power[0, :, k], expected, atol=1e-9)


def test_power_is_a_statistic():
    rng = np.random.default_rng(0)
    observed = rng.integers(0, 255, (4, 24, 24, 3)).astype(np.uint8)
    forecast = rng.uniform(0, 254, observed.shape)
    whole, *parts = (
        scores.statistics(forecast[part], observed[part], (16,), tile=16)
        for part in (slice(None), slice(0, 1), slice(1, 4))
    )
    assert whole.tile == 16 and whole.power.shape == (3, 8, 2)
    np.testing.assert_allclose((parts[0] + parts[1]).power, whole.power)
    np.testing.assert_allclose(scores.all_leads(whole).power, whole.power.sum(0, keepdims=True))
    without = scores.statistics(forecast, observed, (16,))
    assert without.power.shape == (3, 0, 2)
    with pytest.raises(scores.InputError, match="tile"):
        whole + without
