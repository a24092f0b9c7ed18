"""The energy of named intervals, measured by a thread while the work runs."""

import contextlib
import queue
import threading
import time

from keras_nowcast.energy import estimate
from keras_nowcast.energy.merge import joules_of, merge_energy
from keras_nowcast.energy.sampler import Sampler
from keras_nowcast.energy.source import Source, choose_source
from keras_nowcast.energy.trace import PowerTrace

_WAIT_FOR_STEP_S = 0.25  # for the step of a counter after the end of a window
_WAIT_FOR_LAST_S = 2.0  # at the very end, since a power sensor may average over a second
_STALLED_S = 1.0  # without a poll, after which the driver counts as hanging
_STALE_S = 3.0


class Monitor:
    """Measures the energy of any work. EnergyMonitor is also a Keras callback.

        with Monitor() as monitor:
            work()
        print(monitor.joules, monitor.record["coverage"])

    or, with named windows,

        monitor = Monitor(idle_s=3).start()
        with monitor.window("epoch", 0):
            work()
        record = merge_energy([monitor.stop()])

    A thread polls the sensors. The caller's thread never waits for a driver, except for a limited
    time at the end of a window whose result it requests. A sensor that fails lowers `coverage` and
    leaves a reason; it does not raise an exception.

    Args:
      source: "auto", "nvml", "rapl", "estimate", "none", or what `choose_source` returned.
      interval_s: sampling interval in seconds. A power sensor without a counter that updates more
        often is polled more often.
      idle_s: seconds of idle baseline before the work, for which `start` waits; 0 for none. An
        estimate has none.
      synchronize: called before every boundary of a window, to wait until the device has finished
        all queued work; None if the work itself waits.
      trace_path: power.csv to append to; None for no trace.
      zero_unix_s: unix time that is time 0 of the trace and the windows; None for now. All
        processes of a job get the same.
      local_rank, watts_per_core: for `choose_source`.

    Raises:
      InputError: a source that is requested by name cannot be used.
    """

    def __init__(
        self,
        source="auto",
        *,
        interval_s=0.1,
        idle_s=2.0,
        synchronize=None,
        trace_path=None,
        zero_unix_s=None,
        local_rank=None,
        watts_per_core=None,
    ):
        super().__init__()  # Keras' Callback, in EnergyMonitor
        self._asked, self._local_rank, self._watts_per_core = source, local_rank, watts_per_core
        self._interval_s, self._idle_s = interval_s, idle_s
        self._synchronize = synchronize
        self._trace_path, self._zero_unix_s = trace_path, zero_unix_s
        self._sampler = self._thread = self._trace = None
        self.source = source if isinstance(source, Source) else None
        self.record = None

    def start(self):
        """Starts measuring, waits for the idle baseline, and returns the monitor."""
        if self._sampler is not None:
            self.stop()
        if self.source is None:
            self.source = choose_source(
                self._asked, local_rank=self._local_rank, watts_per_core=self._watts_per_core
            )
        self.record, self._windows = None, []
        zero_unix_s = time.time() if self._zero_unix_s is None else self._zero_unix_s
        wall_offset_s = time.time() - time.monotonic()
        self._zero_s = zero_unix_s - wall_offset_s  # on the monotonic clock
        if self._trace_path is not None and self.source.meters:
            self._trace = PowerTrace(self._trace_path, zero_unix_s)
        self._sampler = Sampler(
            self.source.meters, self._interval_s, time.monotonic, wall_offset_s, self._write_row
        )
        self._stopping, self._wake = threading.Event(), queue.SimpleQueue()
        if self.source.meters:
            self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
            self._thread.start()
            # An estimate is of CPU time, which is zero before the work, whatever the idle power is.
            if self._idle_s > 0 and self.source.kind != estimate.SOURCE:
                with self.window("idle"):
                    time.sleep(self._idle_s)
        return self

    def stop(self):
        """Stops measuring; windows that are still open end now.

        Returns:
          `results()`, the same if called twice. `record` has the record of this process alone.
        """
        if self._sampler is None:
            return self.results()
        for window in [each for each in self._windows if each.end is None]:
            self._close(window)
        if self._thread is not None:
            if self._windows:
                self._wait(lambda: self._sampler.reached(self._windows[-1].end), _WAIT_FOR_LAST_S)
            self._stopping.set()
            self._wake.put(None)
            self._thread.join(timeout=_STALLED_S)  # it stays if the driver hangs; it is a daemon
        if self._trace is not None:
            self._trace.close()
        self._result = self._collect()
        self._sampler = self._thread = self._trace = None
        self.record = merge_energy([self._result], window=self._total_window())
        return self._result

    def results(self):
        """Returns the measurements of the windows that have ended; measuring continues.

        Waits up to a quarter of a second for the counters to step past the end of the last window.

        Returns:
          Values for `merge_energy` that JSON, and so a checkpoint, can keep.
        """
        if self._sampler is None:
            return self._result
        ends = [window.end for window in self._windows if window.end is not None]
        if ends:
            last = max(ends, key=lambda mark: mark.time_s)
            self._wait(lambda: self._sampler.settled(last), _WAIT_FOR_STEP_S)
        return self._collect()

    def begin(self, name, index=None):
        """Starts a window, after waiting for the device."""
        self._wait_for_device()
        window = self._sampler.open_window(name, index)
        self._windows.append(window)
        self._wake.put(None)
        return window

    def end(self, name):
        """Ends the last window of that name, after waiting for the device."""
        self._wait_for_device()
        for window in reversed(self._windows):
            if window.name == name and window.end is None:
                self._close(window)
                return

    @contextlib.contextmanager
    def window(self, name, index=None):
        """Measures the body as a named window."""
        self.begin(name, index)
        try:
            yield
        finally:
            self.end(name)

    def window_joules(self, name, index=None):
        """Returns the joules of the ended windows of that name and index on this process's devices.

        Follows the rule of the record with what is known so far, and waits as `results` does. A
        power sensor that averages over a second may not have reached the end yet; the record,
        which is made later, then includes the rest.

        Returns:
          Joules, or None if none of it was measured.
        """
        return joules_of([self.results()], name, index)

    @property
    def watts(self):
        """The power of this process's devices by the last readings, for display, or None."""
        if self._sampler is None or self._hangs(_STALE_S):
            return None
        known = [track.watts for track in self._sampler.tracks.values() if track.watts is not None]
        return sum(known) if known else None

    @property
    def joules(self):
        """The measured joules, after `stop`; None if nothing was measured."""
        return None if self.record is None else self.record["joules"]

    def __enter__(self):
        self.start()
        self.begin("run")
        return self

    def __exit__(self, *_):
        self.stop()

    def _run(self):
        while not self._stopping.is_set():
            delay_s = self._sampler.poll()
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=delay_s)

    def _write_row(self, monotonic_s, track):
        watts = track.row_watts()
        if self._trace is not None:
            self._trace.add(monotonic_s, self.source.host, track.meter.key, watts, track.state)

    def _close(self, window):
        self._sampler.close_window(window)
        self._wake.put(None)

    def _wait_for_device(self):
        if self._synchronize is not None:
            self._synchronize()

    def _wait(self, until, longest_s):
        """Waits until a condition holds or the time is up, and not at all if the driver hangs."""
        give_up_s = time.monotonic() + longest_s
        while not until() and time.monotonic() < give_up_s and not self._hangs():
            time.sleep(0.002)

    def _hangs(self, for_s=_STALLED_S):
        polled_s = self._sampler.polled_s
        return polled_s is None or time.monotonic() - polled_s > for_s + self._interval_s

    def _total_window(self):
        names = {window.name for window in self._windows}
        return "run" if "run" in names else "epoch"

    def _collect(self):
        trace_problem = self._trace.problem if self._trace is not None else None
        return {
            "source": self.source.kind,
            "reason": self.source.reason,
            "host": self.source.host,
            "not_included": list(self.source.not_included),
            "trace_problem": trace_problem,
            "devices": [self._collect_device(track) for track in self._sampler.tracks.values()],
        }

    def _collect_device(self, track):
        meter, counter, power = track.meter, track.counter, track.power
        problems = {
            what: {
                "count": known["count"],
                "first_s": known["first_s"] - self._zero_s,
                "last_s": known["last_s"] - self._zero_s,
            }
            for what, known in list(track.problems.items())
        }
        if self._hangs():
            since_s = (self._sampler.polled_s or self._zero_s) - self._zero_s
            now_s = time.monotonic() - self._zero_s
            problems["the driver does not answer"] = {
                "count": 1,
                "first_s": since_s,
                "last_s": now_s,
            }
        return {
            "uuid": meter.key,
            "name": meter.name,
            "counter_source": meter.counter_source,
            "power_source": meter.power_source,
            "calibration_percent": meter.calibration_percent,
            "note": meter.note,
            "scope": meter.scope,
            "counter_period_s": counter.step_s if counter and counter.ever_moved else None,
            "power_period_s": power.updates.period_s if power else None,
            "power_window_s": power.window_s if power and power.newest_s else None,
            "problems": problems,
            "windows": [
                self._collect_window(meter.key, each)
                for each in self._windows
                if each.end is not None
            ],
        }

    def _collect_window(self, key, window):
        start_s, end_s = window.start.time_s, window.end.time_s
        return {
            "name": window.name,
            "index": window.index,
            "start_s": start_s - self._zero_s,
            "end_s": end_s - self._zero_s,
            "peak_w": window.peak_w.get(key),
            **self._sampler.measure(key, window),
        }
