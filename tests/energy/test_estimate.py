"""Energy estimated from an assumed power."""

import pytest

from keras_nowcast.energy import estimate
from keras_nowcast.errors import InputError


def test_joules_are_watts_times_cpu_time():
    seconds = iter([1.5, 4.0])
    meter = estimate.CpuTimeMeter(12.0, cpu_seconds=lambda: next(seconds))
    assert [meter.read_counter(), meter.read_counter()] == [18.0, 48.0]


@pytest.mark.parametrize(
    ("model", "watts"),
    [
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", 7.5),
        ("Intel(R) Xeon(R) CPU E5-2698 v4 @ 2.20GHz", 6.75),
        ("AMD EPYC 7763 64-Core Processor", 4.375),
        ("INTEL(R) XEON(R) PLATINUM 8480+", 6.25),
    ],
)
def test_table(tmp_path, model, watts):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name\t: {model}\n")
    assert estimate.stated_watts_per_core(tmp_path / "cpuinfo") == watts


def test_an_unknown_processor_needs_a_stated_power(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Imaginary 9000\n")
    with pytest.raises(InputError, match=r"Received: Imaginary 9000.*--watts-per-core"):
        estimate.stated_watts_per_core(tmp_path / "cpuinfo")


def test_an_unknown_processor_may_take_the_median_of_the_table(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: A processor of tomorrow\n")
    assert not estimate.is_in_table(tmp_path / "cpuinfo")
    # The middle two of twelve: 7.5 W (EPYC 7402, Gold 6148) and 7.5 W (Gold 6248).
    found = estimate.stated_watts_per_core(tmp_path / "cpuinfo", or_median=True)
    per_core = sorted(w / c for w, c in estimate._DESIGN_WATTS_AND_CORES.values())
    assert found == pytest.approx((per_core[5] + per_core[6]) / 2)
