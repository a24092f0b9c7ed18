import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from keras_nowcast.errors import InputError
from keras_nowcast.report import panels
from keras_nowcast.report.style import NotDrawn
from keras_nowcast.vil import MISSING, VIL_LEVELS


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    plt.close("all")


def rows(methods=("model", "persistence"), thresholds=(16, 74)):
    leads = [5.0, 10.0, "all"]
    return [
        {
            "method": method,
            "threshold": threshold,
            "lead_minutes": lead,
            "csi": 0.5,
            "pod": 0.6,
            "sucr": 0.7,
            "mse": 10.0,
            "mae": 2.0,
            "csi_low": 0.4,
            "csi_high": 0.6,
            "mse_low": 8.0,
            "mse_high": 12.0,
            "mae_low": 1.0,
            "mae_high": 3.0,
            "power_below_8km": np.nan,
            "power_below_16km": 0.5 if lead == 5 else 0.25,
        }
        for method in methods
        for lead in leads
        for threshold in thresholds
    ]


def fields(frames):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 255, (8, 8, frames)).astype(np.uint8)
    truth[0, 0] = MISSING
    forecast = truth.astype(np.float32) + 3
    forecast[1, 1] = np.nan
    return truth, {"model": forecast, "persistence": truth}


@pytest.mark.parametrize(
    ("code", "color"),
    [(0, 0), (15.9, 0), (16, 1), (31, 2), (73, 3), (74, 4), (133, 6), (218, 8), (219, 9), (254, 9)],
)
def test_a_color_begins_at_its_level(code, color):
    colors, norm = panels.vil_colors(VIL_LEVELS)
    assert to_hex(colors(norm(code))) == panels.VIL_COLORS[color]


def test_missing_has_a_color_of_its_own():
    colors, _ = panels.vil_colors(VIL_LEVELS)
    assert to_hex(colors(np.ma.masked)) == panels.MISSING_COLOR not in panels.VIL_COLORS


@pytest.mark.parametrize(
    "levels", [VIL_LEVELS[:-1], (0, 16, 16, *VIL_LEVELS[3:]), VIL_LEVELS[::-1]]
)
def test_broken_levels(levels):
    with pytest.raises(InputError, match="`levels`"):
        panels.vil_colors(levels)


def test_the_panel_shows_every_method_and_lead():
    truth, forecasts = fields(2)
    figure = panels.forecast_panel(
        truth[..., 0],
        truth,
        forecasts,
        [5, 60],
        VIL_LEVELS,
        "S1",
        {"model": ["CSI 0.1", "CSI 0.2"]},
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["last input, 0 min", "+5 min", "+60 min"]
    assert {axes.get_ylabel() for axes in figure.axes} >= {"observed", "model", "persistence"}
    assert {axes.get_xlabel() for axes in figure.axes} >= {"CSI 0.1", "CSI 0.2"}
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 1 + 3 * 2
    assert images[1].mask[0, 0] and images[3].mask[1, 1]
    assert images[3].max() <= 254


def test_the_color_bar_has_units():
    truth, forecasts = fields(1)
    figure = panels.forecast_panel(truth[..., 0], truth, forecasts, [5], VIL_LEVELS, "S1")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert any("kg/m²" in label for label in labels)


def test_curves_run_over_the_leads():
    figure = panels.scores_by_lead(rows(), (16, 74))
    axes = [cell for cell in figure.axes if cell.lines]
    assert [cell.get_title() for cell in axes] == [
        "CSI at VIL ≥ 16",
        "CSI at VIL ≥ 74",
        "mean squared error",
        "mean absolute error",
    ]
    assert all(list(line.get_xdata()) == [5, 10] for cell in axes for line in cell.lines)
    assert all(len(cell.collections) == 2 for cell in axes)  # one band per method


def test_the_performance_diagram_places_its_points():
    figure = panels.performance_diagram(rows(), (16, 74))
    points = [line for line in figure.axes[0].lines if line.get_marker() in "os"]
    assert len(points) == 4
    assert all((*line.get_xdata(), *line.get_ydata()) == (0.7, 0.6) for line in points)


def test_the_animation_has_a_picture_a_frame(tmp_path):
    image = pytest.importorskip("PIL.Image")
    truth, forecasts = fields(3)
    panels.write_animation(tmp_path / "event.gif", truth, forecasts, [0, 5, 10], VIL_LEVELS, "S1")
    with image.open(tmp_path / "event.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 250


def test_power_by_lead_shows_the_bands_that_the_grid_resolves():
    spectra = np.array([64.0, 32.0, 16.0]), {"model": np.array([1, 0.8, 0.3])}
    figure = panels.power_by_lead(rows(), spectra)
    band, spectrum = figure.axes
    assert band.get_title() == "wavelengths below 16 km"
    assert list(band.lines[0].get_xdata()) == [5, 10]
    assert list(band.lines[0].get_ydata()) == [0.5, 0.25]
    assert list(spectrum.lines[0].get_ydata()) == [1, 0.8, 0.3]
    assert [label.get_text() for label in spectrum.get_xticklabels()] == ["16", "32", "64"]
    assert spectrum.get_xlim()[0] > spectrum.get_xlim()[1]


def test_power_that_is_nowhere_defined_is_not_drawn():
    undefined = [row | {"power_below_16km": np.nan} for row in rows()]
    with pytest.raises(NotDrawn, match="does not resolve 16 km"):
        panels.power_by_lead(undefined, (np.zeros(0), {}))


def test_ratios_of_power_are_on_a_logarithmic_scale_around_1():
    spectra = np.array([64.0, 32.0]), {"model": np.array([1.0, 1e-9])}
    figure = panels.power_by_lead(rows(), spectra)
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    low, high = figure.axes[0].get_ylim()
    assert low == 1e-3 and 2 < high < 10
