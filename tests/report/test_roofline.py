"""The roofline figure of synthetic runs."""

import pytest
import study_runs
from drawn import points, read, texts

from keras_nowcast.report import figures, roofline


def test_no_roof_is_made_up(study):
    figure = roofline.roofline_figure(study)
    assert any("no roofline limits" in text for text in texts(figure))
    assert all(line.get_linestyle() == "None" for line in figure.axes[0].lines)
    figures.plt.close(figure)


ROOFS = {
    "compute_flops_per_second": {"bfloat16": 4e11, "float32": 1.5e11},
    "memory_bytes_per_second": 2e10,
}


def test_layers_lie_beneath_the_measured_roofs(tmp_path):
    for filters in (4, 16):
        for precision in ("float32", "mixed_bfloat16"):
            study_runs.write_run(
                tmp_path / f"{precision}-f{filters}",
                filters=filters,
                precision=precision,
                roofs=ROOFS,
            )
    runs = read(tmp_path)
    figure = roofline.roofline_figure(runs)
    assert len(figure.axes) == 2
    for axes, precision in zip(figure.axes, ("float32", "mixed_bfloat16"), strict=True):
        (large,) = [run for run in runs if run.name == f"{precision}-f16"]
        rows = large.folder.read_layers()
        expected = {(row["intensity"], row["flops"] / 0.01 / 1e9) for row in rows}
        assert expected <= points(axes)
        title = axes.get_title()
        assert f"layers: depth 4, 16 filters, {precision}, 1 process" in title
        # 10 ms per layer, and 2 s per epoch of 10 steps of 4 windows
        assert f"add up to {100 * len(rows) * 0.01 / 0.2:.0f}% of a training step" in title
        assert "largest of 2 runs" in title
        roofs = [line for line in axes.lines if line.get_color() == "0.25"]
        assert {line.get_ydata()[-1] for line in roofs} == {400.0, 150.0}
        for line in roofs:
            x, y = line.get_xdata(), line.get_ydata()
            assert y[0] == pytest.approx(20 * x[0]) and y[1] == pytest.approx(20 * x[1]) == y[2]
        said = [text.get_text() for text in axes.texts]
        assert {"bfloat16 400 GFLOP/s", "float32 150 GFLOP/s", "memory 20 GB/s"} == set(said)
        (dashed,) = [line for line in roofs if line.get_linestyle() == "--"]
        assert dashed.get_ydata()[-1] == (150.0 if precision == "mixed_bfloat16" else 400.0)
    figures.plt.close(figure)


def test_runs_without_layers_are_whole_steps_beside_those_with(tmp_path):
    study_runs.write_run(tmp_path / "timed", roofs=ROOFS)
    study_runs.write_run(tmp_path / "plain", filters=64)
    study_runs.write_run(tmp_path / "half", precision="mixed_bfloat16", world_size=2)
    study_runs.write_run(tmp_path / "lost", filters=32, roofs=ROOFS)
    (tmp_path / "lost" / "layers.csv").unlink()
    runs = read(tmp_path)
    figure = roofline.roofline_figure(runs)
    left, right = figure.axes
    assert "depth 4, 16 filters, float32" in left.get_title()
    assert right.get_title() == "no run in mixed_bfloat16 timed its layers" and not right.texts
    steps = {
        run.name: (
            run.row["counted_intensity"],
            run.row["achieved_flops_per_second"] / run.row["world_size"] / 1e9,
        )
        for run in runs
    }
    assert {steps[name] for name in ("timed", "plain", "lost")} <= points(left)
    assert points(right) == {steps["half"]}  # of one process, as the roofs are
    assert figure.get_supxlabel() == "runs: timed, half, lost, plain"
    figures.plt.close(figure)
