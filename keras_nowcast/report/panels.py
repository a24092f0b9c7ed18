"""Pictures of forecasts, from arrays, and of their scores, from the rows of scores.csv.

Fields are VIL codes with the axes (y, x, frame); MISSING, or NaN in a forecast, is drawn gray.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from keras_nowcast.errors import InputError
from keras_nowcast.files import written_whole
from keras_nowcast.report.style import COLORS, MARKERS, NotDrawn, styled
from keras_nowcast.vil import MISSING, vil_kg_m2

# Source: the SEVIR authors' display code, one color from each level up to the next. Theirs has one
# more color, for codes above the last level, but no such codes exist.
VIL_COLORS = (
    "#000000",
    "#4d4d4d",
    "#28be28",
    "#199619",
    "#0a690a",
    "#0a4b0a",
    "#f5f500",
    "#edac00",
    "#f06e00",
    "#a00000",
)
MISSING_COLOR = "#c8c8d2"

# A method has the same color in every picture.
METHOD_COLORS = dict(
    zip(("model", "persistence", "extrapolation", "sprog", "anvil"), COLORS, strict=False)
)
_OTHER_COLORS = COLORS[len(METHOD_COLORS) :]
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a $ in an event's name is a $
}


def vil_colors(levels):
    """Returns (colormap, norm) of the SEVIR colors between `levels`; a masked pixel is missing.

    Raises:
      InputError: there are not eleven levels, or they are not ascending.
    """
    levels = list(levels)
    if len(levels) != len(VIL_COLORS) + 1 or any(np.diff(levels) <= 0):
        raise InputError(
            f"`levels` must be {len(VIL_COLORS) + 1} ascending VIL codes. Received: {levels}; give "
            f"the lowest and the highest code and the {len(VIL_COLORS) - 1} edges between colors."
        )
    colors = ListedColormap(VIL_COLORS).with_extremes(bad=MISSING_COLOR)
    return colors, BoundaryNorm(levels, colors.N)


def forecast_panel(inputs, truth, forecasts, lead_minutes, levels, title, scores=None):
    """Draws one row for the observation and one per method, with one column per lead time.

    The first row begins with the last input frame, at 0 minutes.

    Args:
      inputs: uint8 array (y, x), the last input frame.
      truth: uint8 array (y, x, column), the observed frames.
      forecasts: {method: array (y, x, column) of codes}; NaN is missing.
      lead_minutes: lead time of each column, in minutes.
      levels: eleven VIL codes, the edges of the ten colors.
      title: of the figure.
      scores: {method: one line of text per column}, shown below the fields; or None.

    Returns:
      A Figure.
    """
    colors, norm = vil_colors(levels)
    rows = {"observed": truth} | forecasts
    columns = len(lead_minutes)
    with styled(_STYLE):
        figure, axes = plt.subplots(
            len(rows),
            columns + 1,
            figsize=(1.9 * (columns + 1) + 1.3, 1.92 * len(rows) + 0.8),
            layout="constrained",
            squeeze=False,
        )
        figure.get_layout_engine().set(hspace=0.01, h_pad=0.02)
        for row, (name, fields) in enumerate(rows.items()):
            for column, minutes in enumerate(lead_minutes):
                cell = axes[row, column + 1]
                _draw(cell, fields[..., column], colors, norm)
                if row == 0:
                    cell.set_title(f"+{minutes:g} min")
                elif scores is not None and name in scores:
                    cell.set_xlabel(scores[name][column], fontsize=7.5, labelpad=2)
            axes[row, 1].set_ylabel(name, fontsize=10)
        _draw(axes[0, 0], inputs, colors, norm)
        axes[0, 0].set_title("last input, 0 min")
        for cell in axes[1:, 0]:
            cell.axis("off")
        _color_bar(figure, axes, colors, norm)
        figure.suptitle(title)
    return figure


def _draw(axes, field, colors, norm):
    """Draws one field of codes, with row 0 at the bottom as in SEVIR (y increases to the north)."""
    image = axes.imshow(
        _masked(field, norm),
        cmap=colors,
        norm=norm,
        origin="lower",
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[])
    return image


def _masked(field, norm):
    """Returns a field with its missing pixels masked and its codes within the colors."""
    field = np.ma.masked_invalid(np.asarray(field, dtype=np.float32))
    field = np.ma.masked_equal(field, MISSING)
    # A forecast can be slightly outside the range of the codes.
    return field.clip(norm.boundaries[0], norm.boundaries[-1] - 1)


def _color_bar(figure, axes, colors, norm):
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=axes, spacing="uniform", aspect=30)
    levels = np.asarray(norm.boundaries)
    kg_m2 = vil_kg_m2(np.minimum(levels, 254))
    labels = [f"{level:g}  ({mass:.2g})" for level, mass in zip(levels, kg_m2, strict=True)]
    bar.set_ticks(levels, labels=labels)
    bar.set_label("VIL code (kg/m²); light gray is missing")


def scores_by_lead(rows, thresholds):
    """Draws the CSI at each threshold, the MSE and the MAE against lead time, with bands.

    Args:
      rows: of scores.csv, as `evaluate.score_rows` returns them; NaN if a score is undefined.
      thresholds: VIL codes; the CSI at each has its own panel.

    Returns:
      A Figure; the bands are 95% confidence intervals over events.
    """
    rows = [row for row in rows if row["lead_minutes"] != "all"]
    panels = [("csi", t, f"CSI at VIL ≥ {t:g}", "CSI (1 is perfect)") for t in thresholds]
    panels += [
        ("mse", None, "mean squared error", "MSE (VIL code²)"),
        ("mae", None, "mean absolute error", "MAE (VIL code)"),
    ]
    columns = 3
    with styled(_STYLE):
        figure, axes = plt.subplots(
            -(-len(panels) // columns),
            columns,
            figsize=(10.5, 3.1 * -(-len(panels) // columns)),
            layout="constrained",
            squeeze=False,
        )
        for cell, (score, threshold, title, label) in zip(axes.flat, panels, strict=False):
            for method, look in _looks(rows).items():
                _curve(cell, _of(rows, method, threshold), score, look)
            cell.set(title=title, xlabel="lead time (min)", ylabel=label)
            mine = [row[score] for row in rows if threshold in (None, row["threshold"])]
            if np.isnan(mine).all():
                cell.text(
                    0.5,
                    0.5,
                    "no event,\nforecast or observed",
                    ha="center",
                    va="center",
                    transform=cell.transAxes,
                )
            cell.set_ylim(bottom=0)
            cell.set_xlim(0, 1.05 * max(row["lead_minutes"] for row in rows))
            cell.grid(alpha=0.3)
        for cell in axes.flat[len(panels) :]:
            cell.axis("off")
        handles = [Line2D([], [], **look, label=name) for name, look in _looks(rows).items()]
        lows = [row[name] for row in rows for name in row if name.endswith("_low")]
        if not np.isnan(lows).all():
            handles.append(
                Patch(color="0.5", alpha=0.25, label="95% interval over blocks of events")
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _curve(axes, rows, score, look):
    minutes = [row["lead_minutes"] for row in rows]
    axes.plot(minutes, [row[score] for row in rows], **look)
    if f"{score}_low" in rows[0]:
        bounds = ([row[f"{score}_{end}"] for row in rows] for end in ("low", "high"))
        axes.fill_between(minutes, *bounds, color=look["color"], alpha=0.12, linewidth=0)


def power_by_lead(rows, spectra):
    """Draws the power at small scales relative to the observed power: 1 is as sharp as observed.

    Args:
      rows: of scores.csv, as `evaluate.score_rows` returns them; NaN if a score is undefined.
      spectra: (wavelengths in km, {method: relative power}) at the last lead time.

    Returns:
      A Figure: the power in each band against lead time, and against wavelength at the last one.

    Raises:
      NotDrawn: the power is undefined at all lead times.
    """
    looks = _looks(rows)
    rows = [row for row in rows if row["lead_minutes"] != "all"]
    bands = [
        (f"power_below_{km}km", f"wavelengths below {km} km")
        for km in (8, 16)
        if not np.isnan([row[f"power_below_{km}km"] for row in rows]).all()
    ]
    if not bands:
        raise NotDrawn(
            "the grid does not resolve 16 km, the pixel size is unknown, every tile of the fields "
            "has missing pixels, or nothing was observed"
        )
    last = max(row["lead_minutes"] for row in rows)
    columns = len(bands) + 1
    with styled(_STYLE):
        figure, axes = plt.subplots(
            1, columns, figsize=(3.5 * columns, 3.4), layout="constrained", sharey=True
        )
        for cell, (column, title) in zip(axes, bands, strict=False):
            for method, look in looks.items():
                _curve(cell, _of(rows, method), column, look)
            cell.set(title=title, xlabel="lead time (min)")
            cell.set_xlim(0, 1.05 * last)
        wavelength, powers = spectra
        for method, power in powers.items():
            axes[-1].plot(wavelength, power, **{**looks[method], "marker": None})
        axes[-1].set(title=f"spectrum at {last:g} min", xlabel="wavelength (km)", xscale="log")
        axes[-1].invert_xaxis()  # small scales on the right, as in spectra by wavenumber
        ticks = [km for km in (4, 8, 16, 32, 64, 128, 256) if wavelength[-1] <= km <= wavelength[0]]
        axes[-1].set_xticks(ticks, labels=ticks)
        axes[-1].minorticks_off()
        for cell in axes:
            cell.axhline(1, color="0.4", linewidth=0.8, linestyle="--", zorder=1)
            cell.grid(alpha=0.3)
        _ratio_scale(axes[0])
        axes[0].set_ylabel("power relative to observed\n(1 is as sharp, below is smoother)")
        handles = [Line2D([], [], **look, label=name) for name, look in looks.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _ratio_scale(axes):
    """Gives ratios a logarithmic scale from at least 0.1 to 2, at most 0.001 to 1000."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = np.clip(low, 1e-3, 0.09), np.clip(high, 2.2, 1e3)
    between = (1, 2, 5) if high < 300 * low else (1,)
    ticks = [k * 10.0**power for power in range(-3, 4) for k in between]
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)


def performance_diagram(rows, thresholds):
    """Draws POD against success ratio, all lead times pooled, with lines of equal CSI and bias.

    Args:
      rows: of scores.csv, as `evaluate.score_rows` returns them; NaN if a score is undefined.
      thresholds: VIL codes; each has its own marker.

    Returns:
      A Figure.

    Source: Roebber (2009).
    """
    rows = [row for row in rows if row["lead_minutes"] == "all"]
    with styled(_STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 5.6), layout="constrained")
        _performance_lines(axes)
        looks = _looks(rows)
        markers = dict(zip(thresholds, MARKERS * len(thresholds), strict=False))
        for method, look in looks.items():
            drawn = [row for row in _of(rows, method) if row["threshold"] in markers]
            axes.plot(
                [row["sucr"] for row in drawn],
                [row["pod"] for row in drawn],
                color=look["color"],
                linewidth=1,
                alpha=0.6,
                zorder=3,
            )
            for row in drawn:
                axes.plot(
                    row["sucr"],
                    row["pod"],
                    marker=markers[row["threshold"]],
                    markersize=8,
                    color=look["color"],
                    markeredgecolor="white",
                    clip_on=False,
                    zorder=4,
                )
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
            xlabel="success ratio, 1 − FAR",
            ylabel="probability of detection",
        )
        # Above the numbers at the lines of equal bias.
        axes.set_title("all lead times pooled", pad=18)
        figure.legend(handles=_performance_handles(looks, markers), loc="outside right center")
    return figure


def _performance_handles(looks, markers):
    """Returns the legend handles of the methods, of the thresholds and of the lines."""
    methods = [
        Line2D([], [], color=look["color"], linewidth=3, label=method)
        for method, look in looks.items()
    ]
    thresholds = [
        Line2D([], [], color="0.3", linestyle="", marker=marker, label=f"VIL ≥ {threshold:g}")
        for threshold, marker in markers.items()
    ]
    lines = [
        Line2D([], [], color="0.6", linewidth=0.8, label="CSI"),
        Line2D([], [], color="0.6", linewidth=0.8, linestyle="--", label="bias"),
    ]
    return methods + thresholds + lines


def _performance_lines(axes):
    ratio = np.linspace(0.005, 1, 400)
    sucr, pod = np.meshgrid(ratio, ratio)
    lines = axes.contour(
        sucr,
        pod,
        1 / (1 / sucr + 1 / pod - 1),
        np.arange(0.1, 1, 0.1),
        colors="0.6",
        linewidths=0.8,
    )
    # Labels along the diagonal, far from the edges of the diagram.
    places = [(2 * csi / (1 + csi),) * 2 for csi in np.arange(0.1, 1, 0.1)]
    labels = axes.clabel(lines, fontsize=7, fmt="%.1f", manual=places)
    for label in labels:
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    for bias in (0.25, 0.5, 0.75, 1, 1.5, 2, 4):
        axes.plot([0, min(1, 1 / bias)], [0, min(1, bias)], "--", color="0.6", linewidth=0.8)
        end = (1.01, bias) if bias <= 1 else (1 / bias, 1.01)
        axes.text(
            *end,
            f"{bias:g}",
            fontsize=7,
            color="0.35",
            ha="left" if bias <= 1 else "center",
            va="center" if bias <= 1 else "bottom",
        )


def write_animation(path, truth, forecasts, minutes, levels, title, frames_per_s=4):
    """Writes one event as an animated GIF: the observation and each method side by side.

    Args:
      path: Path that ends in .gif.
      truth: uint8 array (y, x, frame), the observed frames.
      forecasts: {method: array (y, x, frame) of codes}; NaN is missing.
      minutes: of each frame since the last input frame; frames at 0 and below are input, which
        every panel shows.
      levels: as in `forecast_panel`.
      title: of the figure.
      frames_per_s: frames per second.
    """
    colors, norm = vil_colors(levels)
    fields = {"observed": truth} | forecasts
    with styled(_STYLE):
        figure, axes = plt.subplots(
            1,
            len(fields),
            figsize=(2.7 * len(fields) + 1.2, 3.5),
            layout="constrained",
            squeeze=False,
        )
        images = []
        for cell, (name, field) in zip(axes.flat, fields.items(), strict=True):
            images.append(_draw(cell, field[..., 0], colors, norm))
            cell.set_title(name)
        _color_bar(figure, axes, colors, norm)

        def show(frame):
            for image, field in zip(images, fields.values(), strict=True):
                image.set_data(_masked(field[..., frame], norm))
            kind = "input" if minutes[frame] <= 0 else "forecast"
            figure.suptitle(f"{title}\n{kind}, {minutes[frame]:+g} min", family="monospace")

        # One layout for all frames: a new one per frame is slow and would move the panels.
        show(0)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        animation = FuncAnimation(figure, show, frames=len(minutes))
        with written_whole(path) as beside:
            animation.save(beside, writer=PillowWriter(fps=frames_per_s), dpi=80)
    plt.close(figure)


def _looks(rows):
    """Returns {method: its color and marker}, in the order of the rows."""
    methods = dict.fromkeys(row["method"] for row in rows)
    others = iter(_OTHER_COLORS * len(methods))
    return {
        method: {
            "color": METHOD_COLORS.get(method) or next(others),
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4,
        }
        for i, method in enumerate(methods)
    }


def _of(rows, method, threshold=None):
    """Returns the rows of a method at a threshold, or at its first one if `threshold` is None."""
    mine = [row for row in rows if row["method"] == method]
    if threshold is None and mine and mine[0]["lead_minutes"] != "all":
        threshold = mine[0]["threshold"]
    return [row for row in mine if threshold is None or row["threshold"] == threshold]
