"""The paper's own study: size, precision and number of GPUs on the published SEVIR.

NEVER RUN BY THIS PROJECT: it needs GPUs and the published data.

    python experiments/sweep.py --preset paper --data /data/sevir --launcher slurm
    python experiments/sweep.py --preset paper --data /data/sevir --dry-run --measured runs/

Hardware: up to 32 GPUs of compute capability 7 or more; the tensors of the widest cell are counted
as 16 GiB. There are 34 cells. A fifth of the authors' 44,760 windows validates; with the other
35,754 or so the cells have 9.8 EFLOP (9.8e18) in total, also counted. The lower bound (roofline) of
the training time is then 115 GPU-hours on V100s, by their datasheet (`--dry-run --gpu V100`).
docs/study.md has an estimate, marked as one. When a few of the cells have been measured on a
cluster, the planner predicts the others (the second command).

The paper's abstract names neither the sizes nor the number of epochs: they are a choice. At depth
4, the cells include both pairs of models that come near the abstract's +1,549% parameters: four
times the filters, and 16 compared with 128 filters with 512 in the center.
"""

from keras_nowcast.sweep.cells import all_combinations

COMMON = dict(
    precision=("float32", "mixed_float16"),
    authors_split=(True,),
    epochs=(20,),
    batch_per_replica=(8,),
    warmup_epochs=(2.0,),
    schedule=("cosine",),
)

RUNS = [
    *all_combinations(**COMMON, depth=(3, 4, 5), filters=(16, 32, 64), processes=(8,)),
    *all_combinations(
        **COMMON, depth=(4,), filters=(16, 128), center_filters=(512,), processes=(8,)
    ),
    *all_combinations(**COMMON, depth=(4,), filters=(32,), seed=(1, 2), processes=(8,)),
    *all_combinations(**COMMON, depth=(4,), filters=(32,), processes=(1, 2, 4, 16, 32)),
]
