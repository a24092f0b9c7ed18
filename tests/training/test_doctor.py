"""The doctor's output without any sensor, with a stub driver, and with RAPL unreadable."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "energy"))
import stub_nvml  # noqa: E402

from keras_nowcast.energy import choose_source, rapl  # noqa: E402
from keras_nowcast.training import doctor  # noqa: E402

DOCTOR = [sys.executable, str(Path(__file__).parents[2] / "experiments" / "doctor.py")]


@pytest.fixture
def powercap(tmp_path):
    """A powercap tree with one package."""
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("1000000\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path


def examine(monkeypatch, root):
    monkeypatch.setattr(doctor, "choose_source", functools.partial(choose_source, rapl_root=root))
    return doctor.examine()


def test_with_nothing(monkeypatch, tmp_path):
    found = examine(monkeypatch, tmp_path)
    energy = found["ranks"][0]["energy"]
    assert energy["source"] == "none" and "no RAPL zones" in energy["reason"]
    assert found["problems"] == []
    assert doctor.report(found)[-1] == "training can start on this machine"


def test_with_rapl(monkeypatch, powercap):
    found = examine(monkeypatch, powercap)
    assert found["ranks"][0]["energy"]["source"] == "rapl"


def test_with_rapl_denied(monkeypatch, powercap):
    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(rapl, "_read_number", deny)
    found = examine(monkeypatch, powercap)
    energy = found["ranks"][0]["energy"]
    assert energy["source"] == "none" and "only root can read" in energy["reason"]
    assert "only root can read" in "\n".join(doctor.report(found))


@pytest.mark.slow
def test_with_a_stub_driver(stub_driver, script_here, monkeypatch):
    """GPUs that TensorFlow does not use are reported and not counted; `nvml` counts them."""
    stub = stub_driver([stub_nvml.Device(uuid="GPU-7", name="Stub A100")])
    environment = {**os.environ, **stub.environment, "CUDA_VISIBLE_DEVICES": "0"}

    command = [*DOCTOR, "--json"]
    whole = json.loads(subprocess.check_output(command, text=True, env=environment))
    by_itself = whole["ranks"][0]["energy"]
    assert by_itself["source"] in ("none", "rapl")
    assert "TensorFlow does not use the 1 GPU(s) that NVML shows" in by_itself["reason"]
    (line,) = [each for each in doctor.report(whole) if each.startswith("GPU")]
    assert "Stub A100, GPU-7, 00000000:65:00.0" in line and line.endswith("rank 0 would use it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with stub.loaded_here():
        done = script_here("doctor.py", "--json", "--power-source", "nvml")
    assert done.returncode == 0, done.stderr
    forced = json.loads(done.stdout)["ranks"][0]["energy"]
    assert forced["source"] == "nvml"
    assert [(each["uuid"], each["name"]) for each in forced["devices"]] == [("GPU-7", "Stub A100")]


def test_small_disk(monkeypatch, tmp_path):
    usage = type("usage", (), {"free": 10 * 2**20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = examine(monkeypatch, tmp_path)
    assert len(found["problems"]) == 1 and "10 MiB of disk space are free" in found["problems"][0]
    assert doctor.report(found)[-1].startswith("PROBLEM")


def test_settings_of_the_user_are_shown_and_no_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    found = examine(monkeypatch, tmp_path)
    assert found["problems"] == []
    mine = [each for each in found["user_settings"] if each.startswith("KERAS")]
    assert mine == ["KERAS_BACKEND=jax", f"KERAS_HOME={tmp_path}"]
    (line,) = [line for line in doctor.report(found) if line.startswith("settings")]
    assert "KERAS_BACKEND=jax" in line


@pytest.mark.parametrize(
    "capabilities, version, words",
    [
        ([], "9.28.0.42", None),
        ([(8, 0)], "9.28.0.42", None),
        ([(7, 5)], "9.28.0.42", None),
        ([(7, 0)], None, None),  # not from pip: unknown
        ([(0, 0)], "9.28.0.42", None),
        ([(7, 0)], "9.10.2.21", None),
        ([(7, 0)], "9.11.0.98", "cuDNN 9.11.0.98 has no code for a GPU of compute capability 7.0"),
        ([(8, 0), (6, 1)], "10.0.1", "compute capability 6.1: run `make install EXTRA=volta`"),
    ],
)
def test_a_cudnn_that_the_gpu_is_too_old_for(capabilities, version, words):
    problem = doctor._cudnn_problem(capabilities, version)
    assert problem is None if words is None else words in problem
