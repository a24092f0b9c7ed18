"""One training on one rank."""

import contextlib
import dataclasses
import functools
import threading
import time

import numpy as np

from keras_nowcast import machine, schema
from keras_nowcast.data.augment import augmented
from keras_nowcast.energy.lost import lost_energy
from keras_nowcast.energy.merge import WHOLE_COVERAGE
from keras_nowcast.energy.sampler import longest_gap_s
from keras_nowcast.errors import InputError, TrainingFailed
from keras_nowcast.files import remove_unfinished
from keras_nowcast.model import cost
from keras_nowcast.process import Signals
from keras_nowcast.records import RunFolder
from keras_nowcast.training import build, checkpoint, environment
from keras_nowcast.training.bad_events import BadEvents, UnreadableEvents
from keras_nowcast.training.energy import EnergyRecorder
from keras_nowcast.training.runlock import TOUCH_EVERY_S


class Run:
    """One training on one rank: its data, network and state, and what is done with them.

    Every method is called by all ranks together; rank 0 alone writes and prints.
    """

    def __init__(self, config, world, folder, lock, split, watchdog, started, say):
        import keras
        import tensorflow as tf

        from keras_nowcast.training import callbacks, progress

        self.config = config
        self.world = world
        self.folder = folder
        self.lock = lock
        self.watchdog = watchdog
        self.say = say
        self.environment = environment.describe(world)
        self.training = self._pipeline(split.train, shuffle=True)
        self.validation = self._pipeline(split.test, shuffle=False)
        self.progress, self.saved_unix_s, arrays = progress.Progress(), None, None
        if config.resume:
            arrays = self._read_checkpoint()
        self.progress.starts.append({"world_size": world.size, "steps": self.progress.steps})
        self.bad_events = BadEvents(world, config.skip_bad_events, self.progress.bad_events, say)
        self.training.on_bad_event = self.validation.on_bad_event = self.bad_events
        keras.utils.set_random_seed(config.seed)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        compiled = build.build_compiled(config, world, self.training.steps, self.progress.origin)
        self.model, self.flags, self.schedule = compiled.model, compiled.flags, compiled.schedule
        if arrays is not None:
            self._restore_variables(arrays)
        elif config.start_from:
            start = RunFolder(config.start_from)
            build.take_weights(self.model, start, world)
            say(f"starting as the network of {start.path}")
        world.broadcast_variables(self._replicated_variables())
        watchdog.waiting = self._awaited_input
        self.energy = EnergyRecorder(config, world, folder, self.progress)
        self.energy.follow(self.model)
        self.cost = cost.count_unet(*build.unet_sizes(config)).record(
            config.precision, config.batch_per_replica, config.fp16_allreduce
        )
        self.recorder = callbacks.EpochRecorder(
            world, self.progress, compiled, self.training, started, self.energy
        )
        self.stopper = self.memory = self.roofs = None
        self._recording = threading.Lock()  # record.json is written once a start
        self._is_recorded = False
        say(environment.in_short(self.environment))
        say(
            f"UNet of depth {config.depth} with {config.filters} filters: "
            f"{self.model.count_params():,} parameters; {self.training.windows} windows an epoch "
            f"in {self.training.steps} steps on {world.size} "
            f"process{'es' if world.size > 1 else ''}; {self.validation.windows} windows held out\n"
            f"power source: {self.energy.source.kind} ({self.energy.source.reason})"
        )

    def _open_folder(self):
        self.folder.open(self.config)
        self.lock.take()
        self.lock.begin(self.saved_unix_s, self.progress.zero_unix_s)
        for each in (self.folder.path, self.folder.checkpoints):
            remove_unfinished(each)
        self.watchdog.on_tick = self.lock.touch
        self.watchdog.on_failure = self._write_failure
        self.folder.write_environment(self.environment)
        self.say(f"run folder: {self.folder.path}")

    def _pipeline(self, events, shuffle):
        from keras_nowcast.data.pipeline import WindowPipeline

        return WindowPipeline(
            events,
            grid=self.config.grid,
            window_stride=self.config.window_stride,
            batch_per_replica=self.config.batch_per_replica,
            rank=self.world.rank,
            world_size=self.world.size,
            seed=self.config.seed,
            shuffle=shuffle,
            max_windows=self.config.max_windows,
        )

    def fit(self, last):
        """Trains from where the run stands to its last epoch.

        Args:
          last: the ExitStack that lets signals go again; it closes when all else has ended.
        """
        import tensorflow as tf

        from keras_nowcast.training import callbacks

        with contextlib.ExitStack() as stack:
            self.energy.limit_power(self.config.power_limit_w, stack, self.say)
            # Before the folder names this process to whoever wants to stop the run.
            signals = last.enter_context(Signals(second_interrupt_is_now=True))
            self.world.on_first(self._open_folder)  # last, so that a refusal leaves none behind
            stack.enter_context(self.energy)
            self.stopper = callbacks.StopTogether(
                self.flags, signals, self.save, self.progress, self.bad_events
            )
            hooks = self._hooks()
            try:
                if self._steps_left() == 0:
                    self._finish_validation(hooks)
                elif self.progress.step or self.progress.seen:
                    self._fit_until(hooks, self.progress.epoch + 1)
                self._fit_until(hooks, self.config.epochs)
                if self.config.layer_times:
                    self._time_layers()
            except (TrainingFailed, UnreadableEvents):
                self.recorder.settle()  # all ranks are after the same step
                raise
            except tf.errors.OpError as error:
                # TensorFlow wraps what a data generator raises; the plain error says more.
                raise self.training.error or self.validation.error or error from None

    def _time_layers(self):
        """Times each layer, and the roofs, on rank 0 while the others wait.

        After training, whose peak of memory is read before; its energy is a window of its own.
        """
        from keras_nowcast.training import layer_times

        policy, batch = self.config.precision, self.config.batch_per_replica
        self.memory = self._memory_record()
        since = time.monotonic()

        def timed(name, function, *arguments):
            # All ranks show that they live, layer by layer: a deep network takes its time.
            self.watchdog.alive(f"timing {name}")
            return self.world.on_first(functools.partial(function, *arguments))

        with self.energy.window("layer times"):
            counted = cost.count_unet(*build.unet_sizes(self.config))
            rows = [
                timed(part.name, layer_times.layer_row, part, self.model, policy, batch)
                for part in layer_times.parts_of(counted, policy, batch)
            ]
            self.roofs = timed("the roofs", layer_times.measure_roofs, policy)
            self.world.on_first(lambda: self.folder.write_layers(rows))
        seconds = time.monotonic() - since
        self.roofs["measuring_seconds"] = seconds
        step_s = sum(row["seconds_median"] for row in rows)
        self.say(
            f"timed the layers in {seconds:.0f} s, apart from all training: {step_s:.3g} s a step "
            f"by their sum; roofs: {_in_giga(self.roofs['compute_flops_per_second'])} GFLOP/s, "
            f"{self.roofs['memory_bytes_per_second'] / 1e9:.3g} GB/s"
        )

    def _fit_until(self, hooks, epochs):
        progress = self.progress
        if progress.epoch < epochs:
            self.model.fit(
                self._training_data(),
                steps_per_epoch=self._steps_left(),
                initial_epoch=progress.epoch,
                epochs=epochs,
                validation_data=self.validation.dataset(),
                validation_steps=self.validation.steps,
                callbacks=hooks,
                shuffle=False,  # the pipeline shuffles
                verbose=0,
            )

    def _steps_left(self):
        """Returns how many steps of the epoch under way are left."""
        return self.training.steps_left(self.progress.seen) - self.progress.step

    def _training_data(self):
        progress = self.progress
        dataset = self.training.dataset(progress.epoch, progress.step, progress.seen)
        if not self.config.augment:
            return dataset
        return augmented(dataset, self.config.seed, self.world.rank, progress.steps)

    def _awaited_input(self):
        """Returns (seconds, words) of the event that a batch waits for, None without one."""
        for waiting in (self.training.waiting, self.validation.waiting):
            if waiting is not None:
                since_s, event = waiting
                return time.monotonic() - since_s, f"event {event.name} of {event.file}"
        return None

    def _finish_validation(self, hooks):
        """Does what is left of an epoch that was interrupted after its last training step."""
        epoch = self.progress.epoch
        for hook in hooks:
            hook.set_model(self.model)
            hook.on_epoch_begin(epoch)
        self.model.evaluate(
            self.validation.dataset(), steps=self.validation.steps, callbacks=hooks, verbose=0
        )
        logs = {}
        for hook in hooks:
            hook.on_epoch_end(epoch, logs)

    def _hooks(self):
        from keras_nowcast.training import callbacks

        hooks = [
            callbacks.TellWatchdog(self.watchdog),
            self.recorder,
            callbacks.AverageStatistics(self.world),
            callbacks.KeepBest(self.progress, self._write_best),
            callbacks.SaveCheckpoints(
                self.save, self.flags, self.config.checkpoint_minutes, self.world.is_first
            ),
            callbacks.EpochTable(self.world, self.folder, self.progress),
        ]
        if self.world.is_first:
            hooks += [
                callbacks.ProgressLines(
                    self.config.epochs, self.training, self.progress, self.energy
                ),
            ]
            if self.config.tensorboard:
                hooks.append(callbacks.TensorBoardScalars(self.folder.path / "tensorboard"))
        return [*hooks, self.stopper]

    def _replicated_variables(self):
        """The variables that are the same on all ranks: all but the batch-norm statistics."""
        return self.model.trainable_variables + self.model.optimizer.variables

    def save(self, go_on=False):
        """Writes a checkpoint of the run as it stands, in or between epochs.

        Args:
          go_on: whether the epoch under way goes on.

        Raises:
          UnreadableEvents: what would be saved lacks more events than it may.
        """
        self.bad_events.agree()
        self.watchdog.alive("a checkpoint")
        self.recorder.settle()
        with self.energy.window("checkpoint"):
            self._write_checkpoint()
        self.watchdog.alive("training")
        if go_on:
            self.recorder.open()

    def _write_checkpoint(self):
        statistics = self.world.gather(
            checkpoint.variable_arrays("statistics", self.model.non_trainable_variables)
        )
        arrays = checkpoint.variable_arrays("replicated", self._replicated_variables())
        for name in statistics[0]:
            arrays[name] = np.stack([of_rank[name] for of_rank in statistics])
        values = self.progress.as_dict()
        values["energy"] = values["energy"] + self.energy.results()
        values["layout"] = self._layout()
        step = float(self.model.optimizer.iterations)
        values["schedule"] = {"step": step, "multiple": float(self.schedule.multiple(step))}
        self.saved_unix_s = values["saved_unix_s"] = time.time()
        self.world.on_first(
            lambda: checkpoint.write_checkpoint(self.folder.checkpoints, values, arrays)
        )

    def _read_checkpoint(self):
        """Takes up the progress of the newest checkpoint, on whatever number of ranks wrote it.

        Returns:
          Its arrays, on rank 0 alone all of them, on the others the statistics; None without one.

        Raises:
          InputError: the run had other windows.
        """
        from keras_nowcast.training import progress

        arrays = {}

        def read():
            if not checkpoint.any_in(self.folder.checkpoints):
                return None
            values, found, damaged = checkpoint.read_checkpoint(self.folder.checkpoints)
            for name in damaged:
                self.say(f"checkpoint {name} is damaged; going on from the one before it")
            arrays.update(found)
            return values, {k: v for k, v in found.items() if k.startswith("statistics/")}

        restored = self.world.on_first(read)
        if restored is None:
            self.say("the run ended before its first checkpoint: starting it again")
            self.progress.zero_unix_s = self.world.broadcast(self.lock.zero_unix_s)
            return None
        values, statistics = restored
        layout, schedule = values.pop("layout"), values.pop("schedule")
        self.saved_unix_s = values.pop("saved_unix_s")
        for name, mine in self._layout().items():
            if name != "world_size" and layout[name] != mine:
                raise InputError(
                    f"`--resume` needs the very {name.replace('_', ' ')} that the run was started "
                    f"with, {layout[name]}. Received: {mine}; is --data the same, and whole?"
                )
        self.progress = progress.Progress.from_dict(values)
        if layout["world_size"] != self.world.size:
            self._change_world(layout["world_size"], **schedule)
        self.say(f"going on in epoch {self.progress.epoch + 1} after step {self.progress.step}")
        return {**statistics, **arrays}

    def _change_world(self, former_size, step, multiple):
        """Goes on from where another number of ranks stopped: in windows, not in steps.

        Args:
          former_size: the number of those ranks.
          step: how many steps their optimizer made.
          multiple: of one process's learning rate that they had reached.
        """
        progress = self.progress
        if progress.step:
            progress.seen.append([former_size, progress.step])
            progress.step = 0
        left = self.training.windows_left(progress.seen)
        progress.origin = [step, progress.epoch + 1 - left / self.training.windows, multiple]
        self.say(
            f"the run was on {former_size} process{'es' if former_size > 1 else ''} and goes on "
            f"with {self.world.size}: {left} windows of epoch {progress.epoch + 1} are left, the "
            f"global batch is {self.world.size * self.config.batch_per_replica}"
        )

    def _restore_variables(self, arrays):
        """Gives the network and its optimizer what a checkpoint holds, on rank 0; broadcast later.

        Batch-norm statistics differ between ranks: each gets its own back, or, on another number
        of ranks, the mean of all, as it would have had from the next validation.
        """
        self.world.on_first(
            lambda: checkpoint.assign_variables("replicated", self._replicated_variables(), arrays)
        )
        mine = {
            name: by_rank[self.world.rank]
            if len(by_rank) == self.world.size
            else by_rank.mean(axis=0, dtype=by_rank.dtype)
            for name, by_rank in arrays.items()
            if name.startswith("statistics/")
        }
        checkpoint.assign_variables("statistics", self.model.non_trainable_variables, mine)

    def _layout(self):
        """What the numbers of steps in a checkpoint mean."""
        return {
            "world_size": self.world.size,
            "windows": self.training.windows,
            "list_of_windows": self.training.fingerprint(),
        }

    def end(self):
        """Notes that this start ended with all that it did saved."""
        self.world.on_first(lambda: self.lock.end(self.saved_unix_s))

    def first_failure(self):
        """Returns where a loss was first not finite, in words, or None if none was."""
        places = self.world.gather(self.stopper and self.stopper.failed_at)
        failed = [(place, rank) for rank, place in enumerate(places) if place is not None]
        if not failed:
            return None
        (epoch, step), rank = min(failed)
        return f"the loss was not finite in epoch {epoch}, step {step}, on rank {rank}"

    def write_model(self):
        """Writes the network as it is now; its statistics were averaged for the last validation."""
        from keras_nowcast.model.unet import write_unet

        self.world.on_first(lambda: write_unet(self.model, self.folder.model_file))
        self.say(f"model written to {self.folder.model_file}")

    def _write_best(self):
        from keras_nowcast.model.unet import write_unet

        self.world.on_first(lambda: write_unet(self.model, self.folder.best_model_file))

    def write_record(self, status, reason=None):
        """Writes record.json, and epochs.csv with the joules of the record."""
        from keras_nowcast.training import callbacks

        memory, sums = self.memory or self._memory_record(), self.progress.sums
        training = self._training_record(callbacks.loss_scale(self.model.optimizer), sums)
        training["lost_seconds"] = self.world.broadcast(training["lost_seconds"])
        energy = self.energy.record(
            self._timed_samples(sums), training["seconds"], training["seconds_per_epoch"]
        )
        self.progress.set_energy(energy)

        def write():
            if self.progress.rows:
                self.folder.write_epochs(self.progress.rows)
            self._write_once(status, reason, training, energy | self._lost_energy(), memory)

        self.world.on_first(write)

    def _write_failure(self, reason):
        """Writes the record of a job that a rank ends, as far as rank 0 knows it by itself.

        From the watchdog's thread, while this rank may wait in a collective or in a step for ever:
        no other rank and no device is asked.
        """
        from keras_nowcast.training import progress

        self.lock.touch(last=True)  # up to now it worked, in vain
        rows = self.progress.rows
        unknown = "not gathered from the ranks: one of them ended the job"
        record = schema.empty_record(unknown)
        schema.fill(
            record["energy"],
            source=self.energy.source.kind,
            joules_per_epoch=[row["joules"] for row in rows],
            coverage_per_epoch=[row.get("joules_coverage") for row in rows],
        )
        record["energy"]["source_reason"] = self.energy.source.reason
        # Of finished epochs alone: the time of the one under way is added as it is interrupted.
        scale = rows[-1]["loss_scale"] if rows else None
        training = self._training_record(scale, progress.Sums())
        with contextlib.suppress(OSError):  # a full disk, say: the reason is told anyhow
            self._write_once("failed", reason, training, record["energy"], record["memory"])

    def _write_once(self, status, reason, training, energy, memory):
        """Writes record.json, if this start has not done so yet.

        A rank that is lost after the training was done does not make it a failure.
        """
        record = {
            "status": status,
            "status_reason": reason,
            "config": dataclasses.asdict(self.config),
            "environment": self.environment,
            "model": self.cost,
            "training": training,
            "energy": energy,
            "memory": memory,
            "roofs": self.roofs,
        }
        if self.roofs is None:
            timed = self.config.layer_times
            record["roofs_reason"] = f"--layer-times was {'interrupted' if timed else 'not given'}"
        with self._recording:
            if not self._is_recorded:
                self.folder.write_record(record)
                self._is_recorded = True

    def _lost_energy(self):
        """Returns what was used for work that a kill lost; it is in no other figure."""
        if not self.lock.lost:
            reason = "nothing was lost"
            if self.lock.follows:
                reason = f"no loss was seen; a job gives a sign of life every {TOUCH_EVERY_S:g} s"
            return {"lost_joules": 0.0, "lost_coverage": None, "lost_coverage_reason": reason}
        joules, coverage = lost_energy(
            self.folder.power_readings(),
            self.lock.lost,
            self.progress.zero_unix_s,
            longest_gap_s(self.config.power_interval_s),
        )
        record = {"lost_joules": joules, "lost_coverage": coverage}
        if joules is None:
            record["lost_joules_reason"] = "no power was read between the checkpoint and the kill"
        elif coverage < WHOLE_COVERAGE:
            record["lost_joules_reason"] = (
                f"of {coverage:.1%} of the lost time alone: the trace has no readings of the rest"
            )
        return record

    def _timed_samples(self, sums):
        return sum(row["samples"] for row in self.progress.rows) + sums.samples

    def _training_record(self, scale, sums):
        """Returns the `training` part of the record.

        Args:
          scale: the loss scale, None without.
          sums: the Sums of the epoch that is not finished.
        """
        rows = self.progress.rows
        seconds = sum(row["seconds"] for row in rows) + sums.seconds
        samples = self._timed_samples(sums)
        rate = samples / seconds if samples and seconds else None
        last = rows[-1] if rows else {"loss": None, "val_loss": None}
        flops = self.cost["training_flops_per_sample"]
        record = {
            "epochs": len(rows),
            "windows_per_epoch": self.training.windows,
            "steps": self.progress.steps,
            "skipped_steps": sum(row["skipped_steps"] for row in rows) + sums.skipped_steps,
            "seconds": seconds,
            "seconds_per_epoch": [row["seconds"] for row in rows],
            "samples_per_second": rate,
            "final_loss_scale": scale,
            "loss": last["loss"],
            "val_loss": last["val_loss"],
            "achieved_flops_per_second": rate and rate * flops,
            "setup_seconds": self.progress.setup_seconds,
            "starts": self.progress.starts,
            "skipped_events": len(self.progress.bad_events),
            "skipped_event_reasons": list(self.progress.bad_events.values()),
            "lost_seconds": sum(end - begin for begin, end in self.lock.lost),
        }
        for key in schema.TRAINING:
            if record[key.name] is None:
                record[f"{key.name}_reason"] = key.null
        if scale is None:
            scaled = self.config.precision == "mixed_float16"
            record["final_loss_scale_reason"] = (
                "no epoch was finished" if scaled else "only mixed_float16 scales the loss"
            )
        return record

    def _memory_record(self):
        """Returns the largest memory of any rank."""
        import tensorflow as tf

        rss = machine.peak_rss_bytes()
        gpus = tf.config.get_visible_devices("GPU")
        gpu = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None
        ranks = self.world.gather((rss, gpu))
        record = {}
        for key, values in zip(schema.MEMORY, zip(*ranks, strict=True), strict=True):
            record[key.name] = max((each for each in values if each is not None), default=None)
            if record[key.name] is None:
                record[f"{key.name}_reason"] = key.null
        return record


def _in_giga(by_dtype):
    return ", ".join(f"{dtype} {value / 1e9:.3g}" for dtype, value in by_dtype.items())
