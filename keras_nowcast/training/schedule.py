"""The learning rate over the epochs of a run."""

import math

import keras

from keras_nowcast.errors import InputError
from keras_nowcast.training.progress import FIRST_ORIGIN

# How many times the rate of one rank that of n ranks is, by `--lr-scaling`.
SCALINGS = {"linear": float, "sqrt": math.sqrt, "none": lambda ranks: 1.0}


@keras.saving.register_keras_serializable("keras_nowcast")
class ScaledWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises linearly from that of one rank to that of all; then stays, or falls to 0.

    The global batch of `world_size` ranks is `world_size` times as large as that of one rank, and
    the rate grows with it as `scaling` says. Training that starts with the full rate can diverge,
    so the rate warms up.

    A run that resumes with another number of ranks has another global batch size and another number
    of steps per epoch. `origin` is the position at which it resumes. From there the steps are
    counted again and the decay continues by epochs. With more ranks the rate warms up again, from
    its value at the origin. Choice: with fewer ranks it falls at once, since a smaller batch does
    not tolerate the larger rate.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (linear scaling, for SGD; gradual
    warm-up); Malladi et al. 2022, arXiv 2205.10287 (the square root, for Adam; its changes of
    Adam's betas and epsilon are not made here). The cosine is that of Loshchilov and Hutter 2017,
    arXiv 1608.03983, without restarts.

    Args:
      learning_rate: the rate of one rank.
      world_size: number of ranks.
      steps_per_epoch: steps that these ranks need for one epoch.
      warmup_epochs: epochs over which the rate rises; 0 starts at the full rate.
      decay_epochs: epoch at which the rate has fallen to 0, as a cosine that begins after the first
        warm-up; must be later than the end of the warm-up. With None the rate stays constant.
      origin: (step, epoch, multiple) at which this number of ranks took over: optimizer steps made,
        epochs trained including a fraction, and the multiple of `learning_rate` reached.
      scaling: how the rate grows with the ranks, one of SCALINGS: as their number, as its square
        root, or not at all.

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
        scaling="linear",
    ):
        if decay_epochs is not None and decay_epochs <= warmup_epochs:
            raise InputError(
                f"`decay_epochs` must be above `warmup_epochs`, {warmup_epochs:g}. Received: "
                f"{decay_epochs:g}; train for more epochs or warm up for fewer."
            )
        self.learning_rate = learning_rate
        self.world_size = world_size
        self.steps_per_epoch = steps_per_epoch
        self.warmup_epochs = warmup_epochs
        self.decay_epochs = decay_epochs
        self.origin = tuple(origin)
        self.scaling = scaling

    def multiple(self, step):
        """Returns the multiple of one rank's learning rate after `step` steps, before any decay."""
        first_step, _, first_multiple = self.origin
        full = SCALINGS[self.scaling](self.world_size)
        if first_multiple >= full or not self.warmup_epochs:
            return full
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        risen = keras.ops.cast((step - first_step) / warmup_steps, "float32")
        risen = keras.ops.clip(risen, 0.0, 1.0)
        return first_multiple + (full - first_multiple) * risen

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = self.learning_rate * self.multiple(step)
        if self.decay_epochs is not None:
            first_step, first_epoch, _ = self.origin
            epoch = first_epoch + (step - first_step) / self.steps_per_epoch
            fraction = (epoch - self.warmup_epochs) / (self.decay_epochs - self.warmup_epochs)
            rate *= 0.5 * (1.0 + keras.ops.cos(math.pi * keras.ops.clip(fraction, 0.0, 1.0)))
        return rate

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "world_size": self.world_size,
            "steps_per_epoch": self.steps_per_epoch,
            "warmup_epochs": self.warmup_epochs,
            "decay_epochs": self.decay_epochs,
            "origin": list(self.origin),
            "scaling": self.scaling,
        }
