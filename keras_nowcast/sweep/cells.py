"""The cells of a sweep: each a RunConfig and a number of processes, and their names.

A name ends in a hash of everything that a result depends on, so each cell is trained once.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import reprlib
import runpy
import traceback
from dataclasses import dataclass
from pathlib import Path

from keras_nowcast.config import EVENTS, FOLDER, SIZE, WATCHING, RunConfig, names_of
from keras_nowcast.data import sevir, splits, synthetic
from keras_nowcast.energy.nvml import NvmlUnavailable, list_gpus
from keras_nowcast.errors import InputError
from keras_nowcast.model.cost import count_unet
from keras_nowcast.model.precision import choose_precision
from keras_nowcast.model.sizes import default_center_filters
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

DEFAULTS = {each.name: each.default for each in dataclasses.fields(RunConfig)}
# The values of later fields in runs that were made before; they leave the names of cells alone.
BEFORE = {
    each.name: each.metadata["before"]
    for each in dataclasses.fields(RunConfig)
    if each.metadata["is_later"]
}
# A cell is identified by the events themselves, not by how they were selected or where they are.
SELECTION = frozenset(names_of(EVENTS))
# Fields that change no result and no cost: where files are, and how a run is watched.
_WATCHING = frozenset(names_of(FOLDER, WATCHING))
NOT_OF_THE_CELL = SELECTION | _WATCHING


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, as requested.

    Attributes:
      settings: fields of RunConfig that differ from their defaults, by name.
      processes: number of processes that train together.

    Raises:
      InputError: a value breaks its rule. A grid that does not suit the depth is not an error yet:
        in a sweep over both, such a cell is one of the results.
    """

    settings: dict
    processes: int = 1

    def __post_init__(self):
        RunConfig(**{**self.settings, "grid": None})
        if self.processes < 1:
            raise InputError(f"`--np` must be at least 1. Received: {self.processes}.")

    @property
    def config(self):
        """The RunConfig.

        Raises:
          InputError: the grid does not suit the depth.
        """
        return RunConfig(**self.settings)

    def config_in(self, folder, resume):
        """Returns the RunConfig of this cell's run in a folder."""
        return RunConfig(**{**self.settings, "run_dir": str(folder), "resume": resume})

    def value(self, name):
        """Returns the value of a field of RunConfig."""
        return self.settings.get(name, DEFAULTS[name])


def all_combinations(processes=(1,), **values):
    """Returns a cell for every combination of values, for a preset.

    Args:
      processes: numbers of processes.
      **values: the values of each field of RunConfig that is not left at its default.
    """
    return span([Cell({})], {**values, "processes": processes})


def span(cells, axes):
    """Returns a copy of each cell for every combination of the values of the axes.

    Args:
      cells: Cells.
      axes: dict of sequences of values, by field of RunConfig or `processes`; the last axis
        varies fastest.

    Raises:
      InputError: a value breaks its rule.
    """
    spanned = []
    for cell in cells:
        for values in itertools.product(*axes.values()):
            settings = {**cell.settings, **dict(zip(axes, values, strict=True))}
            processes = settings.pop("processes", cell.processes)
            spanned.append(Cell(settings, processes))
    return spanned


@dataclass(frozen=True)
class PlacedCell:
    """A cell and the data it runs on.

    Attributes:
      cell: the Cell, with its data and grid filled in.
      name: name of its folder: its main settings, and a hash of everything that matters.
      windows: number of windows per epoch, (training, validation).
      refusal: why the cell cannot run, known before it starts; None if no reason is known.
    """

    cell: Cell
    name: str
    windows: tuple
    refusal: str | None

    @property
    def policy(self):
        """The precision of the training; for `auto`, the choice for the CPU of this machine.

        GPUs are not taken into account: only the process that uses a GPU can query it.
        """
        return choose_precision(self.cell.value("precision"), gpus=())[0]

    @property
    def cost(self):
        """The counted Cost of its model."""
        sizes = map(self.cell.value, names_of(SIZE))
        cost = count_unet(self.cell.value("grid"), FRAMES_IN, FRAMES_OUT, *sizes)
        started = self.cell.value("start_from") is not None
        return cost.with_frozen_normalization() if started else cost

    @property
    def training_flops(self):
        """Counted FLOPs of its complete training."""
        windows = self.windows[0] * self.cell.value("epochs")
        batch = self.cell.value("batch_per_replica")
        return windows * self.cost.training_flops(self.policy, batch)

    @property
    def tensor_bytes(self):
        """Counted peak bytes of tensors of one process during a step."""
        step = self.cost.step_bytes(self.policy, self.cell.value("batch_per_replica"))
        return self.cost.state_bytes + step

    def model_record(self):
        """Returns the part `model` of its record.json."""
        batch, fp16 = (self.cell.value(name) for name in ("batch_per_replica", "fp16_allreduce"))
        return self.cost.record(self.policy, batch, fp16)


def read_preset(folder, name):
    """Returns the Cells of a preset, which are its list RUNS.

    Args:
      folder: Path of the folder of presets.
      name: name of a preset in it, or the path of another .py file with such a list.

    Raises:
      InputError: there is no such preset, it fails, or RUNS is not a list of Cells.
    """
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in folder.glob("*.py")))
        raise InputError(
            f"`--preset` must be one of {names}, or an existing .py file. Received: {name}."
        )
    try:
        runs = runpy.run_path(str(path)).get("RUNS")
    except InputError as error:
        raise InputError(
            f"`--preset` must have cells that can be trained. {path}: {error}"
        ) from None
    except (Exception, SystemExit) as error:  # it is a program, which may do anything
        raise InputError(
            f"`--preset` must be a Python file that runs. Received: {path}, {_fault(path, error)}; "
            "experiments/presets has examples."
        ) from None
    if not isinstance(runs, list | tuple) or not runs or not all(isinstance(r, Cell) for r in runs):
        raise InputError(
            "`--preset` must be a file with RUNS, a list of Cells that is not empty. Received: "
            f"{path}, with {'no RUNS' if runs is None else f'RUNS = {reprlib.repr(runs)}'}; "
            "experiments/presets has examples."
        )
    return list(runs)


def _fault(path, error):
    """Returns where in a preset an exception was raised, and which, as text."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    where = f"line {lines[-1]}: " if lines and lines[-1] else ""
    return f"{where}{type(error).__name__}: {getattr(error, 'msg', error)}"


def place(cells, say=print):
    """Reads the data sets of cells and returns distinct PlacedCells, in the order of the cells.

    Args:
      cells: Cells. If one names no data set, the small synthetic one is written first.
      say: function that is called with each message about the data sets.

    Raises:
      InputError: a data set cannot be read or split, or none of the cells can run.
    """
    splits = {}
    placed = {}
    for cell in cells:
        if cell.value("data") is None:
            root = str(synthetic.default_root(say))
            cell = Cell({**cell.settings, "data": root}, cell.processes)
        selection = tuple(cell.value(name) for name in sorted(SELECTION))
        if selection not in splits:
            splits[selection] = _read_split(cell, say)
        one = _placed(cell, splits[selection])
        placed.setdefault(one.name, one)
    refusals = [one.refusal for one in placed.values()]
    if refusals and all(refusals):
        raise InputError(refusals[0])
    return list(placed.values())


def without_repeats(placed, say=print):
    """Returns PlacedCells without those that would be the same training on this machine.

    On a processor without half-precision instructions, `--precision auto` is float32. A machine
    with GPUs keeps all cells, because only the process that uses a GPU knows what `auto` becomes.

    Args:
      placed: PlacedCells.
      say: function that is called with a message about what is left out.
    """
    with contextlib.suppress(NvmlUnavailable):
        list_gpus()
        return placed
    kept = {}
    for one in placed:
        settings = {**one.cell.settings, "precision": one.policy}
        matters = {name: settings[name] for name in sorted(settings) if name not in _WATCHING}
        kept.setdefault((repr(matters), one.cell.processes), one)
    left_out = len(placed) - len(kept)
    if left_out:
        say(
            f"{left_out} of {len(placed)} cells are left out: this processor has no half-precision "
            "instructions, so that --precision auto is float32, and those cells are in the sweep"
        )
    return list(kept.values())


def _read_split(cell, say):
    config = RunConfig(**{**cell.settings, "grid": None})
    split = splits.read_split(config.data, *config.selection, say)
    say(f"{config.data}: {split.note}")
    return split


def _placed(cell, split):
    grid = cell.value("grid") or split.train[0].size
    cell = Cell({**cell.settings, "grid": grid}, cell.processes)
    return PlacedCell(
        cell,
        _name(cell, split),
        tuple(_windows(cell, side) for side in (split.train, split.validation)),
        _refusal(cell, split),
    )


def _refusal(cell, split):
    try:
        config = cell.config
        for event in split.train + split.validation:
            sevir.block_factor(event, config.grid)
    except InputError as error:
        return str(error)
    return None


def _windows(cell, events):
    stride, most = cell.value("window_stride"), cell.value("max_windows")
    return sevir.count_windows(events, stride, most)


def _name(cell, split):
    """Returns the name of a cell, for example d3-f16-g96-float32-np1-s0-1a2b3c4d."""
    matters = settings_that_matter(cell)
    matters["events"] = [
        [(event.id, str(event.time), event.frames, event.size) for event in side]
        for side in (split.train, split.validation)
    ]
    hashed = hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()
    return (
        f"d{cell.value('depth')}-f{cell.value('filters')}-g{cell.value('grid')}-"
        f"{cell.value('precision')}-np{cell.processes}-s{cell.value('seed')}-{hashed[:8]}"
    )


def settings_that_matter(cell):
    """Returns what the hash in a cell's name is of, except the events, as a dict.

    Choice: a field that is off (None or False) does not enter the hash, nor does a later field with
    the value of the runs before it. Therefore a field that a later version adds does not rename
    their cells. The rule of the learning rate enters with several processes only.
    """
    neutral = {**BEFORE, "lr_scaling": cell.value("lr_scaling")} if cell.processes == 1 else BEFORE
    matters = {
        name: type(default)(cell.value(name)) if default is not None else cell.value(name)
        for name, default in DEFAULTS.items()
        if name not in NOT_OF_THE_CELL
        and cell.value(name) not in (None, False)
        and cell.value(name) != neutral.get(name)
    }
    matters.setdefault(
        "center_filters", default_center_filters(cell.value("depth"), cell.value("filters"))
    )
    matters["processes"] = cell.processes
    return matters
