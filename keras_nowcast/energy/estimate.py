"""Energy from a stated power, times measured CPU time: for a machine without any sensor.

It is an estimate, is called one wherever it shows, and is never chosen unasked.
"""

import re
import time

from keras_nowcast import machine
from keras_nowcast.energy.reading import Reading
from keras_nowcast.errors import InputError

SOURCE = "estimate"

# Thermal design power and cores of some processors of training machines. Design power is what the
# cooling must carry off under a sustained load, not what is drawn at any moment.
# Source: Intel's ARK and AMD's table of server processors (default TDP), every row checked in
# November 2026 against the copies of both that mlco2/codecarbon keeps (cpu_dataset_builder).
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
    """Stated watts of a core, times the CPU time (user and system) this process has used.

    What other processes use, idle cores, memory and disks are not in it.
    """

    kind = "estimate"
    counter_source, power_source = SOURCE, None
    calibration_percent = None  # nobody measured anything
    power_window_s, counter_step_s = None, 0.001  # in fact at once

    def __init__(self, watts_per_core, local_rank=None, cpu_seconds=time.process_time):
        # Each process of the host has a CPU time of its own.
        self.key = f"estimate: CPU time of process {local_rank or 0}"
        self.name = f"CPU time at {watts_per_core:g} W a core"
        self.note = f"an estimate: CPU time times a stated {watts_per_core:g} W a core"
        self._watts, self._cpu_seconds = watts_per_core, cpu_seconds

    def read_counter(self):
        """Returns joules since the process began, by the estimate."""
        return self._watts * self._cpu_seconds()

    def read_state(self, slow=None):
        """Returns an empty Reading."""
        return Reading()


def stated_watts_per_core(cpuinfo=machine.CPUINFO):
    """Returns the design power of this machine's processor, per core, from a small table.

    Raises:
      InputError: the processor is not in the table.
    """
    model = machine.cpu_model(cpuinfo)
    for part, (watts, cores) in _DESIGN_WATTS_AND_CORES.items():
        if model is not None and re.search(rf"\b{part}\b", model, re.IGNORECASE):
            return watts / cores
    raise InputError(
        f"`--power-source` estimate needs the power of this processor, which no table here has. "
        f"Received: {model or 'an unknown processor'}. State it with `--watts-per-core`."
    )
