"""The run folder: the only connection between training and everything that reads its results.

columns.py lists its files and the columns of its CSV files; schema.py has the keys of record.json.
docs/run_folder.md describes both. A number that was not measured is null, or an empty cell, with a
`<name>_reason` next to it in record.json.
"""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

from keras_nowcast import columns, schema
from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock, write_json, written_whole

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
        """The trained model, loadable by keras.models.load_model."""
        return self.path / "model.keras"

    @property
    def best_model_file(self):
        """The model after the epoch with the lowest validation loss."""
        return self.path / "model_best.keras"

    @property
    def lock_file(self):
        """The file that training locks while it runs."""
        return self.path / "running.json"

    @property
    def power_file(self):
        """The trace of power readings."""
        return self.path / "power.csv"

    def check(self, config):
        """Checks that a run with this configuration can use the folder; writes nothing.

        Args:
          config: a RunConfig.

        Raises:
          InputError: the folder holds a run and `config.resume` is False; it holds no run and
            `config.resume` is True; or its run has another configuration.
        """
        stored = self.stored_config()
        if not config.resume:
            if stored is not None:
                raise InputError(
                    f"`--run-dir` must not hold a run already. Received: {self.path}, "
                    f"{self._state()}; give another name, or resume it with --resume."
                )
            return
        if stored is None:
            raise InputError(
                f"`--resume` needs a run in `--run-dir`. Received: {self.path}, which holds none; "
                "start the run without --resume."
            )
        for each in dataclasses.fields(config):
            name, value = each.name, getattr(config, each.name)
            # The cosine extends over all epochs: with more of them it is another schedule.
            stays = name == "epochs" and config.schedule == "cosine"
            if each.metadata["may_change_on_resume"] and not stays:
                continue
            before = stored.get(name, each.metadata["before"])
            if before != value:
                raise InputError(
                    f"`--{name.replace('_', '-')}` must stay as it was when the run in {self.path} "
                    f"started, {before!r}. Received: {value!r}; omit it, or start a new run."
                )

    def open(self, config):
        """Makes the folder and writes config.json; from then on the folder holds a run.

        config.json is complete or absent. A start that is killed here therefore leaves a folder in
        which a run can start, or one whose run can be resumed.

        Args:
          config: a RunConfig.

        Raises:
          InputError: the folder is not writable, or another process has just taken it.
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
                f"`--run-dir` must be a writable folder. Received: {self.path} ({error})."
            ) from None

    def _state(self):
        record = self.read_record()
        return "an unfinished run" if record is None else f"a run that is {record['status']}"

    def is_running(self):
        """Returns True if a job trains here now, and None if the file system has no locks.

        The check itself holds the lock for an instant, shared with other checks.
        """
        try:
            with open(self.lock_file) as file:
                return not take_lock(file, shared=True)
        except FileNotFoundError:
            return False
        except OSError:  # no locks here, or not for this user
            return None

    def stored_config(self):
        """Returns the fields of the config of the run as a dict, or None if there is no run."""
        return _read_json(self.path / "config.json")

    def read_record(self):
        """Returns record.json as a dict, or None if there is none."""
        return _read_json(self.path / "record.json")

    def write_record(self, record):
        """Writes record.json atomically; a number that is not finite becomes null with a reason."""
        write_json(self.path / "record.json", without_nan({"schema": schema.VERSION, **record}))

    def read_environment(self):
        """Returns environment.json as a dict, or None if there is none."""
        return _read_json(self.path / "environment.json")

    def write_environment(self, environment):
        """Writes environment.json atomically."""
        write_json(self.path / "environment.json", environment)

    def write_epochs(self, rows):
        """Writes epochs.csv atomically: one row per epoch, an empty cell if not measured.

        EPOCH_COLUMNS come first, then all other columns in the order in which rows have them: a
        resumed run of an earlier version has rows with fewer.
        """
        names = dict.fromkeys(EPOCH_COLUMNS) | {name: None for row in rows for name in row}
        _write_rows(self.path / "epochs.csv", list(names), rows)

    def read_epochs(self):
        """Returns the rows of epochs.csv, numbers as int or float, empty cells as None."""
        return _read_rows(self.path / "epochs.csv", lambda name, value: False)

    def write_layers(self, rows):
        """Writes layers.csv atomically: one row of LAYER_COLUMNS per layer.

        FLOPs and bytes are counted for one step of one process, forward and backward. Seconds are
        the median, minimum and maximum of the repetitions.
        """
        _write_rows(self.path / "layers.csv", LAYER_COLUMNS, rows)

    def read_layers(self):
        """Returns the rows of layers.csv, [] if the run did not time its layers."""
        is_text = {key.name for key in columns.LAYERS if key.type == schema.TEXT}
        return _read_rows(self.path / "layers.csv", lambda name, value: name in is_text)

    def read_scores(self):
        """Returns the rows of scores.csv as dicts, [] if the run was not evaluated.

        Numbers are int or float and empty cells None. `method` is text, and so is a `lead_minutes`
        of "all".
        """
        return _read_rows(
            self.path / "scores.csv", lambda name, value: name == "method" or value == "all"
        )

    def read_power(self):
        """Returns power.csv as {(host, device): (seconds, watts)}, NaN if a reading was not valid.

        A row that a crash cut short is skipped.
        """
        traces = {}
        for device, time_s, watt in self.power_readings():
            seconds, watts = traces.setdefault(device, ([], []))
            seconds.append(time_s)
            watts.append(watt)
        return traces

    def power_readings(self):
        """Yields the rows of power.csv one by one, so that its length does not matter.

        Yields:
          ((host, device), seconds, watts), in order of time for each device; NaN watts if the
          reading was not valid.
        """
        with open(self.power_file, newline="") as file:
            for row in csv.DictReader(file):
                if None not in row and row["temperature_c"] is not None:
                    watts = float(row["watts"] or "nan")
                    yield (row["host"], row["device"]), float(row["time_s"]), watts


def read_runs(folders):
    """Finds the runs in and below folders.

    Args:
      folders: paths, each of a run folder or of a folder that contains run folders at any depth.

    Returns:
      A list of (RunFolder, record) in order of path; folders without a record are skipped.

    Raises:
      InputError: a path does not exist, or there is no record in or below any of them.
    """
    found = {}
    for folder in folders:
        if not os.path.isdir(folder):  # also False if a name is empty or too long
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
    """Returns the folders, in and below `folders`, of runs that have no record (yet)."""
    found = {}
    for folder in map(Path, folders):
        for file in sorted(folder.rglob("config.json")):
            if not (file.parent / "record.json").exists():
                found[file.parent.resolve()] = RunFolder(file.parent)
    return list(found.values())


def missing(names, reason):
    """Returns the part of a record for values that were not measured.

    Args:
      names: of the keys.
      reason: why they were not measured.

    Returns:
      A dict with each name, None, and each `<name>_reason`.
    """
    return dict.fromkeys(names) | {f"{name}_reason": reason for name in names}


def fill(part, **values):
    """Sets values in a part of a record that `missing` made, and removes their reasons."""
    for name, value in values.items():
        part[name] = value
        part.pop(f"{name}_reason", None)


def empty_record(reason):
    """Returns a record of a run that measured nothing, for `fill` to complete.

    Args:
      reason: why nothing is known.

    Returns:
      A dict with `roofs` and all keys of each of schema.SECTIONS. They are null, each with `reason`
      in its `<name>_reason`; but the energy's source is "none" and its lists of objects are empty.
      The other keys of schema.TOP are missing.
    """
    record = {
        section: missing([n for n in schema.names(keys) if not n.endswith("_reason")], reason)
        for section, keys in schema.SECTIONS.items()
    }
    fill(record["energy"], source="none", devices=[], windows=[], power_limits=[], not_included=[])
    record["energy"]["source_reason"] = reason
    return record | missing(["roofs"], reason)


def without_nan(value):
    """Returns `value` with each NaN or infinity null, and in dicts a `<name>_reason` next to it."""
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
        raise InputError(f"{path} must be a readable file. Received: {error}.") from None
    except ValueError as error:
        raise InputError(f"{path} must be JSON. Received: a file that is not ({error}).") from None


def _write_rows(path, columns, rows):
    """Writes dicts as a CSV file, atomically; a missing value is an empty cell."""
    with written_whole(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _read_rows(path, is_text):
    """Returns the rows of a CSV file as dicts, [] if there is no file.

    Args:
      path: the file.
      is_text: function of (column, value); if it returns False, the value becomes a number.
    """
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
