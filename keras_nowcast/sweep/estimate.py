"""Estimates of what a sweep takes: the table of --dry-run, and the time left while it runs."""

import contextlib
import statistics

from keras_nowcast.checked import OddFile
from keras_nowcast.data.pipeline import steps_per_epoch
from keras_nowcast.errors import InputError
from keras_nowcast.records import OddRuns, RunFolder, find_runs
from keras_nowcast.study import table
from keras_nowcast.study.compare import spread
from keras_nowcast.study.laws import FEWEST_CELLS, fit_rates, step_terms
from keras_nowcast.study.planner import WORDS, predict, total
from keras_nowcast.study.roofline import GPUS, lower_bound_step_seconds, ratios_to_lower_bound
from keras_nowcast.sweep import outcome
from keras_nowcast.text_table import aligned

MIB = 2**20
NOT_KNOWN = "not known yet"


def duration(seconds):
    """Returns seconds as text: 42s, 3m 05s, 2h 10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def runs_below(folders):
    """Returns (runs, left_out) of folders as `records.find_runs`; a missing folder has none."""
    try:
        return find_runs([folder for folder in folders if folder.is_dir()])
    except OddRuns as error:
        return [], error.left_out
    except InputError:
        return [], {}


def predictions(cells, runs):
    """Returns the planner's Prediction for each cell that can run, from finished runs."""
    requested = [(cell.cell.config, cell.cell.processes, cell.windows[0]) for cell in cells]
    return predict(requested, runs)


# ---- the time left --------------------------------------------------------------------------


def seconds_left(waiting, finished, folder, overhead_s=0.0):
    """Returns an estimate of the time that waiting cells take, from the finished cells.

    The setup of a cell takes the median setup time of the finished cells. Its steps take a time
    per layer and a time per FLOP, where FLOPs count channels filled up to blocks. Both rates are
    fitted to the finished cells of its precision, or to all finished cells if these are few. From
    FLOPs alone, a sweep that begins with small models would seem to take many times too long,
    because small models compute at a fraction of the rate of large ones.

    Args:
      waiting: PlacedCells; if one was interrupted, only its remaining epochs count.
      finished: PlacedCells.
      folder: Path of the sweep's folder.
      overhead_s: seconds that each cell takes in addition to setup, training and validation.

    Returns:
      Seconds, or None while there is no finished cell to estimate from.
    """
    if not waiting:
        return 0.0
    measured = []
    for cell in finished:
        with contextlib.suppress(OddFile):
            measured.append((cell, *measured_seconds(folder / cell.name)))
    if not any(seconds for _, _, seconds in measured):
        return None
    setup_s = statistics.median(setup for _, setup, _ in measured)
    rates = {}
    for policy in {cell.policy for cell in waiting}:
        mine = [each for each in measured if each[0].policy == policy and each[2]]
        if len(mine) < FEWEST_CELLS:
            mine = [each for each in measured if each[2]]
        rates[policy] = fit_rates(
            [_work(cell) for cell, _, _ in mine], [seconds for _, _, seconds in mine]
        )
    return sum(
        overhead_s
        + setup_s
        + _fraction_left(cell, folder) * float(rates[cell.policy] @ _work(cell))
        for cell in waiting
    )


def _work(cell):
    """Returns (layers started, FLOPs of filled channels) of all steps, over all processes."""
    processes, windows = cell.cell.processes, cell.windows[0]
    steps = steps_per_epoch(windows, processes, cell.cell.value("batch_per_replica"))
    computed, _, layers, _ = step_terms(cell.cost, cell.policy, windows / steps / processes)
    times = cell.cell.value("epochs") * steps * processes
    return times * layers, times * computed


def _fraction_left(cell, folder):
    """Returns the fraction of its epochs that a cell has not trained yet."""
    if outcome.state(folder / cell.name)[0] != outcome.INTERRUPTED:
        return 1.0  # a failed cell starts from scratch
    try:
        done = len(RunFolder(folder / cell.name).read_epochs())
    except OddFile:
        return 1.0
    return max(0.0, 1 - done / cell.cell.value("epochs"))


def measured_seconds(folder):
    """Returns the seconds of a finished run: (setup of one start, epochs with validation).

    Validation includes the estimation of batch-norm statistics before it. The first one includes
    compilation: the time by which it was longer than the median of
    the others counts as setup.
    """
    run = RunFolder(folder)
    training, rows = run.read_record().get("training") or {}, run.read_epochs()
    validation = [(row["val_seconds"] or 0) + (row.get("statistics_seconds") or 0) for row in rows]
    compiling = 0.0
    if len(rows) > 1:
        compiling = max(0.0, validation[0] - statistics.median(validation[1:]))
    setup = (training.get("setup_seconds") or 0.0) / len(training.get("starts") or [1])
    epochs = sum(row["seconds"] for row in rows) + sum(validation)
    return setup + compiling, epochs - compiling


# ---- the table ------------------------------------------------------------------------------

HEADER = (
    "cell",
    "state",
    "parameters",
    "training TFLOP",
    "tensors MiB",
    "time",
    "memory MiB",
    "energy J",
)


def estimate_table(cells, states, folders, gpu=None):
    """Returns a table of the cells, with what each takes, as text.

    Parameters, FLOPs and the tensors of a step are counted. Time, peak memory and energy are
    predictions of the planner, with intervals. For a GPU that has not been measured, the table has
    the lower bound (roofline) of the training time. Below the table is its sum, and an estimate:
    the sum multiplied by the ratio that measured runs had to the lower bound of their own machine.

    Args:
      cells: PlacedCells.
      states: the state of each cell.
      folders: Paths of runs to predict from.
      gpu: name of a GPU in roofline.GPUS, or None.
    """
    runs, left_out = runs_below(folders)
    known = [cell for cell in cells if not cell.refusal]
    predicted = dict(zip((cell.name for cell in known), predictions(known, runs), strict=True))
    rows = [(*HEADER, f"lower bound on {gpu}") if gpu else HEADER]
    for cell, state in zip(cells, states, strict=True):
        if cell.refusal:
            rows.append((cell.name, f"unfittable: {cell.refusal}"))
        else:
            row = _row(cell, state, predicted[cell.name])
            lower_bound_s = lower_bound_seconds(cell, gpu) if gpu else None
            shown = NOT_KNOWN if lower_bound_s is None else duration(lower_bound_s)
            rows.append((*row, shown) if gpu else row)
    left = [
        cell
        for cell, state in zip(cells, states, strict=True)
        if not cell.refusal and state in (outcome.NEW, outcome.INTERRUPTED, outcome.RUNNING)
    ]
    waiting = [predicted[cell.name] for cell in left]
    running = sum(state == outcome.RUNNING for state in states)
    of_gpu = _of_gpu(left, gpu, runs) if gpu else []
    below = [*_totals(waiting, running), *_reasons(waiting), *of_gpu]
    below += table.left_out_lines(left_out, len(runs))
    return "\n".join([aligned(rows, left=2), *below])


def lower_bound_seconds(cell, gpu):
    """Returns the lower bound (roofline) of the training time of a PlacedCell on a GPU, or None.

    Setup, input, allreduce and validation are excluded. None if the roofline limits of the GPU
    are not known for the precision of the cell.
    """
    windows, processes = cell.windows[0], cell.cell.processes
    steps = steps_per_epoch(windows, processes, cell.cell.value("batch_per_replica"))
    each = windows / steps / processes
    step_s = lower_bound_step_seconds(cell.cost, cell.policy, each, GPUS[gpu].roofs)
    return step_s and cell.cell.value("epochs") * steps * step_s


def _of_gpu(left, gpu, runs):
    """Returns lines about the training time of cells on a GPU that has not been measured."""
    known = [
        (cell.cell.processes, lower_bound_s)
        for cell in left
        if (lower_bound_s := lower_bound_seconds(cell, gpu)) is not None
    ]
    if not known:
        return []
    hours = sum(processes * lower_bound_s for processes, lower_bound_s in known) / 3600
    lines = [
        f"lower bound (roofline): training of {len(known)} of {len(left)} cells takes at least "
        f"{duration(sum(each for _, each in known))} of wall-clock time, one cell after another, "
        f"and {hours:,.3g} GPU-hours on {GPUS[gpu].text()}; setup, input, allreduce and "
        "validation are not included"
    ]
    times = spread(ratios_to_lower_bound(table.read(runs)))
    if times is None:
        return [
            *lines,
            "the ratio of real steps to this lower bound is not known: no measured run of one "
            "process timed the roofline limits of its own machine (--layer-times)",
        ]

    def scaled(factor):
        ends = (times.median, times.minimum, times.maximum)
        middle, low, high = (f"{each * factor:,.3g}" for each in ends)
        return middle if times.count == 1 else f"{middle} ({low} to {high})"

    kilowatts = GPUS[gpu].watts / 1000
    return [
        *lines,
        f"estimate, not a measurement: the steps of {times.count} measured "
        f"run{'s' * (times.count > 1)} took {scaled(1)} times the roofline lower bound of the "
        f"machine they ran on; at the same ratio on {gpu}, {scaled(hours)} GPU-hours and, at no "
        f"more than {GPUS[gpu].watts} W per GPU, {scaled(hours * kilowatts)} kWh for the GPUs",
    ]


def _row(cell, state, prediction):
    return (
        cell.name,
        state,
        f"{cell.cost.parameters:,}",
        f"{cell.training_flops / 1e12:,.2f}",
        f"{cell.tensor_bytes / MIB:,.0f}",
        _interval(prediction.wall_seconds, duration),
        _interval(prediction.memory_bytes, lambda value: f"{value / MIB:,.0f}"),
        _interval(prediction.joules, lambda value: f"{value:,.3g}"),
    )


def _interval(interval, shown):
    if interval is None:
        return NOT_KNOWN
    return f"{shown(interval.value)} ({shown(interval.low)} to {shown(interval.high)})"


def _totals(waiting, running):
    """Returns a line on the cells left to run, with their predicted time if there is one."""
    if not waiting:
        return ["nothing is left to run"]
    total_s, without = total(waiting, "wall_seconds")
    line = f"{len(waiting)} left to run" + (f", {running} of them running now" if running else "")
    if total_s is not None:
        predicted = len(waiting) - without
        line += f"; predicted {_interval(total_s, duration)} for {predicted} of them"
    return [line]


def _reasons(waiting):
    """Returns one line for each distinct reason why predictions are missing."""
    lacking = {}
    for each in waiting:
        for name, reason in each.reasons.items():
            lacking.setdefault(reason, {})[WORDS[name]] = None
    return [f"{NOT_KNOWN}, {reason}: {'; '.join(names)}" for reason, names in lacking.items()]
