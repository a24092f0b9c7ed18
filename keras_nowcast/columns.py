"""The files of the run folder, and the columns of its CSV files, each described once.

Writers and readers take the names of columns from here; schema.py has the keys of record.json. An
empty cell means that the value was not measured or is not defined, never 0.
"""

from dataclasses import dataclass

from keras_nowcast.keys import FRACTION, INTEGER, NUMBER, TEXT, Key

CODES = "VIL codes"
_NO_PIXEL = "no pixel was valid"


@dataclass(frozen=True)
class File:
    """A file of the run folder.

    Attributes:
      name: its name.
      when: who writes it, and when.
      meaning: what it holds.
    """

    name: str
    when: str
    meaning: str


EPOCHS = (
    Key("epoch", INTEGER, "", "number of the epoch, from 0"),
    Key("loss", NUMBER, "normalized VIL squared", "training loss, the mean over valid pixels"),
    Key("val_loss", NUMBER, "normalized VIL squared", "validation loss", _NO_PIXEL),
    Key("learning_rate", NUMBER, "", "learning rate at the end of the epoch"),
    Key("loss_scale", NUMBER, "factor", "loss scale", "the precision is not mixed_float16"),
    Key("skipped_steps", INTEGER, "steps", "steps without an update"),
    Key("seconds", NUMBER, "s", "wall-clock time of training, as in `training.seconds`"),
    Key("val_seconds", NUMBER, "s", "wall-clock time of the validation"),
    Key("samples_per_second", NUMBER, "windows/s", "throughput", "no step was timed"),
    Key("joules", NUMBER, "J", "energy of `seconds`", "no energy was measured"),
)
# They follow EPOCHS in epochs.csv; runs of earlier versions lack some.
MORE_OF_EPOCHS = (
    Key("joules_estimated", INTEGER, "", "1 if the joules are an estimate, 0 if not"),
    Key("samples", INTEGER, "windows", "windows trained in `seconds`"),
    Key(
        "val_csi_<threshold>",
        NUMBER,
        FRACTION,
        "critical success index of the validation at this VIL code, all lead times",
        "no event was forecast or observed",
    ),
    Key("val_mae", NUMBER, CODES, "mean absolute error of the validation", _NO_PIXEL),
    Key(
        "joules_coverage",
        NUMBER,
        FRACTION,
        "fraction of `seconds`, of all devices, whose energy is known",
        "there is no device to measure",
    ),
    Key(
        "statistics_seconds",
        NUMBER,
        "s",
        "wall-clock time of estimating the batch-norm statistics before the validation",
        "the normalization is frozen",
    ),
    Key(
        "input_wait_seconds",
        NUMBER,
        "s",
        "part of `seconds` in which the host waited for the next batch, the mean over the ranks; a "
        "GPU may compute meanwhile",
    ),
)

POWER = (
    Key("time_s", NUMBER, "s", "time since the first start of the run", signed=True),
    Key("host", TEXT, "", "host of the device"),
    Key("device", TEXT, "", "UUID of the GPU, or the name of the CPU package or process"),
    Key("watts", NUMBER, "W", "power", "the reading was not valid"),
    Key("utilization_percent", NUMBER, "%", "GPU utilization", "it is unknown"),
    Key("memory_mib", NUMBER, "MiB", "GPU memory in use", "it is unknown"),
    Key("sm_mhz", NUMBER, "MHz", "clock of the GPU's multiprocessors", "it is unknown"),
    Key("temperature_c", NUMBER, "°C", "temperature of the GPU", "it is unknown", signed=True),
    Key(
        "throttle_reasons",
        TEXT,
        "",
        "why the GPU's clock was reduced",
        "it was not reduced, or the reason is unknown",
    ),
)

LAYERS = (
    Key(
        "name", TEXT, "", "name of the layer in the model, or of the first of several fused layers"
    ),
    Key("kind", TEXT, "", "its kind, such as convolution; optimizer for the update of all weights"),
    Key("flops", NUMBER, "FLOP", "counted operations in a training step, forward and backward"),
    Key("bytes", NUMBER, "bytes", "counted bytes moved in a training step"),
    Key("intensity", NUMBER, "FLOP/byte", "flops divided by bytes"),
    Key("seconds_median", NUMBER, "s", "median time of the repetitions"),
    Key("seconds_low", NUMBER, "s", "minimum of the repetitions"),
    Key("seconds_high", NUMBER, "s", "maximum of the repetitions"),
    Key("repetitions", INTEGER, "times", "number of repetitions"),
    Key("flops_per_second", NUMBER, "FLOP/s", "flops divided by seconds_median"),
)

_COUNT = "pixels"
_EMPTY = "its denominator is 0"
_NO_MEAN = "one of the thresholds was not scored, or its csi is undefined"
_NO_POWER = (
    "the grid does not resolve it, the pixel size is unknown, every tile has missing pixels, or "
    "nothing was observed"
)
_FEW = "the score is undefined, or too few blocks have it for an interval"
_BLOCKS = Key("n_blocks", INTEGER, "blocks", "days, or values of --blocks, that were resampled")


def _bounds(name, unit, of=None):
    """Returns the Keys of the ends of a bootstrap interval: of a score, or of the Key before it."""
    whose = "its 95% bootstrap interval" if of is None else f"the 95% bootstrap interval of {of}"
    return (
        Key(f"{name}_low", NUMBER, unit, f"lower end of {whose}", _FEW, signed=True),
        Key(f"{name}_high", NUMBER, unit, "upper end of this interval", _FEW, signed=True),
    )


SCORES = (
    Key("method", TEXT, "", "model, persistence, extrapolation, sprog or anvil"),
    Key("threshold", INTEGER, CODES, "a pixel is an event if its code is at or above it"),
    Key("lead_minutes", TEXT, "min", "lead time, or `all` for all lead times pooled"),
    Key("hits", INTEGER, _COUNT, "events that were forecast"),
    Key("misses", INTEGER, _COUNT, "events that were not forecast"),
    Key("false_alarms", INTEGER, _COUNT, "forecast events that were not observed"),
    Key("csi", NUMBER, FRACTION, "critical success index", _EMPTY),
    Key("pod", NUMBER, FRACTION, "probability of detection", _EMPTY),
    Key("sucr", NUMBER, FRACTION, "success ratio", _EMPTY),
    Key("far", NUMBER, FRACTION, "false alarm ratio", _EMPTY),
    Key("bias", NUMBER, "ratio", "frequency bias", _EMPTY),
    Key("mae", NUMBER, CODES, "mean absolute error, the same for all thresholds", _NO_PIXEL),
    Key(
        "mse",
        NUMBER,
        f"{CODES} squared",
        "mean squared error, the same for all thresholds",
        _NO_PIXEL,
    ),
    Key("n", INTEGER, _COUNT, "valid pixels"),
    Key("correct_negatives", INTEGER, _COUNT, "pixels with no event forecast and none observed"),
    Key("hss", NUMBER, "-1 to 1", "Heidke skill score", _EMPTY, signed=True),
    Key("mean_error", NUMBER, CODES, "mean of forecast minus observation", _NO_PIXEL, signed=True),
    *_bounds("csi", FRACTION, "csi"),
    *_bounds("mae", CODES, "mae"),
    *_bounds("mse", f"{CODES} squared", "mse"),
    _BLOCKS,
)
# They follow SCORES in scores.csv; the first two for the pools and scales that were counted.
MORE_OF_SCORES = (
    Key(
        "csi_pool<side>",
        NUMBER,
        FRACTION,
        "csi of fields max-pooled in blocks of this side, in pixels",
        _EMPTY,
    ),
    Key(
        "fss_<side>",
        NUMBER,
        FRACTION,
        "fractions skill score in windows of this side, in pixels",
        _EMPTY,
    ),
    Key(
        "csi_m3",
        NUMBER,
        FRACTION,
        "CSI-M: mean of csi at 16, 74 and 133, the same for all thresholds",
        _NO_MEAN,
    ),
    Key(
        "csi_m3_leads",
        NUMBER,
        FRACTION,
        "mean over the lead times of csi_m3, in the rows of `all`",
        f"{_NO_MEAN}, or in the rows of one lead time",
    ),
    Key("csi_m6", NUMBER, FRACTION, "CSI-M at all six of SEVIR's thresholds", _NO_MEAN),
    Key(
        "csi_m6_leads",
        NUMBER,
        FRACTION,
        "mean over the lead times of csi_m6, in the rows of `all`",
        f"{_NO_MEAN}, or in the rows of one lead time",
    ),
    Key(
        "power_below_8km",
        NUMBER,
        "ratio",
        "power of the forecast at wavelengths below 8 km, relative to the observed power",
        _NO_POWER,
    ),
    Key("power_below_16km", NUMBER, "ratio", "the same below 16 km", _NO_POWER),
)
DIFFERENCES = (
    Key("method", TEXT, "", "model"),
    Key("reference", TEXT, "", "persistence, extrapolation, sprog or anvil"),
    Key("threshold", INTEGER, CODES, "as in scores.csv"),
    Key("lead_minutes", TEXT, "min", "as in scores.csv"),
    Key("events", INTEGER, "events", "events that both were scored on"),
    Key(
        "csi_difference",
        NUMBER,
        "",
        "csi of the method minus that of the reference",
        _EMPTY,
        signed=True,
    ),
    *_bounds("csi", ""),
    Key(
        "mse_difference",
        NUMBER,
        f"{CODES} squared",
        "mse of the method minus the reference's",
        signed=True,
    ),
    *_bounds("mse", f"{CODES} squared"),
    _BLOCKS,
)

FILES = (
    File(
        "config.json",
        "training, before everything else",
        "the configuration: one key per flag of train.py. A folder with this file holds a run.",
    ),
    File("environment.json", "training, at its start", "`environment` of record.json"),
    File("epochs.csv", "training, after each epoch", "one row per finished epoch"),
    File("power.csv", "training, at least once per second", "the power trace: one row per reading"),
    File("model.keras", "training, at its end", "the model after the last epoch"),
    File(
        "model_best.keras",
        "training, after an epoch",
        "the model after the epoch with the lowest validation loss",
    ),
    File(
        "checkpoint/",
        "training, after each epoch and every --checkpoint-minutes",
        "the last two checkpoints, `state-<epoch>-<step>.npz`, from which --resume continues",
    ),
    File(
        "running.json",
        "training, while it runs",
        "the process that trains in the folder. It is locked while that process runs; its "
        "modification time is the last heartbeat.",
    ),
    File("record.json", "training, when it ends", "everything that was measured"),
    File("layers.csv", "training, with --layer-times", "one row per layer: its measured time"),
    File("tensorboard/", "training, with --tensorboard", "logs for TensorBoard"),
    File("scores.csv", "evaluate.py", "scores by method, threshold and lead time"),
    File("differences.csv", "evaluate.py", "scores of the model minus those of each baseline"),
    File(
        "statistics.npz",
        "evaluate.py",
        "the counts and sums of errors behind the scores, for each event",
    ),
    File(
        "panel.png",
        "evaluate.py",
        "one window as it was observed and as each method forecast it; also as .pdf",
    ),
    File("animation.gif", "evaluate.py", "the same window as an animation"),
    File("scores_by_lead.png", "evaluate.py", "scores against lead time; also as .pdf"),
    File(
        "power_by_lead.png",
        "evaluate.py, if the grid resolves it",
        "power of the forecasts at small scales, relative to the observed power; also as .pdf",
    ),
    File("performance_diagram.png", "evaluate.py", "POD against success ratio; also as .pdf"),
)
