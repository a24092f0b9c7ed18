"""What do the baselines and the scores of a window take, by grid?

CPU time of one process, per window of real radar: finding the motion, each baseline without it, and
the scores of one forecast as evaluate.py computes them, without and with the power spectrum. Each
part runs on several windows, whose median, minimum and maximum the table has.

    python benchmarks/forecast_cost.py --data RADAR
"""

import os

# Before NumPy is loaded: the CPU time of one thread hardly depends on what else runs.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import statistics
import time

from flags import build_parser
from result_files import write_results

from keras_nowcast.data import catalog, sevir
from keras_nowcast.verification import baselines, scores, spectrum
from keras_nowcast.vil import FRAMES_OUT, VIL_THRESHOLDS

POOLS, SCALES = (1, 4, 16), (5, 17, 33)


def windows(events, grid):
    """Yields (input, target) of the first window of each event, (1, y, x, frame) codes."""
    for event in events:
        vil = sevir.read_event(event, grid)
        pair = sevir.cut_window(vil, sevir.window_starts(event.frames)[0])
        yield tuple(each[None] for each in pair)


def seconds(function):
    """Returns (CPU seconds, result)."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def of_window(vil, target):
    """Returns {part: CPU seconds} of one window."""
    times, motion = {}, baselines.shared_motion()
    times["motion"], _ = seconds(lambda: motion(vil))
    for name in ("extrapolation", "sprog", "anvil"):
        method = getattr(baselines, name)
        times[name], forecast = seconds(lambda method=method: method(vil, FRAMES_OUT, motion))
    for name, options in {
        "counts and errors": {},
        "the same and pooling": {"pools": POOLS},
        "the same and FSS": {"pools": POOLS, "scales": SCALES},
        "the same and the power spectrum": {
            "pools": POOLS,
            "scales": SCALES,
            "tile": spectrum.TILE,
        },
    }.items():
        times[name], _ = seconds(
            lambda given=options: scores.statistics(forecast, target, VIL_THRESHOLDS, **given)
        )
    times["power spectrum alone"], _ = seconds(lambda: spectrum.power_sums(forecast, target))
    return times


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--data", required=True, help="root of a SEVIR data set: CATALOG.csv and data/"
    )
    parser.add_argument("--grids", type=int, nargs="+", default=[128, 384], help="pixels of a side")
    parser.add_argument("--events", type=int, default=6, help="events, one window of each")
    arguments = parser.parse_args()
    events = catalog.read_catalog(arguments.data)
    chosen = events[:: max(1, len(events) // arguments.events)][: arguments.events]
    rows = []
    for grid in arguments.grids:
        first, *others = windows([chosen[0], *chosen], grid)
        of_window(*first)  # imports, and what is computed once
        found = [of_window(*each) for each in others]
        for part in found[0]:
            values = [each[part] for each in found]
            rows.append(
                {
                    "grid": grid,
                    "part": part,
                    "cpu_s_median": statistics.median(values),
                    "cpu_s_min": min(values),
                    "cpu_s_max": max(values),
                }
            )
    write_results(
        "forecast_cost",
        rows,
        f"CPU seconds per window of one thread, {len(chosen)} windows of real radar, {FRAMES_OUT} "
        "lead times; the baselines without the motion, the scores of one forecast",
    )


if __name__ == "__main__":
    main()
