"""Blocks of training steps with and without the energy monitor, in one process."""

import random
import time

import numpy as np

CUT = 0.2  # fraction of the ratios at each end that a mean leaves out


class Held:
    """A running Monitor whose thread waits until it is released.

    Args:
      monitor: the Monitor, or None for no monitor.

    Attributes:
      looks: number of polls so far.
    """

    def __init__(self, monitor):
        self._monitor, self._on, self.looks = monitor, False, 0
        if monitor is not None:
            self._poll = monitor._sampler.poll
            monitor._sampler.poll = self._poll_if_on
            self._clock = time.pthread_getcpuclockid(monitor._thread.ident)

    def _poll_if_on(self):
        if not self._on:
            return 3600.0
        self.looks += 1
        return self._poll()

    def switch(self, on):
        """Releases the thread if `on` is true, and pauses it otherwise."""
        self._on = on
        if self._monitor is not None:
            self._monitor._wake.put(None)

    def cpu_seconds(self):
        """Returns the CPU time that the thread has used."""
        return 0.0 if self._monitor is None else time.clock_gettime(self._clock)


def run_block(step, steps, held, on):
    """Runs one block.

    One step that does not count comes first: in it the thread wakes or pauses.

    Returns:
      float64 array: wall-clock seconds, CPU seconds of the process, CPU seconds of the monitor's
      thread, and its polls.
    """
    held.switch(on)
    step()
    before = (time.perf_counter(), time.process_time(), held.cpu_seconds(), held.looks)
    for _ in range(steps):
        step()
    after = (time.perf_counter(), time.process_time(), held.cpu_seconds(), held.looks)
    return np.subtract(after, before)


def run_four(step, steps, held):
    """Runs four blocks and returns {on: sum of the arrays of its two blocks}."""
    order = random.choice([(True, False, False, True), (False, True, True, False)])
    sums = {True: np.zeros(4), False: np.zeros(4)}
    for on in order:
        sums[on] += run_block(step, steps, held, on)
    held.switch(False)
    return sums


def trimmed_mean(ratios):
    """Returns the mean along the last axis, without the fraction CUT at each end."""
    cut = int(CUT * ratios.shape[-1])
    return np.sort(ratios)[..., cut : ratios.shape[-1] - cut].mean(-1)


def with_error(costs):
    """Returns (trimmed mean, its standard error from 4,000 bootstrap resamples)."""
    drawn = np.random.default_rng(0).integers(len(costs), size=(4000, len(costs)))
    return trimmed_mean(costs), trimmed_mean(costs[drawn]).std()
