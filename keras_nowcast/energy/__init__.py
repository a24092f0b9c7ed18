"""The energy of computing, from NVML, RAPL or a marked estimate, with each device counted once.

    from keras_nowcast.energy import EnergyMonitor

docs/energy.md describes what is measured and with what uncertainty.
"""

from keras_nowcast.energy.merge import merge_energy
from keras_nowcast.energy.monitor import Monitor
from keras_nowcast.energy.source import Source, choose_source, first_users
from keras_nowcast.energy.trace import join_traces, trace_path

__all__ = [
    "EnergyMonitor",
    "Monitor",
    "Source",
    "choose_source",
    "first_users",
    "join_traces",
    "merge_energy",
    "trace_path",
]


def __getattr__(name):
    if name == "EnergyMonitor":  # a Keras callback, so Keras is imported only when it is used
        from keras_nowcast.energy.callback import EnergyMonitor

        return EnergyMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
