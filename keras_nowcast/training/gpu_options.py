"""How TensorFlow computes on a GPU, as the flags of a run say it, and what precedes its first step.

On a CPU, none of this changes what is computed.
"""

import os

from keras_nowcast.training.user_settings import BY_FLAG, PERSISTENT


def set_options(config):
    """Sets what all graphs of this process are optimized and computed by; before the first one.

    Args:
      config: a RunConfig; its `tf32`, `layout` and `fused_relu` are set.
    """
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    # Grappler's layout optimizer rewrites a float32 network to NCHW, and leaves half precision in
    # NHWC on GPUs with tensor cores.
    keeps = {"layout_optimizer": config.layout == "auto"}
    tf.config.optimizer.set_experimental_options(keeps)
    if config.fused_relu:
        os.environ.setdefault(PERSISTENT, BY_FLAG)
    elif os.environ.get(PERSISTENT) == BY_FLAG:  # of another run in this process
        del os.environ[PERSISTENT]


def describe():
    """Returns the part of environment.json about this module."""
    import tensorflow as tf

    return {"tf32": tf.config.experimental.tensor_float_32_execution_enabled()}


def on_device(dataset):
    """Returns a dataset whose next two batches are in the memory of the GPU, if there is one.

    Args:
      dataset: a tf.data.Dataset; no further transformation may follow.
    """
    import tensorflow as tf

    if not tf.config.get_visible_devices("GPU"):
        return dataset
    ahead = dataset.apply(tf.data.experimental.prefetch_to_device("GPU:0", 2))
    return ahead.with_options(dataset.options())


def warm_up(steps, pipeline, progress):
    """Meets each batch size of an epoch, and forgets the memory that this took.

    Does nothing without a GPU or XLA, where no algorithm is chosen by trying.

    Args:
      steps: the Steps of the model.
      pipeline: the WindowPipeline that is trained on.
      progress: the Progress of the run.
    """
    import tensorflow as tf

    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    if not on_gpu and not steps.xla:
        return
    plans = [*pipeline.plan(progress.epoch, progress.seen), *pipeline.plan(progress.epoch + 1)]
    steps.warm_up(sorted({max(1, len(each)) for each in plans}))
    if on_gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
