"""Settings of the user: those of Keras have no effect, those of TensorFlow are reported."""

import json
import os
import subprocess
import sys
import types

import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.training import user_settings

ODD = {"backend": "torch", "image_data_format": "channels_first", "floatx": "int8", "epsilon": 0.1}
SHOW = """
import os
from keras_nowcast.training.user_settings import load_keras
before = dict(os.environ)
load_keras()
import keras
of = keras.config
print(of.backend(), of.image_data_format(), of.floatx(), of.epsilon(), of.max_epochs())
print({name for name in os.environ if name.startswith("KERAS_")} == set(NAMES))
"""


@pytest.mark.slow
def test_keras_is_loaded_as_if_nothing_were_set(tmp_path):
    """Two of these values end the import of Keras, and one would end each fit after an epoch."""
    (tmp_path / "keras.json").write_text(json.dumps(ODD))
    mine = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "one"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.replace("NAMES", repr(list(mine)))],
        env={**os.environ, **mine},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["tensorflow channels_last float32 1e-07 None", "True"], (
        done.stderr
    )


def test_what_another_import_of_keras_took_up_is_put_right():
    import keras

    keras.config.set_image_data_format("channels_first")
    keras.config.set_epsilon(0.1)
    keras.config.set_max_epochs(1)
    user_settings.load_keras()
    assert keras.config.image_data_format() == "channels_last"
    assert keras.config.epsilon() == 1e-7
    assert keras.config.max_epochs() is None


def test_another_backend_that_is_loaded_already_is_refused(monkeypatch):
    loaded = types.SimpleNamespace(backend=types.SimpleNamespace(backend=lambda: "jax"))
    monkeypatch.setitem(sys.modules, "keras", loaded)
    with pytest.raises(InputError, match="`KERAS_BACKEND` must be tensorflow.*Received: jax, with"):
        user_settings.load_keras()


def test_the_environment_of_other_programs_stays(monkeypatch):
    """For example of the energy callback's users, who import another Keras in a process of ours."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    user_settings.load_keras()
    assert os.environ["KERAS_BACKEND"] == "jax" and "KERAS_HOME" not in os.environ


def test_what_is_found(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps(ODD | {"image_data_format": "channels_last"}))
    environ = {
        "KERAS_HOME": str(tmp_path),
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "OMP_NUM_THREADS": "3",
        "NVIDIA_TF32_OVERRIDE": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_VAR_password": "secret",  # Terraform's
        "TF_TOKEN_app_terraform_io": "secret",
        "KERAS_NOWCAST_PYTHON": "python",
        "HOROVOD_RANK": "0",
        "PATH": "/bin",
    }
    assert user_settings.found(environ) == {
        "KERAS_HOME": str(tmp_path),
        "NVIDIA_TF32_OVERRIDE": "0",
        "OMP_NUM_THREADS": "3",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "keras.json backend": "torch",
        "keras.json epsilon": "0.1",
        "keras.json floatx": "int8",
    }
    assert user_settings.of_numbers(environ) == {
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "NVIDIA_TF32_OVERRIDE": "0",
    }


@pytest.mark.parametrize(
    "name",
    [
        *("TF_NUM_INTRAOP_THREADS", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR"),
        *("KMP_BLOCKTIME", "OMP_NUM_THREADS"),
    ],
)
def test_what_changes_speed_alone_may_differ_between_ranks(name):
    assert user_settings.found({name: "1", "KERAS_HOME": "/nowhere"})[name] == "1"
    assert user_settings.of_numbers({name: "1"}) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS", "TF_XLA_FLAGS"),
        *("TF_FP16_CONV_USE_FP32_COMPUTE", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_CBWR"),
        *("TF_CUDNN_USE_AUTOTUNE", "CUBLAS_WORKSPACE_CONFIG"),
    ],
)
def test_what_changes_numbers_may_not(name):
    assert user_settings.of_numbers({name: "0"}) == {name: "0"}


USE_ONEDNN = """
import tensorflow as tf
from keras_nowcast.training import user_settings
user_settings.load_keras()
from tensorflow.python.util import _pywrap_util_port
print(_pywrap_util_port.IsMklEnabled(), user_settings.uses_onednn(), user_settings.found())
"""


@pytest.mark.parametrize("value, used", [(None, True), ("1", True), ("0", False)])
def test_onednn_is_used_unless_the_user_turns_it_off(tmp_path, value, used):
    """Also where TensorFlow was imported before, since it reads the variable with its first use."""
    environ = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environ.pop(user_settings.ONEDNN, None)
    if value is not None:
        environ[user_settings.ONEDNN] = value
    done = subprocess.run(
        [sys.executable, "-c", USE_ONEDNN], env=environ, capture_output=True, text=True, check=True
    )
    enabled, said, settings = done.stdout.split(maxsplit=2)
    assert (enabled, said) == (str(used), str(used))
    assert (user_settings.ONEDNN in settings) == (not used)


def test_onednn_on_is_no_setting_of_the_user():
    assert user_settings.of_numbers({user_settings.ONEDNN: "1"}) == {}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"backend": "tensorflow", "more": 1}'])
def test_a_keras_json_without_a_setting(tmp_path, text):
    (tmp_path / "keras.json").write_text(text)
    environ = {"KERAS_HOME": str(tmp_path)}
    assert user_settings.found(environ) == environ


def test_the_line_says_what_is_used():
    assert user_settings.report({}) is None
    assert user_settings.report({"XLA_FLAGS": "a", "keras.json floatx": "b"}) == (
        "environment variables in use: XLA_FLAGS=a; settings of the user that are not used here: "
        "keras.json floatx=b"
    )
