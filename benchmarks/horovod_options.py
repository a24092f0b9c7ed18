"""What do fp16 compression and the fusion threshold do to a training step of two ranks?

Horovod reads the threshold once, so each threshold is a separate job. The jobs alternate, and each
is started several times. Within a job, steps with and without compression alternate. So does the
allreduce of all gradients alone, which is how long a step would wait if nothing overlapped. Each
rank has one thread. On one host the bytes go through memory. Over a network there is more to gain;
that has not been measured.

    python benchmarks/horovod_options.py            # about three minutes on two cores
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flags import add_model_flags, build_parser
from result_files import write_results
from training_step import random_batch, run_config

THRESHOLDS_MIB = (0, 1, 64)  # fuses no gradients; some; Horovod's default
RANKS = 2


def build_steps(arguments, world):
    """Builds what is timed.

    Returns:
      {(what, fp16): function without arguments that does one step, or one allreduce of all
      gradients, and waits for its end}.
    """
    import keras
    import tensorflow as tf

    from keras_nowcast.training.build import build_compiled

    x, y = random_batch(run_config(arguments, "float32"), seed=world.rank)
    steps = {}
    for fp16 in (False, True):
        keras.utils.set_random_seed(0)
        model = build_compiled(run_config(arguments, "float32", fp16), world).model
        gradients = [tf.ones(each.shape) for each in model.trainable_variables]

        @tf.function
        def allreduce(gradients=gradients, fp16=fp16):
            return [world.average_gradient(each, fp16) for each in gradients]

        steps["step", fp16] = lambda model=model: model.train_on_batch(x, y)
        steps["allreduce alone", fp16] = lambda allreduce=allreduce: allreduce()[0].numpy()
    return steps


def work(arguments):
    """Measures as one rank of a job; rank 0 writes [what, fp16, seconds] to `arguments.out`."""
    from keras_nowcast.training import distributed

    world = distributed.start()
    steps = build_steps(arguments, world)
    for function in [*steps.values()] * 3:  # traced, and in Horovod's response cache
        function()
    taken_s = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, function in steps.items():
            start = time.perf_counter()
            function()
            taken_s[name].append(time.perf_counter() - start)
    if world.is_first:
        rows = [[*name, seconds] for name, seconds in taken_s.items()]
        Path(arguments.out).write_text(json.dumps(rows))


def run_job(arguments, threshold_mib, out):
    """Runs one job of two ranks and returns its list of [what, fp16, seconds of each round]."""
    command = [
        Path(sys.executable).with_name("horovodrun"),
        "-np",
        RANKS,
        "--gloo",
        "--fusion-threshold-mb",
        threshold_mib,
        sys.executable,
        __file__,
        *sys.argv[1:],
        "--out",
        out,
    ]
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(list(map(str, command)), check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads(Path(out).read_text())


def measure(arguments):
    """Starts all jobs.

    Returns:
      {(what, fp16, threshold in MiB): seconds of each round of all jobs}.
    """
    taken_s = {}
    with tempfile.TemporaryDirectory() as folder:
        for job in range(arguments.jobs):
            turn = job % len(THRESHOLDS_MIB)  # each threshold is the first in some repetitions
            for threshold in THRESHOLDS_MIB[turn:] + THRESHOLDS_MIB[:turn]:
                for what, fp16, seconds in run_job(arguments, threshold, Path(folder) / "out"):
                    taken_s.setdefault((what, fp16, threshold), []).extend(seconds)
    return taken_s


def row(what, fp16, threshold_mib, seconds, sent_bytes):
    """Returns the row of one variant of a step or of its allreduce."""
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "measured": what,
        "fusion_threshold_mib": threshold_mib,
        "fp16_allreduce": fp16,
        "mbytes": sent_bytes / 1e6,
        "median_ms": 1000 * median,
        "quartile_1_ms": 1000 * low,
        "quartile_3_ms": 1000 * high,
        "min_ms": 1000 * min(seconds),
        "max_ms": 1000 * max(seconds),
    }


def main():
    parser = build_parser(__doc__)
    add_model_flags(parser, depth=4, filters=16, grid=64, batch_per_replica=2)
    parser.add_argument("--rounds", type=int, default=25, help="rounds in a job")
    parser.add_argument("--jobs", type=int, default=2, help="jobs of each threshold")
    parser.add_argument("--out", help=argparse.SUPPRESS)  # this process is a rank
    arguments = parser.parse_args()
    if arguments.out:
        return work(arguments)

    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.training.build import unet_sizes

    cost = count_unet(*unet_sizes(run_config(arguments, "float32")))
    rows = [
        row(what, fp16, threshold, seconds, cost.allreduce_bytes(fp16))
        for (what, fp16, threshold), seconds in sorted(measure(arguments).items())
    ]
    note = (
        f"{RANKS} processes of one thread, Gloo on one host; depth {arguments.depth}, "
        f"{arguments.filters} filters, grid {arguments.grid}, batch {arguments.batch_per_replica}; "
        f"{arguments.jobs} jobs of {arguments.rounds} rounds each"
    )
    write_results("horovod_options", rows, note)


if __name__ == "__main__":
    main()
