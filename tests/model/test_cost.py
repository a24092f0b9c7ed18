import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import keras_nowcast
from keras_nowcast.errors import InputError
from keras_nowcast.model.cost import count_unet
from keras_nowcast.model.layers import FusedBatchNormalization
from keras_nowcast.model.unet import build_unet, freeze_normalization

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


def _layers(cost):
    return {layer.name: layer for layer in cost.layers}


@pytest.mark.parametrize(
    ("filters", "trainable", "parameters"), [(16, 4143628, 4148556), (32, 16556044, 16565900)]
)
def test_parameters_of_the_authors_network(filters, trainable, parameters):
    cost = count_unet(384, 13, 12, 4, filters)
    assert (cost.trainable_parameters, cost.parameters) == (trainable, parameters)


@pytest.mark.parametrize("center_filters", [None, 5])
@pytest.mark.parametrize(("depth", "filters"), [(1, 1), (2, 3), (3, 4), (4, 2), (5, 1), (6, 1)])
def test_layers_are_those_of_the_built_network(depth, filters, center_filters):
    sizes = (64, 13, 12, depth, filters, center_filters)
    model, cost = build_unet(*sizes), count_unet(*sizes)
    counted = [
        (layer.name, (layer.side, layer.side, layer.channels), layer.parameters)
        for layer in cost.layers
        if layer.kind != "loss"
    ]
    assert counted == [
        (layer.name, layer.output.shape[1:], layer.count_params()) for layer in model.layers[1:]
    ]
    trainable = sum(v.shape.num_elements() for v in (w.value for w in model.trainable_variables))
    assert cost.trainable_parameters == trainable


def test_flops_by_hand():
    # 4x4 pixels, 2 frames in, 3 out, one filter, two in the center.
    layers = _layers(count_unet(4, 2, 3, 1, 1, center_filters=2))
    assert {name: layer.forward_flops for name, layer in layers.items()} == {
        "scale_vil": 16 * 2 * 3,
        "encoder_1_conv_1": 16 * (2 * 9 * 2) + 16,
        "encoder_1_norm_1": 16 * 2,
        "encoder_1_relu_1": 16,
        "encoder_1_conv_2": 16 * (2 * 9) + 16,
        "encoder_1_norm_2": 16 * 2,
        "encoder_1_relu_2": 16,
        "encoder_1_pool": 4 * 3,
        "center_conv_1": 4 * 2 * (2 * 9) + 8,
        "center_norm_1": 8 * 2,
        "center_relu_1": 8,
        "center_conv_2": 4 * 2 * (2 * 9 * 2) + 8,
        "center_norm_2": 8 * 2,
        "center_relu_2": 8,
        "decoder_1_upsample": 16 * (2 * 2) + 16,  # each output pixel sees one input pixel
        "decoder_1_concatenate": 0,
        "decoder_1_norm": 32 * 2,
        "decoder_1_relu": 32,
        "decoder_1_conv_1": 16 * (2 * 9 * 2) + 16,
        "decoder_1_norm_1": 16 * 2,
        "decoder_1_relu_1": 16,
        "decoder_1_conv_2": 16 * (2 * 9) + 16,
        "decoder_1_norm_2": 16 * 2,
        "decoder_1_relu_2": 16,
        "head": 16 * 3 * 2 + 48,
        "loss": 0,
    }
    # Forward, by weights (with the bias), by input; the first convolution passes no gradient back.
    assert layers["encoder_1_conv_1"].training_flops == 2 * (16 * 36 + 16)
    assert layers["decoder_1_conv_1"].training_flops == 3 * 16 * 36 + 2 * 16
    assert layers["decoder_1_upsample"].training_flops == 3 * 16 * 4 + 2 * 16
    assert layers["encoder_1_norm_1"].training_flops == 16 * (2 + 4 + 9)
    assert layers["encoder_1_relu_1"].training_flops == 16 * 2
    assert layers["encoder_1_pool"].training_flops == 4 * 3 + 16
    assert layers["decoder_1_concatenate"].training_flops == 16
    assert layers["loss"].training_flops == 48 * 7


def test_the_update_is_shared_by_the_batch():
    cost = count_unet(4, 2, 3, 1, 1, center_filters=2)
    both_ways = sum(layer.training_flops for layer in cost.layers)
    assert cost.training_flops("float32", 1) == both_ways + 12 * cost.trainable_parameters
    assert cost.training_flops("float32", 4) == both_ways + 3 * cost.trainable_parameters
    assert cost.optimizer_flops("mixed_float16") == 14 * cost.trainable_parameters


def test_kinds_add_up_to_the_step():
    cost = count_unet(16, 13, 12, 2, 4)
    by_kind = cost.training_flops_by_kind("float32", 4)
    assert set(by_kind) == {layer.kind for layer in cost.layers} | {"optimizer"}
    assert sum(by_kind.values()) == cost.training_flops("float32", 4)


def test_bytes_by_hand():
    cost = count_unet(4, 2, 3, 1, 1, center_filters=2)
    layers = _layers(cost)

    def moved(name, policy, batch=1):
        return layers[name].training_bytes_moved(policy, batch)

    assert moved("scale_vil", "float32") == 32 + 4 * 32
    assert moved("encoder_1_conv_1", "float32") == 2 * 4 * (32 + 16 + 18)
    assert moved("encoder_1_conv_2", "mixed_float16") == 3 * 2 * (16 + 16 + 9)
    assert moved("encoder_1_conv_2", "mixed_float16", 9) == 3 * 2 * (16 + 16 + 1)
    assert moved("head", "mixed_float16") == 3 * 4 * (16 + 48 + 3)  # float32 with every policy
    assert moved("encoder_1_pool", "mixed_bfloat16") == 2 * 2 * (16 + 4)
    assert moved("encoder_1_norm_1", "float32") == 4 * 8 * 16
    assert moved("decoder_1_concatenate", "float32") == 4 * (4 * 32 + 3 * 16)
    whole = sum(moved(name, "float32") for name in layers) + 7 * 4 * cost.trainable_parameters
    assert cost.training_bytes_moved("float32", 1) == whole
    assert cost.state_bytes == 4 * (cost.parameters + 2 * cost.trainable_parameters)
    assert cost.allreduce_bytes() == 4 * cost.trainable_parameters
    assert cost.allreduce_bytes(fp16=True) == 2 * cost.trainable_parameters
    assert cost.intensity("mixed_bfloat16", 4) > cost.intensity("float32", 4) > 0


def test_memory_by_hand():
    # 2x2 pixels, depth 1, one filter and one in the center; numbers of one frame in and out.
    cost = count_unet(2, 1, 1, 1, 1, center_filters=1)
    layers = _layers(cost)
    # Kept in float32: the scaled input; each convolution and its activation (a number and,
    # since one channel fills no vector, four bytes of mask).
    kept = 4 * 4 + 2 * (16 + 32) + 4 * 1 + 2 * (4 + 8) + (32 + 64) + 2 * (16 + 32) + 4 * 5
    assert sum(layer.kept_bytes("float32") for layer in cost.layers) == kept
    assert layers["head"].kept_bytes("mixed_float16") == 4 * 4  # its input, cast
    assert layers["decoder_1_relu"].kept_bytes("mixed_float16") == 2 * 8 + 1
    # In the backward pass each layer adds the gradients by its output and its input, then frees
    # what it kept; from the concatenation (8 numbers) to the pooling, the skip's 4 numbers wait.
    skip = 16
    assert [held for held, _ in cost.backward_memory("float32")] == [
        kept + 2 * 16,  # loss
        (kept := kept - 20) + 2 * 16,  # head
        kept + 2 * 16,  # decoder_1_relu_2
        (kept := kept - 32) + 2 * 16,  # decoder_1_norm_2
        kept + 2 * 16,  # decoder_1_conv_2
        (kept := kept - 16) + 2 * 16,  # decoder_1_relu_1
        (kept := kept - 32) + 2 * 16,  # decoder_1_norm_1
        kept + 16 + 32,  # decoder_1_conv_1
        (kept := kept - 16) + 2 * 32,  # decoder_1_relu
        (kept := kept - 64) + 2 * 32,  # decoder_1_norm
        kept + 2 * 32,  # decoder_1_concatenate
        (kept := kept - 32) + skip + 16 + 4,  # decoder_1_upsample
        kept + skip + 2 * 4,  # center_relu_2
        (kept := kept - 8) + skip + 2 * 4,  # center_norm_2
        kept + skip + 2 * 4,  # center_conv_2
        (kept := kept - 4) + skip + 2 * 4,  # center_relu_1
        (kept := kept - 8) + skip + 2 * 4,  # center_norm_1
        kept + skip + 2 * 4,  # center_conv_1
        (kept := kept - 4) + skip + 4 + 16,  # encoder_1_pool
        (kept := kept - 4) + 2 * 16,  # encoder_1_relu_2
        (kept := kept - 32) + 2 * 16,  # encoder_1_norm_2
        kept + 2 * 16,  # encoder_1_conv_2
        (kept := kept - 16) + 2 * 16,  # encoder_1_relu_1
        (kept := kept - 32) + 2 * 16,  # encoder_1_norm_1
        kept + 16,  # encoder_1_conv_1 passes no gradient back
        (kept := kept - 16) + 16,  # scale_vil
    ]
    gradients = [computed for _, computed in cost.backward_memory("float32")]
    assert gradients[:2] == [0, 2] and gradients[-1] == cost.trainable_parameters


def test_masks_are_small_where_channels_fill_a_vector():
    layers = _layers(count_unet(2, 1, 1, 1, 8))
    eight, sixteen = layers["encoder_1_relu_1"], layers["decoder_1_relu"]
    assert eight.kept_bytes("float32") == 4 * 32 + 16
    assert eight.kept_bytes("mixed_bfloat16") == 2 * 32 + 128
    assert sixteen.kept_bytes("mixed_bfloat16") == 2 * 64 + 32


def test_step_memory_adds_gradients_and_copies():
    cost = count_unet(64, 13, 12, 4, 8)
    for policy in POLICIES:
        one, two = (cost.step_bytes(policy, batch) for batch in (1000, 2000))
        # With a large batch, memory peaks with the activations.
        assert two - one == 1000 * cost.activation_bytes(policy)
    copies = 2 * cost.kernel_parameters
    activations = cost.activation_bytes("mixed_float16")  # the peak is at the loss: no gradient yet
    assert cost.step_bytes("mixed_float16", 1000) == copies + 1000 * activations
    # With a small batch, it peaks with all gradients.
    assert count_unet(16, 13, 12, 4, 8).step_bytes("float32", 1) > 4 * cost.trainable_parameters
    halves = cost.activation_bytes("mixed_float16"), cost.activation_bytes("mixed_bfloat16")
    assert halves[0] < halves[1] < cost.activation_bytes("float32")


def test_record_has_the_fields_of_the_contract():
    record = count_unet(64, 13, 12, 2, 4).record("mixed_bfloat16", 4)
    assert list(record) == [
        "parameters",
        "trainable_parameters",
        "forward_flops_per_sample",
        "training_flops_per_sample",
        "activation_bytes_per_sample",
        "allreduce_bytes_per_step",
    ]
    assert all(value > 0 for value in record.values())


def test_frozen_normalization_by_hand():
    """4x4 pixels, one filter, two in the center: 1 + 1 + 2 + 2 + 2 + 1 + 1 channels normalized."""
    learning = count_unet(4, 2, 3, 1, 1, center_filters=2)
    frozen = learning.with_frozen_normalization()
    assert (learning.parameters, frozen.parameters) == (171, 171)
    assert (learning.trainable_parameters, frozen.trainable_parameters) == (151, 131)
    assert frozen.forward_flops == learning.forward_flops
    layers = _layers(frozen)
    assert layers["encoder_1_norm_1"].training_flops == 16 * (2 + 1)
    assert layers["encoder_1_norm_1"].training_bytes_moved("float32", 1) == 4 * 4 * 16
    fewer = (4 + 9 - 1) * (16 + 16 + 8 + 8 + 32 + 16 + 16)
    assert learning.training_flops("float32", 1) - frozen.training_flops("float32", 1) == (
        fewer + 12 * 20
    )
    record = frozen.record("float32", 1)
    assert record["trainable_parameters"] == 131 and record["parameters"] == 171
    assert record["allreduce_bytes_per_step"] == 4 * 131
    assert record["activation_bytes_per_sample"] == learning.activation_bytes("float32")


@pytest.mark.parametrize(("depth", "filters"), [(1, 1), (3, 4)])
def test_frozen_parameters_are_those_of_the_frozen_network(depth, filters):
    model = build_unet(64, 13, 12, depth, filters)
    freeze_normalization(model)
    cost = count_unet(64, 13, 12, depth, filters).with_frozen_normalization()
    trainable = sum(variable.value.shape.num_elements() for variable in model.trainable_variables)
    assert (cost.trainable_parameters, cost.parameters) == (trainable, model.count_params())


def test_sizes_that_make_no_network():
    with pytest.raises(InputError, match="`--grid`"):
        count_unet(100, 13, 12, 3, 4)


def _profiled_flops(model, grid, frames_in):
    """Returns the FLOPs of a forecast as TensorFlow's profiler counts them.

    The profiler does not support fused normalization, so a clone with Keras' own is profiled. It
    counts nothing for ReLU, and four comparisons per pooled number although three suffice. It also
    counts the product of bytes that masks missing pixels.
    """

    def stock(layer):
        kind = type(layer)
        if kind is FusedBatchNormalization:
            kind = keras.layers.BatchNormalization
        return kind.from_config(layer.get_config())

    clone = keras.models.clone_model(model, clone_function=stock)
    forecast = tf.function(lambda vil: clone(vil, training=False))
    graph = forecast.get_concrete_function(tf.TensorSpec((1, grid, grid, frames_in), "uint8")).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    products_of_bytes = grid * grid * frames_in
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops - products_of_bytes


@pytest.mark.parametrize(
    ("grid", "depth", "filters", "center_filters"),
    [
        (16, 1, 1, None),
        (16, 1, 16, None),
        (32, 2, 4, None),
        (32, 2, 8, 3),
        (48, 3, 8, None),
        (64, 3, 16, 512),
        (64, 4, 16, None),
        (32, 4, 32, 64),
        (64, 5, 4, None),
        (64, 6, 2, None),
    ],
)
def test_flops_are_the_profilers(grid, depth, filters, center_filters):
    model = build_unet(grid, 13, 12, depth, filters, center_filters)
    cost = count_unet(grid, 13, 12, depth, filters, center_filters)
    counted = sum(layer.forward_flops for layer in cost.layers if layer.kind != "activation")
    assert counted == pytest.approx(_profiled_flops(model, grid, 13), rel=0.01)


def test_it_is_printed_without_tensorflow():
    root = Path(keras_nowcast.__file__).parents[1]
    code = (
        "import runpy, sys; sys.argv = ['cost.py', '--depth', '4', '--filters', '32'];"
        "runpy.run_path('experiments/cost.py', run_name='__main__');"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "16,565,900, 16,556,044 of them trainable" in done.stdout
