"""One training on one rank: it prepares, fits, saves checkpoints and ends.

record.py writes record.json, resume.py reads and writes checkpoints, build.py builds the model.
"""

import contextlib
import functools
import time

from keras_nowcast.errors import InputError, TrainingFailed
from keras_nowcast.files import remove_unfinished
from keras_nowcast.process import Signals
from keras_nowcast.records import RunFolder
from keras_nowcast.training import build, environment, gpu_options, record, resume, user_settings
from keras_nowcast.training.bad_events import BadEvents, UnreadableEvents
from keras_nowcast.training.energy import EnergyRecorder


class Run:
    """One training on one rank: its data, model and state, and what is done with them.

    All ranks call every method together; rank 0 alone writes and prints.

    Args:
      config: a RunConfig with every value that depends on the data or the machine filled in.
      world: the World.
      folder: the RunFolder.
      lock: the RunLock of the folder; with `config.resume` rank 0 has taken it.
      split: the Split of the events.
      watchdog: the Watchdog, entered.
      started: time.monotonic() when the process started.
      say: called with each line for the console; prints on rank 0 only.

    Raises:
      InputError: the checkpoint, the model to start from or the power source cannot be used.
    """

    def __init__(self, config, world, folder, lock, split, watchdog, started, say):
        import keras
        import tensorflow as tf

        from keras_nowcast.training import callbacks
        from keras_nowcast.training.inputs import Inputs
        from keras_nowcast.training.statistics import StatisticsEstimator

        self.config = config
        self.world = world
        self.folder = folder
        self.lock = lock
        self.watchdog = watchdog
        self.say = say
        gpu_options.set_options(config)
        self.environment = environment.describe(world)
        self.inputs = Inputs(config, world, split)
        self.training, self.validation = self.inputs.training, self.inputs.validation
        saved = self._read_saved() if config.resume else resume.Saved()
        self.progress, self.saved_unix_s = saved.progress, saved.saved_unix_s
        self.progress.starts.append({"world_size": world.size, "steps": self.progress.steps})
        self.bad_events = BadEvents(world, config.skip_bad_events, self.progress.bad_events, say)
        self.inputs.on_bad_event(self.bad_events)
        keras.utils.set_random_seed(config.seed)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.compiled = build.build_compiled(
            config, world, self.training.steps, self.progress.origin
        )
        self.model = self.compiled.model
        self._set_weights(saved.arrays)
        watchdog.waiting = self.inputs.awaited
        self.energy = EnergyRecorder(config, world, folder, self.progress)
        self.energy.follow(self.model)
        self.recorder = callbacks.EpochRecorder(
            world,
            self.progress,
            self.compiled,
            self.training,
            started,
            self.energy,
            StatisticsEstimator(self.model, world, self.inputs.sample, watchdog.alive),
        )
        self.record = record.RecordWriter(
            config,
            world,
            folder,
            lock,
            self.progress,
            self.energy,
            environment=self.environment,
            model=build.model_record(config),
            data=record.data_record(config, split),
        )
        self.stopper = None
        say(_introduction(self))

    def _read_saved(self):
        return resume.read_saved(
            self.folder,
            self.lock,
            self.world,
            self.training,
            self.config.batch_per_replica,
            self.say,
        )

    def _set_weights(self, arrays):
        """Sets all variables of the model: from a checkpoint, another run, or at random."""
        if arrays is not None:
            resume.restore_variables(self.model, self.world, arrays)
        elif self.config.start_from:
            start = RunFolder(self.config.start_from)
            build.take_weights(self.model, start, self.world)
            self.say(f"starting with the weights of {start.model_file}")
        self.world.broadcast_variables(resume.replicated_variables(self.model))

    def _open_folder(self):
        self.folder.open(self.config)
        self.lock.take()
        self.lock.begin(self.saved_unix_s, self.progress.zero_unix_s)
        for each in (self.folder.path, self.folder.checkpoints):
            remove_unfinished(each)
        self.watchdog.on_tick = self.lock.touch
        self.watchdog.on_failure = self.record.write_failure
        with contextlib.suppress(InputError):  # environment.json is odd, and is written again
            changed = environment.changes(self.folder.read_environment() or {}, self.environment)
            if changed is not None:
                self.say(changed)
        self.folder.write_environment(self.environment)
        self.say(f"run folder: {self.folder.path}")

    def fit(self, last):
        """Trains from the current position of the run to its last epoch.

        Args:
          last: the ExitStack that releases the signals; it closes after everything else.

        Raises:
          InputError: the folder is in use or not writable, or a power limit cannot be set.
          Interrupted: a signal arrived; a checkpoint is saved.
          TrainingFailed: a loss is not finite, or a file cannot be written.
          UnreadableEvents: more events are unreadable than `--skip-bad-events` allows.
        """
        import tensorflow as tf

        from keras_nowcast.training import callbacks

        with contextlib.ExitStack() as stack:
            self.energy.limit_power(self.config.power_limit_w, stack, self.say)
            # Before the folder names this process, which is how a user finds the one to signal.
            signals = last.enter_context(Signals(second_interrupt_is_now=True))
            self.world.on_first(self._open_folder)  # last, so that a refused run leaves no folder
            stack.enter_context(self.energy)
            self.stopper = callbacks.StopTogether(
                self.compiled.reports, signals, self.save, self.progress, self.bad_events
            )
            hooks = self._hooks()
            self.world.gather(None)  # until the idle power of all ranks is measured
            gpu_options.warm_up(self.compiled.steps, self.training, self.progress)
            try:
                if self._steps_left() == 0:
                    self._finish_validation(hooks)
                elif self.progress.step or self.progress.seen:
                    self._fit_until(hooks, self.progress.epoch + 1)
                self._fit_until(hooks, self.config.epochs)
                if self.config.layer_times:
                    self._time_layers()
            except (TrainingFailed, UnreadableEvents):
                self.recorder.settle()  # all ranks have done the same steps
                raise
            except tf.errors.OpError as error:
                raise self.inputs.error or error from None

    def _time_layers(self):
        """Times each layer, and the roofline limits, on rank 0 while the other ranks wait.

        This follows training, so the peak memory of training is read before it. The energy is that
        of a separate window.
        """
        from keras_nowcast.training import layer_times

        policy, batch = self.config.precision, self.config.batch_per_replica
        self.record.memory = record.memory_record(self.world)
        since = time.monotonic()

        def timed(name, function, *arguments):
            # Each layer is a heartbeat of all ranks, because a deep model takes long.
            self.watchdog.alive(f"timing {name}")
            return self.world.on_first(functools.partial(function, *arguments))

        with self.energy.window("layer times"):
            parts = layer_times.parts_of(build.count_model(self.config), policy, batch)
            row = layer_times.layer_row
            rows = [timed(each.name, row, each, self.model, policy, batch) for each in parts]
            roofs = timed("the roofline limits", layer_times.measure_roofs, policy)
            self.world.on_first(lambda: self.folder.write_layers(rows))
        roofs["measuring_seconds"] = time.monotonic() - since
        self.record.roofs = roofs
        self.say(layer_times.summary_line(rows, roofs))

    def _fit_until(self, hooks, epochs):
        progress = self.progress
        if progress.epoch < epochs:
            self.model.fit(
                self.inputs.training_data(self.progress),
                steps_per_epoch=self._steps_left(),
                initial_epoch=progress.epoch,
                epochs=epochs,
                validation_data=self.inputs.validation_data(),
                validation_steps=self.validation.steps,
                callbacks=hooks,
                shuffle=False,  # the pipeline shuffles
                verbose=0,
            )

    def _steps_left(self):
        """Returns how many steps of the current epoch are left."""
        return self.training.steps_left(self.progress.seen) - self.progress.step

    def _finish_validation(self, hooks):
        """Completes an epoch that was interrupted after its last training step."""
        epoch = self.progress.epoch
        for hook in hooks:
            hook.set_model(self.model)
            hook.on_epoch_begin(epoch)
        self.model.evaluate(
            self.inputs.validation_data(), steps=self.validation.steps, callbacks=hooks, verbose=0
        )
        logs = {}
        for hook in hooks:
            hook.on_epoch_end(epoch, logs)

    def _hooks(self):
        from keras_nowcast.training import callbacks

        hooks = [
            callbacks.ReportProgress(self.watchdog),
            self.recorder,
            callbacks.KeepBest(self.progress, self._write_best),
            callbacks.SaveCheckpoints(
                self.save,
                self.compiled.reports,
                self.config.checkpoint_minutes,
                self.world.is_first,
            ),
            callbacks.EpochTable(self.world, self.folder, self.progress),
        ]
        if self.world.is_first:
            hooks += [
                callbacks.ProgressLines(
                    self.config.epochs,
                    self.training,
                    self.progress,
                    self.energy,
                    self.compiled.reports,
                ),
            ]
            if self.config.tensorboard:
                hooks.append(callbacks.TensorBoardScalars(self.folder.path / "tensorboard"))
        return [*hooks, self.stopper]

    def save(self, go_on=False):
        """Writes a checkpoint of the run as it is now, within an epoch or between two.

        Args:
          go_on: whether the current epoch continues.

        Raises:
          TrainingFailed: the checkpoint cannot be written.
          UnreadableEvents: more events are unreadable than `--skip-bad-events` allows.
        """
        self.bad_events.agree()
        self.watchdog.alive("a checkpoint")
        self.recorder.settle()
        with self.energy.window("checkpoint"):
            self.saved_unix_s = resume.write_saved(
                self.folder,
                self.world,
                self.progress,
                self.energy.results(),
                self.compiled,
                self.training,
            )
        self.watchdog.alive("training")
        if go_on:
            self.recorder.open()

    def end(self):
        """Marks this start as ended, with all its work saved."""
        self.world.on_first(lambda: self.lock.end(self.saved_unix_s))

    def first_failure(self):
        """Returns where a loss was first not finite, as text, or None if every loss was."""
        places = self.world.gather(self.stopper and self.stopper.failed_at)
        failed = [(place, rank) for rank, place in enumerate(places) if place is not None]
        if not failed:
            return None
        (epoch, step), rank = min(failed)
        return f"the loss was not finite in epoch {epoch + 1}, step {step}, on rank {rank}"

    def write_model(self):
        """Writes the model as it is now, with the statistics of the last validation."""
        from keras_nowcast.model.unet import write_unet

        self.world.on_first(lambda: write_unet(self.model, self.folder.model_file))
        self.say(f"model written to {self.folder.model_file}")

    def _write_best(self):
        from keras_nowcast.model.unet import write_unet

        self.world.on_first(lambda: write_unet(self.model, self.folder.best_model_file))

    def write_record(self, status, reason=None):
        """Writes record.json, and epochs.csv with the joules of the record."""
        from keras_nowcast.training import callbacks

        self.record.write(status, reason, callbacks.loss_scale(self.model.optimizer))


def _introduction(run):
    """Returns the console lines about a Run before it begins."""
    config, size, source = run.config, run.world.size, run.energy.source
    settings = user_settings.report(user_settings.found())
    settings = "" if settings is None else f"{settings}\n"
    return (
        f"{environment.in_short(run.environment)}\n"
        f"{settings}"
        f"UNet of depth {config.depth} with {config.filters} filters: "
        f"{run.model.count_params():,} parameters; {run.training.windows} training windows per "
        f"epoch in {run.training.steps} steps on {size} process{'es' if size > 1 else ''}; "
        f"{run.validation.windows} validation windows\n"
        f"power source: {source.kind} ({source.reason})"
    )
