"""Does half precision reach the same validation loss as float32, and how much sooner?

    python benchmarks/precision.py --data data/synthetic --seeds 5

Trains the same model with experiments/train.py in float32 and in mixed_bfloat16, alternately, once
per seed. Compares the validation loss with its spread over seeds. Compares the training time as the
ratio of the two runs of one seed, which are made one after the other.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from flags import build_parser
from result_files import write_results

from keras_nowcast.records import RunFolder

ROOT = Path(__file__).parents[1]
PRECISIONS = ("float32", "mixed_bfloat16")
KEPT = ("val_loss", "samples_per_second", "seconds", "seconds_per_epoch")  # of each run


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--data", required=True, help="root of a SEVIR data set")
    parser.add_argument("--seeds", type=int, default=5, help="runs per precision")
    parser.add_argument("--grid", type=int, default=96, help="pixels along a side")
    parser.add_argument("--depth", type=int, default=3, help="encoder levels of the UNet")
    parser.add_argument("--filters", type=int, default=16, help="filters of the first level")
    parser.add_argument("--epochs", type=int, default=24, help="epochs per run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            (precision, seed): train(arguments, precision, seed, Path(folder))
            for seed in range(arguments.seeds)
            for precision in PRECISIONS
        }
    rows = [row(runs, precision, arguments.seeds) for precision in PRECISIONS]
    write_results(
        "precision",
        rows,
        f"{Path(arguments.data).name}, grid {arguments.grid}, depth {arguments.depth}, "
        f"{arguments.filters} filters, {arguments.epochs} epochs, one process; {arguments.seeds} "
        "seeds, median (lowest to highest); the ratio is float32's seconds over this run's, seed "
        "by seed",
        raw=[
            {"precision": precision, "seed": seed, **{name: run[name] for name in KEPT}}
            for (precision, seed), run in runs.items()
        ],
    )


def train(arguments, precision, seed, folder):
    """Trains one run and returns the `training` part of its record."""
    run_dir = folder / f"{precision}-{seed}"
    flags = {
        "data": arguments.data,
        "run-dir": run_dir,
        "grid": arguments.grid,
        "depth": arguments.depth,
        "filters": arguments.filters,
        "epochs": arguments.epochs,
        "precision": precision,
        "seed": seed,
        "power-source": "none",
        "schedule": "cosine",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    subprocess.run(
        [sys.executable, ROOT / "experiments" / "train.py", *words],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    training = RunFolder(run_dir).read_record()["training"]
    print(f"{precision} seed {seed}: {training['val_loss']:.4f}, {training['seconds']:.1f} s")
    return training


def row(runs, precision, seeds):
    """Returns the row of one precision."""

    def over_seeds(value):
        values = [value(seed) for seed in range(seeds)]
        return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"

    mine = {seed: runs[precision, seed] for seed in range(seeds)}
    return {
        "precision": precision,
        "val_loss": over_seeds(lambda seed: mine[seed]["val_loss"]),
        "val_loss_less_float32": over_seeds(
            lambda seed: mine[seed]["val_loss"] - runs["float32", seed]["val_loss"]
        ),
        "samples_per_second": over_seeds(lambda seed: mine[seed]["samples_per_second"]),
        "seconds": over_seeds(lambda seed: mine[seed]["seconds"]),
        "float32_over_this": over_seeds(
            lambda seed: runs["float32", seed]["seconds"] / mine[seed]["seconds"]
        ),
    }


if __name__ == "__main__":
    main()
