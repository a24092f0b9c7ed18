"""Worker: one rank's gradient overflows in the second of three steps under a dynamic loss scale.

Usage: ranks_overflow.py OUT [--inner]; `--inner` reduces in the wrong place, inside the loss scale.
Writes OUT/<rank>.json: after each step the scale, the applied steps and the weight.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_nowcast.training import distributed


def main(out, inner):
    world = distributed.start()
    weight = keras.Variable(np.zeros(2), dtype="float32")
    if inner:
        sgd = distributed.build_distributed(keras.optimizers.SGD(1.0), world)
        optimizer = keras.optimizers.LossScaleOptimizer(sgd, initial_scale=8.0)
    else:
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(1.0), initial_scale=8.0
        )
        optimizer = distributed.build_distributed(optimizer, world)
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
                "weight": np.asarray(weight).tolist(),
            }
        )
    (Path(out) / f"{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], "--inner" in sys.argv)
