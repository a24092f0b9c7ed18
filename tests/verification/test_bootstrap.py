import itertools

import numpy as np

from keras_nowcast.verification import bootstrap, scores
from keras_nowcast.verification.scores import stacked, statistics


def events(errors, echo=100):
    """Returns one event of one pixel per error; its forecast is `echo`."""
    return stacked(
        [
            statistics(
                np.full((1, 1, 1, 1), echo, np.float32),
                np.full((1, 1, 1, 1), echo - error, np.uint8),
                (74,),
            )
            for error in errors
        ]
    )


def test_interval_of_a_mean_equals_every_draw_counted():
    errors = [0, 3, 6]
    draws = [np.mean(draw) for draw in itertools.product(errors, repeat=3)]
    low, high = bootstrap.interval(events(errors), scores.mae, resamples=20_000, level=0.5)
    assert [low[0], high[0]] == list(np.quantile(draws, [0.25, 0.75]))


def test_weights_equal_drawing_the_events_themselves():
    parts = events([1, 2, 50])
    drawn = scores.weighted(parts, np.array([[2, 0, 1], [1, 1, 1]]))
    np.testing.assert_allclose(scores.mae(drawn)[:, 0], [52 / 3, 53 / 3])
    np.testing.assert_array_equal(drawn.contingency().hits[:, 0, 0], [2, 2])


def test_a_difference_is_paired():
    # Hard and easy events; the first method is always one code better: the interval excludes 0.
    hard = [10, 50, 90]
    first, second = events(hard), events([error + 1 for error in hard])
    low, high = bootstrap.difference_interval(first, second, scores.mae)
    np.testing.assert_allclose([low[0], high[0]], [-1, -1])
    low, high = bootstrap.interval(first, scores.mae)
    assert high[0] - low[0] > 40


def test_the_seed_decides():
    parts = events(range(10))
    one, again, other = (bootstrap.interval(parts, scores.mse, 50, seed=s) for s in (1, 1, 2))
    assert one == again != other


def test_undefined_draws_are_left_out_until_they_are_the_most():
    def csi(part):
        return scores.csi(part.contingency())

    rare = stacked(
        [
            statistics(
                np.full((1, 1, 1, 1), code, np.uint8),
                np.full((1, 1, 1, 1), code, np.uint8),
                (74,),
            )
            for code in (100, 0, 0)
        ]
    )
    low, high = bootstrap.interval(rare, csi)  # defined in 19 of 27 draws, and then 1
    assert low[0, 0] == high[0, 0] == 1.0
    low, high = bootstrap.interval(events([30, 30], echo=50), csi)
    assert np.isnan(low[0, 0]) and np.isnan(high[0, 0])
