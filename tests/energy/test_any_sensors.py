"""Any tree of RAPL, any driver of NVML: the true energy, or a reason that names what is absent."""

import shutil

import pytest
from absent import SYMBOLS, measured_or_reason, spoil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stub_nvml import A100, AVERAGING, TURING, V100, Device, StubDriver, constant

from keras_nowcast.energy import choose_source
from keras_nowcast.energy.sampler import Sampler

SAME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "dram", "intel-rapl:1": "package-1"}
WATTS = {"package-0": 40.0, "package-0 dram": 5.0, "package-1": 70.0}
SPOILED = ("absent", "folder", b"", b"0\n", b"-7\n", b"1e9\n", b"N/A\n", b"\xff\0")


@settings(SAME, max_examples=60)
@given(
    spoiled=st.dictionaries(
        st.tuples(
            st.sampled_from([*ZONES]),
            st.sampled_from(["name", "energy_uj", "max_energy_range_uj"]),
        ),
        st.sampled_from(SPOILED) | st.binary(max_size=5),
        max_size=2,
    ),
    wraps=st.booleans(),
)
def test_any_tree_of_rapl(tmp_path, spoiled, wraps):
    root = tmp_path / "powercap"
    shutil.rmtree(root, ignore_errors=True)
    range_uj = 300_000_000 if wraps else 262_143_328_850
    for zone, name in ZONES.items():
        (root / zone).mkdir(parents=True)
        for file, content in (
            ("name", name),
            ("energy_uj", "7"),
            ("max_energy_range_uj", range_uj),
        ):
            (root / zone / file).write_text(f"{content}\n")
    for (zone, file), how in spoiled.items():
        spoil(root / zone / file, how)
    source = choose_source("auto", tensorflow_uses_gpu=False, rapl_root=root)
    if source.kind == "none":
        assert "RAPL: " in source.reason
        assert any(f"{zone}/{file}" in source.reason for zone, file in spoiled), source.reason
        return
    assert source.kind == "rapl"
    zones = {meter.key: meter for meter in source.meters}
    for name, joules, seconds, notes in measured(root, zones, range_uj):
        watts = WATTS.get(name, 0.0)  # a name of random bytes is a package that stands still here
        assert joules == pytest.approx(watts * seconds, rel=0.02, abs=0.01), (name, spoiled)
        assert seconds == pytest.approx(10, abs=0.2) or notes, (name, spoiled)


def measured(root, zones, range_uj):
    """Yields (name, joules, seconds, problems) of 10 s of each zone, whose power is WATTS."""
    clock = [0.0]
    sampler = Sampler(list(zones.values()), 0.1, lambda: clock[0], 0.0)
    folders = dict(zip(("package-0", "package-0 dram", "package-1"), ZONES, strict=True))
    due_s, window = 0.0, None
    while clock[0] < 12:
        clock[0] = due_s
        for name, zone in folders.items():
            if name in zones:
                energy_uj = int(WATTS[name] * 1e6 * clock[0]) % range_uj
                (root / zone / "energy_uj").write_text(f"{energy_uj}\n")
        if window is None and clock[0] >= 1:
            window = sampler.open_window("epoch", 0)
        elif window is not None and window.end is None and clock[0] >= 11:
            sampler.close_window(window)
        due_s = clock[0] + max(sampler.poll(), 0.05)
    for name in zones:
        part = sampler.measure(name, window)["counter"]
        problems = sampler.tracks[name].problems
        if part is None:
            yield name, 0.0, 0.0, problems
        else:
            yield name, part["joules"], part["seconds"], problems


@settings(SAME, max_examples=60)
@given(
    absent=st.sets(st.sampled_from(SYMBOLS), max_size=4),
    usage=st.sampled_from([None, V100, A100, TURING]),
    average=st.sampled_from([None, AVERAGING]),
    instant=st.sampled_from([None, A100]),
    counter_period_s=st.sampled_from([0.0, 0.02, 0.1]),
    buffer=st.booleans(),
    module_w=st.sampled_from([0.0, 90.0]),
)
def test_any_driver_of_nvml(tmp_path, absent, module_w, **sensors):
    device = Device(wave=constant(210.0), module_w=module_w, **sensors)
    stub = StubDriver(tmp_path / "stub", [device], simulated=True)
    with stub.loaded_here(without=absent):
        joules, reason = measured_or_reason(stub)
    if joules is None:
        assert "nvml" in reason or "power field" in reason, reason
        return
    # What the fields of the module are not read for is of the GPU, as its scope states.
    scopes = {2100.0, 2100.0 + 10 * module_w}
    assert any(joules == pytest.approx(each, rel=0.01) for each in scopes)
