"""A small data set that is quick to train on."""

import os
import shutil
import signal
import subprocess

import pytest


@pytest.fixture(scope="session")
def small_sevir(tmp_path_factory):
    """Root of a synthetic SEVIR of 32x32: 24 windows for training, 9 for validation, 6 to test."""
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=13, size=32, progress=False)
    return root


@pytest.fixture(scope="session")
def mpi():
    """Skips a test if there is no mpirun, or if Horovod was built without MPI."""
    if shutil.which("mpirun") is None:
        pytest.skip("there is no mpirun")
    if not pytest.importorskip("horovod.tensorflow").mpi_built():
        pytest.skip("Horovod was built without MPI")


@pytest.fixture
def start():
    """Starts jobs, each in a session of its own; those that a failed test leaves are killed."""
    started = []

    def start(command, **more):
        words = [str(word) for word in command]
        started.append(subprocess.Popen(words, start_new_session=True, **more))
        return started[-1]

    yield start
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
