"""A network that knows storms in general, for a small data set to start from.

    python experiments/train.py --preset synthetic_start --run-dir runs/start

It sees nothing but the synthetic SEVIR, which is written first; see `real_radar` for what follows.
"""

from keras_nowcast.sweep.cells import Cell

RUNS = [
    Cell(
        dict(
            depth=4,
            filters=16,
            grid=128,
            window_stride=4,
            augment=True,
            schedule="cosine",
            learning_rate=2e-3,
            epochs=36,
        )
    )
]
