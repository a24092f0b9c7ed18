"""The entry to training: checks what a run needs, trains, and writes the run folder.

TensorFlow is loaded only after bad flags and missing or unreadable data have been refused.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
from pathlib import Path

from keras_nowcast.config import date_text
from keras_nowcast.data import sevir, splits
from keras_nowcast.errors import InputError, Interrupted, TrainingFailed
from keras_nowcast.model import precision
from keras_nowcast.records import RunFolder
from keras_nowcast.training import distributed, environment
from keras_nowcast.training.bad_events import UnreadableEvents
from keras_nowcast.training.run import Run
from keras_nowcast.training.runlock import RunLock
from keras_nowcast.training.watchdog import Watchdog


def train(config, started):
    """Trains one model on one data set and writes the run folder that records.py describes.

    Args:
      config: a RunConfig.
      started: time.monotonic() when the process started; the setup time counts from then to the
        end of the first step.

    Raises:
      InputError: the configuration does not fit the data, the folder or the machine, or more
        events are unreadable than `--skip-bad-events` allows.
      Interrupted: a signal arrived; a checkpoint is saved.
      TrainingFailed: a loss is not finite, or a file cannot be written; the record states where.
    """
    world = distributed.start(config.deterministic)
    # Signals stay caught until the watchdog has reported: a launcher that sees one rank die sends a
    # signal to the others, which must live long enough to report the rank.
    with contextlib.ExitStack() as last, contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(world, config.stall_seconds))
        run = _prepare(config, world, watchdog, started)
        # After the watchdog has ended, because it may still write the record and a heartbeat.
        last.callback(run.lock.release)
        try:
            run.fit(last)
        except Interrupted as interrupted:
            run.write_record("interrupted", str(interrupted))
            run.end()
            raise
        except UnreadableEvents as error:
            run.write_record("failed", str(error))
            raise
        except TrainingFailed as failure:
            reason = run.first_failure() or str(failure)
            # The record may fail too, for example on a full disk; the reason is printed anyway.
            with contextlib.suppress(TrainingFailed):
                run.write_record("failed", reason)
            raise TrainingFailed(reason) from None
        run.write_model()
        run.write_record("completed")
        run.end()


def _prepare(config, world, watchdog, started):
    """Returns the Run of a config. If it raises, no run folder has been created."""
    say = print if world.is_first else _say_nothing
    config = _with_data(config, world, say)
    split = world.on_all(lambda: _read_split(config, say))
    world.on_first(lambda: _check_start(config))
    # Not the files of the test set, which training never opens.
    world.on_first(lambda: _check_files(split.train + split.validation, config.skip_bad_events))
    distributed.load_tensorflow(world)
    config = _resolved(config, world, split, say)
    _check_packages(config)
    folder, lock = RunFolder(config.run_dir), RunLock(config.run_dir, say)

    def claim():
        folder.check(config)
        if config.resume:
            lock.take()  # before anything in the folder is read

    world.on_first(claim)
    try:
        return Run(config, world, folder, lock, split, watchdog, started, say)
    except BaseException:
        lock.release()
        raise


def _say_nothing(*words):
    pass


def _with_data(config, world, say):
    """Returns the config with a data set; the default, a small synthetic one, is written first."""
    if config.data is not None:
        return config
    from keras_nowcast.data import synthetic

    root = world.on_first(lambda: synthetic.default_root(say))
    say(f"no --data given: training on the synthetic SEVIR in {root}")
    return dataclasses.replace(config, data=str(root))


def _read_split(config, say):
    read = splits.read_split
    if config.resume and _is_of_earlier_version(RunFolder(config.run_dir).stored_config()):
        read = splits.read_split_of_earlier_version
    split = read(
        config.data,
        config.max_missing,
        config.train_before_time,
        config.test_from_time,
        config.authors_split,
        say,
    )
    if config.grid is not None:
        for event in split.train + split.validation:
            sevir.block_factor(event, config.grid)
    say(split.note)
    return split


def _is_of_earlier_version(stored):
    """Returns True if the stored configuration of a run lacks the dates of its sets."""
    return stored is not None and None in map(stored.get, ("train_before", "test_from"))


def _check_start(config):
    """Raises InputError if the `--start-from` run has no finished model.

    Not checked with `--resume`, which takes the weights from a checkpoint if there is one.
    """
    start = config.start_from
    if start is not None and not config.resume and not RunFolder(start).model_file.is_file():
        raise InputError(
            "`--start-from` must be a run folder with a finished model, model.keras. "
            f"Received: {start}; give the folder of a completed run."
        )


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


def _resolved(config, world, split, say):
    """Returns the config with the values that depend on the data or the machine filled in."""
    grid = config.grid or split.train[0].size
    policy, reason = world.broadcast(  # the same on all ranks, also if their hosts differ
        precision.choose_precision(config.precision, environment.capabilities())
    )
    say(f"precision: {policy} ({reason})")
    name = (
        f"{datetime.datetime.now():%Y%m%d-%H%M%S}-d{config.depth}-f{config.filters}-g{grid}"
        f"-{policy}-np{world.size}-seed{config.seed}"
    )
    return dataclasses.replace(
        config,
        grid=grid,
        precision=policy,
        train_before=date_text(split.train_before) or config.train_before,
        test_from=date_text(split.test_from) or config.test_from,
        run_dir=world.broadcast(config.run_dir or str(Path("runs") / name)),
    )


def _check_packages(config):
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "`--tensorboard` must have the package tensorboard, which is not installed. Received: "
            "--tensorboard; pip install 'keras_nowcast[tensorboard]', or omit the flag."
        )
