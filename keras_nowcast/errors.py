"""The ways in which work ends other than by finishing."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the argument in backticks, the rule, `Received:`, what to do.
    """


class Interrupted(Exception):
    """A signal ended the work; everything needed to go on was saved first."""


class TrainingFailed(RuntimeError):
    """The run cannot go on (a loss that is not a number, say); its record says why."""
