"""How far off the planner's predictions are: measured errors, and intervals from them.

The interval of a prediction reaches from the prediction divided by a factor to the prediction
multiplied by it. On the logarithmic scale, three variances add up:

- that of a cell about its prediction: the mean square of the leave-one-out errors, with one degree
  of freedom less than their number;
- that of the fitted rates at this cell, by the jackknife: how the prediction changes when each
  measured cell is left out. It has the role of the leverage x' (X'X)^-1 x of a linear regression,
  and also holds for rates that cannot be negative and for laws that build on other laws;
- beyond the measured sizes, that of the form of the law: its relative error grows with the
  logarithm of the distance. How fast is measured: the law is fitted to the smaller cells and
  compared with the larger ones.

The factor is the exponential of Student's t times the square root of their sum. Its degrees of
freedom are those of Welch and Satterthwaite for a sum of estimated variances.

It assumes independent and about lognormal errors, of one relative scale for all cells of a
precision. What no measured cell shows, such as a larger model that no longer fits a cache, is in
none of the three.

Source: the jackknife variance (Tukey 1958), which on average is not too small (Efron and Stein
1981); an error of the law that is a random power of the distance, as a simple model discrepancy
(Kennedy and O'Hagan 2001). benchmarks/planner_coverage.py counts how many values are inside.
"""

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from keras_nowcast.study.laws import FEWEST_CELLS, laws_of

SHARE = 0.95  # of true values that an interval is to cover
MOST_LARGEST = 4  # cells that are predicted from the smaller ones to show the coverage
WIDEST = 100  # a factor above which an interval says nothing


@dataclass(frozen=True)
class Interval:
    """A predicted number.

    Attributes:
      value: the prediction.
      low: lower end of the interval.
      high: upper end of the interval.
      share: nominal coverage of true values.
    """

    value: float
    low: float
    high: float
    share: float

    def text(self, unit):
        """Returns '12.3 (10.1 to 15.0) s'."""
        value, low, high = map(_three_figures, (self.value, self.low, self.high))
        return f"{value} ({low} to {high}) {unit}"

    def scaled(self, factor):
        """Returns the interval multiplied by a factor, for another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.share)


def _three_figures(number):
    """Returns 12,300 for 12345, 1.23 for 1.234."""
    if number < 999.5:
        return f"{number:.3g}"
    digits = len(str(round(number))) - 3
    return f"{round(number, -digits):,.0f}"


def distance(point, measured):
    """Returns (ratio, index) of the size in which a Point lies farthest beyond measured Points.

    Only measured Points of as many processes count.

    Returns:
      The ratio is above 1 relative to the largest measured value of this size, below 1 relative to
      the smallest. It is 1 if no size is outside of the measured values; the index is then 0.
      (inf, 0) if no measured Point has as many processes.
    """
    alike = [each for each in measured if each.world_size == point.world_size]
    if not alike:
        return math.inf, 0
    sizes = np.array([each.sizes for each in alike], float)
    above = np.asarray(point.sizes, float) / sizes.max(axis=0)
    below = np.asarray(point.sizes, float) / sizes.min(axis=0)
    ratios = np.where(above > 1, above, np.where(below < 1, below, 1.0))
    index = int(np.abs(np.log(ratios)).argmax())
    return float(ratios[index]), index


class Predictor:
    """Predicts one quantity in one precision, with intervals.

    Args:
      quantity: one of QUANTITIES.
      points: the measured Points of one precision.

    Attributes:
      points: the same.
    """

    def __init__(self, quantity, points):
        self.points = points
        self._quantity = quantity
        self._law = laws_of(quantity, points)

    @cached_property
    def _without(self):
        """The Laws fitted without each Point."""
        return [
            laws_of(self._quantity, [each for each in self.points if each is not left])
            for left in self.points
        ]

    @cached_property
    def errors(self):
        """The Errors of predicting each Point from the others; None if none can be predicted."""
        found = [
            100 * (value / point.value - 1)
            for law, point in zip(self._without, self.points, strict=True)
            if (value := law.value(point)[0])
        ]
        return Errors(tuple(found)) if found else None

    @cached_property
    def _of_a_cell(self):
        """(variance of a cell about its prediction, degrees of freedom), of logarithms."""
        squares = [math.log1p(each / 100) ** 2 for each in self.errors.percent]
        return statistics.fmean(squares), max(1, len(squares) - 1)

    @cached_property
    def _growth(self):
        """(squared relative error per squared log distance, cells that it is measured on)."""
        base = self._of_base
        most = min(len(base) // 2, len(base) - FEWEST_CELLS - 1)
        weighted = weights = 0.0
        for count in range(1, most + 1):
            largest = base[-count:]
            others = [each for each in self.points if each not in largest]
            law = laws_of(self._quantity, others)
            for point in largest:
                error, away = _log_error(law, point), _log_distance(point, others)
                if error is not None and away:
                    weighted += (error * away) ** 2
                    weights += away**4
        return (weighted / weights, most) if weights else (0.0, 1)

    @property
    def _of_base(self):
        """The Points of the law of one number of processes, from the smallest to the largest."""
        return sorted(
            (each for each in self.points if each.world_size == self._law.base(each.precision)),
            key=lambda each: each.sizes[0],
        )

    def interval(self, point):
        """Returns (Interval, None), or (None, the reason) if it cannot be predicted."""
        value, reason = self._law.value(point)
        if value is None:
            return None, reason
        if self.errors is None:
            return None, "too few completed cells to measure the error of a prediction"
        half = self._half(point, value)
        if half > math.log(WIDEST):
            return None, (
                "the completed cells are too few and too different to predict it: the "
                f"{SHARE:.0%} interval reaches beyond {WIDEST} times the prediction"
            )
        factor = math.exp(half)
        return Interval(value, value / factor, value * factor, SHARE), None

    def _half(self, point, value):
        """Returns half the width of the interval of the logarithm."""
        from scipy import stats

        variance, freedom = self._of_a_cell
        near = variance + self._of_the_rates(point, value)
        squared, cells = self._growth
        far = squared * _log_distance(point, self.points) ** 2
        if near + far == 0:
            return 0.0
        joint = (near + far) ** 2 / (near**2 / freedom + far**2 / cells)
        return float(stats.t.ppf((1 + SHARE) / 2, joint)) * math.sqrt(near + far)

    def _of_the_rates(self, point, value):
        """Returns the variance of the logarithm of a prediction, from the fitted rates."""
        values = [law.value(point)[0] for law in self._without]
        changes = [math.log(each / value) for each in values if each]
        found = (len(values) - 1) / len(values) * sum(each**2 for each in changes)
        # A law that rests on a single cell, such as that of two processes, has that cell's error.
        return found + (len(changes) < len(values)) * self._of_a_cell[0]

    @cached_property
    def largest(self):
        """The Largest Points of one number of processes, predicted from all other Points."""
        base = self._of_base
        count = max(0, min(MOST_LARGEST, len(base) - FEWEST_CELLS - 1))
        largest = base[len(base) - count :]
        others = Predictor(self._quantity, [each for each in self.points if each not in largest])
        intervals = [others.interval(point)[0] for point in largest]
        return Largest(
            tuple(
                Check(
                    100 * (interval.value / point.value - 1),
                    distance(point, others.points)[0],
                    interval.low <= point.value <= interval.high,
                )
                for point, interval in zip(largest, intervals, strict=True)
                if interval is not None
            ),
            sum(each is None for each in intervals),
        )


def _log_error(law, point):
    """Returns the logarithm of predicted relative to measured, or None."""
    value, _ = law.value(point)
    return math.log(value / point.value) if value else None


def _log_distance(point, measured):
    return abs(math.log(distance(point, measured)[0]))


@dataclass(frozen=True)
class Check:
    """A measured cell, predicted from the smaller ones.

    Attributes:
      percent: signed error, predicted relative to measured.
      ratio: as `distance` returns it.
      is_inside: True if the measured value is inside the interval.
    """

    percent: float
    ratio: float
    is_inside: bool


@dataclass(frozen=True)
class Largest:
    """The Checks of the largest cells, from the smallest to the largest of them.

    Attributes:
      checks: a tuple of Checks, empty if there are too few cells.
      without: number of these cells that the others could not predict.
    """

    checks: tuple
    without: int

    def text(self):
        """Returns '1 of 2 inside the 95% interval; +5.9% at 1.2 times the size, -30.1% at 4.0'."""
        if not self.checks:
            return "too few completed cells"
        inside = sum(each.is_inside for each in self.checks)
        errors = [f"{each.percent:+.1f}% at {each.ratio:.1f}" for each in self.checks]
        errors[0] += " times the size"
        text = (
            f"{inside} of {len(self.checks)} inside the {SHARE:.0%} interval; {', '.join(errors)}"
        )
        return text + (f"; {self.without} not predicted" if self.without else "")


@dataclass(frozen=True)
class Errors:
    """How far predictions of cells from the other cells were off.

    Attributes:
      percent: signed errors, predicted relative to measured.
    """

    percent: tuple

    @property
    def median(self):
        """The median absolute error, percent."""
        return statistics.median(map(abs, self.percent))

    def text(self):
        """Returns 'median 4.2%, at most 13.0%, over 24 cells'."""
        worst = max(map(abs, self.percent))
        return f"median {self.median:.1f}%, at most {worst:.1f}%, over {len(self.percent)} cells"
