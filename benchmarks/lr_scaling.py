"""How should Adam's learning rate grow with the number of processes?

    python benchmarks/lr_scaling.py --data data/synthetic64

Trains the same model with experiments/train.py on 1, 2 and 4 processes, for the same number of
epochs and with the same batch size per process, by each rule of `--lr-scaling` and once per seed.
One process has the same rate by any rule and is trained once per seed. Compares the validation loss
and the mean CSI after the last epoch, seed by seed with those of one process.

Packed data of the grid that is trained on let the processes share the cores with nothing else:

    python experiments/make_synthetic.py
    python experiments/make_dataset.py --data data/synthetic --grid 64 --out data/synthetic64

The order of the runs changes from seed to seed, so that no rule always runs first. The defaults are
21 runs, estimated at 10 minutes on two idle cores. They measure no time, so other work on the
machine changes no result. `--seeds 5` is 35 runs; `--learning-rate 3e-4 --variant low` shows
whether the answer depends on the rate of one process.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from flags import build_parser
from result_files import write_results

from keras_nowcast.config import LR_SCALINGS
from keras_nowcast.records import RunFolder
from keras_nowcast.study.compare import mean_difference
from keras_nowcast.text_table import counted

ROOT = Path(__file__).parents[1]
THRESHOLDS = (16, 74, 133)
SCORES = ("val_loss", "val_csi")


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--data", required=True, help="root of a SEVIR data set")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="with 1")
    parser.add_argument("--seeds", type=int, default=3, help="runs per rule and processes")
    parser.add_argument("--grid", type=int, default=64, help="pixels along a side")
    parser.add_argument("--depth", type=int, default=3, help="encoder levels of the UNet")
    parser.add_argument("--filters", type=int, default=8, help="filters of the first level")
    parser.add_argument("--epochs", type=int, default=10, help="epochs per run")
    parser.add_argument("--batch-per-replica", type=int, default=4, help="windows of one rank")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of one process")
    parser.add_argument("--schedule", default="cosine", help="as in train.py")
    parser.add_argument(
        "--launcher", default="horovodrun -np {} --gloo", help="starts {} processes"
    )
    parser.add_argument("--variant", help="suffix of the result files")
    arguments = parser.parse_args()
    if 1 not in arguments.processes:
        parser.error(
            "`--processes` must have 1, with which the others are compared. Received: "
            + " ".join(map(str, arguments.processes))
        )
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            train(arguments, cell, seed, Path(folder))
            for seed in range(arguments.seeds)
            for cell in order(arguments.processes, seed)
        ]
    write_results(
        "lr_scaling",
        [row(runs, *cell) for cell in order(arguments.processes, 0)],
        f"{Path(arguments.data).name}, grid {arguments.grid}, depth {arguments.depth}, "
        f"{arguments.filters} filters, float32, {arguments.epochs} epochs of "
        f"{runs[0]['windows_per_epoch']} windows, batch {arguments.batch_per_replica} a process, "
        f"learning rate {arguments.learning_rate:g} of one process, {arguments.schedule}; "
        f"{arguments.seeds} seeds, median (lowest to highest) of the last epoch; differences from "
        "one process are means over paired seeds with the half-width of their 95% interval",
        arguments.variant,
        raw=runs,
    )


def order(processes, seed):
    """Returns the (processes, rule) of a seed's runs, rotated by the seed; one process has one."""
    cells = [
        (count, rule)
        for count in sorted(processes)
        for rule in (LR_SCALINGS if count > 1 else LR_SCALINGS[:1])
    ]
    first = seed % len(cells)
    return cells[first:] + cells[:first]


def train(arguments, cell, seed, folder):
    """Trains one run and returns its scores after the last epoch, as a dict."""
    count, rule = cell
    run = RunFolder(folder / f"{count}-{rule}-{seed}")
    flags = {
        "data": arguments.data,
        "run-dir": run.path,
        "grid": arguments.grid,
        "depth": arguments.depth,
        "filters": arguments.filters,
        "epochs": arguments.epochs,
        "batch-per-replica": arguments.batch_per_replica,
        "learning-rate": arguments.learning_rate,
        "schedule": arguments.schedule,
        "lr-scaling": rule,
        "precision": "float32",
        "seed": seed,
        "power-source": "none",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    started = launcher(arguments.launcher, count)
    subprocess.run(
        [*started, sys.executable, ROOT / "experiments" / "train.py", *words],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    training, last = run.read_record()["training"], run.read_epochs()[-1]
    csi = [last[f"val_csi_{threshold}"] for threshold in THRESHOLDS]
    found = {
        "processes": count,
        "lr_scaling": rule,
        "seed": seed,
        "steps": training["steps"],
        "windows_per_epoch": training["windows_per_epoch"],
        "learning_rate": max(row["learning_rate"] for row in run.read_epochs()),
        "loss": training["loss"],
        "val_loss": training["val_loss"],
        # A threshold that no observation reaches has no CSI.
        "val_csi": statistics.fmean(value for value in csi if value is not None),
    }
    print(
        f"{counted(count, 'process', 'processes')}, {rule}, seed {seed}: loss {found['loss']:.4f}, "
        f"validation loss {found['val_loss']:.4f}, CSI {found['val_csi']:.4f}",
        flush=True,
    )
    return found


def launcher(template, count):
    """Returns the words that start `count` processes; a program of this Python comes first."""
    if count == 1:
        return []
    program, *rest = template.format(count).split()
    of_this_python = Path(sys.executable).with_name(program)
    return [str(of_this_python) if of_this_python.exists() else program, *rest]


def row(runs, count, rule):
    """Returns the row of one number of processes and one rule."""
    mine = [run for run in runs if (run["processes"], run["lr_scaling"]) == (count, rule)]
    single = {run["seed"]: run for run in runs if run["processes"] == 1}
    columns = {"processes": count, "lr_scaling": rule if count > 1 else "any"}
    columns["steps"] = mine[0]["steps"]
    for score in SCORES:
        values = [run[score] for run in mine]
        columns[score] = f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"
    for score in SCORES:
        less = [run[score] - single[run["seed"]][score] for run in mine]
        columns[f"{score}_less_one_process"] = _with_interval(less) if count > 1 else "-"
    return columns


def _with_interval(differences):
    if len(differences) < 2:
        return f"{differences[0]:+.4f}"
    mean, _, half = mean_difference(differences)
    return f"{mean:+.4f} ({half:.4f})"


if __name__ == "__main__":
    main()
