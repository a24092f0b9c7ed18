"""Figures of synthetic runs: drawn and signed, or refused with the reason."""

import re
from xml.etree import ElementTree

import pytest
import study_runs
from drawn import points, read, texts

from keras_nowcast.report import figures, power, skill, style


@pytest.mark.parametrize("name", figures.OF_ALL_RUNS)
def test_each_is_drawn_and_names_its_runs(study, name, tmp_path):
    figure = figures.OF_ALL_RUNS[name].draw(study)
    signature = figure.get_supxlabel()
    assert signature.startswith("8 runs of ") and "f4-float32-np1 ..." in signature
    svg = style.write_figure(figure, tmp_path, name)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    ElementTree.fromstring(svg.replace("xlink:href", "href"))  # well-formed
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) and all(each.startswith(name) for each in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert used and set(used) <= set(ids)
    assert figures.OF_ALL_RUNS[name].title and figures.OF_ALL_RUNS[name].caption
    figures.plt.close("all")


@pytest.mark.parametrize(
    "name, why",
    [
        ("mixed_speedup", "no completed run in float32 differs from one in mixed precision"),
        ("scaling", "no two completed runs differ only in the number of processes"),
        ("power_traces", study_runs.WHY_NO_ENERGY),
    ],
)
def test_without_data_a_figure_is_not_drawn(tmp_path, name, why):
    study_runs.write_run(tmp_path / "a")
    with pytest.raises(style.NotDrawn, match=re.escape(why)):
        figures.OF_ALL_RUNS[name].draw(read(tmp_path))


@pytest.mark.parametrize("name", figures.OF_ALL_RUNS)
def test_a_failed_run_alone_gives_no_figure_of_cost(tmp_path, name):
    study_runs.write_run(tmp_path / "a", status="failed", losses=(0.5,))
    (run,) = read(tmp_path)
    run.epochs.clear()
    for column in ("seconds_per_epoch", "achieved_flops_per_second", "peak_rss_bytes"):
        run.row[column] = None
    with pytest.raises(style.NotDrawn):
        figures.OF_ALL_RUNS[name].draw([run])


def test_a_single_pair_has_limits_around_it(tmp_path):
    """Several seeds of one size: on a logarithmic axis, such limits were of no width."""
    for precision in ("float32", "mixed_bfloat16"):
        for seed in range(3):
            fields = {"depth": 2, "filters": 8, "precision": precision, "seed": seed}
            fields["seconds"] = 2.0 if precision == "float32" else 1.5 + 0.3 * seed
            study_runs.write_run(tmp_path / f"{precision}-{seed}", **fields)
    figure = figures.mixed_speedup(read(tmp_path))
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0.9 * 65196 < 1.1 * 65196 < high


def test_cost_has_the_numbers_of_the_runs(study):
    figure = figures.cost_by_size(study)
    time, energy, power = map(points, figure.axes)
    assert {(4143628, 16.0), (4143628, 8.0)} < time
    assert {joules for _, joules in energy} == {40.0, 28.0, 160.0, 112.0}
    assert (4143628, 10.0) in power
    figures.plt.close(figure)


def test_an_estimate_is_hollow_and_called_one(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=100.0, source="estimate")
    runs = read(tmp_path)
    for draw in (figures.cost_by_size, skill.skill_by_cost, power.power_traces):
        figure = draw(runs)
        assert any("ESTIMATE, not measured" in text for text in texts(figure)), draw.__name__
        figures.plt.close(figure)
    (_, energy, watts) = (figure := figures.cost_by_size(runs)).axes
    for axes in (energy, watts):
        assert axes.containers[0].lines[0].get_markerfacecolor() == "none"
    figures.plt.close(figure)


def test_time_where_not_all_measured_energy(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=100.0)
    study_runs.write_run(tmp_path / "b", filters=4)
    figure = skill.skill_by_cost(read(tmp_path))
    assert figure.axes[0].get_xlabel() == "training time per epoch (s)"
    assert any("time, since not every run measured energy" in text for text in texts(figure))
    figures.plt.close(figure)


def test_time_where_none_measured_energy(tmp_path):
    study_runs.write_run(tmp_path / "a", filters=4)
    study_runs.write_run(tmp_path / "b")
    figure = skill.skill_by_cost(read(tmp_path))
    assert any("time, since no run measured energy" in text for text in texts(figure))
    figures.plt.close(figure)


def test_every_speedup_lies_within_its_panel(tmp_path):
    study_runs.write_run(tmp_path / "a")
    study_runs.write_run(tmp_path / "b", losses=(0.4,) * 4, precision="mixed_bfloat16")
    figure = figures.mixed_speedup(read(tmp_path))
    for axes in figure.axes:
        assert axes.containers[0].lines[0].get_ydata().max() < axes.get_ylim()[1]
    figures.plt.close(figure)


def test_fronts_are_of_runs_that_compare(tmp_path):
    """Grid 48 is cheaper and scores higher than all of grid 96, but the two do not compare."""
    for grid, better in ((96, 0.0), (48, 0.3)):
        for filters, csi in ((4, 0.2), (8, 0.1), (16, 0.4)):
            study_runs.write_run(
                tmp_path / f"g{grid}-f{filters}",
                grid=grid,
                filters=filters,
                seconds=filters * grid / 96,
                csi=(csi + better,) * 3,
            )
    study_runs.write_run(tmp_path / "alone", grid=48, filters=4, batch_per_replica=2)
    figure = skill.skill_by_cost(read(tmp_path))
    fronts = {
        line.get_label(): [tuple(xy) for xy in line.get_xydata().round(6)]
        for line in figure.axes[0].lines
        if line.get_drawstyle() == "steps-post"
    }
    assert fronts == {
        "front: grid 48, batch per replica 4": [(2.0, 0.5), (8.0, 0.7)],
        "front: grid 96, batch per replica 4": [(4.0, 0.2), (16.0, 0.4)],
    }
    title = figure.axes[0].get_title()
    assert "differ only in size, precision and processes: 2 of 3 groups" in title
    figures.plt.close(figure)


def test_no_label_covers_another(tmp_path):
    """Twelve models on a front, with nearly the same cost and skill."""
    for number in range(12):
        study_runs.write_run(
            tmp_path / f"{number:02}",
            filters=4 + number,
            seconds=2 + number / 100,
            csi=(0.3 + number / 1000,) * 3,
        )
    study_runs.write_run(tmp_path / "far", filters=32, seconds=50.0, csi=(0.9,) * 3)
    figure = skill.skill_by_cost(read(tmp_path))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) >= 6
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    figures.plt.close(figure)


def test_joules_of_several_sensors_are_called_so(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=10.0, source="rapl")
    study_runs.write_run(tmp_path / "b", filters=4, joules=10.0)
    figure = figures.cost_by_size(read(tmp_path))
    assert "by different sensors: nvml_counter, rapl" in texts(figure)
    figures.plt.close(figure)


def test_memory_on_gpus_says_what_is_counted(tmp_path):
    study_runs.write_run(tmp_path / "a", gpus=["A100"], peak_gpu_bytes=2**30)
    title = figures.memory_by_size(read(tmp_path)).axes[0].get_title()
    assert title.startswith("measured: peak of the GPU's allocator\ncounted: ")
