"""One row per run: what finished runs are compared by. Everything comes from run folders.

A cell of the study is a setting: everything that determines a result except the seed. The runs of
a cell are its repetitions, and the only measure of chance available.
"""

import csv
import statistics
from dataclasses import dataclass

from keras_nowcast import schema
from keras_nowcast.config import FOLDER, SEED, WATCHING, completed, names_of
from keras_nowcast.errors import InputError
from keras_nowcast.files import written_whole
from keras_nowcast.model.cost import count_unet
from keras_nowcast.model.sizes import default_center_filters
from keras_nowcast.process import one_line
from keras_nowcast.text_table import counted
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

THRESHOLDS = (16, 74, 133)  # VIL codes whose CSI every validation computes
RUNNING = "running"  # the status of a run that a job is training
# Fraction of an epoch's time that its joules must cover to be used. Below it, they would be too
# low by more than runs on one machine differ.
ENOUGH_COVERAGE = 0.99

# Columns of the table: fields of the configuration, then the keys that the schema marks.
_OF_CONFIG = (
    "depth",
    "filters",
    "center_filters",
    "grid",
    "precision",
    "batch_per_replica",
    "epochs",
    "seed",
    "power_limit_w",
)
_RENAMED = {("energy", "source"), ("energy", "joules")}  # with the section before the name

# Fields of the configuration that do not decide what a run computes or costs. The seed does, by
# chance: it tells the runs of one cell apart.
_NOT_THE_SETTING = frozenset(names_of(FOLDER, WATCHING, SEED))


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A run as the study uses it.

    Attributes:
      folder: its RunFolder.
      row: dict of the columns of table.csv; None if not measured.
      config: dict of its configuration.
      setting: dict of everything that determines its result except the seed, including the machine.
      epochs: rows of its epochs.csv; `joules` is None also if they cover less than
        ENOUGH_COVERAGE of the epoch.
      devices: number of devices that measured its energy and whose power is in its trace.
      roofs: roofline limits of its first process, from its record; None if not measured.
      changed_processes: True if it was resumed with another number of processes.
    """

    folder: object
    row: dict
    config: dict
    setting: dict
    epochs: list
    devices: int
    roofs: dict | None
    changed_processes: bool

    @property
    def name(self):
        """The name of its folder."""
        return self.folder.path.resolve().name

    @property
    def is_completed(self):
        """True if it trained to its last epoch."""
        return self.row["status"] == "completed"


@dataclass(frozen=True, eq=False)
class MeasuredCell:
    """The completed runs of one setting, which differ in their seeds.

    Attributes:
      setting: as in MeasuredRun.
      runs: list of at least one MeasuredRun.
    """

    setting: dict
    runs: list

    def values(self, column):
        """Returns the values of its runs in a column of the table, leaving out None."""
        return [run.row[column] for run in self.runs if run.row[column] is not None]

    def median(self, column):
        """Returns the median over its runs, or None if no run has a value."""
        values = self.values(column)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Skill:
    """The score by which runs are compared.

    Attributes:
      name: as text, with thresholds.
      columns: of the table; their mean is the skill.
      higher_is_better: False for a loss.
    """

    name: str
    columns: tuple
    higher_is_better: bool

    def of(self, row):
        """Returns the skill of a row of the table or of epochs.csv; None if it was not scored."""
        values = [row.get(column) for column in self.columns]
        return None if None in values else statistics.fmean(values)

    def of_test(self, row):
        """Returns the same CSI of the test set, to be shown; None if it was not scored."""
        values = [row.get(column.replace("val_", "test_")) for column in self.columns]
        return None if None in values else statistics.fmean(values)

    def of_cell(self, cell):
        """Returns the skill of each run of a cell."""
        return [self.of(run.row) for run in cell.runs]


def read(runs):
    """Returns a MeasuredRun for each run that `records.read_runs` returns."""
    return [_run(folder, record) for folder, record in runs]


def left_out_lines(left_out, used):
    """Returns lines on the runs that `records.find_runs` left out, [] if there are none.

    Args:
      left_out: {path: reason}.
      used: number of the other runs.
    """
    if not left_out:
        return []
    lines = [f"left out: {one_line(reason)}" for reason in left_out.values()]
    return [*lines, f"{counted(len(left_out), 'run')} left out, {used} used"]


def cells(runs):
    """Returns the MeasuredCells of the completed runs, the smallest model first.

    A run that was resumed with another number of processes is in no cell.
    """
    found = {}
    for run in sorted(runs, key=order):
        if run.is_completed and not run.changed_processes:
            found.setdefault(_key(run.setting), []).append(run)
    return [MeasuredCell(members[0].setting, members) for members in found.values()]


def order(run):
    """Returns the sort key of a run: its size, then precision, processes and seed."""
    row = run.row
    return (
        row["trainable_parameters"] or 0,
        row["depth"] or 0,
        row["precision"] or "",
        row["world_size"] or 0,
        row["seed"] or 0,
        run.name,
    )


def group(cells_of_study, *free):
    """Returns lists of cells that differ only in the settings named `free`."""
    found = {}
    for cell in cells_of_study:
        found.setdefault(_key(cell.setting, free), []).append(cell)
    return list(found.values())


def choose_skill(runs):
    """Returns the Skill by which all completed runs can be compared, or None.

    It is the validation's CSI, otherwise the validation loss, and never a score of the test set,
    since models are chosen by it. All runs get one measure. A threshold that is undefined in any
    run (nothing was observed at it) is left out.
    """
    rows = [run.row for run in runs if run.is_completed]
    at = [t for t in THRESHOLDS if rows and all(r[f"val_csi_{t}"] is not None for r in rows)]
    if at:
        words = f"validation CSI, mean of VIL {', '.join(map(str, at))}"
        return Skill(words, tuple(f"val_csi_{t}" for t in at), True)
    if rows and all(row["val_loss"] is not None for row in rows):
        return Skill("validation loss", ("val_loss",), False)
    return None


def whole_epochs(run):
    """Yields (row, seconds, joules) of each epoch of a run, for all of its windows.

    epochs.csv lacks the first step of each start, which includes compilation. The windows of that
    step are added at the run's own rate, without the compilation. If events were skipped, the
    number of windows of that step is unknown, and it stays left out.

    Yields:
      The row of epochs.csv; seconds of training; joules, None if not measured.
    """
    rate, each_joules = run.row["samples_per_second"], run.row["joules_per_sample"]
    for row in run.epochs:
        seconds, joules, samples = row["seconds"], row["joules"], row.get("samples")
        if rate and samples is not None and not run.row["skipped_events"]:
            left_out = max(0, run.row["windows_per_epoch"] - samples)
            seconds += left_out / rate
            if joules is not None and each_joules is not None:
                joules += left_out * each_joules
        yield row, seconds, joules


def write_table(runs, path):
    """Writes the rows of at least one run as CSV, atomically; empty if not measured."""
    with written_whole(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, list(runs[0].row))
        writer.writeheader()
        writer.writerows(run.row for run in runs)


def _key(setting, free=()):
    return tuple((name, str(value)) for name, value in setting.items() if name not in free)


def _run(folder, record):
    parts = {name: record.get(name) or {} for name in ("config", *schema.SECTIONS)}
    epochs = _epochs(folder, parts["energy"].get("coverage"))
    row = {
        "run": str(folder.path),
        "status": record["status"],
        "reason": record.get("status_reason"),
    }
    if folder.is_running():
        row |= {"status": RUNNING, "reason": "a job is running it now; its record is older"}
    row |= {name: parts["config"].get(name) for name in _OF_CONFIG}
    for section in schema.SECTIONS:
        if section != "data":
            row |= _marked(section, parts)
    row["center_filters"] = center_filters(parts["config"])
    row["gpus"] = _gpu_names(parts["environment"])
    row["hosts"] = len(parts["environment"].get("hosts") or ()) or None
    row["energy_is_estimate"] = row["energy_source"] == "estimate"
    row["energy_reason"] = (
        None
        if row["energy_joules"] is not None
        else (parts["energy"].get("joules_reason") or "the run recorded no energy")
    )
    if (parts["energy"].get("lost_coverage") or 1) < ENOUGH_COVERAGE:
        row["lost_joules"] = None
    row |= _counted(parts["config"])
    row |= _of_epochs(epochs, row)
    row |= _test_scores(folder)
    devices = len(parts["energy"].get("devices") or ()) if folder.power_file.exists() else 0
    starts = parts["training"].get("starts") or ()
    row["starts"] = len(starts) or None
    row["statistics_seconds_per_epoch"] = _median_of_epochs(epochs, "statistics_seconds")
    row["cpu_has_bfloat16"] = parts["environment"].get("cpu_has_bfloat16")
    row |= _marked("data", parts)  # columns of an earlier version keep their places
    lacks = parts["energy"].get("not_included") or ()
    row["energy_not_included"] = "; ".join(lacks) or None
    row["input_wait_seconds"] = parts["training"].get("input_wait_seconds")
    if lacks and row["energy_joules"] is not None:  # so that no comparison takes it for complete
        row["energy_source"] += f" without {row['energy_not_included']}"
    changed = len({each.get("world_size") for each in starts}) > 1
    setting = _setting(row, parts)
    roofs = record.get("roofs")  # runs of an earlier version have none
    return MeasuredRun(folder, row, parts["config"], setting, epochs, devices, roofs, changed)


def _marked(section, parts):
    """Returns the columns that the schema marks in a section of the record."""
    columns = {}
    for name in (key.name for key in schema.SECTIONS[section] if key.in_table):
        column = f"{section}_{name}" if (section, name) in _RENAMED else name
        columns[column] = parts[section].get(name)
    return columns


def _epochs(folder, coverage):
    """Returns the rows of epochs.csv, without joules that cover too little of an epoch.

    Earlier versions did not record the coverage of each epoch; their run's coverage is used.
    """
    rows = folder.read_epochs()
    for row in rows:
        covered = row.get("joules_coverage", coverage)
        if covered is not None and covered < ENOUGH_COVERAGE:
            row["joules"] = None
    return rows


def center_filters(config):
    """Returns the center filters of a configuration's dict, or the default if it has none."""
    if config.get("center_filters") is None and "depth" in config:
        return default_center_filters(config["depth"], config["filters"])
    return config.get("center_filters")


def _gpu_names(environment):
    """Returns '2 x NVIDIA A100' or the like, '' without a GPU, or None if unknown."""
    if environment.get("gpus") is None:
        return None
    names = [gpu.get("name") or "GPU" for gpu in environment["gpus"]]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _counted(config):
    """Returns the bytes of the model's state and of a step, as model/cost.py counts them."""
    names = ("counted_state_bytes", "counted_step_bytes", "counted_intensity")
    if config.get("grid") is None or config.get("precision") in (None, "auto"):
        return dict.fromkeys(names)  # it failed before data and machine determined it
    try:
        cost = count_config(config)
    except (InputError, KeyError):  # the sizes fit no model, or a failed run has none
        return dict.fromkeys(names)
    size = (config["precision"], config["batch_per_replica"])
    values = (cost.state_bytes, cost.step_bytes(*size), cost.intensity(*size))
    return dict(zip(names, values, strict=True))


def count_config(config):
    """Returns the Cost of a configuration's model; `config` is a dict of its fields."""
    sizes = (config["depth"], config["filters"], config["center_filters"])
    cost = count_unet(config["grid"], FRAMES_IN, FRAMES_OUT, *sizes)
    # Training from another run's model leaves its batch normalization as it is.
    return cost if config.get("start_from") is None else cost.with_frozen_normalization()


def _median_of_epochs(epochs, column):
    """Returns the median of a column of epochs.csv, or None if it has no value.

    The first epoch lacks the first step, which includes compilation; it is left out if there are
    others.
    """
    values = [row[column] for row in epochs[1:] or epochs if row.get(column) is not None]
    return statistics.median(values) if values else None


def _of_epochs(epochs, row):
    """Returns the columns that come from epochs.csv; times and joules are medians over them."""
    last = epochs[-1] if epochs else {}
    batch = (
        row["batch_per_replica"]
        and row["world_size"]
        and (row["batch_per_replica"] * row["world_size"])
    )
    steps = batch and row["windows_per_epoch"] and -(-row["windows_per_epoch"] // batch)
    # 0 s is that of an epoch without a timed step, which was not measured.
    seconds, rate = _median_of_epochs(epochs, "seconds") or None, row["samples_per_second"]
    return {
        "epochs_done": len(epochs),
        "seconds_per_epoch": seconds,
        # An epoch's windows are spread evenly over its steps.
        "seconds_per_step": row["windows_per_epoch"] / rate / steps if rate and steps else None,
        "val_seconds_per_epoch": _median_of_epochs(epochs, "val_seconds"),
        "joules_per_epoch": _median_of_epochs(epochs, "joules"),
        **{f"val_csi_{t}": last.get(f"val_csi_{t}") for t in THRESHOLDS},
        "val_mae": last.get("val_mae"),
    }


def _test_scores(folder):
    """Returns the model's test scores, all leads pooled; None if there is no scores.csv."""
    pooled = {
        row["threshold"]: row
        for row in folder.read_scores()
        if row["method"] == "model" and row["lead_minutes"] == "all"
    }
    any_row = next(iter(pooled.values()), {})
    scores = {f"test_csi_{t}": pooled.get(t, {}).get("csi") for t in THRESHOLDS}
    return scores | {"test_mae": any_row.get("mae"), "test_mse": any_row.get("mse")}


def _setting(row, parts):
    config = completed(parts["config"])
    if row["world_size"] == 1:
        config["lr_scaling"] = "linear"  # one process has the same rate by any rule
    setting = {name: value for name, value in config.items() if name not in _NOT_THE_SETTING}
    names = ("center_filters", "world_size", "cpu", "cores", "gpus", "hosts", "tensorflow", "keras")
    setting |= {name: row[name] for name in names}
    # None for runs of earlier versions, which did not record how their machine computed.
    return setting | {name: parts["environment"].get(name) for name in ("onednn", "tf32")}
