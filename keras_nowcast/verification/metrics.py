"""The counts of `scores`, computed in the TensorFlow graph for validation during training."""

import keras
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from keras_nowcast.vil import MISSING, VIL_MEAN, VIL_SCALE


def contingency_counts(forecast, observation, thresholds):
    """Returns (l, t, 4) int64: hits, misses, false alarms, correct negatives.

    Makes one pass over the pixels, with a joint histogram of threshold bins. An event, a missing
    observation and NaN in the forecast mean the same as in `scores.statistics`.

    Args:
      forecast: (b, y, x, l) float tensor, codes.
      observation: (b, y, x, l) uint8 tensor, codes.
      thresholds: whole codes, ascending.
    """
    if is_op_determinism_enabled():  # TensorFlow has no deterministic bincount on GPUs
        return _counts_by_threshold(forecast, observation, thresholds)
    leads = observation.shape[-1]
    side = len(thresholds) + 1
    row, column = _bins(forecast, thresholds), _bins(observation, thresholds)
    column = tf.where(tf.equal(observation, MISSING), side, column)  # a separate column
    cell = (tf.range(leads) * side + row) * (side + 1) + column
    size = leads * side * (side + 1)
    histogram = tf.math.bincount(tf.reshape(cell, [-1]), minlength=size, maxlength=size)
    histogram = tf.reshape(histogram, [leads, side, side + 1])[..., :side]
    # corner[l, i, j]: pixels with forecast in bin i or higher and observation in bin j or higher.
    corner = tf.cast(histogram, tf.int64)
    for axis in (1, 2):
        corner = tf.cumsum(corner, axis=axis, reverse=True)
    hits = tf.linalg.diag_part(corner)[:, 1:]
    forecast, observed = corner[:, 1:, 0], corner[:, 0, 1:]
    negatives = corner[:, :1, 0] - forecast - observed + hits
    return tf.stack([hits, observed - hits, forecast - hits, negatives], axis=-1)


def _counts_by_threshold(forecast, observation, thresholds):
    """Returns what contingency_counts does, in one pass over the pixels per count."""
    valid = tf.not_equal(observation, MISSING)
    counts = []
    for threshold in thresholds:
        predicted, observed = forecast >= threshold, observation >= threshold
        cases = (
            predicted & observed,
            ~predicted & observed,
            predicted & ~observed,
            ~predicted & ~observed,
        )
        counts.append(
            tf.stack(
                [tf.math.count_nonzero(case & valid, axis=(0, 1, 2)) for case in cases], axis=-1
            )
        )
    return tf.stack(counts, axis=1)


def _bins(codes, thresholds):
    return tf.add_n([tf.cast(codes >= threshold, tf.int32) for threshold in thresholds])


class ForecastScores(keras.metrics.Metric):
    """CSI at each threshold and MAE in codes, pooled over all pixels and leads seen.

    The state consists of sums: to merge ranks, sum each of `variables` and then take `result`. The
    sums are int64 and float64, since float32 stops counting at 2**24, about 10 windows.

    Args:
      thresholds: whole codes, ascending.

    `result` is a dictionary, `csi_<threshold>` and `mae`, float64 scalars, NaN where undefined.

    Choice: the forecast is compared in float32, not rounded to a code. A NaN in the forecast makes
    the MAE NaN, so that a model that diverged is noticed.
    """

    def __init__(self, thresholds, name="scores"):
        super().__init__(name=name)
        self.thresholds = tuple(thresholds)
        self.counts = self.add_weight(
            shape=(len(self.thresholds), 4), initializer="zeros", dtype="int64", name="counts"
        )
        self.absolute_error = self.add_weight(
            shape=(), initializer="zeros", dtype="float64", name="absolute_error"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        forecast = tf.cast(y_pred, tf.float32) * VIL_SCALE + VIL_MEAN
        counts = contingency_counts(forecast, y_true, self.thresholds)
        self.counts.assign_add(tf.reduce_sum(counts, axis=0))
        error = tf.abs(forecast - tf.cast(y_true, tf.float32))
        error = tf.where(tf.equal(y_true, MISSING), 0.0, error)
        # Each frame's rows are summed in float32, and these sums in float64.
        rows = tf.cast(tf.reduce_sum(error, axis=(2, 3)), tf.float64)
        self.absolute_error.assign_add(tf.reduce_sum(rows))

    def result(self):
        hits, misses, false_alarms, _ = tf.unstack(
            tf.cast(tf.convert_to_tensor(self.counts), tf.float64), axis=-1
        )
        n = tf.cast(tf.reduce_sum(tf.convert_to_tensor(self.counts)[0]), tf.float64)
        csi = hits / (hits + misses + false_alarms)
        scores = {f"csi_{t}": csi[i] for i, t in enumerate(self.thresholds)}
        return scores | {"mae": tf.convert_to_tensor(self.absolute_error) / n}
