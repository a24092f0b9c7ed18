"""The learning rate over the steps of a run."""

import math

import keras


@keras.saving.register_keras_serializable("keras_nowcast")
class ScaledWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from the rate of one process to that of all; then stays, or falls to 0.

    The global batch of `world_size` processes is that many times larger; the rate grows with it.
    Starting there at once diverges, so the rate warms up.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (linear scaling, gradual warm-up); the
    cosine is that of Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.

    Args:
      learning_rate: the rate of one process.
      world_size: how many processes train.
      warmup_steps: steps over which the rate rises; 0 starts at the full rate.
      decay_steps: steps after the warm-up over which it falls to 0 as a cosine; 0 lets it stay.
    """

    def __init__(self, learning_rate, world_size, warmup_steps, decay_steps=0):
        self.learning_rate = learning_rate
        self.world_size = world_size
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = self.learning_rate * self.world_size
        if self.warmup_steps:
            risen = keras.ops.minimum(step / self.warmup_steps, 1.0)
            rate = self.learning_rate * (1.0 + (self.world_size - 1) * risen)
        if self.decay_steps:
            fallen = keras.ops.clip((step - self.warmup_steps) / self.decay_steps, 0.0, 1.0)
            rate *= 0.5 * (1.0 + keras.ops.cos(math.pi * fallen))
        return rate

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "world_size": self.world_size,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
        }
