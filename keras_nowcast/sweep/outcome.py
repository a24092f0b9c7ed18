"""What became of a cell, read from its folder and from how its process ended.

A cell that fails is a result: its folder holds a record.json with the status failed and the
reason, whether its process wrote one or died without. When a rank ends the job, rank 0 writes one
that names the rank; the sweep that attends then writes the kind of failure into it. If no sweep was
left to do so, the cell was cut short together with its sweep.
"""

import re
from pathlib import Path

from keras_nowcast import schema
from keras_nowcast.records import RunFolder
from keras_nowcast.sweep.cells import DEFAULTS

NEW, COMPLETED, INTERRUPTED, FAILED = "new", "completed", "interrupted", "failed"
RUNNING = "running"
TIMEOUT = "timeout"
VMSTAT = Path("/proc/vmstat")

_LINES_KEPT = 20
# What TensorFlow, Python, C++ and the C library say when memory cannot be had.
_NO_MEMORY = re.compile(
    r"ResourceExhausted|RESOURCE_EXHAUSTED|OOM when allocating|MemoryError|std::bad_alloc"
    r"|Cannot allocate memory|CUDA_ERROR_OUT_OF_MEMORY|ran out of memory"
)
# What horovodrun and mpirun say of a rank that SIGKILL ended.
_RANK_KILLED = re.compile(r"Exit code: -9\b|exited on signal 9\b")
_ERROR = re.compile(r"(?:^|>:?\s*)error: (.+)", re.MULTILINE)
# The last line of a run that cannot go on; the watchdog's names the rank.
_FAILED_LINE = re.compile(r"(?:^|>:?\s*)failed: (.+)", re.MULTILINE)
_RANK = re.compile(r"rank \d+ on \S+ ")  # how the watchdog's reason begins


def state(folder):
    """Returns the state of the cell in a folder that nobody runs now, and why, or None.

    A run without a record, or whose record says interrupted, was cut short and can go on; likewise
    one that a rank ended when no sweep attended it.
    """
    run = RunFolder(folder)
    record = run.read_record()
    if record is not None:
        status = INTERRUPTED if ended_by_a_rank(record) else record["status"]
        return status, record.get("status_reason")
    if (folder / "config.json").exists():
        return INTERRUPTED, "its process ended without a record"
    return NEW, None


def state_now(folder):
    """Returns the state of the cell in a folder that somebody may run now, in a word."""
    return RUNNING if RunFolder(folder).is_running() else state(folder)[0]


def ended_by_a_rank(record):
    """Returns whether a record, None without one, is as rank 0 leaves it when a rank is lost."""
    if record is None or record["status"] != FAILED:
        return False
    return _RANK.match(record.get("status_reason") or "") is not None


def version_of_record(folder):
    """Returns what differs after record.json was written anew; None where there is none."""
    try:
        status = (folder / "record.json").stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def oom_kills():
    """Returns how often this kernel has killed a process for want of memory; None if not told."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def reason_of_failure(ended, timeout_s, oom_kills_before, oom_kills_after):
    """Returns why a process failed that did not tell: its kind, a colon, what is known.

    Args:
      ended: the Ended of launch.attend.
      timeout_s: the time it was given.
      oom_kills_before, oom_kills_after: what `oom_kills` returned around its life.
    """
    if ended.timed_out:
        return f"{TIMEOUT}: stopped after {timeout_s / 60:g} minutes"
    told = _FAILED_LINE.search(ended.printed)
    if ended.status in (-9, 137) or _RANK_KILLED.search(ended.printed):
        rank = told and _RANK.match(told[1])
        who = f"; {rank[0].strip()}" if rank else ""
        return _reason_of_kill(oom_kills_before, oom_kills_after) + who
    lines = ended.printed.splitlines()
    for line in lines:
        if _NO_MEMORY.search(line):
            return f"out of memory: {line.strip()[:300]}"
    error = _ERROR.search(ended.printed)
    if error:
        return f"refused: {error[1].strip()}"
    if told:
        return f"crash: {told[1].strip()[:300]}"
    how = f"signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"crash: {how}; {last[:300]}"


def _reason_of_kill(oom_kills_before, oom_kills_after):
    if oom_kills_before is None or oom_kills_after is None:
        return (
            "killed: by SIGKILL, as the kernel does when memory runs out; this system does not "
            "tell whether it did"
        )
    if oom_kills_after > oom_kills_before:
        return "out of memory: killed (SIGKILL) while the kernel ended processes to free memory"
    return "killed: by SIGKILL from outside; the kernel ended no process to free memory"


def write_failure(folder, placed, reason, printed="", measured=False):
    """Writes the record of a cell that failed.

    Args:
      folder: Path of the cell's folder.
      placed: the PlacedCell.
      reason: why, in one line.
      printed: what its process printed; the last lines are kept.
      measured: whether record.json holds what the run itself measured, which is kept then.
    """
    run = RunFolder(folder)
    record = run.read_record() if measured else _empty_record(run, placed)
    last = [line for line in printed.splitlines() if line.strip()][-_LINES_KEPT:]
    run.write_record({**record, "status": FAILED, "status_reason": reason, "last_lines": last})


def _empty_record(run, placed):
    """Returns a record of all parts: what is counted and known, all else null with the reason."""
    why = "it was not started" if placed.refusal else "the run ended without telling"
    record = schema.empty_record(why) | {"config": _config(run, placed)}
    environment = {"world_size": placed.cell.processes} | (run.read_environment() or {})
    schema.fill(record["environment"], **environment)
    training = {"windows_per_epoch": placed.windows[0], "epochs": len(run.read_epochs())}
    schema.fill(record["training"], **training)
    if placed.refusal is None:
        schema.fill(record["model"], **placed.model_record())
    return record


def _config(run, placed):
    """Returns the fields of the config as the run stored them, else as the sweep gives them."""
    asked = {name: placed.cell.value(name) for name in DEFAULTS}
    return run.stored_config() or {**asked, "run_dir": str(run.path)}
