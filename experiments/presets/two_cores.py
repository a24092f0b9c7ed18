"""The worked example of the documentation: a design space that two CPU cores can measure.

    python experiments/make_synthetic.py
    python experiments/make_dataset.py --data data/synthetic --grid 96 --out data/synthetic96
    python experiments/sweep.py --preset two_cores --data data/synthetic96
    python experiments/plot_figures.py runs/two_cores

Hardware: two cores with bfloat16 instructions (AVX512-BF16), on which it took 56 minutes
(docs/two_cores.md has its result). Without --data it reads compressed events at the full size,
which takes longer than the training of the smaller models.

The cells have depths 2 to 5 and 4 to 32 filters, in float32 and mixed_bfloat16, on the small
synthetic SEVIR; every cell trains for the same number of steps. Two sizes have five seeds in both
precisions, one of them also on two processes. Each layer of the largest cell is timed alone. The
cell of depth 6 does not suit the grid, and its row in the table has the reason.
"""

from keras_nowcast.sweep.cells import all_combinations

COMMON = dict(
    grid=(96,), epochs=(20,), schedule=("cosine",), precision=("float32", "mixed_bfloat16")
)

RUNS = [
    *all_combinations(**COMMON, depth=(2, 3, 4), filters=(4, 8, 16)),
    *all_combinations(**COMMON, depth=(5,), filters=(4, 8)),
    *all_combinations(**COMMON, depth=(5,), filters=(16,), layer_times=(True,)),
    *all_combinations(**COMMON, depth=(2, 3), filters=(32,)),
    *all_combinations(**COMMON, depth=(3,), filters=(8, 16), seed=(1, 2, 3, 4)),
    *all_combinations(**COMMON, depth=(3,), filters=(16,), processes=(2,), seed=(0, 1, 2, 3, 4)),
    *all_combinations(**{**COMMON, "precision": ("float32",)}, depth=(6,), filters=(4,)),
]
