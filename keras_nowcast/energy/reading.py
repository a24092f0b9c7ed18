"""What a meter returns."""

from typing import NamedTuple


class MeterError(Exception):
    """A meter has no valid reading this time; the message is the reason."""


class Reading(NamedTuple):
    """The state of a device in addition to its power; None for what is not measured."""

    utilization_percent: float | None = None
    memory_mib: float | None = None
    sm_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: str | None = None
