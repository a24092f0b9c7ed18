"""What is checked before TensorFlow is loaded: flags, data set and run folder.

Each rank of a job checks for itself, because the ranks can exchange nothing yet. Some of it is
checked on rank 0 only: what it alone uses, and what would load the file system once per rank.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

from keras_nowcast.config import SIZE, completed, date_text, names_of
from keras_nowcast.data import sevir, splits
from keras_nowcast.energy import choose_source
from keras_nowcast.errors import InputError
from keras_nowcast.model.sizes import default_center_filters
from keras_nowcast.records import RunFolder
from keras_nowcast.training import checkpoint
from keras_nowcast.training.runlock import RunLock


def check(config, is_first, say):
    """Checks everything about a run that needs no TensorFlow, and reads its data set's catalog.

    The default data set, a small synthetic one, is written first if it is absent.

    Args:
      config: a RunConfig.
      is_first: True on rank 0.
      say: called with each line for the console.

    Returns:
      (config, split): the RunConfig with every value that depends on the data filled in, and the
      Split of the events.

    Raises:
      InputError: the configuration does not fit the data, the folder or the machine.
    """
    _check_packages(config)
    _check_xla(config)
    if is_first and config.run_dir is not None:
        _check_place(Path(config.run_dir))
        if not config.resume:
            RunFolder(config.run_dir).check(config)
    _check_power(config)
    config = _with_data(config, say)
    split = _read_split(config, say)
    config = dataclasses.replace(
        config,
        grid=config.grid or split.train[0].size,
        train_before=date_text(split.train_before) or config.train_before,
        test_from=date_text(split.test_from) or config.test_from,
    )
    if is_first:
        if config.resume:
            _check_resumed(config)
        _check_start(config)
        # Not the files of the test set, which training never opens.
        _check_files(split.train + split.validation, config.skip_bad_events)
        sevir.check_missing(split.train + split.validation, say)
        splits.report_projections(split.train + split.validation, say)
    return config, split


def _check_packages(config):
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "`--tensorboard` must have the package tensorboard, which is not installed. Received: "
            "--tensorboard; pip install 'keras_nowcast[tensorboard]', or omit the flag."
        )


def _check_xla(config):
    """Raises InputError if both XLA and deterministic operations are requested."""
    variable = os.environ.get("TF_DETERMINISTIC_OPS", "")
    by_variable = variable.lower() in ("1", "true")
    if config.xla and (config.deterministic or by_variable):
        asked = f"TF_DETERMINISTIC_OPS={variable}" if by_variable else "--deterministic"
        raise InputError(
            "`--xla` must not be combined with deterministic operations: XLA has no deterministic "
            f"gradient of max pooling. Received: --xla and {asked}; omit one of them."
        )


def _check_place(path):
    """Raises InputError unless a path is a folder that can be written, or one can be made there."""
    for each in (path, *path.absolute().parents):
        if each.is_symlink() and not each.exists():
            raise InputError(
                f"`--run-dir` must not lead through a link to nothing. Received: {path}; {each} is "
                f"a link to {os.readlink(each)}, which does not exist: create that, or give "
                "another path."
            )
        if each.exists():
            if not each.is_dir() or not os.access(each, os.W_OK | os.X_OK):
                kind = "not writable" if each.is_dir() else "not a folder"
                raise InputError(
                    f"`--run-dir` must be a writable folder. Received: {path}; {each} is {kind}: "
                    "give another path."
                )
            return


def _check_power(config):
    """Raises InputError if a power source that is requested by name cannot be used here."""
    if not config.power_source.startswith("auto"):  # which depend on what TensorFlow uses
        choose_source(config.power_source, watts_per_core=config.watts_per_core)


def _with_data(config, say):
    """Returns the config with a data set; the default, a small synthetic one, is written first."""
    if config.data is not None:
        return config
    from keras_nowcast.data import synthetic

    root = synthetic.default_root(say)
    say(f"no --data given: training on the synthetic SEVIR in {root}")
    return dataclasses.replace(config, data=str(root))


def _read_split(config, say):
    read = splits.read_split
    if config.resume and _is_of_earlier_version(RunFolder(config.run_dir).stored_config()):
        read = splits.read_split_of_earlier_version
    split = read(config.data, *config.selection, say)
    if config.grid is not None:
        for event in split.train + split.validation:
            sevir.block_factor(event, config.grid)
    say(split.note)
    return split


def _is_of_earlier_version(stored):
    """Returns True if the stored configuration of a run lacks the dates of its sets."""
    return stored is not None and None in map(stored.get, ("train_before", "test_from"))


def _check_resumed(config):
    """Raises InputError if the run in the folder cannot be resumed with this configuration."""
    folder = RunFolder(config.run_dir)
    if config.precision == "auto":  # what it becomes is known, and checked again, with TensorFlow
        stored = completed(folder.stored_config() or {})
        config = dataclasses.replace(config, precision=stored["precision"])
    folder.check(config)
    lock = RunLock(config.run_dir, say=lambda line: None)
    lock.take()
    lock.release()


def _check_start(config):
    """Raises InputError if the `--start-from` run has no finished model of the same sizes.

    Not checked if a checkpoint has the weights.
    """
    if config.start_from is None:
        return
    if config.resume and checkpoint.any_in(RunFolder(config.run_dir).checkpoints):
        return
    start = RunFolder(config.start_from)
    if not start.model_file.is_file():
        raise InputError(
            "`--start-from` must be a run folder with a finished model, model.keras. "
            f"Received: {config.start_from}; give the folder of a completed run."
        )
    stored = start.stored_config()
    if stored is None:  # only the model itself has its sizes, and it needs TensorFlow
        return
    theirs, ours = _sizes(completed(stored)), _sizes(dataclasses.asdict(config))
    for name in names_of(SIZE):
        if theirs[name] != ours[name]:
            raise InputError(
                "`--start-from` must be a run with a model of the same depth and filters. "
                f"Received: {config.start_from}, whose --{name.replace('_', '-')} is "
                f"{theirs[name]}; here it is {ours[name]}."
            )


def _sizes(values):
    """Returns {name: value} of a config's fields of the role SIZE, none of them None."""
    sizes = {name: values[name] for name in names_of(SIZE)}
    sizes["center_filters"] = sizes["center_filters"] or default_center_filters(
        sizes["depth"], sizes["filters"]
    )
    return sizes


def _check_files(events, bad_allowed):
    """Checks the file of each event; raises InputError if more than `bad_allowed` fail.

    Pixels are not read here, so other events can still prove unreadable during training.
    """
    bad = 0
    for event in events:
        try:
            sevir.check_files([event])
        except InputError:
            bad += 1
            if bad > bad_allowed:
                raise
