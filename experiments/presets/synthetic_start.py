"""A model trained on many synthetic storms, as the start of training on a small data set.

    python experiments/train.py --preset synthetic_start --run-dir runs/start

The model sees only the synthetic SEVIR, which is written first. The preset `real_radar` starts from
it.
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
