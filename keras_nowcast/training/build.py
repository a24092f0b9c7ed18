"""Builds the compiled UNet that a run trains; the benchmarks train the same one.

TensorFlow is imported in the functions, so that a script can refuse bad usage before that.
"""

from dataclasses import dataclass
from typing import Any

from keras_nowcast.errors import InputError
from keras_nowcast.model import cost, precision
from keras_nowcast.training import distributed
from keras_nowcast.training.progress import FIRST_ORIGIN
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, VALIDATION_THRESHOLDS


@dataclass(frozen=True)
class Compiled:
    """A model that is ready to train, and the parts of it that callbacks need.

    Attributes:
      model: the compiled Keras model; its optimizer is built.
      error: the MeanSquaredErrorMetric that its steps update. Nothing else resets it.
      scores: the ForecastScores that its validation steps update, likewise.
      steps: its Steps, which `model.fit` runs.
      reports: the Reports of the steps.
      schedule: the ScaledWarmup that is the learning rate.
    """

    model: Any
    error: Any
    scores: Any
    steps: Any
    reports: Any
    schedule: Any


def unet_sizes(config):
    """Returns the sizes of a config's UNet, the first arguments of build_unet and count_unet."""
    return config.grid, FRAMES_IN, FRAMES_OUT, *config.sizes


def count_model(config):
    """Returns the Cost of what `build_model` builds from the same config."""
    counted = cost.count_unet(*unet_sizes(config))
    return counted if config.start_from is None else counted.with_frozen_normalization()


def model_record(config):
    """Returns the `model` part of record.json."""
    return count_model(config).record(
        config.precision, config.batch_per_replica, config.fp16_allreduce
    )


def build_model(config):
    """Builds the UNet, not compiled, in the dtype policy `config.precision`.

    The policy stays set globally. With `--start-from` the batch normalization is frozen; the
    weights are random, as without it.

    Args:
      config: a RunConfig whose `grid` and `precision` are chosen (not None, not "auto").
    """
    from keras_nowcast.model.unet import build_unet, freeze_normalization

    precision.set_precision(config.precision)
    model = build_unet(*unet_sizes(config))
    if config.start_from is not None:
        freeze_normalization(model)
    return model


def compile_model(model, config, world, steps_per_epoch=1, origin=FIRST_ORIGIN):
    """Compiles a model as a run trains it, and builds its optimizer.

    Args:
      model: what `build_model` returned, or a model of the same input and output.
      config: the RunConfig it was built for.
      world: the World; in a world of several ranks the optimizer averages the gradients.
      steps_per_epoch: of all ranks together, for the learning rate's warm-up and decay.
      origin: where a resumed run stands, as in ScaledWarmup.

    Returns:
      A Compiled.
    """
    from keras_nowcast.model.loss import MeanSquaredErrorMetric
    from keras_nowcast.training.adam import build_optimizer
    from keras_nowcast.training.reports import Reports, lag_of_device
    from keras_nowcast.training.step import Steps
    from keras_nowcast.verification.metrics import ForecastScores

    reports = Reports(world, world.broadcast(lag_of_device()))
    schedule = _build_schedule(config, world, steps_per_epoch, origin)
    optimizer = distributed.build_distributed(
        build_optimizer(schedule, config.precision), world, config.fp16_allreduce
    )
    error = MeanSquaredErrorMetric()
    scores = ForecastScores(VALIDATION_THRESHOLDS)
    # Without a loss and metrics, since the Steps have their own. XLA cannot compile Horovod's
    # operations.
    model.compile(optimizer, jit_compile=False)
    optimizer.build(model.trainable_variables)
    nominal = config.batch_per_replica * config.grid**2 * FRAMES_OUT
    steps = Steps(model, world, reports, error, scores, nominal, config.xla)
    steps.use_in_fit()
    return Compiled(model, error, scores, steps, reports, schedule)


def build_compiled(config, world, steps_per_epoch=1, origin=FIRST_ORIGIN):
    """Builds and compiles the model of a config: `build_model`, then `compile_model`."""
    return compile_model(build_model(config), config, world, steps_per_epoch, origin)


def _build_schedule(config, world, steps_per_epoch, origin):
    from keras_nowcast.training.schedule import ScaledWarmup

    decay_epochs = config.epochs if config.schedule == "cosine" else None
    return ScaledWarmup(
        config.learning_rate,
        world.size,
        steps_per_epoch,
        config.warmup_epochs,
        decay_epochs,
        origin,
        config.lr_scaling,
    )


def take_weights(model, run, world):
    """Gives a model the weights and batch-norm statistics of a finished run's model.

    Args:
      model: the Keras model; its weights are replaced.
      run: the RunFolder of the finished run; rank 0 alone reads it.
      world: the World; all ranks call it together.

    Raises:
      InputError: that run's model has other sizes.
    """
    from keras_nowcast.model.unet import read_unet

    def read():
        theirs = read_unet(run.model_file)
        if [each.shape for each in theirs.weights] != [each.shape for each in model.weights]:
            raise InputError(
                "`--start-from` must be a run with a model of the same depth and filters. "
                f"Received: {run.path}, whose model has {theirs.count_params():,} parameters; "
                f"this one has {model.count_params():,}."
            )
        model.set_weights(theirs.get_weights())

    world.on_first(read)
    world.broadcast_variables(model.weights)
