"""What tests of several rooms share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("energy")))
sys.path.insert(0, str(Path(__file__).with_name("report")))
sys.path.insert(0, str(Path(__file__).with_name("study")))

import stub_nvml  # noqa: E402


@pytest.fixture
def stub_driver(tmp_path):
    """Builds scripted NVIDIA drivers: `stub_driver(devices).environment` for other processes.

    Takes a list of `stub_nvml.Device` and what else StubDriver takes, and returns a StubDriver.
    """

    def build(devices, **more):
        folder = tmp_path / f"stub-{len(list(tmp_path.iterdir()))}"
        return stub_nvml.StubDriver(folder, devices, **more)

    return build
