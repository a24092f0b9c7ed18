"""What Linux reports about this machine: processor, bfloat16 instructions, peak memory."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86: the first two; Arm: the last


def cpu_has_bfloat16(cpuinfo=CPUINFO):
    """Returns True if the CPU multiplies bfloat16, and False if that is unknown."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return bool(BFLOAT16_FLAGS & set(next(flags, "").split()))


def cpu_model(cpuinfo=CPUINFO):
    """Returns the name of the processor as Linux reports it, or None if it does not."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def peak_rss_bytes():
    """Returns the peak resident memory of this process in bytes, or None if it is unknown.

    Choice: not ru_maxrss of getrusage, which survives exec, so that the child of a large process
    starts with the peak of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return kib and int(kib) * 1024
