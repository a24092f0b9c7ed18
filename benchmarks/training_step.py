"""What benchmarks of a training step share: the run's config, and a batch to train on.

The model itself is the trainer's, from keras_nowcast/training/build.py.
"""


def run_config(arguments, precision, fp16_allreduce=False):
    """Returns the RunConfig of a run with the model flags of flags.py.

    Args:
      arguments: parsed flags: `depth`, `filters`, `grid` and `batch_per_replica`.
      precision: a Keras policy.
      fp16_allreduce: True if the gradients travel as float16.
    """
    from keras_nowcast.config import RunConfig

    return RunConfig(
        depth=arguments.depth,
        filters=arguments.filters,
        grid=arguments.grid,
        batch_per_replica=arguments.batch_per_replica,
        precision=precision,
        fp16_allreduce=fp16_allreduce,
    )


def random_batch(config, seed=0):
    """Returns one batch of random valid codes.

    Args:
      config: a RunConfig.
      seed: seed of the random numbers.

    Returns:
      (x, y): uint8 tensors of shape (batch, grid, grid, FRAMES_IN) and (..., FRAMES_OUT).
    """
    import numpy as np
    import tensorflow as tf

    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

    shape = (config.batch_per_replica, config.grid, config.grid, FRAMES_IN + FRAMES_OUT)
    frames = np.random.default_rng(seed).integers(0, MISSING, shape, "uint8")
    return tuple(tf.constant(part) for part in np.split(frames, [FRAMES_IN], axis=-1))
