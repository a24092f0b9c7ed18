"""How long a training step takes, and what share of the machine's matmul peak that is.

float32 and bfloat16, Keras' stock batch normalization against the fused one, alternating in one
sitting, so that what else the machine does falls on all alike. The peak is that of a large matmul
in the same precision, measured between the steps. The step is the trainer's, with the network,
loss and optimizer it builds, on frames that are there already.

    python benchmarks/step.py                                   # about three minutes on two cores
    python benchmarks/step.py --grid 384 --filters 32 --batch-per-replica 2 --rounds 5
"""

import argparse
import statistics
import time

from result_files import write_results

MATMUL_SIDE = 2048
PRECISIONS = ("float32", "mixed_bfloat16")
NORMALIZATIONS = ("stock", "fused")


def build_step(arguments, precision, normalization):
    """Returns a function of no arguments that does one training step and waits for its end."""
    import numpy as np
    import tensorflow as tf

    from keras_nowcast.model.loss import MaskedMeanSquaredError
    from keras_nowcast.model.precision import build_optimizer, set_precision
    from keras_nowcast.model.unet import build_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

    grid, batch = arguments.grid, arguments.batch_per_replica
    set_precision(precision)
    model = build_unet(grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.filters)
    if normalization == "stock":
        model = with_stock_normalization(model)
    optimizer = build_optimizer(1e-3, precision)
    model.compile(optimizer, MaskedMeanSquaredError(), jit_compile=False)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, MISSING, (batch, grid, grid, FRAMES_IN + FRAMES_OUT), "uint8")
    x, y = tf.constant(frames[..., :FRAMES_IN]), tf.constant(frames[..., FRAMES_IN:])
    return lambda: model.train_on_batch(x, y)  # its loss is a number: the step has ended


def with_stock_normalization(model):
    """Returns the same network with Keras' own batch normalization."""
    import keras

    from keras_nowcast.model.layers import FusedBatchNormalization

    def stock(layer):
        kind = type(layer)
        if kind is FusedBatchNormalization:
            kind = keras.layers.BatchNormalization
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=stock)


def build_matmul(precision):
    """Returns a function of no arguments that multiplies two large matrices."""
    import keras
    import tensorflow as tf

    dtype = keras.DTypePolicy(precision).compute_dtype
    a = tf.cast(tf.random.normal((MATMUL_SIDE, MATMUL_SIDE)), dtype)
    multiply = tf.function(tf.matmul)
    return lambda: multiply(a, a).numpy()[0, 0]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(arguments):
    """Returns ({(precision, normalization): seconds of each step}, {precision: of each matmul})."""
    variants = [(p, n) for p in PRECISIONS for n in NORMALIZATIONS]
    steps = {variant: build_step(arguments, *variant) for variant in variants}
    matmuls = {precision: build_matmul(precision) for precision in PRECISIONS}
    for function in [*steps.values(), *matmuls.values()]:
        function()  # traces
        function()
    step_s = {variant: [] for variant in variants}
    matmul_s = {precision: [] for precision in PRECISIONS}
    for number in range(arguments.rounds):
        turn = number % len(variants)  # none is always first
        for variant in variants[turn:] + variants[:turn]:
            step_s[variant] += [seconds(steps[variant]) for _ in range(arguments.steps)]
        for precision in PRECISIONS:
            matmul_s[precision] += [seconds(matmuls[precision]) for _ in range(arguments.steps)]
    return step_s, matmul_s


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--grid", type=int, default=128)
    parser.add_argument("--batch-per-replica", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="of each variant in a round")
    arguments = parser.parse_args()

    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    batch = arguments.batch_per_replica
    cost = count_unet(arguments.grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.filters)
    step_s, matmul_s = measure(arguments)
    rows = []
    for (precision, normalization), taken_s in step_s.items():
        # The peak is the fastest matmul: what the machine can do, not what it did on average.
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
