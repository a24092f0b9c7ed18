"""A power limit is set, reported, and restored, however the work ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
from stub_nvml import Device

from keras_nowcast.energy import nvml
from keras_nowcast.energy.power_limit import power_limit
from keras_nowcast.errors import InputError

GPU = "GPU-00000000-0000-0000-0000-000000000001"

WORK = """
import signal, sys, time
from keras_nowcast.energy.power_limit import power_limit
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job with & ignores it
ending = sys.argv[2]
with power_limit(180.0, [sys.argv[1]]) as limits:
    print(limits, flush=True)
    if ending == "exception":
        raise RuntimeError("half-way")
    if ending == "end":
        sys.exit(0)
    time.sleep(60)
"""


def settings(stub):
    """Returns the limits that were set, in order, in watts."""
    if not stub.log.exists():
        return []
    return [int(line.split()[2]) / 1000 for line in stub.log.read_text().splitlines()]


@pytest.mark.parametrize(
    "ending", ["end", "exception", "SIGINT", "SIGTERM", "SIGKILL", "SIGKILL of the group"]
)
def test_put_back_in_all_endings(stub_driver, ending):
    stub = stub_driver([Device(limits_w=(100.0, 300.0, 250.0))])
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, GPU, ending],
        env={**stub.environment, "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    told = process.stdout.readline()
    if ending.startswith("SIG"):
        assert settings(stub) == [180.0]
        kill = os.killpg if ending.endswith("group") else os.kill
        kill(process.pid, getattr(signal, ending.split()[0]))
    process.communicate(timeout=120)
    assert told.strip() == str(
        [{"uuid": GPU, "asked_w": 180.0, "enforced_w": 180.0, "former_w": 250.0}]
    )
    give_up_s = time.monotonic() + 120
    while settings(stub) != [180.0, 250.0] and time.monotonic() < give_up_s:
        time.sleep(0.05)
    assert settings(stub) == [180.0, 250.0]


def test_a_killed_guard_is_stood_in_for(stub_driver, monkeypatch):
    stub = stub_driver([Device(limits_w=(100.0, 300.0, 250.0))])
    guards = []
    popen = subprocess.Popen
    monkeypatch.setenv("LD_LIBRARY_PATH", stub.environment["LD_LIBRARY_PATH"])

    def keep(*arguments, **more):
        guards.append(popen(*arguments, **more))
        return guards[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    with stub.loaded_here(), power_limit(180.0, [GPU]):
        guards[0].kill()
    assert settings(stub) == [180.0, 250.0]


def test_a_card_that_refuses_undoes_the_others(stub_driver, monkeypatch):
    first = Device(uuid="GPU-a", limits_w=(100.0, 300.0, 250.0))
    second = Device(uuid="GPU-b", faults_at_call=(("SetPowerManagementLimit", "lost", 1, 2, 0),))
    stub = stub_driver([first, second])
    monkeypatch.setenv("LD_LIBRARY_PATH", stub.environment["LD_LIBRARY_PATH"])
    with stub.loaded_here(), pytest.raises(InputError, match="GPU-b: GPU is lost"):
        with power_limit(180.0, ["GPU-a", "GPU-b"]):
            pytest.fail("the work began")
    assert settings(stub)[:2] == [180.0, 250.0]


def test_without_permission_nothing_starts(stub_driver, monkeypatch):
    faults = (("SetPowerManagementLimit", "no_permission", 0, 1e9),)
    stub = stub_driver([Device(faults=faults)])
    monkeypatch.setenv("LD_LIBRARY_PATH", stub.environment["LD_LIBRARY_PATH"])
    with stub.loaded_here(), pytest.raises(InputError, match=r"right to set limits.*Received: 200"):
        with power_limit(200.0, [GPU]):
            pytest.fail("the work began")
    assert settings(stub) == []


@pytest.mark.parametrize("watts", [99.0, 301.0, 0.0, -5.0, float("nan")])
def test_outside_what_the_card_allows(stub_driver, watts):
    with stub_driver([Device()]).loaded_here():
        with pytest.raises(InputError, match=r"from 100 to 300 on GPU-"):
            with power_limit(watts, [GPU]):
                pytest.fail("the work began")


def test_no_driver(stub_driver):
    with stub_driver([], init_fails=True).loaded_here():
        with pytest.raises(InputError, match="`--power-limit-w` needs a GPU"):
            with power_limit(200.0, [GPU]):
                pytest.fail("the work began")


def test_limits_are_watts(stub_driver):
    with stub_driver([Device(limits_w=(100.0, 300.0, 212.5))]).loaded_here():
        assert nvml.read_power_limit(GPU) == {
            "limit_w": 212.5,
            "enforced_w": 212.5,
            "lowest_w": 100.0,
            "highest_w": 300.0,
        }
