"""Merges the measurements of the processes of a job into one energy record."""

import math

from keras_nowcast import schema

_ENOUGH = 0.99  # of the coverage of the power readings: then the counter is used
# Below this coverage, a `*_reason` states that the value covers only part of its time.
WHOLE_COVERAGE = 0.995


def merge_energy(results, *, samples=None, seconds=None, epoch_seconds=None, window="epoch"):
    """Adds up the energy that the processes measured on all hosts, with each device counted once.

    If several processes read a device (two ranks on one GPU, a CPU package), the first that
    measured it counts: their windows differ by milliseconds, and their joules are the same. Joules
    are those of the measured time only; `coverage` is the fraction of the windows that this is.

    Args:
      results: results of `Monitor.stop`, in the order of the ranks.
      samples: samples that all ranks trained in these windows, for `joules_per_sample`.
      seconds: duration of the work, including time without a meter; None for that of the windows.
      epoch_seconds: duration of each epoch, also including time without a meter;
        `joules_per_epoch` and `coverage_per_epoch` then have one entry per epoch. None for entries
        and durations of the epochs that have a window.
      window: name of the windows that are added up; those of one index become one entry.

    Returns:
      The `energy` part of record.json. A value that was not measured is None, and has a
      `*_reason`.
    """
    devices = _distinct_devices(results)
    chosen = [_device_record(host, device, window) for host, device in devices]
    measured = [each for each in chosen if each["joules"] is not None]
    wall_s = _union_s(devices, window)
    lengths = _lengths(devices, window) if epoch_seconds is None else dict(enumerate(epoch_seconds))
    record = {
        "source": _job_source(measured),
        "source_reason": _join(result["reason"] for result in results),
        "joules": _sum(each["joules"] for each in measured),
        "mean_watts": _watts_together(devices, chosen, "mean_watts"),
        "idle_watts": _watts_together(devices, chosen, "idle_watts"),
        "joules_per_epoch": [_joules_of_index(devices, chosen, window, index) for index in lengths],
        "coverage_per_epoch": [
            _coverage_of_index(devices, chosen, window, index, length_s)
            for index, length_s in lengths.items()
        ],
        "joules_per_sample": None,
        "joules_above_idle": _sum_all(each["joules_above_idle"] for each in measured),
        "coverage": _coverage(chosen, wall_s, seconds),
        "crosscheck_joules": _sum_all(each["crosscheck_joules"] for each in measured),
        "uncertainty_percent": _uncertainty(measured, "uncertainty_percent", together=True),
        "repeatability_percent": _uncertainty(measured, "repeatability_percent", together=False),
        "devices": chosen,
        "windows": _windows(devices),
        "not_included": _not_included(results),
    }
    if record["joules"] is not None and samples:
        # The joules are those of the covered time, so the samples must be as well.
        record["joules_per_sample"] = record["joules"] / (samples * record["coverage"])
    record.update(_reasons(record, results))
    return record


def joules_of(results, window, index=None):
    """Returns the joules of the windows of one name and index as `merge_energy` counts them.

    Returns None if none of it was measured.
    """
    devices = _distinct_devices(results)
    chosen = [_device_record(host, device, window) for host, device in devices]
    return _joules_of_index(devices, chosen, window, index)


def _distinct_devices(results):
    """Returns [(host, device)], with each device once, from the first process that measured it."""
    found = {}
    for result in results:
        for device in result["devices"]:
            key = (result["host"], device["uuid"])
            if key not in found or not _moved(found[key]):
                found[key] = device
    return [(host, device) for (host, _), device in found.items()]


def _moved(device):
    return any(
        part is not None and part["seconds"] > 0
        for window in device["windows"]
        for part in (window["counter"], window["power"])
    )


def _device_record(host, device, name):
    windows = [each for each in device["windows"] if each["name"] == name]
    kind = _kind_used(device, windows)
    total = _total(windows, kind)
    other = _total(windows, "power") if kind == "counter" else None
    length_s = sum(each["end_s"] - each["start_s"] for each in windows)
    idle = _total([each for each in device["windows"] if each["name"] == "idle"], kind)
    idle_watts = idle["joules"] / idle["seconds"] if idle and idle["seconds"] > 0 else None
    measured = total is not None and total["seconds"] > 0
    record = {
        "uuid": device["uuid"],
        "name": device["name"],
        "host": host,
        "source": device[f"{kind}_source"] if measured else "none",
        "joules": total["joules"] if measured else None,
        "mean_watts": total["joules"] / total["seconds"] if measured else None,
        "peak_watts": max((w["peak_w"] for w in windows if w["peak_w"] is not None), default=None),
        "idle_watts": idle_watts,
        "joules_above_idle": None,
        "coverage": min(total["seconds"] / length_s, 1.0) if measured and length_s else 0.0,
        "crosscheck_joules": None,
        "uncertainty_percent": None,
        "repeatability_percent": None,
        "counter_period_s": device["counter_period_s"],
        "power_period_s": device["power_period_s"],
        "power_window_s": device["power_window_s"],
        "note": device["note"],
        "scope": device.get("scope"),  # the checkpoint of an earlier version has none
        "problems": device["problems"],
        "seconds": length_s,
    }
    if measured and idle_watts is not None:
        record["joules_above_idle"] = total["joules"] - idle_watts * total["seconds"]
    if measured and other is not None and other["seconds"] > 0:
        record["crosscheck_joules"] = other["joules"]
    if measured and total["joules"] > 0 and device["calibration_percent"] is not None:
        record.update(_device_uncertainty(device, total, other))
    return record


def _device_uncertainty(device, total, other):
    """Returns the two uncertainties of a device, in percent of its joules (two sigma).

    docs/energy.md derives them.
    """
    own = 200 * math.sqrt(total["variance_j2"]) / total["joules"]
    disagreement = 0.0
    if other is not None and other["seconds"] > 0 and total["seconds"] > 0:
        # Counter and power may cover different parts of the time, so compare their mean powers.
        here, there = total["joules"] / total["seconds"], other["joules"] / other["seconds"]
        explained = 200 * math.sqrt(other["variance_j2"]) / max(other["joules"], 1e-9)
        disagreement = max(0.0, 100 * abs(there - here) / here - explained)
    repeatability = math.hypot(own, disagreement)
    return {
        "repeatability_percent": repeatability,
        "uncertainty_percent": math.hypot(device["calibration_percent"], repeatability),
    }


def _kind_used(device, windows):
    """Returns "counter", unless the counter covers less time than the power readings."""
    if device["counter_source"] is None:
        return "power"
    if device["power_source"] is None:
        return "counter"
    counter, power = _total(windows, "counter"), _total(windows, "power")
    if counter is None or not counter["seconds"]:
        return "power"
    if power is not None and counter["seconds"] < _ENOUGH * power["seconds"]:
        return "power"
    return "counter"


def _total(windows, kind):
    parts = [each[kind] for each in windows if each[kind] is not None]
    if not parts:
        return None
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def _union_s(devices, name, index=None):
    """Returns the seconds in which a window of this name, and index, was open on any device."""
    spans = sorted(
        (each["start_s"], each["end_s"])
        for _, device in devices
        for each in device["windows"]
        if each["name"] == name and index in (None, each["index"])
    )
    open_s, until = 0.0, -math.inf
    for start, end in spans:
        open_s += max(0.0, end - max(start, until))
        until = max(until, end)
    return open_s


def _lengths(devices, name):
    """Returns {index: seconds} of the windows of a name."""
    indices = {
        each["index"]
        for _, device in devices
        for each in device["windows"]
        if each["name"] == name and each["index"] is not None
    }
    return {index: _union_s(devices, name, index) for index in sorted(indices)}


def _joules_of_index(devices, chosen, name, index):
    """Returns the joules of the windows of an index, or None if no device measured any."""
    return _sum(part["joules"] for part, _ in _parts(devices, chosen, name, index) if part)


def _coverage_of_index(devices, chosen, name, index, seconds):
    """Returns the measured fraction of the time of an index, over all devices, as `_coverage`."""
    parts = list(_parts(devices, chosen, name, index))
    length_s = sum(length for _, length in parts)
    if not length_s:
        return None
    measured_s = sum(min(part["seconds"], length) for part, length in parts if part)
    # Part of the time may belong to a start without meters, which has no windows.
    wall_s = _union_s(devices, name, index)
    return measured_s / length_s * (min(1.0, wall_s / seconds) if seconds else 1.0)


def _parts(devices, chosen, name, index):
    """Yields (measured part or None, seconds) of the windows of an index, for each device."""
    for (_, device), record in zip(devices, chosen, strict=True):
        kind = "power" if record["source"] == device["power_source"] else "counter"
        windows = [w for w in device["windows"] if (w["name"], w["index"]) == (name, index)]
        part = _total(windows, kind)
        measured = part is not None and part["seconds"] > 0 and record["joules"] is not None
        yield part if measured else None, sum(w["end_s"] - w["start_s"] for w in windows)


def _windows(devices):
    """Returns the times of the windows; for each name and index, from the first device with it."""
    found = {}
    for number, (_, device) in enumerate(devices):
        for each in device["windows"]:
            of_number = found.setdefault((each["name"], each["index"]), (number, []))
            if of_number[0] == number:
                of_number[1].append(
                    {name: each[name] for name in ("name", "index", "start_s", "end_s")}
                )
    windows = [each for _, of_device in found.values() for each in of_device]
    return sorted(windows, key=lambda each: each["start_s"])


def _not_included(results):
    """Returns what trained and no meter read, as texts: of each process, and hosts without any."""
    texts = [text for result in results for text in result.get("not_included", ())]
    with_meters = {result["host"] for result in results if result["devices"]}
    # A process without a meter may share the devices of another one of its host.
    hosts = [r["host"] for r in results if not r["devices"] and r["host"] not in with_meters]
    return list(dict.fromkeys([*texts, *(f"everything on {host}" for host in hosts)]))


def _job_source(measured):
    """Returns the source of the sum, which is the least accurate source of any device."""
    kinds = {each["source"] for each in measured}
    for kind in ("estimate", "nvml_power", "nvml_counter", "rapl"):
        if kind in kinds:
            return kind
    return "none"


def _coverage(chosen, wall_s, seconds):
    """Returns the measured fraction of the time, over all devices, or None if there was no time."""
    length_s = sum(each["seconds"] for each in chosen)
    if not length_s:
        return None
    of_windows = sum(each["coverage"] * each["seconds"] for each in chosen) / length_s
    # A start without meters has no windows, but its time counts.
    return of_windows * min(1.0, wall_s / seconds) if seconds else of_windows


def _watts_together(devices, chosen, name):
    """Returns the total power of devices used at the same time, or None if any is unknown.

    The devices of a run that was resumed elsewhere were never used at the same time. For such a run
    it is the mean over the parts of the run, weighted by their duration.
    """
    stretches = []  # [end, watts, seconds] of devices with overlapping times
    measured = [
        (
            min(w["start_s"] for w in device["windows"]),
            max(w["end_s"] for w in device["windows"]),
            record,
        )
        for (_, device), record in zip(devices, chosen, strict=True)
        if record["joules"] is not None
    ]
    for start, end, record in sorted(measured, key=lambda each: each[0]):
        if record[name] is None:
            return None
        if stretches and start < stretches[-1][0]:
            stretch = stretches[-1]
            stretch[0] = max(stretch[0], end)
            stretch[1] += record[name]
            stretch[2] = max(stretch[2], record["seconds"])
        else:
            stretches.append([end, record[name], record["seconds"]])
    seconds = sum(each for _, _, each in stretches)
    return sum(watts * each for _, watts, each in stretches) / seconds if seconds else None


def _uncertainty(measured, name, together):
    """Returns the mean of the devices' percentages, weighted by their joules.

    Sensors of the same make have errors in the same direction (`together`), which add linearly.
    Errors from the times of polling are independent and add in quadrature.
    """
    joules = _sum(each["joules"] for each in measured)
    if not joules or any(each[name] is None for each in measured):
        return None
    shares = [each[name] * each["joules"] / joules for each in measured]
    return sum(shares) if together else math.sqrt(sum(share**2 for share in shares))


# Why a value is missing although joules were measured.
_WHY_MISSING = {key.name: key.null for key in schema.ENERGY if key.type == schema.NUMBER}


def _reasons(record, results):
    """Returns a `*_reason` for every value that is missing or partial."""
    reasons = {}
    why = _join(_problem_lines(record["devices"])) or record["source_reason"]
    if record["joules"] is None:
        reasons |= {f"{name}_reason": why for name in _WHY_MISSING if name in record}
        if record["source"] == "none" and record["devices"]:
            reasons["source_reason"] = f"{record['source_reason']}; but {why}"
        return reasons
    if record["coverage"] is not None and record["coverage"] < WHOLE_COVERAGE:
        reasons["coverage_reason"] = why
    for name, reason in _WHY_MISSING.items():
        if name in record and record[name] is None:
            reasons[f"{name}_reason"] = reason
    problems = _join(
        [*_problem_lines(record["devices"]), *(r["trace_problem"] or "" for r in results)]
    )
    if problems:
        reasons["problems_reason"] = problems
    return reasons


def _problem_lines(devices):
    for device in devices:
        for what, known in device["problems"].items():
            times = "" if known["count"] == 1 else f", {known['count']} times"
            yield (
                f"{device['uuid']}: {what} (from {known['first_s']:.1f} s to "
                f"{known['last_s']:.1f} s{times})"
            )


def _sum(values):
    values = list(values)
    return sum(values) if values else None


def _sum_all(values):
    """Returns the sum, or None if any part is missing."""
    values = list(values)
    return sum(values) if values and None not in values else None


def _join(lines):
    return "; ".join(dict.fromkeys(line for line in lines if line))
