"""Confidence intervals by resampling events.

Pixels, lead times and windows of one event are not independent. Events are the most nearly
independent units of a radar archive. Each resample therefore draws events with replacement, sums
their statistics, and computes the score from the sums.

Source: percentile bootstrap, Efron and Tibshirani (1993); paired for a difference.
Choice: resamples in which the score is undefined are left out, and an interval is NaN if fewer
than half of the resamples are defined. With few events an interval is rough and too narrow: three
events have ten distinct resamples.
"""

import numpy as np

from keras_nowcast.verification import scores

RESAMPLES = 1000
LEVEL = 0.95


def interval(statistics, score, resamples=RESAMPLES, level=LEVEL, seed=0):
    """Returns (low, high), arrays of the score's shape, of `score` over events.

    Args:
      statistics: Statistics with one leading axis of events.
      score: function of Statistics with a leading axis that returns an array with that axis, for
        example `scores.mse`.
      resamples: number of resamples.
      level: fraction of the resamples inside the interval, with half of the rest on each side.
      seed: seed of the resampling; the same seed draws the same events for any statistics.
    """
    return _percentiles(_drawn(statistics, score, resamples, seed), level)


def difference_interval(statistics, reference, score, resamples=RESAMPLES, level=LEVEL, seed=0):
    """Returns (low, high) of `score(statistics) - score(reference)` on the same events.

    Both are scored on the same resamples, so the difficulty of an event, common to both, cancels.
    The methods differ, at this level, if the interval excludes 0.

    Args:
      statistics, reference: Statistics with one leading axis over the same events in the same
        order.
      score, resamples, level, seed: as for `interval`.
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
    """Returns the quantiles (1 - level) / 2 and (1 + level) / 2 over the first axis."""
    undefined = np.isnan(draws)
    enough = 2 * undefined.sum(0) <= len(draws)
    # A column without enough draws gets any number, since its result is not used.
    draws = np.where(undefined & ~enough, 0.0, draws)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)
