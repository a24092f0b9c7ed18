"""Tests of the network that run in an environment without TensorFlow (see test_backends.py).

BACKEND_REFERENCE is the folder with what TensorFlow computed, and where one of these tests leaves a
model for TensorFlow to load.
"""

import importlib.util
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_nowcast.model import loss as loss_module
from keras_nowcast.model.layers import FusedBatchNormalization
from keras_nowcast.model.loss import MaskedMeanSquaredError, MeanSquaredErrorMetric
from keras_nowcast.model.precision import set_precision
from keras_nowcast.model.unet import read_unet, write_unet

REFERENCE = Path(os.environ["BACKEND_REFERENCE"])
# Of a forecast of size 1 to 3: some dozen layers of rounding, each half a unit in the last place.
ROUNDING = {"float32": 2e-5, "mixed_bfloat16": 0.2, "mixed_float16": 0.02}


@pytest.fixture
def known():
    with np.load(REFERENCE / "reference.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def float32():
    yield
    set_precision("float32")


def compiled(policy="float32"):
    model = read_unet(REFERENCE / f"{policy}.keras")
    optimizer = keras.optimizers.Adam(1e-3)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer,
        MaskedMeanSquaredError(),
        metrics=[MeanSquaredErrorMetric()],
    )
    return model


def test_there_is_no_tensorflow_here():
    assert importlib.util.find_spec("tensorflow") is None
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"] != "tensorflow"


@pytest.mark.parametrize("policy", ROUNDING)
def test_forecasts_equal_those_of_tensorflow(policy, known):
    forecast = keras.ops.convert_to_numpy(compiled(policy)(known["vil"][..., :13]))
    assert forecast.dtype == "float32"
    np.testing.assert_allclose(forecast, known[f"{policy}_forecast"], atol=ROUNDING[policy])


def test_a_plain_fit_takes_the_steps_of_tensorflow(known):
    model = compiled()
    vil = known["vil"]
    fitted = model.fit(vil[..., :13], vil[..., 13:], batch_size=2, shuffle=False, verbose=0)
    expected = json.loads((REFERENCE / "history.json").read_text())
    assert fitted.history.keys() == expected.keys() == {"loss", "mse"}
    for name, values in expected.items():
        assert fitted.history[name] == pytest.approx(values, rel=1e-4), name
    for index, variable in enumerate(model.variables):
        if "bias" in variable.path and "head" not in variable.path:
            continue  # the normalization after it removes it: its gradient is rounding alone
        after = keras.ops.convert_to_numpy(variable)
        # Adam divides by the size of a gradient, so that of a gradient near 0 only the sign counts:
        # a few weights may go the other way, by 1e-3 per step.
        far = np.abs(after - known[f"after_{index}"]) > 2e-4
        assert far.mean() <= 0.02, variable.path
        if "moving" in variable.path:
            np.testing.assert_allclose(after, known[f"after_{index}"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_it_learns(policy, known):
    model = compiled(policy)
    vil = known["vil"]
    losses = model.fit(vil[..., :13], vil[..., 13:], epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_a_saved_network_is_loaded_again(known):
    model = compiled()
    write_unet(model, REFERENCE / f"{keras.backend.backend()}.keras")
    again = read_unet(REFERENCE / f"{keras.backend.backend()}.keras")
    vil = known["vil"][..., :13]
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (again(vil), model(vil))))


def test_loss_and_metric_by_hand(monkeypatch):
    monkeypatch.setattr(loss_module, "VIL_MEAN", 50.0)
    monkeypatch.setattr(loss_module, "VIL_SCALE", 25.0)
    vil = np.uint8([50, 100, 0, 255]).reshape(1, 1, 4, 1)  # vil_norm 0, 2, -2 and missing
    vil_norm = np.float32([1.0, 0.0, -2.0, 1e30]).reshape(vil.shape)
    metric = MeanSquaredErrorMetric()
    metric.update_state(vil, vil_norm)
    assert float(MaskedMeanSquaredError()(vil, vil_norm)) == pytest.approx((1 + 4 + 0) / 3)
    assert float(metric.result()) == pytest.approx((1 + 4 + 0) / 3)
    gaps = np.full_like(vil, 255)
    assert float(MaskedMeanSquaredError()(gaps, vil_norm)) == 0.0
    metric.reset_state()
    assert np.isnan(float(metric.result()))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_normalization_has_the_averages_of_keras_and_a_memory(policy):
    x = np.random.default_rng(2).normal(0.5, 1.0, (4, 8, 8, 6)).astype("float32")
    ours = FusedBatchNormalization(momentum=0.5, dtype=policy)
    stock = keras.layers.BatchNormalization(momentum=0.5, dtype=policy)
    for scale in (1, 2):
        y, expected = (layer(x * scale, training=True) for layer in (ours, stock))
        assert keras.backend.standardize_dtype(y.dtype) == stock.compute_dtype
        y, expected = (
            keras.ops.convert_to_numpy(keras.ops.cast(each, "float32")) for each in (y, expected)
        )
        np.testing.assert_allclose(y, expected, atol=2e-5 if policy == "float32" else 1.6e-2)
    kept = (ours.moving_mean, ours.moving_variance)
    averages = [keras.ops.convert_to_numpy(each) for each in kept]
    for average, value in zip(averages, (stock.moving_mean, stock.moving_variance), strict=True):
        np.testing.assert_allclose(average, keras.ops.convert_to_numpy(value), rtol=1e-5)
    ours.memory = 1  # leaves the averages as they are
    ours(x, training=True)
    ours.memory = None
    ours.trainable = False
    ours(x, training=True)
    for average, value in zip(averages, kept, strict=True):
        np.testing.assert_array_equal(average, keras.ops.convert_to_numpy(value))
    ours.trainable, ours.memory = True, 0  # takes those of the batch
    ours(x, training=True)
    mean = keras.ops.convert_to_numpy(keras.ops.cast(x, ours.compute_dtype)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(ours.moving_mean), mean.mean((0, 1, 2)), atol=1e-5
    )
