"""Events that cannot be read while a run trains: counted over all ranks, up to a limit."""

from keras_nowcast.errors import InputError


class UnreadableEvents(InputError):
    """More events cannot be read than the run may leave out; all ranks raise it together."""


class BadEvents:
    """The events that were left out because they cannot be read; called with each.

    The windows of such an event are missing in this rank's batches only, which stay as many as on
    the other ranks. An event counts once, however many ranks and epochs meet it.

    Args:
      world: the World.
      most: how many may be left out.
      known: dict {name: reason} that all ranks agree on; it is added to.
      say: called on rank 0 with a line for each new one.

    Attributes:
      found: {name: (reason, whether its file is there)} of those that this rank has met and the
        others do not know of yet.
    """

    def __init__(self, world, most, known, say):
        self._world = world
        self._most = most
        self._known = known
        self._say = say
        self.found = {}
        self._any_gone = False

    def __call__(self, event, error):
        """Notes an Event and why it cannot be read; called by the thread that reads."""
        if event.name not in self._known:
            self.found[event.name] = str(error), event.file.is_file()

    def agree(self):
        """Tells all ranks what each has found; all call it together.

        Raises:
          UnreadableEvents: there are more than may be left out.
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
            # Without a file that is gone the data set is another one, which --resume refuses.
            or_without = (
                ""
                if self._any_gone
                else (
                    f", or with --resume --skip-bad-events {max(count, 2 * self._most)} leave such "
                    "events out"
                )
            )
            raise UnreadableEvents(
                f"`--data` has events that cannot be read; {self._most} may be. Received: {count}, "
                f"the last: {reason} Put the file back and go on with --resume{or_without}."
            )
        self._say(f"left out, {count} of at most {self._most}: {reason}")
