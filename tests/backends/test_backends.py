"""The network on Keras' other backends, and energy/ without TensorFlow, in `make backends`."""

import json
import os
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_nowcast.model.loss import MaskedMeanSquaredError, MeanSquaredErrorMetric
from keras_nowcast.model.precision import set_precision
from keras_nowcast.model.unet import build_unet, read_unet, write_unet

ROOT = Path(__file__).parents[2]
BACKENDS = ("jax", "torch")
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def environment(backend):
    """Returns the Python of a backend's environment, or skips the test."""
    python = ROOT / "build" / "backends" / backend / "bin" / "python"
    if not (python.parents[1] / "made-with").exists():
        pytest.skip(f"build/backends/{backend} is not there: run `make backends`")
    return python


def run_tests(python, backend, *words, **environ):
    """Runs pytest in an environment, and fails with its output if a test fails there."""
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Returns the folder with models, forecasts and three training steps of TensorFlow."""
    folder = tmp_path_factory.mktemp("reference")
    vil = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 25)).astype("uint8")
    vil[0, :4, :4] = 255
    known = {"vil": vil}
    try:
        for policy in POLICIES:
            set_precision(policy)
            keras.utils.set_random_seed(0)
            model = build_unet(16, 13, 12, depth=1, filters=4)
            model(vil[..., :13], training=True)  # moves the averages away from 0 and 1
            write_unet(model, folder / f"{policy}.keras")
            known[f"{policy}_forecast"] = model(vil[..., :13]).numpy()
    finally:
        set_precision("float32")
    model = read_unet(folder / "float32.keras")
    error = MeanSquaredErrorMetric()
    model.compile(keras.optimizers.Adam(1e-3), MaskedMeanSquaredError(), metrics=[error])
    fitted = model.fit(vil[..., :13], vil[..., 13:], batch_size=2, shuffle=False, verbose=0)
    (folder / "history.json").write_text(json.dumps(fitted.history))
    known |= {f"after_{index}": v.numpy() for index, v in enumerate(model.variables)}
    np.savez(folder / "reference.npz", **known)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_network_on(backend, reference):
    python = environment(backend)
    run_tests(python, backend, "tests/backends/on_backend.py", BACKEND_REFERENCE=str(reference))
    # What that backend saved is loaded by TensorFlow.
    with np.load(reference / "reference.npz") as known:
        forecast = read_unet(reference / f"{backend}.keras")(known["vil"][..., :13])
        np.testing.assert_array_equal(forecast, known["float32_forecast"])


@pytest.mark.slow
def test_energy_without_tensorflow():
    run_tests(environment("jax"), "jax", "-m", "not slow", "tests/energy")
