"""Strong and weak scaling over processes: what a step takes alone, side by side, and together.

On one machine, it starts the jobs itself, in turn, and writes the results and the model:

    python benchmarks/scaling.py --data ../shared/radar --processes 1 2 --threads 1 \\
        --launcher "horovodrun -np {} --gloo" "mpirun -np {} -bind-to none"

On a cluster, one job a number of processes, by whatever starts processes there, then the report:

    srun -n 64 python benchmarks/scaling.py --data /data/sevir --out scaling
    python benchmarks/scaling.py --report scaling

In each round of a job the phases take turns, so that what else the machine does falls on all alike:

    alone       the first process trains by itself, the others wait
    beside      all train, each its own network, without any allreduce: what the machine allows
    together    all train one network, a batch each (weak scaling)
    strong      all train one network and share one batch
    fed         as together, on batches read from --data; the wait for them is apart, and what
                reading adds by working on the same cores
    allreduce   the gradients of one step are averaged and nothing else is done

Where `beside` is slower than `alone`, the processes share something of the machine; a matmul that
stays in the cache and a copy of memory, alone and beside each other, tell which: cores or memory.
Processor seconds and voluntary context switches of a step tell what waiting costs: where each
process has one core, Horovod's thread shares it with the step, also while nothing is averaged.

The step is the trainer's, with the network, loss and optimizer it builds. A phase's time is that of
its slowest process. Each process keeps to its own --threads cores (the reference too), as under
a batch system; without --threads, to what the launcher gave it.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from result_files import write_results

from keras_nowcast.process import launched_as

MATMUL_SIDE, COPY_BYTES = 512, 2**26  # in the cache of a core, and far beyond it
SIZES_BYTES = tuple(4**power for power in range(6, 14))  # 4 KiB to 64 MiB
LEAST_TURNS, RESAMPLES = 3, 1000  # of the interval of a median
MODEL_PROCESSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def main():
    arguments = build_parser().parse_args()
    if arguments.report:
        report(arguments, read_jobs(arguments.report))
    elif launched_as() or arguments.processes is None:
        run_job(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            start_jobs(arguments, Path(folder))
            report(arguments, read_jobs(Path(folder)))


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="root of a SEVIR data set")
    parser.add_argument("--processes", type=int, nargs="+", help="start a job of each, in turn")
    parser.add_argument("--jobs", type=int, default=3, help="of each number of processes")
    parser.add_argument(
        "--launcher",
        nargs="+",
        default=["horovodrun -np {} --gloo"],
        help="for --processes; at most one for Gloo and one for MPI",
    )
    parser.add_argument("--threads", type=int, help="cores of a process")
    parser.add_argument("--out", type=Path, default=Path("scaling"), help="folder of a job's file")
    parser.add_argument("--name", default="scaling", help="of the files in results/")
    parser.add_argument("--report", type=Path, help="folder of the jobs to report on")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--grid", type=int, default=128)
    parser.add_argument("--batch-per-replica", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--fp16-allreduce", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of each phase in a round")
    parser.add_argument("--phases", nargs="+", help="measure these alone (default: all)")
    model = parser.add_argument_group("the assumed GPUs of the model")
    model.add_argument("--model-filters", type=int, default=32)
    model.add_argument("--model-grid", type=int, default=384)
    model.add_argument("--model-batch", type=int, default=8)
    model.add_argument("--model-tflops", type=float, default=30.0, help="reached in training")
    model.add_argument("--model-gbytes-per-s", type=float, default=10.0, help="of a ring's link")
    model.add_argument("--model-latency-us", type=float, default=5.0, help="of a step of the ring")
    return parser


# ---- jobs -------------------------------------------------------------------------------------


def start_jobs(arguments, folder):
    """Starts the jobs of each number of processes in turn; each leaves a file in the folder."""
    for number in range(arguments.jobs):
        for processes in arguments.processes:
            for launcher in arguments.launcher if processes > 1 else [None]:
                start_job(processes, launcher, folder / f"{number}")
        print(f"{number + 1} of {arguments.jobs} turns done", flush=True)


def start_job(processes, launcher, folder):
    start = []
    if launcher:
        program, *words = launcher.split()
        beside = Path(sys.executable).with_name(program)  # horovodrun may not be on PATH
        start = [str(beside) if beside.exists() else program, *words]
    command = [word.format(processes) for word in start]
    command += [sys.executable, *given_flags(), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def given_flags():
    """Returns this script and its flags but for those of the launcher."""
    words, skipping = [sys.argv[0]], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            skipping = word in ("--processes", "--jobs", "--launcher", "--out", "--name")
        if not skipping:
            words.append(word)
    return words


def read_jobs(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("np*.json"))]


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


HOROVOD_SETTINGS = ("HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD")


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


# ---- what the jobs say ------------------------------------------------------------------------


def report(arguments, jobs):
    """Writes the measured table, the fit and the model."""
    rows = [row(jobs, *kind) for kind in sorted({kind_of(job) for job in jobs})]
    config = jobs[0]["config"]
    note = (
        f"depth {config['depth']}, {config['filters']} filters, grid {config['grid']}, batch "
        f"{config['batch_per_replica']} a process, {config['precision']}, {config['threads']} "
        f"thread(s) a process; {len(jobs)} jobs of {len(jobs[0]['rounds'])} rounds of "
        f"{config['steps']} steps; median (least to most); seconds a step"
    )
    write_results(arguments.name, rows, note, raw=jobs)
    for joined_by in sorted({job["controller"] for job in jobs if job["world_size"] > 1}):
        several = [job for job in jobs if job["controller"] == joined_by]
        here, gpus = fit(several), assume_gpus(arguments)
        hidden = hidden_share(several)
        write_results(
            f"{arguments.name}_model_{joined_by.lower()}",
            model_rows(here, gpus, hidden),
            f"A MODEL, not a measurement: allreduce = 2 (n - 1) (latency + bytes / n / bandwidth). "
            f"As here: {told(here)}, fitted (largest error {100 * here.worst_error:.0f} %); share "
            f"of the allreduce hidden behind the step: {hidden:.2f}. GPUs: {told(gpus)}, assumed "
            f"(depth {arguments.depth}, {arguments.model_filters} filters, grid "
            f"{arguments.model_grid}, batch {arguments.model_batch}, {arguments.model_tflops:g} "
            "TFLOP/s reached)",
        )


def kind_of(job):
    return job["world_size"], job["controller"]


def values(jobs, kind, phase):
    """Returns what a phase took, a round each, of all jobs of a kind."""
    rounds = [each for job in jobs if kind_of(job) == kind for each in job["rounds"]]
    return [each[phase] for each in rounds if phase in each]


def row(jobs, processes, controller):
    """Returns the row of one number of processes and what joins them.

    Ratios are within a round where both sides are of one job; to one process, round by round in
    the order of the jobs, which took turns.
    """
    kind = processes, controller
    alone, one = values(jobs, kind, "alone"), values(jobs, (1, "none"), "alone")
    together, beside, strong, fed, wait, allreduce = (
        values(jobs, kind, phase)
        for phase in ("together", "beside", "strong", "fed", "wait", "allreduce")
    )

    def ratios(above, below):
        return [a / b for a, b in zip(above, below, strict=False)]

    def ratio(above, below):
        return spread(ratios(above, below))

    def difference(above, below):
        return spread([a - b for a, b in zip(above, below, strict=False)])

    return {
        "processes": processes,
        "controller": controller,
        "alone_s": spread(alone),
        "beside_s": spread(beside),
        "together_s": spread(together),
        "fed_s": spread(fed),
        "wait_for_input_s": spread(wait),
        "input_adds_s": difference(fed, together or alone),
        "allreduce_by_itself_s": spread(allreduce),
        "allreduce_adds_s": difference(together, beside),
        "weak_efficiency": ratio(one, together),
        "weak_efficiency_95": interval_of_median(ratios(one, together), len(jobs[0]["rounds"])),
        "weak_to_alone_in_job": ratio(alone, together),
        "machine_allows": ratio(one, beside),
        "machine_allows_in_job": ratio(alone, beside),
        "strong_speedup": ratio(one, strong),
        **{
            f"{phase}_{what}": spread(values(jobs, kind, f"{phase} {what}"))
            for phase in ("alone", "beside", "together")
            for what in ("cpu_s", "switches")
        },
        "matmul_beside_efficiency": ratio(
            values(jobs, kind, "matmul_alone"), values(jobs, kind, "matmul_beside")
        ),
        "copy_beside_efficiency": ratio(
            values(jobs, kind, "copy_alone"), values(jobs, kind, "copy_beside")
        ),
    }


def interval_of_median(numbers, rounds):
    """Returns between what 95 % of the medians are if turns, of so many rounds, are drawn anew.

    Turns are drawn and not rounds: those of one job share a start, its cores and its memory.
    """
    import numpy as np

    if len(numbers) < LEAST_TURNS * rounds or len(numbers) % rounds:  # jobs of unlike rounds
        return "-"
    turns = np.reshape(numbers, (-1, rounds))
    drawn = np.random.default_rng(0).integers(len(turns), size=(RESAMPLES, len(turns)))
    medians = np.median(turns[drawn], axis=(1, 2))
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{low:.3f} to {high:.3f}"


def spread(numbers):
    if not numbers:
        return "-"
    return f"{statistics.median(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"


# ---- the model --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """What the model knows of processes and what joins them.

    Attributes:
      step_s: a step without its allreduce.
      gradient_bytes: that the allreduce of a step carries.
      latency_s: of one of a ring's 2 (n - 1) steps.
      bytes_per_s: that a process sends while it receives as many.
      fitted_at: smallest number of processes it was fitted to.
      worst_error: largest relative error of the fit.
    """

    step_s: float
    gradient_bytes: int
    latency_s: float
    bytes_per_s: float
    fitted_at: int = 2
    worst_error: float = 0.0

    def allreduce_s(self, processes, latency_once=False):
        """Returns the seconds of one allreduce of the gradients.

        Where only one number of processes was measured, nobody knows how much of the latency is
        Horovod's agreement, once an allreduce, and how much the ring's: `latency_once` takes it
        all for the first.
        """
        steps, sent = ring_terms(processes, self.gradient_bytes)
        if latency_once and processes > 1:
            steps, _ = ring_terms(self.fitted_at, 0)
        return steps * self.latency_s + sent / self.bytes_per_s

    def efficiency(self, processes, hidden, latency_once=False):
        """Returns the expected weak-scaling efficiency if so much of the allreduce is hidden."""
        added = (1 - hidden) * self.allreduce_s(processes, latency_once)
        return self.step_s / (self.step_s + added)


def ring_terms(processes, size):
    """Returns what latency and seconds a byte are multiplied by in a ring allreduce.

    It takes 2 (n - 1) steps, in each of which a process sends an n-th of the bytes.
    """
    return 2 * (processes - 1), 2 * (processes - 1) / processes * size


def fit(jobs):
    """Fits a Link to the medians of the allreduces by size, least squares of relative errors."""
    import numpy as np

    terms, taken = [], []
    for job in jobs:
        for size, seconds in job["allreduce_s_by_bytes"].items():
            terms.append(ring_terms(job["world_size"], int(size)))
            taken.append(statistics.median(seconds))
    terms, taken = np.array(terms), np.array(taken)
    (latency, per_byte), *_ = np.linalg.lstsq(terms / taken[:, None], np.ones(len(taken)))
    return Link(
        step_s=statistics.median(values(jobs, max(map(kind_of, jobs)), "beside")),
        gradient_bytes=jobs[0]["gradient_bytes"],
        latency_s=float(latency),
        bytes_per_s=float(1 / per_byte),
        fitted_at=min(job["world_size"] for job in jobs),
        worst_error=float(np.abs(terms @ (latency, per_byte) / taken - 1).max()),
    )


def assume_gpus(arguments):
    """Returns the Link of GPUs that nobody measured, from the flags."""
    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    batch = arguments.model_batch
    sizes = (arguments.model_grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.model_filters)
    cost = count_unet(*sizes)
    flops = batch * cost.training_flops("mixed_float16", batch)
    return Link(
        step_s=flops / (1e12 * arguments.model_tflops),
        gradient_bytes=cost.allreduce_bytes(arguments.fp16_allreduce),
        latency_s=1e-6 * arguments.model_latency_us,
        bytes_per_s=1e9 * arguments.model_gbytes_per_s,
    )


def hidden_share(jobs):
    """Returns the share of the allreduce that the rest of the step hid, 0 to 1."""
    shares = []
    for kind in {kind_of(job) for job in jobs}:
        together, beside, by_itself = (
            values(jobs, kind, phase) for phase in ("together", "beside", "allreduce")
        )
        added = statistics.median(a - b for a, b in zip(together, beside, strict=True))
        shares.append(1 - added / statistics.median(by_itself))
    return min(1.0, max(0.0, statistics.median(shares)))


def model_rows(here, gpus, hidden):
    """Returns the model's row of each number of processes."""
    return [
        {
            "processes": processes,
            "as_here_allreduce_s": here.allreduce_s(processes),
            "as_here_efficiency": here.efficiency(processes, hidden),
            "as_here_efficiency_latency_once": here.efficiency(processes, hidden, True),
            "gpus_allreduce_s": gpus.allreduce_s(processes),
            "gpus_efficiency_nothing_hidden": gpus.efficiency(processes, 0),
            "gpus_efficiency_hidden_as_here": gpus.efficiency(processes, hidden),
        }
        for processes in MODEL_PROCESSES
    ]


def told(link):
    """Says a Link in words."""
    return (
        f"latency {1e6 * link.latency_s:.0f} us, {link.bytes_per_s / 1e9:.2f} GB/s, step "
        f"{link.step_s:.3f} s, {link.gradient_bytes / 1e6:.1f} MB of gradients"
    )


if __name__ == "__main__":
    main()
