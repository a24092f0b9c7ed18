"""The number format of training, and how it is chosen.

Variables are float32 under every policy; the mixed policies compute in half precision.
"""

from keras_nowcast.errors import InputError
from keras_nowcast.machine import CPUINFO, cpu_has_bfloat16

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


def choose_precision(asked, gpus, cpuinfo=CPUINFO):
    """Returns (policy, reason): the name of a Keras policy, and the reason as text for the user.

    "auto" means:
    - mixed_float16 on GPUs of compute capability 7 or more, which have tensor cores;
    - mixed_bfloat16 without a GPU, if the CPU has the instructions;
    - float32 otherwise.

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
        return asked, "requested; about 15 times slower than float32 on a CPU, for tests only"
    if asked != "auto":
        return asked, "requested"
    if gpus:
        major, minor = min(gpus)
        if major >= 7:
            return "mixed_float16", f"GPU of compute capability {major}.{minor}"
        return "float32", f"GPU of compute capability {major}.{minor}, below 7"
    if cpu_has_bfloat16(cpuinfo):
        return "mixed_bfloat16", "no GPU; the CPU has bfloat16 instructions"
    return "float32", "no GPU; the CPU has no bfloat16 instructions"


def set_precision(policy):
    """Sets the policy in which layers that are built from now on compute."""
    import keras

    keras.mixed_precision.set_global_policy(policy)
