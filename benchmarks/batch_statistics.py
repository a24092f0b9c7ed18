"""By how much does the validation loss depend on how batch-norm statistics are made?

    python benchmarks/batch_statistics.py --data data/synthetic
    horovodrun -np 2 python benchmarks/batch_statistics.py --data data/synthetic

Trains the UNet for a few steps, as train.py does, but with Keras' moving averages. Then it computes
the validation loss of the same weights with several statistics: Keras' averages; these averages
corrected for their start; and statistics estimated over samples of training windows, of which the
largest is the whole training set.
"""

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.config import RunConfig
from keras_nowcast.data.splits import read_split
from keras_nowcast.study import compare
from keras_nowcast.training import build, distributed

SAMPLES = (16, 32, 64, 128, 256)


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--data", required=True, help="root of a SEVIR data set")
    parser.add_argument("--grid", type=int, default=64, help="pixels along a side")
    parser.add_argument("--depth", type=int, nargs="+", default=[2, 3, 4], help="encoder levels")
    parser.add_argument("--filters", type=int, default=8, help="filters of the first level")
    parser.add_argument("--steps", type=int, nargs="+", default=[80, 150, 300], help="steps")
    arguments = parser.parse_args()
    world = distributed.start()
    distributed.load_tensorflow(world)
    rows = [
        row(arguments, world, depth, steps)
        for depth in arguments.depth
        for steps in arguments.steps
    ]
    if world.is_first:
        write_results(
            "batch_statistics",
            rows,
            f"{arguments.grid} pixels, {arguments.filters} filters, float32, batches of 4, cosine "
            f"schedule, {compare.processes(world.size)}; validation loss of one run each, by the "
            "number of windows in the sample",
            variant=f"np{world.size}",
        )


def row(arguments, world, depth, steps):
    """Trains one model and returns its validation loss with each kind of statistics."""
    from keras_nowcast.training.inputs import Inputs
    from keras_nowcast.training.statistics import StatisticsEstimator

    config = RunConfig(
        data=arguments.data,
        grid=arguments.grid,
        depth=depth,
        filters=arguments.filters,
        precision="float32",
        schedule="cosine",
        epochs=2,
    )
    split = read_split(config.data, 1.0, None, None, say=lambda line: None)
    inputs = Inputs(config, world, split)
    epochs = -(-steps // inputs.training.steps)
    config = RunConfig(**{**vars(config), "epochs": max(2, epochs)})
    compiled = build.build_compiled(config, world, steps / config.epochs)
    model = compiled.model
    world.broadcast_variables(model.trainable_variables + model.optimizer.variables)
    model.fit(inputs.training.dataset(), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)

    def loss():
        compiled.error.reset_state()
        model.evaluate(inputs.validation.dataset(), steps=inputs.validation.steps, verbose=0)
        sums = np.array([float(compiled.error.total), float(compiled.error.count)])
        error, count = world.total(sums)
        return float(error / count)

    averages = model.non_trainable_variables
    for each in averages:
        each.assign(world.average(each.value))
    found = {"depth": depth, "steps": steps, "Keras": loss()}
    left = 0.99**steps  # of the start, means of 0 and variances of 1
    for each in averages:
        start = left if "variance" in each.path else 0.0
        each.assign((each.value - start) / (1 - left))
    found["corrected"] = loss()
    everything = inputs.training.windows
    for windows in (*[each for each in SAMPLES if each < everything], everything):
        sample = Inputs(config, world, split, sample_windows=windows).sample
        StatisticsEstimator(model, world, sample).estimate()
        found["all" if windows == everything else str(windows)] = loss()
    return found


if __name__ == "__main__":
    main()
