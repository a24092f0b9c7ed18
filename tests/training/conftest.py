"""A small data set that is quick to train on."""

import os
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


@pytest.fixture
def float32_after():
    """Restores the global precision that a run in this process sets."""
    yield
    import keras

    keras.mixed_precision.set_global_policy("float32")


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
