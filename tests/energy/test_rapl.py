"""CPU packages, read from a powercap tree that the test writes."""

import os

import pytest
from absent import spoil

from keras_nowcast.energy import choose_source, rapl
from keras_nowcast.energy.reading import MeterError
from keras_nowcast.energy.sampler import Sampler

RANGE_UJ = 262_143_328_850


@pytest.fixture
def tree(tmp_path):
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "uncore",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for folder, name in zones.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(name + "\n")
        (tmp_path / folder / "energy_uj").write_text("1000000\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return tmp_path


def test_packages_and_memory_once_each(tree):
    zones = rapl.list_zones(tree)
    assert sorted(zones) == ["package-0", "package-0 dram", "package-1"]
    assert zones["package-0 dram"].name == "intel-rapl:0:1"


def test_joules_and_wrap_around(tree):
    meter = rapl.RaplMeter("package-0", tree / "intel-rapl:0")
    counter = tree / "intel-rapl:0" / "energy_uj"
    first = meter.read_counter()
    counter.write_text(f"{RANGE_UJ - 500_000}\n")
    assert meter.read_counter() - first == pytest.approx((RANGE_UJ - 1_500_000) / 1e6)
    counter.write_text("2500000\n")  # 0.5 J up to the wrap, 2.5 J after it
    assert meter.read_counter() - first == pytest.approx((RANGE_UJ - 1_500_000) / 1e6 + 3.0)


@pytest.mark.parametrize("how", ["absent", "folder", b"", b"0\n", b"-5\n", b"N/A\n", b"\xff\0"])
def test_without_a_range_all_is_measured_but_a_restart(tree, how):
    spoil(tree / "intel-rapl:1" / "max_energy_range_uj", how)
    source = choose_source("rapl", rapl_root=tree)
    meter = next(each for each in source.meters if each.key == "package-1")
    assert "the range of its counter is unknown (max_energy_range_uj: " in meter.note
    counter = tree / "intel-rapl:1" / "energy_uj"

    def wraps_at_5_s(time_s):  # 40 W
        counter.write_text(f"{round(40e6 * time_s if time_s < 5 else 40e6 * (time_s - 5))}\n")

    part, problems = measured(meter, wraps_at_5_s)
    assert part["joules"] == pytest.approx(40 * part["seconds"], rel=0.01)
    assert part["seconds"] == pytest.approx(10, abs=0.3)
    assert any("decreased" in each for each in problems)


def test_with_its_range_a_restart_is_measured(tree):
    counter = tree / "intel-rapl:0" / "energy_uj"

    def wraps_at_5_s(time_s):
        counter.write_text(f"{round(40e6 * (time_s - 5)) % RANGE_UJ}\n")

    meter = rapl.RaplMeter("package-0", tree / "intel-rapl:0")
    part, problems = measured(meter, wraps_at_5_s)
    assert (part["seconds"], problems) == (pytest.approx(10, abs=0.1), {})
    assert part["joules"] == pytest.approx(400, rel=0.01)


def measured(meter, write):
    """Returns what a Sampler measures of 10 s of a counter, and its problems."""
    clock = [0.0]
    sampler = Sampler([meter], 0.1, lambda: clock[0], 0.0)
    due_s, window = 0.0, None
    while clock[0] < 12:
        clock[0] = due_s
        write(clock[0])
        if window is None and clock[0] >= 1:
            window = sampler.open_window("epoch", 0)
        elif window is not None and window.end is None and clock[0] >= 11:
            sampler.close_window(window)
        due_s = clock[0] + max(sampler.poll(), 0.01)
    return sampler.measure(meter.key, window)["counter"], sampler.tracks[meter.key].problems


@pytest.mark.parametrize("name", [b"package-\xff\n", "package-\u00fc".encode(), b"package 0 \t"])
def test_an_odd_name_is_a_name(tree, name):
    (tree / "intel-rapl:0" / "name").write_bytes(name)
    zones = rapl.list_zones(tree)
    assert len(zones) == 4 and zones["package-0"].name == "intel-rapl-mmio:0"
    assert all(each.startswith("package") and each.isprintable() for each in zones)


@pytest.mark.parametrize("zone", ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"])
@pytest.mark.parametrize("how", ["absent", "folder", b"", b" \n"])
def test_without_a_name_a_package_may_be_missed(tree, zone, how):
    spoil(tree / zone / "name", how)
    with pytest.raises(rapl.RaplUnavailable, match=f"{zone}/name"):
        rapl.list_zones(tree)


@pytest.mark.parametrize("how", ["absent", "folder", b"", b"N/A\n", b"-5\n", b"\xff\0", b"1.5"])
def test_without_a_counter_there_is_a_reason(tree, how):
    spoil(tree / "intel-rapl:1" / "energy_uj", how)
    with pytest.raises(rapl.RaplUnavailable, match="intel-rapl:1/energy_uj cannot be read"):
        rapl.list_zones(tree)
    source = choose_source("auto", tensorflow_uses_gpu=False, rapl_root=tree)
    assert source.kind == "none" and "energy_uj cannot be read" in source.reason


def test_no_tree_is_a_reason(tmp_path):
    with pytest.raises(rapl.RaplUnavailable, match="no RAPL zones"):
        rapl.list_zones(tmp_path / "nothing")


def test_denied_is_a_reason(tree, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(rapl, "_read_number", refuse)  # a file's mode never refuses root
    with pytest.raises(rapl.RaplUnavailable, match="only root"):
        rapl.list_zones(tree)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_denied_by_the_file_mode(tree):
    (tree / "intel-rapl:0" / "energy_uj").chmod(0)
    with pytest.raises(rapl.RaplUnavailable, match="only root"):
        rapl.list_zones(tree)


def test_a_vanished_zone_is_an_error_of_the_meter(tree):
    meter = rapl.RaplMeter("package-0", tree / "intel-rapl:0")
    (tree / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(MeterError, match="package-0"):
        meter.read_counter()
