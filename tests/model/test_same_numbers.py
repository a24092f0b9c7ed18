"""On TensorFlow, keras.ops gives what TensorFlow's own operations gave, bit by bit."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nowcast.model import loss as loss_module
from keras_nowcast.model.layers import FusedBatchNormalization, ScaleVIL
from keras_nowcast.model.loss import MaskedMeanSquaredError, MeanSquaredErrorMetric
from keras_nowcast.model.precision import set_precision
from keras_nowcast.model.unet import build_unet
from keras_nowcast.vil import MISSING, VIL_MEAN, VIL_SCALE

GRID, BATCH = 16, 2


def scale(self, vil):
    vil = tf.cast(vil, tf.float32)
    vil = tf.where(tf.equal(vil, self.missing), 0.0, vil)
    return tf.cast((vil - self.mean) / self.scale, self.compute_dtype)


def normalize(self, inputs, training=None):
    learning = bool(training and self.trainable)
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        scale=self.gamma,
        offset=self.beta,
        mean=None if learning else self.moving_mean,
        variance=None if learning else self.moving_variance,
        epsilon=self.epsilon,
        is_training=learning,
    )
    if learning:
        n = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), variance.dtype)
        variance *= tf.maximum(n - 1.0, 1.0) / n
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value * (1.0 - self.momentum))
    return outputs


def masked_error(vil, vil_norm):
    vil = tf.cast(vil, tf.float32)
    valid = tf.not_equal(vil, float(MISSING))
    error = tf.cast(vil_norm, tf.float32) - (vil - VIL_MEAN) / VIL_SCALE
    return tf.where(valid, error, 0.0), valid


def loss(self, y_true, y_pred):
    error, valid = masked_error(y_true, y_pred)
    count = tf.cast(tf.math.count_nonzero(valid), tf.float32)
    return tf.math.divide_no_nan(2.0 * tf.nn.l2_loss(error), count)


def update_state(self, y_true, y_pred, sample_weight=None):
    error, valid = masked_error(y_true, y_pred)
    frames = tf.reduce_sum(tf.square(error), axis=(1, 2))
    self.total.assign_add(tf.reduce_sum(tf.cast(frames, tf.float64)))
    self.count.assign_add(tf.cast(tf.math.count_nonzero(valid), tf.float64))


@pytest.fixture
def before(monkeypatch):
    """Puts TensorFlow's own operations in the place of keras.ops."""

    def put():
        monkeypatch.setattr(ScaleVIL, "call", scale)
        monkeypatch.setattr(FusedBatchNormalization, "call", normalize)
        monkeypatch.setattr(MaskedMeanSquaredError, "call", loss)
        monkeypatch.setattr(MeanSquaredErrorMetric, "update_state", update_state)
        monkeypatch.setattr(loss_module, "masked_error", masked_error)

    yield put
    set_precision("float32")


def three_steps(policy):
    """Returns (logs, weights, {kind of operation: number}) of three training steps."""
    set_precision(policy)
    keras.utils.set_random_seed(0)
    model = build_unet(GRID, 13, 12, depth=2, filters=4)
    model.compile(
        keras.optimizers.Adam(1e-3),
        MaskedMeanSquaredError(),
        metrics=[MeanSquaredErrorMetric()],
        jit_compile=False,
    )
    vil = np.random.default_rng(0).integers(0, 256, (BATCH, GRID, GRID, 25)).astype("uint8")
    x, y = vil[..., :13], vil[..., 13:]
    logs = [model.train_on_batch(x, y, return_dict=True) for _ in range(3)]
    step = tf.function(lambda x, y: model.train_step((x, y)))
    graph = step.get_concrete_function(tf.constant(x), tf.constant(y)).graph
    kinds = collections.Counter(each.type for each in graph.get_operations())
    return logs, model.get_weights(), kinds


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_three_steps_are_the_same_bit_by_bit(policy, before):
    logs, weights, kinds = three_steps(policy)
    before()
    expected_logs, expected_weights, expected_kinds = three_steps(policy)
    assert logs == expected_logs
    for weight, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    # The same work: constants may be written in another way, which costs no time. What is missing
    # is masked by products, which are faster than choices. The narrow layers of half precision are
    # cast to float32, in which a CPU normalizes them faster.
    free = {"Const", "Identity", "NoOp", *(["Cast"] if policy == "mixed_bfloat16" else [])}
    more = {k: n for k, n in (kinds - expected_kinds).items() if k not in free}
    less = {k: n for k, n in (expected_kinds - kinds).items() if k not in free}
    masking = {"NotEqual": 1, "Mul": 1, "MulNoNan": 4, **({} if "Cast" in free else {"Cast": 5})}
    assert more == masking
    assert less == {"Equal": 1, "SelectV2": 5, "Reshape": 1, "Sum": 1}
