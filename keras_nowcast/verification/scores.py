"""Scores of radar forecasts: additive statistics, and ratios that are computed from them once.

A *statistic* (a count, a sum of errors) is additive: that of two batches, ranks or files is exactly
the sum of theirs. A *score* (CSI, FSS, MAE) is a ratio of statistics and is not additive. Nothing
here averages a score, except in a convention that does so and is requested by name.

Axis letters: b batch, y and x space, l lead time, t threshold.

Values are VIL codes, 0 to 254, or a float forecast of them. An event is `value >= threshold`
(Source: SEVIR's own scores and the fractions skill score of pysteps; the contingency tables of
pysteps use `>`). Float forecasts are compared without rounding. For pooling and windows, where one
byte per pixel is enough, they are rounded down. Thresholds are whole numbers, so
`floor(forecast) >= threshold` is equivalent.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.verification import spectrum
from keras_nowcast.vil import MISSING

# Pixels, of one byte each, that are counted at a time: few enough for the processor's cache.
_BLOCK_BYTES = 1 << 18
_MOST_IN_A_BYTE = 255  # rows, with at most one event each

# The value of a score whose denominator is 0; docs/scores.md lists who uses which.
EMPTY = {"undefined": np.nan, "one": 1.0, "zero": 0.0}
POOLING = ("pooled", "leads", "batches")


class Contingency(NamedTuple):
    """The four counts of a contingency table, arrays of one shape."""

    hits: np.ndarray
    misses: np.ndarray
    false_alarms: np.ndarray
    correct_negatives: np.ndarray


@dataclass(frozen=True, eq=False)
class Statistics:
    """Everything that scores are computed from. Additive, with any leading axes (such as events).

    Attributes:
      thresholds: codes, ascending.
      pools: sides in pixels of the max-pooling blocks; the first is 1, a single pixel.
      scales: sides in pixels of the windows of the fractions skill score.
      tile: side in pixels of the tiles of the power spectrum; 0 if it was not computed.
      counts: (..., pool, l, t, 4) int64: hits, misses, false alarms, correct negatives.
      errors: (..., l, 3) float64: sums of forecast - observation, of its absolute value (codes)
        and of its square (codes squared). Exact for forecasts in whole codes.
      fractions: (..., scale, l, t, 2) float64 of whole numbers: numerator and denominator of
        1 - FSS, in pixels to the fourth power.
      power: (..., l, ring, 2) float64, codes squared, as of `spectrum.power_sums`.
    """

    thresholds: tuple
    pools: tuple
    scales: tuple
    tile: int
    counts: np.ndarray
    errors: np.ndarray
    fractions: np.ndarray
    power: np.ndarray

    def __add__(self, other):
        return self._with(
            *(mine + its for mine, its in zip(self._sums(), self._matched(other), strict=True))
        )

    def total(self):
        """Returns the sum over the leading axes, for example over all events."""
        axes = tuple(range(self.counts.ndim - 4))
        return self._with(*(array.sum(axes) for array in self._sums()))

    def event(self, index):
        """Returns the Statistics at `index` of the first axis."""
        return self._with(*(array[index] for array in self._sums()))

    def contingency(self, pool=1):
        """Returns the Contingency of blocks of `pool` pixels, each array (..., l, t) int64."""
        counts = self.counts[..., self.pools.index(pool), :, :, :]
        return Contingency(*np.moveaxis(counts, -1, 0))

    def n(self):
        """Returns (..., l) int64: the number of scored pixels, those with an observation."""
        return self.counts[..., 0, :, 0, :].sum(-1)

    def _sums(self):
        return self.counts, self.errors, self.fractions, self.power

    def _with(self, *sums):
        return Statistics(self.thresholds, self.pools, self.scales, self.tile, *sums)

    def _matched(self, other):
        mine = (self.thresholds, self.pools, self.scales, self.tile)
        its = (other.thresholds, other.pools, other.scales, other.tile)
        if mine != its:
            raise InputError(
                "`other` must have the same thresholds, pools, scales and tile to be added. "
                f"Received: {its}, expected {mine}"
            )
        return other._sums()


def stacked(parts):
    """Returns the Statistics of `parts` (a sequence of Statistics) with a first axis over them."""
    first = parts[0]
    sums = zip(first._sums(), *(first._matched(part) for part in parts[1:]), strict=True)
    return first._with(*(np.stack(arrays) for arrays in sums))


def grouped(statistics, groups):
    """Returns Statistics summed by group, with a first axis over the sorted groups.

    Args:
      statistics: Statistics with one leading axis, for example of events.
      groups: a name for each index of that axis.
    """
    names, index = np.unique(groups, return_inverse=True)

    def summed(array):
        total = np.zeros((len(names), *array.shape[1:]), array.dtype)
        np.add.at(total, index, array)
        return total

    return statistics._with(*(summed(array) for array in statistics._sums()))


def statistics(forecast, observation, thresholds, pools=(1,), scales=(), tile=0):
    """Returns the Statistics of a batch of forecasts.

    A pixel that is missing from the observation does not count. A pixel that is missing from the
    forecast (NaN, as extrapolation gives for inflow) counts as code 0, no echo, so that all methods
    are scored on the same pixels.

    Args:
      forecast: (b, y, x, l), uint8 or any float, in codes.
      observation: (b, y, x, l) uint8 codes.
      thresholds: whole codes from 1 to 254, ascending.
      pools: sides of the max-pooling blocks, pixels; 1 comes first.
      scales: sides of the windows of the fractions skill score, pixels.
      tile: side of the tiles of the power spectrum, pixels, at most; 0 for no spectrum.

    Raises:
      InputError: a threshold is outside 1 to 254 or out of order, the shapes differ, or the
        observation is not uint8.

    Source: max-pooling precedes the threshold, and blocks that the edge of the grid cuts are left
    out, as in PreDiff's CSI-pool (arXiv 2307.10422, datasets/sevir/evaluation.py). FSS is that of
    Roberts and Lean (2008), with zeros beyond the edge as in pysteps.
    Choice: for pooling and windows, a missing pixel is not an event in either field. A block
    without an observed pixel and a window whose center is missing do not count.
    """
    thresholds, pools, scales = _checked(thresholds, pools, scales)
    forecast, observation = _checked_fields(forecast, observation)
    leads = observation.shape[-1]
    counts = [_tables(forecast, observation, thresholds)]
    if len(pools) > 1 or scales:
        valid = observation != MISSING
        # Missing pixels are 0 in both, so that they are neither an event nor a maximum.
        seen_forecast, seen = _floored(forecast) * valid, observation * valid
    for pool in pools[1:]:
        blocks = [_block_maximum(field, pool) for field in (seen_forecast, seen, valid)]
        observed = np.where(blocks[2], blocks[1], MISSING).astype(np.uint8)
        counts.append(_tables(blocks[0], observed, thresholds))
    fractions = np.zeros((len(scales), leads, len(thresholds), 2))
    if scales:
        for t, threshold in enumerate(thresholds):
            events = [field >= threshold for field in (seen_forecast, seen)]
            fractions[:, :, t] = _fraction_sums(*events, valid, scales)
    power = np.zeros((leads, 0, 2))
    if tile:
        tile = spectrum.tile_side(tile, observation.shape[1:3])
        power = spectrum.power_sums(forecast, observation, tile)
    errors = _error_sums(forecast, observation)
    return Statistics(thresholds, pools, scales, tile, np.stack(counts), errors, fractions, power)


def contingency_counts(forecast, observation, thresholds):
    """Returns (l, t, 4) int64: hits, misses, false alarms, correct negatives.

    Only the counts of `statistics`, with the same arguments.
    """
    thresholds, _, _ = _checked(thresholds, (1,), ())
    forecast, observation = _checked_fields(forecast, observation)
    return _tables(forecast, observation, thresholds)


def _checked(thresholds, pools, scales):
    thresholds = tuple(thresholds)
    whole = all(float(value).is_integer() and 1 <= value <= 254 for value in thresholds)
    if not thresholds or not whole or list(thresholds) != sorted(set(thresholds)):
        raise InputError(
            "`thresholds` must be whole VIL codes from 1 to 254 in ascending order, each once. "
            f"Received: {list(thresholds)}"
        )
    pools, scales = tuple(pools), tuple(scales)
    for name, sides in (("pools", pools), ("scales", scales)):
        if any(side != int(side) or side < 1 for side in sides):
            raise InputError(f"`{name}` must be whole numbers of pixels. Received: {list(sides)}")
    if pools[:1] != (1,):
        raise InputError(f"`pools` must begin with 1, the pixels. Received: {list(pools)}")
    return tuple(int(value) for value in thresholds), pools, scales


def _checked_fields(forecast, observation):
    forecast, observation = np.asarray(forecast), np.asarray(observation)
    if forecast.shape != observation.shape or observation.ndim != 4:
        raise InputError(
            "`forecast` and `observation` must have one shape (batch, y, x, lead). "
            f"Received: {forecast.shape} and {observation.shape}"
        )
    if observation.dtype != np.uint8:
        raise InputError(f"`observation` must be uint8 codes. Received: {observation.dtype}")
    return np.ascontiguousarray(forecast), np.ascontiguousarray(observation)


def _floored(forecast):
    """Returns `forecast` as uint8, rounded down and clipped to 0 to 254, NaN as 0."""
    # fmax drops NaN. No threshold is above 254, so clipping changes no event.
    return np.fmin(np.fmax(forecast, 0), 254).astype(np.uint8)


def _row_blocks(forecast, observation, rows):
    """Yields the two fields, (b, y, x, l), in pieces (row, x * l) of up to `rows` rows.

    With all leads side by side in a row, inner loops are long although the lead axis is last.
    """
    width = observation.shape[2] * observation.shape[3]
    flat = [field.reshape(-1, width) for field in (forecast, observation)]
    for start in range(0, len(flat[0]), rows):
        yield [field[start : start + rows] for field in flat]


def _tables(forecast, observation, thresholds):
    """Returns (l, t, 4) int64: the contingency tables of every lead and threshold.

    Makes one pass through memory: a piece of the fields is compared with all thresholds while it is
    in the cache. Events are summed over rows in bytes, which up to 255 rows cannot overflow. A
    joint histogram with bincount took 1.7 times as long when it was measured.
    """
    x, leads = observation.shape[2:]
    width = x * leads
    rows = max(1, min(_MOST_IN_A_BYTE, _BLOCK_BYTES // width))
    totals = np.zeros((3 * len(thresholds) + 1, width), np.int64)
    sums = np.zeros(totals.shape, np.uint8)
    buffers = np.empty((3, rows, width), bool)
    summed = 0
    for f, o in _row_blocks(forecast, observation, rows):
        if summed + len(f) > _MOST_IN_A_BYTE:
            totals += sums
            sums[:] = 0
            summed = 0
        summed += len(f)
        valid, forecast_event, event = buffers[:, : len(f)]
        np.not_equal(o, MISSING, out=valid)
        _add_rows(sums[-1], valid)
        for t, threshold in enumerate(thresholds):
            np.greater_equal(f, threshold, out=forecast_event)  # NaN is not an event
            np.greater_equal(o, threshold, out=event)
            forecast_event &= valid
            event &= valid
            _add_rows(sums[3 * t], forecast_event)
            _add_rows(sums[3 * t + 1], event)
            event &= forecast_event
            _add_rows(sums[3 * t + 2], event)
    totals = (totals + sums).reshape(-1, x, leads).sum(1)
    forecast, observed, hits = totals[:-1].reshape(-1, 3, leads).transpose(1, 2, 0)
    negatives = totals[-1][:, None] - forecast - observed + hits
    return np.stack([hits, observed - hits, forecast - hits, negatives], axis=-1)


def _add_rows(total, events):
    """Adds the number of events in each column to a uint8 total."""
    total += np.add.reduce(events.view(np.uint8), axis=0, dtype=np.uint8)


def _error_sums(forecast, observation):
    """Returns (l, 3) float64: sums of error, absolute error and squared error."""
    leads = observation.shape[-1]

    def by_lead(values):
        return values.sum(0).reshape(-1, leads).sum(0)

    sums = np.zeros((leads, 3))
    rows = max(1, _BLOCK_BYTES // (observation.shape[2] * leads))
    for f, o in _row_blocks(forecast, observation, rows):
        error = np.nan_to_num(f) if np.isnan(f).any() else f
        error = np.subtract(error, o, dtype=np.float64)
        error *= o != MISSING
        sums[:, 0] += by_lead(error)
        sums[:, 1] += by_lead(np.abs(error))
        sums[:, 2] += by_lead(np.square(error, out=error))
    return sums


def _block_maximum(field, side):
    """Returns the maximum of each `side` x `side` block of (b, y, x, l); (b, y', x', l)."""
    b, y, x, leads = field.shape
    rows, columns = y // side, x // side
    # Rows first: that pass runs along complete rows, and leaves 1 / side of the work to the other.
    field = field[:, : rows * side].reshape(b, rows, side, -1).max(2).reshape(b, rows, x, leads)
    return field[:, :, : columns * side].reshape(b, rows, columns, side, leads).max(3)


def _fraction_sums(forecast, observed, valid, scales):
    """Returns (scale, l, 2): sums of (f - o)**2 and of f**2 + o**2 over window counts f and o.

    Counts replace fractions, since the area of the window cancels in the score and sums of whole
    numbers are exact.
    """
    batch, *_, leads = forecast.shape
    sums = np.zeros((len(scales), leads, 2))
    # One plane at a time fits in the processor's cache, and many planes have no event.
    for b, lead in np.ndindex(batch, leads):
        planes = [field[b, :, :, lead] for field in (forecast, observed)]
        if not any(plane.any() for plane in planes):
            continue
        integrals = [_integral(plane) for plane in planes]
        mask = valid[b, :, :, lead].astype(np.float64)
        for s, side in enumerate(scales):
            f, o = (_window_counts(integral, side) * mask for integral in integrals)
            squares = _sum_of_products(f, f) + _sum_of_products(o, o)
            sums[s, lead] += squares - 2 * _sum_of_products(f, o), squares
    return sums


def _sum_of_products(a, b):
    # Not a dot product, for which BLAS starts threads; that is slower at this size.
    return np.einsum("yx,yx", a, b)


def _integral(events):
    """Returns (y + 1, x + 1) int32: events above and to the left of each pixel corner."""
    integral = np.zeros([side + 1 for side in events.shape], np.int32)
    events.cumsum(0, dtype=np.int32).cumsum(1, out=integral[1:, 1:])
    return integral


def _window_counts(integral, side):
    """Returns (y, x) int32: events in the `side` x `side` window around each pixel."""
    for axis in (0, 1):
        pixel = np.arange(integral.shape[axis] - 1)
        first = np.maximum(pixel - side // 2, 0)
        last = np.minimum(pixel + (side - 1) // 2 + 1, len(pixel))
        integral = integral.take(last, axis) - integral.take(first, axis)
    return integral


# Scores. Each is a function of a Contingency and of the value of 0/0, and returns float64 arrays.


def csi(counts, empty="undefined"):
    """Critical success index H / (H + M + F); 0 to 1, perfect 1. Source: Schaefer (1990)."""
    return _ratio(counts.hits, counts.hits + counts.misses + counts.false_alarms, empty)


def pod(counts, empty="undefined"):
    """Probability of detection H / (H + M); 0 to 1, perfect 1."""
    return _ratio(counts.hits, counts.hits + counts.misses, empty)


def sucr(counts, empty="undefined"):
    """Success ratio H / (H + F); 0 to 1, perfect 1."""
    return _ratio(counts.hits, counts.hits + counts.false_alarms, empty)


def far(counts, empty="undefined"):
    """False alarm ratio 1 - SUCR = F / (H + F); 0 to 1, perfect 0. An empty case follows SUCR's."""
    return 1.0 - sucr(counts, empty)


def bias(counts, empty="undefined"):
    """Frequency bias (H + F) / (H + M); 0 upwards, perfect 1.

    Choice: without an observed event it is `empty`, for any forecast.
    """
    return _ratio(counts.hits + counts.false_alarms, counts.hits + counts.misses, empty)


def hss(counts, empty="undefined"):
    """Heidke skill score, against chance with the same margins; -1 to 1, perfect 1.

    2 (H C - F M) / ((H + M)(M + C) + (H + F)(F + C)). Source: Heidke (1926), form of Wilks.
    """
    # Products of the counts of a complete test set exceed 2**63.
    h, m, f, c = (np.asarray(count, dtype=np.float64) for count in counts)
    return _ratio(2 * (h * c - f * m), (h + m) * (m + c) + (h + f) * (f + c), empty)


CATEGORICAL = (csi, pod, sucr, far, bias, hss)


def mean_error(statistics):
    """Returns (..., l): mean of forecast - observation, codes."""
    return _ratio(statistics.errors[..., 0], statistics.n())


def mae(statistics):
    """Returns (..., l): mean absolute error, codes."""
    return _ratio(statistics.errors[..., 1], statistics.n())


def mse(statistics):
    """Returns (..., l): mean squared error, codes squared."""
    return _ratio(statistics.errors[..., 2], statistics.n())


def fss(statistics, empty="undefined"):
    """Returns (..., scale, l, t): fractions skill score; 0 to 1, perfect 1.

    Numerators and denominators are summed over everything before the one division.
    Source: Roberts and Lean (2008).
    """
    numerator, denominator = statistics.fractions[..., 0], statistics.fractions[..., 1]
    return _ratio(denominator - numerator, denominator, empty)


def all_leads(statistics):
    """Returns Statistics with the lead axis summed to one: leads are weighted by their pixels."""
    return statistics._with(
        statistics.counts.sum(-3, keepdims=True),
        statistics.errors.sum(-2, keepdims=True),
        statistics.fractions.sum(-3, keepdims=True),
        statistics.power.sum(-3, keepdims=True),
    )


def score_by_threshold(score, statistics, pooling="pooled", empty="undefined", pool=1):
    """Returns (t,) float64: one score per threshold under a named convention.

    Args:
      score: a function of CATEGORICAL.
      statistics: Statistics with at most one leading axis, of batches (or events).
      pooling: "pooled" (default): one ratio of the counts summed over batches and leads.
        "leads": the mean over leads of one ratio per lead, of counts summed over batches.
        "batches": the mean of the ratios of each batch and lead.
      empty: the value of 0/0: "undefined" (default; NaN, left out of means), "one" or "zero".
      pool: side of the max-pooling blocks, pixels.

    Source: "pooled" with "zero" is mode "0" of Earthformer's SEVIRSkillScore, "leads" with "zero"
    its mode "2"; "batches" with "one" is the SEVIR authors' metrics.py (neurips-2020-sevir).
    """
    if pooling not in POOLING:
        raise InputError(f"`pooling` must be one of {', '.join(POOLING)}. Received: {pooling}")
    if pooling != "batches":
        statistics = statistics.total()
    if pooling == "pooled":
        statistics = all_leads(statistics)
    values = score(statistics.contingency(pool), empty)
    return _mean_of_defined(values.reshape(-1, values.shape[-1]))


def mean_over_thresholds(values, thresholds, chosen):
    """Returns the mean over the `chosen` thresholds of `values` (..., t), for example CSI-M.

    Raises:
      InputError: a chosen threshold was not counted.
    """
    absent = sorted(set(chosen) - set(thresholds))
    if absent:
        raise InputError(
            f"`chosen` must be among the thresholds counted, {list(thresholds)}. Received: {absent}"
        )
    values = np.asarray(values)[..., [thresholds.index(threshold) for threshold in chosen]]
    return _mean_of_defined(np.moveaxis(values, -1, 0))


def _ratio(numerator, denominator, empty="undefined"):
    if empty not in EMPTY:
        raise InputError(f"`empty` must be one of {', '.join(EMPTY)}. Received: {empty}")
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    ratio = np.full(numerator.shape, EMPTY[empty])
    return np.divide(numerator, denominator, out=ratio, where=denominator != 0)


def _mean_of_defined(values):
    """Returns the mean over the first axis of the values that are not NaN, or NaN if all are."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0))
