"""Power spectra of forecasts relative to the observation: how sharp a forecast is at each scale.

A field is divided into square tiles, and a tile counts at a lead time if all its pixels were
observed then, so that the edge of a gap is not taken for small-scale echo. From each tile the mean
is subtracted, and a Hann window is applied, since the two sides of a tile do not continue each
other. The powers of its Fourier modes are summed over rings of equal wavenumber, and over tiles,
windows and events.

Source: rings as in the radially averaged spectrum of pysteps (Ruzanski and Chandrasekar 2011);
spectra as a check of the small scales of precipitation forecasts: Harris et al. (2001), Sinclair
and Pegram (2005); averages over windowed segments: Welch (1967).
Choice: tiles of 64 pixels instead of complete fields, so that a field with a gap still counts.
"""

import functools

import numpy as np

from keras_nowcast.vil import MISSING

TILE = 64  # pixels along a side of a tile, at most
BANDS_KM = (8, 16)
_WAVES_IN_A_TILE = 4  # a wavelength that fits fewer times is smeared by the Hann window


def power_sums(forecast, observation, tile=TILE):
    """Sums the power of both fields over the modes of each ring and over the tiles.

    Ring r has the wavelength side / r, with `side` the pixels along a side of a tile. The sum over
    the rings is the variance of a tile, except for the corners of the spectrum, which have
    wavelengths below two pixels.

    Args:
      forecast: (b, y, x, l), uint8 or any float, in codes; NaN counts as code 0.
      observation: (b, y, x, l) uint8 codes.
      tile: pixels along a side of a tile; a smaller field is one tile.

    Returns:
      (l, ring, 2) float64, codes squared: of the forecast and of the observation, summed over the
      tiles without a missing pixel. Rings are 0, whose power is 0, to half the side, exclusive.
    """
    _, y, x, leads = observation.shape
    side = tile_side(tile, (y, x))
    places = [(i, j) for i in _starts(y, side) for j in _starts(x, side)]
    sums = np.zeros((leads, (side + 1) // 2, 2))
    for lead in range(leads):
        observed = _tiles(observation[..., lead], places, side)
        complete = (observed != MISSING).all(axis=(1, 2))
        tiles = _tiles(forecast[..., lead], places, side)[complete]
        for k, field in enumerate((np.nan_to_num(tiles), observed[complete])):
            sums[lead, :, k] = _ring_sums(field, side)
    return sums


def tile_side(tile, shape):
    """Returns the pixels along a side of the tiles of a field of this shape, (y, x)."""
    return min(tile, *shape)


def relative_power(power):
    """Returns (...): power of the forecast divided by that of the observation; 1 is perfect.

    Args:
      power: (..., 2), as the last axis of `power_sums`.
    """
    forecast, observed = power[..., 0], power[..., 1]
    return np.divide(forecast, observed, out=np.full(observed.shape, np.nan), where=observed > 0)


def power_below(power, wavelength_km, side_km):
    """Returns (...): power below a wavelength, of the forecast divided by the observation's.

    Args:
      power: (..., ring, 2), as of `power_sums`.
      wavelength_km: the band has the rings of shorter wavelengths, down to two pixels.
      side_km: side of a tile in km, or None if it is unknown.

    Returns:
      float64; below 1 a forecast is smoother than the observation. NaN if no ring is in the band,
      the tile is narrower than four of its wavelengths, or nothing was observed there.
    """
    rings = power.shape[-2]
    if side_km is None or side_km < _WAVES_IN_A_TILE * wavelength_km:
        return np.full(power.shape[:-2], np.nan)
    inside = np.arange(rings) * wavelength_km > side_km
    return relative_power(power[..., inside, :].sum(-2))


def _starts(length, side):
    """Returns the first pixel of each tile: side by side, or overlapping if they do not fit."""
    count = -(-length // side)
    return np.linspace(0, length - side, count).round().astype(int)


def _tiles(field, places, side):
    """Returns (b * tile, side, side), the tiles of (b, y, x)."""
    return np.concatenate([field[:, i : i + side, j : j + side] for i, j in places])


def _ring_sums(tiles, side):
    """Returns (ring,): power of each ring, summed over (tile, side, side) fields."""
    window, modes, ring = _geometry(side)
    tiles = tiles[tiles.any(axis=(1, 2))].astype(np.float64)
    tiles -= np.einsum("tyx,yx->t", tiles, window)[:, None, None] / window.sum()
    tiles *= window
    spectrum = np.fft.rfft2(tiles)
    power = np.einsum("tyx,tyx->yx", spectrum.real, spectrum.real)
    power += np.einsum("tyx,tyx->yx", spectrum.imag, spectrum.imag)
    scale = side**2 * np.square(window).sum()
    sums = np.bincount(ring.ravel(), (power * modes).ravel() / scale)
    return sums[: (side + 1) // 2]


@functools.lru_cache
def _geometry(side):
    """Returns the window (side, side), and the number of modes and ring of rfft2's elements."""
    hann = np.sin(np.pi * np.arange(side) / side) ** 2
    rows, columns = np.fft.fftfreq(side, 1 / side), np.arange(side // 2 + 1)
    # rfft2 leaves out the mirror images of the columns, except of the first and of the middle one.
    modes = np.where((columns == 0) | (2 * columns == side), 1.0, 2.0)
    ring = np.hypot(rows[:, None], columns).round().astype(int)
    return np.outer(hann, hann), np.broadcast_to(modes, ring.shape), ring
