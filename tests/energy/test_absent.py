"""Each function of the driver and each name of pynvml may be absent alone."""

import re
from pathlib import Path

import pynvml
import pytest
from absent import SYMBOLS, measured_or_reason
from stub_nvml import A100, AVERAGING, TURING, Device, constant, ramp

from keras_nowcast.energy import choose_source, nvml

CALLED = sorted(set(re.findall(r'"(nvml[A-Z]\w+)"', Path(nvml.__file__).read_text())))
# Without these, no GPU can be found and named to the other ranks.
ESSENTIAL = ("Init", "GetCount", "GetHandleByIndex", "GetUUID")
# Names that older releases of pynvml lack.
NAMES = (
    "NVML_FI_DEV_POWER_AVERAGE",
    "NVML_FI_DEV_POWER_INSTANT",
    "NVML_CLOCK_SM",
    "NVML_TEMPERATURE_GPU",
    "NVML_TOTAL_POWER_SAMPLES",
    "NVML_POWER_SCOPE_MODULE",
    "NVMLError_NotSupported",
    "NVMLError_FunctionNotFound",
    "NVMLError_NoPermission",
    "NVMLError",
)
EVERYTHING = Device(wave=constant(210.0), usage=A100, average=AVERAGING, instant=A100, buffer=True)


def test_there_is_something_to_take_away():
    assert len(SYMBOLS) > 20 and len(CALLED) > 20
    assert "nvmlDeviceGetTotalEnergyConsumption" in SYMBOLS and "nvmlErrorString" in SYMBOLS


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    from stub_nvml import StubDriver

    return StubDriver(tmp_path_factory.mktemp("stub"), [EVERYTHING], simulated=True)


def check(found, name):
    joules, reason = found
    if joules is None:
        assert name.removesuffix("_v2") in reason or name.startswith("nvmlInit"), reason
        assert "shows no GPU" not in reason
    else:
        assert joules == pytest.approx(2100, rel=0.01)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_driver_without_a_function(stub, symbol):
    with stub.loaded_here(without=[symbol]):
        found = measured_or_reason(stub)
    check(found, symbol)
    needed = any(each in symbol for each in (*ESSENTIAL, "GetHandleByUUID"))
    assert (found[0] is None) == needed


@pytest.mark.parametrize("name", [*CALLED, *NAMES])
def test_a_pynvml_without_a_name(stub, monkeypatch, name):
    monkeypatch.delattr(pynvml, name, raising=False)
    with stub.loaded_here():
        found = measured_or_reason(stub)
    check(found, name)
    needed = any(each in name for each in (*ESSENTIAL, "GetHandleByUUID"))
    assert (found[0] is None) == needed


@pytest.mark.parametrize("function", ["TotalEnergyConsumption", "PowerUsage", "FieldValues"])
def test_only_one_sensor_is_left(stub, function):
    absent = {"TotalEnergyConsumption", "PowerUsage", "FieldValues", "Samples"} - {function}
    with stub.loaded_here(without=[f"nvmlDeviceGet{each}" for each in absent]):
        joules, reason = measured_or_reason(stub)
    assert joules == pytest.approx(2100, rel=0.01), reason


def test_no_sensor_is_left(stub):
    absent = ("TotalEnergyConsumption", "PowerUsage", "FieldValues")
    with stub.loaded_here(without=[f"nvmlDeviceGet{each}" for each in absent]):
        joules, reason = measured_or_reason(stub)
    assert joules is None
    assert "nvmlDeviceGetTotalEnergyConsumption: Function Not Found" in reason
    assert "nvmlDeviceGetPowerUsage: Function Not Found" in reason


def test_two_gpus_without_their_bus(stub_driver):
    """NVML lists them in some order; that it is a guess is stated."""
    with stub_driver([EVERYTHING, Device(uuid="GPU-2")]).loaded_here(
        without=["nvmlDeviceGetPciInfo_v3"]
    ):
        source = choose_source("nvml", environ={"CUDA_VISIBLE_DEVICES": "1"})
    assert [meter.key for meter in source.meters] == ["GPU-2"]
    assert "does not report where they are on the PCI bus" in source.reason


def test_another_package_called_pynvml(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", pytest)
    source = choose_source("auto", tensorflow_uses_gpu=True, rapl_root="nowhere")
    assert source.kind == "none" and "nvmlInit: the installed pynvml does not have" in source.reason


@pytest.mark.parametrize("average", [None, AVERAGING])
def test_a_superchip_counts_its_module(stub_driver, average):
    chip = Device(wave=ramp(200, 300, 20), instant=TURING, average=average, module_w=90.0)
    stub = stub_driver([chip], simulated=True)
    exact = chip.wave.joules(3, 13) + 90.0 * 10
    with stub.loaded_here():
        (meter,) = choose_source("nvml", environ={}).meters
        assert meter.scope == "module" and "GPU, CPU and memory together" in meter.note
        watts, _ = meter.read_watts()
        assert watts == pytest.approx(290, rel=0.05)  # in the scope of the counter
        assert measured_or_reason(stub)[0] == pytest.approx(exact, rel=0.01)
    with stub.loaded_here(without=["nvmlDeviceGetTotalEnergyConsumption"]):
        assert measured_or_reason(stub)[0] == pytest.approx(exact, rel=0.01)


def test_a_card_counts_its_gpu(stub_driver):
    with stub_driver([EVERYTHING]).loaded_here():
        (meter,) = choose_source("nvml", environ={}).meters
    assert (meter.scope, meter.note) == ("gpu", None)
