"""How fast do windows come off the disk? Windows and bytes per second, compared with plain h5py.

Every window of the same events is read in several ways, 13 and 12 frames each in a separate array:

- h5py, each window: a slice of 25 frames for each window, as most public readers do.
- h5py, each event: an event is read completely, then cut by slicing.
- read_event: our reader and cut_window, in as many threads as the row names.
- batches: WindowPipeline's batches of four as NumPy arrays, in one pass without shuffling: a
  shuffled pass would continue with the next epoch.
- tf.data: the same through the dataset that training uses, which is built once, as in training.

Each way reads compressed files (one gzip chunk per event) and contiguous ones, with a warm page
cache. The ways alternate within a round, and a ratio is that of one round, so that a slow moment of
the machine affects all of them. Median, minimum and maximum are over the rounds.

    python benchmarks/input.py
"""

import functools
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.data import catalog, sevir, synthetic
from keras_nowcast.data.pipeline import WindowPipeline
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

FRAMES = FRAMES_IN + FRAMES_OUT
BASE = "h5py, each window"


def h5py_each_window(event):
    with h5py.File(event.file, locking=False) as file:
        vil = file["vil"]
        for start in sevir.window_starts(event.frames):
            _sliced(vil[event.index, :, :, start : start + FRAMES], 0)


def h5py_each_event(event):
    with h5py.File(event.file, locking=False) as file:
        vil = file["vil"][event.index]
    for start in sevir.window_starts(event.frames):
        _sliced(vil, start)


def _sliced(vil, start):
    middle = start + FRAMES_IN
    return vil[..., start:middle].copy(), vil[..., middle : start + FRAMES].copy()


def ours(event):
    vil = sevir.read_event(event)
    for start in sevir.window_starts(event.frames):
        sevir.cut_window(vil, start)


def each(function, events, threads):
    """Calls `function` on each event, in `threads` threads."""
    if threads == 1:
        return [function(event) for event in events]
    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(function, events))


def batches(pipeline):
    for _ in pipeline.batches():
        pass


def tensors(dataset):
    for _ in dataset:
        pass


def ways(events, threads, grid):
    """Returns a dictionary of name -> function without arguments that goes over all windows."""
    pipeline = WindowPipeline(
        events, grid=grid, batch_per_replica=4, threads=threads, shuffle=False
    )
    several = f"{threads} threads"
    return {
        BASE: functools.partial(each, h5py_each_window, events, 1),
        "h5py, each event": functools.partial(each, h5py_each_event, events, 1),
        f"h5py, each event, {several}": functools.partial(each, h5py_each_event, events, threads),
        "read_event": functools.partial(each, ours, events, 1),
        f"read_event, {several}": functools.partial(each, ours, events, threads),
        f"batches, grid {grid}, {several}": functools.partial(batches, pipeline),
        f"tf.data, grid {grid}, {several}": functools.partial(tensors, pipeline.dataset()),
    }


def check(events):
    """Ends the benchmark if our reader and h5py differ in a pixel."""
    for event in events:
        with h5py.File(event.file, locking=False) as file:
            if not np.array_equal(sevir.read_event(event), file["vil"][event.index]):
                raise SystemExit(f"event {event.id} in {event.file} is read differently")


def rounds(methods, count):
    """Returns name -> seconds of each round, after one round that is not counted."""
    seconds = {name: [] for name in methods}
    for turn in range(count + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(storage, root, threads, count, grid):
    """Returns the rows of one data set."""
    events = catalog.read_catalog(root)
    check(events)
    windows = sum(len(sevir.window_starts(event.frames)) for event in events)
    bytes_ = windows * FRAMES * events[0].size ** 2
    seconds = rounds(ways(events, threads, grid or events[0].size), count)
    rows = []
    for name, times in seconds.items():
        rates = [windows / each for each in times]
        ratios = [base / each for base, each in zip(seconds[BASE], times, strict=True)]
        rows.append(
            {
                "storage": storage,
                "way": name,
                "windows_per_s": statistics.median(rates),
                "least": min(rates),
                "most": max(rates),
                "megabytes_per_s": bytes_ / statistics.median(times) / 1e6,
                "times_h5py_window": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        )
    return rows


def rewrite_contiguous(root, new_root):
    """Copies a data set, with `vil` stored contiguously."""
    (new_root / "data").mkdir(parents=True)
    (new_root / "CATALOG.csv").write_bytes((root / "CATALOG.csv").read_bytes())
    for path in sorted(root.glob("data/**/*.h5")):
        new_path = new_root / path.relative_to(root)
        new_path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, locking=False) as file, h5py.File(new_path, "w") as new:
            new["id"] = file["id"][:]
            new_vil = new.create_dataset("vil", file["vil"].shape, np.uint8)
            for index in range(len(new_vil)):
                new_vil[index] = file["vil"][index]


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, help="root of a compressed SEVIR data set (default: a synthetic one)"
    )
    parser.add_argument("--events", type=int, default=48, help="events of the synthetic data set")
    parser.add_argument("--threads", type=int, default=2, help="threads that read")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over all ways")
    parser.add_argument(
        "--grid", type=int, help="pixels along a side of the batches (default: the stored size)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or synthetic.write_synthetic(Path(folder) / "gzip", args.events)
        rewrite_contiguous(root, Path(folder) / "contiguous")
        rows = []
        for storage in ("gzip", "contiguous"):
            place = root if storage == "gzip" else Path(folder) / "contiguous"
            rows += measure(storage, place, args.threads, args.rounds, args.grid)
    events = catalog.read_catalog(root) if args.data else range(args.events)
    write_results(
        "input",
        rows,
        f"{len(events)} events of {args.data.name if args.data else 'synthetic weather'}, windows "
        f"of {FRAMES} frames, {args.rounds} rounds, page cache warm",
        variant=args.data.name if args.data else "synthetic",
    )


if __name__ == "__main__":
    main()
