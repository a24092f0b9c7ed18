import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nowcast.model.layers import FusedBatchNormalization, ScaleVIL

# Half a unit in the last place at the size of the compared values (below 4), with a margin.
ROUNDING = {"float32": 2e-6, "mixed_float16": 2e-3, "mixed_bfloat16": 1.6e-2}
POLICIES = list(ROUNDING)


def test_scaling_by_hand():
    scaled = ScaleVIL(mean=50, scale=25, missing=255)(np.uint8([0, 50, 100, 254, 255]))
    assert scaled.numpy().tolist() == pytest.approx([-2.0, 0.0, 2.0, 8.16, -2.0])


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float32", "float32"), ("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")],
)
def test_scaling_computes_in_float32_and_returns_the_compute_dtype(policy, dtype):
    vil = np.arange(256, dtype="uint8")
    scaled = ScaleVIL(mean=49.3, scale=25.7, missing=255, dtype=policy)(vil)
    codes = np.where(vil == 255, 0, vil).astype("float32")
    expected = tf.cast((codes - np.float32(49.3)) / np.float32(25.7), dtype)
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(scaled, expected)


def _pair(policy, **more):
    """Returns a fused and a stock layer with the same nontrivial variables."""
    rng = np.random.default_rng(1)
    layers = [
        make(dtype=policy, **more) for make in (FusedBatchNormalization, _stock_batch_normalization)
    ]
    weights = [rng.uniform(0.5, 1.5, 6).astype("float32") for _ in range(4)]
    for layer in layers:
        layer.build((None, 8, 8, 6))
        layer.set_weights(weights)
    return layers


def _stock_batch_normalization(**arguments):
    return keras.layers.BatchNormalization(**arguments)


def _codes(policy):
    x = np.random.default_rng(2).normal(0.5, 1.0, (4, 8, 8, 6)).clip(-3, 3)
    return tf.cast(x, keras.DTypePolicy(policy).compute_dtype)


def _step(layer, x, training):
    """Returns outputs, and gradients of a weighted sum by input and variables."""
    weights = tf.reshape(tf.linspace(-1.0, 1.0, tf.size(x)), tf.shape(x))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        loss = tf.reduce_mean(tf.cast(y, tf.float32) ** 2 * weights)
    gradients = tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])
    return y, [tf.cast(gradient, tf.float32) for gradient in gradients]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_fused_normalization_equals_stock(policy, training):
    fused, stock = _pair(policy)
    x = _codes(policy)
    y, gradients = _step(fused, x, training)
    expected_y, expected_gradients = _step(stock, x, training)
    assert y.dtype == expected_y.dtype == x.dtype
    np.testing.assert_allclose(
        tf.cast(y, tf.float32), tf.cast(expected_y, tf.float32), atol=ROUNDING[policy]
    )
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        size = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=4 * ROUNDING[policy] * size)


@pytest.mark.parametrize("policy", POLICIES)
def test_fused_moving_averages_equal_stock(policy):
    fused, stock = _pair(policy, momentum=0.5)
    for scale in (1, 2, 0.5):
        for layer in (fused, stock):
            layer(_codes(policy) * scale, training=True)
    # Statistics are float32 with any policy: no more than float32 rounding.
    np.testing.assert_allclose(fused.moving_mean, stock.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(fused.moving_variance, stock.moving_variance, rtol=1e-5)


def test_moving_variance_is_the_biased_one():
    layer = FusedBatchNormalization(momentum=0.0)
    layer(np.float32([1, 2, 3, 6]).reshape(4, 1, 1, 1), training=True)
    assert layer.moving_mean.numpy().tolist() == [3.0]
    assert layer.moving_variance.numpy() == pytest.approx([3.5])  # 14 / 4, not 14 / 3


def test_inference_and_a_frozen_layer_leave_the_averages():
    for frozen, training in ((False, False), (True, True)):
        fused, stock = _pair("float32")
        fused.trainable = stock.trainable = not frozen
        before = [v.numpy() for v in fused.variables]
        y = fused(_codes("float32"), training=training)
        np.testing.assert_allclose(y, stock(_codes("float32"), training=training), atol=2e-6)
        for value, was in zip(fused.variables, before, strict=True):
            np.testing.assert_array_equal(value, was)


@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_and_deterministic_equals_the_fused_operation(policy, request):
    layer, _ = _pair(policy)
    layer.trainable = False
    y, gradients = _step(layer, _codes(policy), training=True)
    request.getfixturevalue("deterministic")
    same_y, same_gradients = _step(layer, _codes(policy), training=True)
    assert same_y.dtype == y.dtype
    for a, b in zip([y, *gradients], [same_y, *same_gradients], strict=True):
        a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
        np.testing.assert_allclose(a, b, atol=2 * ROUNDING[policy] * np.abs(a).max())


def test_fused_has_the_variables_and_the_configuration_of_stock():
    fused, stock = _pair("float32", momentum=0.9, name="norm")
    assert [(v.name, v.shape) for v in fused.variables] == [
        (v.name, v.shape) for v in stock.variables
    ]
    assert fused.get_config() == stock.get_config()


def test_fused_refuses_what_the_operation_cannot_do():
    with pytest.raises(ValueError, match="four axes"):
        FusedBatchNormalization().build((None, 6))
    with pytest.raises(ValueError, match="Received"):
        FusedBatchNormalization(axis=1).build((None, 6, 8, 8))
