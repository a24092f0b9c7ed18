"""Forecasts that need no training: the baselines that a trained model must beat.

Each takes (b, y, x, time) uint8 codes, 13 frames, and returns (b, y, x, lead) float32 codes, as
the evaluation requires of every method. Missing input pixels count as no echo, code 0.
"""

import contextlib
import io

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.vil import MISSING

# The default number of pyramid levels of pysteps, and the smallest side that it can handle.
_LEVELS = 6
_SMALLEST_SIDE = 4


def persistence(vil, leads):
    """Returns the last input frame `leads` times.

    Args:
      vil: (b, y, x, time) uint8 codes.
      leads: number of forecast frames.

    Source: the SEVIR authors' baseline. Theirs takes frame 11 of 0 to 12, which is not the last.
    """
    last = _without_gaps(vil[..., -1:])
    return np.repeat(last, leads, axis=-1)


def extrapolation(vil, leads):
    """Returns the last input frame advected by its motion, from the optical flow of pysteps.

    The motion is that between the last two frames, by the anisotropic diffusion method of
    Proesmans et al. (1994). The frame is advected backward in time by a semi-Lagrangian scheme
    (Germann and Zawadzki 2002). A pixel with inflow from outside the grid is NaN.

    Args:
      vil: (b, y, x, time) uint8 codes.
      leads: number of forecast frames.

    Raises:
      InputError: pysteps is not installed.

    Choice: the method of Proesmans does not need OpenCV, as Lucas-Kanade does, or a number of
    sectors that fits the grid, as variational echo tracking does; docs/scores.md compares them. It
    works on codes, which are nearly logarithmic in rain rate, as optical flow requires.
    """
    flow, carry = _pysteps()
    last_two = _without_gaps(vil[..., -2:]).astype(np.float64)
    forecasts = np.zeros((*vil.shape[:3], leads), np.float32)
    levels = _pyramid_levels(vil.shape[1:3])
    for frames, forecast in zip(last_two, forecasts, strict=True):
        if not frames[..., -1].any():
            continue  # no echo to advect
        motion = flow(np.moveaxis(frames, -1, 0), num_levels=levels)
        forecast[:] = np.moveaxis(carry(frames[..., -1], motion, leads), 0, -1)
    return forecasts


def _without_gaps(vil):
    return np.where(vil == MISSING, 0, vil).astype(np.float32)


def _pyramid_levels(grid):
    """Returns the number of pyramid levels, including the full grid.

    If the coarsest level is a single pixel, pysteps reads outside its arrays: it returns NaN or
    crashes.
    """
    side = min(grid)
    if side < _SMALLEST_SIDE:
        raise InputError(
            f"`vil` must be at least {_SMALLEST_SIDE} pixels wide and high for extrapolation. "
            f"Received: {grid[0]} x {grid[1]}"
        )
    return min(_LEVELS, int(np.log2(side / _SMALLEST_SIDE)) + 1)


def _pysteps():
    # pysteps prints a greeting when it is imported.
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
