"""The learning rate over the epochs of a run."""

import math

import keras

from keras_nowcast.errors import InputError
from keras_nowcast.training.progress import FIRST_ORIGIN


@keras.saving.register_keras_serializable("keras_nowcast")
class ScaledWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from the rate of one process to that of all; then stays, or falls to 0.

    The global batch of `world_size` processes is that many times larger; the rate grows with it.
    Starting there at once diverges, so the rate warms up.

    A run that goes on with another number of processes has another global batch and other steps an
    epoch. `origin` says where it stood: from there the steps are counted anew, the decay goes on
    by epochs, and the rate warms up again from what it was to that of more processes. Choice: to
    that of fewer it falls at once, since a smaller batch does not bear the larger rate.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (linear scaling, gradual warm-up); the
    cosine is that of Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.

    Args:
      learning_rate: the rate of one process.
      world_size: how many processes train.
      steps_per_epoch: steps that they need for an epoch.
      warmup_epochs: epochs over which the rate rises; 0 starts at the full rate.
      decay_epochs: the epoch at which it has fallen to 0 as a cosine that begins after the first
        warm-up, later than the end of that; None lets it stay.
      origin: (step, epoch, multiple) where this number of processes took over: optimizer steps
        made, epochs trained with their fraction, and the multiple of `learning_rate` reached.

    Raises:
      InputError: the decay would end before it begins.
    """

    def __init__(
        self,
        learning_rate,
        world_size,
        steps_per_epoch,
        warmup_epochs,
        decay_epochs=None,
        origin=FIRST_ORIGIN,
    ):
        if decay_epochs is not None and decay_epochs <= warmup_epochs:
            raise InputError(
                f"`decay_epochs` must be above `warmup_epochs`, {warmup_epochs:g}. Received: "
                f"{decay_epochs:g}."
            )
        self.learning_rate = learning_rate
        self.world_size = world_size
        self.steps_per_epoch = steps_per_epoch
        self.warmup_epochs = warmup_epochs
        self.decay_epochs = decay_epochs
        self.origin = tuple(origin)

    def multiple(self, step):
        """Returns the multiple of one process's rate after `step` steps, before any decay."""
        first_step, _, first_multiple = self.origin
        if first_multiple >= self.world_size or not self.warmup_epochs:
            return float(self.world_size)
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        risen = keras.ops.cast((step - first_step) / warmup_steps, "float32")
        risen = keras.ops.clip(risen, 0.0, 1.0)
        return first_multiple + (self.world_size - first_multiple) * risen

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = self.learning_rate * self.multiple(step)
        if self.decay_epochs is not None:
            first_step, first_epoch, _ = self.origin
            epoch = first_epoch + (step - first_step) / self.steps_per_epoch
            share = (epoch - self.warmup_epochs) / (self.decay_epochs - self.warmup_epochs)
            rate *= 0.5 * (1.0 + keras.ops.cos(math.pi * keras.ops.clip(share, 0.0, 1.0)))
        return rate

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "world_size": self.world_size,
            "steps_per_epoch": self.steps_per_epoch,
            "warmup_epochs": self.warmup_epochs,
            "decay_epochs": self.decay_epochs,
            "origin": list(self.origin),
        }
