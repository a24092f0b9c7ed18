"""What became of a cell, read from its folder and from how its process ended.

A cell that fails is a result: its folder holds a record.json with the status failed and the
reason, whether its process wrote one or died without. When a rank ends the job, rank 0 writes one
that names the rank; the sweep that attends then writes the kind of failure into it. If no sweep was
left to do so, the cell was cut short together with its sweep.
"""

import re
from pathlib import Path

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

_NUMBERS = {
    "environment": (
        "python",
        "tensorflow",
        "keras",
        "horovod",
        "hosts",
        "cpu",
        "cores",
        "gpus",
        "git_commit",
        "slurm_job_id",
        "slurm_array_job_id",
        "slurm_array_task_id",
        "slurm_nodes",
        "slurm_restart_count",
    ),
    "model": (
        "parameters",
        "trainable_parameters",
        "forward_flops_per_sample",
        "training_flops_per_sample",
        "activation_bytes_per_sample",
        "allreduce_bytes_per_step",
    ),
    "training": (
        "epochs",
        "windows_per_epoch",
        "steps",
        "skipped_steps",
        "seconds",
        "seconds_per_epoch",
        "samples_per_second",
        "final_loss_scale",
        "loss",
        "val_loss",
        "achieved_flops_per_second",
        "setup_seconds",
        "starts",
        "skipped_events",
        "skipped_event_reasons",
        "lost_seconds",
    ),
    "energy": (
        "joules",
        "mean_watts",
        "idle_watts",
        "joules_per_epoch",
        "joules_per_sample",
        "joules_above_idle",
        "coverage",
        "coverage_per_epoch",
        "crosscheck_joules",
        "uncertainty_percent",
        "repeatability_percent",
        "lost_joules",
        "lost_coverage",
    ),
    "memory": ("peak_rss_bytes", "peak_gpu_bytes"),
}


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
    record = {"config": _config(run, placed)}
    for part, names in _NUMBERS.items():
        record[part] = {}
        for name in names:
            record[part] |= {name: None, f"{name}_reason": why}
    environment = {"world_size": placed.cell.processes} | (run.read_environment() or {})
    _fill(record["environment"], **environment)
    record["energy"] |= {"source": "none", "source_reason": why}
    record["energy"] |= {"devices": [], "windows": [], "power_limits": []}
    _fill(record["training"], windows_per_epoch=placed.windows[0], epochs=len(run.read_epochs()))
    if placed.refusal is None:
        _fill(record["model"], **placed.model_record())
    return record


def _fill(part, **values):
    for name, value in values.items():
        part[name] = value
        part.pop(f"{name}_reason", None)


def _config(run, placed):
    """Returns the fields of the config as the run stored them, else as the sweep gives them."""
    asked = {name: placed.cell.value(name) for name in DEFAULTS}
    return run.stored_config() or {**asked, "run_dir": str(run.path)}
