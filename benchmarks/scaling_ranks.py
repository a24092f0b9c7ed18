"""What one rank of a job of scaling.py measures: the phases of a training step."""

import math
import os
import resource
import sys
import time

MATMUL_SIDE, COPY_BYTES = 512, 2**26  # in the cache of a core, and far beyond it
SIZES_BYTES = tuple(4**power for power in range(6, 14))  # 4 KiB to 64 MiB
HOROVOD_SETTINGS = ("HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD")


def run_job(arguments):
    """Measures as one process of a job; the first writes what all measured."""
    from keras_nowcast.files import write_json
    from keras_nowcast.training import distributed

    world = distributed.start()
    keep_to_cores(world, arguments.threads)
    distributed.load_tensorflow(world)
    phases = Phases(arguments, world)
    rounds = [measure_round(phases, world, arguments, number) for number in range(arguments.rounds)]
    sizes = measure_sizes(world) if world.size > 1 else {}
    hosts = world.gather(os.uname().nodename)
    if world.is_first:
        arguments.out.mkdir(parents=True, exist_ok=True)
        job = {
            "world_size": world.size,
            "controller": controller(world),
            "hosts": len(set(hosts)),
            "config": {
                name: getattr(arguments, name)
                for name in (
                    "depth",
                    "filters",
                    "grid",
                    "batch_per_replica",
                    "precision",
                    "fp16_allreduce",
                    "threads",
                    "steps",
                )
            },
            "horovod": {k: v for k, v in os.environ.items() if k in HOROVOD_SETTINGS},
            "gradient_bytes": phases.gradient_bytes,
            "rounds": rounds,
            "allreduce_s_by_bytes": sizes,
        }
        write_json(arguments.out / f"np{world.size}-{job['controller']}.json", job)


def controller(world):
    """Returns what joins the processes: horovodrun numbers them itself where it is Gloo."""
    if world.size == 1:
        return "none"
    return "Gloo" if "HOROVOD_RANK" in os.environ else "MPI"


def keep_to_cores(world, threads):
    """Binds this process to `threads` cores of its own and TensorFlow to as many threads."""
    if threads is None:
        return
    cores = sorted(os.sched_getaffinity(0))
    first = world.local_rank * threads
    if first + threads > len(cores):
        sys.exit(
            f"{world.local_size} processes of {threads} threads need more than {len(cores)} cores"
        )
    for task in os.listdir("/proc/self/task"):  # Horovod's thread is there already
        os.sched_setaffinity(int(task), cores[first : first + threads])

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


class Phases:
    """What is measured: functions of no arguments that do one step and wait for its end.

    Attributes:
      gradient_bytes: that an allreduce of one step carries.
    """

    def __init__(self, arguments, world):
        import numpy as np
        import tensorflow as tf

        from keras_nowcast.data import catalog
        from keras_nowcast.data.pipeline import WindowPipeline
        from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

        self.world = world
        batch = arguments.batch_per_replica
        plain = build_model(arguments, None)
        joined = build_model(arguments, world) if world.size > 1 else plain
        rng = np.random.default_rng(world.rank)
        shape = (batch, arguments.grid, arguments.grid, FRAMES_IN + FRAMES_OUT)
        frames = rng.integers(0, MISSING, shape, "uint8")
        x, y = (tf.constant(part) for part in np.split(frames, [FRAMES_IN], axis=-1))
        share = batch // world.size
        events = catalog.read_catalog(arguments.data, say=str)
        pipeline = WindowPipeline(
            events,
            grid=arguments.grid,
            batch_per_replica=batch,
            rank=world.rank,
            world_size=world.size,
            threads=arguments.threads,
        )
        self._batches = iter(pipeline.dataset())
        self._batch = batch
        self._joined = joined
        self.steps = {
            "alone": lambda: plain.train_on_batch(x, y),
            "fed": self._fed,
            "matmul_alone": build_matmul(),
            "copy_alone": build_copy(),
        }
        if world.size > 1:
            self.steps["beside"] = self.steps["alone"]
            self.steps["matmul_beside"] = self.steps["matmul_alone"]
            self.steps["copy_beside"] = self.steps["copy_alone"]
            self.steps["together"] = lambda: joined.train_on_batch(x, y)
            self.steps["allreduce"] = self._allreduce(joined, arguments.fp16_allreduce)
            if share:
                self.steps["strong"] = lambda: joined.train_on_batch(x[:share], y[:share])
        bytes_each = 2 if arguments.fp16_allreduce else 4
        self.gradient_bytes = bytes_each * sum(math.prod(v.shape) for v in joined.trainable_weights)
        self.start_counting()

    def start_counting(self):
        """Sets what `fed` counts to 0."""
        self.waited_s, self.batches_fed = 0.0, 0.0

    def _fed(self):
        began = time.perf_counter()
        x, y = next(self._batches)
        self.waited_s += time.perf_counter() - began
        self.batches_fed += len(x) / self._batch
        self._joined.train_on_batch(x, y)

    def _allreduce(self, model, fp16):
        import tensorflow as tf

        gradients = [tf.ones(each.shape) for each in model.trainable_variables]

        @tf.function
        def average():
            return [self.world.average_gradient(each, fp16) for each in gradients]

        return lambda: average()[-1].numpy()


def build_matmul():
    """Returns a function of no arguments that computes some milliseconds and needs no memory."""
    import tensorflow as tf

    a = tf.random.normal((MATMUL_SIDE, MATMUL_SIDE))
    multiply = tf.function(tf.matmul)

    def run():
        for _ in range(20):
            product = multiply(a, a)
        product.numpy()

    return run


def build_copy():
    """Returns a function of no arguments that moves memory and computes nothing."""
    import numpy as np

    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)

    def run():
        for _ in range(5):
            np.copyto(target, source)

    return run


def build_model(arguments, world):
    """Returns a compiled UNet; over the ranks of a World, or None for this process alone."""
    from keras_nowcast.model.loss import MaskedMeanSquaredError
    from keras_nowcast.model.precision import build_optimizer, set_precision
    from keras_nowcast.model.unet import build_unet
    from keras_nowcast.training import distributed
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    set_precision(arguments.precision)
    sizes = (arguments.grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.filters)
    model = build_unet(*sizes)
    optimizer = build_optimizer(1e-3, arguments.precision)
    average = None
    if world is not None:
        optimizer = distributed.build_distributed(optimizer, world, arguments.fp16_allreduce)
        average = distributed.StopFlags(world).average
    model.compile(optimizer, MaskedMeanSquaredError(average=average), jit_compile=False)
    optimizer.build(model.trainable_variables)
    return model


def measure_round(phases, world, arguments, number):
    """Returns {phase: seconds a step of the slowest process} of one round, and `wait`.

    Also `<phase> cpu_s` and `<phase> switches`: the first process's processor seconds and voluntary
    context switches a step, of all its threads.
    """
    names = sorted(set(phases.steps) & set(arguments.phases or phases.steps))
    turn = number % len(names)  # none is always first
    taken = {}
    for name in names[turn:] + names[:turn]:
        step = phases.steps[name]
        takes_part = not name.endswith("alone") or world.is_first
        if number == 0 and takes_part:
            for _ in range(2):
                step()  # traces
        phases.start_counting()
        world.gather(None)
        switches, cpu_s, began = count_switches(), time.process_time(), time.perf_counter()
        for _ in range(arguments.steps if takes_part else 0):
            step()
        mine = time.perf_counter() - began
        # The last batches of an epoch may be smaller: told for whole ones.
        batches = phases.batches_fed or arguments.steps
        taken[f"{name} cpu_s"] = (time.process_time() - cpu_s) / batches
        taken[f"{name} switches"] = (count_switches() - switches) / batches
        taken[name] = max(world.gather(mine / batches))
        if name == "fed":
            taken["wait"] = max(world.gather(phases.waited_s / batches))
    return taken


def count_switches():
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def measure_sizes(world, repeats=7, calls=5):
    """Returns {bytes: seconds an allreduce of one float32 tensor of that size, of each repeat}.

    Several calls in a row, because processes leave a barrier at unlike times.
    """
    import tensorflow as tf

    taken_s = {}
    for size in SIZES_BYTES:
        tensor = tf.ones(size // 4)
        average = tf.function(lambda tensor=tensor: world.average(tensor))
        average()
        taken_s[size] = []
        for _ in range(repeats):
            world.gather(None)
            began = time.perf_counter()
            for _ in range(calls):
                average().numpy()
            taken_s[size].append((time.perf_counter() - began) / calls)
    return taken_s
