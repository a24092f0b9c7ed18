"""Training on several ranks: the only import of Horovod.

Keras 3 never calls the hooks that `horovod.keras` overrides, so its DistributedOptimizer averages
nothing and reports nothing. Here the outermost optimizer's `apply` averages the gradients over all
ranks before the optimizer uses them. It must be the outermost: under mixed_float16 this is the
LossScaleOptimizer, so the scaled gradients are averaged BEFORE its check for infinities. An
overflow on one rank is then an overflow on all, and all skip the step and halve the scale together.
If the inner optimizer averaged, one rank could skip a collective in which the others wait.
"""

import importlib.util
import os
from dataclasses import dataclass

from keras_nowcast.errors import InputError, TrainingFailed
from keras_nowcast.process import launched_as
from keras_nowcast.training.user_settings import load_keras


@dataclass(frozen=True)
class World:
    """The ranks of a job, as one of them sees them.

    Attributes:
      rank: number of this rank, from 0.
      size: number of ranks, the world size.
      local_rank: number of this rank among those of its host, from 0.
      local_size: number of ranks of this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self):
        """True on rank 0, which alone writes and prints."""
        return self.rank == 0

    def average(self, tensor):
        """Returns the mean of a tensor over all ranks (in a graph or eagerly)."""
        return self._reduce(tensor, "Average")

    def total(self, tensor):
        """Returns the sum of a tensor over all ranks, in its own dtype."""
        return self._reduce(tensor, "Sum")

    def _reduce(self, tensor, operation, **more):
        if self.size == 1:
            return tensor
        import tensorflow as tf

        hvd = _horovod()
        return hvd.allreduce(tf.convert_to_tensor(tensor), op=getattr(hvd, operation), **more)

    def average_gradient(self, gradient, fp16=False):
        """Returns the mean of a gradient over all ranks, sent as float16 if `fp16` is true."""
        if gradient is None or self.size == 1:
            return gradient
        hvd = _horovod()
        compression = hvd.Compression.fp16 if fp16 else hvd.Compression.none
        return self._reduce(gradient, "Average", compression=compression)

    def gather(self, value):
        """Returns the list of each rank's `value` (anything that pickles), in order of rank."""
        return [value] if self.size == 1 else _horovod().allgather_object(value)

    def broadcast(self, value):
        """Returns rank 0's `value` on every rank."""
        return value if self.size == 1 else _horovod().broadcast_object(value, root_rank=0)

    def broadcast_variables(self, variables):
        """Sets Keras variables on every rank to the values that they have on rank 0."""
        if self.size > 1:
            _horovod().broadcast_variables([each.value for each in variables], root_rank=0)

    def on_all(self, function):
        """Calls `function()` on every rank and returns the result of this rank.

        Raises:
          InputError: `function` raised it on some rank; every rank raises it, with that rank's
            number.
        """
        result, refusal = None, None
        try:
            result = function()
        except InputError as error:
            if self.size == 1:
                raise
            refusal = f"rank {self.rank}: {error}"
        refusals = [each for each in self.gather(refusal) if each is not None]
        if refusals:
            raise InputError(refusals[0])
        return result

    def on_first(self, function):
        """Calls `function()` on rank 0 only and returns its result on all ranks.

        Raises:
          InputError: `function` raised it; every rank raises it, so that none is left waiting.
          TrainingFailed: `function` raised an OSError (a full disk, for example); every rank
            raises this.
        """
        outcome = None
        if self.is_first:
            try:
                outcome = (function(), None, None)
            except (InputError, OSError) as error:
                outcome = (None, isinstance(error, InputError), str(error))
        result, is_input, message = self.broadcast(outcome)
        if message is not None:
            raise (InputError if is_input else TrainingFailed)(message)
        return result


NEEDED = ("init", "allreduce", "allgather_object", "broadcast_object", "broadcast_variables")


def start(deterministic=False):
    """Connects the ranks of this job. Without a launcher, TensorFlow is not loaded.

    Args:
      deterministic: True if the same command must give the same bits again. Each gradient is then
        sent alone, because with three ranks or more the sums depend on which gradients are fused.

    Returns:
      The World; that of a single rank if no launcher started this process.

    Raises:
      InputError: a launcher started several processes and Horovod is not installed or incomplete.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # from 2 on, TensorFlow prints errors only
    launched = launched_as()
    if launched is None:
        return World()
    if importlib.util.find_spec("horovod") is None:
        if launched[1] == 1:
            return World()
        raise InputError(
            f"`horovod` must be installed to train on several processes. Received: {launched[1]} "
            "processes and no Horovod; run `make install`, or start one process."
        )
    if deterministic:
        os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"
    # Horovod waits for the other ranks in a separate thread, up to once per millisecond. Open MPI
    # spins while it waits unless it is set to yield the core, which the step needs here.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    load_keras()  # before Horovod, which imports it too
    hvd = _complete_horovod()
    hvd.init()
    if hvd.size() != launched[1]:
        raise InputError(
            f"`horovod` must see every process of the launcher. Received: {launched[1]} started, "
            f"{hvd.size()} seen; start with horovodrun, or with mpirun and a Horovod that has MPI."
        )
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size())
    _claim_devices(world)  # before the first collective, after which it is too late
    return world


def load_tensorflow(world):
    """Loads TensorFlow for a single process, which did not need it to `start`.

    Raises:
      InputError: this process has imported Keras with another backend than TensorFlow.
    """
    if world.size == 1:
        load_keras()
        _claim_devices(world)


def _claim_devices(world):
    """Makes this rank's GPU the only one that TensorFlow sees, and divides the cores by rank.

    If the launcher already shows each rank one GPU only, as Slurm does, that GPU is used.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        mine = gpus[world.local_rank % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    if world.local_size > 1 and "TF_NUM_INTRAOP_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // world.local_size))


def build_distributed(optimizer, world, fp16=False):
    """Re-creates an optimizer as one that averages gradients over all ranks before it applies them.

    Args:
      optimizer: the outermost Keras optimizer, not yet built.
      world: the World.
      fp16: True to send gradients as float16.

    Returns:
      An optimizer of a subclass of its class, whose `apply` takes a `divisor`, a scalar by which it
      divides the averages; the same optimizer in a world of one.
    """
    if world.size == 1:
        return optimizer

    class Distributed(type(optimizer)):
        def apply(self, grads, trainable_variables=None, divisor=None):
            # One allreduce per gradient, so that the first are sent while the backward pass still
            # computes the others; Horovod fuses small ones.
            grads = [world.average_gradient(gradient, fp16) for gradient in grads]
            if divisor is not None:
                import tensorflow as tf

                grads = [g if g is None else tf.math.divide_no_nan(g, divisor) for g in grads]
            return super().apply(grads, trainable_variables)

    Distributed.__name__ = f"Distributed{type(optimizer).__name__}"
    return Distributed.from_config(optimizer.get_config())


def horovod_version():
    """Returns the version of Horovod, or None if it is not installed."""
    if importlib.util.find_spec("horovod") is None:
        return None
    import horovod

    return horovod.__version__


def horovod_features():
    """Returns {name: whether Horovod was built with it} of controllers and operations, or None."""
    if horovod_version() is None:
        return None
    hvd = _horovod()
    return {
        "Gloo": bool(hvd.gloo_built()),
        "MPI": bool(hvd.mpi_built()),
        "NCCL": bool(hvd.nccl_built()),
        "CUDA": bool(hvd.cuda_built()),
    }


def _complete_horovod():
    """Returns Horovod's module after checking that it has everything that training calls.

    Raises:
      InputError: it does not load, or a function is missing.
    """
    try:
        hvd = _horovod()
    except Exception as error:  # any error of a library that was built for another TensorFlow
        raise InputError(
            "`horovod` must load with this TensorFlow to train on several processes. Received: "
            f"{str(error).splitlines()[0]}; run `make install`, or start one process."
        ) from None
    absent = [name for name in NEEDED if not hasattr(hvd, name)]
    if absent:
        raise InputError(
            f"`horovod` must have {', '.join(NEEDED)} to train on several processes. Received: "
            f"Horovod {horovod_version()} without {', '.join(absent)}; run `make install`, which "
            "builds 0.28.1."
        )
    return hvd


def _horovod():
    import horovod.tensorflow as hvd

    return hvd
