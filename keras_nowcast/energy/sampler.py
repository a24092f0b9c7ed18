"""Polls meters at the right moments and keeps their readings; without threads or training.

`Sampler.poll` is called repeatedly and returns how long to wait before the next call. The monitor
calls it from a thread; a test can call it with a simulated clock.
"""

import threading
from collections import deque

from keras_nowcast.energy.integral import (
    Amount,
    CounterCurve,
    PowerCurve,
    counter_variance_j2,
)
from keras_nowcast.energy.reading import MeterError, Reading

_FAST_POLL_S = 0.004  # between polls while waiting for a step of a counter
_FAST_POLL_FOR_S = 0.15  # at most, since counters step every 20 to 100 ms
_LEARN_FOR_S = 1.0  # of fast polling at the start, to learn the update periods
_FASTEST_POWER_POLL_S = 0.01
_GIVE_UP_S = 0.5  # without a reading, after which a sensor is not waited for
_SLOW_S = 0.25  # a call that takes longer returns a value of unknown time
_FAILING_POLL_S = 1.0  # between polls of a device that keeps failing
_SLOW_STATE_S = 1.0  # between polls of values that change slowly
_KEPT_PROBLEMS = 50


def longest_gap_s(interval_s):
    """Returns the longest time in seconds between two power readings with known power between.

    Args:
      interval_s: the requested sampling interval, seconds.
    """
    return max(1.0, 5 * interval_s)


class Mark:
    """A moment, and the values of each device's curves at it, once the curves reach it."""

    def __init__(self, time_s):
        self.time_s = time_s
        self.counter = {}  # device key -> Amount
        self.power = {}  # device key -> excerpt of its curve, to be evaluated at the end


class Window:
    """A named interval between two marks.

    Attributes:
      name: as given, such as "epoch".
      index: as given, such as 3.
      start: Mark.
      end: Mark; None while it is open.
      peak_w: device key -> highest reading inside.
    """

    def __init__(self, name, index, start):
        self.name, self.index, self.start, self.end = name, index, start, None
        self.peak_w = {}


class Track:
    """The curves and problems of one meter.

    Attributes:
      meter: the meter that is read.
      counter: its CounterCurve, or None.
      power: its PowerCurve, or None.
      problems: {what: {"count", "first_s", "last_s"}}.
      state: the newest Reading.
      watts: power by the last poll; None if unknown.
      highest_w: the highest power that the last poll showed; None if unknown.
    """

    def __init__(self, meter, interval_s, lock):
        self.meter = meter
        self._lock = lock  # held while a curve changes, never while the meter is read
        self.counter = self.power = None
        if meter.counter_source:
            self.counter = CounterCurve(meter.counter_step_s)
        if meter.power_source:
            self.power = PowerCurve(meter.power_window_s, longest_gap_s(interval_s))
        self.problems = {}
        self.state = Reading()
        self.watts = self.highest_w = None
        self._slow_state_s = -float("inf")
        self._failures = 0
        self._row_counter = None

    @property
    def failing(self):
        """Whether the last ten polls or more had no answer."""
        return self._failures >= 10

    def poll_counter(self, clock):
        """Reads the counter; returns True if it answered."""
        if self.counter is None:
            return False
        try:
            now_s, joules = _timed(self.meter.read_counter, clock)
        except MeterError as error:
            with self._lock:
                self.note(clock(), str(error))
            return False
        with self._lock:
            self.counter.add(now_s, joules, self.power)
            self._take_problems(self.counter)
        return True

    def poll_power(self, clock, wall_offset_s=None):
        """Reads power; returns True if it answered.

        Args:
          clock: the monotonic clock.
          wall_offset_s: offset from that clock to the time of the driver's sample buffer; None
            to leave the buffer unread.
        """
        if self.power is None:
            return False
        try:
            now_s, (watts, highest_w) = _timed(self.meter.read_watts, clock)
        except MeterError as error:
            with self._lock:
                self.note(clock(), str(error))
            self.watts = self.highest_w = None
            return False
        self.watts, self.highest_w = watts, highest_w
        samples = self._buffered(now_s, wall_offset_s)
        with self._lock:
            for time_s, sampled in samples or [(now_s, watts)]:
                self.power.add(time_s, sampled)
            self._take_problems(self.power)
        return True

    def poll_state(self, now_s):
        """Reads clocks and throttle reasons, and once per second the values that change slowly.

        Old values of a device that does not answer are dropped.
        """
        if self._failures or now_s - self._slow_state_s >= _SLOW_STATE_S:
            self.state = self.meter.read_state()
            self._slow_state_s = now_s
        else:
            self.state = self.meter.read_state(self.state)

    def answered(self, any_answer):
        """Counts the consecutive polls without an answer."""
        self._failures = 0 if any_answer else self._failures + 1

    def row_watts(self):
        """Returns the watts for the trace: the reading, or the counter's rate since the last row.

        Returns None if neither is known.
        """
        if self.power is not None:
            return self.watts
        reached_s = self.counter.reaches_s
        if reached_s is None:
            return None
        newest, last = (reached_s, self.counter.at(reached_s)), self._row_counter
        self._row_counter = newest
        if last is None or newest[0] <= last[0] or newest[1].seconds <= last[1].seconds:
            return None
        self.watts = (newest[1].joules - last[1].joules) / (newest[1].seconds - last[1].seconds)
        self.highest_w = self.watts
        return self.watts

    def _buffered(self, now_s, wall_offset_s):
        """Returns the new samples of the driver's buffer, or [] to use the reading just taken.

        Samples are used if there is no counter and the averaging window is not known to be long:
        the buffer then holds updates between two polls. Readings and samples are not mixed, since
        the samples come late. A buffer that stops delivering is no longer used.
        """
        if wall_offset_s is None or self.meter.power_window_s is not None:
            return []
        newest_s = self.power.newest_s or now_s - 2
        fresh = [
            (time_s - wall_offset_s, watts)
            for time_s, watts in self.meter.read_samples()
            if newest_s < time_s - wall_offset_s <= now_s
        ]
        return fresh

    def _take_problems(self, curve):
        for time_s, what in curve.problems:
            self.note(time_s, what)
        curve.problems.clear()

    def note(self, time_s, what):
        """Keeps a problem, with its count and its first and last time."""
        if what not in self.problems and len(self.problems) >= _KEPT_PROBLEMS:
            what = "further problems"
        known = self.problems.setdefault(what, {"count": 0, "first_s": time_s, "last_s": time_s})
        known["count"] += 1
        known["last_s"] = time_s


class Sampler:
    """Reads meters and measures the energy of windows.

    Its methods may be called from two threads: `poll` from one, the others from the other. No lock
    is held while a meter is read, so a driver that hangs blocks only `poll`.

    Args:
      meters: the meters to read.
      interval_s: sampling interval in seconds: between rows of the trace, and between regular
        polls.
      clock: the monotonic clock.
      wall_offset_s: unix time minus that clock.
      on_row: called with (time_s, track) for each device at each regular poll, or None.
    """

    def __init__(self, meters, interval_s, clock, wall_offset_s, on_row=None):
        self._lock = threading.Lock()
        self.tracks = {meter.key: Track(meter, interval_s, self._lock) for meter in meters}
        self.interval_s = interval_s
        self._clock, self._wall_offset_s, self._on_row = clock, wall_offset_s, on_row
        self._marks = deque()  # not yet polled for
        self._waiting = {key: (deque(), deque()) for key in self.tracks}  # counter, power
        self._open = []
        self._began_s = None
        self._next_row_s = self._next_power_s = -float("inf")
        self.polled_s = None

    def mark(self):
        """Marks this moment; the devices are polled fast right after it."""
        mark = Mark(self._clock())
        with self._lock:
            self._marks.append(mark)
            for key in self.tracks:
                for waiting in self._waiting[key]:
                    waiting.append(mark)
        return mark

    def open_window(self, name, index=None):
        """Returns a new Window that begins now."""
        window = Window(name, index, self.mark())
        with self._lock:
            self._open.append(window)
        return window

    def close_window(self, window):
        """Ends a window now."""
        with self._lock:
            if window in self._open:
                self._open.remove(window)
        window.end = self.mark()

    def poll(self):
        """Polls what is due; returns the seconds to wait before the next call."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        learning = now_s - self._began_s < _LEARN_FOR_S
        row_due, power_due = now_s >= self._next_row_s, now_s >= self._next_power_s
        fast = self._must_poll_fast(now_s) or learning
        if fast or row_due or power_due:
            for track in self.tracks.values():
                self._poll_track(track, row_due, power_due or learning or fast)
        if row_due:
            self._next_row_s = _next(self._next_row_s, now_s, self.interval_s)
        if power_due:
            interval_s = self._power_interval_s()
            self._next_power_s = _next(self._next_power_s, now_s, interval_s)
            if interval_s >= self.interval_s:  # together with the next row: one poll for both
                self._next_power_s = self._next_row_s
        self._settle()
        self.polled_s = self._clock()
        if fast:
            return _FAST_POLL_S
        if all(track.failing for track in self.tracks.values()):
            return _FAILING_POLL_S
        return max(min(self._next_row_s, self._next_power_s) - self.polled_s, 0.001)

    def settled(self, mark):
        """Whether the value of every device at a mark is known, or will not be known soon."""
        if mark.time_s + _FAST_POLL_FOR_S < (self.polled_s or -float("inf")):
            return True
        return all(
            key in mark.counter or not track.counter or not track.counter.ever_moved
            for key, track in self.tracks.items()
        )

    def reached(self, mark):
        """Whether the curves have passed a mark, except those without new readings."""
        alive_s = self._clock() - _GIVE_UP_S
        return all(
            key in passed or curve is None or (curve.newest_s or 0.0) < alive_s
            for key, track in self.tracks.items()
            for curve, passed in ((track.counter, mark.counter), (track.power, mark.power))
        )

    def amounts(self, key, mark):
        """Returns the counter and power Amounts of a device at a mark; None if it has no meter."""
        track = self.tracks[key]
        counter = power = None
        with self._lock:
            if track.counter is not None:
                counter = mark.counter.get(key) or track.counter.at(mark.time_s)
            if track.power is not None:
                power = track.power.at(mark.time_s, mark.power.get(key))
        return counter, power

    def measure(self, key, window):
        """Returns the energy that one device used in a window that has ended.

        Returns:
          {"counter": part, "power": part}; a part is None if the device has no such meter,
          otherwise {"joules", "seconds", "variance_j2"}, the joules of the measured seconds.
        """
        start_counter, start_power = self.amounts(key, window.start)
        end_counter, end_power = self.amounts(key, window.end)
        power = counter = None
        if end_power is not None:
            variance = self.tracks[key].power.variance_j2(start_power, end_power)
            power = _part(start_power, end_power, variance)
        if end_counter is not None:
            variance = counter_variance_j2(start_counter, end_counter)
            counter = _part(start_counter, end_counter, variance)
        return {"counter": counter, "power": power}

    def _poll_track(self, track, row_due, power_due):
        if track.failing and not row_due:
            return
        answered = track.poll_counter(self._clock)
        if power_due or row_due:
            offset = self._wall_offset_s if not answered else None
            answered = track.poll_power(self._clock, offset) or answered
        track.answered(answered)
        if row_due:
            now_s = self._clock()
            track.poll_state(now_s)
            if self._on_row is not None:
                self._on_row(now_s, track)
        if track.highest_w is not None:
            with self._lock:
                for window in self._open:
                    peaks = window.peak_w
                    peaks[track.meter.key] = max(peaks.get(track.meter.key, 0.0), track.highest_w)

    def _must_poll_fast(self, now_s):
        """Whether a step of a counter after a mark is still expected."""
        if not self._marks:
            return False
        with self._lock:
            while self._marks:
                mark = self._marks[0]
                awaited = any(
                    track.counter is not None and not track.counter.moved_by(mark.time_s)
                    for track in self.tracks.values()
                )
                if awaited and now_s - mark.time_s < _FAST_POLL_FOR_S:
                    return True
                self._marks.popleft()
        return False

    def _power_interval_s(self):
        """Returns half an update period without a counter; with one, the sampling interval."""
        periods = [
            track.power.period_s / 2
            for track in self.tracks.values()
            if track.power is not None and not (track.counter and track.counter.ever_moved)
        ]
        return min([self.interval_s, *(max(each, _FASTEST_POWER_POLL_S) for each in periods)])

    def _settle(self):
        """Evaluates the curves at the marks that they have passed."""
        if not any(any(waiting) for waiting in self._waiting.values()):
            return
        with self._lock:
            for key, track in self.tracks.items():
                counters, powers = self._waiting[key]
                if track.counter is not None:
                    for mark in _passed(track.counter, counters):
                        mark.counter[key] = track.counter.at(mark.time_s)
                if track.power is not None:
                    for mark in _passed(track.power, powers):
                        mark.power[key] = track.power.excerpt(mark.time_s)


def _timed(read, clock):
    """Returns (time of the middle of the call, value).

    Raises:
      MeterError: the call took too long for its value to have a time.
    """
    before_s = clock()
    value = read()
    took_s = clock() - before_s
    if took_s > _SLOW_S:
        raise MeterError(f"the driver took {took_s:.1f} s to answer")
    return before_s + took_s / 2, value


def _passed(curve, waiting):
    """Yields the marks that a curve has passed, and removes them from the queue."""
    reached_s = curve.reaches_s
    while waiting and reached_s is not None and reached_s >= waiting[0].time_s:
        yield waiting.popleft()


def _part(start: Amount, end: Amount, variance_j2):
    return {
        "joules": end.joules - start.joules,
        "seconds": end.seconds - start.seconds,
        "variance_j2": variance_j2,
    }


def _next(due_s, now_s, interval_s):
    """Returns the next multiple after now, so that polls do not drift; late ones are skipped."""
    if due_s == -float("inf"):
        return now_s + interval_s
    missed = max(0, int((now_s - due_s) / interval_s))
    return due_s + (missed + 1) * interval_s
