"""Energy counter, power, clocks and limits of NVIDIA GPUs. The only import of pynvml.

NVML uses millijoules and milliwatts; this module returns joules and watts. A driver, or a release
of pynvml, may lack any function: what remains is read, and the reason names the function.

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
# Numbers of NVML's interface, which do not change. Older releases of pynvml lack some of the names.
_SUCCESS, _NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND = 0, 3, 4, 13
_CLOCK_SM, _TEMPERATURE_GPU, _TOTAL_POWER_SAMPLES = 1, 0, 0
_FIELD_AVERAGE, _FIELD_INSTANT = 185, 186  # NVML_FI_DEV_POWER_AVERAGE, _INSTANT
_SCOPE_GPU, _SCOPE_MODULE = 0, 1  # NVML_POWER_SCOPE_GPU, _MODULE

# What power and energy of a device are of.
GPU_SCOPE, MODULE_SCOPE = "gpu", "module"
_AVERAGE_WINDOW_S = 1.0  # NVML_FI_DEV_POWER_AVERAGE, from the reference of NVML
_HIGHEST_WATTS = 3000.0  # no board draws more, so a higher reading is invalid


class NvmlUnavailable(Exception):
    """NVML cannot be used at all; the message is the reason."""


class NvmlCallFailed(MeterError):
    """A call of NVML failed.

    Attributes:
      code: NVML's status; that of a function that is not found if pynvml does not have it.
      reason: the text of the error, without the name of the function.
    """

    def __init__(self, name, code, reason):
        super().__init__(f"{name}: {reason}")
        self.code, self.reason = code, str(reason)


def list_gpus():
    """Returns every Gpu that NVML lets this process open, in NVML's order.

    GPUs that a cgroup hides are left out, as in CUDA.

    Raises:
      NvmlUnavailable: there is no pynvml, no driver, or no GPU.
    """
    nvml = _open()
    try:
        count = _call(nvml, "nvmlDeviceGetCount")
    except MeterError as error:
        raise NvmlUnavailable(f"NVML does not report its GPUs ({error})") from None
    gpus, left_out = [], []
    for index in range(count):
        try:
            gpus.append(_describe(nvml, _call(nvml, "nvmlDeviceGetHandleByIndex", index)))
        except MeterError as error:
            # Hidden by a cgroup, or lost; CUDA does not count it either.
            left_out.append(f"GPU {index} cannot be opened ({error})")
    if not gpus:
        raise NvmlUnavailable("; ".join(left_out) or "NVML shows no GPU")
    return gpus


class GpuMeter:
    """Reads one GPU.

    The counter is the energy of the board since the driver was loaded, in steps of 20 to 100 ms
    (Volta and newer). Power is that of the board too. It is the 1 s average if the driver provides
    it, since overlapping averages miss nothing between two readings. Otherwise it is the only power
    reading of the driver, whose averaging window depends on the card and is inferred.

    On a superchip such as GH200 the counter is of the whole module: the GPU, the CPU and the memory
    of both. Power is then read in the same scope.

    Attributes:
      key: the UUID of the GPU, the same for every process of the host.
      power_window_s: the averaging window of the power readings, or None if unknown.
      scope: GPU_SCOPE, or MODULE_SCOPE if the driver reports a power of the module that differs
        from that of the GPU.

    Source: NVML_POWER_SCOPE in the reference of NVML; that the counter of a GH200 is of the module,
      from pull request 172 of Zeus (ml-energy/zeus).
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
        self.scope = self._probe_scope()
        notes = []
        if gpu.mig_uuids:
            notes.append(
                "partitioned into MIG devices; power and energy are those of the whole card"
            )
        if self.scope == MODULE_SCOPE:
            notes.append("a module; power and energy are those of its GPU, CPU and memory together")
        self.note = "; ".join(notes) or None
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
            watts = _plausible(self._present_milliwatts())
            return watts, watts
        average, instant = self._fields(_FIELD_AVERAGE, _FIELD_INSTANT)
        watts = _plausible(self._field_value(average))
        try:
            return watts, max(watts, _plausible(self._field_value(instant)))
        except MeterError:
            return watts, watts

    def read_power(self, kind):
        """Returns one power reading of the driver, by a single call, watts.

        Args:
          kind: "usage", the oldest power reading of the driver, of the GPU in every scope;
            "average" over a second, or "instant", both of `scope`.

        Raises:
          MeterError: there is no reading this time, or an impossible one, or no such sensor.
        """
        if kind == "usage":
            return _plausible(self._ask("nvmlDeviceGetPowerUsage"))
        field = {"average": _FIELD_AVERAGE, "instant": _FIELD_INSTANT}[kind]
        return _plausible(self._field_value(*self._fields(field)))

    def read_samples(self):
        """Returns the samples in the driver's buffer since the last call, oldest first.

        Returns:
          A list of (unix time in seconds, watts), empty if the driver has no buffer of this scope.
        """
        if self.scope != GPU_SCOPE:
            return []
        try:
            _, samples = self._ask(
                "nvmlDeviceGetSamples", _TOTAL_POWER_SAMPLES, self._newest_sample_us
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
        reasons = self._maybe("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # the name before driver version 535
            reasons = self._maybe("nvmlDeviceGetCurrentClocksThrottleReasons")
        quick = {
            "sm_mhz": self._maybe("nvmlDeviceGetClockInfo", _CLOCK_SM),
            "throttle_reasons": None if reasons is None else throttle_names(reasons),
        }
        if slow is not None:
            return slow._replace(**quick)
        utilization = self._maybe("nvmlDeviceGetUtilizationRates")
        memory = self._maybe("nvmlDeviceGetMemoryInfo")
        return Reading(
            utilization_percent=None if utilization is None else utilization.gpu,
            memory_mib=None if memory is None else memory.used / 2**20,
            temperature_c=self._maybe("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
            **quick,
        )

    def _probe_scope(self):
        """Returns the scope of the counter, by what the driver reports of both scopes.

        A driver that does not know scopes gives the power of the GPU for each of them.
        """
        for field in (_FIELD_AVERAGE, _FIELD_INSTANT):
            try:
                both = self._ask(
                    "nvmlDeviceGetFieldValues",
                    [(field, _SCOPE_GPU), (field, _SCOPE_MODULE)],
                    remember=False,
                )
                of_gpu, of_module = map(self._field_value, both)
            except MeterError:
                continue
            if of_module > of_gpu:
                return MODULE_SCOPE
        return GPU_SCOPE

    def _probe_average(self):
        try:
            self._field_value(*self._fields(_FIELD_AVERAGE))
        except MeterError:
            return None
        return _AVERAGE_WINDOW_S

    def _present_milliwatts(self):
        if self.scope == GPU_SCOPE:
            return self._ask("nvmlDeviceGetPowerUsage")
        return self._field_value(*self._fields(_FIELD_INSTANT))

    def _fields(self, *fields):
        if self.scope == MODULE_SCOPE:  # otherwise without a scope, which older pynvml lack
            fields = [(field, _SCOPE_MODULE) for field in fields]
        return self._ask("nvmlDeviceGetFieldValues", fields, remember=False)

    def _field_value(self, field):
        if field.nvmlReturn != _SUCCESS:
            raise MeterError(f"power field {field.fieldId}: status {field.nvmlReturn} of NVML")
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
        if self._handle is None:
            self._handle = _call(self._nvml, "nvmlDeviceGetHandleByUUID", self.key.encode())
        try:
            return _call(self._nvml, name, self._handle, *arguments)
        except NvmlCallFailed as error:
            if remember and error.code in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
                self._unsupported[name] = str(error)
            raise


@functools.cache
def throttle_names(bits):
    """Returns the reasons in an NVML clock-reason mask, joined by '+'; '' for none."""
    return "+".join(name for bit, name in _THROTTLE_NAMES.items() if bits & bit)


def read_driver_version():
    """Returns the version of NVIDIA's driver as text, or None if the driver does not report it.

    Raises:
      NvmlUnavailable: there is no pynvml or no driver.
    """
    version = _default(None, _open(), "nvmlSystemGetDriverVersion")
    return None if version is None else _text(version)


def read_power_limit(uuid):
    """Returns {"limit_w", "enforced_w", "lowest_w", "highest_w"} of a GPU, watts.

    Raises:
      MeterError: the driver does not report it.
    """
    nvml = _open()
    try:
        handle = _call(nvml, "nvmlDeviceGetHandleByUUID", uuid.encode())
        lowest, highest = _call(nvml, "nvmlDeviceGetPowerManagementLimitConstraints", handle)
        return {
            "limit_w": _call(nvml, "nvmlDeviceGetPowerManagementLimit", handle) / 1000,
            "enforced_w": _call(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle) / 1000,
            "lowest_w": lowest / 1000,
            "highest_w": highest / 1000,
        }
    except NvmlCallFailed as error:
        raise MeterError(f"power limit of {uuid}: {error.reason}") from None


def write_power_limit(uuid, watts):
    """Sets the power limit of a GPU.

    Raises:
      PermissionError: the driver refuses this user.
      MeterError: any other failure.
    """
    nvml = _open()
    try:
        handle = _call(nvml, "nvmlDeviceGetHandleByUUID", uuid.encode())
        _call(nvml, "nvmlDeviceSetPowerManagementLimit", handle, round(watts * 1000))
    except NvmlCallFailed as error:
        reason = f"power limit of {uuid}: {error.reason}"
        if error.code == _NO_PERMISSION:
            raise PermissionError(reason) from None
        raise MeterError(reason) from None


def _open():
    try:
        import pynvml
    except ImportError:
        raise NvmlUnavailable("the package nvidia-ml-py is not installed") from None
    except Exception as error:  # another package of that name
        raise NvmlUnavailable(f"pynvml cannot be loaded ({error})") from None
    try:
        _call(pynvml, "nvmlInit")
    except MeterError as error:
        raise NvmlUnavailable(f"no NVIDIA driver responds ({error})") from None
    return pynvml


def _describe(nvml, handle):
    uuid = _text(_call(nvml, "nvmlDeviceGetUUID", handle))  # by which ranks know a shared GPU
    cores = _default(None, nvml, "nvmlDeviceGetNumGpuCores", handle)
    clock = _default(None, nvml, "nvmlDeviceGetMaxClockInfo", handle, _CLOCK_SM)
    pci = _default(None, nvml, "nvmlDeviceGetPciInfo", handle)
    name = _default(None, nvml, "nvmlDeviceGetName", handle)
    return Gpu(
        uuid=uuid,
        pci_bus_id=None if pci is None else _text(pci.busId),
        name=None if name is None else _text(name),
        speed=cores * clock if cores and clock else None,
        mig_uuids=_mig_uuids(nvml, handle),
    )


def _mig_uuids(nvml, handle):
    if not _default((0, 0), nvml, "nvmlDeviceGetMigMode", handle)[0]:
        return ()
    uuids = []
    for index in range(_default(0, nvml, "nvmlDeviceGetMaxMigDeviceCount", handle)):
        mig = _default(None, nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        uuid = None if mig is None else _default(None, nvml, "nvmlDeviceGetUUID", mig)
        if uuid is not None:
            uuids.append(_text(uuid))
    return tuple(uuids)


def _default(default, nvml, name, *arguments):
    """Returns the result of a call of NVML, or `default` if it fails."""
    try:
        return _call(nvml, name, *arguments)
    except MeterError:
        return default


def _call(nvml, name, *arguments):
    """Returns the result of a function of NVML.

    Raises:
      NvmlCallFailed: it failed, or the driver or this pynvml does not have it.
    """
    function = getattr(nvml, name, None)
    if function is None:
        raise NvmlCallFailed(name, _FUNCTION_NOT_FOUND, "the installed pynvml does not have it")
    try:
        return function(*arguments)
    except Exception as error:  # mostly NVMLError; also text or values that pynvml cannot convert
        code = getattr(error, "value", None)
        try:
            reason = str(error)
        except Exception:  # NVMLError asks the driver for the text
            reason = f"status {code} of NVML"
        raise NvmlCallFailed(name, code, reason) from None


def _plausible(milliwatts):
    watts = milliwatts / 1000
    if not 0 < watts < _HIGHEST_WATTS:
        raise MeterError(f"power reading of {watts:g} W is impossible")
    return watts


def _text(value):
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
