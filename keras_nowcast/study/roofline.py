"""Lower bound (roofline) of the training time on a GPU that has not been measured.

A layer takes at least as long as its FLOPs at the GPU's peak compute rate, and at least as long as
its bytes at the memory bandwidth (Williams, Waterman and Patterson 2009). Only runs that timed
the roofline limits of their own machine (`--layer-times`) show how far above that bound steps are.
"""

from dataclasses import dataclass

from keras_nowcast.study import table


@dataclass(frozen=True)
class GpuSpec:
    """A GPU by its maker's datasheet.

    Attributes:
      product: the full name of the product.
      roofs: dict of the roofline limits as in a record's `roofs`: compute_flops_per_second {dtype:
        FLOPs of matrix products without sparsity}, memory_bytes_per_second. A dtype that its
        matrix units lack is left out.
      watts: the power limit.
    """

    product: str
    roofs: dict
    watts: int

    def text(self):
        """Returns its values as text."""
        rates = ", ".join(
            f"{flops / 1e12:g} TFLOP/s {dtype}"
            for dtype, flops in self.roofs["compute_flops_per_second"].items()
        )
        moved = self.roofs["memory_bytes_per_second"] / 1e9
        return f"{self.product}: {rates}, {moved:,.0f} GB/s, {self.watts} W in its datasheet"


def _gpu(product, float32, half, gigabytes, watts, halves=("float16", "bfloat16")):
    rates = {"float32": float32 * 1e12, **dict.fromkeys(halves, half * 1e12)}
    roofs = {"compute_flops_per_second": rates, "memory_bytes_per_second": gigabytes * 1e9}
    return GpuSpec(product, roofs, watts)


# Source: NVIDIA's datasheets. On A100 and H100, float32 has the rate of TF32, whose time is a lower
# bound without --tf32 too.
GPUS = {
    "V100": _gpu("V100 SXM2", 15.7, 125, 900, 300, halves=("float16",)),
    "A100": _gpu("A100 SXM 80 GB", 156, 312, 2039, 400),
    "H100": _gpu("H100 SXM", 494.5, 989, 3350, 700),
}


def lower_bound_step_seconds(cost, policy, windows, roofs):
    """Returns the lower bound of the seconds of a training step of one process.

    Excludes the allreduce, the input and the start of each operation.

    Args:
      cost: the Cost of the model.
      policy: a precision policy.
      windows: in the step; may be a fraction, the mean over an epoch's steps.
      roofs: dict as in GpuSpec.

    Returns:
      Seconds; None if the roofs lack the policy's dtype.
    """
    rates, moved = roofs["compute_flops_per_second"], roofs["memory_bytes_per_second"]
    half = policy.removeprefix("mixed_")
    if not {half, "float32"} <= rates.keys():
        return None
    layers = sum(
        max(
            layer.training_flops / rates["float32" if layer.is_float32 else half],
            layer.training_bytes_moved(policy, windows) / moved,
        )
        for layer in cost.layers
    )
    return windows * layers + cost.optimizer_bytes_moved / moved


def ratios_to_lower_bound(runs):
    """Returns the time of a step over its lower bound on the same machine, for each run.

    Args:
      runs: list of MeasuredRun; only completed runs of one process that measured their roofs
        count.
    """
    found = []
    for run in runs:
        row = run.row
        if not (run.is_completed and run.roofs and row["seconds_per_step"]):
            continue
        if row["world_size"] != 1 or run.changed_processes:
            continue
        windows = row["samples_per_second"] * row["seconds_per_step"]
        cost = table.count_config(run.setting)
        least = lower_bound_step_seconds(cost, row["precision"], windows, run.roofs)
        if least:
            found.append(row["seconds_per_step"] / least)
    return found
