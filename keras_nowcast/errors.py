"""The exceptions that end work early: bad input, an interruption, a failed training."""


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one line: the argument in backticks, the rule, `Received:`, the remedy.
    """


class Interrupted(Exception):
    """A signal ended the work; everything that resuming needs was saved first."""


class TrainingFailed(RuntimeError):
    """The run cannot continue, for example because a loss is NaN; its record states why."""
