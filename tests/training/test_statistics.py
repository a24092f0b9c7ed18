"""The statistics of batch normalization are those of the weights, over windows with pixels."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_nowcast.model.layers import FusedBatchNormalization
from keras_nowcast.model.unet import build_unet, freeze_normalization
from keras_nowcast.training.distributed import World
from keras_nowcast.training.statistics import StatisticsEstimator
from keras_nowcast.vil import MISSING

sys.path.insert(0, str(Path(__file__).parent))
from ranks_distributed import Batches, first_statistics  # noqa: E402

GRID = 16


def windows(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (count, GRID, GRID, 13), dtype=np.uint8)


def build(depth=1):
    keras.utils.set_random_seed(1)
    return build_unet(GRID, 13, 12, depth=depth, filters=2)


def averages(model):
    return [np.asarray(each) for each in model.non_trainable_variables]


def test_the_first_layers_are_the_mean_and_variance_of_all_pixels():
    model, x = build(), windows(7)
    StatisticsEstimator(model, World(), Batches(x[:4], x[4:6], x[6:])).estimate()
    inside = keras.Model(model.input, model.get_layer("encoder_1_norm_1").input)(x).numpy()
    mean, variance = first_statistics(model)
    np.testing.assert_allclose(mean, inside.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, inside.var(axis=(0, 1, 2)), rtol=1e-3)


def test_one_batch_is_forecast_as_it_is_normalized_in_training():
    model, x = build(depth=2), windows(4)
    StatisticsEstimator(model, World(), Batches(x)).estimate()
    np.testing.assert_allclose(model(x, training=False), model(x, training=True), atol=1e-4)


def test_a_window_without_a_pixel_counts_for_nothing():
    x = windows(3)
    missing = np.full_like(x, MISSING)
    found = []
    for batches in ((x,), (np.concatenate([x, missing]), missing)):
        model = build()
        StatisticsEstimator(model, World(), Batches(*batches)).estimate()
        found.append(averages(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_without_any_pixel_the_statistics_stay():
    model = build()
    before = averages(model)
    StatisticsEstimator(model, World(), Batches(np.full_like(windows(2), MISSING))).estimate()
    for one, other in zip(before, averages(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_leaves_them_and_estimating_leaves_the_weights():
    model, x = build(), windows(4)
    estimator = StatisticsEstimator(model, World(), Batches(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = averages(model)
    model.train_on_batch(x, np.zeros((4, GRID, GRID, 12), np.float32))
    for one, other in zip(before, averages(model), strict=True):
        np.testing.assert_array_equal(one, other)
    weights = [np.asarray(each) for each in model.trainable_variables]
    estimator.estimate()
    for one, other in zip(weights, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, other)
    # The graph of estimating must not have changed that of training.
    estimated = averages(model)
    model.train_on_batch(x, np.zeros((4, GRID, GRID, 12), np.float32))
    for one, other in zip(estimated, averages(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_estimate_is_a_pass_over_the_one_dataset_of_the_sample():
    model, built = build(), []

    class Counted(Batches):
        def dataset(self, epoch):
            built.append(epoch)
            return super().dataset(epoch)

    estimator = StatisticsEstimator(model, World(), Counted(windows(3), windows(2, seed=1)))
    estimator.estimate()
    first = averages(model)
    estimator.estimate()
    assert len(built) == 1
    for one, other in zip(first, averages(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_normalization_keeps_its_statistics():
    model = build()
    freeze_normalization(model)
    estimator = StatisticsEstimator(model, World(), Batches(windows(2)))
    assert estimator.layers == []
    before = averages(model)
    estimator.estimate()
    for one, other in zip(before, averages(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("memory, expected", [(None, 0.03), (0.0, 3.0), (1.0, 0.0)])
def test_a_layer_keeps_as_much_of_its_averages_as_it_is_told(memory, expected):
    layer = FusedBatchNormalization()
    layer.memory = memory
    layer(np.float32([1, 2, 3, 6]).reshape(4, 1, 1, 1), training=True)
    assert layer.moving_mean.numpy() == pytest.approx([expected])
    assert layer.get_config()["momentum"] == 0.99
