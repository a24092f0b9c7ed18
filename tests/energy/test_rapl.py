"""CPU packages, read from a powercap tree that the test writes."""

import os

import pytest

from keras_nowcast.energy import rapl
from keras_nowcast.energy.reading import MeterError

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
