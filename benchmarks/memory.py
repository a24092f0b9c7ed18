"""Does the counted activation memory hold? Compares model/cost.py with the peak of real steps.

Each model and precision runs in a separate process, at two batch sizes. Two peaks are measured:

- allocator: how far the bytes in use rise above those before the step, as TensorFlow's CPU
  allocator counts them, at the larger batch. This is what cost.py predicts (step_bytes).
- resident: how much larger the peak resident set of the process is at the larger batch than at
  the smaller one, per sample. The difference excludes all that does not grow with the batch. The
  allocator keeps freed blocks and splits them unevenly, so this lies above the bytes in use. It is
  listed next to activation_bytes.

    python benchmarks/memory.py
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from flags import build_parser
from result_files import write_results
from training_step import random_batch, run_config

MODELS = (  # grid, depth, filters, smaller and larger batch
    (128, 2, 8, 4, 16),
    (96, 3, 16, 4, 16),
    (128, 4, 16, 4, 16),
    (64, 5, 8, 8, 32),
    (128, 3, 32, 2, 8),
    (256, 4, 8, 2, 8),
)
PRECISIONS = ("float32", "mixed_bfloat16")
STEPS = 3
MIB = 2**20


def measure(precision, grid, depth, filters, batch):
    """Measures training steps in this process.

    Returns:
      (rise, resident): the median rise of the bytes in use during a step, and the peak resident
      set of the process, both in bytes.
    """
    import tensorflow as tf

    from keras_nowcast.training.build import build_compiled
    from keras_nowcast.training.distributed import World

    sizes = {"depth": depth, "filters": filters, "grid": grid, "batch_per_replica": batch}
    config = run_config(argparse.Namespace(**sizes), precision)
    model = build_compiled(config, World()).model
    x, y = random_batch(config)
    model.train_on_batch(x, y)  # traces
    rises = []
    for _ in range(STEPS):
        tf.config.experimental.reset_memory_stats("CPU:0")
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        model.train_on_batch(x, y)
        rises.append(tf.config.experimental.get_memory_info("CPU:0")["peak"] - before)
    status = Path("/proc/self/status").read_text()
    resident = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status).group(1))
    return sorted(rises)[STEPS // 2], resident


def measure_apart(*arguments):
    """Returns what `measure` returns, from a separate process."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(precision, grid, depth, filters, few, many):
    """Returns a row: counted and measured MiB of one model, at the batch sizes `few` and `many`."""
    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    cost = count_unet(grid, FRAMES_IN, FRAMES_OUT, depth, filters)
    rise, resident = measure_apart(precision, grid, depth, filters, many)
    resident_few = measure_apart(precision, grid, depth, filters, few)[1]
    per_sample = (resident - resident_few) / (many - few)
    counted, activations = cost.step_bytes(precision, many), cost.activation_bytes(precision)
    return {
        "grid": grid,
        "depth": depth,
        "filters": filters,
        "batch": many,
        "precision": precision,
        "step_counted_mib": counted / MIB,
        "step_measured_mib": rise / MIB,
        "step_error_percent": 100 * (counted / rise - 1),
        "sample_counted_mib": activations / MIB,
        "sample_resident_mib": per_sample / MIB,
        "sample_error_percent": 100 * (activations / per_sample - 1),
    }


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(one[0], *map(int, one[1:]))))
        return
    rows = [compare(precision, *model) for model in MODELS for precision in PRECISIONS]
    write_results("memory", rows, "training steps on synthetic codes, CPU; MiB")


if __name__ == "__main__":
    main()
