"""What a sweep will take: the table of --dry-run, and what is left while it runs."""

import statistics

from keras_nowcast.data.pipeline import steps_per_epoch
from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder, read_runs
from keras_nowcast.study import table
from keras_nowcast.study.compare import spread
from keras_nowcast.study.laws import FEWEST_CELLS, fit_rates, step_terms
from keras_nowcast.study.planner import predict, total
from keras_nowcast.study.roofline import GPUS, lower_bound_step_seconds, ratios_to_lower_bound
from keras_nowcast.sweep import outcome
from keras_nowcast.text_table import aligned

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


def runs_below(folders):
    """Returns what `records.read_runs` gives of folders; those that do not exist hold no runs."""
    try:
        return read_runs([folder for folder in folders if folder.is_dir()])
    except InputError:
        return []


def predictions(cells, runs):
    """Returns what the planner says of cells that can run, a Prediction each, from runs."""
    asked = [(cell.cell.config, cell.cell.processes, cell.windows[0]) for cell in cells]
    return predict(asked, runs)


# ---- what is left ---------------------------------------------------------------------------


def seconds_left(waiting, finished, folder, overhead_s=0.0):
    """Estimates how long cells that wait will take, from those that are finished.

    Each takes the median set-up of the finished, and for each layer of a step, and each FLOP with
    channels filled up to blocks, what fits those of its precision, or all where they are few. By
    FLOPs alone a sweep that begins with small networks would seem to last many times too long: they
    compute at a fraction of the rate of large ones.

    Args:
      waiting, finished: PlacedCells; of one that was interrupted, the epochs that are left count.
      folder: Path of the sweep's folder.
      overhead_s: what each takes beside its set-up, training and validation.

    Returns:
      Seconds; None while nothing is finished to tell it.
    """
    if not waiting:
        return 0.0
    measured = [(cell, *measured_seconds(folder / cell.name)) for cell in finished]
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
        overhead_s + setup_s + _share_left(cell, folder) * float(rates[cell.policy] @ _work(cell))
        for cell in waiting
    )


def _work(cell):
    """Returns what all steps of a cell do: layers started and filled FLOPs, of all processes."""
    processes, windows = cell.cell.processes, cell.windows[0]
    steps = steps_per_epoch(windows, processes, cell.cell.value("batch_per_replica"))
    computed, _, layers, _ = step_terms(cell.cost, cell.policy, windows / steps / processes)
    times = cell.cell.value("epochs") * steps * processes
    return times * layers, times * computed


def _share_left(cell, folder):
    """Returns the share of its epochs that a cell has still to train."""
    if outcome.state(folder / cell.name)[0] != outcome.INTERRUPTED:
        return 1.0  # what failed starts anew
    done = len(RunFolder(folder / cell.name).read_epochs())
    return max(0.0, 1 - done / cell.cell.value("epochs"))


def measured_seconds(folder):
    """Returns a finished run's seconds of set-up, of one start, and of its epochs with validation.

    What its first validation took longer than the others is set-up too: it compiles.
    """
    run = RunFolder(folder)
    training, rows = run.read_record()["training"], run.read_epochs()
    validation = [row["val_seconds"] or 0 for row in rows]
    compiling = 0.0
    if len(rows) > 1:
        compiling = max(0.0, validation[0] - statistics.median(validation[1:]))
    setup = training["setup_seconds"] / len(training.get("starts") or [1])
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
    """Returns what each cell is and will take, as lines of text.

    Parameters, FLOPs and the tensors of a step are counted; time, peak memory and energy are the
    planner's predictions, each with its interval. On a GPU that nobody has measured there is the
    least that its roofs allow, and beside it what that would be if it were as far above its roofs
    as the measured runs were above theirs.

    Args:
      cells: PlacedCells.
      states: the state of each.
      folders: Paths of runs to predict from.
      gpu: name of one in roofline.GPUS, or None.
    """
    runs = runs_below(folders)
    known = [cell for cell in cells if not cell.refusal]
    predicted = dict(zip((cell.name for cell in known), predictions(known, runs), strict=True))
    rows = [(*HEADER, f"least on {gpu}") if gpu else HEADER]
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
    of_gpu = _of_gpu(left, gpu, runs) if gpu else []
    return "\n".join([aligned(rows, left=2), *_totals(waiting), *_reasons(waiting), *of_gpu])


def lower_bound_seconds(cell, gpu):
    """Returns the least that the training of a PlacedCell takes on GPUs, or None.

    Without set-up, input, allreduce and validation; None where the GPU's roofs do not tell it.
    """
    windows, processes = cell.windows[0], cell.cell.processes
    steps = steps_per_epoch(windows, processes, cell.cell.value("batch_per_replica"))
    each = windows / steps / processes
    step_s = lower_bound_step_seconds(cell.cost, cell.policy, each, GPUS[gpu].roofs)
    return step_s and cell.cell.value("epochs") * steps * step_s


def _of_gpu(left, gpu, runs):
    """Returns lines on what cells would take on a GPU that nobody has measured."""
    known = [
        (cell.cell.processes, lower_bound_s)
        for cell in left
        if (lower_bound_s := lower_bound_seconds(cell, gpu)) is not None
    ]
    if not known:
        return []
    hours = sum(processes * lower_bound_s for processes, lower_bound_s in known) / 3600
    lines = [
        f"by the roofs of {GPUS[gpu].text()}: training of {len(known)} of {len(left)} cells takes "
        f"at least {duration(sum(each for _, each in known))} by the clock, one after "
        f"another, and {hours:,.3g} GPU-hours, without set-up, input, allreduce and validation"
    ]
    times = spread(ratios_to_lower_bound(table.read(runs)))
    if times is None:
        return [
            *lines,
            "how far above them real steps are is not known: no measured run of one "
            "process timed its own machine's roofs (--layer-times)",
        ]

    def scaled(factor):
        ends = (times.median, times.minimum, times.maximum)
        middle, low, high = (f"{each * factor:,.3g}" for each in ends)
        return middle if times.count == 1 else f"{middle} ({low} to {high})"

    kilowatts = GPUS[gpu].watts / 1000
    return [
        *lines,
        f"an estimate, no measurement: steps of {times.count} measured "
        f"run{'s' * (times.count > 1)} took {scaled(1)} times the least that their own machine's "
        f"roofs allow; were it so on {gpu}, {scaled(hours)} GPU-hours and, at no more than "
        f"{GPUS[gpu].watts} W, {scaled(hours * kilowatts)} kWh of the GPUs",
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


def _totals(waiting):
    """Returns a line on what is not done; predictions that are missing are counted."""
    if not waiting:
        return ["nothing is left to run"]
    whole, without = total(waiting, "wall_seconds")
    line = f"{len(waiting)} left to run"
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
