"""Figures of power over time."""

import study_runs
from drawn import read, texts

from keras_nowcast.report import figures, power


def test_a_long_trace_keeps_its_peaks():
    seconds = list(range(100_000))
    watts = [100.0] * 100_000
    watts[54_321], watts[77_777], watts[5] = 300.0, 1.0, float("nan")
    kept_s, kept_w = power._thinned(seconds, watts)
    assert len(kept_s) <= power.MAX_POINTS and max(kept_w) == 300.0 and min(kept_w) == 1.0
    assert kept_s == sorted(kept_s)
    assert power._thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_of_many_traces_a_dozen_is_drawn(tmp_path):
    for seed in range(20):
        study_runs.write_run(tmp_path / f"{seed:02}", joules=100.0, seed=seed)
    figure = power.power_traces(read(tmp_path))
    assert sum(bool(axes.lines) for axes in figure.axes) == 12
    assert any("12 of 20 runs with a power trace" in text for text in texts(figure))
    figures.plt.close(figure)


def test_every_trace_lies_within_its_panel(tmp_path):
    """The panels share one axis of power, and the first run needs the least."""
    study_runs.write_run(tmp_path / "a", joules=20.0)
    study_runs.write_run(tmp_path / "b", joules=600.0, seed=1)
    figure = power.power_traces(read(tmp_path))
    for axes, watts in zip(figure.axes, (10.0, 300.0), strict=True):
        (line,) = axes.lines
        assert set(line.get_ydata()) == {watts}
        low, high = axes.get_ylim()
        assert low == 0 and high > 300.0
    figures.plt.close(figure)


def test_the_mark_of_an_estimate_does_not_widen_a_title(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=20.0, source="estimate")
    study_runs.write_run(tmp_path / "b", joules=20.0, seed=1)
    figure = power.power_traces(read(tmp_path))
    assert [axes.get_title() for axes in figure.axes] == [
        "depth 4, 16 filters, float32, 1 process, seed 0\n(an ESTIMATE, not measured)",
        "depth 4, 16 filters, float32, 1 process, seed 1",
    ]
    figures.plt.close(figure)
