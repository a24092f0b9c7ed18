"""Curves of joules from counters and power readings, checked against numbers counted by hand."""

import pytest

from keras_nowcast.energy.integral import CounterCurve, PowerCurve, StepTimes


def fed(curve, rows):
    for time_s, value in rows:
        curve.add(time_s, value)
    return curve


def used(curve, start_s, end_s):
    start, end = curve.at(start_s), curve.at(end_s)
    return end.joules - start.joules, end.seconds - start.seconds


def test_counter_between_its_steps():
    # 100 W in steps of 0.1 s, polled every 0.01 s.
    looks = [(k / 100, 10.0 * (k // 10)) for k in range(0, 301)]
    joules, seconds = used(fed(CounterCurve(), looks), 0.55, 2.25)
    assert joules == pytest.approx(170, abs=0.01)
    assert seconds == pytest.approx(1.7, abs=0.001)


def test_counter_period_is_inferred():
    looks = [(k / 200, 5.0 * (k // 10)) for k in range(0, 201)]  # one step per 0.05 s
    assert fed(CounterCurve(), looks).step_s == pytest.approx(0.05)


def test_counter_reset_loses_only_the_step_it_fell_into():
    looks = [(k / 10, 1000.0 + 10 * k) for k in range(0, 21)]
    looks += [(k / 10, 10.0 * (k - 20)) for k in range(21, 41)]
    curve = fed(CounterCurve(), looks)
    joules, seconds = used(curve, 1.0, 3.0)
    assert joules == pytest.approx(190, abs=0.01)
    assert seconds == pytest.approx(1.9, abs=0.001)
    assert ["decreased" in what for _, what in curve.problems] == [True]


def test_counter_jump_is_not_believed():
    looks = [(k / 10, 10.0 * k + (1e6 if k > 20 else 0)) for k in range(0, 41)]
    joules, seconds = used(fed(CounterCurve(), looks), 1.0, 3.0)
    assert (joules, seconds) == (pytest.approx(190, abs=0.01), pytest.approx(1.9, abs=0.001))


def test_counter_goes_on_while_nobody_can_look():
    curve = fed(CounterCurve(), [(k / 10, 10.0 * k) for k in range(0, 11)])
    fed(curve, [(k / 10, 10.0 * k) for k in range(40, 61)])
    assert used(curve, 0.5, 5.5) == (pytest.approx(500, rel=0.01), pytest.approx(5.0))


def test_frozen_counter_is_absent_not_zero():
    frozen = [(k / 10, 10.0 * min(k, 20)) for k in range(0, 51)]  # 100 W, does not change after 2 s
    joules, seconds = used(fed(CounterCurve(), frozen), 1.0, 5.0)
    # Up to the last step, half a sampling interval before it was seen.
    assert (joules, seconds) == (pytest.approx(95), pytest.approx(0.95))


@pytest.mark.parametrize(("kept_up", "measured_s"), [(True, 5.0), (False, 2.0)])
def test_a_counter_that_stood_still_is_checked_by_power(kept_up, measured_s):
    counter, power = CounterCurve(), PowerCurve()
    for k in range(0, 71):
        power.add(k / 10, 100.0 + k % 2)
        shown = k if k < 20 or k >= 50 else 20
        shown -= 0 if kept_up or k < 50 else 30  # its later readings: all of the energy, or less
        counter.add(k / 10, 10.0 * shown, power)
    joules, seconds = used(counter, 1.0, 6.0)
    assert seconds == pytest.approx(measured_s, abs=0.15)
    assert joules == pytest.approx(100 * measured_s, rel=0.08)


def test_power_is_integrated_by_trapezoid():
    looks = [(k / 100, 100.0 + 10 * (k // 10)) for k in range(0, 401)]
    curve = fed(PowerCurve(window_s=1.0), looks)
    # A reading of 100 + 100 t at t is the mean over the second before: power is 150 + 100 t.
    joules, seconds = used(curve, 1.0, 3.0)
    assert joules == pytest.approx(2 * (150 + 100 * 2), rel=0.002)
    assert seconds == pytest.approx(2.0)


def test_power_gap_is_absent():
    rows = [(k / 10, 100.0 + k % 2) for k in range(0, 51) if not 20 < k < 40]
    curve = fed(PowerCurve(), rows)
    joules, seconds = used(curve, 1.0, 4.5)
    assert seconds == pytest.approx(1.5, abs=0.06)  # half a sampling interval
    assert joules == pytest.approx(100.5 * seconds, rel=0.01)
    assert [what for _, what in curve.problems] == ["no power reading for 2.0 s"]


def test_repeated_readings_are_one_measurement():
    """A sensor that updates every 0.1 s and is polled every 0.01 s shows each reading ten times."""
    rows = [(k / 100, 100.0 + 50 * ((k // 10) % 2)) for k in range(0, 301)]
    curve = fed(PowerCurve(), rows)
    assert curve.period_s == pytest.approx(0.1)
    changes = 10 / 0.1 * 2  # in 20 s
    start, end = curve.at(0.5), curve.at(2.5)
    assert (end.roughness_w2 - start.roughness_w2) / 50**2 == pytest.approx(changes / 10, abs=1)


@pytest.mark.parametrize("window_s", [0.025, 1.0])
def test_averaging_window_is_inferred_from_a_step(window_s):
    period_s, curve = 0.1, PowerCurve()
    for k in range(0, 400):
        update_s = (k // 5) * period_s
        risen = min(max((update_s - 3.0) / window_s, 0), 1)
        curve.add(k * period_s / 5, 60.0 + 240 * risen + 0.01 * ((k // 5) % 2))
    assert curve.window_s == pytest.approx(max(window_s, period_s), rel=0.2)


def test_frozen_power_is_noticed_and_absent():
    rows = [(k / 10, 100.0 + (k % 3 if k < 100 else 0)) for k in range(0, 501)]
    curve = fed(PowerCurve(), rows)
    _, seconds = used(curve, 5.0, 45.0)
    assert seconds == pytest.approx(15, abs=0.3)  # alive for 5 s, and noticed 10 s later
    assert "not changed" in curve.problems[0][1]


def test_a_power_that_never_moves_is_no_frozen_sensor():
    _, seconds = used(fed(PowerCurve(), [(k / 10, 100.0) for k in range(0, 501)]), 5.0, 45.0)
    assert seconds == pytest.approx(40)


def test_memory_is_bounded():
    curve = PowerCurve()
    for k in range(20_000):
        curve.add(k / 10, 100.0 + k % 7)
    assert len(curve._points) == 4096
    assert used(curve, 1900.0, 1950.0)[0] == pytest.approx(50 * 103, rel=0.001)


def test_period_needs_close_looks():
    times = StepTimes()
    for k in range(10):
        times.saw_change(k * 1.0, looked_s=1.0)
    assert times.period_s is None
    for k in range(10, 20):
        times.saw_change(k * 1.0, looked_s=0.05)
    assert times.period_s == pytest.approx(1.0)
