"""Builds the compiled network that a run trains, and its learning rate."""

from keras_nowcast.model import precision
from keras_nowcast.training import distributed
from keras_nowcast.vil import (
    FRAMES_IN,
    FRAMES_OUT,
    MISSING,
    VALIDATION_THRESHOLDS,
    VIL_MEAN,
    VIL_SCALE,
)


def network_sizes(config):
    """Returns what build_unet and count_unet both take first."""
    return (
        config.grid,
        FRAMES_IN,
        FRAMES_OUT,
        config.depth,
        config.filters,
        config.center_filters,
    )


def build_schedule(config, world, steps, origin):
    """Builds the learning rate of ranks with so many steps an epoch; `origin` as ScaledWarmup's."""
    from keras_nowcast.training.schedule import ScaledWarmup

    decay_epochs = config.epochs if config.schedule == "cosine" else None
    return ScaledWarmup(
        config.learning_rate, world.size, steps, config.warmup_epochs, decay_epochs, origin
    )


def build_compiled(config, world, flags, schedule):
    """Builds the network and everything that trains it.

    Returns:
      (model, metrics): the compiled model, its optimizer built; its MeanSquaredErrorMetric and
      ValidationScores.
    """
    from keras_nowcast.model.loss import MaskedMeanSquaredError, MeanSquaredErrorMetric
    from keras_nowcast.model.unet import build_unet, freeze_normalization
    from keras_nowcast.training.validation import ValidationScores

    scaling = {"mean": VIL_MEAN, "scale": VIL_SCALE, "missing": MISSING}
    model = build_unet(*network_sizes(config), **scaling)
    if config.start_from is not None:
        freeze_normalization(model)
    optimizer = distributed.build_distributed(
        precision.build_optimizer(schedule, config.precision), world, config.fp16_allreduce
    )
    metrics = [
        MeanSquaredErrorMetric(**scaling),
        ValidationScores(VALIDATION_THRESHOLDS, **scaling),
    ]
    model.compile(
        optimizer,
        loss=MaskedMeanSquaredError(**scaling, average=flags.average),
        metrics=metrics,
        jit_compile=False,  # XLA cannot compile Horovod's operations
    )
    optimizer.build(model.trainable_variables)
    return model, metrics
