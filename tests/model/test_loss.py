import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nowcast.model import loss as loss_module
from keras_nowcast.model.loss import MaskedMeanSquaredError, MeanSquaredErrorMetric


@pytest.fixture(autouse=True)
def round_scaling(monkeypatch):
    """Lets codes 50 and 75 scale to 0 and 1, so that the numbers here are exact."""
    monkeypatch.setattr(loss_module, "VIL_MEAN", 50.0)
    monkeypatch.setattr(loss_module, "VIL_SCALE", 25.0)


def _frames(values, dtype):
    return tf.reshape(tf.constant(values, dtype), (1, 1, -1, 1))


def test_loss_by_hand_over_a_gap():
    vil = _frames([50, 100, 0, 255], "uint8")  # vil_norm 0, 2, -2 and missing
    vil_norm = _frames([1.0, 0.0, -2.0, 1e30], "float32")
    assert MaskedMeanSquaredError()(vil, vil_norm).numpy() == pytest.approx((1 + 4 + 0) / 3)


def test_a_gap_passes_no_gradient():
    vil = _frames([50, 255], "uint8")
    vil_norm = _frames([3.0, 7.0], "float32")
    with tf.GradientTape() as tape:
        tape.watch(vil_norm)
        loss = MaskedMeanSquaredError()(vil, vil_norm)
    assert tape.gradient(loss, vil_norm).numpy().ravel().tolist() == [6.0, 0.0]


def test_a_batch_of_gaps_has_no_loss_and_no_gradient():
    vil = _frames([255, 255], "uint8")
    vil_norm = _frames([3.0, float("nan")], "float32")
    with tf.GradientTape() as tape:
        tape.watch(vil_norm)
        loss = MaskedMeanSquaredError()(vil, vil_norm)
    assert loss.numpy() == 0.0
    assert tape.gradient(loss, vil_norm).numpy().ravel().tolist() == [0.0, 0.0]


def test_half_precision_does_not_reach_the_loss():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        loss = MaskedMeanSquaredError()
        metric = MeanSquaredErrorMetric()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    vil = tf.zeros((1, 300, 300, 1), "uint8")  # more pixels than float16 can count
    vil_norm = tf.fill(vil.shape, tf.constant(-1.0, "float16"))
    metric.update_state(vil, vil_norm)
    assert loss(vil, vil_norm).dtype == tf.float32
    assert loss(vil, vil_norm).numpy() == 1.0
    assert metric.result().numpy() == 1.0


def test_metric_divides_once():
    metric = MeanSquaredErrorMetric()
    metric.update_state(_frames([50, 50, 50], "uint8"), _frames([1.0, 1.0, 1.0], "float32"))
    metric.update_state(_frames([50, 255, 255], "uint8"), _frames([3.0, 0.0, 0.0], "float32"))
    assert [v.numpy() for v in metric.variables] == [12.0, 4.0]
    assert {v.dtype for v in metric.variables} == {"float64"}
    assert metric.result().numpy() == 3.0
    metric.reset_state()
    assert np.isnan(metric.result().numpy())


def test_states_of_two_ranks_merge_by_adding():
    rng = np.random.default_rng(0)
    vil = rng.integers(0, 256, (4, 8, 8, 3)).astype("uint8")
    vil[0, :6] = 255
    vil_norm = rng.normal(size=vil.shape).astype("float32")
    whole, first, second = (MeanSquaredErrorMetric() for _ in range(3))
    whole.update_state(vil, vil_norm)
    first.update_state(vil[:1], vil_norm[:1])
    second.update_state(vil[1:], vil_norm[1:])
    for one, other in zip(first.variables, second.variables, strict=True):
        one.assign_add(other)
    assert first.count.numpy() == whole.count.numpy() == (vil != 255).sum()
    assert first.result().numpy() == pytest.approx(whole.result().numpy(), rel=1e-12)
    valid = vil != 255
    expected = np.mean((vil_norm - (vil.astype("float64") - 50) / 25)[valid] ** 2)
    assert whole.result().numpy() == pytest.approx(expected, rel=1e-6)
