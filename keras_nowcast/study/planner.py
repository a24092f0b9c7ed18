"""What runs that were not made would take, from those that were and from counted cost.

Seconds of a training step are a sum of parts that cannot be negative, one set of rates for each
precision: computing, moving activations, starting each layer's operations, and moving and updating
the parameters (`step_terms`). Joules of a step have the same form, because power times each part's
time has; the memory of a process is a base and a multiple of what is counted. The rates are those
of the least squared relative error over the completed cells.

Several processes share a machine in ways that no count tells, so a number of processes other than
the one most cells have is a factor on the law of that one, and a time for each byte of gradients
exchanged.

How good this is, is measured: every cell is predicted from the others (`leave_one_out`), and the
errors of those predictions are the intervals. docs/study.md says more.
"""

import dataclasses
import itertools
import statistics
from collections import Counter
from dataclasses import dataclass, field

from keras_nowcast.config import EVENTS, FOLDER, WINDOWS, RunConfig, names_of
from keras_nowcast.data.pipeline import steps_per_epoch
from keras_nowcast.errors import InputError
from keras_nowcast.model.precision import choose_precision
from keras_nowcast.model.sizes import MAX_DEPTH
from keras_nowcast.study import table
from keras_nowcast.study.compare import ESTIMATE, model_name
from keras_nowcast.study.laws import (
    FEWEST_CELLS,
    QUANTITIES,
    Interval,
    Laws,
    Point,
    leave_one_out,
    memory_terms,
    step_terms,
)

WORDS = {
    "seconds": "time of training",
    "wall_seconds": "time of the process (set-up, training, validation)",
    "joules": "energy of training",
    "memory_bytes": "peak memory of a process",
}
# How they are shown: a short name, the unit, and how many of it make one of the quantity's own.
UNITS = {
    "seconds": ("training", "s", 1),
    "wall_seconds": ("process", "s", 1),
    "joules": ("energy", "J", 1),
    "memory_bytes": ("memory", "MiB", 2**-20),
}
_MACHINE = ("cpu", "cores", "gpus", "hosts")


@dataclass(frozen=True)
class Prediction:
    """What a cell would take; None where it cannot be said, and why in `reasons`.

    Attributes:
      setting: dict of the cell's configuration, its world_size and its centre's filters.
      parameters: trainable ones.
      seconds: of training, all epochs.
      wall_seconds: of the process: set-up, training and validation, without writing checkpoints.
      joules: of training, all epochs.
      memory_bytes: peak of its fullest process, on the GPU where there is one, else resident.
      reasons: {name of a quantity: why there is none}.
      is_estimate: whether the joules rest on runs whose energy was an estimate.
      is_extrapolated: whether a step of it computes more, or less, than any measured one.
    """

    setting: dict
    parameters: int
    seconds: Interval | None = None
    wall_seconds: Interval | None = None
    joules: Interval | None = None
    memory_bytes: Interval | None = None
    reasons: dict = field(default_factory=dict)
    is_estimate: bool = False
    is_extrapolated: bool = False


def predict(cells, runs):
    """Returns a Prediction for each cell, from what `records.read_runs` gives.

    Args:
      cells: iterable of (config, processes, windows_per_epoch): a RunConfig, the number of
        processes, and the windows of an epoch, None for those of a completed run on the same data.
      runs: list of (RunFolder, record); may be empty.
    """
    planner = Planner(table.read(runs))
    return [planner.predict(*cell) for cell in cells]


def total(predictions, name):
    """Returns (Interval, number without): the sum of one quantity over Predictions.

    The ends are the sums of the ends, as if all predictions erred together. None if no prediction
    has the quantity.
    """
    known = [getattr(each, name) for each in predictions if getattr(each, name) is not None]
    if not known:
        return None, len(predictions)
    ends = (sum(getattr(each, end) for each in known) for end in ("value", "low", "high"))
    return Interval(*ends, min(each.share for each in known)), len(predictions) - len(known)


class Planner:
    """The laws that completed runs of one machine follow.

    Args:
      runs: list of Run; where they are of several machines, the one with most cells counts.

    Attributes:
      cells: the Cells the laws are fitted to.
      machine: dict of what tells it apart; None without runs.
      left_out: how many cells of other machines there are.
      energy_source: the kind of sensor whose joules are predicted, that of most runs; None where
        none measured any.
      energy_left_out: how many runs were measured by other kinds.
    """

    def __init__(self, runs):
        everything = table.cells(runs)
        machines = Counter(map(_machine, everything))
        chosen = machines.most_common(1)[0][0] if machines else None
        self.machine = chosen and dict(chosen)
        self.cells = [cell for cell in everything if _machine(cell) == chosen]
        self.left_out = len(everything) - len(self.cells)
        # Joules of two kinds of sensor follow no one law. Of as many, an estimate gives way.
        sources = Counter(
            run.row["energy_source"]
            for cell in self.cells
            for run in cell.runs
            if run.row["joules_per_sample"] is not None
        )
        self.energy_source = max(
            sources, key=lambda each: (sources[each], each != "estimate"), default=None
        )
        self.energy_left_out = sources.total() - sources[self.energy_source]
        self._points = {name: self._known(name) for name in QUANTITIES}
        self.errors = {name: leave_one_out(points) for name, points in self._points.items()}
        self._laws = {name: Laws(points) for name, points in self._points.items()}

    def _known(self, quantity):
        cells = self.cells
        if quantity == "joules":
            cells = _measured_by(cells, self.energy_source)
        return [point for cell in cells if (point := _point(cell, quantity)) is not None]

    def predict(self, config, processes, windows=None):
        """Returns the Prediction of a cell; arguments as in `predict`."""
        fields = {
            name: value
            for name, value in dataclasses.asdict(config).items()
            if name not in names_of(FOLDER)
        }
        fields["precision"] = choose_precision(config.precision, ())[0]
        fields["center_filters"] = table.center_filters(fields)
        cost = table.count_config(fields)
        fields["world_size"] = processes
        prediction = {"setting": fields, "parameters": cost.trainable_parameters}
        if not self.cells:
            reasons = dict.fromkeys(QUANTITIES, "there is no completed run to go by")
            return Prediction(**prediction, reasons=reasons)
        windows = windows or self._windows(fields)
        values, reasons, outside = {}, {}, False
        for quantity in QUANTITIES:
            if windows is None and quantity != "memory_bytes":
                reasons[quantity] = "no completed run tells how many windows these data have"
                continue
            point = _new_point(fields, cost, windows or 1, quantity)
            value, reason = self._laws[quantity].value(point)
            errors = self.errors[quantity]
            if not self._points[quantity]:
                reasons[quantity] = self.why_no_errors(quantity)
            elif value is None:
                reasons[quantity] = reason
            elif errors is None:
                reasons[quantity] = "too few completed cells to tell how far off it would be"
            else:
                factor, share = errors.factor
                values[quantity] = Interval(value, value / factor, value * factor, share)
                outside |= quantity == "seconds" and self._is_outside(point)
        estimate = any(
            run.row["energy_is_estimate"]
            for point in self._points["joules"]
            for run in point.cell.runs
        )
        return Prediction(
            **prediction, **values, reasons=reasons, is_estimate=estimate, is_extrapolated=outside
        )

    def why_no_errors(self, quantity):
        """Returns why a quantity has no Errors."""
        if not self.cells:
            return "there is no completed run"
        if not self._points[quantity]:
            return "no completed run measured it" + (
                f" ({self.cells[0].runs[0].row['energy_reason']})" if quantity == "joules" else ""
            )
        return f"a precision needs more than {FEWEST_CELLS} completed cells for it"

    @property
    def energy_note(self):
        """Says which runs' joules are left out, in a sentence; empty where none are."""
        if not self.energy_left_out:
            return ""
        runs = f"{self.energy_left_out} run{'s' * (self.energy_left_out > 1)}"
        return f"Energy is as {self.energy_source} tells it; {runs} of other sensors left out."

    def candidates(self, depths=None, filters=None, precisions=None, processes=None, **fields):
        """Returns (RunConfig, processes) of every combination, all else as in the largest cell.

        Args:
          depths, filters, precisions, processes: lists; None for what was measured.
          fields: of RunConfig, to change.

        Raises:
          InputError: no completed run tells what is not given, or a field breaks its rule.
        """
        base = self._largest()
        axes = (
            depths or self._measured_values("depth"),
            filters or self._measured_values("filters"),
            precisions or self._measured_values("precision"),
            processes or [base["world_size"]],
        )
        known = {each.name for each in dataclasses.fields(RunConfig)} & set(base)
        # The schedule costs nothing, and that of an earlier version's run may be refused today.
        free = {"center_filters": None, "start_from": None, "schedule": "constant"}
        config = RunConfig(**{name: base[name] for name in known} | free)
        config = dataclasses.replace(config, **fields)
        return [
            (dataclasses.replace(config, depth=depth, filters=width, precision=precision), count)
            for depth, width, precision, count in itertools.product(*axes)
            if config.grid % 2**depth == 0
        ]

    def next_sizes(self, most=12):
        """Returns Predictions of sizes between and just beyond those that were run."""
        if not self.cells:
            return []
        depths, filters = self._measured_values("depth"), self._measured_values("filters")
        deeper = [depths[-1] + 1] if depths[-1] < MAX_DEPTH else []
        wider = [2 * filters[-1]]
        base = self._largest()
        same = {
            (
                cell.setting["depth"],
                cell.setting["filters"],
                cell.setting["precision"],
                cell.setting["world_size"],
            )
            for cell in self.cells
        }
        new = [
            self.predict(config, count)
            for config, count in self.candidates(depths + deeper, filters + wider)
            if (config.depth, config.filters, config.precision, base["world_size"]) not in same
        ]
        return sorted(new, key=lambda each: each.parameters)[:most]

    def _largest(self):
        if not self.cells:
            raise InputError(
                "`runs` must hold completed runs to plan by. Received: none; run a sweep first."
            )
        return max(self.cells, key=lambda cell: cell.median("trainable_parameters")).setting

    def _measured_values(self, name):
        return sorted({cell.setting[name] for cell in self.cells})

    def _windows(self, fields):
        for cell in self.cells:
            if all(cell.setting.get(name) == fields[name] for name in names_of(EVENTS, WINDOWS)):
                return cell.median("windows_per_epoch")
        return None

    def _is_outside(self, point):
        measured = [
            each.terms[0] for each in self._points["seconds"] if each.precision == point.precision
        ]
        return not min(measured) <= point.terms[0] <= max(measured)


def _point(cell, quantity):
    """Returns the Point of a measured cell; None where this was not measured."""
    value = _measured(cell, quantity)
    windows = cell.median("windows_per_epoch")
    if not value or not windows:
        return None
    point = _new_point(cell.setting, table.count_config(cell.setting), windows, quantity)
    return dataclasses.replace(point, value=value, cell=cell)


def _new_point(setting, cost, windows, quantity):
    precision, processes = setting["precision"], setting["world_size"]
    batch = setting["batch_per_replica"]
    steps = steps_per_epoch(windows, processes, batch)
    if quantity == "memory_bytes":
        return Point(precision, processes, memory_terms(cost, precision, batch), 0, 1)
    terms = step_terms(cost, precision, windows / steps / processes)
    times = steps * setting["epochs"]
    if quantity == "wall_seconds":
        # Set-up happens once: seconds, and some for each layer that is traced.
        terms = (1, *(times * term for term in terms), len(cost.layers))
        return Point(precision, processes, terms, times * cost.allreduce_bytes(), 1)
    return Point(precision, processes, terms, cost.allreduce_bytes(), times)


def _measured_by(cells, source):
    """Returns the cells with those of their runs alone whose energy is by one kind of sensor."""
    mine = [
        table.MeasuredCell(cell.setting, [r for r in cell.runs if r.row["energy_source"] == source])
        for cell in cells
    ]
    return [cell for cell in mine if cell.runs]


def _measured(cell, quantity):
    """Returns the median over the seeds of one quantity of whole runs, or None."""
    if quantity == "memory_bytes":
        return cell.median("peak_gpu_bytes") or cell.median("peak_rss_bytes")
    totals = [_total_of_run(run.row, quantity) for run in cell.runs]
    known = [each for each in totals if each is not None]
    return statistics.median(known) if known else None


def _total_of_run(row, quantity):
    """Returns seconds or joules of all epochs of a run, the first step's training among them."""
    windows = row["epochs"] * row["windows_per_epoch"] if row["windows_per_epoch"] else 0
    if quantity == "joules":
        each = row["joules_per_sample"]
        return None if each is None else each * windows
    if not row["samples_per_second"] or not windows:
        return None
    # The median epoch, which one that something else held up does not move; the only one lacks
    # its first step.
    several = row["epochs_done"] > 1
    rate = row["samples_per_second"]
    seconds = row["epochs"] * row["seconds_per_epoch"] if several else windows / rate
    if quantity == "seconds":
        return seconds
    if row["val_seconds_per_epoch"] is None or row["setup_seconds"] is None:
        return None
    setup = row["setup_seconds"] / (row["starts"] or 1)  # of a run that was resumed, of each start
    return setup + seconds + row["epochs"] * row["val_seconds_per_epoch"]


def _machine(cell):
    return tuple((name, cell.setting[name]) for name in _MACHINE)


def text_row(prediction):
    """Returns a Prediction as a dict of text, a line of a table."""
    setting = prediction.setting
    row = {
        "model": model_name(setting),
        "precision": setting["precision"],
        "processes": str(setting["world_size"]),
        "parameters": f"{prediction.parameters:,}",
    }
    for name, (words, unit, factor) in UNITS.items():
        interval = getattr(prediction, name)
        row[words] = interval.scaled(factor).text(unit) if interval else "not predicted"
        if name == "joules" and interval and prediction.is_estimate:
            row[words] += ESTIMATE
    row["note"] = "beyond what was measured" if prediction.is_extrapolated else ""
    return row


# ---- answers -------------------------------------------------------------------------------------


def largest_within(predictions, name, most):
    """Returns (likely, sure): the Predictions of most parameters within a budget, or None.

    Args:
      predictions: Predictions.
      name: of the quantity the budget is of.
      most: the budget, in its unit.

    Returns:
      The largest whose prediction is within, and the largest whose whole interval is.
    """
    known = [each for each in predictions if getattr(each, name) is not None]

    def largest(end):
        fitting = [each for each in known if getattr(getattr(each, name), end) <= most]
        return max(fitting, key=lambda each: each.parameters, default=None)

    return largest("value"), largest("high")


@dataclass(frozen=True, eq=False)
class Reached:
    """A measured run that reached a skill, and what it had cost by the end of that epoch.

    Attributes:
      run: the Run.
      epoch: the number of epochs it took.
      seconds: of training, as `table.whole_epochs` counts them.
      joules: likewise; None where not measured.
    """

    run: object
    epoch: int
    seconds: float
    joules: float | None


def reaching(runs, skill, level):
    """Returns what it cost each completed Run to reach a skill, cheapest first.

    By what `cost_of_reaching` says. Skill is not predicted for what was not run: nothing that is
    counted tells it.

    Args:
      runs: list of Run.
      skill: a Skill of the validation, which every epoch has.
      level: of it.
    """
    found = [
        each
        for run in runs
        if run.is_completed
        if (each := _reached(run, skill, level)) is not None
    ]
    cost, _ = cost_of_reaching(found)
    return sorted(found, key=lambda each: getattr(each, cost))


def cost_of_reaching(found):
    """Returns what Reached runs are compared by, and why that is not energy.

    Returns:
      ("joules", None) where all measured them by one kind of sensor, else ("seconds", the reason).
    """
    if any(each.joules is None for each in found):
        return "seconds", "not every one of them measured its energy"
    sources = sorted({each.run.row["energy_source"] for each in found})
    if len(sources) > 1:
        return "seconds", f"their energy is by different sensors, {' and '.join(sources)}"
    return "joules", None


def _reached(run, skill, level):
    seconds, joules = 0.0, 0.0
    for row, of_epoch, its_joules in table.whole_epochs(run):
        seconds += of_epoch
        joules = None if joules is None or its_joules is None else joules + its_joules
        value = skill.of(row)
        if value is not None and (value >= level if skill.higher_is_better else value <= level):
            return Reached(run, row["epoch"] + 1, seconds, joules)
    return None
