"""Which optical flow makes the strongest baseline? Compares pysteps' methods that need no OpenCV.

In every window of a SEVIR folder, the last input frame is carried along the motion that each method
finds, and scored like any forecast. `verification.baselines.extrapolation` is the row "baseline".
Pixels with inflow from outside the grid keep their last code.

    python benchmarks/extrapolation.py --data RADAR
"""

import functools
import time

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.data import catalog, sevir
from keras_nowcast.verification import baselines, evaluate, scores
from keras_nowcast.vil import FRAME_MINUTES, FRAMES_OUT, MISSING

FRAMES = {"vet": 2, "darts": 9}  # input frames that a method uses
THRESHOLDS = (16, 74)
LEADS = (10, 30, 60)  # minutes


def windows(events, grid):
    """Yields (event, input, target) of each window."""
    for event in events:
        vil = sevir.read_event(event, grid)
        for start in sevir.window_starts(event.frames):
            yield f"{event.id} {event.time}", *sevir.cut_window(vil, start)


def motion_by(method):
    """Returns a function like `baselines.motion_fields`, with a motion method of pysteps."""

    def motion(vil):
        from pysteps.motion import get_method

        flow = get_method(method)
        frames = np.moveaxis(np.where(vil == MISSING, 0.0, vil), -1, 1)
        return [flow(window[-FRAMES[method] :], verbose=False) for window in frames]

    return motion


def timed(name, method, seconds):
    """Returns `method` wrapped so that each call adds its seconds to seconds[name]."""

    def run(vil):
        start = time.perf_counter()
        forecast = method(vil)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return forecast

    return run


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--data", required=True, help="root of a SEVIR data set: CATALOG.csv and data/"
    )
    parser.add_argument("--grid", type=int, default=128, help="pixels along a side")
    args = parser.parse_args()
    events = catalog.read_catalog(args.data)
    ours = {"leads": FRAMES_OUT}
    methods = {
        "persistence": functools.partial(baselines.persistence, **ours),
        "baseline": functools.partial(baselines.extrapolation, **ours),
    } | {
        name: functools.partial(baselines.extrapolation, **ours, motion=motion_by(name))
        for name in FRAMES
    }
    seconds = {}
    evaluation = evaluate.accumulate(
        windows(events, args.grid),
        {name: timed(name, method, seconds) for name, method in methods.items()},
        THRESHOLDS,
    )
    count = sum(len(sevir.window_starts(event.frames)) for event in events)
    rows = []
    for name, total in evaluation.totals().items():
        row = {"method": name, "s_per_window": seconds[name] / count}
        for minutes in LEADS:
            lead = minutes // FRAME_MINUTES - 1
            row[f"mse_{minutes}_min"] = float(scores.mse(total)[lead])
            for t, threshold in enumerate(THRESHOLDS):
                csi = scores.csi(total.contingency())[lead, t]
                row[f"csi_{threshold}_{minutes}_min"] = float(csi)
        rows.append(row)
    write_results("extrapolation", rows, f"{count} windows, grid {args.grid}")


if __name__ == "__main__":
    main()
