"""A small study that asks each of the paper's four questions; `make demo` runs it.

    python experiments/make_synthetic.py
    python experiments/make_dataset.py --data data/synthetic --grid 64 --out data/synthetic64
    python experiments/sweep.py --preset demo
    python experiments/plot_figures.py runs/demo

Hardware: any; made for two CPU cores. Where no sensor measures energy, it is estimated and marked.

The small model has three seeds in both precisions, for the question of equal skill, and one run on
two processes. Depth 4 has a pair of models whose parameters differ about as much as the paper's,
+1,489%; the larger also times each of its layers. `auto` is half precision if the machine supports
it; if not, those cells are left out. Models this small, trained this briefly, have little skill.
"""

from keras_nowcast.sweep.cells import all_combinations

COMMON = dict(
    data=("data/synthetic64",),
    grid=(64,),
    epochs=(6,),
    schedule=("cosine",),
    power_source=("auto-or-estimate",),
)
SMALL = COMMON | dict(depth=(2,), filters=(8,))

RUNS = [
    *all_combinations(**SMALL, precision=("float32", "auto"), seed=(0, 1, 2)),
    *all_combinations(**SMALL, precision=("float32",), processes=(2,)),
    *all_combinations(**COMMON, precision=("float32",), depth=(4,), filters=(4,)),
    *all_combinations(
        **COMMON, precision=("float32",), depth=(4,), filters=(16,), layer_times=(True,)
    ),
]
