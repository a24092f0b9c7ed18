"""Forecasts that need no training: what a network has to beat.

Each takes (b, y, x, time) uint8 codes, 13 frames, and returns (b, y, x, lead) float32 codes, as
the evaluation asks of every method. Missing pixels of the input count as no echo, code 0.
"""

import contextlib
import io

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.vil import MISSING

# pysteps' own number of pyramid levels, and the smallest side at which its edges are safe.
_LEVELS = 6
_SMALLEST_SIDE = 4


def persistence(vil, leads):
    """Returns the last input frame, `leads` times.

    Args:
      vil: (b, y, x, time) uint8 codes.
      leads: number of forecast frames.

    Source: the SEVIR authors' baseline; theirs takes frame 11 of 0 to 12, which is not the last.
    """
    last = _without_gaps(vil[..., -1:])
    return np.repeat(last, leads, axis=-1)


def extrapolation(vil, leads):
    """Returns the last input frame carried on along its own motion (optical flow, by pysteps).

    Motion is that between the last two frames, by the anisotropic diffusion method of Proesmans
    et al. (1994); the frame is carried along it backwards in time, semi-Lagrangian (Germann and
    Zawadzki 2002). A pixel whose air comes from outside the grid is NaN.

    Args:
      vil: (b, y, x, time) uint8 codes.
      leads: number of forecast frames.

    Raises:
      InputError: pysteps is not installed.

    Choice: Proesmans' method needs neither OpenCV, as Lucas-Kanade does, nor a number of sectors
    that suits the grid, as variational echo tracking does; docs/scores.md compares them. It works
    on codes, which are nearly logarithmic in rain, as optical flow wants it.
    """
    flow, carry = _pysteps()
    last_two = _without_gaps(vil[..., -2:]).astype(np.float64)
    forecasts = np.zeros((*vil.shape[:3], leads), np.float32)
    levels = _pyramid_levels(vil.shape[1:3])
    for frames, forecast in zip(last_two, forecasts, strict=True):
        if not frames[..., -1].any():
            continue  # nothing to carry
        motion = flow(np.moveaxis(frames, -1, 0), num_levels=levels)
        forecast[:] = np.moveaxis(carry(frames[..., -1], motion, leads), 0, -1)
    return forecasts


def _without_gaps(vil):
    return np.where(vil == MISSING, 0, vil).astype(np.float32)


def _pyramid_levels(grid):
    """Returns how often the grid may be halved, the full grid included.

    pysteps reads outside its arrays where the coarsest level is a single pixel: not a number, or
    the end of the process.
    """
    side = min(grid)
    if side < _SMALLEST_SIDE:
        raise InputError(
            f"`vil` must be at least {_SMALLEST_SIDE} pixels wide and high for extrapolation. "
            f"Received: {grid[0]} x {grid[1]}"
        )
    return min(_LEVELS, int(np.log2(side / _SMALLEST_SIDE)) + 1)


def _pysteps():
    # pysteps greets on standard output when it is imported.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.proesmans import proesmans
        except ImportError as error:
            raise InputError(
                "`extrapolation` needs pysteps: pip install 'keras_nowcast[baselines]'. "
                f"Received: {error}"
            ) from error
    return proesmans, extrapolate
