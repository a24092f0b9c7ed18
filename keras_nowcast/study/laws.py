"""The planner's regressions: which terms a quantity has, and their rates."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

QUANTITIES = ("seconds", "wall_seconds", "joules", "memory_bytes")
FEWEST_CELLS = 3  # of a precision that a fit needs
# What the terms of a step and of the memory count, for the text on a cell beyond those measured.
STEP_SIZES = ("FLOPs", "activations", "layers", "parameters")
MEMORY_SIZES = ("counted bytes", "base")
# The side of the blocks in which vector instructions handle channels: a convolution of 4 channels
# takes nearly as long as one of 16. Choice: that of float32 in AVX-512.
CHANNEL_BLOCK = 16


def step_terms(cost, precision, windows):
    """Returns the terms of a step of one process, which the rates multiply.

    Args:
      cost: the Cost of the model.
      precision: a mixed or float32 policy.
      windows: in the step, of one process; may be a fraction, the mean over an epoch's steps.

    Returns:
      (FLOPs computed, bytes of activations moved, both with channels filled up to blocks; layers;
      bytes of kernels moved, with the optimizer's): in the order in which few cells can
      distinguish them.
    """
    computed = moved = kernels = 0.0
    for layer in cost.layers:
        filled = _filled(layer.channels)
        # In an infinite batch, moving the kernels costs a sample nothing.
        activations = layer.training_bytes_moved(precision, math.inf)
        kernels += layer.training_bytes_moved(precision, 1) - activations
        moved += filled * activations
        both = filled * _filled(layer.input_channels) if layer.kernel else 1
        computed += both * layer.training_flops
    parameters = kernels + cost.optimizer_bytes_moved
    return windows * computed, windows * moved, len(cost.layers), parameters


def _filled(channels):
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK / channels


def memory_terms(cost, precision, batch):
    """Returns the terms of the memory of a process: counted bytes, and 1 for the base."""
    return cost.step_bytes(precision, batch) + cost.state_bytes, 1


def fit_rates(terms, values, known=0.0):
    """Fits rates by non-negative least squares on the relative error.

    With n values at most n - 1 terms are fitted, at least one; the later terms get the rate 0.

    Args:
      terms: (n, k) array.
      values: n numbers above 0.
      known: the part of each value that is not fitted, one number or n of them.

    Returns:
      Array of k rates, none below 0: `known + terms @ rates` predicts `values`.
    """
    from scipy.optimize import nnls

    terms = np.asarray(terms, float)
    values = np.asarray(values, float)
    relative = terms / values[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1
    usable = min(terms.shape[1], max(1, len(terms) - 1))
    rates = np.zeros(terms.shape[1])
    rates[:usable] = nnls((relative / scale)[:, :usable], 1 - known / values)[0]
    return rates / scale


@dataclass(frozen=True, eq=False)
class Point:
    """A cell as the input of a law.

    Attributes:
      precision, world_size: select the rates.
      terms: what the rates multiply.
      exchanged: bytes of gradients per step, for the law of several processes; 0 for memory.
      times: number of steps that the law's value is multiplied by.
      training: for the time of the process, the Point of the time of training; otherwise None.
      value: the measured quantity; None for a cell that was not run.
      cell: the MeasuredCell; None for a cell that was not run.
    """

    precision: str
    world_size: int
    terms: tuple
    exchanged: float
    times: float
    training: object = None
    value: float | None = None
    cell: object = None

    @property
    def sizes(self):
        """What is compared with the measured cells: the terms, of a process those of a step."""
        return self.terms if self.training is None else self.training.terms


class Laws:
    """The rates of one quantity for each measured precision and number of processes.

    Args:
      points: measured Points.
      floor: function of a Point that returns the part of its value that the rates only add to;
        None if the rates predict all of it.
    """

    def __init__(self, points, floor=None):
        self._floor = floor or (lambda point: 0.0)
        self._rates = {}
        self._base = {}
        self._several = {}
        for precision in {point.precision for point in points}:
            mine = [point for point in points if point.precision == precision]
            base = Counter(point.world_size for point in mine).most_common(1)[0][0]
            alone = [point for point in mine if point.world_size == base]
            if len(alone) < FEWEST_CELLS:
                continue
            self._base[precision] = base
            self._rates[precision] = self._fit(alone, [point.terms for point in alone])
            for processes in {point.world_size for point in mine} - {base}:
                those = [point for point in mine if point.world_size == processes]
                terms = [(self._alone(point), point.exchanged) for point in those]
                self._several[precision, processes] = self._fit(those, terms)

    def _fit(self, points, terms):
        values = [point.value / point.times for point in points]
        known = [self._floor(point) / point.times for point in points]
        return fit_rates(terms, values, np.asarray(known))

    def _alone(self, point):
        return float(np.dot(self._rates[point.precision], point.terms))

    def base(self, precision):
        """Returns the number of processes that most cells have; None if there are few cells."""
        return self._base.get(precision)

    def value(self, point):
        """Returns (value, None), or (None, the reason) if it cannot be predicted."""
        if point.precision not in self._rates:
            return (
                None,
                f"it needs {FEWEST_CELLS} completed cells in {point.precision} that measured it",
            )
        alone, floor = self._alone(point), self._floor(point)
        if point.world_size == self._base[point.precision]:
            return floor + point.times * alone, None
        key = (point.precision, point.world_size)
        if key not in self._several:
            return (
                None,
                f"it needs a completed cell of {key[1]} processes in {key[0]} that measured it",
            )
        more = point.times * float(np.dot(self._several[key], (alone, point.exchanged)))
        return floor + more, None


def laws_of(quantity, points):
    """Returns the Laws of one of QUANTITIES, from measured Points of it.

    A process takes at least the time of its training, and holds at least what is counted, so
    these are floors: few small cells would otherwise fit laws that break them for larger models.
    """
    if quantity == "wall_seconds":
        training = Laws([point.training for point in points])
        return Laws(points, floor=lambda point: training.value(point.training)[0] or 0.0)
    if quantity == "memory_bytes":
        return Laws(points, floor=lambda point: point.terms[0])
    return Laws(points)
