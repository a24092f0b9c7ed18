"""How fast are the contingency counts? Pixels a second for six thresholds and twelve leads.

Four ways to the same counts on the same fields, 384 x 384, compared before they are timed:

- numpy: `verification.scores`, one pass, all thresholds of a piece that is in the cache (counts
  alone, as the others).
- graph: `verification.metrics.contingency_counts`, one pass and a joint histogram, in TensorFlow.
- numpy, each: for each threshold and lead, boolean fields and their sums.
- tensorflow, each: for each threshold and lead, fields of 0.0 and 1.0 and the sums of their
  products, as published metrics do it; compiled into one graph.

A pixel is one pixel of one lead time. The best and the median of the repetitions are given; the
ratios are of the medians. `everything` is what evaluate.py asks for: counts, errors, pooling by 4
and 16, FSS at three scales.
"""

import argparse
import statistics
import time

import numpy as np
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
    """Returns (l, t, 3): hits, misses, false alarms."""
    counts = np.zeros((FRAMES_OUT, len(VIL_THRESHOLDS), 3), np.int64)
    for t, threshold in enumerate(VIL_THRESHOLDS):
        for lead in range(FRAMES_OUT):
            valid = observation[..., lead] != MISSING
            f = forecast[..., lead] >= threshold
            o = observation[..., lead] >= threshold
            counts[lead, t] = np.sum(f & o & valid), np.sum(~f & o & valid), np.sum(f & ~o & valid)
    return counts


def each_in_tensorflow(tf, forecast, observation):
    """Returns (l, t, 3) float32, as `each_in_numpy`."""
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
    """Returns a dictionary of name -> function without arguments that returns counts."""
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
    """Returns the seconds of each repetition, after one that is not counted."""
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--repetitions", type=int, default=11)
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
