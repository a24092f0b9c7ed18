"""The training step and the validation step of the UNet, as graphs of few operations.

Keras' own steps compute the results of all metrics in each step, which `model.fit` then reads. Here
a step returns one vector, its report. With several ranks, each gradient is that of the rank's sum
of errors divided by a constant; the division by the number of valid pixels follows the allreduce,
together with which that number is averaged. So the backward pass waits for no other rank.
"""

import time

import tensorflow as tf

from keras_nowcast.model.loss import count_valid, masked_error, sum_of_squares


class Steps:
    """The two steps of a compiled model.

    Args:
      model: the compiled Keras model; its optimizer is that of `build_distributed`.
      world: the World.
      reports: the Reports.
      error: the MeanSquaredErrorMetric, which both steps update.
      scores: the ForecastScores, which the validation step updates; None if there are none.
      nominal: number of pixels of the targets in a full batch.
      xla: True to compile the forward and the backward pass with XLA. Horovod's operations and the
        update stay outside, so no gradient is sent before all are computed.

    Attributes:
      xla: as given.
      waited_s: seconds for which the host has waited for a batch, in all steps so far.
    """

    def __init__(self, model, world, reports, error, scores, nominal, xla=False):
        self._model = model
        self._world = world
        self._reports = reports
        self._error = error
        self._scores = scores
        self._nominal = float(nominal)
        self.xla = xla
        self.waited_s = 0.0
        self._gradients = self._compiled() if xla else self.gradients

    def _compiled(self):
        """Returns `gradients` as a function that XLA compiles for each batch size it meets."""
        return tf.function(self.gradients, self._batch(), jit_compile=True, autograph=False)

    def _batch(self):
        """Returns the TensorSpecs of a batch of any size."""
        shapes = self._model.input_shape, self._model.output_shape
        return [tf.TensorSpec((None, *shape[1:]), tf.uint8) for shape in shapes]

    def use_in_fit(self):
        """Makes `model.fit`, `evaluate` and `train_on_batch` run these steps."""
        self._model.train_function = self._host_function(self.train, trains=True)
        self._model.test_function = self._host_function(self.validate, trains=False)

    def train(self, x, y):
        """Trains on a batch and returns the report of the step; traced by tf.function.

        Args:
          x, y: uint8 codes, as WindowPipeline.dataset has them.
        """
        model, optimizer = self._model, self._model.optimizer
        variables = model.trainable_variables
        gradients, total, count = self._gradients(x, y)
        loss = tf.math.divide_no_nan(total, count)
        count, report = self._reports.share(loss, count)
        if self._world.size == 1:
            optimizer.apply(gradients, variables)
        else:
            optimizer.apply(gradients, variables, divisor=count / self._nominal)
        return report

    def gradients(self, x, y):
        """Computes the scaled gradients of a batch on this rank, and changes no variable.

        Except the sums of the metric, and the averages of batch normalization that keep them.

        Returns:
          (gradients, total, count): list of tensors, the sum of squared errors over valid pixels,
          and their number, float32 scalars.
        """
        model = self._model
        with tf.GradientTape() as tape:
            error, valid = masked_error(y, model(x, training=True))
            count = tf.cast(count_valid(valid), tf.float32)
            total = sum_of_squares(error)
            divisor = count if self._world.size == 1 else self._nominal
            loss = model.optimizer.scale_loss(tf.math.divide_no_nan(total, divisor))
        self._error.add(error, valid)
        return tape.gradient(loss, model.trainable_variables), total, count

    def warm_up(self, sizes):
        """Computes the gradients of a batch of each size, and throws them away.

        cuDNN tries its algorithms when it first meets a batch size, which takes up to seconds and
        much memory; XLA compiles. No other rank takes part, and no variable changes.

        Args:
          sizes: numbers of windows.
        """
        gradients = tf.function(
            lambda x, y: self._gradients(x, y)[0], self._batch(), autograph=False
        )
        for size in sizes:
            x, y = (tf.zeros((size, *spec.shape[1:]), tf.uint8) for spec in self._batch())
            gradients(x, y)[0].numpy()
        self._error.reset_state()

    def validate(self, x, y):
        """Adds a batch to the metrics and returns the report of the step, without a loss."""
        forecast = self._model(x, training=False)
        self._error.update_state(y, forecast)
        if self._scores is not None:
            self._scores.update_state(y, forecast)
        return self._reports.share(tf.constant(0.0), tf.constant(0.0))[1]

    def _host_function(self, step, trains):
        on_data = tf.function(step, self._batch(), autograph=False)

        def run(iterator):
            if isinstance(iterator, tf.data.Iterator):
                since = time.monotonic()
                x, y = next(iterator)
                self.waited_s += time.monotonic() - since
                self._reports.add(on_data(x, y), trains)
                return {}  # nothing for Keras to read
            x, y, _ = next(iterator)  # of train_on_batch
            return {"loss": on_data(x, y)[0]}

        return run
