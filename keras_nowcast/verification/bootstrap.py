"""Confidence intervals of scores, and of their differences, by resampling blocks of events.

Pixels, lead times and windows of one event are not independent, and neither are the events of one
storm. A *block* is a group of events that is taken to be independent of every other: all events of
one day, or of one episode. Each resample draws blocks with replacement. Few blocks give an interval
that is wide and still too narrow: `warning` says how much, by simulation.

A score is a ratio of two sums over blocks. Its interval is estimate -+ q s: s is the standard error
from the blocks, and q the quantile over resamples of |change of the score| divided by the standard
error in that resample (a symmetric studentized bootstrap, "bootstrap-t").

Source: Hall (1988), On symmetric bootstrap confidence intervals, J. R. Stat. Soc. B 50, 35-45; the
standard error of a ratio is by its linearization (Efron and Tibshirani 1993, chapters 6 and 12).
Choice: percentile and BCa intervals are narrower, but over six skewed blocks they cover 66 to 84%
of the true values instead of 95% (benchmarks/coverage.py; docs/scores.md has the table).
"""

import math
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
# Of two or three blocks, more than 5% of the resamples draw one block only, which has no spread.
FEWEST_BLOCKS = 4
FEW_BLOCKS = 30  # below this number, `warning` has something to say
# {number of blocks: lowest and highest percent of true values that intervals covered}, over the
# scores and differences of benchmarks/coverage.py; tests/verification compares them.
SIMULATED_COVERAGE = {6: (82, 98), 12: (83, 97), 30: (87, 98), 100: (91, 97)}
_ROUNDING = 1e-12  # relative to the score: a smaller standard error is rounding


class Ratio(NamedTuple):
    """The parts of a score: arrays of one shape with a first axis over blocks.

    Attributes:
      numerator: additive; the score is the ratio of the sums over the blocks.
      denominator: additive.
    """

    numerator: np.ndarray
    denominator: np.ndarray

    def score(self):
        """Returns the score, NaN where the sum of the denominators is 0."""
        numerator, denominator = self.numerator.sum(0), self.denominator.sum(0)
        undefined = np.full(np.shape(denominator), np.nan)
        return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def interval(ratio, bounds=(-np.inf, np.inf), resamples=RESAMPLES, level=LEVEL, seed=0):
    """Returns (low, high), arrays of the score's shape, of a score over blocks.

    Args:
      ratio: the Ratio of the score.
      bounds: minimum and maximum that the score can have; the interval is cut off there.
      resamples: number of resamples.
      level: nominal coverage, a fraction.
      seed: seed of the resampling; the same seed draws the same blocks for any ratio.

    Returns:
      NaN where there are fewer than FEWEST_BLOCKS blocks, where the score is undefined, or where
      more than 1 - level of the resamples have no standard error: all blocks drawn that have a
      denominator above 0 have one score. If all blocks have one score, both ends are that score.
    """
    return _ends((ratio,), ratio.score(), bounds, resamples, level, seed)


def difference_interval(
    ratio, reference, bounds=(-np.inf, np.inf), resamples=RESAMPLES, level=LEVEL, seed=0
):
    """Returns (low, high) of the score of `ratio` minus that of `reference`.

    Both are scored on the same blocks of each resample, so that the difficulty of a block, common
    to both, cancels. The interval excludes 0 if the scores differ at this level.

    Args:
      ratio, reference: Ratios over the same blocks in the same order.
      bounds, resamples, level, seed: as for `interval`.

    Returns:
      NaN as for `interval`.
    """
    estimate = ratio.score() - reference.score()
    return _ends((ratio, reference), estimate, bounds, resamples, level, seed)


def warning(blocks, kind="days"):
    """Returns a sentence on how far intervals over a number of blocks can be trusted.

    Empty if there are at least FEW_BLOCKS.

    Args:
      blocks: number of blocks.
      kind: what the blocks are, for the text.
    """
    if blocks >= FEW_BLOCKS:
        return ""
    counted = f"{blocks} block{'s' * (blocks != 1)} ({kind})"
    if blocks < FEWEST_BLOCKS:
        return (
            f"there are no 95% intervals over {counted}: they need at least {FEWEST_BLOCKS} blocks."
        )
    simulated = max((each for each in SIMULATED_COVERAGE if each <= blocks), default=6)
    low, high = SIMULATED_COVERAGE[simulated]
    note = "; fewer blocks were not simulated" if blocks < simulated else ""
    return (
        f"the 95% intervals are over {counted}, fewer than {FEW_BLOCKS}, and may be too narrow: "
        f"over {simulated} blocks of skewed simulated events, such intervals covered {low} to "
        f"{high}% of the true values{note}."
    )


def _ends(ratios, estimate, bounds, resamples, level, seed):
    blocks = len(ratios[0].numerator)
    halves = np.full(np.shape(estimate), np.nan)
    if blocks >= FEWEST_BLOCKS:
        weights = np.random.default_rng(seed).multinomial(
            blocks, np.full(blocks, 1 / blocks), size=resamples
        )
        for place in np.ndindex(halves.shape):
            parts = [
                tuple(np.asarray(each[(slice(None), *place)], float) for each in ratio)
                for ratio in ratios
            ]
            if np.isfinite(estimate[place]):
                halves[place] = _half_width(parts, weights, level)
    return tuple(np.clip(ends, *bounds) for ends in (estimate - halves, estimate + halves))


def _half_width(parts, weights, level):
    """Returns half the width of the interval of one score, or of one difference.

    Args:
      parts: one or two (numerator, denominator), each of shape (block,); the second is subtracted.
      weights: (resample, block), how many times each block is drawn.
      level: nominal coverage.
    """
    _, (error,) = _drawn(parts, np.ones((1, weights.shape[1])))
    scale = sum(abs(numerator.sum() / denominator.sum()) for numerator, denominator in parts)
    if error <= _ROUNDING * scale:
        return 0.0
    change, errors = _drawn(parts, weights)
    has_error = errors > _ROUNDING * scale  # not if it is undefined
    studentized = np.full(len(weights), np.inf)
    np.divide(np.abs(change), errors, out=studentized, where=has_error)
    quantile = np.sort(studentized)[math.ceil(level * len(studentized)) - 1]
    return quantile * error if np.isfinite(quantile) else np.nan


def _drawn(parts, weights):
    """Returns (change of the score from the estimate, its standard error), each (resample,)."""
    change, influence = 0.0, 0.0
    for sign, (numerator, denominator) in zip((1, -1), parts, strict=False):
        # Residuals of the estimate, so that no digits cancel where blocks have nearly one score.
        residual = numerator - numerator.sum() / denominator.sum() * denominator
        total = weights @ denominator
        with np.errstate(divide="ignore", invalid="ignore"):
            its_change = weights @ residual / total
            its_influence = (residual - its_change[:, None] * denominator) / total[:, None]
        change = change + sign * its_change
        influence = influence + sign * its_influence
    blocks = weights.shape[1]
    variance = np.einsum("rb,rb->r", weights, influence**2) * blocks / (blocks - 1)
    return change, np.sqrt(variance)
