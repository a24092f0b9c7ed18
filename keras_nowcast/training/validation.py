"""Forecast scores that are computed in the graph while a run validates."""

import tensorflow as tf

from keras_nowcast.verification.metrics import ForecastScores


class ValidationScores(ForecastScores):
    """ForecastScores that count during validation only, so that they add no time to training.

    Attributes:
      active: tf.Variable, True while the run validates.
    """

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.active = tf.Variable(False, trainable=False)

    def update_state(self, y_true, y_pred, sample_weight=None):
        def count():
            super(ValidationScores, self).update_state(y_true, y_pred)
            return True

        tf.cond(self.active, count, lambda: False)
