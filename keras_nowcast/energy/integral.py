"""Joules over time from counters that move in steps, and from power readings that repeat.

Both give a curve of joules since the start, which can be evaluated at any moment between two of its
points. The energy of a window is the difference of two such values. This module is pure arithmetic,
without a driver or a clock. Times are in seconds, power in watts. docs/energy.md derives the
uncertainties.
"""

import math
from collections import deque
from dataclasses import dataclass

_KEPT_POINTS = 4096  # several minutes at 100 ms, long after a moment was evaluated
_LONGEST_COUNTER_STEP_S = 0.1  # NVML counters update every 20 to 100 ms
_LONGEST_AVERAGE_S = 1.0  # no NVML sensor is known to average over more
_LONGEST_LAG_S = _LONGEST_AVERAGE_S / 2 + 0.1
_STANDSTILL_S = 1.0  # a counter that does not change for longer is compared with power readings
_FROZEN_S = 10.0  # without a change, after which a power sensor is treated as frozen
_HIGHEST_WATTS = 3000.0  # no board and no package draws more
_COUNTER_AGREES = 0.25  # relative difference from power, after a time without change


@dataclass(frozen=True)
class Amount:
    """The value of a curve at a moment: what had been measured until then.

    Attributes:
      joules: measured joules.
      seconds: seconds whose energy is included in these joules.
      roughness_w2: sum of squared differences of neighboring power readings (power curves).
      width_s: time between the points of the curve on both sides of the moment.
      blur_s: uncertainty of the times of those points.
      watts: power at the moment, or None.
      spread_w: range of the power readings around the moment.
    """

    joules: float
    seconds: float
    roughness_w2: float = 0.0
    width_s: float = 0.0
    blur_s: float = 0.0
    watts: float | None = None
    spread_w: float = 0.0


class StepTimes:
    """Infers the update period of a value from the times between its changes.

    If a reading happens to stay the same over an update, the time between its changes is a multiple
    of the period. The shortest common time is therefore used, not the mean.

    Attributes:
      period_s: the update period, or None before three changes were seen with fast polling.
    """

    def __init__(self):
        self.period_s = None
        self._between = deque(maxlen=128)
        self._last_change_s = None
        self._last_looked_s = 0.0

    def saw_change(self, time_s, looked_s):
        """Records a change at `time_s`, `looked_s` after the previous poll.

        Two changes show the period only if polling was fast before both.
        """
        if self._last_change_s is not None:
            between = time_s - self._last_change_s
            if between >= 2 * max(looked_s, self._last_looked_s):
                self._between.append(between)
                self.period_s = self._shortest_common()
        self._last_change_s, self._last_looked_s = time_s, looked_s

    def lost(self):
        """Records that changes may have been missed."""
        self._last_change_s = None

    def _shortest_common(self):
        if len(self._between) < 3:
            return None
        ordered = sorted(self._between)
        short = ordered[len(ordered) // 4]
        near = [each for each in ordered if 0.5 * short <= each <= 1.5 * short]
        return sum(near) / len(near)


@dataclass
class _Point:
    time_s: float  # best guess of when the counter took this value
    earliest_s: float  # and the interval that contains it
    latest_s: float
    joules: float
    seconds: float
    gap_after: bool = False  # the energy from this point to the next was not measured


class CounterCurve:
    """Joules from a cumulative counter.

    The counter changes in steps. A value that is seen for the first time is at most as old as one
    step, or as the time since the last poll. If polls are close together, the time of the step is
    known, and the previous value started one step period earlier.

    Attributes:
      steps: the StepTimes of the counter.
      problems: its problems, [(time_s, what)].
    """

    def __init__(self, step_s=None):
        """Takes the time between two steps, or None to infer it."""
        self.steps = StepTimes()
        self.problems = []
        self._known_step_s = step_s
        self._points = deque(maxlen=_KEPT_POINTS)
        self._value = None  # last seen, and the time of the last poll
        self._seen_s = None
        self._unchanged = False

    def add(self, time_s, joules, power=None):
        """Adds the counter's value at `time_s`; `power` is the PowerCurve of the device, if any."""
        if self._value is None:
            self._value, self._seen_s = joules, time_s
            self._points.append(_Point(time_s, time_s - self.step_s, time_s, 0.0, 0.0))
        elif joules != self._value:
            self._step(time_s, joules, power)
            self._unchanged = False
        elif not self._unchanged and time_s - self._points[-1].latest_s > _STANDSTILL_S:
            self._unchanged = True
            self.problems.append((time_s, "the energy counter does not change"))
        self._seen_s = time_s

    @property
    def newest_s(self):
        """Time of the last step that was seen, or None."""
        return self._points[-1].latest_s if self._points else None

    def moved_by(self, time_s):
        """Returns True if a step at or after `time_s` was seen."""
        return len(self._points) > 1 and self._points[-1].earliest_s >= time_s

    @property
    def step_s(self):
        """The time between two steps: known, inferred, or the longest of any counter."""
        return self._known_step_s or self.steps.period_s or _LONGEST_COUNTER_STEP_S

    @property
    def ever_moved(self):
        """Whether any step was seen."""
        return len(self._points) > 1

    @property
    def reaches_s(self):
        """The latest moment at which the curve can be evaluated, or None."""
        return self._points[-1].time_s if self._points else None

    def at(self, time_s):
        """Returns the Amount up to `time_s`; after the last point, that of the last point."""
        points = self._points
        if not points:
            return Amount(0.0, 0.0)
        if time_s <= points[0].time_s:
            return Amount(points[0].joules, points[0].seconds)
        for index in range(len(points) - 1, 0, -1):
            if points[index - 1].time_s <= time_s:
                return _between(points[index - 1], points[index], time_s)
        return Amount(points[0].joules, points[0].seconds)

    def _step(self, time_s, joules, power):
        last = self._points[-1]
        looked_s = time_s - self._seen_s
        step_s = self.step_s
        earliest_s = max(self._seen_s, time_s - step_s)
        moment_s = (earliest_s + time_s) / 2
        # The previous value started one step earlier, within the interval that is known for it.
        began_s = moment_s - step_s
        if looked_s <= step_s / 2 and last.earliest_s <= began_s <= last.latest_s:
            last.seconds += began_s - last.time_s
            last.time_s = began_s
        moment_s = max(moment_s, last.time_s)
        point = _Point(moment_s, earliest_s, time_s, last.joules, last.seconds)
        gained, took_s = joules - self._value, point.time_s - last.time_s
        problem = self._problem(gained, took_s, looked_s, last, power)
        if problem:
            last.gap_after = True
            self.problems.append((time_s, problem))
            self.steps.lost()
        else:
            point.joules += gained
            point.seconds += took_s
            self.steps.saw_change(time_s, looked_s)
        self._value = joules
        self._points.append(point)

    def _problem(self, gained, took_s, looked_s, last, power):
        """Returns why the energy since the last point cannot be used, or None."""
        if gained < 0:
            return "the energy counter decreased (a reset of the driver)"
        if gained > _HIGHEST_WATTS * max(took_s, 0.001) + 1:
            return f"the energy counter jumped by {gained:.0f} J in {took_s:.2f} s"
        if took_s <= _STANDSTILL_S or looked_s > took_s / 2:
            return None  # it was not polled for a while, but the counter continued
        # It was polled all the time and did not change: was it frozen, or did it catch up?
        if power is not None:
            beside = power.between(last.time_s, last.time_s + took_s)
            if beside is not None and abs(gained - beside) <= _COUNTER_AGREES * beside:
                return None
        return f"the energy counter did not change for {took_s:.1f} s"


class PowerCurve:
    """Joules from power readings, by trapezoids between the middles of their averaging windows.

    A reading that repeats within one update period is the same measurement and counts once. If it
    repeats later, it is a new measurement of the same power.

    Attributes:
      updates: the StepTimes of the sensor.
      problems: its problems, [(time_s, what)].
    """

    def __init__(self, window_s=None, longest_gap_s=1.0):
        """Takes the averaging window of the sensor, or None to infer it."""
        self.updates = StepTimes()
        self.problems = []
        self._known_window_s = window_s
        self._longest_gap_s = longest_gap_s
        self._points = deque(maxlen=_KEPT_POINTS)  # (time_s, watts, joules, seconds, roughness)
        self._watts = None
        self._seen_s = None
        self._changed_s = None
        self._changes = 0
        self._frozen = False
        self._lowest_w, self._highest_w, self._steepest_w_s = math.inf, -math.inf, 0.0
        self._looked_s = 0.0

    def add(self, time_s, watts):
        """Adds a reading; times must not decrease."""
        if self._seen_s is None:
            self._seen_s = self._changed_s = time_s
            self._append(time_s, watts)
            return
        looked_s, fresh_after_s = time_s - self._seen_s, self.period_s
        changed = watts != self._watts
        if changed:
            self.updates.saw_change(time_s, looked_s)
            self._changed_s, self._changes = time_s, self._changes + 1
            if self._frozen:
                self._frozen = False
                self.updates.lost()
            # It changed at some moment since the last poll, at most one period ago.
            age_s = min(looked_s, fresh_after_s) / 2
            self._append(max(time_s - age_s, self._points[-1][0]), watts)
            self._looked_s = min(looked_s, fresh_after_s)
        elif self._is_frozen(time_s):
            self._frozen = True
        elif time_s - self._points[-1][0] >= 0.999 * fresh_after_s:
            self._append(time_s, watts)
        self._seen_s = time_s

    @property
    def period_s(self):
        """The update period: inferred, or before that the longest one known."""
        return self.updates.period_s or 0.1

    @property
    def window_s(self):
        """The averaging window: known, or inferred from the steepest change of a reading.

        A sensor needs one averaging window to follow a step of power, so it cannot rise faster than
        its range per window. Readings without steps say little about the window, which then
        matters little.
        """
        if self._known_window_s is not None:
            return self._known_window_s
        swing = self._highest_w - self._lowest_w
        if not self._steepest_w_s:
            return self.period_s
        return min(max(swing / self._steepest_w_s, self.period_s), _LONGEST_AVERAGE_S)

    @property
    def lag_s(self):
        """Time from the middle of the averaging window of a reading to its update."""
        return self._lag_and_error_s()[0]

    def _lag_and_error_s(self):
        """Returns the lag and its largest error, seconds."""
        if self._known_window_s is not None:
            return self._known_window_s / 2, 0.0
        longest_s = self.window_s
        if (
            longest_s <= 2.5 * self.period_s
        ):  # it follows steps at once, so averages over one update at most
            return self.period_s / 4, self.period_s / 4
        if longest_s < _LONGEST_AVERAGE_S:
            return longest_s / 2, longest_s / 2
        # Power changed slowly, so the window may be anything from zero to the longest.
        return _LONGEST_AVERAGE_S / 4, _LONGEST_AVERAGE_S / 4

    @property
    def reaches_s(self):
        """The latest moment whose `excerpt` is complete, or None."""
        return self._points[-1][0] - _LONGEST_LAG_S if self._points else None

    @property
    def watts(self):
        """The newest reading, or None."""
        return self._watts

    @property
    def newest_s(self):
        """Time of the newest reading, or None."""
        return self._seen_s

    def excerpt(self, time_s):
        """Returns the points around a moment, enough to evaluate it later with any lag."""
        near = []
        for point in reversed(self._points):
            near.append(point)
            if point[0] < time_s - _LONGEST_LAG_S:
                break
        return near[::-1]

    def at(self, time_s, points=None):
        """Returns the Amount up to `time_s`; after the last reading, that of the last reading.

        Args:
          time_s: the moment.
          points: an `excerpt` for it; None for the points that are still kept.
        """
        points = list(self._points) if points is None else points
        if not points:
            return Amount(0.0, 0.0)
        wanted_s = time_s + self.lag_s
        start, end = _neighbors(points, wanted_s)
        spread = self._spread_around(wanted_s, points)
        span_s = end[0] - start[0]
        share = (wanted_s - start[0]) / span_s if span_s else 0.0
        watts = start[1] + share * (end[1] - start[1])
        joules, seconds = start[2], start[3]
        if end[3] > start[3]:  # not a gap
            joules += (start[1] + watts) / 2 * share * span_s
            seconds += share * span_s
        return Amount(joules, seconds, start[4], span_s, 0.0, watts, spread)

    def between(self, start_s, end_s):
        """Returns the joules from start to end, or None if a tenth or more was not measured."""
        start, end = self.at(start_s), self.at(end_s)
        seconds, joules = end.seconds - start.seconds, end.joules - start.joules
        # The last readings may not reach the end yet; the newest power then continues.
        missing_s = end_s - start_s - seconds
        if missing_s > 0.1 * (end_s - start_s):
            return None
        return joules + missing_s * (self._watts or 0.0)

    def _append(self, time_s, watts):
        joules = seconds = roughness = 0.0
        if self._points:
            last_s, last_w, joules, seconds, roughness = self._points[-1]
            took_s = time_s - last_s
            if took_s <= self._longest_between_s():
                joules += (last_w + watts) / 2 * took_s
                seconds += took_s
                roughness += (watts - last_w) ** 2
                slope_w_s = abs(watts - last_w) / max(took_s, self.period_s)
                self._steepest_w_s = max(self._steepest_w_s, slope_w_s)
            else:
                self.problems.append((time_s, f"no power reading for {took_s:.1f} s"))
                self.updates.lost()
        self._lowest_w, self._highest_w = min(self._lowest_w, watts), max(self._highest_w, watts)
        self._watts = watts
        self._points.append((time_s, watts, joules, seconds, roughness))

    def _longest_between_s(self):
        return max(self._longest_gap_s, 3 * self.period_s)

    def _is_frozen(self, time_s):
        """Returns True if a sensor that used to change has stopped changing."""
        limit_s = max(_FROZEN_S, 50 * self.period_s)
        if self._changes < 20 or time_s - self._changed_s <= limit_s:
            return False
        if not self._frozen:
            self.problems.append((time_s, f"the power reading has not changed for {limit_s:.0f} s"))
        return True

    def _spread_around(self, wanted_s, points):
        """Returns the range of the readings that may include the power at a moment."""
        reach_s = self.window_s / 2 + 2 * self.period_s
        near = [watts for time_s, watts, *_ in points if abs(time_s - wanted_s) <= reach_s]
        return max(near) - min(near) if near else 0.0

    def variance_j2(self, start, end):
        """Returns the variance of the joules between two Amounts of this curve (one sigma).

        docs/energy.md derives its parts: the power that the sensor misses between two readings; the
        positions of the boundaries within an averaging window and an update; the error of the lag.
        """
        period_s = self.period_s
        unseen = period_s**2 * max(end.roughness_w2 - start.roughness_w2, 0.0) / 2
        blur_s = self.window_s / 8 + (period_s + self._looked_s) / 4
        edges = sum(
            (blur_s * amount.spread_w) ** 2 + (period_s * (amount.watts or 0.0) / 6) ** 2
            for amount in (start, end)
        )
        drift = 0.0
        if start.watts is not None and end.watts is not None:
            error_s = self._lag_and_error_s()[1] / math.sqrt(3)  # uniform up to the largest error
            drift = (error_s * (end.watts - start.watts)) ** 2
        return unseen + edges + drift


def counter_variance_j2(start, end):
    """Returns the variance of the joules between two Amounts of a CounterCurve (one sigma).

    Within the step that contains a boundary, power is unknown: in the worst case (three sigma) half
    of the joules of the step are on the wrong side. The time of the step is known to within the
    time between two polls.
    """
    variance = 0.0
    for amount in (start, end):
        watts = amount.watts or 0.0
        variance += (amount.width_s * watts / 6) ** 2 + (amount.blur_s * watts) ** 2 / 12
    return variance


def _neighbors(points, wanted_s):
    """Returns the points on both sides of a moment, or the first or last one twice outside."""
    if wanted_s >= points[-1][0]:
        return points[-1], points[-1]
    for index in range(len(points) - 1, 0, -1):
        if points[index - 1][0] <= wanted_s:
            return points[index - 1], points[index]
    return points[0], points[0]


def _between(before, after, time_s):
    if time_s >= after.time_s:
        return Amount(after.joules, after.seconds)
    span_s = after.time_s - before.time_s
    if before.gap_after or not span_s:
        return Amount(before.joules, before.seconds, width_s=0.0)
    share = (time_s - before.time_s) / span_s
    watts = (after.joules - before.joules) / span_s
    return Amount(
        before.joules + share * (after.joules - before.joules),
        before.seconds + share * (after.seconds - before.seconds),
        width_s=span_s,
        blur_s=after.latest_s - after.earliest_s,
        watts=watts,
    )
