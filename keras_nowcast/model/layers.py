"""The two layers of the UNet that Keras does not have, for each of Keras' backends.

A saved model loads in any Keras process that has imported this module, with safe mode on, whether
its backend is TensorFlow, JAX or PyTorch.
"""

import keras
from keras import ops

from keras_nowcast.vil import MISSING, VIL_MEAN, VIL_SCALE

PACKAGE = "keras_nowcast"
_VECTOR = 16  # channels that a vector of AVX512 holds in float32, as which oneDNN computes


@keras.saving.register_keras_serializable(package=PACKAGE)
class ScaleVIL(keras.layers.Layer):
    """Scales stored VIL codes to the normalized units in which the UNet computes.

    The output is `(vil - mean) / scale`, computed in float32 and returned in the compute dtype of
    the layer.

    Choice: a missing pixel enters as code 0 (no echo), because an input needs some value there
    and the code for missing is above that of the heaviest rain. The loss does not count it.

    Args:
      mean: mean of the stored codes over the training set.
      scale: their standard deviation.
      missing: the code of a missing pixel.

    Input: uint8 codes of any shape. Output: the same shape, vil_norm.
    """

    def __init__(self, mean=VIL_MEAN, scale=VIL_SCALE, missing=MISSING, **kwargs):
        super().__init__(**kwargs)
        self.mean = float(mean)
        self.scale = float(scale)
        self.missing = int(missing)

    def call(self, vil):
        # On TensorFlow, a product takes a third of the time of `where` on a CPU.
        missing = ops.convert_to_tensor(self.missing, vil.dtype)  # as an int it would be int32
        vil = vil * ops.cast(ops.not_equal(vil, missing), vil.dtype)
        vil = ops.cast(vil, "float32")
        return ops.cast((vil - self.mean) / self.scale, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"mean": self.mean, "scale": self.scale, "missing": self.missing}
        return super().get_config() | config


@keras.saving.register_keras_serializable(package=PACKAGE)
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalization; on TensorFlow, a single fused operation computes it.

    The variables, the saved form, the moving averages and, within rounding, all results are those
    of `keras.layers.BatchNormalization`. Keras 3 computes them in a dozen operations, each with a
    pass over memory, and casts half-precision activations to float32. Here TensorFlow's activations
    stay in half precision, and the statistics are float32. Other backends compute as Keras does;
    the compiler of JAX fuses the operations.

    Attributes:
      memory: fraction of its averages that a training step keeps, read when a graph is traced;
        None for `momentum`. 1 leaves the averages as they are, 0 sets them to those of the batch.
        It is not saved.

    Input and output: (b, y, x, channel), float32, float16 or bfloat16.

    Raises:
      ValueError: the input does not have four axes, channels last.
    """

    memory = None

    def build(self, input_shape):
        if len(input_shape) != 4 or self.axis not in (-1, 3):
            raise ValueError(
                "`input_shape` must have four axes and `axis` be the last. "
                f"Received: input_shape={input_shape}, axis={self.axis}"
            )
        super().build(input_shape)

    def call(self, inputs, training=None):
        learning = bool(training and self.trainable)
        is_fused = keras.backend.backend() == "tensorflow"
        # TensorFlow has no deterministic gradient of the fused operation for fixed statistics.
        if is_fused and training and not learning:
            from tensorflow.python.framework.config import is_op_determinism_enabled

            is_fused = not is_op_determinism_enabled()
        normalize = _normalize_fused if is_fused else _normalize
        outputs, mean, variance = normalize(self, inputs, learning)
        memory = self.momentum if self.memory is None else self.memory
        if learning and memory < 1:
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * memory + value * (1.0 - memory) if memory else value)
        return outputs


def _normalize_fused(layer, inputs, learning):
    """Returns (outputs, mean, biased variance) of TensorFlow's fused operation."""
    import tensorflow as tf

    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        tf.cast(inputs, tf.float32) if _is_slow_in_half(inputs) else inputs,
        scale=layer.gamma,
        offset=layer.beta,
        mean=None if learning else layer.moving_mean,
        variance=None if learning else layer.moving_variance,
        epsilon=layer.epsilon,
        is_training=learning,
    )
    if learning:
        # The operation returns the unbiased variance (divided by n - 1); Keras averages the
        # biased one (divided by n).
        n = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), variance.dtype)
        variance *= tf.maximum(n - 1.0, 1.0) / n
    return tf.cast(outputs, inputs.dtype), mean, variance


def _is_slow_in_half(inputs):
    """True for half-precision inputs that a CPU normalizes faster in float32, casts included.

    oneDNN has vector code for half precision only for whole vectors of channels. What it does for
    others took two thirds of a training step of a UNet with 4 filters.
    """
    import tensorflow as tf

    if inputs.dtype == tf.float32 or inputs.shape[-1] % _VECTOR == 0:
        return False
    return not tf.config.get_visible_devices("GPU")


def _normalize(layer, inputs, learning):
    """Returns (outputs, mean, biased variance), computed in float32 by any backend."""
    inputs = ops.cast(inputs, "float32")
    if learning:
        mean, variance = ops.moments(inputs, axes=(0, 1, 2))
    else:
        mean, variance = layer.moving_mean, layer.moving_variance
    outputs = ops.batch_normalization(
        inputs, mean, variance, axis=-1, offset=layer.beta, scale=layer.gamma, epsilon=layer.epsilon
    )
    return ops.cast(outputs, layer.compute_dtype), mean, variance
