"""Energy of a run: a monitor a rank, each device read once, added up over ranks and starts."""

import math
import time

from keras_nowcast.energy import Monitor, choose_source, first_users, join_traces, merge_energy
from keras_nowcast.energy.power_limit import power_limit
from keras_nowcast.energy.trace import PowerTrace, trace_path
from keras_nowcast.errors import InputError


class EnergyRecorder:
    """What a run measures of its energy. All ranks call every method but `watts` together.

    Args:
      config: a RunConfig.
      world: the World.
      folder: the RunFolder; power.csv is written there.
      progress: the Progress of the run, which keeps what earlier starts measured.

    Raises:
      InputError: the power source asked for cannot be used on some rank.
    """

    def __init__(self, config, world, folder, progress):
        import tensorflow as tf

        self._world = world
        self._folder = folder
        self._progress = progress
        source = world.on_all(
            lambda: choose_source(
                config.power_source,
                tensorflow_uses_gpu=bool(tf.config.get_visible_devices("GPU")),
                local_rank=world.local_rank,
                watts_per_core=config.watts_per_core,
            )
        )
        # Ranks of a host may share a device: the first to name it reads it.
        source = source.only(first_users(world.gather(source.devices))[world.rank])
        if progress.zero_unix_s is None:
            progress.zero_unix_s = world.broadcast(time.time())
        self.source = source
        self._monitor = Monitor(
            source,
            interval_s=config.power_interval_s,
            synchronize=self.synchronize,
            trace_path=trace_path(folder.path, source.host, world.broadcast(source.host)),
            zero_unix_s=progress.zero_unix_s,
        )
        self._last_written = None
        self._limits = []

    def follow(self, model):
        """Tells which network's training is measured."""
        self._last_written = min(model.trainable_weights, key=lambda each: math.prod(each.shape))

    def limit_power(self, watts, stack, say):
        """Limits the power of this job's GPUs until an ExitStack closes, and says so; None: not.

        Raises:
          InputError: a limit cannot be set, on whichever rank.
        """
        if watts is None:
            return
        if not self._world.gather(self.source.kind).count("nvml"):
            raise InputError(
                "`--power-limit-w` needs GPUs read through NVML. Received: "
                f"{watts:g} with power source {self.source.kind} ({self.source.reason})."
            )
        gpus = [meter.key for meter in self.source.meters]
        limits = self._world.on_all(lambda: stack.enter_context(power_limit(watts, gpus)))
        by_rank = self._world.gather((self.source.host, limits))
        self._limits = [{**each, "host": host} for host, mine in by_rank for each in mine]
        for each in self._limits:  # told now: should the guard be killed too, this is all there is
            say(
                f"power limit of {each['uuid']} on {each['host']}: {each['enforced_w']:g} W, "
                f"{each['former_w']:g} W again at the end"
            )

    def synchronize(self):
        """Waits until the device has done every step: until a weight the last one changes is there.

        Queued work thus stays inside the stretch of time it belongs to.
        """
        import keras

        if self._last_written is not None:
            keras.ops.convert_to_tensor(self._last_written).numpy()

    def __enter__(self):
        if self._world.is_first:  # a run that measures nothing has its trace too, without rows
            PowerTrace(self._folder.power_file, self._progress.zero_unix_s).close()
        self._monitor.start()
        return self

    def __exit__(self, *exception):
        self._monitor.stop()

    def begin(self, name):
        """Begins a stretch called `name` in the epoch under way."""
        self._monitor.begin(name, self._progress.epoch)

    def end(self, name):
        """Ends it."""
        self._monitor.end(name)

    def window(self, name):
        """Measures the body of a `with` as a stretch called `name`."""
        return self._monitor.window(name, self._progress.epoch)

    def of_epochs(self, epoch_seconds):
        """Returns what all devices used to train the epochs finished so far, over all starts.

        As the record counts them, whose figures replace them in epochs.csv: what slow sensors show
        after the end of an epoch, or a counter that fails in a later one, may change them still.

        Args:
          epoch_seconds: how long each took.

        Returns:
          A dict with `joules_per_epoch` and `coverage_per_epoch`.
        """
        return merge_energy(self._all_results(), epoch_seconds=epoch_seconds)

    @property
    def watts(self):
        """The latest power of this rank's devices, None where it is not measured."""
        return self._monitor.watts

    def results(self):
        """Returns what each rank measured since this start, JSON-able; a checkpoint keeps it."""
        return self._world.gather(self._monitor.results())

    def record(self, samples, seconds, epoch_seconds):
        """Returns the `energy` part of record.json, over all starts of the run.

        Args:
          samples: windows trained in the timed part of the run.
          seconds: length of that part.
          epoch_seconds: that of each finished epoch.
        """
        self._world.on_first(lambda: join_traces(self._folder.path))
        merged = merge_energy(
            self._all_results(), samples=samples, seconds=seconds, epoch_seconds=epoch_seconds
        )
        return {**merged, "power_limits": self._limits}

    def _all_results(self):
        return _joined([*self._progress.energy, *self.results()])


def _joined(results):
    """Returns the results with one entry for each device, its windows those of all starts."""
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
