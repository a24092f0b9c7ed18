"""How long does a training step take, and what fraction of the matmul peak does it reach?

Measures float32 and bfloat16, each with Keras' stock batch normalization, with the fused one, and
with the fused one where XLA compiles the forward and the backward pass (--xla of train.py).
The variants alternate within one measurement series, so that background load affects all of them
equally. The peak is that of a large matmul in the same precision, measured between the steps. The
step is the trainer's, with the model, loss, metrics and optimizer that it builds, on frames that
are already in memory.

    python benchmarks/step.py                                   # about three minutes on two cores
    python benchmarks/step.py --grid 384 --filters 32 --batch-per-replica 2 --rounds 5
"""

import dataclasses
import statistics
import time

from flags import add_model_flags, build_parser
from result_files import write_results
from training_step import random_batch, run_config

MATMUL_SIDE = 2048
PRECISIONS = ("float32", "mixed_bfloat16")
NORMALIZATIONS = ("stock", "fused", "fused, XLA")


def build_step(arguments, precision, normalization):
    """Returns a function without arguments that does one training step and waits for its end."""
    from keras_nowcast.training import build
    from keras_nowcast.training.distributed import World

    config = run_config(arguments, precision)
    config = dataclasses.replace(config, xla=normalization.endswith("XLA"))
    model = build.build_model(config)
    if normalization == "stock":
        model = with_stock_normalization(model)
    build.compile_model(model, config, World())
    x, y = random_batch(config)
    return lambda: model.train_on_batch(x, y)  # its loss is a number: the step has ended


def with_stock_normalization(model):
    """Returns the same model, not compiled, with Keras' own batch normalization."""
    import keras

    from keras_nowcast.model.layers import FusedBatchNormalization

    def stock(layer):
        kind = type(layer)
        if kind is FusedBatchNormalization:
            kind = keras.layers.BatchNormalization
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=stock)


def build_matmul(precision):
    """Returns a function without arguments that multiplies two large matrices."""
    import keras
    import tensorflow as tf

    dtype = keras.DTypePolicy(precision).compute_dtype
    a = tf.cast(tf.random.normal((MATMUL_SIDE, MATMUL_SIDE)), dtype)
    multiply = tf.function(tf.matmul)
    return lambda: multiply(a, a).numpy()[0, 0]


def seconds(function):
    """Returns the seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(arguments):
    """Measures all variants, round by round.

    Returns:
      (steps, matmuls): {(precision, normalization): seconds of each step} and
      {precision: seconds of each matmul}.
    """
    variants = [(p, n) for p in PRECISIONS for n in NORMALIZATIONS]
    steps = {variant: build_step(arguments, *variant) for variant in variants}
    matmuls = {precision: build_matmul(precision) for precision in PRECISIONS}
    for function in [*steps.values(), *matmuls.values()]:
        function()  # traces
        function()
    step_s = {variant: [] for variant in variants}
    matmul_s = {precision: [] for precision in PRECISIONS}
    for number in range(arguments.rounds):
        turn = number % len(variants)  # each variant is the first in some rounds
        for variant in variants[turn:] + variants[:turn]:
            step_s[variant] += [seconds(steps[variant]) for _ in range(arguments.steps)]
        for precision in PRECISIONS:
            matmul_s[precision] += [seconds(matmuls[precision]) for _ in range(arguments.steps)]
    return step_s, matmul_s


def main():
    parser = build_parser(__doc__)
    add_model_flags(parser, depth=4, filters=16, grid=128, batch_per_replica=8)
    parser.add_argument("--rounds", type=int, default=12, help="rounds over all variants")
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant in a round")
    arguments = parser.parse_args()

    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.training.build import unet_sizes

    batch = arguments.batch_per_replica
    cost = count_unet(*unet_sizes(run_config(arguments, "float32")))
    step_s, matmul_s = measure(arguments)
    rows = []
    for (precision, normalization), taken_s in step_s.items():
        # The fastest matmul is the peak: what the machine can do, not what it did on average.
        peak = 2 * MATMUL_SIDE**3 / min(matmul_s[precision])
        median_s = statistics.median(taken_s)
        achieved = batch * cost.training_flops(precision, batch) / median_s
        rows.append(
            {
                "precision": precision,
                "batch_norm": normalization,
                "min_s": min(taken_s),
                "median_s": median_s,
                "max_s": max(taken_s),
                "samples_per_second": batch / median_s,
                "gflop_per_second": achieved / 1e9,
                "matmul_peak_gflop_per_second": peak / 1e9,
                "share_of_peak_percent": 100 * achieved / peak,
            }
        )
    sizes = f"depth {arguments.depth}, {arguments.filters} filters, grid {arguments.grid}"
    note = f"{sizes}, batch {batch}; {arguments.rounds} rounds of {arguments.steps} steps"
    write_results("step", rows, note)


if __name__ == "__main__":
    main()
