"""A small real study: what `make demo` runs.

    python experiments/sweep.py --preset demo
    python experiments/plot_figures.py runs/demo

Hardware: any; made for two CPU cores, where it took five and a half minutes, figures included (AMD
EPYC, November 2026).
Two depths, three widths, float32 and what `auto` chooses (half precision where the machine has it),
one cell with two more seeds, and the largest on two processes and, on one, with each of its layers
timed alone. Networks this small, trained this briefly, forecast little; what the study shows is
how time, memory and skill move with size.
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
