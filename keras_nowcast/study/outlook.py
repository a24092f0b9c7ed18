"""What a sweep will take: the table of --dry-run, and what is left while it runs."""

import statistics

from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder, read_runs
from keras_nowcast.study.planner import predict, total

MIB = 2**20
NOT_KNOWN = "not known yet"


def duration(seconds):
    """Returns seconds in words: 42s, 3m 05s, 2h 10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def predictions(cells, folders):
    """Returns what the planner says of cells, a Forecast each, from the runs below folders.

    Args:
      cells: PlacedCells that can run.
      folders: Paths; those that do not exist hold no runs.
    """
    try:
        runs = read_runs([folder for folder in folders if folder.is_dir()])
    except InputError:
        runs = []
    asked = [(cell.cell.config, cell.cell.processes, cell.windows[0]) for cell in cells]
    return predict(asked, runs)


# ---- what is left ---------------------------------------------------------------------------


def seconds_left(waiting, finished, folder, overhead_s=0.0):
    """Estimates how long cells that wait will take, from those that are finished.

    The planner's prediction where it has one for each of them. Before that, each takes the median
    set-up of the finished, and its counted FLOPs at their median rate in the same precision (in
    any, where there is none).

    Args:
      waiting, finished: PlacedCells.
      folder: Path of the sweep's folder.
      overhead_s: what each takes beside its set-up, training and validation.

    Returns:
      Seconds; None while nothing is finished.
    """
    if not finished:
        return None
    forecasts = predictions(waiting, [folder])
    if all(each.wall_seconds is not None for each in forecasts):
        return sum(each.wall_seconds.value + overhead_s for each in forecasts)
    setups, rates = [], {}
    for cell in finished:
        setup, seconds = measured_seconds(folder / cell.name)
        setups.append(setup)
        if seconds:
            rates.setdefault(cell.policy, []).append(cell.training_flops / seconds)
    any_rate = [rate for some in rates.values() for rate in some]
    if not any_rate:
        return None
    return sum(
        overhead_s
        + statistics.median(setups)
        + cell.training_flops / statistics.median(rates.get(cell.policy, any_rate))
        for cell in waiting
    )


def measured_seconds(folder):
    """Returns a finished run's seconds of set-up and of its epochs with validation."""
    run = RunFolder(folder)
    epochs = sum(row["seconds"] + (row["val_seconds"] or 0) for row in run.read_epochs())
    return run.read_record()["training"]["setup_seconds"], epochs


# ---- the table ------------------------------------------------------------------------------

HEADER = ("cell", "state", "parameters", "training TFLOP", "tensors MiB", "time", "memory MiB",
          "energy J")  # fmt: skip


def outlook_table(cells, states, folders):
    """Returns what each cell is and will take, as lines of text.

    Parameters, FLOPs and the tensors of a step are counted; time, peak memory and energy are the
    planner's predictions, each with its interval.

    Args:
      cells: PlacedCells.
      states: the state of each.
      folders: Paths of runs to predict from.
    """
    known = [cell for cell in cells if not cell.refusal]
    forecasts = dict(
        zip((cell.name for cell in known), predictions(known, folders), strict=True)
    )
    rows = [HEADER]
    for cell, state in zip(cells, states, strict=True):
        if cell.refusal:
            rows.append((cell.name, f"unfittable: {cell.refusal}"))
        else:
            rows.append(_row(cell, state, forecasts[cell.name]))
    waiting = [
        forecasts[cell.name]
        for cell, state in zip(cells, states, strict=True)
        if not cell.refusal and state in ("new", "interrupted")
    ]
    return "\n".join([_aligned(rows), *_totals(waiting), *_reasons(waiting)])


def _row(cell, state, forecast):
    return (
        cell.name,
        state,
        f"{cell.cost.parameters:,}",
        f"{cell.training_flops / 1e12:,.2f}",
        f"{cell.tensor_bytes / MIB:,.0f}",
        _interval(forecast.wall_seconds, duration),
        _interval(forecast.memory_bytes, lambda value: f"{value / MIB:,.0f}"),
        _interval(forecast.joules, lambda value: f"{value:,.3g}"),
    )


def _interval(interval, shown):
    if interval is None:
        return NOT_KNOWN
    return f"{shown(interval.value)} ({shown(interval.low)} to {shown(interval.high)})"


def _totals(waiting):
    """Returns a line on what is to be run; predictions that are missing are counted."""
    if not waiting:
        return ["nothing is left to run"]
    whole, without = total(waiting, "wall_seconds")
    line = f"{len(waiting)} to run"
    if whole is not None:
        predicted = len(waiting) - without
        line += f"; predicted {_interval(whole, duration)} for {predicted} of them"
    return [line]


def _reasons(waiting):
    """Returns, once each, why a prediction is missing."""
    reasons = dict.fromkeys(
        f"{name.replace('_', ' ')} {NOT_KNOWN}: {reason}"
        for each in waiting
        for name, reason in each.reasons.items()
    )
    return list(reasons)


def _aligned(rows):
    whole = [row for row in rows if len(row) == len(HEADER)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = []
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
        right = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=False)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
