"""One rank of a job of scaling.py: measures the phases of a training step.

All ranks run it together; rank 0 writes the job's file.
"""

import math
import os
import resource
import sys
import time

from training_step import random_batch, run_config

MATMUL_SIDE, COPY_BYTES = 512, 2**26  # fits the cache of a core; far larger than it
SIZES_BYTES = tuple(4**power for power in range(6, 14))  # 4 KiB to 64 MiB
HOROVOD_SETTINGS = ("HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD")


def run_job(arguments):
    """Measures as one rank of a job; rank 0 writes what all ranks measured."""
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
    """Returns the controller: Gloo if horovodrun numbered the ranks itself, otherwise MPI."""
    if world.size == 1:
        return "none"
    return "Gloo" if "HOROVOD_RANK" in os.environ else "MPI"


def keep_to_cores(world, threads):
    """Binds this rank to `threads` separate cores and TensorFlow to the same number of threads.

    None leaves both as they are.
    """
    if threads is None:
        return
    cores = sorted(os.sched_getaffinity(0))
    first = world.local_rank * threads
    if first + threads > len(cores):
        sys.exit(
            f"`--threads` must be at most {len(cores)} cores divided by {world.local_size} ranks. "
            f"Received: {threads}; start fewer ranks or choose fewer threads."
        )
    for task in os.listdir("/proc/self/task"):  # Horovod's thread has already started
        os.sched_setaffinity(int(task), cores[first : first + threads])

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


class Phases:
    """The phases of one rank.

    Attributes:
      steps: {phase: function without arguments that does one step and waits for its end}.
      gradient_bytes: bytes that an allreduce of one step carries.
      waited_s: seconds that `fed` waited for batches since `start_counting`.
      batches_fed: batches that it trained on since then; a smaller one counts in proportion.
    """

    def __init__(self, arguments, world):
        from keras_nowcast.data import catalog
        from keras_nowcast.data.pipeline import WindowPipeline
        from keras_nowcast.training.build import build_compiled
        from keras_nowcast.training.distributed import World

        self.world = world
        batch = arguments.batch_per_replica
        fp16 = arguments.fp16_allreduce
        config = run_config(arguments, arguments.precision, fp16)
        plain = build_compiled(config, World()).model
        joined = build_compiled(config, world).model if world.size > 1 else plain
        x, y = random_batch(config, seed=world.rank)
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
            self.steps["allreduce"] = self._allreduce(joined, fp16)
            if share:
                self.steps["strong"] = lambda: joined.train_on_batch(x[:share], y[:share])
        bytes_each = 2 if fp16 else 4
        self.gradient_bytes = bytes_each * sum(math.prod(v.shape) for v in joined.trainable_weights)
        self.start_counting()

    def start_counting(self):
        """Sets the counts of `fed` to 0."""
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
    """Returns a function without arguments that computes for milliseconds, within the cache."""
    import tensorflow as tf

    a = tf.random.normal((MATMUL_SIDE, MATMUL_SIDE))
    multiply = tf.function(tf.matmul)

    def run():
        for _ in range(20):
            product = multiply(a, a)
        product.numpy()

    return run


def build_copy():
    """Returns a function without arguments that moves memory and computes nothing."""
    import numpy as np

    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)

    def run():
        for _ in range(5):
            np.copyto(target, source)

    return run


def measure_round(phases, world, arguments, number):
    """Measures one round of all phases.

    Returns:
      {phase: seconds per step of the slowest rank}, and `wait`, the slowest rank's seconds of
      waiting for input per step. On rank 0 also `<phase> cpu_s` and `<phase> switches`: its CPU
      seconds and voluntary context switches per step, over all its threads.
    """
    names = sorted(set(phases.steps) & set(arguments.phases or phases.steps))
    turn = number % len(names)  # each phase is the first in some rounds
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
        # The last batches of an epoch may be smaller: values are per full batch.
        batches = phases.batches_fed or arguments.steps
        taken[f"{name} cpu_s"] = (time.process_time() - cpu_s) / batches
        taken[f"{name} switches"] = (count_switches() - switches) / batches
        taken[name] = max(world.gather(mine / batches))
        if name == "fed":
            taken["wait"] = max(world.gather(phases.waited_s / batches))
    return taken


def count_switches():
    """Returns the voluntary context switches of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def measure_sizes(world, repeats=7, calls=5):
    """Returns {bytes: seconds per allreduce of a float32 tensor of that size, one per repeat}.

    Each repeat makes several calls in a row, because ranks leave a barrier at different times.
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
