"""What does measuring cost a training step? Paired runs with and without the monitor at 100 ms.

The monitor reads a stub driver (tests/energy/stub_nvml.c): all of its own work and pynvml's is
real, the driver's is not, whose calls take some ten microseconds each on real cards. Runs with and
without take turns, the order within a pair by chance, and each pair gives one ratio of seconds a
step; the ratios' median and spread are the result. The same is done with nothing measured on either
side, to show what the machine's own unrest amounts to.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from result_files import write_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "energy"))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from stub_nvml import Device, StubDriver  # noqa: E402


def build_step(size):
    """Returns a function that makes one training step of a small convolutional network."""
    import keras
    import numpy as np

    model = keras.Sequential(
        [
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(12, 1),
        ]
    )
    model.compile("adam", "mse", jit_compile=False)
    inputs = np.zeros((4, size, size, 13), "float32")
    targets = np.zeros((4, size, size, 12), "float32")
    return lambda: model.train_on_batch(inputs, targets)


def seconds_a_step(step, steps, monitor):
    """Times `steps` steps, under a monitor or None; their median.

    A step is longer than the monitor's interval, so that each has its share of the monitor's work,
    and the median leaves out the steps that another tenant of the machine interrupted.
    """
    if monitor is not None:
        monitor.start()
        time.sleep(1.1)  # past the close looks at the beginning
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    if monitor is not None:
        monitor.stop()
    return statistics.median(times)


def compare(name, step, pairs, steps, monitor):
    """Returns the row of one comparison."""
    ratios, plain = [], []
    for _ in range(pairs):
        order = [None, monitor]
        random.shuffle(order)
        seconds = {each is monitor: seconds_a_step(step, steps, each) for each in order}
        if monitor is None:
            seconds = {False: seconds[True], True: seconds_a_step(step, steps, None)}
        plain.append(seconds[False])
        ratios.append(100 * (seconds[True] / seconds[False] - 1))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "measured": name,
        "pairs": pairs,
        "step_ms": 1000 * statistics.median(plain),
        "cost_percent_median": middle,
        "cost_percent_quartile_1": low,
        "cost_percent_quartile_3": high,
        "cost_percent_standard_error": statistics.stdev(ratios) / pairs**0.5,
    }


def thread_seconds_a_second(monitor, seconds=10.0):
    """Returns the CPU time that the monitor itself takes, as a share: the process does nothing."""
    monitor.start()
    time.sleep(1.1)
    wall, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    monitor.stop()
    return share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--size", type=int, default=384)
    args = parser.parse_args()
    step = build_step(args.size)
    for _ in range(5):
        step()
    from keras_nowcast.energy.monitor import Monitor
    from keras_nowcast.energy.source import choose_source

    rows = [compare("nothing, twice", step, args.pairs, args.steps, None)]
    with tempfile.TemporaryDirectory() as folder:
        for gpus in (1, 8):
            devices = [Device(uuid=f"GPU-{k}", bus=f"00000000:{k:02}:00.0") for k in range(gpus)]
            with StubDriver(Path(folder) / str(gpus), devices).loaded_here():
                source = choose_source("nvml", environ={})
                trace = Path(folder) / f"power-{gpus}.csv"
                monitor = Monitor(source, interval_s=0.1, idle_s=0, trace_path=trace)
                rows.append(compare(f"{gpus} GPU(s)", step, args.pairs, args.steps, monitor))
                rows[-1]["thread_cpu_percent"] = 100 * thread_seconds_a_second(monitor)
    rows[0]["thread_cpu_percent"] = 0.0
    write_results("monitor_overhead", rows, f"{args.steps} steps a run, monitor at 100 ms")


if __name__ == "__main__":
    main()
