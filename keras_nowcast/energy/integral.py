"""Joules over time from what meters say: counters that move in steps, power readings that repeat.

Both end in a curve of joules since the beginning, read off at any moment between two of its
points; a window's energy is the difference of two read-offs. Pure arithmetic: no driver, no clock.
Times are seconds, power watts. docs/energy.md derives the uncertainties.
"""

import math
from collections import deque
from dataclasses import dataclass

_KEPT_POINTS = 4096  # some minutes at 100 ms: moments are read off long before these run out
_LONGEST_COUNTER_STEP_S = 0.1  # NVML counters move every 20 to 100 ms
_LONGEST_AVERAGE_S = 1.0  # no NVML sensor is known to average over more
_LONGEST_LAG_S = _LONGEST_AVERAGE_S / 2 + 0.1
_STANDSTILL_S = 1.0  # a counter unmoved for longer than this is compared with the power readings
_FROZEN_S = 10.0  # a power sensor that used to move and has not for so long is taken for frozen
_HIGHEST_WATTS = 3000.0  # no board and no package draws more
_COUNTER_AGREES = 0.25  # with power over a standstill, as a share


@dataclass(frozen=True)
class Amount:
    """A read-off of a curve: what had been measured up to a moment.

    Attributes:
      joules: measured.
      seconds: of time whose energy is among these joules.
      roughness_w2: sum of squared differences of neighboring power readings (power curves).
      width_s: how far apart the curve's points on both sides of the moment are.
      blur_s: how exactly the time of those points is known.
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
    """Infers how often a value moves, from the times between its changes.

    A sensor whose reading happens to stay the same over an update shows a multiple of its period;
    so the shortest common time counts, not the mean.

    Attributes:
      period_s: the update period, or None before three changes were seen closely enough.
    """

    def __init__(self):
        self.period_s = None
        self._between = deque(maxlen=128)
        self._last_change_s = None
        self._last_looked_s = 0.0

    def saw_change(self, time_s, looked_s):
        """Notes a change at `time_s`, `looked_s` after the look before.

        Two changes tell the period only if both were looked for closely.
        """
        if self._last_change_s is not None:
            between = time_s - self._last_change_s
            if between >= 2 * max(looked_s, self._last_looked_s):
                self._between.append(between)
                self.period_s = self._shortest_common()
        self._last_change_s, self._last_looked_s = time_s, looked_s

    def lost(self):
        """Notes that changes may have been missed."""
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
    earliest_s: float  # and the bracket it lies in
    latest_s: float
    joules: float
    seconds: float
    gap_after: bool = False  # what lies between this point and the next was not measured


class CounterCurve:
    """Joules from a cumulative counter.

    The counter takes its values at steps of its own; a value seen for the first time is as old as
    at most one step or the time since the last look. Where looks are close together the moment
    of the step is known; the value before it began one step period earlier.

    Attributes:
      steps: the StepTimes of the counter.
      problems: what was wrong with it, [(time_s, what)].
    """

    def __init__(self, step_s=None):
        """Takes the time between two steps, None where it is to be inferred."""
        self.steps = StepTimes()
        self.problems = []
        self._known_step_s = step_s
        self._points = deque(maxlen=_KEPT_POINTS)
        self._value = None  # last seen, and when it was last looked at
        self._seen_s = None
        self._stands_still = False

    def add(self, time_s, joules, power=None):
        """Takes the counter's value at `time_s`; `power` is the PowerCurve beside it, if any."""
        if self._value is None:
            self._value, self._seen_s = joules, time_s
            self._points.append(_Point(time_s, time_s - self.step_s, time_s, 0.0, 0.0))
        elif joules != self._value:
            self._step(time_s, joules, power)
            self._stands_still = False
        elif not self._stands_still and time_s - self._points[-1].latest_s > _STANDSTILL_S:
            self._stands_still = True
            self.problems.append((time_s, "the energy counter stands still"))
        self._seen_s = time_s

    @property
    def newest_s(self):
        """When the counter was last seen to step, or None."""
        return self._points[-1].latest_s if self._points else None

    def moved_by(self, time_s):
        """True when the counter was seen to step at or after `time_s`."""
        return len(self._points) > 1 and self._points[-1].earliest_s >= time_s

    @property
    def step_s(self):
        """The time between two steps: known, inferred, or the longest there is."""
        return self._known_step_s or self.steps.period_s or _LONGEST_COUNTER_STEP_S

    @property
    def ever_moved(self):
        """True when the counter was seen to step at all."""
        return len(self._points) > 1

    @property
    def reaches_s(self):
        """The latest moment that can be read off, or None."""
        return self._points[-1].time_s if self._points else None

    def at(self, time_s):
        """Returns the Amount up to `time_s`; past the last point, the last point's."""
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
        # The value that has just gone began one step before, within what is known of it.
        began_s = moment_s - step_s
        if looked_s <= step_s / 2 and last.earliest_s <= began_s <= last.latest_s:
            last.seconds += began_s - last.time_s
            last.time_s = began_s
        moment_s = max(moment_s, last.time_s)
        point = _Point(moment_s, earliest_s, time_s, last.joules, last.seconds)
        gained, took_s = joules - self._value, point.time_s - last.time_s
        trouble = self._trouble(gained, took_s, looked_s, last, power)
        if trouble:
            last.gap_after = True
            self.problems.append((time_s, trouble))
            self.steps.lost()
        else:
            point.joules += gained
            point.seconds += took_s
            self.steps.saw_change(time_s, looked_s)
        self._value = joules
        self._points.append(point)

    def _trouble(self, gained, took_s, looked_s, last, power):
        """Says why the energy since the last point cannot be believed, or None."""
        if gained < 0:
            return "the energy counter went back (a reset of the driver)"
        if gained > _HIGHEST_WATTS * max(took_s, 0.001) + 1:
            return f"the energy counter jumped by {gained:.0f} J in {took_s:.2f} s"
        if took_s <= _STANDSTILL_S or looked_s > took_s / 2:
            return None  # nobody looked for a while, but the counter went on
        # The counter was read all along and stood still: was it frozen, or did it catch up?
        if power is not None:
            beside = power.between(last.time_s, last.time_s + took_s)
            if beside is not None and abs(gained - beside) <= _COUNTER_AGREES * beside:
                return None
        return f"the energy counter stood still for {took_s:.1f} s"


class PowerCurve:
    """Joules from readings of power, by the trapezoid between the middles of what they average.

    A reading repeated within one update period is the same measurement and is taken once; one
    that repeats after it is a new measurement of the same power.

    Attributes:
      updates: the StepTimes of the sensor.
      problems: what was wrong with it, [(time_s, what)].
    """

    def __init__(self, window_s=None, longest_gap_s=1.0):
        """Takes the sensor's averaging window, None where it is to be inferred."""
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
        """Takes a reading; times must not go back."""
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
            # It changed at some moment since the last look, at most a period ago.
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
        """The update period: inferred, or the longest known before that."""
        return self.updates.period_s or 0.1

    @property
    def window_s(self):
        """The averaging window: known, or inferred from how far a reading can jump.

        A sensor needs its averaging window to follow a step, so it climbs no faster than its range
        in a window. Readings that never step tell little, and need little.
        """
        if self._known_window_s is not None:
            return self._known_window_s
        swing = self._highest_w - self._lowest_w
        if not self._steepest_w_s:
            return self.period_s
        return min(max(swing / self._steepest_w_s, self.period_s), _LONGEST_AVERAGE_S)

    @property
    def lag_s(self):
        """How long before its update the middle of a reading's average lies."""
        return self._lag_and_doubt_s()[0]

    def _lag_and_doubt_s(self):
        """Returns the lag, and how far it may be off."""
        if self._known_window_s is not None:
            return self._known_window_s / 2, 0.0
        longest_s = self.window_s
        if longest_s <= 2.5 * self.period_s:  # it steps at once: averages over an update at most
            return self.period_s / 4, self.period_s / 4
        if longest_s < _LONGEST_AVERAGE_S:
            return longest_s / 2, longest_s / 2
        # Power rose and fell slowly: the window may be anything from none to the longest.
        return _LONGEST_AVERAGE_S / 4, _LONGEST_AVERAGE_S / 4

    @property
    def reaches_s(self):
        """The latest moment an `excerpt` for which is complete, or None."""
        return self._points[-1][0] - _LONGEST_LAG_S if self._points else None

    @property
    def watts(self):
        """The newest reading, or None."""
        return self._watts

    @property
    def newest_s(self):
        """When the newest reading was taken, or None."""
        return self._seen_s

    def excerpt(self, time_s):
        """Returns the points around a moment: enough to read it off later, by any lag."""
        near = []
        for point in reversed(self._points):
            near.append(point)
            if point[0] < time_s - _LONGEST_LAG_S:
                break
        return near[::-1]

    def at(self, time_s, points=None):
        """Returns the Amount up to `time_s`; past the last reading, the last one's.

        Args:
          time_s: the moment.
          points: an `excerpt` for it; None for what is still kept.
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
        """Returns the joules from start to end, or None where a tenth or more was not measured."""
        start, end = self.at(start_s), self.at(end_s)
        seconds, joules = end.seconds - start.seconds, end.joules - start.joules
        # The last readings may not reach the end yet: go on at the newest power.
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
        """True when a sensor that used to move has stopped moving."""
        limit_s = max(_FROZEN_S, 50 * self.period_s)
        if self._changes < 20 or time_s - self._changed_s <= limit_s:
            return False
        if not self._frozen:
            self.problems.append((time_s, f"the power reading has not moved for {limit_s:.0f} s"))
        return True

    def _spread_around(self, wanted_s, points):
        """Range of the readings that a moment's power may have gone into."""
        reach_s = self.window_s / 2 + 2 * self.period_s
        near = [watts for time_s, watts, *_ in points if abs(time_s - wanted_s) <= reach_s]
        return max(near) - min(near) if near else 0.0

    def variance_j2(self, start, end):
        """Returns the variance of the joules between two Amounts of this curve (one sigma).

        The parts, in docs/energy.md: what the sensor does not see between two readings; where
        within the averaging window, and within an update, the boundaries lie; how far the lag may
        be off.
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
            doubt_s = self._lag_and_doubt_s()[1] / math.sqrt(3)  # even odds up to the doubt
            drift = (doubt_s * (end.watts - start.watts)) ** 2
        return unseen + edges + drift


def counter_variance_j2(start, end):
    """Returns the variance of the joules between two Amounts of a CounterCurve (one sigma).

    Within the step that holds a boundary the power is not known: at worst, three sigma, half of
    the step's joules are on the wrong side. When the step was is known to within two looks.
    """
    variance = 0.0
    for amount in (start, end):
        watts = amount.watts or 0.0
        variance += (amount.width_s * watts / 6) ** 2 + (amount.blur_s * watts) ** 2 / 12
    return variance


def _neighbors(points, wanted_s):
    """The points on both sides of a moment; the first or last one twice outside."""
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
