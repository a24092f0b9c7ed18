"""Mean squared error over the pixels that were observed.

The loss and the metric share one sum and one count. Neither averages averages: a batch or a rank
with fewer valid pixels has less weight.
"""

import keras
import tensorflow as tf

from keras_nowcast.vil import MISSING, VIL_MEAN, VIL_SCALE


def masked_error(vil, vil_norm):
    """Returns (error, valid): forecast minus truth, 0 where it is missing, and where it is not.

    Args:
      vil: (b, y, x, time) stored codes, of any number type.
      vil_norm: (b, y, x, time) forecast in normalized units.

    Returns:
      (b, y, x, time) float32, and (b, y, x, time) bool.
    """
    vil = tf.cast(vil, tf.float32)
    valid = tf.not_equal(vil, float(MISSING))
    error = tf.cast(vil_norm, tf.float32) - (vil - VIL_MEAN) / VIL_SCALE
    # Masked before it is squared, so that a gap passes no gradient for any forecast there.
    return tf.where(valid, error, 0.0), valid


class MaskedMeanSquaredError(keras.losses.Loss):
    """Sum of squared errors over valid pixels, divided by their number; 0 if there are none.

    With several ranks, the gradient must be that of (sum of all errors) / (all valid pixels), but
    each rank contributes the gradient of one loss. Each rank therefore divides its own sum by
    the mean count of all ranks: `mean(sum_r / mean(count)) = sum(sum_r) / sum(count)`.

    Args:
      average: function of this rank's count, a float32 scalar, that returns the mean over all
        ranks; every rank must call it. The count depends only on the targets, so this can overlap
        with the forward pass. None if there is one rank.

    Called with (b, y, x, time) stored codes and (b, y, x, time) vil_norm; returns a float32
    scalar under every dtype policy.
    """

    def __init__(self, average=None, name="loss"):
        super().__init__(name=name, reduction=None, dtype="float32")
        self.average = average

    def call(self, y_true, y_pred):
        error, valid = masked_error(y_true, y_pred)
        # Counted in integers, since float32 stops counting ones at 2**24, about 10 windows.
        count = tf.cast(tf.math.count_nonzero(valid), tf.float32)
        if self.average is not None:
            count = self.average(count)
        # l2_loss is half the sum of squares; it makes two copies of the output fewer than squaring.
        return tf.math.divide_no_nan(2.0 * tf.nn.l2_loss(error), count)


class MeanSquaredErrorMetric(keras.metrics.Metric):
    """Mean squared error over every valid pixel seen since the last reset, in normalized units.

    The two variables, `total` and `count`, are float64 sums, so the states of several ranks merge
    by adding them. The result is NaN if no valid pixel was seen.
    """

    def __init__(self, name="mse"):
        super().__init__(name=name, dtype="float64")
        self.total = self.add_variable((), initializer="zeros", dtype="float64", name="total")
        self.count = self.add_variable((), initializer="zeros", dtype="float64", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        error, valid = masked_error(y_true, y_pred)
        # Each frame is summed in float32, and the sums of the frames in float64.
        frames = tf.reduce_sum(tf.square(error), axis=(1, 2))
        self.total.assign_add(tf.reduce_sum(tf.cast(frames, tf.float64)))
        self.count.assign_add(tf.cast(tf.math.count_nonzero(valid), tf.float64))

    def result(self):
        return self.total / self.count
