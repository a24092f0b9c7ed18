import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nowcast.verification import scores
from keras_nowcast.verification.metrics import ForecastScores, contingency_counts

THRESHOLDS = (16, 74, 133)
MISSING = 255
MEAN, SCALE = 33.44, 47.54


def fields(seed=0, shape=(4, 16, 12, 3)):
    rng = np.random.default_rng(seed)
    observation = rng.integers(0, 255, shape).astype(np.uint8)
    observation[rng.random(shape) < 0.1] = MISSING
    forecast = rng.integers(0, 255, shape).astype(np.float32)
    return forecast, observation


@pytest.mark.parametrize("thresholds", [THRESHOLDS, (16, 74, 133, 160, 181, 219), (254,)])
def test_the_graph_counts_as_numpy_does(thresholds):
    forecast, observation = fields()
    forecast[0, 0] = np.nan
    counted = tf.function(contingency_counts)(
        tf.constant(forecast), tf.constant(observation), thresholds
    )
    expected = scores.statistics(forecast, observation, thresholds).counts[0]
    assert counted.dtype == tf.int64
    np.testing.assert_array_equal(counted, expected)


def test_the_deterministic_graph_counts_alike(deterministic):
    forecast, observation = fields()
    forecast[0, 0] = np.nan
    step = tf.function(lambda f, o: contingency_counts(f, o, THRESHOLDS))
    graph = step.get_concrete_function(tf.constant(forecast), tf.constant(observation)).graph
    assert "DenseBincount" not in {each.type for each in graph.get_operations()}
    expected = scores.statistics(forecast, observation, THRESHOLDS).counts[0]
    np.testing.assert_array_equal(step(forecast, observation), expected)


def metric_of(forecast, observation):
    metric = ForecastScores(THRESHOLDS)
    for f, o in zip(forecast, observation, strict=True):
        metric.update_state(tf.constant(o[None]), tf.constant((f[None] - MEAN) / SCALE))
    return metric


def test_the_metric_is_pooled_over_batches():
    # Half a code away from every threshold, because the conversion through vil_norm rounds.
    forecast, observation = fields()
    forecast += 0.5
    result = metric_of(forecast, observation).result()
    whole = scores.all_leads(scores.statistics(forecast, observation, THRESHOLDS))
    csi = scores.csi(whole.contingency())[0]
    assert [float(result[f"csi_{t}"]) for t in THRESHOLDS] == list(csi)
    assert float(result["mae"]) == pytest.approx(scores.mae(whole)[0], rel=1e-6)


def test_ranks_merge_by_summing_the_state():
    forecast, observation = fields()
    ranks = [metric_of(forecast[part], observation[part]) for part in (slice(0, 1), slice(1, 4))]
    merged = ForecastScores(THRESHOLDS)
    for variable, *parts in zip(merged.variables, *(rank.variables for rank in ranks), strict=True):
        variable.assign(sum(part.numpy() for part in parts))
    whole = metric_of(forecast, observation)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert float(merged.result()["mae"]) == pytest.approx(float(whole.result()["mae"]), rel=1e-12)


def test_an_unseen_event_is_undefined_and_the_state_is_reset():
    metric = metric_of(np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 4, 4, 2), np.uint8))
    assert np.isnan(metric.result()["csi_16"])
    assert float(metric.result()["mae"]) == pytest.approx(0.0, abs=1e-5)
    metric.reset_state()
    assert np.isnan(metric.result()["mae"])


def test_it_counts_in_fit_under_half_precision():
    forecast, observation = fields(shape=(4, 8, 8, 2))
    inputs = keras.Input((8, 8, 2), dtype="uint8")
    outputs = keras.layers.Rescaling(1 / SCALE, -MEAN / SCALE, dtype="float32")(inputs)
    model = keras.Model(inputs, outputs)
    metric = ForecastScores(THRESHOLDS)
    model.compile(loss="mse", metrics=[metric])
    logs = model.evaluate(
        (forecast // 1).astype(np.uint8), observation, batch_size=3, return_dict=True, verbose=0
    )
    assert logs["mae"] == pytest.approx(float(metric.result()["mae"]))
    assert set(logs) == {"loss", "csi_16", "csi_74", "csi_133", "mae"}
