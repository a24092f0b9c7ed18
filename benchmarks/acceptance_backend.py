"""The backend of the acceptance run: Keras on TensorFlow, JAX or PyTorch."""

import importlib.util
import math
import os
import time

from acceptance_findings import CannotTry

BACKENDS = ("tensorflow", "jax", "torch")


def choose_backend(asked="auto"):
    """Returns the name of the backend that Keras will use, and sets it for this process.

    "auto" is KERAS_BACKEND if that is set, and otherwise the first of BACKENDS that is installed.

    Raises:
      CannotTry: Keras or the backend is not installed.
    """
    if importlib.util.find_spec("keras") is None:
        raise CannotTry("Keras is not installed")
    if asked == "auto":
        asked = os.environ.get("KERAS_BACKEND") or next(filter(_installed, BACKENDS), None)
    if asked is None:
        raise CannotTry(f"none of {', '.join(BACKENDS)} is installed")
    if not _installed(asked):
        raise CannotTry(f"{asked} is not installed")
    os.environ["KERAS_BACKEND"] = asked
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return asked


def _installed(name):
    return importlib.util.find_spec(name) is not None


def load_backend(asked="auto"):
    """Returns the backend, loaded: a TensorFlowBackend, JaxBackend or TorchBackend."""
    kinds = {"tensorflow": TensorFlowBackend, "jax": JaxBackend, "torch": TorchBackend}
    return kinds[choose_backend(asked)]()


def need_gpu(backend, options):
    """Raises CannotTry if the backend uses no GPU, which is expected only in a rehearsal."""
    if not backend.gpus and not options.rehearse:
        raise CannotTry(f"{backend.name} uses no GPU in this process")


class TensorFlowBackend:
    """TensorFlow.

    Attributes:
      name: of the backend.
      gpus: number of GPUs that it uses in this process.
      capability: compute capability (major, minor) of the first, or None if there is no GPU.
      compiles: whether Keras compiles the training step with XLA.
    """

    name, compiles = "tensorflow", False

    def __init__(self):
        import tensorflow

        self._tf = tensorflow
        gpus = tensorflow.config.list_physical_devices("GPU")
        for gpu in gpus:
            tensorflow.config.experimental.set_memory_growth(gpu, True)
        self.gpus, self.capability = len(gpus), None
        if gpus:
            details = tensorflow.config.experimental.get_device_details(gpus[0])
            self.capability = details.get("compute_capability", (0, 0))

    def set_tf32(self, on):
        """Allows TensorFloat-32 in float32 products, or not."""
        self._tf.config.experimental.enable_tensor_float_32_execution(on)

    def to_device(self, array):
        """Copies an array to the device and waits for it."""
        with self._tf.device("/GPU:0" if self.gpus else "/CPU:0"):
            copied = self._tf.identity(self._tf.constant(array))
        copied[(0,) * len(array.shape)].numpy()

    def reset_peak(self):
        """Begins to measure the peak memory."""
        if self.gpus:
            self._tf.config.experimental.reset_memory_stats("GPU:0")

    def peak_bytes(self):
        """Returns the peak device memory since `reset_peak`, or None if it is unknown."""
        if not self.gpus:
            return None
        return self._tf.config.experimental.get_memory_info("GPU:0")["peak"]


class JaxBackend:
    """JAX; the methods are those of TensorFlowBackend."""

    name, compiles = "jax", True

    def __init__(self):
        import jax

        self._jax = jax
        self.gpus = jax.device_count() if jax.default_backend() == "gpu" else 0
        self.capability = None
        if self.gpus:
            major, minor = str(jax.devices()[0].compute_capability).split(".")
            self.capability = (int(major), int(minor))
        self._peak_before = 0

    def set_tf32(self, on):
        """Allows TensorFloat-32 in float32 products, or not."""
        precision = "tensorfloat32" if on else "highest"
        self._jax.config.update("jax_default_matmul_precision", precision)

    def to_device(self, array):
        """Copies an array to the device and waits for it."""
        self._jax.device_put(array).block_until_ready()

    def reset_peak(self):
        """Begins to measure the peak memory. JAX has no reset, so a lower peak stays unknown."""
        self._peak_before = self._peak() or 0

    def peak_bytes(self):
        """Returns the peak device memory since `reset_peak`, or None if it is unknown."""
        peak = self._peak()
        return peak if peak and peak > self._peak_before else None

    def _peak(self):
        return (self._jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class TorchBackend:
    """PyTorch; the methods are those of TensorFlowBackend."""

    name, compiles = "torch", False

    def __init__(self):
        import torch

        self._torch = torch
        self.gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self.capability = torch.cuda.get_device_capability(0) if self.gpus else None

    def set_tf32(self, on):
        """Allows TensorFloat-32 in float32 products, or not."""
        self._torch.backends.cuda.matmul.allow_tf32 = on
        self._torch.backends.cudnn.allow_tf32 = on

    def to_device(self, array):
        """Copies an array to the device and waits for it."""
        copied = self._torch.from_numpy(array).to("cuda" if self.gpus else "cpu", copy=True)
        if self.gpus:
            self._torch.cuda.synchronize()
        return copied

    def reset_peak(self):
        """Begins to measure the peak memory."""
        if self.gpus:
            self._torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self):
        """Returns the peak device memory since `reset_peak`, or None if it is unknown."""
        return self._torch.cuda.max_memory_allocated() if self.gpus else None


class Load:
    """Keeps the device busy with products of large matrices.

    Args:
      side: rows of the matrices.
    """

    def __init__(self, side):
        from keras import ops

        self._ops = ops
        # Each product equals the matrix again, so that nothing overflows.
        self._matrix = ops.full((side, side), 1 / side, dtype="float32")
        self.run(0.0)

    def run(self, seconds):
        """Computes for that many seconds, at least one product, and waits for the device."""
        until = time.monotonic() + seconds
        while True:
            product = self._ops.matmul(self._matrix, self._matrix)
            self._ops.convert_to_numpy(product[0, 0])
            if time.monotonic() >= until:
                return

    def cycle(self, period_s, duty, seconds):
        """Repeats: busy for `duty` of each period, then idle for the rest."""
        began = time.monotonic()
        for number in range(max(1, math.floor(seconds / period_s))):
            if duty > 0:
                self.run(period_s * duty)
            time.sleep(max(0.0, began + (number + 1) * period_s - time.monotonic()))
