"""How fast are the contingency counts? Pixels per second, for six thresholds and twelve lead times.

Four ways compute the same counts from the same fields, 384x384; the counts are compared before the
ways are timed:

- numpy: `verification.scores`, one pass that compares each piece of the fields with all thresholds
  while it is in the cache (only the counts, as the other ways).
- graph: `verification.metrics.contingency_counts`, one pass and a joint histogram, in TensorFlow.
- numpy, each: for each threshold and lead time, boolean fields and their sums.
- tensorflow, each: for each threshold and lead time, fields of 0.0 and 1.0 and the sums of their
  products, as published metrics do it; compiled into one graph.

A pixel is one pixel at one lead time. The table has the median and the best of the repetitions; its
ratios are ratios of the medians. `everything` is what evaluate.py computes: counts, errors, pooling
by 4 and 16, and FSS at three scales.

    python benchmarks/scores.py
"""

import statistics
import time

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.verification import scores
from keras_nowcast.vil import FRAMES_OUT, MISSING, VIL_THRESHOLDS

POOLS, SCALES = (1, 4, 16), (5, 17, 33)


def fields(windows, size):
    """Returns float32 forecasts and uint8 observations: mostly little echo, a tenth missing."""
    rng = np.random.default_rng(0)
    shape = (windows, size, size, FRAMES_OUT)
    forecast = rng.gamma(0.5, 60, shape).astype(np.float32)
    observation = np.minimum(rng.gamma(0.5, 60, shape), 254).astype(np.uint8)
    observation[rng.random(shape) < 0.1] = MISSING
    return forecast, observation


def each_in_numpy(forecast, observation):
    """Returns int64 (lead times, thresholds, 3): hits, misses, false alarms."""
    counts = np.zeros((FRAMES_OUT, len(VIL_THRESHOLDS), 3), np.int64)
    for t, threshold in enumerate(VIL_THRESHOLDS):
        for lead in range(FRAMES_OUT):
            valid = observation[..., lead] != MISSING
            f = forecast[..., lead] >= threshold
            o = observation[..., lead] >= threshold
            counts[lead, t] = np.sum(f & o & valid), np.sum(~f & o & valid), np.sum(f & ~o & valid)
    return counts


def each_in_tensorflow(tf, forecast, observation):
    """Returns the same as `each_in_numpy`, as float32."""
    counts = []
    for lead in range(FRAMES_OUT):
        valid = tf.cast(observation[..., lead] != MISSING, tf.float32)
        for threshold in VIL_THRESHOLDS:
            f = tf.cast(forecast[..., lead] >= threshold, tf.float32)
            o = tf.cast(observation[..., lead] >= threshold, tf.float32)
            products = (f * o, (1 - f) * o, f * (1 - o))
            counts.append(tf.stack([tf.reduce_sum(product * valid) for product in products]))
    return tf.reshape(tf.stack(counts), (FRAMES_OUT, len(VIL_THRESHOLDS), 3))


def ways(forecast, observation):
    """Returns {name: function without arguments that returns counts}."""
    import tensorflow as tf

    from keras_nowcast.verification.metrics import contingency_counts

    f, o = tf.constant(forecast), tf.constant(observation)
    graph = tf.function(lambda: contingency_counts(f, o, VIL_THRESHOLDS))
    each = tf.function(lambda: each_in_tensorflow(tf, f, o))
    return {
        "numpy": lambda: scores.contingency_counts(forecast, observation, VIL_THRESHOLDS),
        "graph": lambda: graph().numpy(),
        "numpy, each": lambda: each_in_numpy(forecast, observation),
        "tensorflow, each": lambda: each().numpy(),
        "everything": lambda: scores.statistics(
            forecast, observation, VIL_THRESHOLDS, POOLS, SCALES
        ).counts[0],
    }


def seconds(function, repetitions):
    """Returns the seconds of each repetition; one more comes first and is not counted."""
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--windows", type=int, default=4, help="windows to score")
    parser.add_argument("--size", type=int, default=384, help="pixels along a side")
    parser.add_argument("--repetitions", type=int, default=11, help="timed repetitions")
    args = parser.parse_args()
    forecast, observation = fields(args.windows, args.size)
    methods = ways(forecast, observation)
    expected = each_in_numpy(forecast, observation)
    for name, method in methods.items():
        if not np.array_equal(method()[..., :3], expected):
            raise SystemExit(f"{name} counts differently")
    times = {name: seconds(method, args.repetitions) for name, method in methods.items()}
    ours = statistics.median(times["numpy"])
    rows = [
        {
            "way": name,
            "median_ms": 1000 * statistics.median(t),
            "best_ms": 1000 * min(t),
            "megapixels_per_s": observation.size / statistics.median(t) / 1e6,
            "times_numpy": statistics.median(t) / ours,
        }
        for name, t in times.items()
    ]
    write_results(
        "scores",
        rows,
        f"{args.windows} windows of {args.size} x {args.size}, {FRAMES_OUT} leads, thresholds "
        f"{list(VIL_THRESHOLDS)}, {args.repetitions} repetitions",
    )


if __name__ == "__main__":
    main()
