import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from keras_nowcast.verification import bootstrap, scores
from keras_nowcast.verification.bootstrap import Ratio, difference_interval, interval
from keras_nowcast.verification.scores import stacked, statistics

COVERAGE = Path(__file__).parents[2] / "benchmarks" / "results" / "coverage"


def mean_of(values):
    """Returns the Ratio of a plain mean, one value per block."""
    values = np.asarray(values, float)
    return Ratio(values, np.ones_like(values))


def test_half_the_width_is_the_quantile_of_the_studentized_changes_times_the_error():
    """Of all 4**4 resamples of a mean, counted one by one, by the textbook formula of t."""
    values = np.array([0.0, 3.0, 6.0, 19.0])
    studentized = []
    for draw in itertools.product(values, repeat=4):
        error = np.std(draw, ddof=1) / 2
        change = abs(np.mean(draw) - 7)
        studentized.append(change / error if error else (np.inf if change else 0))
    quantile = np.quantile(studentized, 0.83, method="inverted_cdf")
    half = quantile * np.std(values, ddof=1) / 2
    low, high = interval(mean_of(values), resamples=20_000, level=0.83)
    np.testing.assert_allclose([low, high], [7 - half, 7 + half])


def test_the_error_of_a_ratio_is_that_of_its_residuals():
    # Ratio 12 / 6 = 2; residuals 1, 2, -3, 0; s = sqrt(14 * 4 / 3) / 6.
    parts = [(np.array([3.0, 4.0, 1.0, 4.0]), np.array([1.0, 1.0, 2.0, 2.0]))]
    change, error = bootstrap._drawn(parts, np.array([[1, 1, 1, 1], [2, 2, 0, 0]]))
    np.testing.assert_allclose(change, [0, 14 / 4 - 2])
    # Of the second draw: ratio 3.5, residuals -0.5 and 0.5, each twice, over a total of 4.
    np.testing.assert_allclose(error, [np.sqrt(14 * 4 / 3) / 6, np.sqrt(1 * 4 / 3) / 4])


def test_a_difference_is_paired():
    # Hard and easy blocks; the first method is always one code better: the interval excludes 0.
    hard = np.array([10.0, 50.0, 90.0, 20.0])
    low, high = difference_interval(mean_of(hard), mean_of(hard + 1))
    np.testing.assert_allclose([low, high], [-1, -1])
    low, high = interval(mean_of(hard))
    assert high - low > 40


def test_a_difference_of_the_same_forecasts_is_0():
    ratio = Ratio(np.array([0.1, 0.7, 0.2, 0.9, 0.3]), np.array([0.3, 1.1, 0.7, 1.3, 0.9]))
    assert difference_interval(ratio, ratio) == (0, 0)


def test_the_seed_decides():
    ratio = mean_of(np.arange(10.0) ** 2)
    one, again, other = (interval(ratio, resamples=50, seed=s) for s in (1, 1, 2))
    assert one == again != other


def test_an_interval_ends_at_the_bounds():
    ratio = Ratio(np.array([0.0, 0.1, 0.2, 9, 0.3, 0.4]), np.full(6, 10.0))
    low, high = interval(ratio)
    assert low < 0
    assert interval(ratio, bounds=(0, 0.2)) == (0, min(high, 0.2))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_no_interval_of_fewer_than_four_blocks(blocks):
    ratio = mean_of(np.arange(blocks))
    assert np.isnan(interval(ratio)).all() and np.isnan(difference_interval(ratio, ratio)).all()
    assert not np.isnan(interval(mean_of(np.arange(4)))).any()


def test_blocks_with_one_score_give_that_score():
    same = Ratio(np.array([0.1, 0.7, 0.3, 1.1]), np.array([0.2, 1.4, 0.6, 2.2]))
    np.testing.assert_allclose(interval(same), [0.5, 0.5])
    assert interval(Ratio(np.zeros(5), np.ones(5))) == (0, 0)


def test_no_interval_of_a_score_that_too_few_blocks_have():
    def rare(count):
        seen = np.arange(30) < count
        return Ratio(np.where(seen, np.arange(30), 0), np.where(seen, 40, 0))

    # Of 30 blocks, 15% of the resamples draw fewer than two of the three; 1% of eight.
    assert np.isnan(interval(rare(3))).all()
    assert not np.isnan(interval(rare(8))).any()
    assert np.isnan(interval(rare(0))).all() and np.isnan(rare(0).score())
    # 13% draw neither of two blocks.
    assert np.isnan(difference_interval(rare(8), rare(2))).all()


def test_each_score_has_its_own_interval():
    values = np.array([[1.0, 10], [2, 20], [4, 15], [8, 50]])
    low, high = interval(mean_of(values))
    for column in range(2):
        assert (low[column], high[column]) == interval(mean_of(values[:, column]))


def test_events_of_a_group_are_added():
    parts = stacked(
        [
            statistics(
                np.full((1, 1, 1, 1), 100, np.float32),
                np.full((1, 1, 1, 1), 100 - error, np.uint8),
                (74,),
            )
            for error in (1, 2, 50)
        ]
    )
    groups = scores.grouped(parts, ["b", "a", "b"])
    np.testing.assert_array_equal(groups.errors[:, 0, 1], [2, 51])
    np.testing.assert_array_equal(groups.contingency().hits[:, 0, 0], [1, 1])
    np.testing.assert_array_equal(groups.n()[:, 0], [1, 2])
    np.testing.assert_array_equal(groups.total().counts, parts.total().counts)


def test_few_blocks_are_warned_of():
    low, high = bootstrap.SIMULATED_COVERAGE[12]
    assert bootstrap.warning(29, "by episode_id") == (
        "the 95% intervals are over 29 blocks (by episode_id), fewer than 30, and may be too "
        "narrow: over 12 blocks of skewed simulated events, such intervals covered "
        f"{low} to {high}% of the true values."
    )
    assert bootstrap.warning(5).endswith("; fewer blocks were not simulated.")
    assert "over 6 blocks of skewed" in bootstrap.warning(6)
    assert bootstrap.warning(1) == (
        "there are no 95% intervals over 1 block (days): they need at least 4 blocks."
    )


def test_thirty_blocks_are_not_warned_of():
    assert bootstrap.warning(30) == ""


def test_the_coverage_is_that_of_the_simulation():
    rows = json.loads(max(COVERAGE.glob("*.json")).read_text())["rows"]
    for blocks, ends in bootstrap.SIMULATED_COVERAGE.items():
        covered = [row["studentized_%"] for row in rows if row["blocks"] == blocks]
        assert ends == (round(min(covered)), round(max(covered)))
