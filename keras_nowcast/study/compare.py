"""Comparing cells: pairs that differ in one thing, ratios over seeds, costs and fronts."""

import itertools
import math
import statistics
from dataclasses import dataclass

from keras_nowcast import config
from keras_nowcast.study import table
from keras_nowcast.text_table import counted

ESTIMATE = " (an ESTIMATE, not measured)"  # after joules and watts that no sensor measured
EQUIVALENCE_LEVEL = 0.05  # of each of the two one-sided tests
# What sets one size of model apart from another.
SIZES = config.names_of(config.SIZE)


@dataclass(frozen=True)
class Spread:
    """A number measured several times: median, minimum, maximum and count."""

    median: float
    minimum: float
    maximum: float
    count: int

    def text(self, form, unit=""):
        """Returns '1.32 (1.20 to 1.41, 3 times)', or the median alone if it was measured once."""
        middle = f"{self.median:{form}}{unit}"
        if self.count == 1:
            return middle
        return (
            f"{middle} ({self.minimum:{form}} to {self.maximum:{form}}{unit}, {self.count} times)"
        )


def spread(values):
    """Returns the Spread of numbers, leaving out None; None if nothing is left."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


def precision_pairs(cells):
    """Returns pairs (float32, mixed precision) of cells that differ in nothing else."""
    return [
        (plain, mixed)
        for alike in table.group(cells, "precision", "fp16_allreduce")
        for plain in alike
        for mixed in alike
        if plain.setting["precision"] == "float32" and mixed.setting["precision"] != "float32"
    ]


def throughput_ratio(first, second):
    """Returns the Spread of the second cell's windows per second over the first's, or None."""
    return spread(ratio_of(b, a, "samples_per_second") for a, b in paired(first, second))


def quality_ratio(first, second):
    """Returns the Spread of `time_to_quality_ratio` over pairs of the cells' runs, or None."""
    return spread(time_to_quality_ratio(a, b) for a, b in paired(first, second))


@dataclass(frozen=True)
class CostMeasure:
    """What cells are compared by: energy if one kind of sensor measured all, otherwise time.

    Attributes:
      column: of the table.
      name: of the quantity, as text.
      unit: as text.
      is_estimate: True if the energy of any cell is an estimate.
    """

    column: str
    name: str
    unit: str
    is_estimate: bool = False

    @property
    def label(self):
        """Returns its name, marked if it is an estimate."""
        return self.name + (ESTIMATE if self.is_estimate else "")


def cost_of_cells(cells):
    """Returns the CostMeasure by which all these cells can be compared, or None."""
    sources = {
        run.row["energy_source"]
        for cell in cells
        for run in cell.runs
        if run.row["joules_per_epoch"] is not None
    }
    if len(sources) == 1 and all(cell.values("joules_per_epoch") for cell in cells):
        estimate = any(is_estimate(cell) for cell in cells)
        return CostMeasure("joules_per_epoch", "energy per epoch", "J", estimate)
    if all(cell.median("seconds_per_epoch") is not None for cell in cells):
        return CostMeasure("seconds_per_epoch", "training time per epoch", "s")
    return None


def pareto_cells(cells, skill, cost):
    """Returns the cells that none of the others beats in both cost and skill, cheapest first."""
    sign = 1 if skill.higher_is_better else -1
    points = [
        (cell.median(cost.column), sign * statistics.median(skill.of_cell(cell))) for cell in cells
    ]
    return [cells[i] for i in pareto(points)]


def scaling_pairs(cells):
    """Returns (few, many) pairs of cells that differ only in their processes, few the fewest.

    One process has the same learning rate by any `--lr-scaling`; cells of several are compared only
    with those of the same rule.
    """
    pairs = []
    for alike in table.group(cells, "world_size", "hosts", "gpus", "lr_scaling"):
        # Several cells may have one number of processes: the same GPUs, on one host or on two.
        ordered = sorted(alike, key=lambda cell: cell.setting["world_size"])
        for many in ordered:
            processes, rule = many.setting["world_size"], many.setting["lr_scaling"]
            few = next(
                each
                for each in ordered
                if each.setting["world_size"] == 1 or each.setting["lr_scaling"] == rule
            )
            if few.setting["world_size"] < processes:
                pairs.append((few, many))
    return pairs


def shares_cores(setting):
    """Returns True if its processes compute on the cores of one host."""
    return not setting["gpus"] and setting["world_size"] > (setting["hosts"] or 1)


def time_to_quality_ratio(slow, fast):
    """Returns seconds of `slow` over seconds of `fast` until the level both reached, or None.

    The level is the higher of their two lowest validation losses. Seconds are of training, in
    complete epochs as `table.whole_epochs` counts them.
    """
    level = common_level(slow, fast)
    if level is None:
        return None
    a, b = seconds_to(slow, level), seconds_to(fast, level)
    return a / b if a and b else None


def common_level(*runs):
    """Returns the lowest validation loss that every run reached, or None if unknown."""
    lowest = [
        min((row["val_loss"] for row in run.epochs if row["val_loss"] is not None), default=None)
        for run in runs
    ]
    return None if None in lowest else max(lowest)


def seconds_to(run, level):
    """Returns the seconds of training until a run reached a validation loss, or None."""
    seconds = 0.0
    for row, of_epoch, _ in table.whole_epochs(run):
        seconds += of_epoch
        if row["val_loss"] is not None and row["val_loss"] <= level:
            return seconds
    return None


def is_estimate(cell):
    """Returns True if the energy of any run of a cell is an estimate, not measured."""
    return any(run.row["energy_is_estimate"] for run in cell.runs)


def model_name(setting):
    """Returns 'depth 4, 16 filters', with the center's if they are not the default."""
    default = table.default_center_filters(setting["depth"], setting["filters"])
    other = setting["center_filters"] != default
    center = f", {setting['center_filters']} in the center" if other else ""
    return f"depth {setting['depth']}, {counted(setting['filters'], 'filter')}{center}"


def processes(world_size):
    """Returns '1 process' or 'n processes'."""
    return counted(world_size, "process", "processes")


def seed_differences(first, second, skill):
    """Returns the skill of the second cell minus that of the first, for each common seed."""
    one, other = (_skill_by_seed(cell, skill) for cell in (first, second))
    return [other[seed] - one[seed] for seed in sorted(one.keys() & other.keys())]


def margin_of(first, second, skill, percent):
    """Returns the margin of equivalence: a percentage of the first cell's skill, common seeds."""
    one, other = (_skill_by_seed(cell, skill) for cell in (first, second))
    return percent / 100 * abs(statistics.fmean(one[seed] for seed in one.keys() & other.keys()))


def _skill_by_seed(cell, skill):
    # A seed that was run twice is one sample of chance, not two.
    found = {}
    for run in cell.runs:
        found.setdefault(run.row["seed"], []).append(skill.of(run.row))
    return {seed: statistics.fmean(scores) for seed, scores in found.items()}


def mean_difference(differences):
    """Returns (mean, standard deviation, half the 95% confidence interval of the mean).

    Source: Student's t with n - 1 degrees of freedom for n differences.

    Args:
      differences: two or more numbers.
    """
    from scipy.special import stdtrit  # the quantile of Student's t

    count = len(differences)
    deviation = statistics.stdev(differences)
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return statistics.fmean(differences), deviation, half


def equivalence_half(differences):
    """Returns half the 90% confidence interval of the mean of two or more differences.

    Two one-sided t tests at level 0.05 reject "the true mean is at most -margin" and "at least
    margin" if the interval mean -+ this half lies inside (-margin, margin).

    Source: Schuirmann (1987), the two one-sided tests procedure (TOST).
    """
    from scipy.special import stdtrit

    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count)
    return float(stdtrit(count - 1, 1 - EQUIVALENCE_LEVEL)) * error


def seed_range(first, second, skill):
    """Returns the wider of the two cells' ranges over seeds; None unless both have several."""
    if len(first.runs) < 2 or len(second.runs) < 2:
        return None
    return max(max(each) - min(each) for each in (skill.of_cell(first), skill.of_cell(second)))


def paired(first, second):
    """Returns pairs of runs of the same seed, or all pairs if the cells have no common seed."""
    everything = list(itertools.product(first.runs, second.runs))
    alike = [(a, b) for a, b in everything if a.row["seed"] == b.row["seed"]]
    return alike or everything


def ratio_of(above, below, column):
    """Returns a column of one run divided by that of another, or None if it is unknown or 0."""
    a, b = above.row[column], below.row[column]
    return a / b if a is not None and b else None


def by_size(cells):
    """Returns cells in order of their trainable parameters."""
    return sorted(cells, key=lambda cell: cell.median("trainable_parameters"))


def growth_percent(small, large):
    """Returns by how many percent the larger cell has more trainable parameters."""
    return increase_percent(
        small.median("trainable_parameters"), large.median("trainable_parameters")
    )


def increase_percent(first, second):
    """Returns by how many percent `second` is more than `first`; None if either is unknown."""
    if first is None or second is None or first == 0:
        return None
    return 100 * (second / first - 1)


def increases(first, second, skill):
    """Returns the increase from the first to the second of two rows, as the paper states it.

    Args:
      first, second: rows of the table.
      skill: the Skill to compare by, or None.

    Returns:
      A dict of percent: parameters, time and energy of a sample, and skill; `skill_difference` is
      the difference itself. None if either row has no value, and for energy of two sensor kinds.
    """
    joules = [row["joules_per_sample"] for row in (first, second)]
    if first["energy_source"] != second["energy_source"]:
        joules = [None, None]
    seconds = [
        row["samples_per_second"] and 1 / row["samples_per_second"] for row in (first, second)
    ]
    scores = [skill and skill.of(row) for row in (first, second)]
    return {
        "parameters": increase_percent(
            first["trainable_parameters"], second["trainable_parameters"]
        ),
        "time": increase_percent(*seconds),
        "energy": increase_percent(*joules),
        "skill": increase_percent(*scores),
        "skill_difference": None if None in scores else scores[1] - scores[0],
    }


def pareto(points):
    """Returns the indices of the points that no other point beats, cheapest first.

    Args:
      points: list of (cost, worth): less cost and more worth are better.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front, best = [], None
    for i in order:
        if best is None or points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front
