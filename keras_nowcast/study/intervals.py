"""How well the planner's laws predict: leave-one-out errors, and intervals from them."""

import math
import statistics
from dataclasses import dataclass

from keras_nowcast.study.laws import laws_of

SHARE = 0.9  # of leave-one-out errors that an interval is to cover


@dataclass(frozen=True)
class Interval:
    """A predicted number.

    Attributes:
      value: the prediction.
      low, high: ends of the interval, from the leave-one-out errors.
      share: nominal coverage of true values; below SHARE if there are too few cells.
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


def leave_one_out(quantity, points):
    """Returns the Errors of predicting each measured Point from the others, or None."""
    percent = []
    for left in points:
        # Cells of another precision do not matter.
        others = [each for each in points if each is not left and each.precision == left.precision]
        value, _ = laws_of(quantity, others).value(left)
        if value:
            percent.append(100 * (value / left.value - 1))
    return Errors(tuple(percent)) if percent else None


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

    @property
    def factor(self):
        """(factor, share): a fraction `share` of true values is within `factor` of the prediction.

        Source: the jackknife of conformal prediction. The factor is the ceil(SHARE (n + 1))-th
        smallest of n errors. With too few errors it is the largest, which covers n/(n + 1). The
        coverage is nominal: it holds for cells like the measured ones, not for sizes beyond them,
        and the plain jackknife guarantees none.
        """
        sizes = sorted(abs(math.log1p(each / 100)) for each in self.percent)
        rank = min(len(sizes), math.ceil((len(sizes) + 1) * SHARE))
        return math.exp(sizes[rank - 1]), min(SHARE, rank / (len(sizes) + 1))
