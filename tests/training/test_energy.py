"""Energy of complete runs, compared with the known power of the stub driver."""

import contextlib
import csv
import importlib.util
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "energy"))
import stub_nvml  # noqa: E402
from launch import HORUN, LONGEST_S, ROOT, run  # noqa: E402

from keras_nowcast.config import RunConfig  # noqa: E402
from keras_nowcast.records import RunFolder  # noqa: E402
from keras_nowcast.training import energy  # noqa: E402
from keras_nowcast.training.distributed import World  # noqa: E402
from keras_nowcast.training.progress import Progress  # noqa: E402

TRAIN = [sys.executable, ROOT / "experiments" / "train.py"]
SMALL = ["--depth", "2", "--filters", "4", "--precision", "float32", "--power-source", "nvml"]
FIRST = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
SECOND = "GPU-bbbbbbbb-0000-0000-0000-000000000002"


def two_gpus():
    """Two GPUs of constant power, which NVML lists in reverse order of the PCI bus."""
    return [
        stub_nvml.Device(uuid=FIRST, bus="00000000:65:00.0", wave=stub_nvml.constant(250.0)),
        stub_nvml.Device(uuid=SECOND, bus="00000000:17:00.0", wave=stub_nvml.constant(100.0)),
    ]


def environment(stub, **more):
    return {**stub.environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **more}


@pytest.fixture
def train_here(small_sevir, script_here, monkeypatch, float32_after):
    """Trains in this process, under a stub driver if one is given; returns what was printed."""

    def train(run_dir, *flags, stub=None):
        if stub is not None:
            monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        with contextlib.nullcontext() if stub is None else stub.loaded_here():
            done = script_here("train.py", "--data", small_sevir, "--run-dir", run_dir, *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return train


def trace(run_dir):
    with open(run_dir / "power.csv", newline="") as file:
        return list(csv.DictReader(file))


def joules_in_table(run_dir):
    with open(run_dir / "epochs.csv", newline="") as file:
        return [float(row["joules"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed")
def test_two_ranks_measure_two_gpus_once_each(small_sevir, tmp_path, stub_driver):
    stub = stub_driver(two_gpus())
    run_dir = tmp_path / "run"
    command = [
        *HORUN,
        "-np",
        "2",
        "--gloo",
        *TRAIN,
        "--data",
        small_sevir,
        "--run-dir",
        run_dir,
        *SMALL,
        "--epochs",
        "3",
        "--batch-per-replica",
        "1",
        "--power-limit-w",
        "200",
    ]
    done = run(command, env=environment(stub, CUDA_VISIBLE_DEVICES="0,1"))
    assert done.returncode == 0, done.stdout + done.stderr

    record = json.loads((run_dir / "record.json").read_text())
    energy, seconds = record["energy"], record["training"]["seconds"]
    assert energy["source"] == "nvml_counter"
    # Rank 0 has the first GPU by PCI bus, which is the second that NVML lists.
    assert [each["uuid"] for each in energy["devices"]] == [SECOND, FIRST]
    by_device = {each["uuid"]: each for each in energy["devices"]}
    assert by_device[FIRST]["mean_watts"] == pytest.approx(250, rel=0.02)
    assert by_device[SECOND]["mean_watts"] == pytest.approx(100, rel=0.02)
    # Each rank has separate windows; a boundary is known to within a counter step, 20 ms.
    for uuid, watts in ((FIRST, 250), (SECOND, 100)):
        device = by_device[uuid]
        steps_j = watts * 0.02 * 2 * 3
        assert device["joules"] == pytest.approx(watts * device["seconds"], abs=steps_j)
    assert energy["joules"] == sum(each["joules"] for each in energy["devices"])
    assert energy["joules"] == pytest.approx(sum(energy["joules_per_epoch"]), rel=0.01)
    assert energy["crosscheck_joules"] == pytest.approx(energy["joules"], rel=0.02)
    assert energy["idle_watts"] == pytest.approx(350, rel=0.02)
    assert energy["coverage"] > 0.95
    assert energy["joules_per_sample"] == pytest.approx(
        energy["joules"] / (record["training"]["samples_per_second"] * seconds)
    )
    assert joules_in_table(run_dir) == energy["joules_per_epoch"]
    assert {row["device"] for row in trace(run_dir)} == {FIRST, SECOND}
    assert " J, " in done.stdout and " W" in done.stdout

    assert {(each["uuid"], each["enforced_w"]) for each in energy["power_limits"]} == {
        (FIRST, 200.0),
        (SECOND, 200.0),
    }
    settings = [line.split()[1:3] for line in stub.log.read_text().splitlines()]
    assert sorted(settings[:2]) == sorted([[FIRST, "200000"], [SECOND, "200000"]])
    assert sorted(settings[2:]) == sorted([[FIRST, "300000"], [SECOND, "300000"]])


@pytest.mark.slow
def test_the_trace_integrates_to_the_record(train_here, tmp_path, stub_driver):
    """The counter is reset once, at its 150th call, wherever the run is by then."""
    reset = ("GetTotalEnergyConsumption", "reset", 150, 151, 0)
    wave = stub_nvml.ramp(60, 260, 60)
    stub = stub_driver([stub_nvml.Device(wave=wave, faults_at_call=(reset,))])
    run_dir = tmp_path / "run"
    flags = ("--epochs", 4, "--batch-per-replica", 1, "--power-interval-s", 0.01)
    train_here(run_dir, *SMALL, *flags, stub=stub)
    energy = json.loads((run_dir / "record.json").read_text())["energy"]
    points = [(float(row["time_s"]), float(row["watts"])) for row in trace(run_dir) if row["watts"]]
    windows = [each for each in energy["windows"] if each["name"] == "epoch"]
    by_trace = 0.0
    for (start, first), (end, last) in zip(points, points[1:], strict=False):
        inside = sum(
            max(0.0, min(end, each["end_s"]) - max(start, each["start_s"])) for each in windows
        )
        by_trace += (first + last) / 2 * inside
    assert by_trace == pytest.approx(energy["joules"], rel=0.05)
    assert joules_in_table(run_dir) == energy["joules_per_epoch"]
    assert "decreased" in energy["problems_reason"]


@pytest.mark.slow
def test_killed_half_way_the_trace_is_kept(start, small_sevir, tmp_path, stub_driver):
    stub = stub_driver([stub_nvml.Device()])
    run_dir = tmp_path / "run"
    flags = [*SMALL, "--depth", "1", "--epochs", "1000000"]
    command = [*TRAIN, "--data", small_sevir, "--run-dir", run_dir, *flags]
    job = start(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment(stub, CUDA_VISIBLE_DEVICES="0")},
    )

    def written():
        return trace(run_dir)[:-1] if (run_dir / "power.csv").exists() else []

    def wait_for(rows):
        give_up = time.monotonic() + LONGEST_S
        while len(written()) < rows:
            assert job.poll() is None and time.monotonic() < give_up
            time.sleep(0.1)

    while not list(run_dir.glob("checkpoint/*.npz")):
        wait_for(1)
    before = len(written())
    wait_for(before + 10)  # the trace is written during the run
    rows = written()
    job.send_signal(signal.SIGKILL)
    job.wait(timeout=LONGEST_S)
    assert written()[: len(rows)] == rows
    times = [float(row["time_s"]) for row in rows]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert min(gaps) >= 0 and statistics.median(gaps) < 1.5


def test_a_limit_that_may_not_be_set_is_refused_before_training(small_sevir, script_here, tmp_path):
    words = ("--data", small_sevir, "--run-dir", tmp_path / "run", "--power-limit-w", 200)
    done = script_here("train.py", *words)
    assert done.returncode == 2
    assert "`--power-limit-w` must be used with GPUs that are read through NVML" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_energy_claims_are_computed_under_the_driver(
    train_here, script_here, tmp_path, stub_driver
):
    stub = stub_driver([stub_nvml.Device(wave=stub_nvml.constant(200.0))])
    cells = (("1", "float32"), ("1", "mixed_bfloat16"), ("2", "float32"))
    shared = ("--depth", 4, "--epochs", 2, "--batch-per-replica", 1)
    shared += ("--power-source", "nvml", "--power-interval-s", 0.02)
    for filters, precision in cells:
        run_dir = tmp_path / "runs" / f"{filters}{precision}"
        train_here(run_dir, *shared, "--filters", filters, "--precision", precision, stub=stub)
    drawn = script_here("plot_figures.py", tmp_path / "runs", "--out", tmp_path / "out")
    assert drawn.returncode == 0, drawn.stderr
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["energy_source"] == "nvml_counter" and row["energy_reason"] == ""
        assert float(row["mean_watts"]) == pytest.approx(200, rel=0.05)
        assert float(row["joules_per_epoch"]) > 0
    # Power is constant, so energy is proportional to time.
    by_cell = {(row["filters"], row["precision"]): float(row["joules_per_sample"]) for row in rows}
    ratio = by_cell["1", "mixed_bfloat16"] / by_cell["1", "float32"]
    more = 100 * (by_cell["2", "float32"] / by_cell["1", "float32"] - 1)
    said = " ".join(drawn.stdout.split())
    assert f"energy was {ratio:.2f} times that of float32" in said
    assert f"{more:+.1f}% energy" in said
    assert not re.search("energy.{0,3}not measured here", said, re.IGNORECASE)
    assert "ESTIMATE" not in said
    assert (tmp_path / "out" / "power_traces.png").exists()
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"{more:+.1f}% energy" in report


@pytest.mark.slow
def test_an_estimate_is_marked_as_one_wherever_it_shows(train_here, script_here, tmp_path):
    sizes = ("--depth", 1, "--filters", 2, "--epochs", 2, "--precision", "float32")
    estimate = ("--power-source", "estimate", "--watts-per-core", 5)
    assert "(estimate)" in train_here(tmp_path / "run", *sizes, *estimate)
    with open(tmp_path / "run" / "epochs.csv", newline="") as file:
        assert {row["joules_estimated"] for row in csv.DictReader(file)} == {"1"}
    assert all(row["device"].startswith("estimate: ") for row in trace(tmp_path / "run"))
    energy = json.loads((tmp_path / "run" / "record.json").read_text())["energy"]
    assert energy["source"] == "estimate" and energy["joules"] > 0
    assert energy["uncertainty_percent"] is None and energy["uncertainty_percent_reason"]
    drawn = script_here("plot_figures.py", tmp_path / "run", "--out", tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    with open(tmp_path / "table.csv", newline="") as file:
        assert [row["energy_source"] for row in csv.DictReader(file)] == ["estimate"]


@pytest.mark.parametrize(
    "kind, gpus, idle_s", [("nvml", ["a GPU"], 10.0), ("nvml", [], 2.0), ("rapl", ["a GPU"], 2.0)]
)
def test_a_gpu_idles_for_ten_seconds_before_training(monkeypatch, tmp_path, kind, gpus, idle_s):
    import tensorflow as tf

    source = types.SimpleNamespace(kind=kind, devices=[], host="n1", only=lambda mine: source)
    given = {}
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda device: gpus)
    monkeypatch.setattr(energy, "choose_source", lambda *arguments, **more: source)
    monkeypatch.setattr(energy, "Monitor", lambda source, **more: given.update(more))
    energy.EnergyRecorder(RunConfig(), World(), RunFolder(tmp_path), Progress())
    assert given["idle_s"] == idle_s
