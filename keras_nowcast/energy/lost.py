"""Energy of lost work, from a trace of power readings."""

import math


def lost_energy(readings, intervals, zero_unix_s, longest_gap_s):
    """Returns the energy of lost work, in memory that does not grow with the trace.

    Power is linear between two valid readings; if they are too far apart it was not measured.

    Args:
      readings: as RunFolder.power_readings yields them.
      intervals: [from, to] of each interval of lost work, unix time; they do not overlap.
      zero_unix_s: unix time that is time 0 of the readings.
      longest_gap_s: longest time between two readings with known power between them.

    Returns:
      (joules, coverage): the joules of all devices in the measured time only, and the fraction of
      the intervals that this time is, over the devices with readings in them. (None, 0.0) if
      nothing was measured.
    """
    joules = covered_s = 0.0
    last = {}
    devices = [set() for _ in intervals]
    for device, time_s, watts in readings:
        now = zero_unix_s + time_s
        before, before_w = last.get(device, (-math.inf, 0.0))
        for (begin, end), known in zip(intervals, devices, strict=True):
            if begin <= now <= end:
                known.add(device)
            since, until = max(begin, before), min(end, now)
            if since < until and now - before <= longest_gap_s and math.isfinite(watts):
                slope = (watts - before_w) / (now - before)
                middle_w = before_w + slope * ((since + until) / 2 - before)
                joules += middle_w * (until - since)
                covered_s += until - since
        if math.isfinite(watts):
            last[device] = now, watts
    whole_s = sum(
        (end - begin) * max(1, len(known))
        for (begin, end), known in zip(intervals, devices, strict=True)
    )
    return (joules, min(covered_s / whole_s, 1.0)) if covered_s else (None, 0.0)
