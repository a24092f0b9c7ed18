"""How far predictions are off, on points whose values are known."""

import math

import numpy as np
import pytest
from scipy import stats

from keras_nowcast.study import intervals, laws

SIZES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def point(size, value=None, world_size=1, exchanged=0.0):
    return laws.Point("float32", world_size, (size,), exchanged, 1, value=value)


def predictor(values, sizes=SIZES):
    points = [point(*each) for each in zip(sizes, values, strict=True)]
    return intervals.Predictor("seconds", points)


def half(interval):
    """Returns half the width of the interval of the logarithm."""
    assert interval.high / interval.value == pytest.approx(interval.value / interval.low)
    return math.log(interval.high / interval.value)


def noisy(sigma, seed=0):
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(len(SIZES)))


def test_the_cell_left_out_has_no_say():
    values = (1, 1, 1, 1, 2)
    points = [point(1.0, value) for value in values]
    assert intervals.Predictor("seconds", points).errors.percent[-1] == pytest.approx(-50)
    # The only cell of two processes has no other cell to be predicted from.
    points.append(point(1.0, 3, world_size=2))
    assert len(intervals.Predictor("seconds", points).errors.percent) == 5


def test_numbers_have_three_figures():
    interval = intervals.Interval(12345.6, 999.6, 1234567.0, 0.9)
    assert interval.text("J") == "12,300 (1,000 to 1,230,000) J"


def test_errors():
    errors = intervals.Errors((10.0, -5.0, 1.0))
    assert errors.text() == "median 5.0%, at most 10.0%, over 3 cells"


def test_an_interval_by_hand():
    """Four equal sizes: the prediction is the harmonic-like mean that relative errors give."""

    def rate(values):  # of least squares on the relative error, of values at size 1
        return sum(1 / v for v in values) / sum(1 / v**2 for v in values)

    values = (1.0, 1.1, 1.2, 0.9)
    found, _ = predictor(values, (1.0,) * 4).interval(point(1.0))
    without = [rate(values[:k] + values[k + 1 :]) for k in range(4)]
    of_a_cell = sum(math.log(w / v) ** 2 for w, v in zip(without, values, strict=True)) / 4
    of_the_rate = 3 / 4 * sum(math.log(w / rate(values)) ** 2 for w in without)
    assert found.value == pytest.approx(rate(values)) and found.share == 0.95
    # With four cells none is predicted from smaller ones, so all of it has 3 degrees of freedom.
    expected = stats.t.ppf(0.975, 3) * math.sqrt(of_a_cell + of_the_rate)
    assert half(found) == pytest.approx(expected)


def test_the_jackknife_has_the_role_of_the_leverage():
    """With one term and many cells, the rate is uncertain by sigma / sqrt(n), at any size."""
    rng = np.random.default_rng(0)
    values = np.exp(0.05 * rng.standard_normal(200))
    many = predictor(values, (1.0,) * 200)
    assert many._of_the_rates(point(1.0), many.interval(point(1.0))[0].value) == pytest.approx(
        0.05**2 / 200, rel=0.3
    )


def test_the_interval_widens_with_the_distance():
    """Costs that grow faster than the law: the larger cells are off in proportion to log size."""
    growing = predictor([size**1.2 for size in SIZES])
    inside, twice, far = (growing.interval(point(size))[0] for size in (8.0, 32.0, 256.0))
    assert half(inside) < half(twice) < half(far)
    # A factor of 16 = 4 factors of 2. Far away the part that grows decides.
    assert 2.5 < half(far) / half(twice) < 4.2
    assert far.low < 256**1.2 < far.high
    # Below the smallest size it widens equally.
    near, below = (growing.interval(point(size))[0] for size in (1.0, 1 / 16))
    assert half(below) > 1.5 * half(near)


def test_an_exact_law_does_not_widen():
    exact = predictor([3 * size for size in SIZES])
    assert half(exact.interval(point(1000.0))[0]) < 1e-9


def test_the_growth_is_measured_on_the_larger_cells():
    """Of log errors e at log distances d it is the sum of (e d)^2 over that of d^4, by hand."""
    points = [point(*each) for each in zip(SIZES, noisy(0.1) * SIZES, strict=True)]
    squares = weights = 0.0
    for count in range(1, 5):
        law = laws.Laws(points[:-count])
        for each in points[-count:]:
            d = math.log(each.terms[0] / SIZES[-count - 1])
            squares += (math.log(law.value(each)[0] / each.value) * d) ** 2
            weights += d**4
    found = intervals.Predictor("seconds", points[::-1])._growth
    assert found == (pytest.approx(squares / weights), 4)


def test_how_far_a_cell_is():
    measured = [laws.Point("float32", 1, terms, 0, 1) for terms in ((1.0, 8.0), (4.0, 2.0))]

    def distance(*terms, world_size=1):
        return intervals.distance(laws.Point("float32", world_size, terms, 0, 1), measured)

    assert distance(2.0, 3.0) == (1.0, 0)
    assert distance(8.0, 32.0) == (4.0, 1)  # farthest in the second size
    assert distance(0.25, 9.0) == (0.25, 0)  # farther below than above
    assert distance(2.0, 3.0, world_size=2) == (math.inf, 0)


def test_the_time_of_a_process_is_as_far_as_its_training():
    training = laws.Point("float32", 1, (2.0,), 0, 1)
    assert laws.Point("float32", 1, (1, 20.0, 5), 0, 1, training=training).sizes == (2.0,)


def test_a_law_that_rests_on_one_cell_has_its_error():
    values = noisy(0.1) * SIZES
    points = [point(*each) for each in zip(SIZES, values, strict=True)]
    points.append(point(4.0, 6.0, world_size=2))
    found = intervals.Predictor("seconds", points)
    alone, _ = found.interval(point(4.0))
    two, _ = found.interval(point(4.0, world_size=2))
    assert two.value == pytest.approx(6.0)
    assert half(two) > 1.2 * half(alone)
    # The base has nine cells from 1 to 16; of two processes, twice the one cell is beyond.
    beyond, _ = found.interval(point(8.0, world_size=2))
    assert half(beyond) > half(two)


def test_the_largest_cells_from_the_smaller_ones():
    """The largest four are not part of what predicts them: neither the law nor the interval."""
    values = [*(noisy(0.02) * SIZES)[:5], *(3 * np.array(SIZES[5:]))]
    found = predictor(values).largest
    smaller = predictor(values[:5], SIZES[:5])
    assert len(found.checks) == 4 and found.without == 0
    for check, size, value in zip(found.checks, SIZES[5:], values[5:], strict=True):
        interval, _ = smaller.interval(point(size))
        assert check.percent == pytest.approx(100 * (interval.value / value - 1))
        assert check.ratio == pytest.approx(size / 4)
        assert check.is_inside == (interval.low <= value <= interval.high)
    assert not any(each.is_inside for each in found.checks)
    text = found.text()
    assert text.startswith("0 of 4 inside the 95% interval; -6")
    assert "% at 1.5 times the size, -6" in text and text.endswith("% at 4.0")


def test_few_cells_have_few_largest_ones():
    assert predictor(noisy(0.1)[:4], SIZES[:4]).largest == intervals.Largest((), 0)
    assert len(predictor(noisy(0.1)[:6] * SIZES[:6], SIZES[:6]).largest.checks) == 2
    assert intervals.Largest((), 0).text() == "too few completed cells"
    one = intervals.Largest((intervals.Check(4.0, 2.0, True),), 1)
    assert one.text() == (
        "1 of 1 inside the 95% interval; +4.0% at 2.0 times the size; 1 not predicted"
    )


def test_what_is_not_predicted_has_a_reason():
    three = predictor([1.0, 2.0, 3.0], (1.0, 2.0, 3.0))
    assert three.interval(point(1.0)) == (
        None,
        "too few completed cells to measure the error of a prediction",
    )
    interval, reason = predictor([1.0, 30.0, 0.1, 20.0], (1.0, 2.0, 3.0, 4.0)).interval(point(2.0))
    assert interval is None and "beyond 100 times the prediction" in reason


def test_the_coverage_beyond_the_measured_sizes():
    """Of 300 studies with 5% noise about the law, and a new cell of four times the largest."""
    inside = {4.0: 0, 64.0: 0}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = predictor(np.exp(0.05 * rng.standard_normal(len(SIZES))) * SIZES)
        for size in inside:
            interval, _ = found.interval(point(size))
            inside[size] += (
                interval.low <= size * np.exp(0.05 * rng.standard_normal()) <= (interval.high)
            )
    assert 0.9 <= inside[4.0] / 300 <= 0.99
    assert inside[64.0] / 300 >= 0.94
