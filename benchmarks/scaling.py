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
import subprocess
import sys
import tempfile
from pathlib import Path

from result_files import write_results
from scaling_jobs import kind_of, read_jobs, row
from scaling_model import assume_gpus, fit, hidden_share, model_rows, told
from scaling_ranks import run_job

from keras_nowcast.process import launched_as


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


if __name__ == "__main__":
    main()
