"""Mean squared error over the pixels that were observed.

The loss and the metric share one sum and one count. Neither averages averages: a batch or a rank
with fewer valid pixels has less weight. Both run on each of Keras' backends; some functions
use what TensorFlow has and keras.ops does not.
"""

import keras
from keras import ops

from keras_nowcast.vil import MISSING, VIL_MEAN, VIL_SCALE


def masked_error(vil, vil_norm):
    """Returns (error, valid): forecast minus truth, 0 where it is missing, and where it is not.

    Args:
      vil: (b, y, x, time) stored codes, of any number type.
      vil_norm: (b, y, x, time) forecast in normalized units.

    Returns:
      (b, y, x, time) float32, and (b, y, x, time) bool.
    """
    vil = ops.convert_to_tensor(vil)
    # With MISSING as an int, all codes would be compared as int32, which a GPU leaves to the host.
    valid = ops.not_equal(vil, ops.convert_to_tensor(MISSING, vil.dtype))
    error = ops.cast(vil_norm, "float32") - (ops.cast(vil, "float32") - VIL_MEAN) / VIL_SCALE
    # Masked before it is squared, so that a gap passes no gradient for any forecast there.
    return _where_valid(error, valid), valid


def _where_valid(error, valid):
    """Returns the error, with 0 at each invalid pixel, even where the error is NaN or infinite."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # The same as `where`, but faster: it gives 0 for NaN times 0.
        return tf.math.multiply_no_nan(error, tf.cast(valid, error.dtype))
    return ops.where(valid, error, 0.0)


class MaskedMeanSquaredError(keras.losses.Loss):
    """Sum of squared errors over valid pixels, divided by their number; 0 if there are none.

    Called with (b, y, x, time) stored codes and (b, y, x, time) vil_norm; returns a float32
    scalar under every dtype policy.
    """

    def __init__(self, name="loss"):
        super().__init__(name=name, reduction=None, dtype="float32")

    def call(self, y_true, y_pred):
        error, valid = masked_error(y_true, y_pred)
        count = ops.cast(count_valid(valid), "float32")
        return ops.divide_no_nan(sum_of_squares(error), count)


class MeanSquaredErrorMetric(keras.metrics.Metric):
    """Mean squared error over every valid pixel seen since the last reset, in normalized units.

    The two variables, `total` and `count`, are sums, so the states of several ranks merge by adding
    them. They are float64; on JAX, which has float64 only if `jax_enable_x64` is set, they are
    float32, and each batch adds a rounding error of up to 6e-8 of the sum. The result is NaN if no
    valid pixel was seen.
    """

    def __init__(self, name="mse"):
        dtype = _widest_float()
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_variable((), initializer="zeros", dtype=dtype, name="total")
        self.count = self.add_variable((), initializer="zeros", dtype=dtype, name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.add(*masked_error(y_true, y_pred))

    def add(self, error, valid):
        """Adds what `masked_error` returned."""
        # Each frame is summed in float32, and the sums of the frames in float64.
        frames = ops.sum(ops.square(error), axis=(1, 2))
        self.total.assign_add(ops.sum(ops.cast(frames, self.total.dtype)))
        self.count.assign_add(ops.cast(count_valid(valid), self.count.dtype))

    def result(self):
        return self.total / self.count


def count_valid(valid):
    """Returns the number of true elements.

    It is counted in integers, since float32 stops counting ones at 2**24, about 10 windows.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.math.count_nonzero(valid)  # int64, since a GPU leaves sums of int32 to the host
    return ops.count_nonzero(valid)


def sum_of_squares(error):
    """Returns the sum of the squares of all elements, a float32 scalar."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # l2_loss is half the sum; it makes two copies of the output fewer than squaring.
        return 2.0 * tf.nn.l2_loss(error)
    return ops.sum(ops.square(error))


def _widest_float():
    """Returns the name of the widest float type that the backend computes in."""
    if keras.backend.backend() == "jax":
        import jax

        return "float64" if jax.config.jax_enable_x64 else "float32"
    return "float64"
