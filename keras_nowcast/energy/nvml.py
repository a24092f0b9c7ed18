"""Energy counter, power, clocks and limits of NVIDIA GPUs. The only import of pynvml.

NVML uses millijoules and milliwatts; this module returns joules and watts.

Source: the API reference of NVML; update periods and averaging windows from arXiv 2312.02741.
"""

import functools

from keras_nowcast.energy.devices import Gpu
from keras_nowcast.energy.reading import MeterError, Reading

COUNTER = "nvml_counter"
POWER = "nvml_power"

# NVML_CLOCKS_EVENT_REASON bits. Idle (1) and a clock that the user set (2) are not throttling, but
# they explain the clock column as well.
_THROTTLE_NAMES = {
    0x1: "idle",
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
}
_AVERAGE_WINDOW_S = 1.0  # NVML_FI_DEV_POWER_AVERAGE, from the reference of NVML
_HIGHEST_WATTS = 3000.0  # no board draws more, so a higher reading is invalid


class NvmlUnavailable(Exception):
    """NVML cannot be used at all; the message is the reason."""


def list_gpus():
    """Returns every Gpu that NVML lets this process open, in NVML's order.

    GPUs that a cgroup hides are left out, as in CUDA.

    Raises:
      NvmlUnavailable: there is no pynvml, no driver, or no GPU.
    """
    nvml = _open()
    gpus = []
    for index in range(_call(nvml.nvmlDeviceGetCount, default=0)):
        try:
            gpus.append(_describe(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError:
            continue  # hidden by a cgroup, or lost; CUDA does not count it either
    if not gpus:
        raise NvmlUnavailable("NVML shows no GPU")
    return gpus


class GpuMeter:
    """Reads one GPU.

    The counter is the energy of the board since the driver was loaded, in steps of 20 to 100 ms
    (Volta and newer). Power is that of the board too. It is the 1 s average if the driver provides
    it, since overlapping averages miss nothing between two readings. Otherwise it is the only power
    reading of the driver, whose averaging window depends on the card and is inferred.

    Attributes:
      key: the UUID of the GPU, the same for every process of the host.
      power_window_s: the averaging window of the power readings, or None if unknown.
    """

    kind = "nvml"
    counter_source, power_source = COUNTER, POWER
    counter_step_s = None  # 20 to 100 ms, depending on the card; inferred
    calibration_percent = 5.0  # without an external meter (arXiv 2312.02741)

    def __init__(self, gpu):
        self._nvml = _open()
        self._handle = None
        self.gpu = gpu
        self.key, self.name = gpu.uuid, gpu.name
        self._unsupported = {}  # name of a function -> why it is not called again
        self.note = None
        if gpu.mig_uuids:
            self.note = "partitioned into MIG devices; power and energy are those of the whole card"
        self.power_window_s = self._probe_average()
        self._newest_sample_us = 0

    def read_counter(self):
        """Returns joules since some time in the past.

        Raises:
          MeterError: there is no valid reading this time.
        """
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        if millijoules == 0:
            raise MeterError("the energy counter shows 0")
        return millijoules / 1000

    def read_watts(self):
        """Returns (power of the board as described above, highest power it shows), watts.

        They differ if the driver reports instantaneous power in addition to the average.

        Raises:
          MeterError: there is no reading this time, or an impossible one.
        """
        if self.power_window_s is None:
            watts = _plausible(self._ask("nvmlDeviceGetPowerUsage"))
            return watts, watts
        nvml = self._nvml
        average, instant = self._fields(
            nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_FI_DEV_POWER_INSTANT
        )
        watts = _plausible(self._field_value(average))
        try:
            return watts, max(watts, _plausible(self._field_value(instant)))
        except MeterError:
            return watts, watts

    def read_samples(self):
        """Returns the samples in the driver's buffer since the last call, oldest first.

        Returns:
          A list of (unix time in seconds, watts), empty if the driver has no buffer.
        """
        try:
            _, samples = self._ask(
                "nvmlDeviceGetSamples", self._nvml.NVML_TOTAL_POWER_SAMPLES, self._newest_sample_us
            )
        except MeterError:
            return []
        fresh = [each for each in samples if each.timeStamp > self._newest_sample_us]
        if fresh:
            self._newest_sample_us = fresh[-1].timeStamp
        return [
            (each.timeStamp / 1e6, each.sampleValue.uiVal / 1000)
            for each in fresh
            if 0 < each.sampleValue.uiVal / 1000 < _HIGHEST_WATTS
        ]

    def read_state(self, slow=None):
        """Returns a Reading of the values that explain power; an unreadable field is None.

        Args:
          slow: a recent Reading, for the values that change slowly: utilization (the driver's mean
            over up to a second), memory and temperature. None to read these too.
        """
        nvml = self._nvml
        reasons = self._maybe("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # the name before driver version 535
            reasons = self._maybe("nvmlDeviceGetCurrentClocksThrottleReasons")
        quick = {
            "sm_mhz": self._maybe("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "throttle_reasons": None if reasons is None else throttle_names(reasons),
        }
        if slow is not None:
            return slow._replace(**quick)
        utilization = self._maybe("nvmlDeviceGetUtilizationRates")
        memory = self._maybe("nvmlDeviceGetMemoryInfo")
        return Reading(
            utilization_percent=None if utilization is None else utilization.gpu,
            memory_mib=None if memory is None else memory.used / 2**20,
            temperature_c=self._maybe("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            **quick,
        )

    def _probe_average(self):
        try:
            self._field_value(*self._fields(self._nvml.NVML_FI_DEV_POWER_AVERAGE))
        except MeterError:
            return None
        return _AVERAGE_WINDOW_S

    def _fields(self, *fields):
        return self._ask("nvmlDeviceGetFieldValues", fields, remember=False)

    def _field_value(self, field):
        if field.nvmlReturn != self._nvml.NVML_SUCCESS:
            error = self._nvml.NVMLError(field.nvmlReturn)
            raise MeterError(f"power field {field.fieldId}: {error}")
        return field.value.uiVal

    def _maybe(self, name, *arguments):
        try:
            return self._ask(name, *arguments)
        except MeterError:
            return None

    def _ask(self, name, *arguments, remember=True):
        """Calls an NVML function on this GPU; an unsupported one is called only once."""
        if name in self._unsupported:
            raise MeterError(self._unsupported[name])
        nvml = self._nvml
        try:
            if self._handle is None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self.key.encode())
            return getattr(nvml, name)(self._handle, *arguments)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound) as error:
            reason = f"{name}: {error}"
            if remember:
                self._unsupported[name] = reason
            raise MeterError(reason) from None
        except nvml.NVMLError as error:
            raise MeterError(f"{name}: {error}") from None


@functools.cache
def throttle_names(bits):
    """Returns the reasons in an NVML clock-reason mask, joined by '+'; '' for none."""
    return "+".join(name for bit, name in _THROTTLE_NAMES.items() if bits & bit)


def read_power_limit(uuid):
    """Returns {"limit_w", "enforced_w", "lowest_w", "highest_w"} of a GPU, watts.

    Raises:
      MeterError: the driver does not report it.
    """
    nvml = _open()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        lowest, highest = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        return {
            "limit_w": nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
            "enforced_w": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "lowest_w": lowest / 1000,
            "highest_w": highest / 1000,
        }
    except nvml.NVMLError as error:
        raise MeterError(f"power limit of {uuid}: {error}") from None


def write_power_limit(uuid, watts):
    """Sets the power limit of a GPU.

    Raises:
      PermissionError: the driver refuses this user.
      MeterError: any other failure.
    """
    nvml = _open()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        nvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1000))
    except nvml.NVMLError_NoPermission as error:
        raise PermissionError(f"power limit of {uuid}: {error}") from None
    except nvml.NVMLError as error:
        raise MeterError(f"power limit of {uuid}: {error}") from None


def _open():
    try:
        import pynvml
    except ImportError:
        raise NvmlUnavailable("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"no NVIDIA driver responds ({error})") from None
    return pynvml


def _describe(nvml, handle):
    cores = _call(nvml.nvmlDeviceGetNumGpuCores, handle)
    clock = _call(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
    return Gpu(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        pci_bus_id=_text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        speed=cores * clock if cores and clock else None,
        mig_uuids=_mig_uuids(nvml, handle),
    )


def _mig_uuids(nvml, handle):
    if not _call(nvml.nvmlDeviceGetMigMode, handle, default=(0, 0))[0]:
        return ()
    uuids = []
    for index in range(_call(nvml.nvmlDeviceGetMaxMigDeviceCount, handle, default=0)):
        mig = _call(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if mig is not None:
            uuids.append(_text(nvml.nvmlDeviceGetUUID(mig)))
    return tuple(uuids)


def _call(function, *arguments, default=None):
    import pynvml

    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return default


def _plausible(milliwatts):
    watts = milliwatts / 1000
    if not 0 < watts < _HIGHEST_WATTS:
        raise MeterError(f"power reading of {watts:g} W is impossible")
    return watts


def _text(value):
    return value.decode() if isinstance(value, bytes) else value
