"""The lower bound (roofline) on training time, and how far above it runs were."""

import pytest
import study_runs

from keras_nowcast import records
from keras_nowcast.model.cost import Cost, LayerCost, count_unet
from keras_nowcast.study import table
from keras_nowcast.study.roofline import GPUS, lower_bound_step_seconds, ratios_to_lower_bound
from keras_nowcast.sweep.cells import Cell, PlacedCell
from keras_nowcast.sweep.estimate import estimate_table, lower_bound_seconds

ROOFS = {
    "compute_flops_per_second": {"float32": 1e9, "bfloat16": 4e9},
    "memory_bytes_per_second": 1e8,
}


def test_a_layer_takes_what_its_slower_roof_allows():
    """Counted by hand: two windows of 4x4, a 3x3 kernel from 2 to 3 channels, then a pooling.

    The convolution in float32 has 864 * 2 FLOPs per pass, forward and by both operands; the bias
    has 2 * 48, forward and backward. It moves 3 * 4 bytes for 32 + 48 numbers and half of its 54
    weights.
    Adam moves 28 bytes for each of the 54 + 3 parameters.
    """
    convolution = LayerCost("c", "convolution", 4, 3, 4, 2, kernel=3)
    pooling = LayerCost("p", "pooling", 2, 3, 4, 3)
    flops, moved = 3 * 2 * 16 * 54 + 2 * 48, 12 * (32 + 48 + 27)
    assert (convolution.training_flops, convolution.training_bytes_moved("float32", 2)) == (
        flops,
        moved,
    )
    by_computing = {**ROOFS, "memory_bytes_per_second": 1e12}
    pooled = 8 * (48 + 12)
    update = 28 * 57
    assert lower_bound_step_seconds(
        Cost((convolution, pooling)), "float32", 2, ROOFS
    ) == pytest.approx((2 * moved + 2 * pooled + update) / 1e8)
    forward_and_backward = 2 * flops / 1e9 + 2 * pooling.training_flops / 1e9
    assert lower_bound_step_seconds(
        Cost((convolution, pooling)), "float32", 2, by_computing
    ) == pytest.approx(forward_and_backward + update / 1e12)


def test_half_precision_has_roofs_of_its_own_and_float32_layers_keep_theirs():
    half = LayerCost("h", "convolution", 4, 3, 4, 2, kernel=3)
    whole = LayerCost("w", "convolution", 4, 3, 4, 2, kernel=3, is_float32=True)
    fast = {**ROOFS, "memory_bytes_per_second": 1e30}

    def seconds(layer):
        return lower_bound_step_seconds(Cost((layer,)), "mixed_bfloat16", 1, fast)

    assert seconds(whole) == pytest.approx(4 * seconds(half))
    assert lower_bound_step_seconds(Cost((half,)), "mixed_float16", 1, fast) is None
    assert lower_bound_step_seconds(Cost((half,)), "mixed_bfloat16", 1, GPUS["V100"].roofs) is None


def write_three_times_the_lower_bound(folder, name, **config):
    """A run whose steps take three times the bound: 10 steps of 4 windows per epoch."""
    cost = count_unet(96, 13, 12, config.get("depth", 4), config.get("filters", 16))
    least = lower_bound_step_seconds(cost, config.get("precision", "float32"), 4, ROOFS)
    study_runs.write_run(folder / name, seconds=3 * 10 * least, roofs=ROOFS, **config)


def test_how_far_above_their_roofs_runs_were(tmp_path):
    write_three_times_the_lower_bound(tmp_path, "a")
    write_three_times_the_lower_bound(tmp_path, "b", filters=4, precision="mixed_bfloat16")
    write_three_times_the_lower_bound(tmp_path, "several", world_size=2)
    write_three_times_the_lower_bound(tmp_path, "failed", status="failed", reason="no memory")
    study_runs.write_run(tmp_path / "no-roofs")
    runs = table.read(records.read_runs([tmp_path]))
    assert ratios_to_lower_bound(runs) == pytest.approx([3, 3])


def cell(processes=1, **settings):
    settings = {"grid": 96, "epochs": 5, "precision": "float32", "depth": 3, **settings}
    return PlacedCell(Cell(settings, processes), "one", (39, 6), None)


def test_the_least_of_a_cell_is_that_of_its_steps():
    """39 windows in batches of 4: 10 steps with one process, 5 with two, 3.9 windows each."""
    cost = count_unet(96, 13, 12, 3, 16)
    step_s = lower_bound_step_seconds(cost, "float32", 3.9, GPUS["V100"].roofs)
    assert lower_bound_seconds(cell(batch_per_replica=4), "V100") == pytest.approx(5 * 10 * step_s)
    assert lower_bound_seconds(cell(2, batch_per_replica=4), "V100") == pytest.approx(
        5 * 5 * step_s
    )
    assert lower_bound_seconds(cell(precision="mixed_bfloat16"), "V100") is None


def test_the_estimate_is_marked_and_is_the_lower_bound_times_the_measured_ratio(tmp_path):
    cells, states = [cell(2, filters=64, epochs=10**6)], ["new"]
    lines = estimate_table(cells, states, [tmp_path / "none"], "A100").splitlines()
    assert lines[0].endswith("lower bound on A100")
    assert lines[-1].startswith("the ratio of real steps to this lower bound is not known")
    assert "A100 SXM 80 GB: 156 TFLOP/s float32, 312 TFLOP/s float16" in lines[-2]
    gpu_hours = 2 * lower_bound_seconds(cells[0], "A100") / 3600
    assert f"{gpu_hours:.3g} GPU-hours" in lines[-2]

    write_three_times_the_lower_bound(tmp_path, "a")
    line = estimate_table(cells, states, [tmp_path], "A100").splitlines()[-1]
    assert line.startswith(
        "estimate, not a measurement: the steps of 1 measured run took 3 times the roofline "
    )
    assert f"{3 * gpu_hours:.3g} GPU-hours and, at no more than 400 W per GPU" in line
    assert f"{3 * gpu_hours * 0.4:.3g} kWh" in line
    assert "lower bound on" not in estimate_table(cells, states, [tmp_path])
