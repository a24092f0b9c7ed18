"""Compares random loads, measured by random sensors on a simulated clock, with their integral."""

import math
import random
from dataclasses import dataclass, replace

from stub_nvml import (
    A100,
    AVERAGING,
    TURING,
    V100,
    Device,
    Simulation,
    StubDriver,
    Wave,
    constant,
    ramp,
    square,
)

SENSORS = {"20/10": V100, "100/25": A100, "100/100": TURING, "100/1000": AVERAGING}


@dataclass(frozen=True)
class Outcome:
    """One measured stretch of one random load; errors in percent of the exact joules.

    Attributes:
      load: kind of wave.
      sensor: name of the power sensor, update period / averaging window in ms.
      seconds: length of the stretch.
      error: relative error of the energy.
      stated: the uncertainty (two sigma) stated with it, without the 5% of calibration, because the
        stub's sensors have no calibration error.
      coverage: fraction of the stretch that was measured.
    """

    load: str
    sensor: str
    seconds: float
    error: float
    stated: float
    coverage: float


def random_wave(rng):
    """Returns (kind, Wave): constant, ramp, square from 30 ms to 10 s, or a jagged trace."""
    kind = rng.choice(["constant", "ramp", "square", "square", "trace"])
    low_w, high_w = rng.uniform(40, 120), rng.uniform(130, 400)
    if kind == "constant":
        return kind, constant(high_w)
    if kind == "ramp":
        ends = (low_w, high_w) if rng.random() < 0.5 else (high_w, low_w)
        return kind, ramp(*ends, rng.uniform(5, 40))
    if kind == "square":
        period_s = math.exp(rng.uniform(math.log(0.03), math.log(10)))
        return kind, square(low_w, high_w, period_s, rng.uniform(0.2, 0.8))
    points, time_s = [], 0.0
    while time_s < 20:
        points.append((time_s, rng.uniform(low_w, high_w)))
        time_s += rng.choice([0.01, 0.05, 0.2, 1.0]) * rng.uniform(0.5, 1.5)
    return kind, Wave(tuple(points), time_s)


def random_case(seed, folder):
    """Measures one random load twice: with an energy counter, and with power readings alone.

    Returns:
      (Outcome of the counter, Outcome of the power readings).
    """
    rng = random.Random(seed)
    load, wave = random_wave(rng)
    name = rng.choice(list(SENSORS))
    sensor = SENSORS[name]
    sensor = replace(sensor, phase_s=rng.uniform(0, sensor.period_s))
    step_s = rng.uniform(0.02, 0.1)
    start_s, seconds = rng.uniform(0, 3), rng.uniform(10, 20)
    told = name == "100/1000" and rng.random() < 0.5  # the driver states that this is an average
    device = Device(
        wave=wave,
        usage=sensor,
        average=sensor if told else None,
        counter_period_s=step_s,
        counter_phase_s=rng.uniform(0, step_s),
    )
    outcomes = []
    for kind, variant in (("counter", device), ("power", replace(device, counter_period_s=0.0))):
        part = measure(variant, folder, start_s, seconds)[kind]
        exact = wave.joules(start_s, start_s + seconds)
        outcomes.append(
            Outcome(
                load,
                name,
                seconds,
                error=100 * (part["joules"] - exact) / exact,
                stated=200 * math.sqrt(part["variance_j2"]) / exact,
                coverage=part["seconds"] / seconds,
            )
        )
    return tuple(outcomes)


def measure(device, folder, start_s, seconds):
    """Returns `Sampler.measure` of a stretch under a simulated driver with one device."""
    from keras_nowcast.energy import nvml

    stub = StubDriver(folder, [device], simulated=True)
    with stub.loaded_here():
        meter = nvml.GpuMeter(nvml.list_gpus()[0])
        return Simulation(stub, [meter]).measure(meter, start_s, seconds, after_s=1.0)
