"""The monitor during real work on the real clock, with a scripted driver."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest
from stub_nvml import A100, V100, Device, StubDriver, square

from keras_nowcast.energy.merge import merge_energy
from keras_nowcast.energy.monitor import Monitor
from keras_nowcast.energy.source import choose_source

GPU = "GPU-00000000-0000-0000-0000-000000000001"
LOAD = square(80.0, 300.0, 0.37)


def monitored(**more):
    source = choose_source("nvml", environ={}, host="n1")
    return Monitor(source, **{"idle_s": 0, **more})


def exact(stub, record, name, index):
    """Returns the joules that the stub drew in a window of a record."""
    for window in record["windows"]:
        if (window["name"], window["index"]) == (name, index):
            return stub.devices[0].wave.joules(window["start_s"], window["end_s"])
    raise KeyError(name)


def run(stub, seconds, epochs=1, **more):
    """Measures `epochs` stretches; returns (record, longest step): a step sleeps 10 ms."""
    monitor = monitored(zero_unix_s=time.time() - (time.monotonic() - stub.zero_s), **more).start()
    longest_s = 0.0
    for epoch in range(epochs):
        monitor.begin("epoch", epoch)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            step_s = time.monotonic()
            time.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - step_s)
        monitor.end("epoch")
        monitor.window_joules("epoch", epoch)
    return merge_energy([monitor.stop()]), longest_s


def test_windows_on_the_real_clock(stub_driver):
    stub = stub_driver([Device(wave=LOAD, counter_period_s=0.1)])
    with stub.loaded_here():
        record, _ = run(stub, 1.5, epochs=2, idle_s=1.5)
    assert record["source"] == "nvml_counter"
    for epoch in (0, 1):
        assert record["joules_per_epoch"][epoch] == pytest.approx(
            exact(stub, record, "epoch", epoch),
            rel=0.06,  # 1.5 s with a counter that steps every 0.1 s, on a machine that may be busy
        )
    assert sum(record["joules_per_epoch"]) == pytest.approx(record["joules"], rel=1e-9)
    assert record["coverage"] == pytest.approx(1, abs=0.001)
    assert record["idle_watts"] == pytest.approx(exact(stub, record, "idle", None) / 1.5, rel=0.05)
    assert record["devices"][0]["peak_watts"] == pytest.approx(300, rel=0.01)
    assert record["devices"][0]["counter_period_s"] == pytest.approx(0.1, rel=0.15)


def test_power_alone_and_the_drivers_buffer(stub_driver):
    for buffer in (False, True):
        stub = stub_driver([Device(wave=LOAD, counter_period_s=0.0, usage=V100, buffer=buffer)])
        with stub.loaded_here():
            record, _ = run(stub, 2.0)
        assert record["source"] == "nvml_power"
        assert record["joules"] == pytest.approx(exact(stub, record, "epoch", 0), rel=0.06)


# Function, kind, from, to, in seconds since the driver was made; the work lasts from about 0 to 4.
FAULTS = {
    "counter not supported": (("GetTotalEnergyConsumption", "not_supported", 0, 99),),
    "counter lost half-way": (("GetTotalEnergyConsumption", "lost", 2, 99),),
    "counter frozen": (("GetTotalEnergyConsumption", "frozen", 1.5, 99),),
    "counter reset": (("GetTotalEnergyConsumption", "reset", 2, 99),),
    "counter garbage": (("GetTotalEnergyConsumption", "garbage", 2, 3),),
    "counter zero": (("GetTotalEnergyConsumption", "zero", 2, 3),),
    "counter forbidden": (("GetTotalEnergyConsumption", "no_permission", 0, 99),),
    "power unknown error": (("GetPowerUsage", "unknown", 1, 3),),
    "power garbage": (("GetPowerUsage", "garbage", 1, 3),),
    "power zero": (("GetPowerUsage", "zero", 1, 3),),
    "everything lost half-way": (("*", "lost", 2, 99),),
    "everything lost for a while": (("*", "lost", 1, 2.5),),
    "state unreadable": (("GetUtilizationRates", "unknown", 0, 99),),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """One run with one GPU per fault: {name: (its part of the record, its exact joules)}."""
    devices = [
        Device(uuid=f"GPU-{number:02}", bus=f"00000000:{number:02}:00.0", wave=LOAD, faults=faults)
        for number, faults in enumerate(FAULTS.values())
    ]
    stub = StubDriver(tmp_path_factory.mktemp("faulty"), devices)
    with stub.loaded_here():
        record, longest_s = run(stub, 4.0)
    assert longest_s < 0.5
    total = exact(stub, record, "epoch", 0)
    return {name: (each, total) for name, each in zip(FAULTS, record["devices"], strict=True)}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reasons(faulty, name):
    device, total = faulty[name]
    assert device["joules"] == pytest.approx(total * device["coverage"], rel=0.1)
    assert (device["coverage"] > 0.97) == (name != "everything lost half-way")
    if name == "everything lost half-way":
        assert device["coverage"] == pytest.approx(0.5, abs=0.1)
    assert bool(device["problems"]) == (name != "state unreadable")
    gone = "counter" in name and name not in {"counter reset", "counter zero"}
    assert device["source"] == ("nvml_power" if gone else "nvml_counter")


@pytest.mark.slow
def test_power_alone_lost_for_a_while_is_absent(stub_driver):
    faults = (("GetPowerUsage", "lost", 1.0, 3.0),)
    stub = stub_driver([Device(wave=LOAD, counter_period_s=0.0, faults=faults)])
    with stub.loaded_here():
        record, _ = run(stub, 4.0)
    assert record["coverage"] == pytest.approx(0.5, abs=0.05)
    assert record["joules"] == pytest.approx(0.5 * exact(stub, record, "epoch", 0), rel=0.1)
    assert "GPU is lost" in record["coverage_reason"]


def test_lost_from_the_beginning(stub_driver):
    stub = stub_driver([Device(faults=(("*", "lost", 0, 99),))])
    with stub.loaded_here():
        record, _ = run(stub, 0.5)
    assert record["joules"] is None and "GPU is lost" in record["joules_reason"]


@pytest.mark.slow
def test_a_library_without_the_counter(stub_driver):
    stub = stub_driver([Device(wave=LOAD)], without=("counter",))
    with stub.loaded_here():
        record, _ = run(stub, 2.0)
    assert record["source"] == "nvml_power"
    assert record["joules"] == pytest.approx(exact(stub, record, "epoch", 0), rel=0.06)
    assert "Function Not Found" in record["problems_reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"faults": (("*", "hang", 1.0, 3.0),)},
        {"faults_at_call": (("GetTotalEnergyConsumption", "hang", 100, 101, 2.0),)},
        {"faults_at_call": (("GetUtilizationRates", "hang", 2, 3, 2.0),)},
    ],
)
def test_a_hanging_driver_delays_no_step(stub_driver, faults):
    stub = stub_driver([Device(wave=LOAD, **faults)])
    with stub.loaded_here():
        record, longest_s = run(stub, 4.0)
    assert longest_s < 0.5  # of a hang of two seconds
    if "GetUtilizationRates" not in str(faults):  # no joule depends on it
        assert "s to answer" in record["problems_reason"]
    assert record["joules"] == pytest.approx(exact(stub, record, "epoch", 0), rel=0.02)


@pytest.mark.slow
def test_a_driver_that_hangs_at_the_end_does_not_hold_it(stub_driver):
    faults = (("*", "hang", 1.0, 7.0),)
    stub = stub_driver([Device(wave=LOAD, faults=faults)])
    with stub.loaded_here():
        began_s = time.monotonic()
        record, _ = run(stub, 2.0)
        assert time.monotonic() - began_s < 6
        assert "does not answer" in record["problems_reason"]
        assert record["coverage"] < 0.7
        time.sleep(max(0.0, 7.5 - (time.monotonic() - stub.zero_s)))  # so that its thread ends


@pytest.mark.slow
def test_power_csv_integrates_to_the_joules(stub_driver, tmp_path):
    stub = stub_driver([Device(wave=square(100.0, 250.0, 2.0), usage=A100)])
    with stub.loaded_here():
        record, _ = run(stub, 5.0, trace_path=tmp_path / "power.csv")
    window = next(each for each in record["windows"] if each["name"] == "epoch")
    joules, last = 0.0, None
    with open(tmp_path / "power.csv", newline="") as file:
        for row in csv.DictReader(file):
            point = (float(row["time_s"]), float(row["watts"]))
            if last is not None and last[0] >= window["start_s"] and point[0] <= window["end_s"]:
                joules += (point[1] + last[1]) / 2 * (point[0] - last[0])
            last = point
            assert row["host"] == "n1" and row["device"] == GPU
            assert row["throttle_reasons"] == "sw_power_cap" and row["memory_mib"] == "3072.0"
    assert joules == pytest.approx(record["joules"], rel=0.06)


KILLED = """
import sys, time
from keras_nowcast.energy.monitor import Monitor
monitor = Monitor("nvml", idle_s=0, trace_path=sys.argv[1]).start()
print("started", flush=True)
time.sleep(60)
"""


def test_sigkill_leaves_all_but_the_last_second(stub_driver, tmp_path):
    path = tmp_path / "power.csv"
    environment = {**stub_driver([Device()]).environment, "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path], env=environment, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open(path, newline="") as file:
        times = [float(row["time_s"]) for row in csv.DictReader(file)]
    assert times[-1] > 1.5
    assert len(times) >= 15


def test_as_a_context_manager(stub_driver):
    stub = stub_driver([Device(wave=LOAD)])
    with stub.loaded_here(), monitored() as monitor:
        assert monitor.joules is None
        with monitor.window("part"):
            time.sleep(0.3)
        time.sleep(0.3)
        assert monitor.watts == pytest.approx(190, abs=115)
    assert monitor.joules == pytest.approx(monitor.record["mean_watts"] * 0.6, rel=0.1)
    (part,) = [each for each in monitor.record["windows"] if each["name"] == "part"]
    assert part["end_s"] - part["start_s"] == pytest.approx(0.3, abs=0.1)


def test_synchronizes_before_each_boundary(stub_driver):
    calls = []
    with stub_driver([Device()]).loaded_here():
        monitor = monitored(synchronize=lambda: calls.append(1)).start()
        monitor.begin("epoch", 0)
        monitor.end("epoch")
        monitor.stop()
    assert len(calls) == 2


def test_without_a_source_nothing_is_measured():
    with Monitor("none") as monitor:
        pass
    assert monitor.joules is None
    assert monitor.record["joules_reason"] == "no measurement was requested"


def test_estimate_measures_this_process():
    with Monitor("estimate", watts_per_core=10.0, idle_s=0) as monitor:
        began = time.process_time()
        while time.process_time() - began < 0.5:
            pass
    assert monitor.joules == pytest.approx(5.0, rel=0.2)
    assert monitor.record["source"] == "estimate"


def test_an_estimate_has_no_idle_baseline():
    # It would hold the CPU time of a process that sleeps, which says nothing of the idle power.
    with Monitor("estimate", watts_per_core=10.0, idle_s=1) as monitor:
        sum(range(10**5))
    assert monitor.record["idle_watts"] is None
    assert monitor.record["joules_above_idle"] is None
    assert monitor.record["joules"] > 0


FOUR_RANKS = """
import json, sys, time
from keras_nowcast.energy.source import choose_source, first_users
from keras_nowcast.energy.monitor import Monitor
host, local_rank = sys.argv[1], int(sys.argv[2])
source = choose_source("nvml", local_rank=local_rank, host=host)
monitor = Monitor(source, idle_s=0).start()
with monitor.window("epoch", 0):
    time.sleep(1.0)
print(json.dumps(monitor.stop()))
"""


def test_four_ranks_on_two_hosts(stub_driver):
    """Three GPUs: two on n1, and one on n2 that both of its ranks use."""
    first, second = Device(uuid="GPU-a", bus="00000000:1A:00.0"), Device(uuid="GPU-b")
    hosts = {"n1": stub_driver([second, first]), "n2": stub_driver([first])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", FOUR_RANKS, host, str(local_rank)],
            env={**hosts[host].environment, "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in hosts
        for local_rank in (0, 1)
    ]
    results = [json.loads(rank.communicate()[0]) for rank in ranks]
    record = merge_energy(results)
    assert [(each["host"], each["uuid"]) for each in record["devices"]] == [
        ("n1", "GPU-a"),
        ("n1", "GPU-b"),
        ("n2", "GPU-a"),
    ]
    joules = [results[rank]["devices"][0]["windows"][0]["counter"]["joules"] for rank in (0, 1, 2)]
    assert record["joules"] == sum(joules)
    assert record["mean_watts"] == pytest.approx(600, rel=0.02)  # 200 W each
