"""The schema of record.json: every key with its type, unit and meaning, once.

Writers and readers take their names from here; columns.py has the files and their columns. From
both, docs/make_run_folder.py makes record.schema.json and docs/run_folder.md. The keys of `config`
are the fields of RunConfig and described there.

A value that was not measured is null, never 0, and a `<name>_reason` next to it gives the reason.
"""

from keras_nowcast.keys import (
    BOOLEAN,
    FRACTION,
    INTEGER,
    NUMBER,
    NUMBERS,
    OBJECT,
    OBJECTS,
    TEXT,
    TEXTS,
    Key,
)

# Records of earlier versions are still read. They lack the keys that came later (`Key.since`), and
# in version 1 those of failed cells have no `roofs`.
VERSION = 5

STATUSES = ("completed", "interrupted", "failed")
SOURCES = ("nvml_counter", "nvml_power", "rapl", "estimate", "none")
SCOPES = ("gpu", "module")

TOP = (
    Key("schema", INTEGER, "", "version of the schema of this file"),
    Key("status", TEXT, "", "how the last start of the run ended", choices=STATUSES, needed=True),
    Key("status_reason", TEXT, "", "why the run was interrupted or failed", "the run completed"),
    Key("config", OBJECT, "", "the configuration: one key per flag of train.py"),
    Key("environment", OBJECT, "", "machine and software; environment.json holds the same"),
    Key("model", OBJECT, "", "cost of the UNet, counted before training"),
    Key("training", OBJECT, "", "progress, time and loss, over all starts of the run"),
    Key("energy", OBJECT, "", "measured energy, over all starts of the run"),
    Key("memory", OBJECT, "", "peak memory of the last start"),
    Key(
        "roofs",
        OBJECT,
        "",
        "roofline limits: peak compute rate and memory bandwidth of rank 0's device",
        "--layer-times was not given, or the run ended before the layers were timed",
    ),
    Key("data", OBJECT, "", "the training, validation and test sets", since=3),
    Key(
        "last_lines",
        TEXTS,
        "",
        "last lines that the process printed; only in the record of a failed cell of a sweep",
    ),
)

_NO_WAIT = "an epoch was trained by an earlier version"
_SLURM = "the job does not run under Slurm"
_ARRAY = "the job is not in a Slurm job array"
ENVIRONMENT = (
    Key("python", TEXT, "", "version of Python"),
    Key("hosts", TEXTS, "", "names of the hosts, in the order of the ranks"),
    Key("world_size", INTEGER, "ranks", "number of ranks", in_table=True, needed=True),
    Key("cpu", TEXT, "", "model of the CPU of rank 0", in_table=True),
    Key("cores", INTEGER, "cores", "CPU cores that rank 0 may use", in_table=True),
    Key(
        "cpu_has_bfloat16",
        BOOLEAN,
        "",
        "whether the CPU of rank 0 has bfloat16 instructions",
        since=3,
    ),
    Key(
        "gpus",
        OBJECTS,
        "",
        "GPUs that TensorFlow uses, on all hosts",
        members=(
            Key("uuid", TEXT, "", "UUID of the GPU", "NVML is not available"),
            Key("name", TEXT, "", "model of the GPU", "the driver does not report it"),
        ),
    ),
    Key("tensorflow", TEXT, "", "version of TensorFlow", in_table=True),
    Key("keras", TEXT, "", "version of Keras", in_table=True),
    Key("horovod", TEXT, "", "version of Horovod", "it is not installed", in_table=True),
    Key(
        "git_commit",
        TEXT,
        "",
        "commit of the checkout that holds the package, followed by + if files were changed",
        "the package is not in a git checkout",
        in_table=True,
    ),
    Key("slurm_job_id", TEXT, "", "Slurm's raw job id (sacct: JobIDRaw)", _SLURM),
    Key("slurm_array_job_id", TEXT, "", "job id of the job array", _ARRAY),
    Key("slurm_array_task_id", TEXT, "", "index of the task in the job array", _ARRAY),
    Key("slurm_nodes", TEXT, "", "nodes of the job, as Slurm writes the list", _SLURM),
    Key("slurm_restart_count", INTEGER, "restarts", "how often Slurm requeued the job", _SLURM),
    Key("user_settings", TEXTS, "", "what rank 0's user has set, as name=value", since=4),
    Key("onednn", BOOLEAN, "", "whether TensorFlow uses oneDNN on CPUs", since=5),
    Key("tf32", BOOLEAN, "", "whether float32 on GPUs may be TensorFloat-32", since=5),
)

MODEL = (
    Key("parameters", INTEGER, "parameters", "all parameters of the UNet", in_table=True),
    Key(
        "trainable_parameters",
        INTEGER,
        "parameters",
        "parameters that training changes",
        in_table=True,
        needed=True,
    ),
    Key(
        "forward_flops_per_sample",
        NUMBER,
        "FLOP",
        "operations of a forward pass for one window; a multiply-add is two",
        in_table=True,
    ),
    Key(
        "training_flops_per_sample",
        NUMBER,
        "FLOP",
        "operations of a training step per window: forward, backward, and the update of the "
        "weights divided by the batch",
        in_table=True,
    ),
    Key(
        "activation_bytes_per_sample",
        NUMBER,
        "bytes",
        "activations and their gradients of one window at the fullest moment of a training step",
        in_table=True,
    ),
    Key(
        "allreduce_bytes_per_step",
        NUMBER,
        "bytes",
        "gradients that each rank gives to the allreduce in one step",
        in_table=True,
    ),
)

_UNTIMED = "no step after the first step, which includes compilation, was timed"
_NO_EPOCH = "no epoch was finished with valid pixels"
TRAINING = (
    Key("epochs", INTEGER, "epochs", "finished epochs"),
    Key("windows_per_epoch", INTEGER, "windows", "training windows of an epoch", in_table=True),
    Key("steps", INTEGER, "steps", "optimizer steps, including skipped ones", in_table=True),
    Key(
        "setup_seconds",
        NUMBER,
        "s",
        "time from the start of a process to the end of its first step, summed over all starts",
        in_table=True,
    ),
    Key(
        "seconds",
        NUMBER,
        "s",
        "wall-clock time of training; it excludes validation, checkpoints and the first step of "
        "each start, which includes compilation",
        in_table=True,
    ),
    Key("seconds_per_epoch", NUMBERS, "s", "training time of each finished epoch"),
    Key(
        "input_wait_seconds", NUMBER, "s", "part of `seconds`: waiting for data", _NO_WAIT, since=5
    ),
    Key(
        "samples_per_second",
        NUMBER,
        "windows/s",
        "throughput: windows trained in `seconds`, divided by `seconds`, over all ranks",
        _UNTIMED,
        in_table=True,
    ),
    Key(
        "achieved_flops_per_second",
        NUMBER,
        "FLOP/s",
        "`training_flops_per_sample` multiplied by `samples_per_second`",
        _UNTIMED,
        in_table=True,
    ),
    Key(
        "loss",
        NUMBER,
        "normalized VIL squared",
        "training loss of the last finished epoch, the mean over its valid pixels",
        _NO_EPOCH,
        in_table=True,
    ),
    Key(
        "val_loss",
        NUMBER,
        "normalized VIL squared",
        "validation loss after the last finished epoch",
        _NO_EPOCH,
        in_table=True,
    ),
    Key(
        "skipped_steps",
        INTEGER,
        "steps",
        "steps without an update because a scaled gradient was not finite",
        in_table=True,
    ),
    Key(
        "skipped_events",
        INTEGER,
        "events",
        "events left out because they were unreadable",
        in_table=True,
    ),
    Key("skipped_event_reasons", TEXTS, "", "why each of them was unreadable"),
    Key(
        "lost_seconds",
        NUMBER,
        "s",
        "lost work: time of work that was done, not saved, and repeated after a kill; no other key "
        "includes it",
        in_table=True,
    ),
    Key(
        "starts",
        OBJECTS,
        "",
        "the starts of the run, in order",
        members=(
            Key("world_size", INTEGER, "ranks", "number of ranks of this start"),
            Key("steps", INTEGER, "steps", "steps of the run when it began"),
        ),
    ),
    Key(
        "final_loss_scale",
        NUMBER,
        "factor",
        "loss scale after the last step",
        "the precision is not mixed_float16, or no epoch was finished",
    ),
)

_NO_ENERGY = "no energy was measured"
_NO_IDLE = "no idle baseline was measured before the work"
_ONE_METER = "a device has only one meter, so there is nothing to compare it with"
_NO_SENSOR = "the energy is an estimate: no sensor was read"
_PERIOD = "the device has no such sensor, or it is unknown"
_ABOVE_IDLE = Key(
    "joules_above_idle",
    NUMBER,
    "J",
    "joules minus idle power over the covered time",
    _NO_IDLE,
    signed=True,
)
DEVICES = (
    Key("uuid", TEXT, "", "UUID of the GPU, or the name of the CPU package or process"),
    Key("name", TEXT, "", "model of the device", "the driver does not report it"),
    Key("host", TEXT, "", "host of the device"),
    Key("source", TEXT, "", "the sensor that gave the joules", choices=SOURCES),
    Key("joules", NUMBER, "J", "energy while training", _NO_ENERGY),
    Key("mean_watts", NUMBER, "W", "joules divided by the covered time", _NO_ENERGY),
    Key("peak_watts", NUMBER, "W", "highest power reading while training", "power was not read"),
    Key("idle_watts", NUMBER, "W", "mean power before the work", _NO_IDLE),
    _ABOVE_IDLE,
    Key("coverage", NUMBER, FRACTION, "fraction of `seconds` with a known energy"),
    Key("crosscheck_joules", NUMBER, "J", "joules from the device's other meter", _ONE_METER),
    Key("uncertainty_percent", NUMBER, "% of joules", "as in `energy`, of this device", _NO_SENSOR),
    Key(
        "repeatability_percent", NUMBER, "% of joules", "as in `energy`, of this device", _NO_SENSOR
    ),
    Key("counter_period_s", NUMBER, "s", "time between two steps of its energy counter", _PERIOD),
    Key("power_period_s", NUMBER, "s", "update period of its power sensor", _PERIOD),
    Key(
        "power_window_s",
        NUMBER,
        "s",
        "time over which a power reading averages (or its upper bound)",
        _PERIOD,
    ),
    Key("note", TEXT, "", "what the values of this device cover", "there is nothing to add"),
    Key(
        "problems",
        OBJECT,
        "",
        "problems of its sensors; one key per problem",
        members=(
            Key("count", INTEGER, "times", "how often it occurred"),
            Key("first_s", NUMBER, "s", "first time, in the time of power.csv", signed=True),
            Key("last_s", NUMBER, "s", "last time, in the time of power.csv", signed=True),
        ),
    ),
    Key("seconds", NUMBER, "s", "time that it was measured while training"),
    Key(
        "scope",
        TEXT,
        "",
        "what NVML counts as the device: the GPU with its memory, or the module of GPU, CPU and "
        "the memory of both",
        "it is not a GPU, or a start of an earlier version measured it",
        choices=SCOPES,
        since=4,
    ),
)
WINDOWS = (
    Key(
        "name",
        TEXT,
        "",
        "epoch (its training part), statistics (of batch normalization), validation, checkpoint, "
        "idle or layer times",
    ),
    Key("index", INTEGER, "", "epoch, from 0", "the window belongs to no epoch"),
    Key("start_s", NUMBER, "s", "its start, in the time of power.csv", signed=True),
    Key("end_s", NUMBER, "s", "its end, in the time of power.csv", signed=True),
)
POWER_LIMITS = (
    Key("uuid", TEXT, "", "UUID of the GPU"),
    Key("host", TEXT, "", "its host"),
    Key("asked_w", NUMBER, "W", "the limit that --power-limit-w requested"),
    Key("enforced_w", NUMBER, "W", "the limit that the driver enforces"),
    Key("former_w", NUMBER, "W", "the original limit, restored when the run ends"),
)
ENERGY = (
    Key(
        "source",
        TEXT,
        "",
        "the sensor; the least direct one if devices differ",
        choices=SOURCES,
        in_table=True,
        needed=True,
    ),
    Key("source_reason", TEXT, "", "why this source was chosen"),
    Key(
        "joules",
        NUMBER,
        "J",
        "energy of `training.seconds`, of all devices; it covers the fraction `coverage` of that "
        "time",
        _NO_ENERGY,
        in_table=True,
    ),
    Key(
        "mean_watts",
        NUMBER,
        "W",
        "mean power of all devices together while training",
        _NO_ENERGY,
        in_table=True,
    ),
    Key("idle_watts", NUMBER, "W", "mean power of all devices before the work", _NO_IDLE),
    Key("joules_per_epoch", NUMBERS, "J", "energy of each finished epoch; null if not measured"),
    Key(
        "joules_per_sample",
        NUMBER,
        "J/window",
        "joules per trained window, for the covered time",
        "the number of samples was not given",
        in_table=True,
    ),
    _ABOVE_IDLE,
    Key(
        "coverage",
        NUMBER,
        FRACTION,
        "fraction of the training time, of all devices, whose energy is known",
        _NO_ENERGY,
        in_table=True,
    ),
    Key("coverage_per_epoch", NUMBERS, FRACTION, "`coverage` of each finished epoch"),
    Key("crosscheck_joules", NUMBER, "J", "joules from the other meter of each device", _ONE_METER),
    Key(
        "uncertainty_percent",
        NUMBER,
        "% of joules",
        "uncertainty of the joules at two sigma, with the calibration of the sensors",
        _NO_SENSOR,
        in_table=True,
    ),
    Key(
        "repeatability_percent",
        NUMBER,
        "% of joules",
        "the part of that uncertainty that differs between runs on the same devices, at two sigma",
        _NO_SENSOR,
    ),
    Key("devices", OBJECTS, "", "the devices that were read", members=DEVICES),
    Key("windows", OBJECTS, "", "the measured stretches of time", members=WINDOWS),
    Key("power_limits", OBJECTS, "", "the limits that --power-limit-w set", members=POWER_LIMITS),
    Key(
        "lost_joules",
        NUMBER,
        "J",
        "energy of `training.lost_seconds`; no other key includes it",
        "no power was read between the checkpoint and the kill",
        in_table=True,
    ),
    Key(
        "lost_coverage",
        NUMBER,
        FRACTION,
        "fraction of the lost time with known power",
        "no lost work was detected",
    ),
    Key(
        "not_included",
        TEXTS,
        "",
        "what trained and is in none of the joules, such as GPUs that only RAPL accompanied",
        since=4,
    ),
)

MEMORY = (
    Key(
        "peak_rss_bytes",
        INTEGER,
        "bytes",
        "highest resident memory of any rank's process",
        "the system does not report it",
        in_table=True,
    ),
    Key(
        "peak_gpu_bytes",
        INTEGER,
        "bytes",
        "highest GPU memory of any rank",
        "TensorFlow uses no GPU",
        in_table=True,
    ),
)

ROOFS = (
    Key(
        "compute_flops_per_second",
        OBJECT,
        "FLOP/s",
        "peak compute rate: one key per data type, float32 and that of the precision",
    ),
    Key("memory_bytes_per_second", NUMBER, "bytes/s", "peak memory bandwidth"),
    Key("method", TEXT, "", "how both were measured"),
    Key("measuring_seconds", NUMBER, "s", "time that all layer times and limits took"),
)

_EARLIER = "the run is of an earlier version, which had two sets and validated on the test set"
_OF_A_SET = (
    ("events", "events of the {} set, of which --max-windows may leave some unused"),
    ("windows", "windows of the {} set by the catalog, at most --max-windows of them"),
)
_OF_SETS = tuple(
    Key(f"{name}_{unit}", INTEGER, unit, text.format(title), in_table=unit == "windows", since=3)
    for name, title in (("train", "training"), ("validation", "validation"), ("test", "test"))
    for unit, text in _OF_A_SET
)
DATA = (
    *_OF_SETS,
    Key(
        "left_out_events",
        INTEGER,
        "events",
        "events in no set because their frames overlap, in time and place, those of a later set",
        since=3,
    ),
    Key(
        "train_before",
        TEXT,
        "",
        "training events have this time (UTC) or an earlier one; later ones validate",
        _EARLIER,
        since=3,
    ),
    Key("test_from", TEXT, "", "test events are later than this time (UTC)", _EARLIER, since=3),
    Key("rule", TEXT, "", "how the events were divided into the sets", since=3),
)

SECTIONS = {
    "environment": ENVIRONMENT,
    "model": MODEL,
    "training": TRAINING,
    "energy": ENERGY,
    "memory": MEMORY,
    "data": DATA,
}


def names(keys):
    """Returns the names of Keys, a tuple."""
    return tuple(key.name for key in keys)


def numbers(keys):
    """Returns the names of the Keys whose type is number (not integer, not a list), a tuple."""
    return tuple(key.name for key in keys if key.type == NUMBER)
