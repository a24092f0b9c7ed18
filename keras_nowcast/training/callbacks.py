"""Callbacks of `model.fit`: they measure, record, stop, save and show."""

import math
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_nowcast.errors import Interrupted, TrainingFailed
from keras_nowcast.training.progress import Sums


class EpochRecorder(keras.callbacks.Callback):
    """Measures each epoch and adds its row to `progress.rows`; precedes the other callbacks.

    Training time counts from the end of this process's first step, which includes compilation. It
    excludes validation and checkpoints. The losses are exact over all ranks: errors and pixels are
    summed before the division.

    Args:
      world: the World.
      progress: the Progress of the run, which is updated.
      compiled: the Compiled that is trained.
      pipeline: the WindowPipeline that is trained on.
      started: time.monotonic() at the start of the process.
      energy: the EnergyRecorder of this run.
      statistics: the StatisticsEstimator, which is called before each validation.
    """

    def __init__(self, world, progress, compiled, pipeline, started, energy, statistics):
        super().__init__()
        self._world = world
        self._progress = progress
        self._metric, self._scores = compiled.error, compiled.scores
        self._reports = compiled.reports
        self._steps_of_model = compiled.steps
        self._pipeline = pipeline
        self._started = started
        self._energy = energy
        self._statistics = statistics
        self._compiled = False
        self._closed = True  # no epoch is in progress
        self._since = None  # monotonic time since which the clock runs; None while it is stopped

    def on_epoch_begin(self, epoch, logs=None):
        self._progress.epoch = epoch
        self._val_seconds = self._statistics_seconds = None
        self.open()

    def open(self):
        """Begins the training part of the current epoch, or continues it after `settle`."""
        self._applied = self._optimizer_steps()
        self._seen_skipped = self._progress.sums.skipped_steps
        self._first_step = self._progress.step
        self._steps = self._pipeline.steps_left(self._progress.seen)
        self._left_out = 0  # unreadable windows of this rank, in steps that were timed
        self._waited_s = 0.0  # of this rank, in steps that were timed
        self._closed = False
        if self._compiled:
            self._start_clock()

    def on_train_batch_end(self, batch, logs=None):
        # The device may still compute this step, and the one before.
        progress, step = self._progress, self._progress.step
        progress.step += 1
        progress.steps += 1
        self._reports.look(at_all=progress.step == self._steps)
        left_out = self._pipeline.left_out.pop((progress.epoch, step), 0)
        if self._compiled:
            progress.sums.samples += self._pipeline.step_samples(step, progress.seen)
            self._left_out += left_out
        else:
            self._compiled = True
            self._energy.synchronize()
            progress.setup_seconds += time.monotonic() - self._started
            self._start_clock()

    def on_test_begin(self, logs=None):
        self.settle()
        if self._statistics.layers:
            since = time.monotonic()
            with self._energy.window("statistics"):
                self._statistics.estimate()
            self._statistics_seconds = time.monotonic() - since
        self._metric.reset_state()
        self._scores.reset_state()
        self._energy.begin("validation")
        self._val_since = time.monotonic()

    def on_test_batch_end(self, batch, logs=None):
        self._reports.look()

    def on_test_end(self, logs=None):
        self._reports.look(at_all=True)
        self._val_seconds = time.monotonic() - self._val_since
        self._energy.end("validation")

    def on_epoch_end(self, epoch, logs=None):
        self.settle()
        sums = self._progress.sums
        loss = sums.error / sums.pixels if sums.pixels else math.nan
        row = {
            "epoch": epoch,
            "loss": loss,
            "val_loss": self._mean_error(),
            "learning_rate": _scalar(self.model.optimizer.learning_rate),
            "loss_scale": loss_scale(self.model.optimizer),
            "skipped_steps": sums.skipped_steps,
            "seconds": sums.seconds,
            "val_seconds": self._val_seconds,
            "samples_per_second": sums.samples / sums.seconds if sums.samples else None,
            "joules": None,
            "joules_estimated": int(self._energy.source.kind == "estimate"),
            "samples": sums.samples,
            **self._validation_scores(),
            "joules_coverage": None,
            "statistics_seconds": self._statistics_seconds,
            "input_wait_seconds": sums.waited_s,
        }
        self._metric.reset_state()
        self._progress.rows.append(row)
        seconds = [each["seconds"] for each in self._progress.rows]
        self._progress.set_energy(self._energy.of_epochs(seconds))
        logs.clear()
        logs.update(row)
        self._progress.epoch, self._progress.step, self._progress.sums = epoch + 1, 0, Sums()
        self._progress.seen = []
        if not sums.pixels and not sums.skipped_steps:
            raise TrainingFailed(
                f"epoch {epoch + 1} has no loss: all target pixels are missing (code 255), or of "
                "events that were not readable"
            )
        if not math.isfinite(loss):
            raise TrainingFailed(f"the loss of epoch {epoch + 1} is {loss}")

    def _start_clock(self):
        """Counts time and energy as training from now on, if a step of the epoch is left."""
        progress = self._progress
        if progress.step < self._steps:
            self._energy.begin("epoch")
            self._waited_before = self._steps_of_model.waited_s
            self._since = time.monotonic()

    def _stop_clock(self):
        """Stops counting time and energy as training."""
        if self._since is not None:
            self._energy.synchronize()
            self._progress.sums.seconds += time.monotonic() - self._since
            self._since = None
            self._waited_s += self._steps_of_model.waited_s - self._waited_before
            self._energy.end("epoch")

    def _collect(self):
        """Adds errors, pixels and skipped steps of all ranks to the sums; all ranks call it."""
        sums = self._progress.sums
        error, pixels, left_out, waited_s = self._metric_sums(self._left_out, self._waited_s)
        sums.error += error
        sums.pixels += pixels
        sums.samples -= int(left_out)
        sums.waited_s += waited_s / self._world.size
        self._metric.reset_state()
        applied = self._optimizer_steps() - self._applied
        sums.skipped_steps = self._seen_skipped + self._progress.step - self._first_step - applied

    def settle(self):
        """Ends the training part of the current epoch and updates the sums to this step.

        All ranks call it. Does nothing if the part has already ended.
        """
        if not self._closed:
            self._stop_clock()
            self._collect()
            self._closed = True

    def _validation_scores(self):
        """Returns val_csi_<threshold> and val_mae over all ranks, None if a score is undefined."""
        for variable in self._scores.variables:
            total = self._world.total(keras.ops.convert_to_tensor(variable))
            variable.assign(total)
        scores = {name: _scalar(value) for name, value in self._scores.result().items()}
        return {
            f"val_{name}": value if math.isfinite(value) else None for name, value in scores.items()
        }

    def _mean_error(self):
        error, pixels = self._metric_sums()
        return error / pixels if pixels else None

    def _metric_sums(self, *more):
        sums = np.array([_scalar(self._metric.total), _scalar(self._metric.count), *more])
        return [float(each) for each in self._world.total(sums)]

    def _optimizer_steps(self):
        return int(_scalar(self.model.optimizer.iterations))


def loss_scale(optimizer):
    """Returns the dynamic loss scale of a Keras optimizer, None if it has none."""
    scale = getattr(optimizer, "dynamic_scale", None)
    return None if scale is None else _scalar(scale)


def _scalar(variable):
    return float(keras.ops.convert_to_tensor(variable))


class StopTogether(keras.callbacks.Callback):
    """Ends training on all ranks after the same step, for any of three reasons.

    The reasons are a signal, a loss that is not finite, and more unreadable events than
    `--skip-bad-events` allows.

    Args:
      reports: the Reports of the steps.
      signals: the Signals that are caught.
      save: function that writes a checkpoint of the current step; all ranks call it.
      progress: the Progress of the run.
      bad_events: the BadEvents of the run.

    Attributes:
      failed_at: (epoch, step) at which this rank's loss was not finite, or None.
    """

    def __init__(self, reports, signals, save, progress, bad_events):
        super().__init__()
        self._reports = reports
        self._signals = signals
        self._save = save
        self._progress = progress
        self._bad_events = bad_events
        self.failed_at = None

    def on_train_batch_end(self, batch, logs=None):
        self._check()

    def on_test_batch_end(self, batch, logs=None):
        self._check()

    def on_epoch_end(self, epoch, logs=None):
        self._check()

    def _check(self):
        reports = self._reports
        if self._signals.received:
            reports.ask("stop")
        if self._bad_events.found:
            reports.ask("bad event")
        if "stop" in reports.agreed():
            reports.look(at_all=True)  # the steps that are saved must be sound
        if "fail" in reports.agreed():
            self._note_failure()
            raise TrainingFailed("a loss is not finite")
        if "bad event" in reports.agreed():
            self._bad_events.agree()
            reports.handled("bad event")
        if "stop" in reports.agreed():
            self._save()
            raise Interrupted(
                f"interrupted in epoch {self._progress.epoch + 1} after step "
                f"{self._progress.step}; the checkpoint is saved, run again with --resume"
            )

    def _note_failure(self):
        since = self._reports.steps_since_failure
        if since is not None:  # it was on this rank
            self.failed_at = (self._progress.epoch, self._progress.step - since)


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves a checkpoint after each epoch, and within an epoch after a number of minutes.

    Precedes StopTogether. The clock of rank 0 decides; all ranks save after the same step.

    Args:
      save: function that writes a checkpoint of the current step; all ranks call it.
      reports: the Reports of the steps.
      minutes: minutes between two checkpoints; 0 for those at the end of an epoch only.
      is_first: True on rank 0.
    """

    def __init__(self, save, reports, minutes, is_first):
        super().__init__()
        self._save = save
        self._reports = reports
        self._after_s = 60 * minutes if minutes and is_first else math.inf
        self._saved_s = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - self._saved_s >= self._after_s:
            self._reports.ask("save")
        if "save" in self._reports.agreed():
            self._reports.look(at_all=True)
            if "fail" not in self._reports.agreed():  # otherwise StopTogether ends the run
                self._save_now(go_on=True)

    def on_epoch_end(self, epoch, logs=None):
        self._save_now(go_on=False)

    def _save_now(self, go_on):
        self._save(go_on)
        self._reports.handled("save")
        self._saved_s = time.monotonic()


class ReportProgress(keras.callbacks.Callback):
    """Reports each step, and the work between steps, to the Watchdog. Precedes all others."""

    def __init__(self, watchdog):
        super().__init__()
        self._alive = watchdog.alive

    def on_train_batch_end(self, batch, logs=None):
        self._alive("training", step=True)

    def on_test_batch_end(self, batch, logs=None):
        self._alive("validation")

    def on_test_end(self, logs=None):
        self._alive("the end of an epoch")

    def on_epoch_begin(self, epoch, logs=None):
        self._alive("training")


class KeepBest(keras.callbacks.Callback):
    """Calls `write()` after each epoch whose validation loss is the lowest so far."""

    def __init__(self, progress, write):
        super().__init__()
        self._progress = progress
        self._write = write

    def on_epoch_end(self, epoch, logs=None):
        losses = [row["val_loss"] for row in self._progress.rows]
        known = [loss for loss in losses if loss is not None]
        if known and losses[-1] == min(known):
            self._write()


class EpochTable(keras.callbacks.Callback):
    """Writes epochs.csv, with the rows of all finished epochs, after each epoch."""

    def __init__(self, world, folder, progress):
        super().__init__()
        self._world = world
        self._folder = folder
        self._progress = progress

    def on_epoch_end(self, epoch, logs=None):
        self._world.on_first(lambda: self._folder.write_epochs(self._progress.rows))


class TensorBoardScalars(keras.callbacks.Callback):
    """Writes the numbers of each epoch's row for TensorBoard. For rank 0 only.

    Keras' own callback is not used, because it fails on values that were not measured.
    """

    def __init__(self, folder):
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch, logs=None):
        with self._writer.as_default(step=epoch):
            for name, value in logs.items():
                if value is not None:
                    tf.summary.scalar(name, value)
        self._writer.flush()


class ProgressLines(keras.callbacks.Callback):
    """Shows a progress bar on a terminal and prints one line per epoch. For rank 0 only.

    Args:
      epochs: number of epochs of the run.
      pipeline: the WindowPipeline that is trained on.
      progress: the Progress of the run.
      energy: the EnergyRecorder of this run.
      reports: the Reports of the steps.
    """

    def __init__(self, epochs, pipeline, progress, energy, reports):
        super().__init__()
        self._epochs = epochs
        self._reports = reports
        self._pipeline = pipeline
        self._progress = progress
        self._energy = energy
        self._estimate_mark = _estimate_mark(energy.source.kind == "estimate")
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        from tqdm import tqdm

        self._bar = tqdm(
            total=self._pipeline.steps_left(self._progress.seen),
            initial=self._progress.step,
            desc=f"epoch {epoch + 1}/{self._epochs}",
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        self._shown_at = 0.0
        self._reports.losses.clear()

    def on_train_batch_end(self, batch, logs=None):
        self._bar.update()
        if self._bar.disable or time.monotonic() - self._shown_at < 0.5:
            return
        self._shown_at = time.monotonic()
        losses = self._reports.losses
        shown = {"loss": f"{sum(losses) / len(losses):.4f}"} if losses else {}
        steps_per_second = self._bar.format_dict["rate"]
        if steps_per_second:
            rate = steps_per_second * self._pipeline.windows / self._pipeline.steps
            shown["samples/s"] = f"{rate:.1f}"
        watts = self._energy.watts
        if watts is not None:
            shown["W" + self._estimate_mark] = f"{watts:.0f}"
        self._bar.set_postfix(shown)

    def on_epoch_end(self, epoch, logs=None):
        self._bar.close()
        print(epoch_line(logs, self._epochs), flush=True)

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Removes the bar, however the epoch ended."""
        if self._bar is not None:
            self._bar.close()


def epoch_line(row, epochs):
    """Returns the row of an epoch as a line for the console."""
    parts = [f"epoch {row['epoch'] + 1}/{epochs}", f"loss {row['loss']:.5f}"]
    if row["val_loss"] is not None:
        parts.append(f"val_loss {row['val_loss']:.5f}")
        csi = [(name[8:], row[name]) for name in row if name.startswith("val_csi_")]
        parts.append(" ".join(f"CSI{at} {value:.3f}" for at, value in csi if value is not None))
        parts.append(f"MAE {row['val_mae']:.2f}")
    parts.append(f"lr {row['learning_rate']:.2e}")
    if row["samples_per_second"] is not None:
        parts.append(f"{row['samples_per_second']:.1f} samples/s")
    parts.append(f"{row['seconds']:.1f} s")
    if row["joules"] is not None:
        mark = _estimate_mark(row["joules_estimated"])
        parts.append(f"{row['joules']:.0f} J, {row['joules'] / row['seconds']:.0f} W{mark}")
    if row["loss_scale"] is not None:
        parts.append(f"loss scale {row['loss_scale']:.0f}, {row['skipped_steps']} steps skipped")
    return "  ".join(parts)


def _estimate_mark(estimated):
    """Returns the mark of joules and watts that no sensor measured, "" for measured ones."""
    return " (estimate)" if estimated else ""
