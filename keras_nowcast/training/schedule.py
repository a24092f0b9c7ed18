"""The learning rate over the steps of a run."""

import keras


@keras.saving.register_keras_serializable("keras_nowcast")
class ScaledWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from the rate of one process to that of all, then stays.

    The global batch of `world_size` processes is that many times larger; the rate grows with it.
    Starting there at once diverges, so the rate warms up.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (linear scaling, gradual warm-up).

    Args:
      learning_rate: the rate of one process.
      world_size: how many processes train.
      warmup_steps: steps over which the rate rises; 0 starts at the full rate.
    """

    def __init__(self, learning_rate, world_size, warmup_steps):
        self.learning_rate = learning_rate
        self.world_size = world_size
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        done = keras.ops.cast(step, "float32") / max(self.warmup_steps, 1)
        share = keras.ops.minimum(done, 1.0) if self.warmup_steps else 1.0
        return self.learning_rate * (1.0 + (self.world_size - 1) * share)

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "world_size": self.world_size,
            "warmup_steps": self.warmup_steps,
        }
