import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_nowcast
from keras_nowcast.errors import InputError
from keras_nowcast.model.loss import MaskedMeanSquaredError
from keras_nowcast.model.sizes import default_center_filters
from keras_nowcast.model.unet import build_unet, read_unet, write_unet


def _unet(grid=32, depth=2, filters=2, center_filters=None, frames_in=13, frames_out=12):
    return build_unet(grid, frames_in, frames_out, depth, filters, center_filters)


def _trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.fixture
def policy():
    yield keras.mixed_precision.set_global_policy
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    ("filters", "trainable", "parameters"), [(16, 4143628, 4148556), (32, 16556044, 16565900)]
)
def test_parameters_of_the_authors_network(filters, trainable, parameters):
    model = _unet(grid=384, depth=4, filters=filters)
    assert _trainable(model) == trainable
    assert model.count_params() == parameters


def test_parameters_by_hand():
    # Depth 1, one filter, a center of two: every layer is small enough to count.
    model = _unet(grid=2, depth=1, filters=1, center_filters=2, frames_in=2, frames_out=3)
    counts = {layer.name: layer.count_params() for layer in model.layers if layer.weights}
    assert counts == {
        "encoder_1_conv_1": 9 * 2 * 1 + 1,
        "encoder_1_norm_1": 4,
        "encoder_1_conv_2": 9 * 1 * 1 + 1,
        "encoder_1_norm_2": 4,
        "center_conv_1": 9 * 1 * 2 + 2,
        "center_norm_1": 8,
        "center_conv_2": 9 * 2 * 2 + 2,
        "center_norm_2": 8,
        "decoder_1_upsample": 4 * 2 * 1 + 1,
        "decoder_1_norm": 8,
        "decoder_1_conv_1": 9 * 2 * 1 + 1,
        "decoder_1_norm_1": 4,
        "decoder_1_conv_2": 9 * 1 * 1 + 1,
        "decoder_1_norm_2": 4,
        "head": 1 * 3 + 3,
    }


def test_names_read_as_the_paper():
    names = [layer.name for layer in _unet(depth=1).layers]
    assert names == [
        "vil",
        "scale_vil",
        "encoder_1_conv_1",
        "encoder_1_norm_1",
        "encoder_1_relu_1",
        "encoder_1_conv_2",
        "encoder_1_norm_2",
        "encoder_1_relu_2",
        "encoder_1_pool",
        "center_conv_1",
        "center_norm_1",
        "center_relu_1",
        "center_conv_2",
        "center_norm_2",
        "center_relu_2",
        "decoder_1_upsample",
        "decoder_1_concatenate",
        "decoder_1_norm",
        "decoder_1_relu",
        "decoder_1_conv_1",
        "decoder_1_norm_1",
        "decoder_1_relu_1",
        "decoder_1_conv_2",
        "decoder_1_norm_2",
        "decoder_1_relu_2",
        "head",
    ]


@pytest.mark.parametrize("depth", range(1, 7))
def test_every_depth(depth):
    model = _unet(grid=64, depth=depth, filters=1)
    assert model.input_shape == (None, 64, 64, 13)
    assert model.input.dtype == "uint8"
    assert model.output_shape == (None, 64, 64, 12)
    centre = model.get_layer("center_conv_1")
    assert centre.filters == default_center_filters(depth, 1)
    assert centre.output.shape[1] == 64 // 2**depth
    assert model.get_layer(f"decoder_{depth}_conv_1").filters == 2 ** (depth - 1)


@pytest.mark.parametrize("name", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_head_is_float32(name, policy):
    policy(name)
    model = _unet(grid=8)
    assert (
        model.get_layer("encoder_1_conv_1").compute_dtype == keras.DTypePolicy(name).compute_dtype
    )
    assert {v.dtype for v in model.variables} == {"float32"}
    forecast = model(np.zeros((1, 8, 8, 13), "uint8"))
    assert forecast.dtype == "float32"


def test_missing_is_no_echo():
    model = _unet(grid=8)
    vil = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 13)).astype("uint8")
    vil[:, 2:5] = 0
    gaps = vil.copy()
    gaps[:, 2:5] = 255
    np.testing.assert_array_equal(model(gaps), model(vil))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"grid": 100, "depth": 3}, "`--grid` .*multiple of 8 at `--depth` 3.* Received: 100"),
        ({"grid": 0}, "`--grid` .*Received: 0"),
        ({"depth": 9}, "`--depth` must be 1 to 6. Received: 9"),
        ({"depth": 0}, "`--depth` .*Received: 0"),
        ({"filters": 0}, "`--filters` .*Received: 0"),
        ({"center_filters": 0}, "`--center-filters` .*Received: 0"),
    ],
)
def test_sizes_that_make_no_network(sizes, words):
    with pytest.raises(InputError, match=words):
        _unet(**sizes)


@pytest.mark.slow
def test_it_learns():
    keras.utils.set_random_seed(0)
    model = _unet(grid=16, filters=4)
    model.compile(keras.optimizers.Adam(3e-2), MaskedMeanSquaredError(), jit_compile=False)
    still = np.random.default_rng(0).integers(0, 101, (4, 16, 16, 1)).astype("uint8")
    vil = np.repeat(still, 13, axis=-1)  # a constant storm: the forecast is the last frame
    losses = model.fit(vil, vil[..., :12], epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


LOAD = """
import sys
import keras, numpy as np
import keras_nowcast.model.layers
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
np.save(sys.argv[3], model(np.load(sys.argv[2])))
assert not model.compiled
ours = sorted(name for name in sys.modules if name.startswith("keras_nowcast."))
assert ours == ["keras_nowcast.model", "keras_nowcast.model.layers", "keras_nowcast.vil"], ours
"""


@pytest.mark.slow
def test_a_saved_network_loads_with_our_layers_alone(tmp_path, policy):
    policy("mixed_bfloat16")
    model = _unet(grid=16)
    model.compile(keras.optimizers.Adam(1e-3), MaskedMeanSquaredError())
    vil = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 13)).astype("uint8")
    model.train_on_batch(vil, vil[..., :12])
    write_unet(model, tmp_path / "model.keras")
    np.save(tmp_path / "vil.npy", vil)
    names = [str(tmp_path / name) for name in ("model.keras", "vil.npy", "forecast.npy")]
    environment = os.environ | {"PYTHONPATH": str(Path(keras_nowcast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "forecast.npy"), model(vil))
    assert model.compiled  # writing did not change the model


def test_a_file_that_is_no_network_is_one_line(tmp_path):
    broken = tmp_path / "model.keras"
    broken.write_bytes(b"PK and no more")
    with pytest.raises(InputError, match="`run` must hold a model that can be loaded"):
        read_unet(broken)
