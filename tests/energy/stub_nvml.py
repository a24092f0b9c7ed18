"""A stub of NVIDIA's driver whose true power is known: builds, scripts and integrates it.

The real pynvml loads the library (stub_nvml.c). Other processes get it through
`StubDriver.environment`, and this process through `StubDriver.loaded_here`.
"""

import contextlib
import ctypes
import hashlib
import os
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class Wave:
    """True power: straight lines between (second, watts) points, repeated every `period_s`.

    With period 0 it runs once, and keeps its first power before and its last power after.
    """

    points: tuple
    period_s: float = 0.0

    def joules(self, start_s, end_s):
        """Returns its exact integral."""
        return self._since_zero(end_s) - self._since_zero(start_s)

    def _since_zero(self, time_s):
        if self.period_s <= 0:
            return self._within(time_s)
        turns = time_s // self.period_s
        whole = self._within(self.period_s) - self._within(0)
        return turns * whole + self._within(time_s - turns * self.period_s)

    def _within(self, time_s):
        first_s, first_w = self.points[0]
        if time_s <= first_s:
            return first_w * (time_s - first_s)
        joules, (last_s, last_w) = 0.0, self.points[0]
        for next_s, next_w in self.points[1:]:
            if time_s <= next_s:
                watts = last_w + (next_w - last_w) * (time_s - last_s) / (next_s - last_s)
                return joules + (last_w + watts) / 2 * (time_s - last_s)
            joules += (last_w + next_w) / 2 * (next_s - last_s)
            last_s, last_w = next_s, next_w
        return joules + last_w * (time_s - last_s)


def constant(watts):
    """Returns a Wave that never changes."""
    return Wave(((0.0, watts),))


def ramp(start_w, end_w, duration_s):
    """Returns a Wave from one power to another."""
    return Wave(((0.0, start_w), (duration_s, end_w)))


def square(low_w, high_w, period_s, duty=0.5, rise_s=0.0005):
    """Returns a Wave that is high for `duty` of each period, with steep edges."""
    high_s = duty * period_s
    points = (
        (0.0, high_w),
        (high_s - rise_s, high_w),
        (high_s, low_w),
        (period_s - rise_s, low_w),
        (period_s, high_w),
    )
    return Wave(points, period_s)


@dataclass(frozen=True)
class Sensor:
    """A power sensor that shows, every `period_s`, the mean over the last `window_s`."""

    period_s: float
    window_s: float
    phase_s: float = 0.0
    noise_w: float = 0.2


V100 = Sensor(0.020, 0.010)
A100 = Sensor(0.100, 0.025)
AVERAGING = Sensor(0.100, 1.0)
TURING = Sensor(0.100, 0.100)


@dataclass
class Device:
    """A GPU of the stub.

    Attributes:
      faults: (function, kind, from_s, to_s) each, see stub_nvml.c.
      faults_at_call: (function, kind, first call, first call after it, seconds of a hang) each.
    """

    uuid: str = "GPU-00000000-0000-0000-0000-000000000001"
    bus: str = "00000000:65:00.0"
    name: str = "Stub V100"
    wave: Wave = constant(200.0)
    usage: Sensor | None = V100
    average: Sensor | None = None
    instant: Sensor | None = None
    counter_period_s: float = 0.020  # 0: not supported
    counter_phase_s: float = 0.0
    counter_offset_j: float = 5000.0
    gain: float = 1.0
    module_w: float = 0.0  # what the other parts of a superchip draw
    buffer: bool = False
    cores: int = 5120
    clock_mhz: int = 1530
    limits_w: tuple = (100.0, 300.0, 300.0)  # lowest, highest, now
    mig: tuple = ()
    hidden: bool = False
    faults: tuple = ()
    faults_at_call: tuple = ()

    def lines(self):
        """Returns its part of the configuration file."""
        yield f"device {self.uuid} {self.bus} {self.name}"
        points = " ".join(f"{time_s!r}:{watts!r}" for time_s, watts in self.wave.points)
        yield f"wave {self.wave.period_s!r} {points}"
        for kind in ("usage", "average", "instant"):
            sensor = getattr(self, kind)
            if sensor is not None:
                yield (
                    f"sensor {kind} {sensor.period_s!r} {sensor.window_s!r} {sensor.phase_s!r} "
                    f"{sensor.noise_w!r}"
                )
        yield f"counter {self.counter_period_s} {self.counter_phase_s} {self.counter_offset_j}"
        yield f"gain {self.gain}"
        yield f"module {self.module_w}"
        yield f"cores {self.cores}"
        yield f"clock_mhz {self.clock_mhz}"
        yield "limit {} {} {}".format(*self.limits_w)
        if self.buffer:
            yield "buffer"
        if self.hidden:
            yield "hidden"
        for uuid in self.mig:
            yield f"mig {uuid}"
        for fault in self.faults:
            yield "fault {} {} {} {}".format(*fault)
        for fault in self.faults_at_call:
            yield "fault_at_call {} {} {} {} {}".format(*fault)


class StubDriver:
    """A scripted driver.

    Args:
      folder: folder for its configuration, log and clock.
      devices: the host's devices, in NVML's order.
      simulated: True if `set_time` sets its time; otherwise its time is the seconds since this
        object was created.
      without: names of symbols that the library lacks; only "counter" is known.

    Attributes:
      environment: environment variables with which another process loads this driver.
      log: file of the limits that were set, each a line "set_power_limit <uuid> <milliwatts> <pid>"
      zero_s: second 0 of the waves on time.monotonic().
    """

    def __init__(self, folder, devices, simulated=False, without=(), init_fails=False):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.devices = list(devices)
        self.log = folder / "setters.log"
        self._clock = folder / "clock"
        self.zero_s = time.monotonic()
        unix_s = 0.0 if simulated else time.time()
        self.set_time(0.0)
        clock = f"file {self._clock}" if simulated else f"real {self.zero_s!r}"
        lines = [f"clock {clock}", f"unix {unix_s!r}", f"log {self.log}"]
        if init_fails:
            lines.append("init_fails yes")
        for device in self.devices:
            lines += device.lines()
        config = folder / "config"
        config.write_text("\n".join(lines) + "\n")
        self.library = build_library("counter" in without)
        self.environment = {
            "LD_LIBRARY_PATH": f"{self.library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "STUB_NVML_CONFIG": str(config),
        }

    def set_time(self, seconds):
        """Sets the clock of a simulated driver."""
        mode = "r+b" if self._clock.exists() else "wb"
        with open(self._clock, mode) as file:
            file.write(struct.pack("d", seconds))

    @contextlib.contextmanager
    def loaded_here(self, without=()):
        """Lets this process's pynvml use the stub inside the block.

        Args:
          without: names of symbols that the library then lacks.
        """
        import pynvml

        library = ctypes.CDLL(str(self.library))
        patches = [
            mock.patch.object(pynvml, "nvmlLib", _Lacking(library, without)),
            mock.patch.object(pynvml, "_nvmlGetFunctionPointer_cache", {}),
        ]
        os.environ["STUB_NVML_CONFIG"] = self.environment["STUB_NVML_CONFIG"]
        library.nvmlShutdown()
        with patches[0], patches[1]:
            try:
                yield self
            finally:
                library.nvmlShutdown()
                del os.environ["STUB_NVML_CONFIG"]


class _Lacking:
    """A library without some of its symbols."""

    def __init__(self, library, absent):
        self._library, self._absent = library, absent

    def __getattr__(self, name):
        if name in self._absent:
            raise AttributeError(name)
        return getattr(self._library, name)


def build_library(without_counter=False):
    """Builds libnvidia-ml.so.1 with gcc, once per version of its source; returns its path."""
    flags = ["-DNO_COUNTER"] if without_counter else []
    key = hashlib.sha256(SOURCE.read_bytes() + str(flags).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"stub-nvml-{os.getuid()}-{key}"
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        beside = folder / f"building.{os.getpid()}"
        command = ["gcc", "-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", *flags]
        subprocess.run([*command, "-o", str(beside), str(SOURCE), "-lm"], check=True)
        os.replace(beside, library)
    return library


class Simulation:
    """A sampler with a simulated clock, in step with a simulated stub driver.

    Args:
      stub: a StubDriver with `simulated=True`, loaded here.
      meters: what to sample.
    """

    def __init__(self, stub, meters, interval_s=0.1):
        from keras_nowcast.energy.sampler import Sampler

        self.now_s = 0.0
        self._stub = stub
        self._file = open(stub._clock, "r+b", buffering=0)  # noqa: SIM115
        self.sampler = Sampler(meters, interval_s, lambda: self.now_s, 0.0)
        self._due_s = 0.0

    def run_until(self, end_s):
        """Advances the clock."""
        while self._due_s <= end_s:
            self._set(max(self._due_s, self.now_s))
            self._due_s = self.now_s + self.sampler.poll()
        self._set(end_s)

    def boundary(self, change):
        """Opens or closes a window now; the sampler polls at once, as a woken thread does."""
        result = change()
        self._due_s = self.now_s
        return result

    def measure(self, meter, start_s, seconds, after_s):
        """Returns `Sampler.measure` of a stretch that begins at start_s; then closes the clock."""
        self.run_until(start_s)
        window = self.boundary(lambda: self.sampler.open_window("epoch", 0))
        self.run_until(start_s + seconds)
        self.boundary(lambda: self.sampler.close_window(window))
        self.run_until(start_s + seconds + after_s)
        self.close()
        return self.sampler.measure(meter.key, window)

    def close(self):
        """Closes the clock."""
        self._file.close()

    def _set(self, now_s):
        self.now_s = now_s
        self._file.seek(0)
        self._file.write(struct.pack("d", now_s))
