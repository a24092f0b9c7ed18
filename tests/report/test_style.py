"""The look of the figures: styles, error bars, and the line that names the runs."""

import os
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import study_runs
from drawn import read

from keras_nowcast.report import style


@pytest.fixture
def figure():
    figure = plt.figure(figsize=(4, 3))
    yield figure
    plt.close(figure)


def test_no_more_than_six_runs_are_named_each(figure, tmp_path):
    for number in range(6):
        study_runs.write_run(tmp_path / f"r{number}", seed=number)
    style.signed(figure, read(tmp_path))
    assert figure.get_supxlabel() == "runs: r0, r1, r2, r3, r4, r5"
    style.signed(figure, read(tmp_path)[:1])
    assert figure.get_supxlabel() == "run: r0"


def test_a_line_longer_than_the_figure_is_cut(figure, tmp_path):
    study_runs.write_run(tmp_path / ("n" * 200))
    style.signed(figure, read(tmp_path))
    text = figure.get_supxlabel()
    assert len(text) == 4 * style.LETTERS_PER_INCH and text.endswith("n ...")


def test_points_of_one_style_are_drawn_together(figure):
    axes = figure.add_subplot()
    red, blue = (("color", "red"),), (("color", "blue"),)
    points = [
        (red, (1, 1, 1), (5, 4, 7)),
        (blue, (2, 2, 2), (6, 6, 6)),
        (red, (3, 2, 3), (8, 8, 8)),
    ]
    style.draw_bars(axes, points)
    together, alone = axes.containers
    assert together.lines[0].get_xydata().tolist() == [[1, 5], [3, 8]]
    across, along = (bars.get_segments() for bars in together.lines[2])
    assert [each.tolist() for each in across] == [[[1, 5], [1, 5]], [[2, 8], [3, 8]]]
    assert [each.tolist() for each in along] == [[[1, 4], [1, 7]], [[3, 8], [3, 8]]]
    assert alone.lines[0].get_xydata().tolist() == [[2, 6]] and not alone.lines[2]


def test_a_precision_is_a_color_and_a_number_of_processes_a_marker():
    found = dict(style.point_style({"precision": "mixed_bfloat16", "world_size": 2}, hollow=True))
    assert found == {
        "color": "#009E73",
        "marker": "s",
        "markerfacecolor": "none",
        "label": "mixed_bfloat16, 2 processes",
    }
    assert style.precision_color("float8") == "#000000"


def test_the_matplotlibrc_of_the_user_plays_no_part(tmp_path):
    """It asks for TeX, which need not be installed, and for another size of text."""
    pictures = {}
    for user, settings in {"plain": {}, "some": {"text.usetex": True, "font.size": 30}}.items():
        with plt.rc_context(settings):
            with style.styled():
                figure, axes = plt.subplots(figsize=(2, 2), layout="constrained")
                axes.plot([1, 2], label="line")
                axes.legend()
            style.write_figure(figure, tmp_path, user)
        pictures[user] = (tmp_path / f"{user}.png").read_bytes()
    assert pictures["plain"] == pictures["some"]


def test_the_backend_of_a_notebook_need_not_be_installed():
    code = "import keras_nowcast.report.figures, matplotlib; print(matplotlib.get_backend())"
    environ = {**os.environ, "MPLBACKEND": "module://not_installed.backend"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().lower() == "agg", done.stderr
