"""RunConfig: everything that decides a training run, and the flags that set it."""

import argparse
import dataclasses
import datetime
import re
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

from keras_nowcast.energy.source import SOURCES as POWER_SOURCES
from keras_nowcast.errors import InputError
from keras_nowcast.model.precision import PRECISIONS
from keras_nowcast.model.sizes import MAX_DEPTH, check_sizes
from keras_nowcast.records import RunFolder

SCHEDULES = ("constant", "cosine")


def _flag(default, help, **more):
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class RunConfig:
    """One training run. Every field is a flag of the same name (`--run-dir` for `run_dir`).

    Raises:
      InputError: a value breaks its rule.
    """

    data: str | None = _flag(
        None,
        "root of a SEVIR data set: CATALOG.csv and data/ (default: a small synthetic one, written "
        "to data/synthetic first)",
    )
    run_dir: str | None = _flag(
        None, "folder for the run's files (default: a new one under runs/, named by time and model)"
    )
    depth: int = _flag(4, "encoder levels of the UNet, 1 to 6")
    filters: int = _flag(16, "filters of the first level; each level doubles them")
    center_filters: int | None = _flag(
        None, "filters of the centre (default: the authors', filters x 2**(depth+1))"
    )
    precision: str = _flag("auto", "precision of the layers", choices=PRECISIONS)
    grid: int | None = _flag(
        None,
        "pixels along a side, the stored size or a divisor of it by block mean of the valid "
        "pixels (default: the stored size)",
    )
    epochs: int = _flag(10, "epochs to train")
    batch_per_replica: int = _flag(4, "windows in a batch of one process")
    learning_rate: float = _flag(
        1e-3, "Adam's learning rate for one process; multiplied by the number of processes"
    )
    warmup_epochs: float = _flag(
        1.0, "epochs over which the learning rate rises from that of one process to that of all"
    )
    schedule: str = _flag(
        "constant",
        "learning rate after the warm-up: constant, or falling to 0 as a cosine",
        choices=SCHEDULES,
    )
    augment: bool = _flag(
        False,
        "mirror, turn, shift, and weaken or strengthen the training windows at random, from "
        "the run's seed",
    )
    start_from: str | None = _flag(
        None,
        "run folder whose finished network this one starts as, of the same sizes; its batch "
        "normalization stays as it is (default: random weights)",
    )
    seed: int = _flag(0, "seed of weights and shuffling")
    deterministic: bool = _flag(
        False,
        "the same bits from the same command, also on GPUs and on three processes or more, "
        "at some cost of speed",
    )
    resume: bool = _flag(
        False, "go on from the checkpoint in --run-dir, also on another number of processes"
    )
    checkpoint_minutes: float = _flag(
        10.0,
        "minutes after which a checkpoint is saved within an epoch, besides the one at its "
        "end; 0 for that one alone",
    )
    stall_seconds: float = _flag(
        300.0, "seconds without a step after which all processes end, with a line that says why"
    )
    skip_bad_events: int = _flag(
        0, "go on without up to so many events that cannot be read; they are listed in the record"
    )
    power_source: str = _flag("auto", "where power is read", choices=POWER_SOURCES)
    power_interval_s: float = _flag(0.1, "seconds between two readings of power")
    watts_per_core: float | None = _flag(
        None,
        "stated power of a busy core, for --power-source estimate (default: the processor's "
        "design power, from a small table)",
    )
    power_limit_w: float | None = _flag(
        None,
        "power limit of each GPU while the run lasts, set through NVML where this user may "
        "(default: as it is)",
    )
    window_stride: int = _flag(12, "frames between the starts of two windows of an event")
    max_windows: int | None = _flag(None, "use at most so many windows of each split")
    max_missing: float = _flag(
        1.0,
        "largest share of missing pixels an event may have; missing pixels are masked; 0 is "
        "the authors' rule",
    )
    train_before: str | None = _flag(
        None,
        "train on events up to this time, YYYY-MM-DD (default: --test-from, else 2019-06-01; "
        "a catalogue wholly on one side of that holds out its last fifth by time)",
    )
    test_from: str | None = _flag(
        None, "hold out events after this time (default: --train-before, else 2019-06-01)"
    )
    authors_split: bool = _flag(
        False,
        "select events as SEVIR's authors did: complete ones, ids without repetition, whole "
        "batches of 8 events, divided at 2019-06-01",
    )
    fp16_allreduce: bool = _flag(
        False, "send gradients as float16; meant for mixed_float16, whose check sees an overflow"
    )
    tensorboard: bool = _flag(False, "write TensorBoard logs to the run folder")
    layer_times: bool = _flag(
        False,
        "after training, time each layer by itself and what the machine does at most: the "
        "roofline of plot_figures.py",
    )

    def __post_init__(self):
        at_least = {
            "filters": 1,
            "center_filters": 1,
            "grid": 2,
            "epochs": 1,
            "batch_per_replica": 1,
            "warmup_epochs": 0,
            "seed": 0,
            "window_stride": 1,
            "max_windows": 1,
            "checkpoint_minutes": 0,
            "stall_seconds": 1,
            "skip_bad_events": 0,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # NaN is no number to train with
                raise InputError(f"`{_as_flag(name)}` must be at least {least}. Received: {value}.")
        self._demand(1 <= self.depth <= MAX_DEPTH, "depth", f"must be from 1 to {MAX_DEPTH}")
        self._demand(0 < self.learning_rate < float("inf"), "learning_rate", "must be above 0")
        if self.schedule == "cosine" and self.epochs <= self.warmup_epochs:
            raise InputError(
                "`--schedule cosine` must have more `--epochs` than `--warmup-epochs`, after which "
                f"the rate begins to fall. Received: {self.epochs} and {self.warmup_epochs:g}; "
                "train longer, warm up for less, or leave the schedule constant."
            )
        in_range = 0.001 <= self.power_interval_s <= 60
        self._demand(in_range, "power_interval_s", "must be from 0.001 to 60")
        self._demand(self.warmup_epochs < float("inf"), "warmup_epochs", "must be a number")
        self._demand(self.seed < 2**31, "seed", "must be below 2**31")
        self._demand(0 <= self.max_missing <= 1, "max_missing", "must be a share from 0 to 1")
        for each in dataclasses.fields(self):
            choices = each.metadata.get("choices")
            if choices:
                rule = f"must be one of {', '.join(choices)}"
                self._demand(getattr(self, each.name) in choices, each.name, rule)
        for name in ("train_before", "test_from"):
            if getattr(self, name) is not None:
                self._date(name)
        if self.grid is not None:
            check_sizes(self.grid, self.depth, self.filters, self.center_filters)
        if self.resume and self.run_dir is None:
            raise InputError("`--resume` needs `--run-dir`, the folder of the run to go on with.")

    @property
    def train_before_time(self):
        """Returns train_before as a datetime, or None."""
        return self.train_before and self._date("train_before")

    @property
    def test_from_time(self):
        """Returns test_from as a datetime, or None."""
        return self.test_from and self._date("test_from")

    def _date(self, name):
        try:
            time = datetime.datetime.fromisoformat(getattr(self, name))
        except ValueError:
            raise InputError(
                f"`{_as_flag(name)}` must be a date, YYYY-MM-DD. Received: {getattr(self, name)!r}."
            ) from None

        if time.tzinfo is not None:  # the catalogue's times are UTC without saying so
            time = time.astimezone(datetime.timezone.utc).replace(tzinfo=None)
        return time

    def _demand(self, holds, name, rule):
        if not holds:
            raise InputError(f"`{_as_flag(name)}` {rule}. Received: {getattr(self, name)}.")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports bad usage as an InputError: one line, as everywhere.

    Flags are written out in full: an abbreviation would change its meaning with the next flag.
    """

    def __init__(self, description):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message):
        # argparse has no other hook for its own words.
        value = re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message)
        if value:
            flag, kind, received = value.groups()
            message = f"`{flag}` must be of type {kind}. Received: {received}"
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message)
        if unknown:
            message = f"`{unknown[1].split()[0]}` is no flag here. Received: {unknown[1]}"
        raise InputError(f"{message}; {self.prog} --help lists the flags.")


def build_parser(description, config_class=RunConfig):
    """Builds the argument parser of a script from the fields of a config dataclass.

    Args:
      description: the script's docstring; its first line is shown first by --help.
      config_class: a dataclass whose fields carry `help` (and `choices`) in their metadata.

    Returns:
      An ArgumentParser that raises InputError on bad usage; abbreviations are refused.
    """
    parser = Parser(description)
    for each in dataclasses.fields(config_class):
        add_field(parser, each)
    return parser


def add_field(parser, each, several=False):
    """Adds the flag of one dataclass field to a parser.

    Args:
      parser: an ArgumentParser.
      each: the field.
      several: take one or more values, as a list; a flag not given is then absent from what is
        parsed.
    """
    flag, kind = _as_flag(each.name), _value_type(each)
    text = each.metadata["help"]
    default = argparse.SUPPRESS if several else each.default
    if kind is bool:
        parser.add_argument(flag, action="store_true", default=default, help=text)
        return
    if each.default is not None:
        text += f" (default: {each.default})"
    parser.add_argument(
        flag,
        type=kind,
        default=default,
        nargs="+" if several else None,
        metavar="|".join(each.metadata.get("choices", ())) or _METAVARS[kind],
        help=text,
    )


def as_arguments(values):
    """Returns the words of train.py's command line for values of RunConfig's fields, by name.

    What is default or not in `values` is left out.
    """
    words = []
    for each in dataclasses.fields(RunConfig):
        value = values.get(each.name, each.default)
        if value != each.default:
            words += [_as_flag(each.name)] + ([] if value is True else [str(value)])
    return words


def read_preset(folder, name):
    """Returns the RUNS of a preset: a list of cells, each with `settings` and `processes`.

    Args:
      folder: Path of the presets.
      name: a name in it, or the path of a .py file like those.

    Raises:
      InputError: there is no such preset.
    """
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in folder.glob("*.py")))
        raise InputError(f"`--preset` must be one of {names}, or a .py file. Received: {name}.")
    return runpy.run_path(str(path))["RUNS"]


def parse_config(description, presets, arguments=None):
    """Reads the command line into a RunConfig.

    Args:
      description: the script's docstring.
      presets: Path of the folder of presets, which --preset chooses from.
      arguments: the words of the command line (default: this process's).

    Raises:
      InputError: an unknown flag, or a value that breaks its rule.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(description)
    parser.add_argument(
        "--preset", help="settings to begin from, a name in experiments/presets or a .py file"
    )
    asked = parser.parse_args(arguments)
    if asked.preset is not None:
        runs = read_preset(presets, asked.preset)
        if len(runs) != 1:
            raise InputError(
                f"`--preset` must be one of a single run here. Received: {asked.preset}, which has "
                f"{len(runs)}; experiments/sweep.py runs them."
            )
        parser.set_defaults(**runs[0].settings)
        asked = parser.parse_args(arguments)
    if asked.resume and asked.run_dir is not None:
        # A run goes on as it was started, but for the flags given now.
        parser.set_defaults(**(RunFolder(asked.run_dir).stored_config() or {}))
        asked = parser.parse_args(arguments)
    del asked.preset
    return RunConfig(**vars(asked))


_METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}


def _as_flag(name):
    return "--" + name.replace("_", "-")


def _value_type(each):
    for kind in (bool, int, float, str):  # `int | None` takes an int
        if each.type is kind or each.type == kind | None:
            return kind
    raise TypeError(f"no flag for a field of type {each.type}")
