"""What each step reports to the host, read late, and the requests that travel with the steps.

A GPU computes a step while its host starts the next one, unless the host waits for a number of the
step. Therefore a thread reads the report of each step, and the host looks at it LAG steps later,
after the same step on every rank. A loss that is not finite, or a request, thus ends or saves a run
on all ranks together, up to LAG steps after the step that reported it. On a CPU a step has ended
when its function returns, so its report is looked at at once.
"""

import collections
import concurrent.futures
import math

import tensorflow as tf

LAG = 2  # steps on a GPU: one that it computes, and one that waits for it

# What a rank can ask of all ranks. The first is the device's: the loss of its step is not finite.
NAMES = ("fail", "stop", "save", "bad event")


def lag_of_device():
    """Returns the steps by which reports are read late on this process's device."""
    return LAG if tf.config.get_visible_devices("GPU") else 0


class Reports:
    """The reports of the steps, and the requests of this rank.

    All ranks look after the same steps, so all see the same requests at the same step.

    Args:
      world: the World; in a world of one, a request is seen at once.
      lag: after how many further steps a report is looked at, the same on all ranks.

    Attributes:
      losses: loss of this rank in each training step that was looked at; a list to be cleared.
      steps_since_failure: steps that followed the first one with a loss that is not finite on this
        rank, when that was seen; None if there was none.
    """

    def __init__(self, world, lag=0):
        self._world = world
        self._lag = lag
        self._asked = set()
        none = [0.0] * (len(NAMES) - 1)
        self._mine = None if world.size == 1 else tf.Variable(none, trainable=False)
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "read-reports") if lag else None
        self._pending = collections.deque()
        self._added = 0
        self._agreed = set()
        self._handled_at = dict.fromkeys(NAMES, 0)
        self.losses = []
        self.steps_since_failure = None

    def share(self, loss, count):
        """Returns the mean of a count over all ranks, and the report; within the step's graph.

        This is the only collective of a step except those of its gradients.

        Args:
          loss: float32 scalar of this rank; 0 if there is none.
          count: float32 scalar of this rank.

        Returns:
          (count, report): float32 scalar, and a float32 vector for `add`.
        """
        failed = tf.cast(~tf.math.is_finite(loss), tf.float32)
        if self._world.size == 1:
            return count, tf.stack([loss, failed])
        shared = self._world.average(tf.concat([[count, failed], self._mine], axis=0))
        return shared[0], tf.concat([[loss], shared[1:]], axis=0)

    def add(self, report, trains=True):
        """Takes the report of the step that was just started; if it may lag, a thread reads it.

        Args:
          report: float32 vector, as `share` returns it.
          trains: False for a validation step, whose loss is not one.
        """
        self._added += 1
        read = self._reader.submit(report.numpy).result if self._reader else report.numpy
        self._pending.append((self._added, read, trains))

    def look(self, at_all=False):
        """Reads the reports of the steps up to `lag` steps ago, or of all; waits for them."""
        while self._pending and (at_all or self._added - self._pending[0][0] >= self._lag):
            number, read, trains = self._pending.popleft()
            loss, *flags = read().tolist()
            if trains:
                self.losses.append(loss)
            if not math.isfinite(loss) and self.steps_since_failure is None:
                self.steps_since_failure = self._added - number
            for name, flag in zip(NAMES, flags, strict=False):
                if flag > 0 and number > self._handled_at[name]:
                    self._agreed.add(name)

    def ask(self, name):
        """Asks all ranks for one of NAMES."""
        if name not in self._asked:
            self._asked.add(name)
            self._set(name, 1.0)

    def handled(self, name):
        """Ends a request on all ranks, which call it after the same step.

        The steps that were started before still carry it, and it does not count in these.
        """
        self._agreed.discard(name)
        self._handled_at[name] = self._added
        if name in self._asked:
            self._asked.discard(name)
            self._set(name, 0.0)

    def _set(self, name, value):
        if self._mine is not None:
            self._mine[NAMES.index(name) - 1].assign(value)

    def agreed(self):
        """Returns the names that any rank asks for; the same on all ranks after the same step."""
        return self._agreed | self._asked if self._world.size == 1 else set(self._agreed)
