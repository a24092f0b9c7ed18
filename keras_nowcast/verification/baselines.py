"""Forecasts that need no training: the baselines that a trained model must beat.

Each takes (b, y, x, time) uint8 codes, 13 frames, and returns (b, y, x, lead) float32 codes, as
the evaluation requires of every method. Missing input pixels count as no echo, code 0, as they do
for the model. Every pixel of a forecast has a value: where the motion brings air from outside the
grid (inflow), a method keeps the code that the pixel has in the last input frame, as persistence
does. Where that code is missing, the forecast is no echo.
"""

import contextlib
import functools
import importlib.util
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAMES_OUT, MISSING

# The methods that need pysteps, weakest first; each is a function of this module.
PYSTEPS_METHODS = ("extrapolation", "sprog", "anvil")

# The default number of pyramid levels of pysteps, and the smallest side that it can handle.
_LEVELS = 6
_SMALLEST_SIDE = 4

# Of both autoregressive methods: the defaults of pysteps, set here because versions differ.
_ORDER = 2
_CASCADE_LEVELS = 6
_ECHO = 0.5  # codes; every code above 0 is an echo


def persistence(vil, leads):
    """Returns the last input frame `leads` times.

    Args:
      vil: (b, y, x, time) uint8 codes.
      leads: number of forecast frames.

    Source: the SEVIR authors' baseline. Theirs takes frame 11 of 0 to 12, which is not the last.
    """
    last = _without_gaps(vil[..., -1:])
    return np.repeat(last, leads, axis=-1)


def extrapolation(vil, leads, motion=None):
    """Returns the last input frame advected by its motion, from the optical flow of pysteps.

    The frame is advected backward in time by a semi-Lagrangian scheme (Germann and Zawadzki 2002).
    Pixels with inflow from outside the grid keep their last code.

    Args:
      vil: (b, y, x, time) uint8 codes.
      leads: number of forecast frames.
      motion: function of `vil`, as `motion_fields`; None for that one.

    Raises:
      InputError: pysteps is not installed.
    """
    return _filled(vil, leads, motion, _carried)


def sprog(vil, leads, motion=None):
    """Returns the forecast of S-PROG, from pysteps: echoes move, and fade scale by scale.

    The last three frames, aligned by the motion, are split into six spatial scales. An
    autoregressive model of order 2 continues each scale, so that small features, which cannot be
    forecast for long, fade first. The forecast has the wet area of the last frame and, within it,
    the same mean. A window whose frames do not suffice for the model (without echo, without
    change) has the forecast of `extrapolation`.

    Args:
      vil, leads, motion: as for `extrapolation`.

    Raises:
      InputError: pysteps is not installed.

    Source: Seed (2003); Pulkkinen et al. (2019).

    Choice: S-PROG expects a logarithmic field, which codes above 18 are. Every code above 0 is an
    echo: a threshold at code 16 gives a higher MSE. The mean is matched and not the distribution,
    which gives a higher CSI 74 and a higher MSE; docs/scores.md compares them.
    """
    return _filled(vil, leads, motion, _sprog)


def anvil(vil, leads, motion=None):
    """Returns the forecast of ANVIL, from pysteps: echoes move, and grow or decay scale by scale.

    An autoregressive model of order 2 continues the changes between the last four frames, aligned
    by the motion, in each of six spatial scales. Where an aligned frame does not reach, the
    forecast is that of `extrapolation`.

    Args:
      vil, leads, motion: as for `extrapolation`.

    Raises:
      InputError: pysteps is not installed.

    Source: Pulkkinen et al. (2020), doi 10.1109/TGRS.2020.2984594.

    Choice: the publication forecasts VIL in kg/m2. On codes, MSE and CSI 16 are better on the
    radar of docs/scores.md, which compares them. The model has the same parameters in all pixels:
    those of a window of 50 pixels, the default of pysteps, give nearly the same scores and take
    longer.
    """
    return _filled(vil, leads, motion, _anvil)


def motion_fields(vil):
    """Returns a list of the motion of each window, (2, y, x) pixels per frame.

    The motion is that between the last two frames, by the anisotropic diffusion method of
    Proesmans et al. (1994). It is None for a window whose last frame has no echo.

    Args:
      vil: (b, y, x, time) uint8 codes.

    Raises:
      InputError: pysteps is not installed, or a side is shorter than four pixels.

    Choice: the method of Proesmans does not need OpenCV, as Lucas-Kanade does, or a number of
    sectors that fits the grid, as variational echo tracking does; docs/scores.md compares them. It
    works on codes, which are nearly logarithmic in rain rate, as optical flow requires.
    """
    flow = _pysteps().flow
    levels = _pyramid_levels(vil.shape[1:3])
    pairs = np.moveaxis(_without_gaps(vil[..., -2:]).astype(np.float64), -1, 1)
    return [flow(pair, num_levels=levels) if pair[-1].any() else None for pair in pairs]


def shared_motion():
    """Returns `motion_fields` with a memory of its last argument, for several methods in turn."""
    last = (None, None)

    def motion(vil):
        nonlocal last
        if last[0] is not vil:
            last = vil, motion_fields(vil)
        return last[1]

    return motion


def _filled(vil, leads, motion, method):
    """Returns the forecasts of `method`, with persistence where they are not finite.

    Args:
      vil, leads, motion: as for `extrapolation`.
      method: function of frames (time, y, x) float64, motion (2, y, x) and leads that returns
        (lead, y, x) codes.
    """
    forecasts = persistence(vil, leads)
    frames = np.moveaxis(_without_gaps(vil[..., -_ORDER - 2 :]).astype(np.float64), -1, 1)
    for window, field, forecast in zip(
        frames, (motion or motion_fields)(vil), forecasts, strict=True
    ):
        if field is not None:
            codes = np.moveaxis(method(window, field, leads), 0, -1)
            np.copyto(forecast, codes, where=np.isfinite(codes), casting="same_kind")
    return forecasts


def _carried(frames, motion, leads):
    """Returns the last frame carried along; NaN where there is inflow."""
    return _pysteps().carry(frames[-1], motion, leads)


def _sprog(frames, motion, leads):
    frames = frames[-_ORDER - 1 :]
    if not _vary_when_aligned(frames, motion):
        return _carried(frames, motion, leads)
    options = {"precip_thr": _ECHO, "probmatching_method": "mean"}
    return _autoregressive(_pysteps().sprog, frames, motion, leads, options)


def _vary_when_aligned(frames, motion):
    """True if no frame is constant once it has been moved to the time of the last one.

    S-PROG divides by the standard deviation of each, and forecasts no echo if that is 0.
    """
    *earlier, last = frames
    carry = _pysteps().carry
    aligned = [
        carry(frame, motion, len(earlier) - i, outval="min")[-1] for i, frame in enumerate(earlier)
    ]
    return all(np.ptp(frame) > 0 for frame in [*aligned, last])


def _anvil(frames, motion, leads):
    options = {"ar_window_radius": None}
    return _autoregressive(_pysteps().anvil, frames, motion, leads, options)


def _autoregressive(method, frames, motion, leads, options):
    """Returns the forecast of a method of pysteps, and that of `_carried` where it has none."""
    carried = _carried(frames, motion, leads)
    options = {"n_cascade_levels": _CASCADE_LEVELS, "ar_order": _ORDER, **options}
    try:
        with quiet():
            forecast = method(frames, motion, leads, **options)
    except (IndexError, RuntimeError, ValueError):
        # pysteps finds no autoregressive model, as for frames without any change, or no wet area,
        # as for a single pixel with echo.
        return carried
    return np.where(np.isfinite(forecast), forecast, carried)


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


@contextlib.contextmanager
def quiet():
    """Keeps pysteps from printing, and NumPy from warning of 0/0, which is handled."""
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        yield


class _Pysteps(NamedTuple):
    """The functions of pysteps that are used."""

    flow: Callable
    carry: Callable
    sprog: Callable
    anvil: Callable


def _pysteps():
    with quiet():  # pysteps prints a greeting when it is imported
        try:
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.proesmans import proesmans
            from pysteps.nowcasts import anvil, sprog
        except ImportError as error:
            raise InputError(
                "`extrapolation`, `sprog` and `anvil` need pysteps: pip install "
                f"'keras_nowcast[baselines]'. Received: {error}"
            ) from error
    return _Pysteps(proesmans, extrapolate, sprog.forecast, anvil.forecast)


def choose_methods(names, say=lambda line: None):
    """Returns the names of the baselines to score.

    Args:
      names: as `--methods`; None for all that the installed packages allow.
      say: called with a line on what is left out.

    Raises:
      InputError: a named baseline needs pysteps, which is not installed.
    """
    has_pysteps = importlib.util.find_spec("pysteps") is not None
    if names is None and has_pysteps:
        return ("persistence", *PYSTEPS_METHODS)
    if names is None:
        say(
            f"{', '.join(PYSTEPS_METHODS)} are not scored: they need pysteps "
            "(pip install -e .[baselines])"
        )
        return ("persistence",)
    if not has_pysteps and {*names} & {*PYSTEPS_METHODS}:
        raise InputError(
            f"`--methods` must be persistence where pysteps is not installed. Received: "
            f"{' '.join(names)}; pip install -e .[baselines]"
        )
    return tuple(dict.fromkeys(names))


def build_methods(forecast, names, is_first):
    """Returns the methods to score: {name: function of (b, y, x, 13) VIL codes}.

    Args:
      forecast: the model, a function of (b, y, x, 13) VIL codes.
      names: of the baselines, as for `choose_methods`.
      is_first: True on the rank that prints.

    Raises:
      InputError: a named baseline needs pysteps, which is not installed.
    """
    names = choose_methods(names, print if is_first else (lambda line: None))
    motion = shared_motion()
    methods = {"model": forecast}
    for name in names:
        if name == "persistence":
            methods[name] = functools.partial(persistence, leads=FRAMES_OUT)
        else:
            function = {"extrapolation": extrapolation, "sprog": sprog, "anvil": anvil}[name]
            methods[name] = functools.partial(function, leads=FRAMES_OUT, motion=motion)
    return methods
