r"""How do training steps scale over ranks? The time of a step alone, side by side, and together.

On one machine, it starts the jobs itself, one after the other, and writes the results and the
model:

    python benchmarks/scaling.py --data RADAR --processes 1 2 --threads 1 \
        --launcher "horovodrun -np {} --gloo" "mpirun -np {} -bind-to none"

On a cluster, start one job per number of ranks with the cluster's own launcher, then the report:

    srun -n 64 python benchmarks/scaling.py --data /data/sevir --out scaling
    python benchmarks/scaling.py --report scaling

In each round of a job the phases alternate, so that background load affects all of them equally:

    alone       the first rank trains alone, the others wait
    beside      all ranks train, each its own model, without any allreduce: the limit of the machine
    together    all train one model, a batch each (weak scaling)
    strong      all train one model and share one batch
    fed         as together, on batches read from --data; the wait for them is listed separately
                from what reading adds by working on the same cores
    allreduce   the gradients of one step are averaged and nothing else is done

If `beside` is slower than `alone`, the ranks share something of the machine. Two more phases show
which, cores or memory: a matmul that stays in the cache and a copy of memory, each alone and side
by side. CPU seconds and voluntary context switches per step show what waiting costs: if each rank
has one core, Horovod's thread shares it with the step, even while nothing is averaged.

The step is the trainer's, with the model, loss, metrics and optimizer that it builds. The time of a
phase is that of its slowest rank. Each rank, the reference too, is bound to its own --threads
cores, as under a batch system. Without --threads it keeps the cores that the launcher gave it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from flags import add_model_flags, build_parser
from result_files import write_results
from scaling_jobs import kind_of, read_jobs, row
from scaling_model import assume_gpus, fit, hidden_fraction, in_short, model_rows
from scaling_ranks import run_job

from keras_nowcast.process import launched_as


def main():
    arguments = scaling_parser().parse_args()
    if arguments.report:
        report(arguments, read_jobs(arguments.report))
    elif launched_as() or arguments.processes is None:
        run_job(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            start_jobs(arguments, Path(folder))
            report(arguments, read_jobs(Path(folder)))


def scaling_parser():
    """Returns the parser of the flags."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, help="root of a SEVIR data set")
    parser.add_argument(
        "--processes", type=int, nargs="+", help="numbers of ranks, to start jobs of"
    )
    parser.add_argument("--jobs", type=int, default=3, help="jobs of each number of ranks")
    parser.add_argument(
        "--launcher",
        nargs="+",
        default=["horovodrun -np {} --gloo"],
        help="launchers for --processes, at most one for Gloo and one for MPI",
    )
    parser.add_argument("--threads", type=int, help="cores of a rank")
    parser.add_argument("--out", type=Path, default=Path("scaling"), help="folder of a job's file")
    parser.add_argument("--name", help="suffix of the files in results/scaling/")
    parser.add_argument("--report", type=Path, help="folder of the jobs to report on")
    add_model_flags(parser, depth=4, filters=16, grid=128, batch_per_replica=8)
    parser.add_argument("--precision", default="float32", help="Keras policy")
    parser.add_argument("--fp16-allreduce", action="store_true", help="send gradients as float16")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in a job")
    parser.add_argument("--steps", type=int, default=3, help="steps of each phase in a round")
    parser.add_argument("--phases", nargs="+", help="measure only these phases (default: all)")
    add_gpu_flags(parser)
    return parser


def add_gpu_flags(parser):
    """Adds the flags of the assumed GPUs."""
    model = parser.add_argument_group("the assumed GPUs of the model")
    model.add_argument("--model-filters", type=int, default=32, help="filters of the first level")
    model.add_argument("--model-grid", type=int, default=384, help="pixels along a side")
    model.add_argument("--model-batch", type=int, default=8, help="windows in a batch of one GPU")
    model.add_argument(
        "--model-tflops", type=float, default=30.0, help="TFLOP/s reached in training"
    )
    model.add_argument(
        "--model-gbytes-per-s", type=float, default=10.0, help="bandwidth of a ring's link, GB/s"
    )
    model.add_argument(
        "--model-latency-us", type=float, default=5.0, help="latency of a ring's step, microseconds"
    )


def start_jobs(arguments, folder):
    """Starts the jobs of each number of ranks in turn; rank 0 of each writes a file to `folder`."""
    for number in range(arguments.jobs):
        for processes in arguments.processes:
            for launcher in arguments.launcher if processes > 1 else [None]:
                start_job(processes, launcher, folder / f"{number}")
        print(f"{number + 1} of {arguments.jobs} repetitions finished", flush=True)


def start_job(processes, launcher, folder):
    """Runs one job of `processes` ranks to its end; `launcher` is None for one rank."""
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
    """Returns this script and its flags, without those that concern the start of the jobs."""
    words, skipping = [sys.argv[0]], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            skipping = word in ("--processes", "--jobs", "--launcher", "--out", "--name")
        if not skipping:
            words.append(word)
    return words


def report(arguments, jobs):
    """Writes the measured table, and the model for each controller."""
    rows = [row(jobs, *kind) for kind in sorted({kind_of(job) for job in jobs})]
    config = jobs[0]["config"]
    note = (
        f"depth {config['depth']}, {config['filters']} filters, grid {config['grid']}, batch "
        f"{config['batch_per_replica']} per rank, {config['precision']}, {config['threads']} "
        f"thread(s) per rank; {len(jobs)} jobs of {len(jobs[0]['rounds'])} rounds of "
        f"{config['steps']} steps; median (minimum to maximum); seconds per step"
    )
    write_results("scaling", rows, note, arguments.name, raw=jobs)
    for controller in sorted({job["controller"] for job in jobs if job["world_size"] > 1}):
        write_model(arguments, [job for job in jobs if job["controller"] == controller])


def write_model(arguments, jobs):
    """Fits the model to the jobs of one controller and writes its table."""
    here, gpus = fit(jobs), assume_gpus(arguments)
    hidden = hidden_fraction(jobs)
    variant = "_".join(filter(None, (arguments.name, jobs[0]["controller"].lower())))
    write_results(
        "scaling_model",
        model_rows(here, gpus, hidden),
        f"A MODEL, not a measurement: allreduce = 2 (n - 1) (latency + bytes / n / bandwidth). As "
        f"here: {in_short(here)}, fitted (largest error {100 * here.worst_error:.0f}%); fraction "
        f"of the allreduce hidden behind the step: {hidden:.2f}. GPUs: {in_short(gpus)}, assumed "
        f"(depth {arguments.depth}, {arguments.model_filters} filters, grid "
        f"{arguments.model_grid}, batch {arguments.model_batch}, {arguments.model_tflops:g} "
        "TFLOP/s reached)",
        variant,
    )


if __name__ == "__main__":
    main()
