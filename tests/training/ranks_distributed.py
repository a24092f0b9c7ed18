"""Worker: what gradients and loss scales become on several ranks, in one job.

Usage: ranks_distributed.py OUT DATA; DATA is a SEVIR. Each rank writes what it saw to OUT:

- statistics/<rank>.npz: those of the first batch normalization, from `statistics`;
- together/<rank>.npz, apart/<rank>.npz: the weights after `steps` with and without the allreduce;
- agreement/<rank>.json: why the ranks were refused when rank 1 had another flag, from `agreement`;
- outer/<rank>.json, inner/<rank>.json: what `overflow` saw with the reduction outside and inside
  the dynamic loss scale. The latter comes last: it can end the job, or block it.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.model.layers import FusedBatchNormalization
from keras_nowcast.model.loss import MeanSquaredErrorMetric
from keras_nowcast.model.unet import build_unet
from keras_nowcast.training import agreement, checks, distributed
from keras_nowcast.training.adam import FusedAdam, FusedLossScale
from keras_nowcast.training.reports import Reports
from keras_nowcast.training.statistics import StatisticsEstimator
from keras_nowcast.training.step import Steps
from keras_nowcast.vil import MISSING


def without_batch_norm(model):
    def clone(layer):
        if isinstance(layer, FusedBatchNormalization):
            return keras.layers.Identity(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone)


def steps(world, allreduce=True):
    """Trains a small model without batch norm for three SGD steps on this rank's part of a batch.

    Returns:
      The weights after them, a list of arrays.
    """
    keras.utils.set_random_seed(7 + world.rank)  # weights differ until they are broadcast
    model = without_batch_norm(build_unet(16, 3, 2, depth=1, filters=4))
    optimizer = keras.optimizers.SGD(0.05)
    if allreduce:
        optimizer = distributed.build_distributed(optimizer, world)
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    summing = world if allreduce else distributed.World()
    metric = MeanSquaredErrorMetric()
    Steps(model, summing, Reports(summing), metric, None, 2 * 16 * 16 * 2).use_in_fit()
    keras.utils.set_random_seed(3)
    if world.is_first:  # one process has the weights the others receive
        for variable in model.trainable_variables:
            rng = np.random.default_rng(variable.shape[-1])
            variable.assign(rng.normal(0, 0.1, variable.shape))
    world.broadcast_variables(model.variables + optimizer.variables)

    rng = np.random.default_rng(0)
    for _ in range(3):
        vil = rng.integers(0, 255, (4, 16, 16, 5), dtype=np.uint8)
        vil[0, :10] = MISSING  # the first rank has fewer valid pixels
        part = np.array_split(vil, world.size)[world.rank]
        model.train_on_batch(part[..., :3], part[..., 3:])
    return [np.asarray(variable) for variable in model.trainable_variables]


class Batches:
    """A pipeline of given batches of inputs, for a StatisticsEstimator."""

    def __init__(self, *batches):
        self.batches = batches
        self.grid = batches[0].shape[1]

    def dataset(self, epoch):
        return [(x, None) for x in self.batches]


def first_statistics(model):
    layer = model.get_layer("encoder_1_norm_1")
    return np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)


def statistics(world):
    """Returns the first layer's statistics, estimated over this rank's part of five windows."""
    keras.utils.set_random_seed(7)
    model = build_unet(16, 13, 12, depth=1, filters=4)
    x = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 13), dtype=np.uint8)
    mine = np.split(x, [3])[world.rank] if world.size > 1 else x
    StatisticsEstimator(model, world, Batches(mine)).estimate()
    return first_statistics(model)


def overflow(world, inner=False):
    """Lets rank 1's gradient overflow in the second of three steps under a dynamic loss scale.

    Args:
      world: a World of two ranks.
      inner: True to reduce in the wrong place, inside the loss scale of Keras.

    Returns:
      A list of {scale, applied: the number of applied steps, momentum}, one per step.
    """
    weight = keras.Variable(np.zeros(2), dtype="float32")
    if inner:
        adam = distributed.build_distributed(keras.optimizers.Adam(), world)
        optimizer = keras.optimizers.LossScaleOptimizer(adam, initial_scale=8.0)
    else:
        adam = FusedAdam()
        optimizer = distributed.build_distributed(FusedLossScale(adam, initial_scale=8.0), world)
    optimizer.build([weight])
    seen = []
    for step in range(3):
        gradient = np.full(2, float(optimizer.scale_loss(1.0 + world.rank)), "float32")
        if step == 1 and world.rank == 1:
            gradient[0] = np.inf
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        seen.append(
            {
                "scale": float(np.asarray(optimizer.dynamic_scale)),
                "applied": int(np.asarray(optimizer.iterations)),
                "momentum": np.asarray(optimizer.inner_optimizer._momentums[0]).tolist(),
            }
        )
    return seen


def refusals(world, root):
    """Returns why the ranks are refused when rank 1 differs, null if they are not."""
    changes = {"nothing": {}, "seed": {"seed": 7}, "windows": {"max_windows": 5}}
    said = {}
    for name, fields in changes.items():
        config = RunConfig(data=root, **(fields if world.rank == 1 else {}))
        try:
            agreement.check(world, *checks.check(config, False, lambda line: None))
            said[name] = None
        except InputError as error:
            said[name] = str(error)
    return said


def main(out, root):
    world = distributed.start()

    def path(part, suffix):
        (out / part).mkdir(exist_ok=True)
        return out / part / f"{world.rank}{suffix}"

    np.savez(path("together", ".npz"), *steps(world))
    np.savez(path("apart", ".npz"), *steps(world, allreduce=False))
    np.savez(path("statistics", ".npz"), *statistics(world))
    path("agreement", ".json").write_text(json.dumps(refusals(world, root)))
    path("outer", ".json").write_text(json.dumps(overflow(world)))
    world.gather(None)  # both have written
    path("inner", ".json").write_text(json.dumps(overflow(world, inner=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
