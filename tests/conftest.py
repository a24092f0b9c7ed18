"""What tests of several rooms share."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).with_name("energy")))
sys.path.insert(0, str(Path(__file__).with_name("report")))
sys.path.insert(0, str(Path(__file__).with_name("study")))

import stub_nvml  # noqa: E402

SCRIPTS = Path(__file__).parents[1] / "experiments"
# The files that take longest on two cores. They run first, so that two workers end together.
LONGEST = (
    "docs/test_commands.py",
    "training/test_faults.py",
    "experiments/test_sweep.py",
    "training/test_energy.py",
    "training/test_trainer.py",
    "experiments/test_evaluate.py",
    "training/test_resume.py",
    "training/test_kills.py",
    "training/test_layer_times.py",
    "training/test_distributed.py",
    "experiments/test_hostile_input.py",
)


def pytest_collection_modifyitems(items):
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def stub_driver(tmp_path):
    """Builds scripted NVIDIA drivers: `stub_driver(devices).environment` for other processes.

    Takes a list of `stub_nvml.Device` and what else StubDriver takes, and returns a StubDriver.
    """

    def build(devices, **more):
        folder = tmp_path / f"stub-{len(list(tmp_path.iterdir()))}"
        return stub_nvml.StubDriver(folder, devices, **more)

    return build


@pytest.fixture
def float32_after():
    """Restores the global precision that a run in this process sets."""
    yield
    import keras

    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def script_here(monkeypatch, capsys):
    """Runs a script of experiments/ in this process, which has TensorFlow already.

    `script_here("train.py", "--depth", 9)` returns a CompletedProcess, as a shell's start would
    give, in a fraction of the time.
    """

    def run(name, *arguments):
        words = [str(SCRIPTS / name), *map(str, arguments)]
        status = 0
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            try:
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as ended:
                status = ended.code or 0
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def any_order_after():
    """Turns off the op determinism that a run of a test has left on in this process."""
    yield
    config = sys.modules.get("tensorflow.python.framework.config")
    if config is not None:
        config.disable_op_determinism()


@pytest.fixture
def deterministic():
    """Turns TensorFlow's op determinism on, as `--deterministic` does, for one test."""
    from tensorflow.python.framework import config

    config.enable_op_determinism()
