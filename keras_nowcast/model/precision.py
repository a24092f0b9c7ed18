"""Number formats of training: which one to use, and what follows from it.

Variables are float32 under every policy here; the mixed ones compute in half precision.
"""

from keras_nowcast.errors import InputError
from keras_nowcast.machine import CPUINFO, cpu_has_bfloat16

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


def choose_precision(asked, gpus, cpuinfo=CPUINFO):
    """Returns (policy, reason): a name Keras knows, and why, in words for the user.

    auto is mixed_float16 on GPUs of compute capability 7 (tensor cores) or more; without a GPU
    mixed_bfloat16 where the CPU has the instructions; else float32.

    Choice: an older GPU gets float32 and not the CPU's bfloat16, which it would have to emulate.

    Args:
      asked: one of PRECISIONS.
      gpus: compute capability (major, minor) of each GPU in use; empty on a CPU.
      cpuinfo: the file that lists the CPU's flags.

    Raises:
      InputError: `asked` is not one of PRECISIONS.
    """
    if asked not in PRECISIONS:
        raise InputError(
            f"`--precision` must be one of {', '.join(PRECISIONS)}. Received: {asked}."
        )
    if asked == "mixed_float16" and not gpus:
        return asked, "asked for; about 15 times slower than float32 on a CPU, for tests only"
    if asked != "auto":
        return asked, "asked for"
    if gpus:
        major, minor = min(gpus)
        if major >= 7:
            return "mixed_float16", f"GPU of compute capability {major}.{minor}"
        return "float32", f"GPU of compute capability {major}.{minor}, below 7"
    if cpu_has_bfloat16(cpuinfo):
        return "mixed_bfloat16", "no GPU; the CPU has bfloat16 instructions"
    return "float32", "no GPU; the CPU has no bfloat16 instructions"


def set_precision(policy):
    """Makes `policy` the one in which layers built from now on compute."""
    import keras

    keras.mixed_precision.set_global_policy(policy)


def build_optimizer(learning_rate, policy):
    """Returns Adam, under mixed_float16 inside a dynamic loss scale (the outermost optimizer).

    Source: the authors train with Adam; its other settings are Keras' defaults.
    """
    import keras

    optimizer = keras.optimizers.Adam(learning_rate)
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
