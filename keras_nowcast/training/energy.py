"""Energy of a run: one monitor per rank, summed over ranks and starts.

Each device is read by one rank only, because ranks of a host can share a device.
"""

import math
import time

from keras_nowcast.energy import Monitor, choose_source, first_users, join_traces, merge_energy
from keras_nowcast.energy.power_limit import power_limit
from keras_nowcast.energy.trace import PowerTrace, trace_path
from keras_nowcast.errors import InputError

IDLE_S = 2.0
# A GPU lowers its clocks, and with them its power, only seconds after TensorFlow has set it up.
# power.csv has the clocks of these seconds.
GPU_IDLE_S = 10.0


class EnergyRecorder:
    """Measures the energy of a run. All ranks call every method except `watts` together.

    Args:
      config: a RunConfig.
      world: the World.
      folder: the RunFolder; power.csv is written there.
      progress: the Progress of the run, which holds the measurements of earlier starts.

    Raises:
      InputError: the requested power source cannot be used on some rank.
    """

    def __init__(self, config, world, folder, progress):
        import tensorflow as tf

        self._world = world
        self._folder = folder
        self._progress = progress
        uses_gpu = bool(tf.config.get_visible_devices("GPU"))
        source = world.on_all(
            lambda: choose_source(
                config.power_source,
                tensorflow_uses_gpu=uses_gpu,
                local_rank=world.local_rank,
                watts_per_core=config.watts_per_core,
            )
        )
        # Ranks of a host can share a device: the first rank to name it reads it.
        source = source.only(first_users(world.gather(source.devices))[world.rank])
        if progress.zero_unix_s is None:
            progress.zero_unix_s = world.broadcast(time.time())
        self.source = source
        self._monitor = Monitor(
            source,
            interval_s=config.power_interval_s,
            idle_s=GPU_IDLE_S if uses_gpu and source.kind == "nvml" else IDLE_S,
            synchronize=self.synchronize,
            trace_path=trace_path(folder.path, source.host, world.broadcast(source.host)),
            zero_unix_s=progress.zero_unix_s,
        )
        self._last_written = None
        self._limits = []

    def follow(self, model):
        """Sets the Keras model whose training is measured."""
        self._last_written = min(model.trainable_weights, key=lambda each: math.prod(each.shape))

    def limit_power(self, watts, stack, say):
        """Limits the power of this job's GPUs until an ExitStack closes, and prints each limit.

        Args:
          watts: the limit of each GPU, or None for no limit.
          stack: the ExitStack that restores the original limits.
          say: called with each line for the console.

        Raises:
          InputError: a limit cannot be set on some rank.
        """
        if watts is None:
            return
        if not self._world.gather(self.source.kind).count("nvml"):
            raise InputError(
                "`--power-limit-w` must be used with GPUs that are read through NVML. Received: "
                f"{watts:g} with power source {self.source.kind} ({self.source.reason})."
            )
        gpus = [meter.key for meter in self.source.meters]
        limits = self._world.on_all(lambda: stack.enter_context(power_limit(watts, gpus)))
        by_rank = self._world.gather((self.source.host, limits))
        self._limits = [{**each, "host": host} for host, mine in by_rank for each in mine]
        # Printed now: if the process that restores the limits is killed too, no other record of
        # the original limits is left.
        for each in self._limits:
            say(
                f"power limit of {each['uuid']} on {each['host']}: {each['enforced_w']:g} W, "
                f"restored to {each['former_w']:g} W at the end"
            )

    def synchronize(self):
        """Waits until the device has completed every step, by reading a weight that each changes.

        So queued work counts in the window that it belongs to.
        """
        import keras

        if self._last_written is not None:
            keras.ops.convert_to_tensor(self._last_written).numpy()

    def __enter__(self):
        if self._world.is_first:  # without a power source, the trace has no rows
            PowerTrace(self._folder.power_file, self._progress.zero_unix_s).close()
        self._monitor.start()
        return self

    def __exit__(self, *exception):
        self._monitor.stop()

    def begin(self, name):
        """Begins a window called `name` in the current epoch."""
        self._monitor.begin(name, self._progress.epoch)

    def end(self, name):
        """Ends that window."""
        self._monitor.end(name)

    def window(self, name):
        """Measures the body of a `with` statement as a window called `name`."""
        return self._monitor.window(name, self._progress.epoch)

    def of_epochs(self, epoch_seconds):
        """Returns the energy of all devices for the finished epochs, over all starts.

        The values are preliminary: a slow sensor can report after the end of an epoch, and a
        counter can fail in a later one. At the end of the run, those of the record replace them in
        epochs.csv.

        Args:
          epoch_seconds: training time of each epoch.

        Returns:
          A dict with `joules_per_epoch` and `coverage_per_epoch`.
        """
        return merge_energy(self._all_results(), epoch_seconds=epoch_seconds)

    @property
    def watts(self):
        """The latest power of this rank's devices, or None if it is not measured."""
        return self._monitor.watts

    def results(self):
        """Returns the measurements of each rank since this start, JSON-able, for a checkpoint."""
        return self._world.gather(self._monitor.results())

    def record(self, samples, seconds, epoch_seconds):
        """Returns the `energy` part of record.json, over all starts of the run.

        Args:
          samples: windows trained in the timed part of the run.
          seconds: its training time.
          epoch_seconds: training time of each finished epoch.
        """
        self._world.on_first(lambda: join_traces(self._folder.path))
        merged = merge_energy(
            self._all_results(), samples=samples, seconds=seconds, epoch_seconds=epoch_seconds
        )
        return {**merged, "power_limits": self._limits}

    def _all_results(self):
        return _joined([*self._progress.energy, *self.results()])


def _joined(results):
    """Returns the results with one entry per device, which has the windows of all starts."""
    devices = {}
    for result in results:
        for device in result["devices"]:
            key = (result["host"], device["uuid"])
            if key in devices:
                devices[key]["windows"] += device["windows"]
                devices[key]["problems"] = {**device["problems"], **devices[key]["problems"]}
            else:
                devices[key] = {**device, "windows": list(device["windows"])}
    return [
        {
            **result,
            "devices": [
                devices.pop(key)
                for device in result["devices"]
                if (key := (result["host"], device["uuid"])) in devices
            ],
        }
        for result in results
    ]
