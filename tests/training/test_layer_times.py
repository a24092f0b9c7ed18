"""Layers timed one by one: what is counted, what is timed, and that the training is left alone."""

import csv
import shutil
import time

import numpy as np
import pytest

from keras_nowcast.config import RunConfig
from keras_nowcast.model.cost import count_unet
from keras_nowcast.records import LAYER_COLUMNS, RunFolder
from keras_nowcast.training import layer_times
from keras_nowcast.training import record as record_module
from keras_nowcast.training.trainer import train

pytestmark = pytest.mark.usefixtures("float32_after")

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


@pytest.fixture
def hurried(monkeypatch):
    """Makes timing as short as it can be."""
    monkeypatch.setattr(layer_times, "LAYER_S", 0.0)
    monkeypatch.setattr(layer_times, "CALL_S", 0.0)
    monkeypatch.setattr(layer_times, "MATMUL_SIDES", (64, 128))
    monkeypatch.setattr(layer_times, "STREAM_BYTES", 2**20)


def run(root, run_dir, **fields):
    defaults = {"depth": 1, "filters": 2, "epochs": 1, "precision": "float32"}
    fields = {**defaults, "power_source": "none", **fields}
    train(RunConfig(data=str(root), run_dir=str(run_dir), **fields), started=time.monotonic())
    return RunFolder(run_dir)


def build(policy, depth=1, filters=4, grid=32):
    from keras_nowcast.model.precision import set_precision
    from keras_nowcast.model.unet import build_unet

    set_precision(policy)
    return build_unet(grid, 13, 12, depth, filters)


# ---- what is counted --------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_parts_are_the_counted_step(policy):
    cost = count_unet(96, 13, 12, 3, 8)
    parts = layer_times.parts_of(cost, policy, 4)
    assert sum(part.flops for part in parts) == pytest.approx(4 * cost.training_flops(policy, 4))
    assert sum(part.bytes for part in parts) == pytest.approx(
        4 * cost.training_bytes_moved(policy, 4)
    )
    named = [name for part in parts for name in part.layers]
    assert named == [layer.name for layer in cost.layers]
    assert not [part for part in parts if part.kind == "activation"]  # fused to what is before it


def test_a_convolution_has_the_flops_of_its_definition():
    cost = count_unet(8, 13, 12, 1, 2)
    parts = {part.name: part for part in layer_times.parts_of(cost, "float32", 3)}
    first, second = parts["encoder_1_conv_1"], parts["encoder_1_conv_2"]
    outputs = 3 * 8 * 8 * 2
    # Forward, and backward by the kernel; the bias both ways. No gradient by radar images.
    assert first.flops == 2 * (2 * 9 * 13 * outputs) + 2 * outputs and not first.passes_gradient
    assert second.flops == 3 * (2 * 9 * 2 * outputs) + 2 * outputs and second.passes_gradient


# ---- what is timed ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_each_part_is_forward_and_every_gradient(policy):
    """The results of a step, by shape and dtype."""
    import tensorflow as tf

    model = build(policy)
    half = {"float32": "float32"}.get(policy, policy.removeprefix("mixed_"))
    shapes = {}
    for part in layer_times.parts_of(count_unet(32, 13, 12, 1, 4), policy, 2):
        if part.layers and part.kind != "loss":
            results = tf.function(layer_times._layers_step(part, model, 2))()
            shapes[part.name] = [(tuple(each.shape), each.dtype.name) for each in results]
    large, small = (2, 32, 32), (2, 16, 16)
    assert shapes["scale_vil"] == [((*large, 13), half)]
    assert shapes["encoder_1_conv_1"] == [  # no gradient by its input
        ((*large, 4), half),
        ((3, 3, 13, 4), "float32"),
        ((4,), "float32"),
    ]
    assert shapes["encoder_1_norm_1"] == [
        ((*large, 4), half),
        ((4,), "float32"),
        ((4,), "float32"),
        ((*large, 4), half),
    ]
    assert shapes["encoder_1_pool"] == [((*small, 4), half), ((*large, 4), half)]
    assert shapes["decoder_1_upsample"] == [
        ((*large, 4), half),
        ((2, 2, 4, 16), "float32"),
        ((4,), "float32"),
        ((*small, 16), half),
    ]
    assert shapes["decoder_1_concatenate"] == [
        ((*large, 8), half),
        ((*large, 4), half),
        ((*large, 4), half),
    ]
    assert shapes["head"] == [
        ((*large, 12), "float32"),
        ((1, 1, 4, 12), "float32"),
        ((12,), "float32"),
        ((*large, 4), half),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_timing_leaves_the_network_as_it_is(policy, hurried):
    model = build(policy)
    before = [each.numpy() for each in model.weights]
    rows = [
        layer_times.layer_row(part, model, policy, 2)
        for part in layer_times.parts_of(count_unet(32, 13, 12, 1, 4), policy, 2)
    ]
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy(), err_msg=new.path)
    for row in rows:
        assert tuple(row) == LAYER_COLUMNS
        assert 0 < row["seconds_low"] <= row["seconds_median"] <= row["seconds_high"]
        assert row["flops_per_second"] == row["flops"] / row["seconds_median"]
        assert row["intensity"] == row["flops"] / row["bytes"]
        assert row["repetitions"] == layer_times.MIN_REPETITIONS


def test_seconds_are_those_of_the_work():
    """A step of known length, and one that does it three times."""
    import tensorflow as tf

    def wait(value):
        time.sleep(0.02)
        return value

    def step():
        return [tf.numpy_function(wait, [tf.constant(1.0)], tf.float32)]

    def thrice():
        (last,) = step()
        for _ in range(2):
            with tf.control_dependencies([last]):
                (last,) = step()
        return [last]

    one, three = layer_times.seconds_of(step), layer_times.seconds_of(thrice)
    assert len(one) >= layer_times.MIN_REPETITIONS
    assert 0.02 <= min(one) < 0.06 <= min(three)


def test_every_result_is_waited_for():
    """The last of the results is slow: its time counts, though the first is there at once."""
    import tensorflow as tf

    def wait():
        time.sleep(0.02)
        return np.float32(1)

    def step():
        return [tf.constant(1.0), tf.numpy_function(wait, [], tf.float32)]

    assert min(layer_times.seconds_of(step)) >= 0.02


def test_starting_a_graph_does_not_count():
    import tensorflow as tf

    a = tf.ones(4)
    assert min(layer_times.seconds_of(lambda: [a + 1.0])) < 1e-4


def test_a_layer_of_more_work_takes_longer():
    model = build("float32", filters=32)
    cost = count_unet(32, 13, 12, 1, 32)
    parts = {part.name: part for part in layer_times.parts_of(cost, "float32", 4)}
    little, much = (
        layer_times.layer_row(parts[name], model, "float32", 4)
        for name in ("head", "decoder_1_conv_1")
    )
    assert much["flops"] > 30 * little["flops"]
    assert much["seconds_median"] > little["seconds_median"]


def test_roofs_are_of_the_policys_dtype_and_of_float32(hurried):
    roofs = layer_times.measure_roofs("mixed_bfloat16")
    assert set(roofs["compute_flops_per_second"]) == {"bfloat16", "float32"}
    assert set(layer_times.measure_roofs("float32")["compute_flops_per_second"]) == {"float32"}
    assert 1e6 < roofs["memory_bytes_per_second"] < 1e13


# ---- in a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(small_sevir, tmp_path_factory):
    """A run that times no layers."""
    return run(small_sevir, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.slow
def test_a_run_writes_its_layers_and_roofs(plain, small_sevir, tmp_path, hurried, monkeypatch):
    order = []
    for owner, name in ((record_module, "memory_record"), (layer_times, "layer_row")):
        original = getattr(owner, name)

        def noted(*arguments, original=original, name=name):
            order.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, noted)
    timed = run(small_sevir, tmp_path / "timed", layer_times=True)
    with open(timed.path / "layers.csv", newline="") as file:
        assert tuple(next(csv.reader(file))) == LAYER_COLUMNS
    rows, record = timed.read_layers(), timed.read_record()
    per_sample = record["model"]["training_flops_per_sample"]
    assert sum(row["flops"] for row in rows) == pytest.approx(4 * per_sample)
    assert [row["name"] for row in rows][-3:] == ["head", "loss", "optimizer"]
    assert record["roofs"]["compute_flops_per_second"]["float32"] > 0
    assert record["roofs"]["measuring_seconds"] > 0

    other = plain.read_record()
    assert other["roofs"] is None and "--layer-times" in other["roofs_reason"]
    assert plain.read_layers() == []
    # Bit by bit the training that it would have been.
    for ours, theirs in zip(timed.read_epochs(), plain.read_epochs(), strict=True):
        assert (ours["loss"], ours["val_loss"]) == (theirs["loss"], theirs["val_loss"])
    # The kernel knows only the highest peak of a process so far: it must be read before.
    assert order[0] == "memory_record" and order.count("memory_record") == 1
    assert "layer_row" in order


@pytest.mark.slow
def test_it_is_in_no_time_of_the_run(small_sevir, tmp_path, hurried, monkeypatch):
    def slow(policy):
        time.sleep(2)
        return {"compute_flops_per_second": {"float32": 1.0}, "memory_bytes_per_second": 1.0}

    monkeypatch.setattr(layer_times, "layer_row", lambda part, *_: {"seconds_median": 1.0})
    monkeypatch.setattr(layer_times, "measure_roofs", slow)
    monkeypatch.setattr(RunFolder, "write_layers", lambda self, rows: None)
    since = time.monotonic()
    record = run(
        small_sevir,
        tmp_path / "run",
        layer_times=True,
        power_source="estimate",
        watts_per_core=1.0,
    ).read_record()
    took_s = time.monotonic() - since
    training, energy = record["training"], record["energy"]
    assert record["roofs"]["measuring_seconds"] > 2
    apart_s = training["setup_seconds"] + record["roofs"]["measuring_seconds"]
    assert apart_s + training["seconds"] < took_s  # no second is counted twice
    assert "layer times" in {window["name"] for window in energy["windows"]}
    assert energy["joules"] == pytest.approx(sum(energy["joules_per_epoch"]))
    of_epochs = [w for w in energy["windows"] if w["name"] == "epoch"]
    assert sum(w["end_s"] - w["start_s"] for w in of_epochs) == pytest.approx(
        training["seconds"], abs=0.1
    )


@pytest.mark.slow
def test_a_run_that_goes_on_may_begin_to_time_its_layers(plain, small_sevir, tmp_path, hurried):
    shutil.copytree(plain.path, tmp_path / "run")
    assert run(
        small_sevir, tmp_path / "run", epochs=2, resume=True, layer_times=True
    ).read_record()["roofs"]
