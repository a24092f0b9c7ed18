"""What a meter hands on."""

from typing import NamedTuple


class MeterError(Exception):
    """A meter has no figure this time; the message is the reason."""


class Reading(NamedTuple):
    """The state of a device beside its power; None where it is not measured."""

    utilization_percent: float | None = None
    memory_mib: float | None = None
    sm_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: str | None = None
