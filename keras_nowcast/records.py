"""The run folder: the only contract between training and everything that reads its results.

    config.json  environment.json  epochs.csv  power.csv  model.keras  model_best.keras
    checkpoint/  running.json  record.json, with --layer-times layers.csv, and of evaluate.py
    scores.csv

README.md says what each is; `Run.write_record` of training/trainer.py names record.json's keys. A
number that was not measured is null, with a `<name>_reason` beside it.
"""

import csv
import dataclasses
import fcntl
import json
import math
import os
from pathlib import Path

from keras_nowcast import columns, schema
from keras_nowcast.errors import InputError
from keras_nowcast.files import write_json, written_whole

EPOCH_COLUMNS = schema.names(columns.EPOCHS)
LAYER_COLUMNS = schema.names(columns.LAYERS)


class RunFolder:
    """The files of one run.

    Attributes:
      path: the folder.
    """

    def __init__(self, path):
        self.path = Path(path)

    @property
    def checkpoints(self):
        """The folder of checkpoints."""
        return self.path / "checkpoint"

    @property
    def model_file(self):
        """The trained network, loadable by keras.models.load_model."""
        return self.path / "model.keras"

    @property
    def best_model_file(self):
        """The network after the epoch of the lowest validation loss."""
        return self.path / "model_best.keras"

    @property
    def lock_file(self):
        """Locked by the training while it runs."""
        return self.path / "running.json"

    @property
    def power_file(self):
        """The trace of power readings."""
        return self.path / "power.csv"

    def check(self, config):
        """Checks that a run of `config` can be in this folder; writes nothing.

        Raises:
          InputError: it holds a run and `config.resume` is False; there is nothing to resume; or
            the run in it was another one.
        """
        stored = self.stored_config()
        if not config.resume:
            if stored is not None:
                raise InputError(
                    f"`--run-dir` must not hold a run already. Received: {self.path}, "
                    f"{self._state()}; give another name, or --resume to go on with it."
                )
            return
        if stored is None:
            raise InputError(
                f"`--resume` needs a run to go on with. Received: `--run-dir` {self.path}, which "
                "holds none; leave --resume out to start one."
            )
        for each in dataclasses.fields(config):
            name, value = each.name, getattr(config, each.name)
            # The cosine extends over all epochs: with more of them it is another schedule.
            stays = name == "epochs" and config.schedule == "cosine"
            if each.metadata["may_change_on_resume"] and not stays:
                continue
            if name in stored and stored[name] != value:
                raise InputError(
                    f"`--{name.replace('_', '-')}` must stay as the run in {self.path} was started"
                    f" with, {stored[name]!r}. Received: {value!r}; leave it out, or start another "
                    "run."
                )

    def open(self, config):
        """Makes the folder and writes config.json: from now on it holds a run.

        config.json is there whole or not at all, so that a start that was killed here leaves a
        folder to start in, or one to go on in.

        Raises:
          InputError: the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", dataclasses.asdict(config), new=not config.resume)
        except FileExistsError:
            raise InputError(
                f"`--run-dir` must not hold a run already. Received: {self.path}, which another "
                "process has just taken."
            ) from None
        except OSError as error:
            raise InputError(
                f"`--run-dir` must be a folder that can be written. Received: {self.path} ({error})"
            ) from None

    def _state(self):
        record = self.read_record()
        return "an unfinished run" if record is None else f"a run that is {record['status']}"

    def is_running(self):
        """Returns whether a job trains here now; None where the file system does not tell.

        A look holds the lock for an instant, shared with other looks.
        """
        try:
            with open(self.lock_file) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:  # no locks here, or not for this user
            return None
        return False

    def stored_config(self):
        """Returns the fields of the config the run was started with, or None without a run."""
        return _read_json(self.path / "config.json")

    def read_record(self):
        """Returns record.json as a dict, or None when there is none."""
        return _read_json(self.path / "record.json")

    def write_record(self, record):
        """Writes record.json, whole; a number that is not finite becomes null with its reason."""
        write_json(self.path / "record.json", without_nan({"schema": schema.VERSION, **record}))

    def read_environment(self):
        """Returns environment.json as a dict, or None when there is none."""
        return _read_json(self.path / "environment.json")

    def write_environment(self, environment):
        """Writes environment.json, whole."""
        write_json(self.path / "environment.json", environment)

    def write_epochs(self, rows):
        """Writes epochs.csv, whole: one row an epoch, an empty cell where nothing was measured.

        Columns beyond the contract's follow it in the order of the first row.
        """
        extra = [name for name in (rows[0] if rows else {}) if name not in EPOCH_COLUMNS]
        _write_rows(self.path / "epochs.csv", [*EPOCH_COLUMNS, *extra], rows)

    def read_epochs(self):
        """Returns the rows of epochs.csv, numbers as int or float, empty cells as None."""
        return _read_rows(self.path / "epochs.csv", lambda name, value: False)

    def write_layers(self, rows):
        """Writes layers.csv, whole: a row of LAYER_COLUMNS for each layer, of a step of a process.

        FLOPs and bytes are counted, forward and backward, of the batch of one process; seconds are
        the median, least and most of the repetitions.
        """
        _write_rows(self.path / "layers.csv", LAYER_COLUMNS, rows)

    def read_layers(self):
        """Returns the rows of layers.csv, [] where the run did not time its layers."""
        is_text = {"name", "kind"}
        return _read_rows(self.path / "layers.csv", lambda name, value: name in is_text)

    def read_scores(self):
        """Returns the rows of scores.csv as dicts, [] where the run was not evaluated.

        Numbers are int or float, empty cells None; `method` and `lead_minutes` "all" stay text.
        """
        return _read_rows(
            self.path / "scores.csv", lambda name, value: name == "method" or value == "all"
        )

    def read_power(self):
        """Returns power.csv as {(host, device): (seconds, watts)}, NaN where no reading was valid.

        A row that a crash cut short is left out.
        """
        traces = {}
        for device, time_s, watt in self.power_readings():
            seconds, watts = traces.setdefault(device, ([], []))
            seconds.append(time_s)
            watts.append(watt)
        return traces

    def power_readings(self):
        """Yields the rows of power.csv, however long it is, as read_power has them.

        Yields:
          ((host, device), seconds, watts), of each device in order of time.
        """
        with open(self.power_file, newline="") as file:
            for row in csv.DictReader(file):
                if None not in row and row["temperature_c"] is not None:
                    watts = float(row["watts"] or "nan")
                    yield (row["host"], row["device"]), float(row["time_s"]), watts


def read_runs(folders):
    """Finds the runs in and below folders.

    Args:
      folders: paths, each a run folder or a folder of them, however deep.

    Returns:
      A list of (RunFolder, record) in order of path; folders without a record are passed over.

    Raises:
      InputError: a path does not exist, or no record is below any of them.
    """
    found = {}
    for folder in folders:
        if not os.path.isdir(folder):  # False, too, for a name that is empty or too long
            raise InputError(f"`runs` must be folders that exist. Received: {folder!s:.200}.")
        for file in sorted(Path(folder).rglob("record.json")):
            run = RunFolder(file.parent)
            found[file.parent.resolve()] = (run, run.read_record())
    if not found:
        raise InputError(
            f"`runs` must hold at least one run with a record.json. Received: "
            f"{', '.join(map(str, folders))}; train one with experiments/train.py."
        )
    return list(found.values())


def unrecorded_runs(folders):
    """Returns the folders, in and below `folders`, of runs that have left no record (yet)."""
    found = {}
    for folder in map(Path, folders):
        for file in sorted(folder.rglob("config.json")):
            if not (file.parent / "record.json").exists():
                found[file.parent.resolve()] = RunFolder(file.parent)
    return list(found.values())


def without_nan(value):
    """Returns `value` with each NaN or infinity in a dict null and a `<name>_reason` beside it."""
    if isinstance(value, dict):
        kept = {}
        for name, inner in value.items():
            kept[name] = without_nan(inner)
            if _not_finite(inner):
                kept.setdefault(f"{name}_reason", f"the value is {inner}")
        return kept
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if _not_finite(value) else value


def _not_finite(value):
    return isinstance(value, float) and not math.isfinite(value)


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # no permission, a name that is too long
        raise InputError(f"{path} must be a file that can be read. Received: {error}.") from None
    except ValueError as error:
        raise InputError(f"{path} must be JSON. Received: a file that is not ({error}).") from None


def _write_rows(path, columns, rows):
    """Writes dicts as a CSV file, whole; what a row has not is an empty cell."""
    with written_whole(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _read_rows(path, is_text):
    """Returns the rows of a CSV file as dicts, [] without one; what is no text becomes a number."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {k: v if is_text(k, v) else _number(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def _number(text):
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)
