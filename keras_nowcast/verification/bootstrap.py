"""Confidence intervals by resampling events.

Pixels, lead times and windows of one event are anything but independent; events are the nearest
thing to independent draws that a radar archive has. So events are drawn with replacement, their
statistics summed, and the score made from the sums once per draw.

Source: percentile bootstrap, Efron and Tibshirani (1993); paired for a difference.
Choice: draws in which the score is undefined are left out, and an interval is NaN where fewer
than half of the draws are defined. With few events an interval is rough, and too narrow: three
events have ten distinct draws.
"""

import numpy as np

from keras_nowcast.verification import scores

RESAMPLES = 1000
LEVEL = 0.95


def interval(statistics, score, resamples=RESAMPLES, level=LEVEL, seed=0):
    """Returns (low, high), arrays of the score's shape, of `score` over events.

    Args:
      statistics: Statistics with one leading axis of events.
      score: takes Statistics with a leading axis and returns an array with that axis, for
        example `scores.mse`.
      resamples: number of draws.
      level: share of the draws inside the interval, half of the rest on either side.
      seed: of the draws; the same seed draws the same events for any statistics.
    """
    return _percentiles(_drawn(statistics, score, resamples, seed), level)


def difference_interval(statistics, reference, score, resamples=RESAMPLES, level=LEVEL, seed=0):
    """Returns (low, high) of `score(statistics) - score(reference)` on the same events.

    Both are scored on the same draws, so what makes an event hard for both cancels. The methods
    differ, at this level, where 0 is outside.

    Args:
      statistics, reference: Statistics with one leading axis of events, the same in the same
        order.
    """
    first = _drawn(statistics, score, resamples, seed)
    return _percentiles(first - _drawn(reference, score, resamples, seed), level)


def _drawn(statistics, score, resamples, seed):
    events = len(statistics.counts)
    weights = np.random.default_rng(seed).multinomial(
        events, np.full(events, 1 / events), size=resamples
    )
    return score(scores.weighted(statistics, weights))


def _percentiles(draws, level):
    """Returns the (1 - level) / 2 and (1 + level) / 2 quantiles over the first axis."""
    undefined = np.isnan(draws)
    enough = 2 * undefined.sum(0) <= len(draws)
    # Any number does for a column without enough draws; its result is not used.
    draws = np.where(undefined & ~enough, 0.0, draws)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)
