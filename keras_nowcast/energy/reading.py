"""What a meter hands on."""

from dataclasses import dataclass


class MeterError(Exception):
    """A meter has no figure this time; the message is the reason."""


@dataclass(frozen=True)
class Reading:
    """The state of a device beside its power; None where it is not measured."""

    utilization_percent: float | None = None
    memory_mib: float | None = None
    sm_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: str | None = None
