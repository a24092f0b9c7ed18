"""EnergyMonitor as a callback of any `model.fit`."""

import math
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from stub_nvml import Device, constant

from keras_nowcast.energy import EnergyMonitor
from keras_nowcast.energy.source import choose_source

TRACING_S = 1.5
X, Y = np.zeros((64, 8), "float32"), np.zeros((64, 1), "float32")


class SlowToCompile(keras.layers.Layer):
    """A layer that is slow while it is traced, and takes no time in a compiled step."""

    def call(self, inputs):
        time.sleep(TRACING_S)
        return inputs


class Slow(keras.callbacks.Callback):
    """Makes each training step and each validation step last some time."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.05)

    on_test_batch_end = on_train_batch_end


def network(*more):
    model = keras.Sequential([keras.layers.Dense(4), *more, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    return model


def fit(monitor, *layers, **more):
    history = network(*layers).fit(
        X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[monitor, Slow()], **more
    )
    return history.history["joules"]


@pytest.mark.slow
def test_joules_of_each_epoch_in_the_history(stub_driver):
    with stub_driver([Device(wave=constant(200.0))]).loaded_here():
        monitor = EnergyMonitor(choose_source("nvml", environ={}), idle_s=0.2)
        joules = fit(monitor, SlowToCompile(), validation_data=(X, Y))
    record = monitor.record
    assert record["joules_per_epoch"] == joules
    assert record["joules"] == pytest.approx(sum(joules), rel=1e-9)
    windows = [(each["name"], each["index"]) for each in record["windows"]]
    pairs = [(name, epoch) for epoch in range(3) for name in ("epoch", "validation")]
    assert windows == [("idle", None), *pairs]
    seconds = {
        (each["name"], each["index"]): each["end_s"] - each["start_s"] for each in record["windows"]
    }
    assert seconds["epoch", 0] < TRACING_S < seconds["validation", 0]
    assert record["mean_watts"] == pytest.approx(200, rel=0.02)
    assert 200 * seconds["epoch", 1] == pytest.approx(joules[1], rel=0.05)


def test_an_evaluation_alone_is_left_alone(stub_driver):
    with stub_driver([Device()]).loaded_here():
        monitor = EnergyMonitor(choose_source("nvml", environ={}), idle_s=0)
        model = network()
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[monitor])
        record = monitor.record
        model.evaluate(X, Y, verbose=0, callbacks=[monitor])
        assert monitor.record is record


@pytest.mark.slow
def test_used_twice(stub_driver):
    with stub_driver([Device()]).loaded_here():
        monitor = EnergyMonitor(choose_source("nvml", environ={}), idle_s=0)
        assert len(fit(monitor)) == 3
        assert len(fit(monitor)) == 3
    assert len(monitor.record["joules_per_epoch"]) == 3


def test_without_a_sensor_joules_are_nan_not_zero():
    monitor = EnergyMonitor("none")
    assert all(math.isnan(each) for each in fit(monitor))
    assert monitor.joules is None


def test_boundaries_wait_for_a_weight(stub_driver, monkeypatch):
    read = []
    convert = keras.ops.convert_to_numpy

    def watched(weight):
        read.append(weight)
        return convert(weight)

    monkeypatch.setattr(keras.ops, "convert_to_numpy", watched)
    with stub_driver([Device()]).loaded_here():
        fit(EnergyMonitor(choose_source("nvml", environ={}), idle_s=0))
    assert [tuple(each.shape) for each in read[-2:]] == [(1,), (1,)]
    assert len(read) >= 6


def test_the_room_is_imported_without_keras():
    code = "import sys, keras_nowcast.energy; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
