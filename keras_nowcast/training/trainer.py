"""Trains one network on one data set and leaves a complete run folder."""

import contextlib
import dataclasses
import datetime
import importlib.util
import sys
from pathlib import Path

import numpy as np

from keras_nowcast.data import sevir
from keras_nowcast.data.augment import augmented
from keras_nowcast.errors import InputError, Interrupted, TrainingFailed
from keras_nowcast.model import cost, precision
from keras_nowcast.records import RunFolder
from keras_nowcast.training import checkpoint, distributed, environment
from keras_nowcast.training.energy import EnergyRecorder

VALIDATION_THRESHOLDS = (16, 74, 133)  # codes, of those in sevir.VIL_THRESHOLDS


def train(config, started):
    """Trains as `config` says and leaves the run folder that DESIGN.md describes.

    Args:
      config: a RunConfig.
      started: time.monotonic() when the process started; what comes before the first training
        step counts from there as set-up.

    Raises:
      InputError: the configuration does not fit the data, the folder or the machine.
      Interrupted: a signal; a checkpoint is saved.
      TrainingFailed: a loss is not finite; the record says where.
    """
    world = distributed.start()
    say = print if world.is_first else _say_nothing
    config = _with_data(config, world, say)
    split = world.on_all(lambda: _read_split(config, say))
    world.on_first(lambda: sevir.check_files(split.train + split.test))
    distributed.load_tensorflow(world)
    config = _resolved(config, world, split, say)
    _check_packages(config)
    folder = RunFolder(config.run_dir)
    world.on_first(lambda: folder.check(config))
    run = Run(config, world, folder, split, started, say)
    try:
        run.fit()
    except Interrupted as interrupted:
        run.write_record("interrupted", str(interrupted))
        raise
    except TrainingFailed as failure:
        reason = run.first_failure() or str(failure)
        with contextlib.suppress(TrainingFailed):  # a full disk: the reason is told anyhow
            run.write_record("failed", reason)
        raise TrainingFailed(reason) from None
    run.write_model()
    run.write_record("completed")


def _say_nothing(*words):
    pass


def _with_data(config, world, say):
    """Returns the config with a data set: if none is given a small synthetic one, written first."""
    if config.data is not None:
        return config
    from keras_nowcast.data import synthetic

    root = world.on_first(lambda: synthetic.default_root(say))
    say(f"no --data given: training on the synthetic SEVIR in {root}")
    return dataclasses.replace(config, data=str(root))


def _read_split(config, say):
    split = sevir.read_split(
        config.data, config.max_missing, config.train_before_time, config.test_from_time,
        config.authors_split, say,
    )  # fmt: skip
    if config.grid is not None:
        for event in split.train + split.test:
            sevir.block_factor(event, config.grid)
    say(split.note)
    return split


def _resolved(config, world, split, say):
    """Returns the config with every default that depends on data or machine filled in."""
    grid = config.grid or split.train[0].size
    policy, reason = world.broadcast(  # one for all ranks, also on unlike hosts
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
        run_dir=world.broadcast(config.run_dir or str(Path("runs") / name)),
    )


def _check_packages(config):
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "`--tensorboard` needs the package tensorboard, which is not installed. Received: "
            "--tensorboard; pip install 'keras_nowcast[tensorboard]', or leave it out."
        )


class Run:
    """One training on one rank: its data, network and state, and what is done with them.

    Every method is called by all ranks together; rank 0 alone writes and prints.
    """

    def __init__(self, config, world, folder, split, started, say):
        import keras

        from keras_nowcast.training import callbacks

        self.config = config
        self.world = world
        self.folder = folder
        self.say = say
        self.environment = environment.describe(world)
        self.training = self._pipeline(split.train, shuffle=True)
        self.validation = self._pipeline(split.test, shuffle=False)
        keras.utils.set_random_seed(config.seed)
        precision.set_precision(config.precision)
        self.flags = distributed.StopFlags(world)
        self.model, metrics = _build_compiled(config, world, self.flags, self.training.steps)
        self.progress = callbacks.Progress()
        if config.resume:
            self._restore()
        elif config.start_from:
            self._take_weights(RunFolder(config.start_from))
        world.broadcast_variables(self._replicated_variables())
        self.energy = EnergyRecorder(config, world, folder, self.progress)
        self.energy.follow(self.model)
        self.cost = cost.count_unet(*_network_sizes(config)).record(
            config.precision, config.batch_per_replica, config.fp16_allreduce
        )
        self.recorder = callbacks.EpochRecorder(
            world, self.progress, metrics, self.training, started, self.energy
        )
        self.stopper = None
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

    def fit(self):
        """Trains from where the run stands to its last epoch."""
        import tensorflow as tf

        from keras_nowcast.training import callbacks

        with contextlib.ExitStack() as stack:
            self.energy.limit_power(self.config.power_limit_w, stack, self.say)
            self.world.on_first(self._open_folder)  # last, so that a refusal leaves none behind
            signals = stack.enter_context(callbacks.Signals())
            stack.enter_context(self.energy)
            self.stopper = callbacks.StopTogether(self.flags, signals, self.save, self.progress)
            hooks = self._hooks()
            try:
                if self.progress.step == self.training.steps:
                    self._finish_validation(hooks)
                elif self.progress.step:
                    self._fit_until(hooks, self.progress.epoch + 1)
                self._fit_until(hooks, self.config.epochs)
            except TrainingFailed:
                self.recorder.settle()  # all ranks are after the same step
                raise
            except tf.errors.OpError as error:
                # TensorFlow wraps what a data generator raises; the plain error says more.
                raise self._reading_error() or error from None

    def _fit_until(self, hooks, epochs):
        progress = self.progress
        if progress.epoch < epochs:
            self.model.fit(
                self._training_data(progress.epoch, progress.step),
                steps_per_epoch=self.training.steps - progress.step,
                initial_epoch=progress.epoch,
                epochs=epochs,
                validation_data=self.validation.dataset(),
                validation_steps=self.validation.steps,
                callbacks=hooks,
                shuffle=False,  # the pipeline shuffles
                verbose=0,
            )

    def _training_data(self, epoch, step):
        dataset = self.training.dataset(epoch, step)
        if not self.config.augment:
            return dataset
        first_step = epoch * self.training.steps + step
        return augmented(dataset, self.config.seed, self.world.rank, first_step)

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
            self.recorder,
            callbacks.AverageStatistics(self.world),
            callbacks.KeepBest(self.progress, self._write_best),
            callbacks.SaveEachEpoch(self.save),
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

    def _reading_error(self):
        error = self.training.error or self.validation.error
        if error is not None and not self.world.is_first:
            # Rank 0 prints for all, but only this rank knows of the file it could not read.
            print(f"error on rank {self.world.rank}: {error}", file=sys.stderr)
        return error

    def _replicated_variables(self):
        """The variables that are the same on all ranks: all but the batch-norm statistics."""
        return self.model.trainable_variables + self.model.optimizer.variables

    def save(self):
        """Writes a checkpoint of the run as it stands, in or between epochs."""
        self.recorder.settle()
        with self.energy.window("checkpoint"):
            self._write_checkpoint()

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
        self.world.on_first(
            lambda: checkpoint.write_checkpoint(self.folder.checkpoints, values, arrays)
        )

    def _restore(self):
        """Takes up the newest checkpoint; rank 0 reads it and shares what is not broadcast later.

        Batch-norm statistics differ between ranks: each gets its own back.

        Raises:
          InputError: the run had other steps: another number of processes or windows.
        """
        from keras_nowcast.training import callbacks

        def read():
            if not checkpoint.any_in(self.folder.checkpoints):
                return None
            values, arrays, damaged = checkpoint.read_checkpoint(self.folder.checkpoints)
            for name in damaged:
                self.say(f"checkpoint {name} is damaged; going on from the one before it")
            layout = values.pop("layout")
            if layout != self._layout():
                raise InputError(
                    "`--resume` needs as many processes and windows as the run was started with, "
                    f"{layout['world_size']} and {layout['windows']}. Received: {self.world.size} "
                    f"and {self.training.windows}."
                )
            checkpoint.assign_variables("replicated", self._replicated_variables(), arrays)
            return values, {k: v for k, v in arrays.items() if k.startswith("statistics/")}

        restored = self.world.on_first(read)
        if restored is None:
            self.say("the run ended before its first checkpoint: starting it again")
            return
        values, statistics = restored
        mine = {name: by_rank[self.world.rank] for name, by_rank in statistics.items()}
        checkpoint.assign_variables("statistics", self.model.non_trainable_variables, mine)
        self.progress = callbacks.Progress.from_dict(values)
        self.say(f"going on in epoch {self.progress.epoch + 1} after step {self.progress.step}")

    def _take_weights(self, run):
        """Makes the network what another run's was at its end, batch-norm statistics and all."""
        from keras_nowcast.model.unet import read_unet

        def read():
            theirs, ours = read_unet(run.model_file), self.model
            if [each.shape for each in theirs.weights] != [each.shape for each in ours.weights]:
                raise InputError(
                    "`--start-from` needs a network of the same depth and filters. Received: "
                    f"{run.path}, whose network has {theirs.count_params():,} parameters, and this "
                    f"one {ours.count_params():,}."
                )
            ours.set_weights(theirs.get_weights())

        self.world.on_all(read)
        self.say(f"starting as the network of {run.path}")

    def _layout(self):
        """What the numbers of steps in a checkpoint mean."""
        return {"world_size": self.world.size, "windows": self.training.windows}

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
        """Writes record.json; DESIGN.md names its keys."""
        memory = self._memory_record()
        training = self._training_record()
        energy = self.energy.record(
            self._timed_samples(), training["seconds"], len(training["seconds_per_epoch"])
        )
        self.progress.set_joules(energy["joules_per_epoch"])
        record = {
            "status": status,
            "status_reason": reason,
            "config": dataclasses.asdict(self.config),
            "environment": self.environment,
            "model": self.cost,
            "training": training,
            "energy": energy,
            "memory": memory,
        }
        if self.progress.rows:
            self.world.on_first(lambda: self.folder.write_epochs(self.progress.rows))
        self.world.on_first(lambda: self.folder.write_record(record))

    def _timed_samples(self):
        progress = self.progress
        return sum(row["samples"] for row in progress.rows) + progress.sums.samples

    def _training_record(self):
        rows, sums = self.progress.rows, self.progress.sums
        seconds = sum(row["seconds"] for row in rows) + sums.seconds
        samples = self._timed_samples()
        rate = samples / seconds if samples and seconds else None
        last = rows[-1] if rows else {"loss": None, "val_loss": None}
        from keras_nowcast.training import callbacks

        scale = callbacks.loss_scale(self.model.optimizer)
        flops = self.cost["training_flops_per_sample"]
        record = {
            "epochs": len(rows),
            "windows_per_epoch": self.training.windows,
            "steps": len(rows) * self.training.steps + self.progress.step,
            "skipped_steps": sum(row["skipped_steps"] for row in rows) + sums.skipped_steps,
            "seconds": seconds,
            "seconds_per_epoch": [row["seconds"] for row in rows],
            "samples_per_second": rate,
            "final_loss_scale": scale,
            "loss": last["loss"],
            "val_loss": last["val_loss"],
            "achieved_flops_per_second": rate and rate * flops,
            "setup_seconds": self.progress.setup_seconds,
        }
        if scale is None:
            record["final_loss_scale_reason"] = "only mixed_float16 scales the loss"
        for name in ("loss", "val_loss"):
            if record[name] is None:
                record[f"{name}_reason"] = "no epoch was finished with valid pixels"
        for name in ("samples_per_second", "achieved_flops_per_second"):
            if record[name] is None:
                record[f"{name}_reason"] = "no step after the first, compiling one was timed"
        return record

    def _memory_record(self):
        """Returns the largest memory of any rank."""
        import tensorflow as tf

        rss = environment.peak_rss_bytes()
        gpus = tf.config.get_visible_devices("GPU")
        gpu = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None
        ranks = self.world.gather((rss, gpu))
        reasons = ("the system does not tell", "TensorFlow uses no GPU")
        record = {}
        for name, values, reason in zip(
            ("peak_rss_bytes", "peak_gpu_bytes"), zip(*ranks, strict=True), reasons, strict=True
        ):
            record[name] = max((each for each in values if each is not None), default=None)
            if record[name] is None:
                record[f"{name}_reason"] = reason
        return record


def _network_sizes(config):
    """Returns what build_unet and count_unet both take first."""
    return (
        config.grid,
        sevir.FRAMES_IN,
        sevir.FRAMES_OUT,
        config.depth,
        config.filters,
        config.center_filters,
    )


def _build_compiled(config, world, flags, steps):
    """Builds the network and everything that trains it.

    Returns:
      (model, metrics): the compiled model, its optimizer built; its MeanSquaredErrorMetric and
      ValidationScores.
    """
    from keras_nowcast.model.loss import MaskedMeanSquaredError, MeanSquaredErrorMetric
    from keras_nowcast.model.unet import build_unet, freeze_normalization
    from keras_nowcast.training.schedule import ScaledWarmup
    from keras_nowcast.training.validation import ValidationScores

    scaling = {"mean": sevir.VIL_MEAN, "scale": sevir.VIL_SCALE, "missing": sevir.MISSING}
    model = build_unet(*_network_sizes(config), **scaling)
    if config.start_from is not None:
        freeze_normalization(model)
    warmup_steps = round(config.warmup_epochs * steps)
    decay_steps = max(0, config.epochs * steps - warmup_steps) if config.schedule == "cosine" else 0
    schedule = ScaledWarmup(config.learning_rate, world.size, warmup_steps, decay_steps)
    optimizer = distributed.build_distributed(
        precision.build_optimizer(schedule, config.precision), world, config.fp16_allreduce
    )
    metrics = [
        MeanSquaredErrorMetric(**scaling),
        ValidationScores(VALIDATION_THRESHOLDS, **scaling),
    ]
    model.compile(
        optimizer,
        loss=MaskedMeanSquaredError(**scaling, average=flags.average),
        metrics=metrics,
        jit_compile=False,  # XLA cannot compile Horovod's operations
    )
    optimizer.build(model.trainable_variables)
    return model, metrics
