"""The power trace, power.csv."""

import csv
import os
import time

import pytest

from keras_nowcast.energy.reading import Reading
from keras_nowcast.energy.trace import COLUMNS, PowerTrace, join_traces, trace_path

STATE = Reading(97, 3072.0, 1380, 61, "sw_power_cap")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_the_contract():
    assert COLUMNS[:8] == (
        "time_s",
        "host",
        "device",
        "watts",
        "utilization_percent",
        "memory_mib",
        "sm_mhz",
        "temperature_c",
    )


def test_rows(tmp_path):
    trace = PowerTrace(tmp_path / "power.csv", time.time() - 100)
    trace.add(time.monotonic(), "n1", "GPU-a", 201.5, STATE)
    trace.add(time.monotonic(), "n1", "GPU-a", None, Reading())
    trace.close()
    first, second = rows_of(tmp_path / "power.csv")
    assert float(first.pop("time_s")) == pytest.approx(100, abs=0.5)
    assert first == {
        "host": "n1",
        "device": "GPU-a",
        "watts": "201.500",
        "utilization_percent": "97",
        "memory_mib": "3072.0",
        "sm_mhz": "1380",
        "temperature_c": "61",
        "throttle_reasons": "sw_power_cap",
    }
    assert second["watts"] == second["temperature_c"] == ""


def test_two_processes_append_to_one_file(tmp_path):
    zero = time.time()
    traces = [PowerTrace(tmp_path / "power.csv", zero) for _ in range(2)]
    for k in range(50):
        for number, trace in enumerate(traces):
            trace.add(time.monotonic(), "n1", f"GPU-{number}", float(k), STATE)
            if k % 7 == number:
                trace.flush()
    for trace in traces:
        trace.close()
    rows = rows_of(tmp_path / "power.csv")
    assert len(rows) == 100
    assert {row["throttle_reasons"] for row in rows} == {"sw_power_cap"}


def test_a_disk_that_cannot_be_written_is_a_problem_not_an_error(tmp_path):
    trace = PowerTrace(tmp_path / "missing" / "power.csv", 0.0)
    trace.add(time.monotonic(), "n1", "GPU-a", 1.0, STATE)
    trace.close()
    assert "power trace" in trace.problem


def test_a_full_disk(tmp_path):
    trace = PowerTrace(tmp_path / "power.csv", 0.0)
    trace._file = os.open("/dev/full", os.O_WRONLY)
    trace.add(time.monotonic(), "n1", "GPU-a", 1.0, STATE)
    trace.flush()
    trace.add(time.monotonic(), "n1", "GPU-a", 1.0, STATE)
    trace.close()
    assert "No space left" in trace.problem


def test_hosts_have_files_of_their_own_joined_by_time(tmp_path):
    assert trace_path(tmp_path, "n1", "n1").name == "power.csv"
    for host, times in (("n1", (0.0, 2.0)), ("n2", (1.0, 3.0))):
        trace = PowerTrace(trace_path(tmp_path, host, "n1"), time.time() - time.monotonic())
        for time_s in times:
            trace.add(time_s, host, "GPU-a", 100.0, STATE)
        trace.close()
    (tmp_path / "power.n2.csv").open("a").write("3.5,n2,GPU-a,10")  # truncated by a crash
    join_traces(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["power.csv"]
    rows = rows_of(tmp_path / "power.csv")
    assert [(row["host"], round(float(row["time_s"]))) for row in rows] == [
        ("n1", 0),
        ("n2", 1),
        ("n1", 2),
        ("n2", 3),
    ]
    join_traces(tmp_path)
    assert rows_of(tmp_path / "power.csv") == rows


@pytest.mark.parametrize("odd", ["power.csv", "power.n2.csv"])
@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", bytes(range(256))])
def test_a_file_that_is_no_trace_is_left_alone(tmp_path, odd, content):
    """Two hosts; the file of one was replaced between two starts."""
    for name in ("power.csv", "power.n2.csv"):
        PowerTrace(tmp_path / name, 0.0).close()
    (tmp_path / odd).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    join_traces(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
