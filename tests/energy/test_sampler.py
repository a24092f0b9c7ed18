"""The sampler's calls to a driver, with faults at given calls, on a simulated clock."""

import pytest
from stub_nvml import AVERAGING, Device, Sensor, Simulation, constant, square

from keras_nowcast.energy import nvml

COUNTER, POWER = "GetTotalEnergyConsumption", "GetPowerUsage"
LOAD = square(80.0, 300.0, 0.37)
EXACT_J = LOAD.joules(1.0, 7.0)


def measure(stub_driver, device, until_s=7.0):
    """Measures a device from 1 s on; returns (its Track, the measured parts, rows)."""
    stub = stub_driver([device], simulated=True)
    with stub.loaded_here():
        meter = nvml.GpuMeter(nvml.list_gpus()[0])
        simulation = Simulation(stub, [meter])
        sampler, rows = simulation.sampler, []
        sampler._on_row = lambda now_s, track: rows.append((now_s, track.row_watts(), track.state))
        simulation.run_until(1.0)
        window = simulation.boundary(lambda: sampler.open_window("epoch", 0))
        simulation.run_until(until_s)
        simulation.boundary(lambda: sampler.close_window(window))
        simulation.run_until(until_s + 2.0)
        simulation.close()
        parts = sampler.measure(meter.key, window)
        parts["peak_w"] = window.peak_w.get(meter.key)
        return sampler.tracks[meter.key], parts, rows


# Across a failed call, the counter's difference is kept, and a line joins the power readings.
@pytest.mark.parametrize("kind", ["lost", "unknown", "no_permission", "zero"])
@pytest.mark.parametrize("function", [COUNTER, POWER])
def test_one_call_that_fails_costs_nothing(stub_driver, function, kind):
    device = Device(wave=LOAD, faults_at_call=((function, kind, 40, 41, 0),))
    track, parts, _ = measure(stub_driver, device)
    (problem,) = track.problems.values()
    assert problem["count"] == 1
    for part in ("counter", "power"):
        assert parts[part]["seconds"] == pytest.approx(6.0, abs=0.01)
        assert parts[part]["joules"] == pytest.approx(EXACT_J, rel=0.02)


def test_one_call_of_garbage(stub_driver):
    """The counter loses the step to the invalid value and the step back."""
    device = Device(wave=LOAD, faults_at_call=((COUNTER, "garbage", 270, 271, 0),))
    track, parts, _ = measure(stub_driver, device)
    assert 1 <= len(track.problems) <= 2
    assert 5.7 < parts["counter"]["seconds"] < 6.0
    assert parts["counter"]["joules"] == pytest.approx(
        EXACT_J * parts["counter"]["seconds"] / 6, rel=0.05
    )


@pytest.mark.parametrize("kind", ["lost", "unknown", "no_permission", "not_supported", "frozen"])
def test_a_counter_that_fails_from_a_call_on(stub_driver, kind):
    """The counter's energy up to that call is kept; power continues to be read."""
    device = Device(wave=LOAD, faults_at_call=((COUNTER, kind, 270, 10**9, 0),))
    track, parts, rows = measure(stub_driver, device)
    assert track.problems
    assert 0.5 < parts["counter"]["seconds"] < 3.0
    assert parts["counter"]["joules"] == pytest.approx(
        190 * parts["counter"]["seconds"],
        rel=0.15,  # the mean of the load
    )
    assert parts["power"]["joules"] == pytest.approx(EXACT_J, rel=0.02)
    assert all(watts is not None for _, watts, _ in rows)


def test_a_power_that_freezes_at_a_call_is_absent(stub_driver):
    """Accepted for 10 s, because power may be constant; after that its energy is absent."""
    faults = ((POWER, "frozen", 400, 10**9, 0),)
    device = Device(wave=LOAD, counter_period_s=0.0, faults_at_call=faults)
    track, parts, _ = measure(stub_driver, device, until_s=41.0)
    assert any("has not changed for 10 s" in problem for problem in track.problems)
    assert 10 < parts["power"]["seconds"] < 16


def test_a_reset_at_a_call_loses_one_step(stub_driver):
    device = Device(wave=LOAD, faults_at_call=((COUNTER, "reset", 270, 271, 0),))
    track, parts, _ = measure(stub_driver, device)
    assert any("decreased" in problem for problem in track.problems)
    assert 5.7 < parts["counter"]["seconds"] < 6.0


def test_an_unsupported_counter_is_called_once(stub_driver):
    """The fault ends after the first call, but the counter is not called again."""
    device = Device(wave=LOAD, faults_at_call=((COUNTER, "not_supported", 1, 2, 0),))
    _, parts, _ = measure(stub_driver, device)
    assert parts["counter"]["seconds"] == 0
    assert parts["power"]["joules"] == pytest.approx(EXACT_J, rel=0.02)


def test_slow_values_are_read_once_per_second(stub_driver):
    faults = (("GetTemperature", "unknown", 3, 4, 0), ("GetClockInfo", "unknown", 3, 4, 0))
    _, _, rows = measure(stub_driver, Device(faults_at_call=faults))
    warm = [round(time_s, 1) for time_s, _, state in rows if state.temperature_c is None]
    assert (warm[0], warm[-1], len(warm)) == (2.0, 2.9, 10)
    assert sum(state.sm_mhz is None for _, _, state in rows) == 1
    assert {state.utilization_percent for _, _, state in rows} == {97}


def test_nothing_is_kept_of_a_device_that_is_gone(stub_driver):
    _, _, rows = measure(stub_driver, Device(faults=(("*", "lost", 3.05, 99),)))
    for time_s, watts, state in rows:
        assert (watts is None) == (state.temperature_c is None) == (time_s > 3.05)


def test_average_is_the_power_and_instant_the_peak(stub_driver):
    device = Device(
        wave=square(100.0, 300.0, 3.0), average=AVERAGING, instant=Sensor(0.1, 0.025, noise_w=0.0)
    )
    track, parts, _ = measure(stub_driver, device)
    assert track.power.window_s == 1.0
    assert parts["peak_w"] == pytest.approx(300, abs=0.5)


def test_an_instant_power_that_fails_leaves_the_average(stub_driver):
    device = Device(wave=constant(200.0), average=AVERAGING)
    track, parts, _ = measure(stub_driver, device)
    assert not track.problems
    assert parts["peak_w"] == pytest.approx(200, abs=1)
