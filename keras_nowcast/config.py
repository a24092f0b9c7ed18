"""RunConfig: everything that decides a training run, and the flags that set it.

A field is described once, here: default, help, bounds, and its role. Everything else derives from
it: the flag, the checks, what may change on resume, what names a cell of a sweep, and what makes
two runs repetitions of one another.
"""

import dataclasses
import datetime
import math
from dataclasses import dataclass, field

from keras_nowcast.energy.source import SOURCES as POWER_SOURCES
from keras_nowcast.errors import InputError
from keras_nowcast.model.precision import PRECISIONS
from keras_nowcast.model.sizes import MAX_DEPTH, check_sizes

SCHEDULES = ("constant", "cosine")
LR_SCALINGS = ("linear", "sqrt", "none")
LAYOUTS = ("auto", "nhwc")

# The roles of fields. All but FOLDER and WATCHING change what a run computes and costs.
EVENTS = "events"  # which events of the data set are used
WINDOWS = "windows"  # which windows of these events
SIZE = "size"  # of the model
TRAINING = "training"  # everything else that is computed, and how
SEED = "seed"  # tells repetitions apart
FOLDER = "folder"  # where a run is; a sweep sets it
WATCHING = "watching"  # how a run is watched

# What the ranks of one job may have in a field.
ALIKE = "alike"  # all of them the same value
FIRST = "first"  # any value; that of rank 0 applies to all
OWN = "own"  # each its own value, since it is about the rank's host


def _flag(default, role, help, *, may_change=None, ranks=None, before=None, choices=(), **bounds):
    """Describes one field.

    Args:
      default: its default.
      role: one of the roles above.
      help: for --help.
      may_change: whether a resumed run may have another value (default: by the role).
      ranks: ALIKE, FIRST or OWN (default: FIRST for the role WATCHING, otherwise ALIKE).
      before: the value of a run whose version did not have the field (default: `default`). If it
        is given, a cell of a sweep with that value has the name that it had without the field.
      choices: the values that are allowed.
      **bounds: any of `at_least`, `above`, `at_most`, `below`.
    """
    may_change = role in (FOLDER, WATCHING) if may_change is None else may_change
    return field(
        default=default,
        metadata={
            "role": role,
            "help": help,
            "may_change_on_resume": may_change,
            "ranks": ranks or (FIRST if role == WATCHING else ALIKE),
            "before": default if before is None else before,
            "is_later": before is not None,
            "choices": choices,
            "bounds": bounds,
        },
    )


@dataclass(frozen=True)
class RunConfig:
    """One training run. Every field is a flag of the same name (`--run-dir` for `run_dir`).

    Raises:
      InputError: a value breaks its rule.
    """

    data: str | None = _flag(
        None,
        EVENTS,
        "root folder of a SEVIR data set, with CATALOG.csv and data/ (default: a small synthetic "
        "one, written to data/synthetic first)",
        may_change=True,  # only its path: the windows in it must be the same
        ranks=OWN,  # likewise
    )
    run_dir: str | None = _flag(
        None,
        FOLDER,
        "folder for the files of the run (default: a new one under runs/, named by time and model)",
        ranks=FIRST,
    )
    depth: int = _flag(
        4, SIZE, f"encoder levels of the UNet, 1 to {MAX_DEPTH}", at_least=1, at_most=MAX_DEPTH
    )
    filters: int = _flag(
        16, SIZE, "filters of the first level; each further level has twice as many", at_least=1
    )
    center_filters: int | None = _flag(
        None,
        SIZE,
        "filters of the center (default: as the authors have it, filters x 2**(depth+1))",
        at_least=1,
    )
    precision: str = _flag("auto", TRAINING, "precision of the layers", choices=PRECISIONS)
    grid: int | None = _flag(
        None,
        TRAINING,
        "pixels along a side: the stored size, or a divisor of it, by block means of the valid "
        "pixels (default: the stored size)",
        at_least=2,
    )
    epochs: int = _flag(10, TRAINING, "epochs to train", may_change=True, at_least=1)
    batch_per_replica: int = _flag(4, TRAINING, "windows in a batch of one process", at_least=1)
    learning_rate: float = _flag(
        1e-3,
        TRAINING,
        "Adam's learning rate for one process; --lr-scaling says how it grows with their number",
        above=0,
        below=math.inf,
    )
    warmup_epochs: float = _flag(
        1.0,
        TRAINING,
        "epochs over which the learning rate rises from that of one process to that of all",
        at_least=0,
        below=math.inf,
    )
    schedule: str = _flag(
        "constant",
        TRAINING,
        "learning rate after the warm-up: constant, or falling to 0 as a cosine",
        choices=SCHEDULES,
    )
    augment: bool = _flag(
        False,
        TRAINING,
        "mirror, rotate, shift, and weaken or strengthen the training windows at random, from the "
        "seed of the run",
    )
    start_from: str | None = _flag(
        None,
        TRAINING,
        "run folder whose finished model is the starting point; its sizes must be the same, and "
        "its batch normalization stays as it is (default: random weights)",
    )
    seed: int = _flag(0, SEED, "seed of weights and shuffling", at_least=0, at_most=2**31 - 1)
    deterministic: bool = _flag(
        False,
        TRAINING,
        "the same bits from the same command also on GPUs and with three or more processes, at "
        "some cost in speed",
    )
    resume: bool = _flag(
        False,
        FOLDER,
        "resume the run in --run-dir from its checkpoint, also with another number of processes",
    )
    checkpoint_minutes: float = _flag(
        10.0,
        WATCHING,
        "minutes between checkpoints within an epoch, in addition to the one at its end; 0 for "
        "that one only",
        at_least=0,
        below=math.inf,
    )
    stall_seconds: float = _flag(
        300.0,
        WATCHING,
        "stop all ranks if one makes no progress for this many seconds, and report which rank and "
        "why",
        at_least=1,
        below=math.inf,
    )
    skip_bad_events: int = _flag(
        0,
        WATCHING,
        "skip up to N unreadable events instead of stopping; record.json lists them",
        at_least=0,
    )
    power_source: str = _flag(
        "auto",
        WATCHING,
        "where power is read; auto-or-estimate estimates it if there is no sensor, and marks it",
        ranks=OWN,
        choices=POWER_SOURCES,
    )
    power_interval_s: float = _flag(
        0.1,
        WATCHING,
        "seconds between two readings of power",
        ranks=OWN,
        at_least=0.001,
        at_most=60,
    )
    watts_per_core: float | None = _flag(
        None,
        WATCHING,
        "assumed power of a busy core in watts, for --power-source estimate (default: the "
        "processor's design power, from a small table)",
        ranks=OWN,
        above=0,
        below=1000,
    )
    power_limit_w: float | None = _flag(
        None,
        TRAINING,
        "power limit of each GPU during the run in watts, set through NVML if this user may "
        "(default: the present limit)",
        above=0,
        below=math.inf,
    )
    window_stride: int = _flag(
        12, WINDOWS, "frames between the starts of two windows of an event", at_least=1
    )
    max_windows: int | None = _flag(None, WINDOWS, "use at most N windows of each set", at_least=1)
    max_missing: float = _flag(
        1.0,
        EVENTS,
        "largest fraction of missing pixels that an event may have; missing pixels are masked; 0 "
        "is the authors' rule",
        at_least=0,
        at_most=1,
    )
    train_before: str | None = _flag(
        None,
        EVENTS,
        "train on events up to this time, YYYY-MM-DD (default: 2019-01-01, or --test-from if that "
        "is earlier). Later events up to --test-from validate, or the last fifth of the training "
        "days if there are none. If the default dates leave no training or no test events, the "
        "sets have about 60, 20 and 20% of the events, by time",
    )
    test_from: str | None = _flag(
        None,
        EVENTS,
        "test set: events after this time, which only evaluate.py reads (default: 2019-06-01, or "
        "--train-before if that is later)",
    )
    authors_split: bool = _flag(
        False,
        EVENTS,
        "select events as the authors of SEVIR did: complete ones, ids without repetition, full "
        "batches of 8 events, divided at 2019-06-01; the last fifth of the training days validates",
    )
    fp16_allreduce: bool = _flag(
        False,
        TRAINING,
        "send gradients as float16; meant for mixed_float16, whose loss-scale check detects an "
        "overflow",
    )
    tensorboard: bool = _flag(False, WATCHING, "write TensorBoard logs to the run folder")
    layer_times: bool = _flag(
        False,
        WATCHING,
        "after training, time each layer separately, and measure the machine's peak compute rate "
        "and memory bandwidth, for the roofline of plot_figures.py",
    )
    lr_scaling: str = _flag(
        "linear",
        TRAINING,
        "how the learning rate grows with the number of processes N: linear multiplies it by N, "
        "sqrt by the square root of N, none leaves it",
        before="linear",
        choices=LR_SCALINGS,
    )
    tf32: bool = _flag(
        False,
        TRAINING,
        "let float32 convolutions on GPUs round their inputs to TensorFloat-32, 10 bits of "
        "mantissa; otherwise float32 is float32",
        before=False,
    )
    layout: str = _flag(
        "auto",
        TRAINING,
        "layout of images on GPUs: auto is TensorFlow's choice, NCHW in float32 and NHWC in half "
        "precision; nhwc is NHWC in both",
        before="auto",
        choices=LAYOUTS,
    )
    fused_relu: bool = _flag(
        False,
        TRAINING,
        "on GPUs, batch normalization and ReLU in one operation of cuDNN, in half precision "
        "(TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT=1); NVIDIA warns that it can overflow",
        before=False,
    )
    xla: bool = _flag(
        False,
        TRAINING,
        "compile the forward and the backward pass of a step with XLA; the averages over ranks and "
        "the update stay outside",
        before=False,
    )
    share_gpus: bool = _flag(
        False,
        TRAINING,
        "let several ranks use one GPU; otherwise such a job is refused",
        before=False,
    )
    reader_threads: int | None = _flag(
        None,
        WATCHING,
        "threads of each rank that read events, and as many again that cut the windows of large "
        "batches (default: the cores that this process may use, up to 4)",
        ranks=OWN,
        at_least=1,
    )

    def __post_init__(self):
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None:
                _check_value(each, value)
        if self.schedule == "cosine" and self.epochs <= self.warmup_epochs:
            raise InputError(
                "`--schedule cosine` must have more `--epochs` than `--warmup-epochs`, after which "
                f"the rate begins to fall. Received: {self.epochs} and {self.warmup_epochs:g}; "
                "train longer, warm up for less, or leave the schedule constant."
            )
        for name in ("train_before", "test_from"):
            if getattr(self, name) is not None:
                self._date(name)
        if self.grid is not None:
            check_sizes(self.grid, *self.sizes)
        if self.resume and self.run_dir is None:
            raise InputError(
                "`--resume` needs `--run-dir`, the folder of the run. Received: none; name it."
            )

    @property
    def sizes(self):
        """Returns (depth, filters, center_filters), as the functions of model/ take them."""
        return tuple(getattr(self, name) for name in names_of(SIZE))

    @property
    def train_before_time(self):
        """Returns train_before as a datetime, or None."""
        return self.train_before and self._date("train_before")

    @property
    def test_from_time(self):
        """Returns test_from as a datetime, or None."""
        return self.test_from and self._date("test_from")

    @property
    def selection(self):
        """Returns what splits.read_split divides a data set by, in the order of its arguments."""
        return self.max_missing, self.train_before_time, self.test_from_time, self.authors_split

    def _date(self, name):
        try:
            time = datetime.datetime.fromisoformat(getattr(self, name))
        except ValueError:
            raise InputError(
                f"`{as_flag(name)}` must be a date, YYYY-MM-DD. Received: {getattr(self, name)!r}."
            ) from None
        if time.tzinfo is not None:  # the catalog's times are UTC and do not say so
            time = time.astimezone(datetime.timezone.utc).replace(tzinfo=None)
        return time


def date_text(time):
    """Returns a datetime in the form of --train-before and --test-from; None as None."""
    if time is None:
        return None
    return time.isoformat().removesuffix("T00:00:00")


def names_of(*roles):
    """Returns the names of RunConfig's fields that have one of the roles, in their order."""
    return tuple(
        each.name for each in dataclasses.fields(RunConfig) if each.metadata["role"] in roles
    )


def names_on_ranks(rule):
    """Returns the names of RunConfig's fields with a rule for ranks: ALIKE, FIRST or OWN."""
    return tuple(
        each.name for each in dataclasses.fields(RunConfig) if each.metadata["ranks"] == rule
    )


MAY_CHANGE_ON_RESUME = frozenset(
    each.name for each in dataclasses.fields(RunConfig) if each.metadata["may_change_on_resume"]
)


def completed(stored):
    """Returns a stored configuration with every field of RunConfig.

    Args:
      stored: dict of the fields as config.json has them. The run of an earlier version has fewer;
        the others have the value that such a run had.
    """
    before = {each.name: each.metadata["before"] for each in dataclasses.fields(RunConfig)}
    return before | stored


def _check_value(each, value):
    """Raises InputError unless a value of a field is one of its choices and within its bounds."""
    rule = broken_rule(each, value)
    if rule:
        raise InputError(f"`{as_flag(each.name)}` must be {rule}. Received: {value}.")


def broken_rule(each, value):
    """Returns the rule that a value of a field of RunConfig breaks, as text, or None."""
    choices, bounds = each.metadata["choices"], each.metadata["bounds"]
    # Written so that NaN is outside of any bounds.
    within = (
        value >= bounds.get("at_least", value)
        and value <= bounds.get("at_most", value)
        and ("above" not in bounds or value > bounds["above"])
        and ("below" not in bounds or value < bounds["below"])
    )
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    return _rule(bounds) if bounds and not within else None


def _rule(bounds):
    """Returns bounds as text, for example "from 0 to 1" or "above 0 and finite"."""
    if bounds.keys() == {"at_least", "at_most"}:
        return f"from {bounds['at_least']} to {bounds['at_most']}"
    return " and ".join(
        "finite" if limit == math.inf else f"{name.replace('_', ' ')} {limit}"
        for name, limit in bounds.items()
    )


def as_flag(name):
    """Returns the flag of a field, `--run-dir` for `run_dir`."""
    return "--" + name.replace("_", "-")
