"""Predictions of what other runs would take, from completed runs and from counted cost.

The seconds of a training step are a sum of parts that cannot be negative: computing, moving
activations, starting each layer's operations, and moving and updating the parameters
(`step_terms`). Each precision has its own rates. The joules of a step have the same form, because
the power multiplies the time of each part. The time of a process is that of its training plus
setup and validation. The memory of a process is a base plus a multiple, at least 1, of the counted
bytes. The rates come from non-negative least squares on the relative error over the completed
cells.

Counts do not show how several processes share a machine. The base is the number of processes that
most cells have. Another number of processes gets a factor on the law of the base, and a time for
each byte of gradients exchanged.

The accuracy is measured: each cell is predicted from the others, and the largest cells are
predicted from the smaller ones. `intervals` turns this into intervals that widen with the distance
from what was measured. docs/study.md has the details.
"""

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass, field

from keras_nowcast.config import EVENTS, FOLDER, WINDOWS, RunConfig, names_of
from keras_nowcast.errors import InputError
from keras_nowcast.model.precision import choose_precision
from keras_nowcast.model.sizes import MAX_DEPTH
from keras_nowcast.study import table
from keras_nowcast.study.compare import ESTIMATE, model_name
from keras_nowcast.study.intervals import MOST_LARGEST, Errors, Interval, Predictor, distance
from keras_nowcast.study.laws import (
    FEWEST_CELLS,
    MEMORY_SIZES,
    QUANTITIES,
    STEP_SIZES,
)
from keras_nowcast.study.points import measured_by, measured_point, new_point

WORDS = {
    "seconds": "time of training",
    "wall_seconds": "time of the process (setup, training, validation)",
    "joules": "energy of training",
    "memory_bytes": "peak memory of a process",
}
# How they are shown: a short name, the unit, and the factor from the quantity's own unit.
UNITS = {
    "seconds": ("training", "s", 1),
    "wall_seconds": ("process", "s", 1),
    "joules": ("energy", "J", 1),
    "memory_bytes": ("memory", "MiB", 2**-20),
}
_MACHINE = ("cpu", "cores", "gpus", "hosts")


@dataclass(frozen=True)
class Prediction:
    """What a cell would take; what cannot be predicted is None, with its reason in `reasons`.

    Attributes:
      setting: dict of the cell's configuration, its world_size and its center filters.
      parameters: number of trainable parameters.
      seconds: of training, all epochs.
      wall_seconds: of the process: setup, training and validation, without writing checkpoints.
      joules: of training, all epochs.
      memory_bytes: peak of the process that uses most: of the GPU if there is one, or resident.
      reasons: {name of a quantity: why it is not predicted}.
      is_estimate: True if the joules are based on runs whose energy was an estimate.
      ratio: of the size in which it lies farthest beyond the measured cells to the largest
        measured value, or below 1 to the smallest; 1 if it is not beyond them.
      size: what this size counts.
    """

    setting: dict
    parameters: int
    seconds: Interval | None = None
    wall_seconds: Interval | None = None
    joules: Interval | None = None
    memory_bytes: Interval | None = None
    reasons: dict = field(default_factory=dict)
    is_estimate: bool = False
    ratio: float = 1.0
    size: str = ""

    @property
    def is_extrapolated(self):
        """True if a size of it is above, or below, that of every measured cell."""
        return self.ratio != 1

    @property
    def note(self):
        """'4.0 times the largest measured (FLOPs)'; empty if it is not beyond what was measured."""
        if not self.is_extrapolated:
            return ""
        end = "largest" if self.ratio > 1 else "smallest"
        processes = self.setting["world_size"]
        several = f" on {processes} processes" if processes > 1 else ""
        return f"{self.ratio:.3g} times the {end} measured{several} ({self.size})"


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
    """Returns (Interval, number without it): the sum of one quantity over Predictions.

    The ends are the sums of the ends, as if all predictions erred in the same direction. The
    Interval is None if no prediction has the quantity.
    """
    known = [getattr(each, name) for each in predictions if getattr(each, name) is not None]
    if not known:
        return None, len(predictions)
    ends = (sum(getattr(each, end) for each in known) for end in ("value", "low", "high"))
    return Interval(*ends, min(each.share for each in known)), len(predictions) - len(known)


class Planner:
    """The laws that completed runs of one machine follow.

    Args:
      runs: list of MeasuredRun; of several machines, only the one with most cells counts.

    Attributes:
      cells: the MeasuredCells that the laws are fitted to.
      machine: dict that identifies the machine; None if there are no runs.
      left_out: number of cells of other machines.
      energy_source: the kind of sensor whose joules are predicted, that of most runs; None if no
        run measured energy.
      energy_left_out: number of runs that other kinds of sensor measured.
    """

    def __init__(self, runs):
        everything = table.cells(runs)
        machines = Counter(map(_machine, everything))
        chosen = machines.most_common(1)[0][0] if machines else None
        self.machine = chosen and dict(chosen)
        self.cells = [cell for cell in everything if _machine(cell) == chosen]
        self.left_out = len(everything) - len(self.cells)
        # Joules of two kinds of sensor do not follow one law. In a tie, an estimate is not used.
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
        self._predictors = {
            name: {
                precision: Predictor(name, [each for each in mine if each.precision == precision])
                for precision in sorted({each.precision for each in mine})
            }
            for name, mine in self._points.items()
        }
        self.errors = {name: self._all_errors(name) for name in QUANTITIES}

    def _known(self, quantity):
        cells = self.cells
        if quantity == "joules":
            cells = measured_by(cells, self.energy_source)
        return [point for cell in cells if (point := measured_point(cell, quantity)) is not None]

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
            reasons = dict.fromkeys(QUANTITIES, "there is no completed run to predict from")
            return Prediction(**prediction, reasons=reasons)
        windows = windows or self._windows(fields)
        values, reasons, beyond = {}, {}, None
        for quantity in QUANTITIES:
            if windows is None and quantity != "memory_bytes":
                reasons[quantity] = "no completed run records how many windows these data have"
                continue
            point = new_point(fields, cost, windows or 1, quantity)
            if not self._points[quantity]:
                reasons[quantity] = self.why_no_errors(quantity)
                continue
            predictor = self._predictors[quantity].get(point.precision, Predictor(quantity, []))
            interval, reason = predictor.interval(point)
            if interval is None:
                reasons[quantity] = reason
                continue
            values[quantity] = interval
            beyond = beyond or (distance(point, predictor.points), quantity)
        (ratio, index), quantity = beyond or ((1.0, 0), "seconds")
        sizes = MEMORY_SIZES if quantity == "memory_bytes" else STEP_SIZES
        estimate = any(
            run.row["energy_is_estimate"]
            for point in self._points["joules"]
            for run in point.cell.runs
        )
        return Prediction(
            **prediction,
            **values,
            reasons=reasons,
            is_estimate=estimate,
            ratio=ratio,
            size=sizes[index],
        )

    def _all_errors(self, quantity):
        found = [each.errors for each in self._predictors[quantity].values()]
        percent = [error for each in found if each for error in each.percent]
        return Errors(tuple(percent)) if percent else None

    def largest(self, quantity):
        """Returns {precision: Largest}: the largest cells, predicted from all others."""
        return {name: each.largest for name, each in self._predictors[quantity].items()}

    def why_no_errors(self, quantity):
        """Returns the reason why a quantity has no Errors."""
        if not self.cells:
            return "there is no completed run"
        if not self._points[quantity]:
            return "no completed run measured it" + (
                f" ({self.cells[0].runs[0].row['energy_reason']})" if quantity == "joules" else ""
            )
        return f"a precision needs more than {FEWEST_CELLS} completed cells for it"

    @property
    def energy_note(self):
        """A sentence on the runs whose joules are left out; empty if there are none."""
        if not self.energy_left_out:
            return ""
        runs = f"{self.energy_left_out} run{'s' * (self.energy_left_out > 1)}"
        return f"Energy is as {self.energy_source} measures it; {runs} with other sensors left out."

    def candidates(self, depths=None, filters=None, precisions=None, processes=None, **fields):
        """Returns (RunConfig, processes) of every combination, the rest as in the largest cell.

        Args:
          depths, filters, precisions, processes: lists; None for the measured values.
          **fields: fields of RunConfig to change.

        Raises:
          InputError: there is no completed run to take the rest from, or a field breaks its rule.
        """
        base = self._largest()
        axes = (
            depths or self._measured_values("depth"),
            filters or self._measured_values("filters"),
            precisions or self._measured_values("precision"),
            processes or [base["world_size"]],
        )
        known = {each.name for each in dataclasses.fields(RunConfig)} & set(base)
        # The schedule costs nothing, and one that an earlier version accepted may be refused now.
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


def _machine(cell):
    return tuple((name, cell.setting[name]) for name in _MACHINE)


def text_row(prediction):
    """Returns a Prediction as a dict of text, one row of a table."""
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
    row["note"] = prediction.note
    return row


def error_lines(planned):
    """Returns lines on the measured errors of a Planner: of each cell, and of the largest ones."""
    lines = ["leave-one-out prediction errors (each measured cell predicted from the others):"]
    for name, words in WORDS.items():
        errors = planned.errors[name]
        text = errors.text() if errors else f"not measured here: {planned.why_no_errors(name)}"
        lines.append(f"  {words}: {text}")
    lines.append(
        f"errors of the largest cells, at most {MOST_LARGEST} of each precision, predicted from "
        "the smaller ones (relative to the largest of which their size is given):"
    )
    for name, words in WORDS.items():
        for precision, largest in planned.largest(name).items():
            lines.append(f"  {words}, {precision}: {largest.text()}")
    return lines


# ---- answers -------------------------------------------------------------------------------------


def largest_within(predictions, name, most):
    """Returns (likely, sure): the largest Predictions within a budget, or None.

    Args:
      predictions: Predictions.
      name: name of the quantity that the budget limits.
      most: the budget, in the unit of the quantity.

    Returns:
      The largest whose prediction is within the budget, and the largest whose complete interval is.
    """
    known = [each for each in predictions if getattr(each, name) is not None]

    def largest(end):
        fitting = [each for each in known if getattr(getattr(each, name), end) <= most]
        return max(fitting, key=lambda each: each.parameters, default=None)

    return largest("value"), largest("high")


@dataclass(frozen=True, eq=False)
class Reached:
    """A measured run that reached a skill, and its cost until the end of that epoch.

    Attributes:
      run: the MeasuredRun.
      epoch: the number of epochs it took.
      seconds: of training, as `table.whole_epochs` counts them.
      joules: counted like the seconds; None if not measured.
      last: the skill after the last epoch, which may not reach the level any more.
    """

    run: object
    epoch: int
    seconds: float
    joules: float | None
    last: float


def reaching(runs, skill, level):
    """Returns the Reached of each completed run that reached a skill, cheapest first.

    Ordered by the quantity of `cost_of_reaching`. Skill is not predicted for what was not run: it
    does not follow from anything that is counted.

    Args:
      runs: list of MeasuredRun.
      skill: a Skill of the validation, which every epoch has.
      level: the level of that skill.
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
    """Returns the quantity that compares Reached runs, and why it is not energy.

    Returns:
      ("joules", None) if one kind of sensor measured all, otherwise ("seconds", the reason).
    """
    if any(each.joules is None for each in found):
        return "seconds", "not all of them measured their energy"
    sources = sorted({each.run.row["energy_source"] for each in found})
    if len(sources) > 1:
        return "seconds", f"different sensors measured their energy, {' and '.join(sources)}"
    return "joules", None


def _reached(run, skill, level):
    seconds, joules = 0.0, 0.0
    for row, of_epoch, its_joules in table.whole_epochs(run):
        seconds += of_epoch
        joules = None if joules is None or its_joules is None else joules + its_joules
        value = skill.of(row)
        if value is not None and (value >= level if skill.higher_is_better else value <= level):
            return Reached(run, row["epoch"] + 1, seconds, joules, skill.of(run.epochs[-1]))
    return None
