"""What Linux reports about this machine: processor, bfloat16 instructions, peak memory."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86: the first two; Arm: the last


def cpu_has_bfloat16(cpuinfo=CPUINFO):
    """Whether the CPU multiplies bfloat16; False where the system does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return bool(BFLOAT16_FLAGS & set(next(flags, "").split()))


def cpu_model():
    """Returns the processor's name as Linux gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def peak_rss_bytes():
    """Returns the largest resident memory this process has had, None where Linux does not tell.

    Not getrusage's ru_maxrss: that one survives exec, so that a child of a large process begins
    with its parent's peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return kib and int(kib) * 1024
