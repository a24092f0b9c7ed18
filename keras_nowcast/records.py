"""The run folder: the only connection between training and everything that reads its results.

columns.py lists its files and the columns of its CSV files; schema.py has the keys of record.json.
docs/run_folder.md describes both. What is read is checked against them here (checked.py), so that
no reader meets an odd value. A number that was not measured is null, or an empty cell, with a
`<name>_reason` next to it in record.json.
"""

import csv
import dataclasses
import math
import os
from pathlib import Path

from keras_nowcast import checked, columns, schema
from keras_nowcast.checked import NewerVersion, OddFile
from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock, write_json, written_whole
from keras_nowcast.stored import check_recorded, check_stored
from keras_nowcast.text_table import counted

EPOCH_COLUMNS = schema.names(columns.EPOCHS)
LAYER_COLUMNS = schema.names(columns.LAYERS)
_SCORE_COLUMNS = ("method", "threshold", "lead_minutes", "csi")
# Runs of the first versions have no more.
_POWER_COLUMNS = schema.names(columns.POWER[:-1])


class OddRuns(InputError):
    """None of the runs that were found can be read.

    Attributes:
      left_out: {path: reason}.
    """

    def __init__(self, argument, received, left_out):
        reasons = list(left_out.values())
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        super().__init__(
            f"`{argument}` must hold at least one run that can be read. Received: {received}: "
            + " ".join(reasons[:3])
            + more
        )
        self.left_out = left_out


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
        if not config.resume:
            if os.path.lexists(self.path / "config.json"):
                raise InputError(
                    f"`--run-dir` must not hold a run already. Received: {self.path}, "
                    f"{self._state()}; give another name, or resume it with --resume."
                )
            return
        stored = self.stored_config()
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
        try:
            record = self.read_record()
        except OddFile:
            return "a run whose record.json cannot be read"
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
        """Returns the fields of the config of the run as a dict, or None if there is no run.

        Raises:
          OddFile: config.json cannot be used.
        """
        return self._read("config.json", check_stored)

    def read_record(self):
        """Returns record.json as a dict, or None if there is none.

        Raises:
          OddFile: it cannot be used; NewerVersion if a newer version wrote it.
        """
        return self._read("record.json", _check_record)

    def read_finished(self):
        """Returns record.json as `read_record`, after checking all that a study reads of the run.

        Raises:
          OddFile: one of its files cannot be used, or a completed run lacks what a study needs.
        """
        if not checked.is_text(str(self.path)):
            raise OddFile(self.path, "have a name in UTF-8", "other bytes", "rename the run folder")
        record = self.read_record()
        if record["status"] == "completed":
            _check_completed(record, self.path / "record.json")
        rows = self.read_epochs()
        self.read_scores()
        self.read_layers()
        for _ in self.power_readings():
            break  # its first line alone: a trace can be long, and rows that are odd are skipped
        epochs = (record.get("training") or {}).get("epochs") or 1
        if record["status"] == "completed" and len(rows) < epochs:
            received = len(rows) if (self.path / "epochs.csv").exists() else "no such file"
            rule = f"have {counted(epochs, 'row')}, one for each epoch of the run"
            raise OddFile(self.path / "epochs.csv", rule, received)
        return record

    def write_record(self, record):
        """Writes record.json atomically; a number that is not finite becomes null with a reason."""
        write_json(self.path / "record.json", without_nan({"schema": schema.VERSION, **record}))

    def read_environment(self):
        """Returns environment.json as a dict, or None if there is none.

        Raises:
          OddFile: it cannot be used.
        """
        return self._read("environment.json", _check_environment)

    def _read(self, name, check):
        """Returns the object in a JSON file after `check(value, path)`; None if there is none."""
        path = self.path / name
        value = checked.read_object(path)
        if value is not None:
            check(value, path)
        return value

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
        path, keys = self.path / "epochs.csv", columns.EPOCHS + columns.MORE_OF_EPOCHS
        rows = checked.read_rows(path, keys, needed=EPOCH_COLUMNS)
        for number, row in enumerate(rows):
            for name in ("epoch", "seconds"):
                if row[name] is None:
                    raise OddFile(path, f"have `{name}` in row {number + 1}", "an empty cell")
            if row["epoch"] != number:
                raise OddFile(path, f"have epoch {number} in row {number + 1}", row["epoch"])
        return rows

    def write_layers(self, rows):
        """Writes layers.csv atomically: one row of LAYER_COLUMNS per layer.

        FLOPs and bytes are counted for one step of one process, forward and backward. Seconds are
        the median, minimum and maximum of the repetitions.
        """
        _write_rows(self.path / "layers.csv", LAYER_COLUMNS, rows)

    def read_layers(self):
        """Returns the rows of layers.csv, [] if the run did not time its layers."""
        return checked.read_rows(self.path / "layers.csv", columns.LAYERS, needed=LAYER_COLUMNS)

    def read_scores(self):
        """Returns the rows of scores.csv as dicts, [] if the run was not evaluated.

        Numbers are int or float and empty cells None. `method` is text, and so is a `lead_minutes`
        of "all".
        """
        keys = columns.SCORES + columns.MORE_OF_SCORES
        return checked.read_rows(self.path / "scores.csv", keys, needed=_SCORE_COLUMNS)

    def read_power(self):
        """Returns power.csv as {(host, device): (seconds, watts)}, NaN if a reading was not valid.

        A row that a crash cut short is skipped.

        Raises:
          OddFile: the file is not a power trace.
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
          reading was not valid. Nothing if there is no file.

        Raises:
          OddFile: the file is not a power trace.
        """
        try:
            with open(self.power_file, newline="", encoding="utf-8-sig", errors="replace") as file:
                lines = csv.reader(file)
                header = next(lines, [])
                checked.check_header(self.power_file, header, _POWER_COLUMNS)
                time_s, host, device, watts = map(header.index, _POWER_COLUMNS[:4])
                for line in lines:
                    if len(header) - 1 <= len(line) <= len(header):  # otherwise it is cut short
                        seconds = _finite(line[time_s])
                        if not math.isnan(seconds):
                            yield (line[host], line[device]), seconds, _finite(line[watts])
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise OddFile(self.power_file, "be a readable file", error) from None
        except csv.Error as error:
            raise OddFile(self.power_file, "be CSV", f"a file that is not ({error})") from None


def read_runs(folders):
    """Returns the runs of `find_runs`, without those that are left out."""
    return find_runs(folders)[0]


def find_runs(folders, argument="runs"):
    """Finds the runs in and below folders, also through symbolic links, each once.

    Args:
      folders: paths, each of a run folder or of a folder that contains run folders at any depth.
      argument: its name on the command line, for the error.

    Returns:
      (runs, left_out): a list of (RunFolder, record) in order of path, and {path: reason} of the
      runs of which a file cannot be used. Folders without a record are skipped.

    Raises:
      InputError: a path does not exist, or there is no usable record in or below any of them.
    """
    runs, left_out = {}, {}
    for folder in folders:
        if not os.path.isdir(folder):  # also False if a name is empty or too long
            raise InputError(f"`{argument}` must be folders that exist. Received: {folder!s:.200}.")
        for path in _folders_with("record.json", folder):
            key = path.resolve()
            if key in runs or key in left_out:
                continue
            run = RunFolder(path)
            try:
                runs[key] = run, run.read_finished()
            except OddFile as error:
                left_out[key] = path, str(error)
    if not runs:
        received = ", ".join(map(str, folders))
        if left_out:
            raise OddRuns(argument, received, dict(left_out.values()))
        raise InputError(
            f"`{argument}` must hold at least one run with a record.json. Received: {received}; "
            "train one with experiments/train.py."
        )
    return list(runs.values()), dict(left_out.values())


def unrecorded_runs(folders):
    """Returns the folders, in and below `folders`, of runs that have no record (yet)."""
    found = {}
    for folder in folders:
        for path in _folders_with("config.json", folder):
            if not os.path.lexists(path / "record.json"):
                found.setdefault(path.resolve(), RunFolder(path))
    return list(found.values())


def _folders_with(name, folder):
    """Returns the folders, in and below `folder`, that hold a file `name`, in order of path.

    Symbolic links are followed. A folder that several of them lead to is searched once; its own
    name then comes before the links in the same folder.
    """
    found, seen = [], set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort(key=lambda each: (os.path.islink(os.path.join(path, each)), each))
        if name in files or name in folders:
            found.append(Path(path))
    return sorted(found)


def _check_record(record, path):
    """Raises OddFile unless a record is of a version that is known, and fits the schema."""
    version = record.get("schema", 1)
    if checked.is_number(version, integer=True) and version > schema.VERSION:
        raise NewerVersion(path, version, schema.VERSION)
    checked.check_keys(path, "", record, schema.TOP, complete=True)
    for section, keys in (schema.SECTIONS | {"roofs": schema.ROOFS}).items():
        checked.check_keys(path, f"{section}.", record.get(section) or {}, keys)
    check_recorded(record.get("config") or {}, path, trained=False)


def _check_environment(environment, path):
    checked.check_keys(path, "", environment, schema.ENVIRONMENT)


def _check_completed(record, path):
    """Raises OddFile unless the record of a completed run has what a study needs."""
    for section, keys in schema.SECTIONS.items():
        checked.check_keys(path, f"{section}.", record.get(section) or {}, keys, complete=True)
    check_recorded(record.get("config") or {}, path, trained=True)


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


def _write_rows(path, columns, rows):
    """Writes dicts as a CSV file, atomically; a missing value is an empty cell."""
    with written_whole(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _finite(text):
    """Returns a cell of power.csv as a number, NaN if it is none."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
