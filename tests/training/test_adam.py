"""The fused optimizers are Keras' in fewer operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nowcast.training.adam import FusedAdam, FusedLossScale, all_finite, build_optimizer
from keras_nowcast.training.schedule import ScaledWarmup

SHAPES = ((3, 3, 4, 8), (8,), ())


def trained(optimizer, gradients):
    """Returns the weights, one array per shape, after a step with each list of gradients."""
    weights = [keras.Variable(np.ones(shape), dtype="float32") for shape in SHAPES]
    optimizer.build(weights)

    @tf.function
    def step(each):
        optimizer.apply(each, weights)

    for each in gradients:
        step([tf.constant(one, tf.float32) for one in each])
    return [np.asarray(each) for each in weights]


def random_gradients(steps, scale=1.0):
    rng = np.random.default_rng(0)
    return [[scale * rng.normal(0.1, 1.0, shape) for shape in SHAPES] for _ in range(steps)]


def state(optimizer):
    return [np.asarray(each) for each in optimizer.variables]


def test_a_hundred_steps_are_those_of_keras():
    schedule = ScaledWarmup(1e-3, 1, 50, 1.0, 4)
    ours, theirs = FusedAdam(schedule), keras.optimizers.Adam(schedule)
    gradients = random_gradients(100)
    for a, b in zip(trained(ours, gradients), trained(theirs, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert int(ours.iterations) == int(theirs.iterations) == 100
    for a, b in zip(state(ours), state(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_scaled_steps_are_those_of_keras_with_the_same_steps_skipped():
    ours = FusedLossScale(FusedAdam(1e-3), 8.0, dynamic_growth_steps=5)
    theirs = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-3), 8.0, dynamic_growth_steps=5
    )
    gradients = random_gradients(100, scale=8.0)
    for step, bad in ((0, np.inf), (3, np.nan), (20, -np.inf), (21, np.inf)):
        gradients[step][1][2] = bad
    for a, b in zip(trained(ours, gradients), trained(theirs, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert int(ours.iterations) == int(theirs.iterations) == 96
    assert float(ours.dynamic_scale) == float(theirs.dynamic_scale)
    assert int(ours.step_counter) == int(theirs.step_counter)


def test_a_skipped_step_changes_no_bit():
    optimizer = FusedLossScale(FusedAdam(1e-3), 8.0)
    good, bad = random_gradients(2)
    weights = trained(optimizer, [good])
    before = state(optimizer.inner_optimizer)
    bad[2] = np.nan
    again = FusedLossScale(FusedAdam(1e-3), 8.0)
    for a, b in zip(weights, trained(again, [good, bad]), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, state(again.inner_optimizer), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(again.dynamic_scale) == 4.0


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_its_variables_are_those_of_keras(policy):
    """So that the checkpoint of one can be resumed with the other."""
    ours = build_optimizer(1e-3, policy)
    theirs = keras.optimizers.Adam(1e-3)
    if policy == "mixed_float16":
        theirs = keras.optimizers.LossScaleOptimizer(theirs)
    described = []
    for optimizer in (ours, theirs):
        optimizer.build([keras.Variable(np.ones(shape), name="w") for shape in SHAPES])
        described.append(
            [(each.name, tuple(each.shape), each.dtype) for each in optimizer.variables]
        )
    assert described[0] == described[1]


def test_one_infinity_in_many_gradients_is_found():
    gradients = [np.zeros(shape, "float32") for shape in SHAPES]
    assert all_finite(gradients)
    for bad in (np.inf, -np.inf, np.nan):
        assert not all_finite([*gradients, np.array([0.0, bad], "float32")])
    huge = [np.full(9, np.finfo("float32").max, "float32")]  # finite, although their sum is not
    assert all_finite(huge)


def test_the_host_decides_nothing():
    optimizer = build_optimizer(1e-3, "mixed_float16")
    weights = [keras.Variable(np.ones(shape), dtype="float32") for shape in SHAPES]
    optimizer.build(weights)
    step = tf.function(lambda gradients: optimizer.apply(gradients, weights))
    graph = step.get_concrete_function([tf.TensorSpec(s, tf.float32) for s in SHAPES]).graph
    kinds = [each.type for each in graph.get_operations()]
    assert not {"If", "StatelessIf", "While"} & set(kinds)
    assert kinds.count("ResourceApplyAdam") == len(SHAPES)
    assert kinds.count("IsFinite") == kinds.count("All") == 1


def test_a_variable_without_a_gradient_stays():
    optimizer = FusedAdam(1e-3)
    weights = [keras.Variable(np.ones(2), dtype="float32") for _ in range(2)]
    optimizer.build(weights)
    optimizer.apply([None, tf.ones(2)], weights)
    assert np.asarray(weights[0]).tolist() == [1.0, 1.0]
    assert np.asarray(weights[1])[0] < 1.0


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_no_loss_scale_without_float16(policy):
    optimizer = build_optimizer(0.25, policy)
    assert type(optimizer) is FusedAdam
    assert float(optimizer.learning_rate) == 0.25


def test_loss_scale_is_outermost_in_float16():
    optimizer = build_optimizer(0.25, "mixed_float16")
    assert type(optimizer) is FusedLossScale
    assert type(optimizer.inner_optimizer) is FusedAdam
    assert float(optimizer.learning_rate) == 0.25
