"""What fp16 compression and the fusion threshold do to a training step of two processes.

Each threshold is a job of its own, since Horovod reads it once; the jobs take turns and are started
several times. In a job the steps with and without compression take turns, and so does the
allreduce of all gradients by itself, which is what a step would wait for if nothing overlapped.
One thread a process. On one machine the bytes go through memory: a network gains more.

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

from result_files import write_results

THRESHOLDS_MIB = (0, 1, 64)  # none is fused; some; Horovod's default
RANKS = 2


def build_steps(arguments, world):
    """Returns {(what, fp16): function} that each do one step, or one allreduce of all gradients."""
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_nowcast.model.loss import MaskedMeanSquaredError
    from keras_nowcast.model.precision import build_optimizer
    from keras_nowcast.model.unet import build_unet
    from keras_nowcast.training import distributed
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

    grid, batch = arguments.grid, arguments.batch_per_replica
    rng = np.random.default_rng(world.rank)
    frames = rng.integers(0, MISSING, (batch, grid, grid, FRAMES_IN + FRAMES_OUT), "uint8")
    x, y = tf.constant(frames[..., :FRAMES_IN]), tf.constant(frames[..., FRAMES_IN:])
    steps = {}
    for fp16 in (False, True):
        keras.utils.set_random_seed(0)
        model = build_unet(grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.filters)
        optimizer = distributed.build_distributed(build_optimizer(1e-3, "float32"), world, fp16)
        flags = distributed.StopFlags(world)
        loss = MaskedMeanSquaredError(average=flags.average)
        model.compile(optimizer, loss, jit_compile=False)
        gradients = [tf.ones(each.shape) for each in model.trainable_variables]

        @tf.function
        def allreduce(gradients=gradients, fp16=fp16):
            return [world.average_gradient(each, fp16) for each in gradients]

        steps["step", fp16] = lambda model=model: model.train_on_batch(x, y)
        steps["allreduce alone", fp16] = lambda allreduce=allreduce: allreduce()[0].numpy()
    return steps


def work(arguments):
    """One rank of one job: writes {what: [seconds]} to `arguments.out`."""
    from keras_nowcast.training import distributed

    world = distributed.start()
    steps = build_steps(arguments, world)
    for function in [*steps.values()] * 3:  # traced, and in Horovod's cache of what is asked for
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
    """Runs one job of two ranks; returns its [(what, fp16, seconds)]."""
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--batch-per-replica", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25, help="in a job")
    parser.add_argument("--jobs", type=int, default=2, help="of each threshold")
    parser.add_argument("--out", help=argparse.SUPPRESS)  # this process is a rank
    arguments = parser.parse_args()
    if arguments.out:
        return work(arguments)

    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    cost = count_unet(arguments.grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.filters)
    taken_s = {}
    with tempfile.TemporaryDirectory() as folder:
        for job in range(arguments.jobs):
            turn = job % len(THRESHOLDS_MIB)  # none is always first
            for threshold in THRESHOLDS_MIB[turn:] + THRESHOLDS_MIB[:turn]:
                for what, fp16, seconds in run_job(arguments, threshold, Path(folder) / "out"):
                    taken_s.setdefault((what, fp16, threshold), []).extend(seconds)
    rows = []
    for (what, fp16, threshold), seconds in sorted(taken_s.items()):
        low, median, high = statistics.quantiles(seconds, n=4)
        sent = cost.record("float32", arguments.batch_per_replica, fp16)["allreduce_bytes_per_step"]
        rows.append(
            {
                "measured": what,
                "fusion_threshold_mib": threshold,
                "fp16_allreduce": fp16,
                "mbytes": sent / 1e6,
                "median_ms": 1000 * median,
                "quartile_1_ms": 1000 * low,
                "quartile_3_ms": 1000 * high,
                "min_ms": 1000 * min(seconds),
                "max_ms": 1000 * max(seconds),
            }
        )
    note = (
        f"{RANKS} processes of one thread, Gloo on one host; depth {arguments.depth}, "
        f"{arguments.filters} filters, grid {arguments.grid}, batch {arguments.batch_per_replica}; "
        f"{arguments.jobs} jobs of {arguments.rounds} rounds each"
    )
    write_results("horovod_options", rows, note)


if __name__ == "__main__":
    main()
