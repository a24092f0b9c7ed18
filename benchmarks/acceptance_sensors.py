"""The stages of the acceptance run that read the sensors of a GPU and set its limit, with NVML."""

import contextlib
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

from acceptance_backend import Load, load_backend, need_gpu
from acceptance_findings import CannotTry, signed

from keras_nowcast.energy import Monitor
from keras_nowcast.energy.devices import visible_gpus
from keras_nowcast.energy.nvml import (
    GPU_SCOPE,
    GpuMeter,
    NvmlUnavailable,
    list_gpus,
    read_power_limit,
    write_power_limit,
)
from keras_nowcast.energy.power_limit import power_limit
from keras_nowcast.energy.reading import MeterError
from keras_nowcast.energy.source import Source
from keras_nowcast.errors import InputError
from keras_nowcast.process import ends_with_parent

IDLE_S, LOAD_S, CYCLE_S = 12.0, 12.0, 8.0  # of a run of ten minutes
RATE_HZ = 1000
SETTLE_S = 1.5  # until an average over a second has only the load
SENSORS = ("counter", "usage", "average", "instant")
# (period in seconds, fraction of it that is busy): idle and busy, then slower and faster than the
# sensors update.
CYCLES = ((1.0, 0.0), (1.0, 1.0), (1.0, 0.5), (1.0, 0.25), (0.2, 0.5), (0.08, 0.5))
TOLERANCE_PERCENT = 5.0  # what NVIDIA states for the sensors (arXiv 2312.02741)
RESTORE_S = 15.0

_HOLD = """
import sys
from keras_nowcast.energy.power_limit import power_limit
with power_limit(float(sys.argv[2]), [sys.argv[1]]):
    print("set", flush=True)
    sys.stdin.read()
"""


def open_source():
    """Returns the Source of the first GPU that a backend uses; other GPUs are not measured.

    Raises:
      CannotTry: there is none.
    """
    gpus = seen_gpus()
    if not gpus:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise CannotTry(f"CUDA_VISIBLE_DEVICES={named!r} names none of the GPUs that NVML shows")
    return Source("nvml", "the first GPU", (GpuMeter(gpus[0]),), socket.gethostname())


def seen_gpus():
    """Returns the GPUs that CUDA shows to this process, in its order.

    Raises:
      CannotTry: NVML is not available.
    """
    try:
        return visible_gpus(list_gpus(), os.environ)
    except NvmlUnavailable as unavailable:
        raise CannotTry(str(unavailable)) from None


def measure_sensors(options, findings):
    """Reads each sensor at 1 kHz, idle and under load."""
    meter = open_source().meters[0]
    # Before a backend is loaded, which would raise the clocks of an idle GPU.
    idle = sample(meter, IDLE_S * options.scale, options.out / "sensors_idle.csv")
    describe_sensors(idle, "idle", findings)
    backend = load_backend(options.backend)
    need_gpu(backend, options)
    load, stop = Load(options.matmul_side), threading.Event()
    thread = threading.Thread(target=_keep_busy, args=(load, stop), daemon=True)
    thread.start()
    try:
        time.sleep(min(SETTLE_S, LOAD_S * options.scale))
        busy = sample(meter, LOAD_S * options.scale, options.out / "sensors_load.csv")
    finally:
        stop.set()
        thread.join()
    describe_sensors(busy, "load", findings)
    # The counter of a module, GPU and CPU together, is compared with a power of the same scope.
    power = "usage" if meter.scope == GPU_SCOPE else "instant"
    _compare(idle, busy, power, options, findings)


def _keep_busy(load, stop):
    while not stop.is_set():
        load.run(0.05)


def sample(meter, seconds, csv):
    """Reads every sensor of a GPU at RATE_HZ.

    Args:
      meter: the GpuMeter.
      seconds: how long.
      csv: file for the readings.

    Returns:
      {sensor: {"times", "values", "costs"}}: seconds, joules or watts, and the seconds that each
      call took; a sensor that fails is {"error": reason}.
    """
    reads = {"counter": meter.read_counter}
    reads |= {kind: (lambda kind=kind: meter.read_power(kind)) for kind in SENSORS[1:]}
    series = {name: {"times": [], "values": [], "costs": []} for name in reads}
    lines, began = ["time_s,sensor,value"], time.monotonic()
    due = began
    while (now := time.monotonic()) < began + seconds:
        for name, read in list(reads.items()):
            start = time.perf_counter()
            try:
                value = read()
            except MeterError as error:
                series[name] = {"error": str(error)}
                del reads[name]
                continue
            cost = time.perf_counter() - start
            for key, each in (("times", now), ("values", value), ("costs", cost)):
                series[name][key].append(each)
            lines.append(f"{now - began:.6f},{name},{value!r}")
        due = max(due + 1 / RATE_HZ, time.monotonic() - 1 / RATE_HZ)
        time.sleep(max(0.0, due - time.monotonic()))
    csv.write_text("\n".join(lines) + "\n")
    return series


def describe_sensors(series, state, findings):
    """Adds one row per sensor: update period, step, power, and cost of a call, with spreads."""
    rows = []
    for name, each in series.items():
        if "error" in each:
            rows.append({"sensor": name, "readings": 0, "error": each["error"]})
            continue
        moves = changes(each["times"], each["values"])
        seconds = each["times"][-1] - each["times"][0]
        costs = sorted(each["costs"])
        gaps = sorted(1000 * gap for gap in moves["gaps"])
        watts = each["values"] if name != "counter" else []
        rows.append(
            {
                "sensor": name,
                "readings": len(costs),
                "readings_per_s": len(costs) / seconds if seconds else None,
                "changes": len(moves["at"]),
                "update_period_ms": _median(gaps),
                "update_p5_ms": percentile(gaps, 0.05),
                "update_p95_ms": percentile(gaps, 0.95),
                "step_j": _median(moves["steps"]) if name == "counter" else None,
                "mean_w": mean_watts(name, each),
                "std_w": statistics.pstdev(watts) if watts else None,
                "call_median_us": 1e6 * statistics.median(costs),
                "call_p99_us": 1e6 * percentile(costs, 0.99),
                "call_maximum_us": 1e6 * costs[-1],
            }
        )
    findings.measured(state, rows)
    alive = [row for row in rows if row["readings"]]
    slowest = max((row["call_median_us"] for row in alive), default=None)
    if slowest is None:
        findings.check(f"a sensor answers ({state})", False, "none", "at least one")
    else:
        findings.check(
            f"cost of a call ({state})", slowest < 2000, f"{slowest:.0f} us", "median below 2000 us"
        )


def changes(times, values):
    """Returns where a series of readings changes.

    Returns:
      {"at": indices of the first reading after each change, "gaps": seconds between two changes,
      "steps": by how much each changes}.
    """
    at = [k for k in range(1, len(values)) if values[k] != values[k - 1]]
    return {
        "gaps": [times[k] - times[j] for j, k in zip(at, at[1:], strict=False)],
        "steps": [values[k] - values[k - 1] for k in at],
        "at": at,
    }


def mean_watts(name, each):
    """Returns the mean power of a sensor's readings; of the counter, between two of its steps."""
    if name != "counter":
        return statistics.fmean(each["values"])
    at = changes(each["times"], each["values"])["at"]
    if len(at) < 2:
        return None
    first, last = at[0], at[-1]
    joules = each["values"][last] - each["values"][first]
    return joules / (each["times"][last] - each["times"][first])


def _median(values):
    return statistics.median(values) if values else None


def percentile(ordered, fraction):
    """Returns the value below which that fraction of sorted values is, or None if there is none."""
    return ordered[int(fraction * (len(ordered) - 1))] if ordered else None


def _compare(idle, busy, power, options, findings):
    """Adds the checks that need both states, or two sensors; `power` is of the counter's scope."""
    watts = {name: mean_watts(name, each) for name, each in busy.items() if "error" not in each}
    counter = busy["counter"]
    if "error" in counter:
        findings.not_tried("energy counter", counter["error"])
    else:
        gaps = changes(counter["times"], counter["values"])["gaps"]
        period_ms = 1000 * statistics.median(gaps) if gaps else None
        findings.check(
            "energy counter moves",
            period_ms is not None and 5 <= period_ms <= 150,
            "fewer than two changes" if period_ms is None else f"every {period_ms:.1f} ms",
            "every 5 to 150 ms",
        )
    for one, other in (("average", "instant"), ("counter", power)):
        what = f"mean power under load: {one} against {other}"
        if watts.get(one) is None or watts.get(other) is None:
            findings.not_tried(what, f"the driver does not report both {one} and {other}")
            continue
        if not watts[other]:
            findings.not_tried(what, f"{other} shows 0 W")
            continue
        percent = 100 * (watts[one] / watts[other] - 1)
        findings.check(
            what,
            abs(percent) <= TOLERANCE_PERCENT,
            f"{watts[one]:.1f} against {watts[other]:.1f} W ({signed(percent, 1)})",
            f"within {TOLERANCE_PERCENT:g}%",
        )
    if options.rehearse:
        findings.not_tried("the load draws power", "the stub driver's power does not follow a load")
        return
    at_rest = {name: mean_watts(name, each) for name, each in idle.items() if "error" not in each}
    name = next((each for each in SENSORS if watts.get(each) and at_rest.get(each)), None)
    if name is None:
        findings.not_tried("the load draws power", "no sensor shows the power in both states")
        return
    findings.check(
        "the load draws power",
        watts[name] >= 1.2 * at_rest[name],
        f"{name}: {watts[name]:.1f} W under load, {at_rest[name]:.1f} W idle",
        "1.2 times idle or more",
    )


def measure_duty(options, findings):
    """Compares the counter with the integral of the power readings under known duty cycles."""
    source = open_source()
    backend = load_backend(options.backend)
    need_gpu(backend, options)
    load = Load(options.matmul_side)
    monitor = Monitor(source, idle_s=0).start()
    try:
        for index, (period_s, duty) in enumerate(CYCLES):
            with monitor.window("cycle", index):
                load.cycle(period_s, duty, CYCLE_S * options.scale)
    finally:
        result = monitor.stop()
    windows = result["devices"][0]["windows"]
    rows = [_duty_row(*cycle, window) for cycle, window in zip(CYCLES, windows, strict=True)]
    idle_w, busy_w = (row["counter_w"] or row["integral_w"] for row in rows[:2])
    for row in rows:
        if idle_w is not None and busy_w is not None:
            row["expected_w"] = idle_w + row["duty"] * (busy_w - idle_w)
    findings.measured("cycles", rows)
    for row in rows:
        what = f"counter against integral: period {row['period_s']:g} s, duty {row['duty']:g}"
        if row["difference_percent"] is None:
            none = "the counter" if not row["counter_w"] else "the power"
            findings.not_tried(what, f"{none} has no valid readings")
            continue
        allowed = math.hypot(TOLERANCE_PERCENT, row["uncertainty_percent"])
        findings.check(
            what,
            abs(row["difference_percent"]) <= allowed,
            f"{row['counter_w']:.1f} against {row['integral_w']:.1f} W "
            f"({signed(row['difference_percent'], 1)})",
            f"within {allowed:.1f}%: {TOLERANCE_PERCENT:g}% and the monitor's own uncertainty",
        )


def _duty_row(period_s, duty, window):
    """Returns one row: mean watts of the counter and of the power readings in a window.

    The uncertainty, two standard deviations, is mostly that of the power between two readings.
    """
    watts, percent = {}, []
    for kind in ("counter", "power"):
        part = window[kind]
        watts[kind] = part["joules"] / part["seconds"] if part and part["seconds"] else None
        if watts[kind]:
            percent.append(200 * math.sqrt(part["variance_j2"]) / part["joules"])
    both = watts["counter"] and watts["power"]
    return {
        "period_s": period_s,
        "duty": duty,
        "seconds": window["end_s"] - window["start_s"],
        "cycles": round((window["end_s"] - window["start_s"]) / period_s),
        "counter_w": watts["counter"],
        "integral_w": watts["power"],
        "difference_percent": 100 * (watts["counter"] / watts["power"] - 1) if both else None,
        "uncertainty_percent": math.hypot(*percent),
        "expected_w": None,
    }


def measure_limit(options, findings):
    """Sets a power limit and looks whether it is restored, also after SIGKILL."""
    uuid = open_source().meters[0].key
    try:
        before = read_power_limit(uuid)
    except (MeterError, NvmlUnavailable) as error:
        raise CannotTry(str(error)) from None
    findings.measured("limits before", before)
    watts = another_limit(before)
    try:
        with power_limit(watts, [uuid]) as (entry,):
            findings.check(
                "the limit is enforced",
                entry["enforced_w"] == watts,
                f"{entry['enforced_w']:g} W",
                f"{watts} W",
            )
    except InputError as error:  # what it received and its remedy are of train.py's flag
        raise CannotTry(str(error).split(" Received: ")[0].rstrip(".")) from None
    try:
        _check_restored("after the work", uuid, before["limit_w"], findings, 0.0)
        if _kill_the_holder(uuid, watts):
            _check_restored("after SIGKILL", uuid, before["limit_w"], findings, RESTORE_S)
        else:
            what = "the limit is restored after SIGKILL"
            findings.check(what, False, "the process to kill could not set it", "it sets the limit")
    finally:
        if read_power_limit(uuid)["limit_w"] != before["limit_w"]:
            write_power_limit(uuid, before["limit_w"])


def another_limit(limits):
    """Returns a limit in watts that differs from the present one, a lower one if that is allowed.

    Raises:
      CannotTry: the card accepts no other limit.
    """
    lowest_w, now_w = math.ceil(limits["lowest_w"]), limits["limit_w"]
    for watts in (round((lowest_w + now_w) / 2), lowest_w, math.floor(limits["highest_w"])):
        if watts != now_w and limits["lowest_w"] <= watts <= limits["highest_w"]:
            return watts
    raise CannotTry(f"the card accepts no other limit than {now_w:g} W")


def _check_restored(when, uuid, limit_w, findings, wait_s):
    began = time.monotonic()
    until = began + wait_s
    while (now_w := read_power_limit(uuid)["limit_w"]) != limit_w and time.monotonic() < until:
        time.sleep(0.1)
    what = f"the limit is restored {when}"
    measured = f"{now_w:g} W after {time.monotonic() - began:.1f} s"
    findings.check(what, now_w == limit_w, measured, f"{limit_w:g} W")


def _kill_the_holder(uuid, watts):
    """Starts a process that sets the limit, and kills it as soon as the limit is set.

    Returns:
      True, or False if it ended without setting the limit; its error is in the stage's log.
    """
    command = [sys.executable, "-c", _HOLD, uuid, str(watts)]
    holder = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=ends_with_parent(signal.SIGTERM),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        return holder.stdout.readline().strip() == "set"
