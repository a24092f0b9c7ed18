"""Real radar of three weather services: trains on days before 2016-09-01, tests on the rest.

    python experiments/train.py --preset synthetic_start --run-dir runs/start
    python experiments/train.py --preset real_radar --data ../shared/radar \
        --start-from runs/start --run-dir runs/radar
    python experiments/evaluate.py runs/radar

The last of the days before 2016-09-01 validates. docs/real_radar.md describes the data and the
results.
"""

from keras_nowcast.sweep.cells import Cell

RUNS = [
    Cell(
        dict(
            depth=4,
            filters=16,
            grid=128,
            test_from="2016-09-01",
            window_stride=1,
            augment=True,
            schedule="cosine",
            learning_rate=3e-4,
            epochs=12,
        )
    )
]
