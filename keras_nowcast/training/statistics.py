"""The statistics of batch normalization, estimated for the weights as they are.

In training each batch is normalized by its own mean and variance. Validation and forecasts use
fixed ones, those of the training windows under the same weights. A moving average over the steps,
as Keras keeps, lags behind the weights and, after few steps, still holds part of its start. Here
the statistics are estimated before each validation instead, over a sample of training windows: in
forward passes that normalize by batch, as training does. The model that is validated, chosen and
saved therefore has the statistics that belong to its weights. docs/train.md states what that costs.

Source: precise batch normalization (Wu and Johnson, arXiv 2105.07576).
"""

import numpy as np
import tensorflow as tf

from keras_nowcast.model.layers import FusedBatchNormalization
from keras_nowcast.vil import FRAMES_IN, MISSING

# Windows of the sample, over all ranks: more change the validation loss by less than 1% (Choice:
# docs/train.md has the measurement).
SAMPLE_WINDOWS = 128
SAMPLE_EPOCH = 0  # the plan by which the sample is shuffled, always the same


class StatisticsEstimator:
    """Estimates the statistics of a model's batch normalization; all ranks call it together.

    From construction on, training steps leave the statistics as they are.

    Args:
      model: the UNet. Frozen normalization keeps its statistics.
      world: the World.
      pipeline: a WindowPipeline of the sample, shuffled and not endless.
      alive: called with what is done, before each batch.
    """

    def __init__(self, model, world, pipeline, alive=lambda what: None):
        self.layers = [
            layer
            for layer in model.layers
            if isinstance(layer, FusedBatchNormalization) and layer.trainable
        ]
        for layer in self.layers:
            layer.memory = 1.0
        self._model = model
        self._world = world
        # Built once, because TensorFlow needs time for it. Each iteration is a pass.
        self._sample = pipeline.dataset(SAMPLE_EPOCH)
        self._alive = alive
        channels = sum(layer.moving_mean.shape[0] for layer in self.layers)
        # Windows, then the sums over windows of the means and of the mean squares.
        self._sums = tf.Variable(tf.zeros(1 + 2 * channels, tf.float64), trainable=False)
        grid = pipeline.grid
        self._add = tf.function(
            self._add_batch,
            [tf.TensorSpec((None, grid, grid, FRAMES_IN), tf.uint8)],
            autograph=False,  # there is no Python control flow to convert, which takes time
        )

    def estimate(self):
        """Sets the statistics of all layers to those of the sample, under the current weights.

        If no window of the sample has a valid pixel, they stay as they are.
        """
        if not self.layers:
            return
        self._sums.assign(tf.zeros_like(self._sums))
        for x, _ in self._sample:
            self._alive("batch-norm statistics")
            self._add(x)
        windows, *sums = self._world.total(self._sums.numpy())
        if not windows:
            return
        means, squares = np.split(np.asarray(sums) / windows, 2)
        variances = np.maximum(squares - means**2, 0)
        first = 0
        for layer in self.layers:
            last = first + layer.moving_mean.shape[0]
            layer.moving_mean.assign(means[first:last])
            layer.moving_variance.assign(variances[first:last])
            first = last

    def _add_batch(self, x):
        # A window without a valid pixel, such as one that could not be read, is not of the data.
        x = tf.boolean_mask(x, tf.reduce_any(x != MISSING, axis=(1, 2, 3)))
        tf.cond(tf.shape(x)[0] > 0, lambda: self._add_windows(x), lambda: None)

    def _add_windows(self, x):
        for layer in self.layers:
            layer.memory = 0.0  # the statistics are then those of the batch
        try:
            self._model(x, training=True)
        finally:
            for layer in self.layers:
                layer.memory = 1.0
        means = [layer.moving_mean.value for layer in self.layers]
        squares = [
            layer.moving_variance.value + layer.moving_mean.value**2 for layer in self.layers
        ]
        windows = tf.cast(tf.shape(x)[0], tf.float64)
        sums = windows * tf.cast(tf.concat(means + squares, axis=0), tf.float64)
        self._sums.assign_add(tf.concat([[windows], sums], axis=0))
