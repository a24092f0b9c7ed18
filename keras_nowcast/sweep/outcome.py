"""The outcome of a cell, from its folder and from how its process ended.

A failed cell is a result: its folder has a record.json with the status `failed` and the reason,
even if its process died without writing one. If a lost rank ends the job, rank 0 writes a record
that names the rank, and the sweep that runs the cell then adds the kind of failure. If the record
has no kind, the sweep was lost too, and the cell counts as interrupted.
"""

import re
from pathlib import Path

from keras_nowcast import records
from keras_nowcast.checked import NewerVersion, OddFile
from keras_nowcast.records import RunFolder
from keras_nowcast.sweep.cells import DEFAULTS

NEW, COMPLETED, INTERRUPTED, FAILED = "new", "completed", "interrupted", "failed"
RUNNING = "running"
TIMEOUT = "timeout"
VMSTAT = Path("/proc/vmstat")

_LINES_KEPT = 20
# Messages of TensorFlow, Python, C++, the C library and the watchdog if memory cannot be allocated.
_NO_MEMORY = re.compile(
    r"ResourceExhausted|RESOURCE_EXHAUSTED|OOM when allocating|MemoryError|std::bad_alloc"
    r"|Cannot allocate memory|CUDA_ERROR_OUT_OF_MEMORY|ran out of memory"
)
# Messages of horovodrun and mpirun about a rank that SIGKILL ended.
_RANK_KILLED = re.compile(r"Exit code: (?:-9|137)\b|exited on signal 9\b")
_ERROR = re.compile(r"(?:^|>:?\s*)error: (.+)", re.MULTILINE)
# The last line of a run that cannot continue; the line of the watchdog names the rank.
_FAILED_LINE = re.compile(r"(?:^|>:?\s*)failed: (.+)", re.MULTILINE)
_RANK = re.compile(r"rank \d+ on \S+ ")  # beginning of the watchdog's reason


def state(folder):
    """Returns (state, reason) of the cell in a folder that no process is running.

    A run is interrupted, and can be resumed, in three cases: it has no record, its record has the
    status `interrupted`, or a lost rank ended it and no sweep was there to record the failure.

    A cell whose record cannot be read has failed, so that the other cells of a sweep run.

    Returns:
      One of NEW, COMPLETED, INTERRUPTED and FAILED, and the reason as text, or None if there is
      none.
    """
    try:
        record = RunFolder(folder).read_record()
    except OddFile as error:
        return FAILED, str(error)
    if record is not None:
        status = INTERRUPTED if ended_by_a_rank(record) else record["status"]
        return status, record.get("status_reason")
    if (folder / "config.json").exists():
        return INTERRUPTED, "its process ended without a record"
    return NEW, None


def record_of(folder):
    """Returns the record of a cell, None if there is none that can be read.

    Raises:
      NewerVersion: a newer version wrote it; it must not be replaced.
    """
    try:
        return RunFolder(folder).read_record()
    except NewerVersion:
        raise
    except OddFile:
        return None


def state_now(folder):
    """Returns the state of the cell in a folder as text, RUNNING if a process is running it."""
    return RUNNING if RunFolder(folder).is_running() else state(folder)[0]


def ended_by_a_rank(record):
    """Returns True if a record, or None, is one that rank 0 wrote because a rank was lost."""
    if record is None or record["status"] != FAILED:
        return False
    return _RANK.match(record.get("status_reason") or "") is not None


def version_of_record(folder):
    """Returns a value that changes when record.json is rewritten, or None if there is none."""
    try:
        status = (folder / "record.json").stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def oom_kills():
    """Returns how many processes the kernel has killed to free memory, or None if unknown."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def reason_of_failure(ended, timeout_s, oom_kills_before, oom_kills_after):
    """Returns why a process failed that recorded no reason: the kind, a colon, the details.

    Args:
      ended: the Ended of launch.attend.
      timeout_s: the time limit, seconds.
      oom_kills_before, oom_kills_after: results of `oom_kills` before its start and after its end.
    """
    if ended.timed_out:
        return f"{TIMEOUT}: stopped after {timeout_s / 60:g} minutes"
    failed = _FAILED_LINE.search(ended.printed)
    if ended.status in (-9, 137) or _RANK_KILLED.search(ended.printed):
        rank = failed and _RANK.match(failed[1])
        who = f"; {rank[0].strip()}" if rank else ""
        return _reason_of_kill(oom_kills_before, oom_kills_after) + who
    lines = ended.printed.splitlines()
    for line in lines:
        if _NO_MEMORY.search(line):
            return f"out of memory: {line.strip()[:300]}"
    error = _ERROR.search(ended.printed)
    if error:
        return f"refused: {error[1].strip()}"
    if failed:
        return f"crash: {failed[1].strip()[:300]}"
    how = f"signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"crash: {how}; {last[:300]}"


def _reason_of_kill(oom_kills_before, oom_kills_after):
    if oom_kills_before is None or oom_kills_after is None:
        return (
            "killed: by SIGKILL, as the kernel does when memory runs out; this system does not "
            "report whether it did"
        )
    if oom_kills_after > oom_kills_before:
        return "out of memory: killed (SIGKILL) while the kernel ended processes to free memory"
    return "killed: by SIGKILL from outside; the kernel ended no process to free memory"


def write_failure(folder, placed, reason, printed="", measured=False):
    """Writes the record of a cell that failed.

    Args:
      folder: Path of the cell's folder.
      placed: the PlacedCell.
      reason: the reason of the failure, one line.
      printed: output of its process; the record keeps the last lines.
      measured: True if record.json has the measurements of the run itself, which are then kept.
    """
    run = RunFolder(folder)
    record = run.read_record() if measured else _empty_record(run, placed)
    last = [line for line in printed.splitlines() if line.strip()][-_LINES_KEPT:]
    run.write_record({**record, "status": FAILED, "status_reason": reason, "last_lines": last})


def _empty_record(run, placed):
    """Returns a complete record: counted and known values, and null with a reason for the rest."""
    why = "it was not started" if placed.refusal else "the run ended without recording it"
    record = records.empty_record(why) | {"config": _config(run, placed)}
    known = _or_default(run.read_environment, {}) or {}
    environment = {"world_size": placed.cell.processes} | known
    records.fill(record["environment"], **environment)
    epochs = len(_or_default(run.read_epochs, []))
    training = {"windows_per_epoch": placed.windows[0], "epochs": epochs}
    records.fill(record["training"], **training)
    if placed.refusal is None:
        records.fill(record["model"], **placed.model_record())
    return record


def _config(run, placed):
    """Returns the config that the run stored, or that of the sweep if it stored none."""
    requested = {name: placed.cell.value(name) for name in DEFAULTS}
    return _or_default(run.stored_config, None) or {**requested, "run_dir": str(run.path)}


def _or_default(read, default):
    """Returns what a method of a RunFolder reads, or `default` if its file cannot be used."""
    try:
        return read()
    except OddFile:
        return default
