"""From events to batches: each rank's part of an epoch, read ahead of the training step."""

import atexit
import collections
import concurrent.futures
import contextlib
import ctypes
import hashlib
import itertools
import math
import os
import sys
import threading
import time
import weakref

import numpy as np

from keras_nowcast.data import sevir
from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

POOL_EVENTS = 16  # events whose windows are mixed, which bounds the memory of the shuffle
_MOST_STEPS_AHEAD = 4 * POOL_EVENTS
_ALIGNMENT = 64  # bytes
_MOST_THREADS = 4  # of one process, since a node often runs one process per GPU
_LEAST_PART = 2**20  # bytes; cutting fewer takes less time than handing them to another thread


def epoch_plan(starts, seed, epoch, rank, world_size, batch, shuffle=True, seen=()):
    """Plans one rank's part of an epoch, or of the remainder of an epoch.

    The events are permuted and their windows listed in that order. Each rank takes one of
    world_size contiguous pieces of this list, whose sizes differ by at most one, so that at most
    world_size - 1 events are read by two ranks. Within a rank, windows are mixed over blocks of
    16 events. A piece is distributed over the steps, whose number is the same on all ranks.

    Args:
      starts: for each event, the first frames of its windows.
      seed, epoch: together they determine the order.
      rank, world_size: the rank, and the number of ranks.
      batch: largest number of windows in a step.
      shuffle: False to keep the order of `starts`.
      seen: (world_size, steps) of each job that trained a part of this epoch before, in order;
        the windows of those steps are left out.

    Returns:
      A list of steps, each a list of (event, start); an event is an index of `starts`. The sizes
      of the steps differ by at most one. A step is empty only if this rank has fewer windows than
      there are steps.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(starts)) if shuffle else np.arange(len(starts))
    windows = [(event, start) for event in order.tolist() for start in starts[event]]

    def share(rank, world_size):
        first, last = _bounds(len(windows), world_size)[rank : rank + 2]
        mine = windows[first:last]
        if shuffle:
            mine = _mixed(mine, np.random.default_rng([seed, epoch, rank]))
        steps = steps_per_epoch(len(windows), world_size, batch)
        bounds = itertools.pairwise(_bounds(len(mine), steps)) if steps else ()
        return [mine[begin:end] for begin, end in bounds]

    for earlier_size, steps in seen:
        plans = [share(each, earlier_size)[:steps] for each in range(earlier_size)]
        done = {window for plan in plans for step in plan for window in step}
        windows = [window for window in windows if window not in done]
    return share(rank, world_size)


def steps_per_epoch(windows, world_size, batch):
    """Returns the number of steps in which world_size ranks see all windows once."""
    return -(-windows // (world_size * batch))


def windows_in_steps(windows, world_size, batch, steps):
    """Returns the number of windows in the first `steps` steps of an epoch, over all ranks."""
    of_epoch = steps_per_epoch(windows, world_size, batch)
    if not of_epoch:
        return 0
    least, larger = divmod(windows, world_size)  # `larger` ranks have one window more
    return (world_size - larger) * (least * steps // of_epoch) + larger * (
        (least + 1) * steps // of_epoch
    )


def _bounds(count, parts):
    """Returns the bounds of `parts` parts of `count`, whose sizes differ by at most one."""
    return [count * part // parts for part in range(parts + 1)]


def _mixed(windows, rng):
    mixed, block, events = [], [], set()
    for event, start in windows:
        if event not in events and len(events) == POOL_EVENTS:
            mixed += _permuted(block, rng)
            block, events = [], set()
        block.append((event, start))
        events.add(event)
    return mixed + _permuted(block, rng)


def _permuted(block, rng):
    return [block[i] for i in rng.permutation(len(block))]


_LEAVING = threading.Event()
_PIPELINES = weakref.WeakSet()


@atexit.register
def _stop_reading():
    """Ends reading before the interpreter exits.

    A TensorFlow thread that runs Python code when the interpreter exits never returns. TensorFlow
    then blocks indefinitely when it destroys an iterator that is still open.
    """
    _LEAVING.set()
    for pipeline in list(_PIPELINES):
        if pipeline._working.acquire(timeout=10):
            pipeline._working.release()
    time.sleep(0.05 if _PIPELINES else 0)  # TensorFlow's code around the generator


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory():
    """Lets malloc keep up to 256 MiB of freed memory, in blocks of up to 32 MiB, for reuse.

    An event is several megabytes. If its memory returns to the system when it is freed, the next
    event costs a page fault for every 4 KiB. These faults are most of the reading time on a core
    that also trains. Keeping the memory costs about 300 MB of resident memory. TensorFlow's
    from_generator makes malloc return all but 128 KiB, so this call must follow it. Without glibc,
    it changes nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**28)
        mallopt(_M_MMAP_THRESHOLD, 2**25)


class WindowPipeline:
    """The windows of a list of events as batches of one rank.

    Args:
      events: Events of the training or the validation set.
      grid: pixels along a side of the batches; it divides the size of each event.
      window_stride: frames between the starts of two windows of an event.
      batch_per_replica: largest number of windows in a batch.
      rank, world_size: this process among those that share the windows.
      seed: determines, with the epoch, the order of the windows.
      shuffle: True for another order in each epoch; False for the order of the events.
      endless: True for epoch after epoch without end, False for one pass (default: as `shuffle`).
      max_windows: largest number of windows, from events spread evenly over `events`.
      threads: number of reading threads; by default the available cores, up to 4.
      on_bad_event: called with (event, error) for an unreadable event, whose windows are then left
        out of their batches; None if the error is to end reading.

    Attributes:
      windows: number of windows of an epoch over all ranks.
      samples: number of windows of an epoch on this rank.
      steps: number of steps of an epoch, the same on all ranks.
      error: the exception that ended reading. TensorFlow forwards only its text, inside another
        exception.
      waiting: (time.monotonic(), event) since a batch has been waiting for this event, or None.
      left_out: {(epoch, step): windows}, the number missing in this rank's batches.

    Raises:
      InputError: the grid does not divide the size of an event, or no event is long enough.
    """

    def __init__(
        self,
        events,
        *,
        grid,
        window_stride=sevir.WINDOW_STRIDE,
        batch_per_replica,
        rank=0,
        world_size=1,
        seed=0,
        shuffle=True,
        endless=None,
        max_windows=None,
        threads=None,
        on_bad_event=None,
    ):
        for event in events:
            sevir.block_factor(event, grid)
        self.grid = grid
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_per_replica = batch_per_replica
        self.shuffle = shuffle
        self.endless = shuffle if endless is None else endless
        self.threads = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self.on_bad_event = on_bad_event
        self.events, self.starts = _capped(events, window_stride, max_windows)
        self.windows = sum(map(len, self.starts))
        if not self.windows:
            raise InputError(
                f"`--data` must have events of {FRAMES_IN + FRAMES_OUT} frames or "
                f"more. Received: at most {max(event.frames for event in events)} frames."
            )
        self.steps = steps_per_epoch(self.windows, world_size, batch_per_replica)
        self.samples = sum(map(len, self.plan(0)))
        self.error = None
        self.waiting = None
        self.left_out = {}
        self._working = threading.Lock()
        _PIPELINES.add(self)

    def plan(self, epoch, seen=()):
        """Returns this rank's steps of an epoch, as for epoch_plan."""
        return epoch_plan(
            self.starts,
            self.seed,
            epoch,
            self.rank,
            self.world_size,
            self.batch_per_replica,
            self.shuffle,
            seen,
        )

    def windows_left(self, seen=()):
        """Returns the windows left of an epoch over all ranks; `seen` is as for epoch_plan."""
        left = self.windows
        for world_size, steps in seen:
            left -= windows_in_steps(left, world_size, self.batch_per_replica, steps)
        return left

    def steps_left(self, seen=()):
        """Returns the number of steps in which these ranks train the rest of an epoch."""
        return steps_per_epoch(self.windows_left(seen), self.world_size, self.batch_per_replica)

    def step_samples(self, step, seen=()):
        """Returns the number of windows in a step over all ranks, the same in each epoch."""
        left = self.windows_left(seen)
        until, before = (
            windows_in_steps(left, self.world_size, self.batch_per_replica, each)
            for each in (step + 1, step)
        )
        return until - before

    def fingerprint(self):
        """Returns a short digest of the list of windows."""
        digest = hashlib.sha256()
        for event, starts in zip(self.events, self.starts, strict=True):
            digest.update(f"{event.name} {event.file.name} {event.index} {list(starts)}\n".encode())
        return digest.hexdigest()[:16]

    def dataset(self, first_epoch=0, first_step=0, seen=()):
        """Builds a tf.data.Dataset of batches.

        If endless, it has epoch after epoch and reads across their boundaries; each epoch has
        `steps` elements. Otherwise, it is one pass, which restarts each time it is iterated.

        Args:
          first_epoch, first_step: where to start; nothing before it is read.
          seen: the part of first_epoch that was trained before first_step 0, as in epoch_plan.

        Returns:
          A dataset of (x, y), uint8 codes of shape (b, grid, grid, 13) and (b, grid, grid, 12),
          where b may differ by one between steps.
        """
        import tensorflow as tf

        def signature(frames):
            return tf.TensorSpec((None, self.grid, self.grid, frames), tf.uint8)

        dataset = tf.data.Dataset.from_generator(
            lambda: self.batches(first_epoch, first_step, seen),
            output_signature=(signature(FRAMES_IN), signature(FRAMES_OUT)),
        )
        options = tf.data.Options()
        # There is nothing for TensorFlow to tune here. To end an iterator it also waits for its
        # tuner, which sleeps twice as long each time; for that of a validation, up to the time of
        # the last epoch.
        options.autotune.enabled = False
        return dataset.prefetch(2).with_options(options)

    def batches(self, first_epoch=0, first_step=0, seen=()):
        """Yields the batches of `dataset` as NumPy arrays."""
        keep_freed_memory()  # not earlier, since from_generator has just set the opposite
        executor = concurrent.futures.ThreadPoolExecutor(self.threads, "read-sevir")
        cutter = _Cutter(self.threads)
        steps = self._read_ahead(self._schedule(first_epoch, first_step, seen), executor, cutter)
        try:
            while True:
                with self._working:
                    batch = None if _LEAVING.is_set() else next(steps, None)
                if batch is None:
                    return
                yield batch
        except Exception as error:
            self.error = error
            raise
        finally:
            for each in (executor, cutter.executor):
                each.shutdown(wait=False, cancel_futures=True)

    def _schedule(self, first_epoch, first_step, seen):
        """Yields (epoch, step), windows, and {event: number of windows} of new events, per step.

        New events are those that the epoch needs first in this step. Their number of windows is
        that of this step and all later ones.
        """
        epochs = itertools.count(first_epoch) if self.endless else [first_epoch]
        for epoch in epochs:
            skipped = first_step if epoch == first_epoch else 0
            plan = self.plan(epoch, seen if epoch == first_epoch else ())[skipped:]
            uses = collections.Counter(event for step in plan for event, _ in step)
            for number, step in enumerate(plan, skipped):
                events = {event for event, _ in step if event in uses}
                new = {event: uses.pop(event) for event in sorted(events)}
                yield (epoch, number), step, new

    def _read_ahead(self, schedule, executor, cutter):
        """Yields one batch per step, while the executor reads the events of later steps.

        An event is read once per epoch and released with its last window. Reading ahead is bounded
        by events if a step needs many, and by steps if it needs few.
        """
        ahead = collections.deque()  # steps whose events were requested
        requested = 0  # number of their events
        buffers = _Buffers()
        reading = {}  # (epoch, event): Future of its pixels, and number of windows still to cut
        while True:
            while len(ahead) < 2 or (
                requested < 2 * self.threads and len(ahead) < _MOST_STEPS_AHEAD
            ):
                place, step, events = next(schedule, (None, None, None))
                if step is None:
                    break
                for event, uses in events.items():
                    future = executor.submit(sevir.read_event, self.events[event], self.grid)
                    reading[place[0], event] = [future, uses]
                ahead.append((place, step, len(events)))
                requested += len(events)
            if not ahead:
                return
            place, step, events = ahead.popleft()
            requested -= events
            yield self._batch(place, step, reading, buffers, cutter)

    def _batch(self, place, step, reading, buffers, cutter):
        """Cuts the windows of a step; if there are none, gives one window without a valid pixel.

        Such a batch adds nothing to a loss over valid pixels. With it the rank takes part in the
        step, for which the other ranks wait in the allreduce.
        """
        shape = (max(1, len(step)), self.grid, self.grid)
        x, y = (buffers.take((*shape, frames)) for frames in (FRAMES_IN, FRAMES_OUT))
        windows = []
        for event, start in step:
            entry = reading[place[0], event]
            vil = self._pixels(self.events[event], entry[0])
            if vil is not None:
                windows.append((vil, start))
            entry[1] -= 1
            if entry[1] == 0:
                del reading[place[0], event]
        cutter.cut(windows, x, y)
        count = len(windows)
        if count < len(step):
            self.left_out[place] = len(step) - count
        if not count:
            x[0] = y[0] = MISSING
        return x[: max(1, count)], y[: max(1, count)]

    def _pixels(self, event, future):
        """Waits for an event and returns its pixels, or None if it is unreadable."""
        self.waiting = time.monotonic(), event
        try:
            return future.result()
        except InputError as error:
            if self.on_bad_event is None:
                raise
            self.on_bad_event(event, error)
            return None
        finally:
            self.waiting = None


class _Cutter:
    """Cuts the windows of a batch in several threads.

    They are not those that read, whose queue is long.
    """

    def __init__(self, threads):
        self.executor = concurrent.futures.ThreadPoolExecutor(threads, "cut-windows")
        self._threads = threads

    def cut(self, windows, x, y):
        """Cuts each (vil, start) of a list of windows into x and y, in the order of the list."""

        def cut_part(first):
            for place in range(first, min(first + each, len(windows))):
                sevir.cut_window(*windows[place], (x[place], y[place]))

        each = max(
            1, _LEAST_PART // (x[0].nbytes + y[0].nbytes), math.ceil(len(windows) / self._threads)
        )
        others = [
            self.executor.submit(cut_part, first) for first in range(each, len(windows), each)
        ]
        cut_part(0)
        for other in others:
            other.result()


class _Buffers:
    """Memory for batches, at addresses that TensorFlow can use without a copy.

    The memory of a batch is used again as soon as nothing refers to it, neither an array nor a
    tensor. Fresh memory would cost a page fault for every 4 KiB, which takes longer than to fill
    it.
    """

    def __init__(self):
        self._all = []

    def take(self, shape):
        """Returns a uint8 array with any content."""
        size = math.prod(shape)
        raw = self._free(size + _ALIGNMENT)
        first = -raw.ctypes.data % _ALIGNMENT
        return raw[first : first + size].reshape(shape)

    def _free(self, size):
        for raw in self._all:
            # The list, this loop and the call refer to it, and no view that was given out.
            if raw.size >= size and sys.getrefcount(raw) <= 3:
                return raw
        self._all.append(np.empty(size, np.uint8))
        return self._all[-1]


def _capped(events, stride, max_windows):
    """Returns events and the starts of their windows, up to max_windows windows in total.

    Choice: complete events, spread evenly over the list and so over time, because reading a window
    costs as much as reading its event. Surplus windows of the last event are dropped.
    """
    starts = [sevir.window_starts(event.frames, stride) for event in events]
    if max_windows is None or sum(map(len, starts)) <= max_windows:
        return list(events), starts
    for count in range(1, len(events) + 1):
        chosen = [len(events) * each // count for each in range(count)]
        windows = [(i, start) for i in chosen for start in starts[i]]
        if len(windows) >= max_windows:
            break
    kept = collections.defaultdict(list)
    for i, start in windows[:max_windows]:
        kept[i].append(start)
    return [events[i] for i in kept], list(kept.values())
