"""Settings of the user that reach Keras and TensorFlow: what is pinned, and what is reported.

Keras reads ~/.keras/keras.json and KERAS_* when it is imported. Whatever they say, a training has
the TensorFlow backend, channels last and float32. Variables of TensorFlow and of the libraries
below it are left alone: they are reported, recorded, and must be the same on all ranks if they
change numbers. Where the user has not set ONEDNN, it is turned on.
"""

import contextlib
import json
import os
import re
from pathlib import Path

from keras_nowcast.errors import InputError

# Unless told otherwise, TensorFlow uses oneDNN only on processors with AVX512-VNNI, AVX512-BF16 or
# AMX. On others a step takes about 1.5 times as long without it.
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_ON = "1"
PERSISTENT = "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT"
BY_FLAG = "True"  # as --fused-relu sets it; TensorFlow ignores case, and a user writes 1 or true
_OURS = ((ONEDNN, _ON), (PERSISTENT, BY_FLAG))
_NOWHERE = os.path.join(os.devnull, "keras")  # a folder that cannot exist
_PINNED = {"floatx": "float32", "image_data_format": "channels_last", "epsilon": 1e-7}
_IN_KERAS_JSON = {"backend": "tensorflow", "nnx_enabled": False, **_PINNED}
# By name and not by TF_ alone: Terraform's variables begin with it too, and some are secrets.
_OF_TENSORFLOW = (
    "TF_(ALLOW|AUTO|AUTOTUNE|BF16|CONV|CUBLAS|CUDA|CUDNN|DEBUG|DETERMINISTIC|DISABLE|ENABLE|FORCE"
    "|FP16|GPU|GRAPPLER|JIT|LAYOUT|MATMUL|MKL|NUM|ONEDNN|OVERRIDE|PER|ROCM|SET|SYNC|USE|XLA)_.*"
)
_OF_KERAS = "KERAS_(HOME|BACKEND|MAX_EPOCHS|MAX_STEPS_PER_EPOCH|NNX_ENABLED)"
_RECORDED = re.compile(
    f"{_OF_TENSORFLOW}|{_OF_KERAS}|(XLA|OMP|GOMP|KMP|MKL|ONEDNN|DNNL|CUBLAS|CUDNN|NCCL)_.*"
    "|CUDA_LAUNCH_BLOCKING|NVIDIA_TF32_OVERRIDE|PYTHONOPTIMIZE"
)
_NUMBERS = re.compile("(TF|XLA|ONEDNN|DNNL|CUBLAS|CUDNN)_.*|MKL_CBWR|NVIDIA_TF32_OVERRIDE")
_SPEED = re.compile(".*(THREAD|ALLOW_GROWTH|ALLOCATOR|MEMUSE|VERBOSE|DUMP|LOG).*")


def load_keras():
    """Imports Keras as if the user had set nothing, and TensorFlow with it, which uses oneDNN.

    Raises:
      InputError: this process has imported Keras with another backend.
    """
    os.environ.setdefault(ONEDNN, _ON)
    with _unset("KERAS_"):
        os.environ |= {"KERAS_HOME": _NOWHERE, "KERAS_BACKEND": "tensorflow"}
        import keras
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "`KERAS_BACKEND` must be tensorflow where a model is trained. Received: "
            f"{keras.backend.backend()}, with which this process has imported Keras; start "
            "another one."
        )
    # They have these values already unless something else imported Keras before.
    for name, value in _PINNED.items():
        getattr(keras.config, f"set_{name}")(value)
    for name in ("set_max_epochs", "set_max_steps_per_epoch"):
        getattr(keras.config, name, lambda value: None)(None)


@contextlib.contextmanager
def _unset(prefix):
    """Restores the environment variables of a prefix on leaving; inside there are none."""
    set_before = {
        name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)
    }
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(prefix)]:
            del os.environ[name]
        os.environ.update(set_before)


def uses_onednn(environ=os.environ):
    """True if TensorFlow uses oneDNN on CPUs, after `load_keras`."""
    return environ.get(ONEDNN, _ON).lower() in (_ON, "true")


def _is_set(name, value):
    """True for a variable that matters and that has another value than this package gives it."""
    return bool(_RECORDED.fullmatch(name)) and (name, value) not in _OURS


def found(environ=os.environ):
    """Returns what the user has set, as {name: text}: variables, and entries of keras.json."""
    settings = {name: environ[name] for name in sorted(environ) if _is_set(name, environ[name])}
    for name, value in _keras_json(environ).items():
        settings[f"keras.json {name}"] = str(value)
    return settings


def of_numbers(environ=os.environ):
    """Returns the environment variables that change what TensorFlow computes, as {name: text}."""
    return {
        name: value
        for name, value in environ.items()
        if _is_set(name, value) and _NUMBERS.fullmatch(name) and not _SPEED.fullmatch(name)
    }


def report(settings):
    """Returns the result of `found` as one line, or None if there is nothing in it."""
    used, unused = [], []
    for name, value in settings.items():
        (unused if name.startswith(("KERAS_", "keras.json ")) else used).append(f"{name}={value}")
    parts = []
    if used:
        parts.append(f"environment variables in use: {', '.join(used)}")
    if unused:
        parts.append(f"settings of the user that are not used here: {', '.join(unused)}")
    return "; ".join(parts) or None


def _keras_json(environ):
    """Returns the entries of the user's keras.json that differ from those that are used."""
    home = environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        stored = json.loads((Path(home) / "keras.json").read_text())
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {
        name: stored[name]
        for name, value in _IN_KERAS_JSON.items()
        if stored.get(name, value) != value
    }
