"""What is the CSI of one forecast? The same counts under each convention of the literature.

Scores persistence on every window of a SEVIR folder, at the stored size. The table goes into
docs/scores.md.

    python benchmarks/score_conventions.py --data RADAR
"""

import functools

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.data import catalog, sevir
from keras_nowcast.verification import baselines, evaluate, scores
from keras_nowcast.vil import FRAMES_OUT, VIL_THRESHOLDS

# How each publication turns counts into a score; see docs/scores.md.
CONVENTIONS = {
    "default": ("pooled", "undefined"),
    "Earthformer mode 0": ("pooled", "zero"),
    "mean over leads": ("leads", "undefined"),
    "Earthformer mode 2": ("leads", "zero"),
    "mean over batches": ("batches", "undefined"),
    "SEVIR authors": ("batches", "one"),
    "batches, empty 0": ("batches", "zero"),
}
THREE = (16, 74, 133)
POOLS = (1, 4, 16)


def windows(events):
    """Yields (event, input, target) of each window; an event is a batch."""
    for event in events:
        vil = sevir.read_event(event)
        for start in sevir.window_starts(event.frames):
            yield f"{event.id} {event.time}", *sevir.cut_window(vil, start)


def rows_of(statistics):
    """Returns one row per convention, then one per size of the pooling blocks."""
    rows = []
    for name, (pooling, empty) in CONVENTIONS.items():
        values = scores.score_by_threshold(scores.csi, statistics, pooling, empty)
        rows.append(_row(name, pooling, empty, values))
    for pool in POOLS[1:]:
        values = scores.score_by_threshold(scores.csi, statistics, pool=pool)
        rows.append(_row(f"max-pool {pool}", "pooled", "undefined", values))
    return rows


def _row(name, pooling, empty, values):
    row = {"convention": name, "pooling": pooling, "empty": empty}
    for threshold, value in zip(VIL_THRESHOLDS, values, strict=True):
        row[f"csi_{threshold}"] = None if np.isnan(value) else float(value)
    for title, chosen in (("csi_m_six", VIL_THRESHOLDS), ("csi_m_three", THREE)):
        row[title] = float(scores.mean_over_thresholds(values, VIL_THRESHOLDS, chosen))
    return row


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--data", required=True, help="root of a SEVIR data set: CATALOG.csv and data/"
    )
    args = parser.parse_args()
    events = catalog.read_catalog(args.data)
    persistence = functools.partial(baselines.persistence, leads=FRAMES_OUT)
    evaluation = evaluate.accumulate(
        windows(events), {"persistence": persistence}, VIL_THRESHOLDS, POOLS
    )
    statistics = evaluation.methods["persistence"]
    write_results(
        "score_conventions", rows_of(statistics), f"CSI of persistence, {len(events)} events"
    )


if __name__ == "__main__":
    main()
