"""A small real study, which `make demo` runs.

    python experiments/sweep.py --preset demo
    python experiments/plot_figures.py runs/demo

Hardware: any; made for two CPU cores.

The cells have two depths and three widths, each in float32 and in the choice of `auto`, which is
half precision if the machine supports it. One cell has two more seeds. The largest also runs on two
processes, and on one process with each of its layers timed alone. Models this small, trained this
briefly, have little skill; the study shows how time, memory and skill change with size.
"""

from keras_nowcast.sweep.cells import all_combinations

COMMON = dict(grid=(64,), epochs=(10,), schedule=("cosine",), precision=("float32", "auto"))

RUNS = [
    *all_combinations(**COMMON, depth=(2,), filters=(4, 8, 16)),
    *all_combinations(**COMMON, depth=(3,), filters=(4, 8)),
    *all_combinations(**COMMON, depth=(3,), filters=(16,), layer_times=(True,)),
    *all_combinations(**COMMON, depth=(3,), filters=(8,), seed=(1, 2)),
    *all_combinations(**COMMON, depth=(3,), filters=(16,), processes=(2,)),
]
