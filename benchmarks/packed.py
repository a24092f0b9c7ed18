"""What does packing gain in reading? Windows per second from SEVIR as published and packed.

Measures one pass over WindowPipeline's batches of four, with the same events: from one gzip chunk
per event, and from what experiments/make_dataset.py makes of it, which is contiguous, at the stored
size and at the grid of the training. The page cache is warm. The data sets alternate within a
round, and a ratio is that of one round. Median, minimum and maximum are over the rounds.

    python benchmarks/packed.py
"""

import statistics
import tempfile
import time
from pathlib import Path

from flags import build_parser
from result_files import write_results

from keras_nowcast.data import catalog, packed, synthetic
from keras_nowcast.data.pipeline import WindowPipeline


def pack(root, out, grid):
    """Packs a data set and returns the seconds that it took."""
    files, catalog_text = packed.sevir_files(root, grid)
    begin = time.perf_counter()
    packed.write_files(out, files, catalog_text, grid=grid, threads=2, say=lambda line: None)
    return time.perf_counter() - begin


def pipelines(roots, grid, threads):
    """Returns {name: WindowPipeline}; all yield the same batches at this grid."""
    return {
        name: WindowPipeline(
            catalog.read_catalog(root),
            grid=grid,
            batch_per_replica=4,
            threads=threads,
            shuffle=False,
        )
        for name, root in roots.items()
    }


def seconds_of(pipeline):
    begin = time.perf_counter()
    for _ in pipeline.batches():
        pass
    return time.perf_counter() - begin


def measure(roots, grid, threads, rounds):
    """Returns the rows of one grid; ratios are relative to the first of the roots."""
    ways = pipelines(roots, grid, threads)
    seconds = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first is not counted
        for name, pipeline in ways.items():
            taken = seconds_of(pipeline)
            if turn:
                seconds[name].append(taken)
    first = seconds[next(iter(seconds))]
    rows = []
    for name, times in seconds.items():
        rates = [ways[name].windows / each for each in times]
        ratios = [base / each for base, each in zip(first, times, strict=True)]
        rows.append(
            {
                "grid": grid,
                "data": name,
                "threads": threads,
                "windows_per_s": statistics.median(rates),
                "least": min(rates),
                "most": max(rates),
                "ratio": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        )
    return rows


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, help="root of a compressed SEVIR data set (default: a synthetic one)"
    )
    parser.add_argument("--events", type=int, default=24, help="events of the synthetic data set")
    parser.add_argument("--grid", type=int, default=128, help="pixels along a side when packed")
    parser.add_argument("--threads", type=int, default=2, help="threads that read")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over all data sets")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or synthetic.write_synthetic(Path(folder) / "gzip", args.events)
        full, coarse = Path(folder) / "full", Path(folder) / "coarse"
        seconds = pack(root, full, None), pack(root, coarse, args.grid)
        events = catalog.read_catalog(root)
        size = events[0].size
        roots = {"gzip": root, f"packed, {size}": full}
        rows = measure(roots, size, args.threads, args.rounds)
        roots[f"packed, {args.grid}"] = coarse
        rows += measure(roots, args.grid, args.threads, args.rounds)
    write_results(
        "packed",
        rows,
        f"{len(events)} events of {size}x{size}x{events[0].frames}, {args.rounds} rounds, page "
        f"cache warm; packing them once took {seconds[0]:.1f} s at {size} and {seconds[1]:.1f} s "
        f"at {args.grid}",
        variant=args.data.name if args.data else "synthetic",
    )


if __name__ == "__main__":
    main()
