"""The step: its collectives, its numbers, and what it leaves alone."""

import dataclasses
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parent))
from determinism import refused  # noqa: E402

from keras_nowcast.config import RunConfig  # noqa: E402
from keras_nowcast.model.loss import MaskedMeanSquaredError  # noqa: E402
from keras_nowcast.training import build, gpu_options, user_settings  # noqa: E402
from keras_nowcast.training.distributed import World  # noqa: E402
from keras_nowcast.training.progress import Progress  # noqa: E402
from keras_nowcast.training.user_settings import PERSISTENT  # noqa: E402
from keras_nowcast.vil import MISSING  # noqa: E402

CONFIG = RunConfig(depth=1, filters=2, grid=8, batch_per_replica=2, precision="float32")


@dataclasses.dataclass(frozen=True)
class Marked(World):
    """A world of two ranks with equal numbers; its collectives can be found in a graph."""

    def average(self, tensor):
        return tf.raw_ops.CheckNumerics(tensor=tensor, message="allreduce")

    def average_gradient(self, gradient, fp16=False):
        return self.average(gradient)

    def broadcast(self, value):
        return value


def random_batch(windows=2):
    rng = np.random.default_rng(0)
    vil = rng.integers(0, MISSING, (windows, 8, 8, 25)).astype("uint8")
    vil[0, :4] = MISSING
    return vil[..., :13], vil[..., 13:]


def compiled(world, **fields):
    keras.utils.set_random_seed(1)
    return build.build_compiled(dataclasses.replace(CONFIG, **fields), world)


def graph_of(step):
    """Returns the operations of a step on batches of any size."""
    x, y = (tf.TensorSpec((None, 8, 8, frames), tf.uint8) for frames in (13, 12))
    return tf.function(step).get_concrete_function(x, y).graph.get_operations()


def ancestors(operation):
    """Returns the names of all operations whose results an operation needs."""
    seen, waiting = set(), [operation]
    while waiting:
        for tensor in waiting.pop().inputs:
            if tensor.op.name not in seen:
                seen.add(tensor.op.name)
                waiting.append(tensor.op)
    return seen


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_collectives_of_a_step(precision, float32_after):
    """One per gradient, and one of the count and the requests; no gradient waits for any."""
    made = compiled(Marked(0, 2), precision=precision)
    collectives = [each for each in graph_of(made.steps.train) if each.type == "CheckNumerics"]
    shapes = sorted(str(each.outputs[0].shape) for each in collectives)
    expected = [str(tf.TensorShape(each.shape)) for each in made.model.trainable_variables]
    assert shapes == sorted([*expected, "(5,)"])
    names = {each.name for each in collectives}
    for each in collectives:
        assert not ancestors(each) & names


def test_the_count_divides_after_the_allreduce_as_before_it():
    """Two ranks with equal batches make the step of one: the same weights within rounding."""
    weights = []
    for world in (World(), Marked(0, 2)):
        made = compiled(world, lr_scaling="none")
        x, y = random_batch()
        for _ in range(3):
            made.model.train_on_batch(x, y)
        # Not the biases that batch normalization cancels, whose gradients are rounding errors.
        weights.append(
            {
                each.path: np.asarray(each)
                for each in made.model.trainable_variables
                if not each.path.endswith("bias") or "head" in each.path
            }
        )
    for path, one in weights[0].items():
        np.testing.assert_allclose(one, weights[1][path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_step_reports_its_loss_and_fills_the_metric():
    made = compiled(World())
    x, y = random_batch()
    forecast = made.model(x, training=True)
    expected = float(MaskedMeanSquaredError()(y, forecast))
    assert made.model.train_on_batch(x, y) == pytest.approx(expected, rel=1e-6)
    assert float(made.error.result()) == pytest.approx(expected, rel=1e-6)
    assert float(made.error.count) == np.count_nonzero(y != MISSING)


def test_training_computes_no_validation_score():
    made = compiled(World())
    kinds = {each.type for each in graph_of(made.steps.train)}
    assert not {"DenseBincount", "MatrixDiagPartV3"} & kinds
    made.model.train_on_batch(*random_batch())
    assert not np.asarray(made.scores.counts).any()


def test_a_step_without_a_valid_pixel_trains_on_nothing():
    made = compiled(World())
    x, y = random_batch()
    assert made.model.train_on_batch(x, np.full_like(y, MISSING)) == 0.0
    assert all(np.isfinite(np.asarray(each)).all() for each in made.model.trainable_variables)


def test_validation_in_fit_reads_the_metrics_of_this_step():
    made = compiled(World())
    x, y = random_batch(4)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    made.model.evaluate(data, verbose=0)
    expected = float(MaskedMeanSquaredError()(y, made.model(x, training=False)))
    assert float(made.error.result()) == pytest.approx(expected, rel=1e-5)
    assert np.asarray(made.scores.counts).sum() == 3 * np.count_nonzero(y != MISSING)


def test_a_warm_up_changes_nothing():
    made = compiled(World())
    for layer in made.model.layers:
        if hasattr(layer, "memory"):
            layer.memory = 1.0  # as the run sets it
    variables = made.model.variables + made.model.optimizer.variables
    before = [np.array(each) for each in variables]
    made.steps.warm_up([1, 2])
    for one, two in zip(before, variables, strict=True):
        np.testing.assert_array_equal(one, np.asarray(two))
    assert float(made.error.count) == 0.0


def test_each_batch_size_of_an_epoch_is_met_before_time_counts(monkeypatch):
    class Pipeline:
        def plan(self, epoch, seen=()):
            return [["a"] * 3, ["a"] * 2, []]

    class Steps:
        xla = False

        def warm_up(self, *arguments):
            met.append(arguments)

    met, devices = [], []
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: devices)
    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", met.append)
    gpu_options.warm_up(Steps(), Pipeline(), Progress())
    assert met == []
    devices.append("a GPU")
    gpu_options.warm_up(Steps(), Pipeline(), Progress())
    assert met == [([1, 2, 3],), "GPU:0"]
    met[:], devices[:], Steps.xla = [], [], True
    gpu_options.warm_up(Steps(), Pipeline(), Progress())
    assert met == [([1, 2, 3],)]


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_xla_computes_the_same_step(precision, float32_after):
    """Within rounding, and with every operation but the update in one cluster."""
    losses, parts = [], []
    for xla in (False, True):
        made = compiled(World(), precision=precision, xla=xla)
        losses.append([made.model.train_on_batch(*random_batch(n)) for n in (2, 1, 2, 2)])
        parts.append([each for each in graph_of(made.steps.train) if "Conv2D" in each.type])
    tolerance = {"float32": 1e-5, "mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}[precision]
    np.testing.assert_allclose(*losses, rtol=tolerance)
    assert parts[0] and not parts[1]


@pytest.fixture
def options_after():
    yield
    gpu_options.set_options(CONFIG)


def test_float32_is_float32_unless_tf32_is_asked_for(options_after):
    gpu_options.set_options(CONFIG)
    assert gpu_options.describe() == {"tf32": False}
    gpu_options.set_options(dataclasses.replace(CONFIG, tf32=True))
    assert gpu_options.describe() == {"tf32": True}


def test_the_layout_is_tensorflows_or_nhwc(options_after):
    for layout, optimized in (("auto", True), ("nhwc", False)):
        gpu_options.set_options(dataclasses.replace(CONFIG, layout=layout))
        assert tf.config.optimizer.get_experimental_options()["layout_optimizer"] is optimized


def test_a_flag_turns_persistent_batch_norm_on(options_after, monkeypatch):
    monkeypatch.setenv(PERSISTENT, "0")  # so that it is restored
    monkeypatch.delenv(PERSISTENT)
    gpu_options.set_options(dataclasses.replace(CONFIG, fused_relu=True))
    assert os.environ[PERSISTENT].lower() == "true"
    assert PERSISTENT not in user_settings.found()  # it is none of the user's
    gpu_options.set_options(CONFIG)
    assert PERSISTENT not in os.environ
    monkeypatch.setenv(PERSISTENT, "1")
    gpu_options.set_options(CONFIG)
    assert user_settings.found()[PERSISTENT] == "1"


@pytest.mark.parametrize("start_from", [None, "a run"])
def test_no_step_has_an_operation_that_determinism_refuses(deterministic, start_from):
    config = dataclasses.replace(CONFIG, start_from=start_from, deterministic=True)
    made = build.build_compiled(config, World())
    for step in (made.steps.train, made.steps.validate):
        assert refused(graph_of(step)) == set()


def test_the_list_of_refusals_finds_what_the_steps_had():
    config = dataclasses.replace(CONFIG, start_from="a run")
    made = build.build_compiled(config, World())
    assert refused(graph_of(made.steps.train)) == {"FusedBatchNormGradV3"}
    assert refused(graph_of(made.steps.validate)) == {"DenseBincount"}
