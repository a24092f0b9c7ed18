"""Merging the measurements of several processes into one record."""

import pytest

from keras_nowcast.energy.merge import joules_of, merge_energy


def part(joules, seconds, variance_j2=0.0):
    return {"joules": joules, "seconds": seconds, "variance_j2": variance_j2}


def window(index, counter, power=None, name="epoch", start_s=0.0, end_s=None, peak_w=None):
    end_s = start_s + counter["seconds"] if end_s is None else end_s
    return {
        "name": name,
        "index": index,
        "start_s": start_s,
        "end_s": end_s,
        "peak_w": peak_w,
        "counter": counter,
        "power": power,
    }


def device(uuid, *windows, kind="nvml", problems=None):
    return {
        "uuid": uuid,
        "name": "V100",
        "note": None,
        "counter_source": "nvml_counter" if kind == "nvml" else kind,
        "power_source": "nvml_power" if kind == "nvml" else None,
        "calibration_percent": None if kind == "estimate" else 5.0,
        "counter_period_s": 0.02,
        "power_period_s": 0.02,
        "power_window_s": 0.02,
        "problems": problems or {},
        "windows": list(windows),
    }


def result(host, *devices, source="nvml", reason="because"):
    return {
        "source": source,
        "reason": reason,
        "host": host,
        "trace_problem": None,
        "devices": list(devices),
    }


def test_sum_over_distinct_devices_of_all_hosts():
    """Four ranks on two hosts; two of them share a GPU; GPUs of both hosts have the same UUID."""

    def ranks(first, second):
        return [window(0, part(first, 10.0)), window(1, part(second, 20.0), start_s=10.0)]

    record = merge_energy(
        [
            result("n1", device("GPU-a", *ranks(1000.0, 2000.0))),
            result("n1", device("GPU-a", *ranks(1001.0, 2001.0))),  # the same card
            result("n2", device("GPU-a", *ranks(3000.0, 5000.0))),  # another card
            result("n2", device("GPU-b", *ranks(500.0, 700.0))),
        ],
        samples=610,
    )
    assert record["joules"] == 1000 + 2000 + 3000 + 5000 + 500 + 700
    assert record["joules_per_epoch"] == [4500.0, 7700.0]
    assert record["coverage_per_epoch"] == [1.0, 1.0]
    assert record["joules_per_sample"] == 20.0
    assert record["mean_watts"] == pytest.approx(12200 / 30)
    assert record["coverage"] == 1.0
    assert record["source"] == "nvml_counter"
    assert [(d["host"], d["uuid"], d["joules"]) for d in record["devices"]] == [
        ("n1", "GPU-a", 3000.0),
        ("n2", "GPU-a", 8000.0),
        ("n2", "GPU-b", 1200.0),
    ]


def test_a_run_that_resumed_on_another_host():
    """Two starts on two hosts, one after the other, each at 100 W: 100 W, not 200."""

    def start(host, index, start_s):
        idle = window(None, part(50.0, 1.0), name="idle", start_s=start_s)
        epoch = window(index, part(1000.0, 10.0), start_s=start_s + 1)
        return result(host, device("GPU-a", idle, epoch))

    record = merge_energy([start("n1", 0, 0.0), start("n2", 1, 100.0)], samples=100, seconds=20.0)
    assert record["joules"] == 2000.0
    assert record["mean_watts"] == pytest.approx(100.0)
    assert record["idle_watts"] == pytest.approx(50.0)
    assert record["coverage"] == 1.0
    assert [(w["name"], w["index"], w["start_s"]) for w in record["windows"]] == [
        ("idle", None, 0.0),
        ("epoch", 0, 1.0),
        ("epoch", 1, 101.0),
    ]


def test_a_start_without_a_meter_lowers_coverage():
    """Half of the time and of the samples has no joules; joules per sample do not change."""
    nothing = result("n1", source="none")
    measured = result("n1", device("GPU-a", window(1, part(1000.0, 10.0), start_s=10.0)))
    record = merge_energy(
        [nothing, measured], samples=200, seconds=20.0, epoch_seconds=[10.0, 10.0]
    )
    assert record["coverage"] == pytest.approx(0.5)
    assert record["coverage_reason"]
    assert record["joules_per_sample"] == pytest.approx(10.0)
    assert record["joules_per_epoch"] == [None, 1000.0]
    assert record["coverage_per_epoch"] == [None, 1.0]


def test_the_coverage_of_each_epoch_is_its_own():
    """A gap in epoch 2; a device that was not read in epoch 3; half of epoch 4 in no window.

    Both stretches of an epoch count, before and after a checkpoint.
    """
    first = [
        window(0, part(400.0, 4.0)),
        window(0, part(600.0, 6.0), start_s=5.0),
        window(1, part(600.0, 6.0), start_s=11.0, end_s=21.0),
        window(2, part(1000.0, 10.0), start_s=21.0),
        window(3, part(500.0, 5.0), start_s=36.0),
    ]
    second = [
        {**each, "counter": part(each["counter"]["joules"], each["end_s"] - each["start_s"])}
        for each in first
    ]
    second[3] = window(2, part(0.0, 0.0), start_s=21.0, end_s=31.0)
    results = [result("n1", device("GPU-a", *first)), result("n1", device("GPU-b", *second))]
    record = merge_energy(results, epoch_seconds=[10.0] * 4)
    assert record["joules_per_epoch"] == [2000.0, 1200.0, 1000.0, 1000.0]
    assert record["coverage_per_epoch"] == pytest.approx([1.0, 0.8, 0.5, 0.5])


def test_packages_once_a_host():
    package = device("package-0", window(0, part(900.0, 10.0)), kind="rapl")
    results = [result("n1", package, source="rapl"), result("n1", package, source="rapl")]
    assert merge_energy(results)["joules"] == 900.0
    results[1] = {**results[1], "host": "n2"}
    assert merge_energy(results)["joules"] == 1800.0


def test_the_first_that_measured_it():
    nothing = window(0, part(0.0, 0.0), end_s=10.0)
    results = [
        result("n1", device("GPU-a", nothing)),
        result("n1", device("GPU-a", window(0, part(7.0, 10.0)))),
    ]
    assert merge_energy(results)["joules"] == 7.0


def test_idle_and_above_idle():
    windows = [window(None, part(100.0, 2.0), name="idle"), window(0, part(2000.0, 10.0))]
    record = merge_energy([result("n1", device("GPU-a", *windows))])
    assert (record["idle_watts"], record["joules_above_idle"]) == (50.0, 1500.0)
    assert record["joules"] == 2000.0


def test_validation_is_no_training():
    windows = [window(0, part(2000.0, 10.0)), window(0, part(9.0, 1.0), name="validation")]
    assert merge_energy([result("n1", device("GPU-a", *windows))])["joules"] == 2000.0


def test_crosscheck_and_uncertainty():
    close = window(0, part(1000.0, 10.0, 25.0), part(1010.0, 10.0, 100.0))
    record = merge_energy([result("n1", device("GPU-a", close))])
    assert record["crosscheck_joules"] == 1010.0
    # Counter 1% at two sigma; the 2% of the power readings explain the difference of 1%.
    assert record["repeatability_percent"] == pytest.approx(1.0)
    assert record["uncertainty_percent"] == pytest.approx((25 + 1) ** 0.5)

    far = window(0, part(1000.0, 10.0, 25.0), part(1200.0, 10.0, 0.0))
    record = merge_energy([result("n1", device("GPU-a", far))])
    assert record["repeatability_percent"] == pytest.approx((1 + 20**2) ** 0.5)


def test_a_counter_that_died_gives_way_to_power():
    dead = window(0, part(100.0, 1.0), part(1000.0, 10.0), end_s=10.0)
    record = merge_energy([result("n1", device("GPU-a", dead))])
    assert (record["source"], record["joules"], record["coverage"]) == ("nvml_power", 1000.0, 1.0)
    assert record["joules_per_epoch"] == [1000.0]
    assert joules_of([result("n1", device("GPU-a", dead))], "epoch", 0) == 1000.0
    assert record["crosscheck_joules"] is None and record["crosscheck_joules_reason"]


def test_one_rule_for_an_epoch_and_for_the_run():
    """A reset in epoch 2 costs the counter 1.5% of the run: all epochs use power readings."""
    first = window(0, part(1000.0, 10.0), part(1010.0, 10.0))
    second = window(1, part(970.0, 9.7), part(1020.0, 10.0), start_s=10.0, end_s=20.0)
    begun, whole = ([result("n1", device("GPU-a", *w))] for w in ([first], [first, second]))
    assert joules_of(begun, "epoch", 0) == 1000.0
    assert merge_energy(whole)["joules_per_epoch"] == [1010.0, 1020.0]
    assert [joules_of(whole, "epoch", epoch) for epoch in (0, 1)] == [1010.0, 1020.0]
    assert joules_of(whole, "epoch", 2) is None


def test_what_was_not_measured_is_absent_with_its_reason():
    problems = {"nvml: GPU is lost": {"count": 80, "first_s": 1.0, "last_s": 9.0}}
    lost = window(0, part(0.0, 0.0), part(0.0, 0.0), end_s=10.0)
    record = merge_energy([result("n1", device("GPU-a", lost, problems=problems))], samples=3)
    assert record["source"] == "none"
    for name in ("joules", "mean_watts", "idle_watts", "joules_per_sample", "crosscheck_joules"):
        assert record[name] is None
        assert "GPU is lost" in record[f"{name}_reason"]
    assert record["joules_per_epoch"] == [None]
    assert record["coverage"] == 0.0


def test_a_gap_lowers_the_coverage():
    problems = {"no power reading for 4.0 s": {"count": 1, "first_s": 6.0, "last_s": 6.0}}
    gap = window(0, part(600.0, 6.0), end_s=10.0)
    record = merge_energy([result("n1", device("GPU-a", gap, problems=problems))])
    assert (record["joules"], record["mean_watts"], record["coverage"]) == (600.0, 100.0, 0.6)
    assert "no power reading for 4.0 s" in record["coverage_reason"]


def test_an_estimate_is_called_one():
    cpu = device("CPU time of process 0", window(0, part(50.0, 10.0)), kind="estimate")
    record = merge_energy([result("n1", cpu, source="estimate")])
    assert (record["source"], record["joules"]) == ("estimate", 50.0)
    assert record["uncertainty_percent"] is None
    assert "estimate" in record["uncertainty_percent_reason"]


def test_no_source():
    record = merge_energy([result("n1", source="none", reason="no sensor here")])
    assert record["joules"] is None and record["source"] == "none"
    assert record["joules_reason"] == "no sensor here"
    assert record["devices"] == []


def test_what_no_meter_read_is_named():
    """A job of three hosts: one without sensors, one whose GPUs no meter reads."""
    whole = window(0, part(1000.0, 10.0))
    of_cpus = result("n3", device("package-0", whole, kind="rapl"), source="rapl")
    record = merge_energy(
        [
            result("n1", device("GPU-a", whole)),
            result("n1", source="nvml"),  # shares the GPU of the rank above
            result("n2", source="none", reason="NVML: no driver"),
            of_cpus | {"not_included": ["the GPUs that TensorFlow uses"]},
        ]
    )
    assert record["joules"] == 2000.0
    assert record["not_included"] == ["the GPUs that TensorFlow uses", "everything on n2"]
    assert "NVML: no driver" in record["source_reason"]
    assert merge_energy([result("n1", device("GPU-a", whole))])["not_included"] == []


def test_the_scope_of_a_device_is_recorded():
    whole = window(0, part(1000.0, 10.0))
    devices = [device("GPU-a", whole) | {"scope": "module"}, device("GPU-b", whole)]
    record = merge_energy([result("n1", *devices)])
    # The second is of a checkpoint of an earlier version.
    assert [each["scope"] for each in record["devices"]] == ["module", None]
