"""Worker: three SGD steps of a small network without batch norm on this rank's part of a batch.

Usage: ranks_steps.py OUT [--no-allreduce]; writes OUT/<rank>.npz with the weights after them.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_nowcast.model.layers import FusedBatchNormalization
from keras_nowcast.model.loss import MaskedMeanSquaredError
from keras_nowcast.model.unet import build_unet
from keras_nowcast.training import distributed
from keras_nowcast.vil import MISSING


def without_batch_norm(model):
    def clone(layer):
        if isinstance(layer, FusedBatchNormalization):
            return keras.layers.Identity(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone)


def main(out, allreduce):
    world = distributed.start()
    keras.utils.set_random_seed(7 + world.rank)  # weights differ until they are broadcast
    model = without_batch_norm(build_unet(16, 3, 2, depth=2, filters=4))
    optimizer = keras.optimizers.SGD(0.05)
    if allreduce:
        optimizer = distributed.build_distributed(optimizer, world)
    flags = distributed.StopFlags(world)
    model.compile(optimizer, MaskedMeanSquaredError(average=flags.average))
    optimizer.build(model.trainable_variables)
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
    np.savez(Path(out) / f"{world.rank}.npz", *[np.asarray(v) for v in model.trainable_variables])


if __name__ == "__main__":
    main(sys.argv[1], "--no-allreduce" not in sys.argv)
