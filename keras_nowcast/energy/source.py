"""Which meters a process reads, and the reason."""

import os
import socket
import sys
from dataclasses import dataclass, replace

from keras_nowcast import machine
from keras_nowcast.energy import estimate, nvml, rapl
from keras_nowcast.energy.devices import gpus_of_rank, visible_gpus, why_order_is_a_guess
from keras_nowcast.errors import InputError

SOURCES = ("auto", "nvml", "rapl", "estimate", "auto-or-estimate", "none")
UNMEASURED_GPUS = "the GPUs that TensorFlow uses"


@dataclass(frozen=True)
class Source:
    """The meters of one process.

    Attributes:
      kind: "nvml", "rapl", "estimate" or "none".
      reason: why this one was chosen; for "none", why there is no measurement.
      meters: the meters, one per device.
      host: name of this host.
      not_included: what trains here and the meters do not measure, as texts.
    """

    kind: str
    reason: str
    meters: tuple = ()
    host: str = ""
    not_included: tuple = ()

    @property
    def devices(self):
        """(host, device) of each meter, which identifies a device in a job."""
        return [(self.host, meter.key) for meter in self.meters]

    def only(self, devices):
        """Returns this source with only the meters of `devices`."""
        kept = {tuple(device) for device in devices}
        return replace(self, meters=tuple(m for m in self.meters if (self.host, m.key) in kept))


def choose_source(
    asked="auto",
    *,
    tensorflow_uses_gpu=None,
    local_rank=None,
    watts_per_core=None,
    environ=os.environ,
    host=None,
    rapl_root=rapl.ROOT,
):
    """Chooses what to measure and opens the meters.

    - "auto" is NVML if TensorFlow uses a GPU, otherwise RAPL if it is readable, otherwise none. If
      TensorFlow uses a GPU that NVML does not read, it is none too: the energy of the CPU packages
      would not be that of the training. If NVML shows GPUs that TensorFlow does not use, the reason
      says so, and their idle power is not counted.
    - "rapl" and "estimate" are of CPUs. If TensorFlow uses a GPU, `not_included` says so.
    - "nvml" reads the GPUs visible to this process whether or not TensorFlow uses them.
    - "auto-or-estimate" is "auto" where that measures, and otherwise an estimate.

    Args:
      asked: one of SOURCES.
      tensorflow_uses_gpu: whether TensorFlow runs on a GPU; None to ask TensorFlow if it is
        loaded, and otherwise to treat every visible GPU as used.
      local_rank: of this process among those of a training job on this host, which use one GPU
        each; None for a single process, which uses every GPU that CUDA shows it.
      watts_per_core: assumed power for "estimate"; None to look up the processor in a table.
      environ: where CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read.
      host: name of this host; None to ask the system.
      rapl_root: the powercap tree.

    Raises:
      InputError: a source that is requested by name cannot be used.
    """
    if asked not in SOURCES:
        raise InputError(f"`source` must be one of {', '.join(SOURCES)}. Received: {asked}.")
    host = host or socket.gethostname()
    if tensorflow_uses_gpu is None:
        tensorflow_uses_gpu = _loaded_tensorflow_uses_gpu()
    if asked == "none":
        return Source("none", "no measurement was requested", host=host)
    if asked == "estimate":
        return _of_cpus(_estimate(watts_per_core, local_rank, host), tensorflow_uses_gpu)
    if asked == "rapl":
        return _of_cpus(_rapl_or_refuse(rapl_root, host), tensorflow_uses_gpu)
    if asked == "nvml":
        return _nvml_or_refuse(local_rank, environ, host)
    found = _auto(tensorflow_uses_gpu, local_rank, environ, host, rapl_root)
    if asked == "auto" or found.kind != "none":
        return found
    if tensorflow_uses_gpu:  # the CPU time of a process says nothing of its GPU
        return replace(found, reason=f"{found.reason}; the power of a GPU is not estimated")
    estimated = _estimate(watts_per_core, local_rank, host, or_median=True)
    return replace(estimated, reason=f"{estimated.reason}; {found.reason}")


def first_users(devices_by_rank):
    """Decides which rank reads which device, so that each device is read once.

    Args:
      devices_by_rank: `Source.devices` of every rank, in the order of the ranks.

    Returns:
      For each rank, the list of devices that it is the first to name.
    """
    taken, shares = set(), []
    for devices in devices_by_rank:
        share = [tuple(device) for device in devices if tuple(device) not in taken]
        taken.update(share)
        shares.append(share)
    return shares


def _auto(tensorflow_uses_gpu, local_rank, environ, host, rapl_root):
    reasons = []
    try:
        if tensorflow_uses_gpu is not False:
            meters, reason = _gpu_meters(local_rank, environ)
            return Source("nvml", reason, meters, host)
        reasons.append(
            f"TensorFlow does not use the {len(nvml.list_gpus())} GPU(s) that NVML shows, so their "
            "power is not counted"
        )
    except nvml.NvmlUnavailable as unavailable:
        reasons.append(f"NVML: {unavailable}")
        if tensorflow_uses_gpu:
            reasons.append(
                "TensorFlow uses a GPU, and the energy of the CPU packages alone is not that of "
                "the training (--power-source rapl measures it)"
            )
            return Source("none", "; ".join(reasons), host=host)
    try:
        meters = _rapl_meters(rapl_root)
        return Source("rapl", "; ".join([*reasons, "RAPL is readable"]), meters, host)
    except rapl.RaplUnavailable as unavailable:
        reasons.append(f"RAPL: {unavailable}")
    return Source("none", "; ".join(reasons), host=host)


def _of_cpus(source, tensorflow_uses_gpu):
    """Returns a Source of CPUs that states that a GPU is not in it, if TensorFlow uses one."""
    if not tensorflow_uses_gpu:
        return source
    reason = f"{source.reason}; TensorFlow uses a GPU, which is not in it"
    return replace(source, reason=reason, not_included=(UNMEASURED_GPUS,))


def _nvml_or_refuse(local_rank, environ, host):
    try:
        meters, reason = _gpu_meters(local_rank, environ)
    except nvml.NvmlUnavailable as unavailable:
        raise InputError(
            f"`--power-source` nvml cannot be used: {unavailable}. Received: nvml; use auto, which "
            "chooses an available source."
        ) from None
    return Source("nvml", reason, meters, host)


def _rapl_or_refuse(root, host):
    try:
        return Source("rapl", "RAPL was requested", _rapl_meters(root), host)
    except rapl.RaplUnavailable as unavailable:
        raise InputError(
            f"`--power-source` rapl cannot be used: {unavailable}. Received: rapl; use auto, which "
            "chooses an available source."
        ) from None


def _estimate(watts_per_core, local_rank, host, or_median=False):
    if watts_per_core is None:
        watts_per_core = estimate.stated_watts_per_core(or_median=or_median)
        origin = f"design power of this {machine.cpu_model()}"
        if or_median and not estimate.is_in_table():
            origin = f"the median of a table of processors, which lacks {machine.cpu_model()}"
    elif 0 < watts_per_core < 1000:
        origin = "stated by the user"
    else:
        raise InputError(
            f"`--watts-per-core` must be above 0 and below 1000. Received: {watts_per_core}."
        )
    reason = f"an estimate was requested: {watts_per_core:.3g} W per core ({origin}) times CPU time"
    meter = estimate.CpuTimeMeter(watts_per_core, local_rank)
    return Source("estimate", reason, (meter,), host)


def _gpu_meters(local_rank, environ):
    gpus = nvml.list_gpus()
    used = gpus_of_rank(visible_gpus(gpus, environ), local_rank)
    if not used:
        raise nvml.NvmlUnavailable(
            f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES')!r} names none of the "
            f"{len(gpus)} GPU(s) that NVML shows"
        )
    reason = f"NVML shows {len(gpus)} GPU(s), of which this process uses {len(used)}"
    guess = why_order_is_a_guess(gpus, environ)
    if guess:
        reason += f"; {guess}"
    meters = tuple(nvml.GpuMeter(gpu) for gpu in used)
    reason += "".join(f"; {meter.key} is {meter.note}" for meter in meters if meter.note)
    return meters, reason


def _rapl_meters(root):
    return tuple(rapl.RaplMeter(name, folder) for name, folder in rapl.list_zones(root).items())


def _loaded_tensorflow_uses_gpu():
    """Returns whether TensorFlow uses a GPU, or None if TensorFlow is not loaded."""
    if sys.modules.get("tensorflow") is None:
        return None
    import tensorflow

    return bool(tensorflow.config.get_visible_devices("GPU"))
