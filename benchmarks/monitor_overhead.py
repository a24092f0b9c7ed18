"""What does measuring energy cost a training step? Compares blocks with and without the monitor.

All blocks are of one process. The monitor and pynvml are the real ones, at 100 ms, on top of a stub
driver (tests/energy/stub_nvml.c). A real driver's calls take about ten microseconds more each. The
monitor's thread is paused and released for blocks of some training steps. The order of four blocks
is on, off, off, on or off, on, on, off, at random, so that slow drift affects both sides equally.
Four blocks give one ratio, two on against two off. The result is the mean of the ratios without the
highest and the lowest fifth, and its standard error is from a bootstrap. The same is done with no
monitor in any block, which shows the machine's background noise.

The process has one core, and its CPU time is compared: that of the steps, the monitor thread's
effect on their caches, and the thread itself. With a core to itself that is the time of a step, and
every microsecond of the monitor delays it: the maximum that the monitor can cost. CPU time hardly
depends on other processes of the machine; wall-clock time, which is compared too, does.
`cost_percent` is for 10 polls in one second of CPU time.

    python benchmarks/monitor_overhead.py                # about six minutes
    python benchmarks/monitor_overhead.py --cores all    # wall-clock time, if nothing else runs
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from blocks import Held, run_four, with_error
from flags import add_model_flags, build_parser
from result_files import write_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "energy"))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from step import build_step  # noqa: E402
from stub_nvml import Device, StubDriver, square  # noqa: E402


def summarize(name, fours, steps):
    """Returns the row of one monitor."""
    on, off = (np.array([four[which] for four in fours]) for which in (True, False))
    wall, cpu = (100 * (on[:, each] / off[:, each] - 1) for each in (0, 1))
    cost, error = with_error(cpu)
    wall_cost, wall_error = with_error(wall)
    looks = on[:, 3].sum()
    # If other processes ran too, more polls fell into one second of this process's CPU time.
    to_10_looks = 10 / (looks / on[:, 1].sum()) if looks else 1.0
    return {
        "measured": name,
        "pairs": 2 * len(fours),
        "step_cpu_ms": 1000 * np.median(off[:, 1]) / (2 * steps),
        "step_ms": 1000 * np.median(off[:, 0]) / (2 * steps),
        "cost_percent": cost * to_10_looks,
        "standard_error": error * to_10_looks,
        "quartile_1": np.quantile(cpu, 0.25) * to_10_looks,
        "quartile_3": np.quantile(cpu, 0.75) * to_10_looks,
        "wall_cost_percent": wall_cost,
        "wall_standard_error": wall_error,
        "thread_us_a_look": 1e6 * on[:, 2].sum() / looks if looks else 0.0,
        "looks_per_s": looks / on[:, 0].sum(),
    }


def measure(step, steps, minutes):
    """Returns the rows of all monitors; their blocks of four are interleaved."""
    from keras_nowcast.energy.monitor import Monitor
    from keras_nowcast.energy.source import choose_source

    devices = [
        Device(uuid=f"GPU-{k}", bus=f"00000000:{k:02}:00.0", wave=square(80.0, 300.0, 0.37))
        for k in range(8)
    ]
    with tempfile.TemporaryDirectory() as folder, StubDriver(folder, devices).loaded_here():
        monitors = {"nothing, in any block": None}
        for name, visible in (("1 GPU", "0"), ("8 GPUs", "0,1,2,3,4,5,6,7")):
            source = choose_source("nvml", environ={"CUDA_VISIBLE_DEVICES": visible})
            trace = Path(folder) / f"power-{name}.csv"
            monitors[name] = Monitor(source, interval_s=0.1, idle_s=0, trace_path=trace).start()
        time.sleep(1.5)  # after the faster polling at the start
        held = {name: Held(monitor) for name, monitor in monitors.items()}
        fours = {name: [] for name in held}
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            for name in random.sample(list(held), len(held)):
                fours[name].append(run_four(step, steps, held[name]))
        for monitor in monitors.values():
            if monitor is not None:
                monitor.stop()
    return [summarize(name, of_name, steps) for name, of_name in fours.items()]


def main():
    parser = build_parser(__doc__)
    add_model_flags(parser, depth=3, filters=8, grid=64, batch_per_replica=2)
    parser.add_argument("--cores", choices=("1", "all"), default="1", help="cores of the process")
    parser.add_argument("--minutes", type=float, default=5.5, help="minutes to measure")
    parser.add_argument("--block-s", type=float, default=0.06, help="CPU seconds per block")
    args = parser.parse_args()
    if args.cores == "1":  # before TensorFlow starts its threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    step = build_step(args, "float32", "fused")
    for _ in range(20):
        step()
    began = time.process_time()
    for _ in range(20):
        step()
    steps = max(2, round(args.block_s / (time.process_time() - began) * 20))
    rows = measure(step, steps, args.minutes)
    note = (
        f"monitor at 100 ms; cores: {args.cores}; UNet of depth {args.depth}, {args.filters} "
        f"filters, grid {args.grid}, batch {args.batch_per_replica}, float32; blocks of {steps} "
        "steps; percent of a step's CPU time, and of its wall-clock time (wall)"
    )
    variant = "all_cores" if args.cores == "all" else None
    write_results("monitor_overhead", rows, note, variant)


if __name__ == "__main__":
    main()
