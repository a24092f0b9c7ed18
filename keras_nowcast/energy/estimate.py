"""Energy as assumed power times measured CPU time, for a machine without sensors.

It is an estimate, is marked as one wherever it appears, and is never chosen by default.
"""

import re
import statistics
import time

from keras_nowcast import machine
from keras_nowcast.energy.reading import Reading
from keras_nowcast.errors import InputError

SOURCE = "estimate"

# Thermal design power in watts, and cores, of some processors of training machines. Design power is
# the heat that the cooling must remove under a sustained load, not the momentary power.
# Source: Intel's ARK and AMD's table of server processors (default TDP). Each row was checked in
# November 2026 against the copies of both in mlco2/codecarbon (cpu_dataset_builder).
_DESIGN_WATTS_AND_CORES = {
    "E5-2680 v4": (120, 14),
    "E5-2698 v4": (135, 20),
    "Gold 6148": (150, 20),
    "Gold 6248": (150, 20),
    "Platinum 8168": (205, 24),
    "Platinum 8280": (205, 28),
    "Platinum 8380": (270, 40),
    "Platinum 8480": (350, 56),
    "EPYC 7402": (180, 24),
    "EPYC 7742": (225, 64),
    "EPYC 7763": (280, 64),
    "EPYC 9654": (360, 96),
}


class CpuTimeMeter:
    """Assumed watts per core times the CPU time (user and system) of this process.

    It does not include other processes, idle cores, memory and disks.
    """

    kind = "estimate"
    counter_source, power_source = SOURCE, None
    calibration_percent = None  # nothing was measured
    power_window_s, counter_step_s = None, 0.001  # it changes continuously
    scope = None

    def __init__(self, watts_per_core, local_rank=None, cpu_seconds=time.process_time):
        # Each process of the host has its own CPU time.
        self.key = f"estimate: CPU time of process {local_rank or 0}"
        self.name = f"CPU time at {watts_per_core:g} W per core"
        self.note = f"an estimate: CPU time times an assumed {watts_per_core:g} W per core"
        self._watts, self._cpu_seconds = watts_per_core, cpu_seconds

    def read_counter(self):
        """Returns the estimated joules since the process started."""
        return self._watts * self._cpu_seconds()

    def read_state(self, slow=None):
        """Returns an empty Reading."""
        return Reading()


def is_in_table(cpuinfo=machine.CPUINFO):
    """Returns True if the design power of this processor is known."""
    return _in_table(machine.cpu_model(cpuinfo)) is not None


def _in_table(model):
    for part, (watts, cores) in _DESIGN_WATTS_AND_CORES.items():
        if model is not None and re.search(rf"\b{part}\b", model, re.IGNORECASE):
            return watts / cores
    return None


def stated_watts_per_core(cpuinfo=machine.CPUINFO, or_median=False):
    """Returns the design power per core, in watts, of this processor, from a small table.

    Args:
      cpuinfo: the file that names the processor.
      or_median: True for the median of the table if the processor is not in it. A ratio of two
        estimates on one processor does not depend on the assumed power.

    Raises:
      InputError: the processor is not in the table, and `or_median` is False.
    """
    model = machine.cpu_model(cpuinfo)
    per_core = _in_table(model)
    if per_core is not None:
        return per_core
    if or_median:
        return statistics.median(watts / cores for watts, cores in _DESIGN_WATTS_AND_CORES.values())
    raise InputError(
        f"`--power-source` estimate must know the power of this processor, which is not in the "
        f"table. Received: {model or 'an unknown processor'}; state it with `--watts-per-core`."
    )
