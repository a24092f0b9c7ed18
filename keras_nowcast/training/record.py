"""Writes record.json, once per start of a run; schema.py describes its keys."""

import contextlib
import dataclasses
import threading

from keras_nowcast import machine, records, schema
from keras_nowcast.checked import OddFile
from keras_nowcast.config import date_text
from keras_nowcast.data import sevir
from keras_nowcast.energy.lost import lost_energy
from keras_nowcast.energy.merge import WHOLE_COVERAGE
from keras_nowcast.energy.sampler import longest_gap_s
from keras_nowcast.training.progress import Sums
from keras_nowcast.training.runlock import TOUCH_EVERY_S


class RecordWriter:
    """Writes the record of one start of a run; only the first record of a start is kept.

    Args:
      config: the RunConfig.
      world: the World.
      folder: the RunFolder.
      lock: the RunLock, which knows the lost work.
      progress: the Progress.
      energy: the EnergyRecorder.
      environment: the `environment` part of the record.
      model: its `model` part.
      data: its `data` part.

    Attributes:
      memory: the `memory` part, None until it is read; it is read at the latest for the record.
      roofs: the `roofs` part, None if the layers were not timed.
    """

    def __init__(self, config, world, folder, lock, progress, energy, *, environment, model, data):
        self._config = config
        self._world = world
        self._folder = folder
        self._lock = lock
        self._progress = progress
        self._energy = energy
        self._environment = environment
        self._model = model
        self._data = data
        self._recording = threading.Lock()
        self._is_recorded = False
        self.memory = self.roofs = None

    def write(self, status, reason, scale):
        """Writes record.json, and epochs.csv with the joules of the record; all ranks call it.

        Args:
          status: one of schema.STATUSES.
          reason: why the run was interrupted or failed, None if it completed.
          scale: the loss scale, None if the loss is not scaled.

        Raises:
          TrainingFailed: a file cannot be written.
        """
        memory, sums = self.memory or memory_record(self._world), self._progress.sums
        training = self._training(scale, sums)
        training["lost_seconds"] = self._world.broadcast(training["lost_seconds"])
        energy = self._energy.record(
            _timed_samples(self._progress.rows, sums),
            training["seconds"],
            training["seconds_per_epoch"],
        )
        self._progress.set_energy(energy)

        def write():
            if self._progress.rows:
                self._folder.write_epochs(self._progress.rows)
            self._write_once(status, reason, training, energy | self._lost_energy(), memory)

        self._world.on_first(write)

    def write_failure(self, reason):
        """Writes the record of a job that the watchdog ends, with what rank 0 knows.

        The watchdog's thread calls it while this rank may be blocked in a collective or a step.
        Therefore it contacts no other rank and no device.
        """
        self._lock.touch(last=True)  # this rank has worked up to now; that work is lost
        rows = self._progress.rows
        record = records.empty_record("not gathered from the ranks: one of them ended the job")
        records.fill(
            record["energy"],
            source=self._energy.source.kind,
            joules_per_epoch=[row["joules"] for row in rows],
            coverage_per_epoch=[row.get("joules_coverage") for row in rows],
        )
        record["energy"]["source_reason"] = self._energy.source.reason
        # Finished epochs only: the current epoch's time is added only when the epoch is settled.
        training = self._training(rows[-1]["loss_scale"] if rows else None, Sums())
        with contextlib.suppress(OSError):  # a full disk, for example; the reason is printed
            self._write_once("failed", reason, training, record["energy"], record["memory"])

    def _write_once(self, status, reason, training, energy, memory):
        """Writes record.json if this start has not written it.

        So a rank that is lost after the record was written does not turn the run into a failure.
        """
        record = {
            "status": status,
            "status_reason": reason,
            "config": dataclasses.asdict(self._config),
            "environment": self._environment,
            "model": self._model,
            "training": training,
            "energy": energy,
            "memory": memory,
            "roofs": self.roofs,
            "data": self._data,
        }
        if self.roofs is None:
            timed = self._config.layer_times
            record["roofs_reason"] = f"--layer-times was {'interrupted' if timed else 'not given'}"
        with self._recording:
            if not self._is_recorded:
                self._folder.write_record(record)
                self._is_recorded = True

    def _training(self, scale, sums):
        """Returns the `training` part of the record.

        Args:
          scale: the loss scale, None if the loss is not scaled.
          sums: the Sums of the epoch that is not finished.
        """
        progress, rows = self._progress, self._progress.rows
        seconds = sum(row["seconds"] for row in rows) + sums.seconds
        waits = [*(row.get("input_wait_seconds") for row in rows), sums.waited_s]
        samples = _timed_samples(rows, sums)
        rate = samples / seconds if samples and seconds else None
        last = rows[-1] if rows else {"loss": None, "val_loss": None}
        record = {
            "epochs": len(rows),
            "windows_per_epoch": self._data["train_windows"],
            "steps": progress.steps,
            "skipped_steps": sum(row["skipped_steps"] for row in rows) + sums.skipped_steps,
            "seconds": seconds,
            "seconds_per_epoch": [row["seconds"] for row in rows],
            "input_wait_seconds": None if None in waits else sum(waits),
            "samples_per_second": rate,
            "final_loss_scale": scale,
            "loss": last["loss"],
            "val_loss": last["val_loss"],
            "achieved_flops_per_second": rate and rate * self._model["training_flops_per_sample"],
            "setup_seconds": progress.setup_seconds,
            "starts": progress.starts,
            "skipped_events": len(progress.bad_events),
            "skipped_event_reasons": list(progress.bad_events.values()),
            "lost_seconds": sum(end - begin for begin, end in self._lock.lost),
        }
        for key in schema.TRAINING:
            if record[key.name] is None:
                record[f"{key.name}_reason"] = key.null
        if scale is None:
            scaled = self._config.precision == "mixed_float16"
            record["final_loss_scale_reason"] = (
                "no epoch was finished" if scaled else "only mixed_float16 scales the loss"
            )
        return record

    def _lost_energy(self):
        """Returns the energy of the lost work, which no other key includes."""
        if not self._lock.lost:
            reason = "no work was lost"
            if self._lock.follows:
                reason = (
                    f"no lost work was detected; heartbeats are {TOUCH_EVERY_S:g} s apart, and a "
                    "shorter loss can leave no trace"
                )
            return {"lost_joules": 0.0, "lost_coverage": None, "lost_coverage_reason": reason}
        try:
            joules, coverage = lost_energy(
                self._folder.power_readings(),
                self._lock.lost,
                self._progress.zero_unix_s,
                longest_gap_s(self._config.power_interval_s),
            )
        except OddFile as error:
            return records.missing(["lost_joules", "lost_coverage"], str(error))
        record = {"lost_joules": joules, "lost_coverage": coverage}
        if joules is None:
            record["lost_joules_reason"] = "no power was read between the checkpoint and the kill"
        elif coverage < WHOLE_COVERAGE:
            record["lost_joules_reason"] = (
                f"covers {coverage:.1%} of the lost time only: the trace has no readings of the "
                "rest"
            )
        return record


def data_record(config, split):
    """Returns the `data` part of the record, of a RunConfig and a Split."""
    sets = {"train": split.train, "validation": split.validation, "test": split.test}
    record = {}
    for name, events in sets.items():
        record[f"{name}_events"] = len(events)
        record[f"{name}_windows"] = sevir.count_windows(
            events, config.window_stride, config.max_windows
        )
    record |= {
        "left_out_events": split.left_out,
        "train_before": date_text(split.train_before),
        "test_from": date_text(split.test_from),
        "rule": split.rule,
    }
    for key in schema.DATA:
        if record[key.name] is None:
            record[f"{key.name}_reason"] = key.null
    return record


def memory_record(world):
    """Returns the `memory` part of the record: the peak over all ranks; all ranks call it."""
    import tensorflow as tf

    rss = machine.peak_rss_bytes()
    gpus = tf.config.get_visible_devices("GPU")
    gpu = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None
    ranks = world.gather((rss, gpu))
    record = {}
    for key, values in zip(schema.MEMORY, zip(*ranks, strict=True), strict=True):
        record[key.name] = max((each for each in values if each is not None), default=None)
        if record[key.name] is None:
            record[f"{key.name}_reason"] = key.null
    return record


def _timed_samples(rows, sums):
    return sum(row["samples"] for row in rows) + sums.samples
