"""Unreadable events of a run: skipped and counted over all ranks, up to a limit."""

from keras_nowcast.errors import InputError


class UnreadableEvents(InputError):
    """More events are unreadable than `--skip-bad-events` allows; all ranks raise it together."""


class BadEvents:
    """The events that were skipped because they are unreadable; called with each of them.

    The windows of such an event are missing from this rank's batches only. The number of batches
    stays the same on all ranks. An event counts once, no matter how many ranks and epochs read it.

    Args:
      world: the World.
      most: how many may be skipped.
      known: dict {name: reason} that all ranks agree on; new events are added to it.
      say: called on rank 0 with a line for each new event.

    Attributes:
      found: {name: (reason, whether its file exists)} of the events that this rank has found and
        not yet shared with the others.
    """

    def __init__(self, world, most, known, say):
        self._world = world
        self._most = most
        self._known = known
        self._say = say
        self.found = {}
        self._any_gone = False

    def __call__(self, event, error):
        """Adds an Event and the error of reading it; called by the thread that reads."""
        if event.name not in self._known:
            self.found[event.name] = str(error), event.file.is_file()

    def agree(self):
        """Shares the new events of each rank with all ranks; all call it together.

        Raises:
          UnreadableEvents: there are more than may be skipped.
        """
        mine = dict(self.found)
        for found in self._world.gather(mine):
            for name, (reason, is_there) in found.items():
                if name not in self._known:
                    self._known[name] = reason
                    self._any_gone |= not is_there
                    self._refuse_or_say(reason)
        for name in mine:
            del self.found[name]

    def _refuse_or_say(self, reason):
        count = len(self._known)
        if count > self._most:
            # If a file is missing, the data set is a different one, which --resume refuses.
            or_skip = (
                ""
                if self._any_gone
                else f", or skip them with --resume --skip-bad-events {max(count, 2 * self._most)}"
            )
            raise UnreadableEvents(
                "`--data` must have no more unreadable events than `--skip-bad-events` allows, "
                f"{self._most}. Received: {count}, most recently: {reason} Restore the file and "
                f"rerun with --resume{or_skip}."
            )
        self._say(f"skipped unreadable event, {count} of at most {self._most}: {reason}")
