"""The entry to training: checks what a run needs, trains, and writes the run folder.

TensorFlow is loaded only after `checks` has refused bad flags, unreadable data, and a run folder
that cannot be used.
"""

import contextlib
import dataclasses
import datetime
from pathlib import Path

from keras_nowcast.config import FIRST, names_on_ranks
from keras_nowcast.errors import Interrupted, TrainingFailed
from keras_nowcast.model import precision
from keras_nowcast.process import each_rank_reports, is_first_process
from keras_nowcast.records import RunFolder
from keras_nowcast.training import agreement, checks, distributed, environment
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
    with each_rank_reports():
        say = print if is_first_process() else _say_nothing
        config, split = checks.check(config, is_first_process(), say)
        world = distributed.start(config.deterministic)
    # Signals stay caught until the watchdog has reported: a launcher that sees one rank die sends a
    # signal to the others, which must live long enough to report the rank.
    with contextlib.ExitStack() as last, contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(world, config.stall_seconds))
        agreement.check(world, config, split)
        run = _prepare(config, world, split, watchdog, started)
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


def _prepare(config, world, split, watchdog, started):
    """Returns the Run of a config. If it raises, no run folder has been created."""
    say = print if world.is_first else _say_nothing
    # How a run is watched may differ between ranks, but some of it is done together.
    of_first = {name: getattr(config, name) for name in names_on_ranks(FIRST)}
    config = dataclasses.replace(config, **world.broadcast(of_first))
    distributed.load_tensorflow(world)
    if not config.share_gpus:
        environment.check_gpus(world)
    config = _resolved(config, world, say)
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


def _resolved(config, world, say):
    """Returns the config with the values that depend on the machine or the job filled in."""
    policy, reason = world.broadcast(  # the same on all ranks, also if their hosts differ
        precision.choose_precision(config.precision, environment.capabilities())
    )
    say(f"precision: {policy} ({reason})")
    name = (
        f"{datetime.datetime.now():%Y%m%d-%H%M%S}-d{config.depth}-f{config.filters}-g{config.grid}"
        f"-{policy}-np{world.size}-seed{config.seed}"
    )
    run_dir = world.broadcast(config.run_dir or str(Path("runs") / name))
    return dataclasses.replace(config, precision=policy, run_dir=run_dir)
