"""The look of the figures: colors, markers, axes, legends, and the line that names the runs.

Every module of report/ that draws imports this one. It keeps matplotlib from opening a display, and
draws in `styled`, whatever the user's matplotlibrc says.
"""

import io
import re
import statistics

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from keras_nowcast.files import written_whole
from keras_nowcast.study import table
from keras_nowcast.study.compare import ESTIMATE, model_name, processes

# Source: Okabe and Ito (2008), colors that color-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PRECISION_COLORS = {"float32": COLORS[0], "mixed_float16": COLORS[1], "mixed_bfloat16": COLORS[2]}
MARKERS = "osD^vP*X"
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "legend.frameon": False,
    **{f"{axis}tick.minor.{name}": 3.5 for axis in "xy" for name in ("size", "pad")},  # as major
    "pdf.fonttype": 42,  # text stays text in the PDF
    "svg.fonttype": "none",  # and in the SVG
}
MANY_RUNS = 12  # a legend of more lines than this is unreadable
LETTERS_PER_INCH = 21  # in the line that names the runs of a figure


def styled(style=STYLE):
    """Returns a context in which matplotlib has its defaults and a style on top, and nothing else.

    Figures are made and written in it.
    """
    return plt.style.context(style, after_reset=True)


class NotDrawn(Exception):
    """Raised if a figure has no data; the message names what is missing."""


def estimate_mark(row):
    """Returns the text that marks estimated joules, or "" if a sensor measured them."""
    return ESTIMATE if row["energy_is_estimate"] else ""


def literal(text):
    """Returns a text of the user for a figure: dollar signs begin no formula."""
    return text.replace("$", r"\$")


def label(row):
    """Returns the name of a run in a legend: its size, precision, processes and seed."""
    return (
        f"{model_name(row)}, {row['precision']}, {processes(row['world_size'])}, seed {row['seed']}"
    )


def precision_color(precision):
    """Returns the color of a precision, black if it is unknown."""
    return PRECISION_COLORS.get(precision, COLORS[6])


def point_style(row, hollow=False):
    """Returns the style of a run's point as pairs of a matplotlib argument and its value.

    Args:
      row: of the table, or the setting of a cell: its precision is the color and its number of
        processes the marker.
      hollow: True if its energy is an estimate.
    """
    return (
        ("color", precision_color(row["precision"])),
        ("marker", MARKERS[(row["world_size"] - 1) % len(MARKERS)]),
        ("markerfacecolor", "none" if hollow else precision_color(row["precision"])),
        ("label", f"{row['precision']}, {processes(row['world_size'])}"),
    )


def ends_of(values):
    """Returns (median, minimum, maximum) of the values."""
    return statistics.median(values), min(values), max(values)


def draw_bars(axes, points):
    """Draws points with error bars, all points of one style in one call: hundreds are slow.

    Args:
      axes: where they are drawn.
      points: list of (style, x, y). The style is as `point_style` returns it; x and y are each
        (middle, minimum, maximum).
    """
    for style in dict.fromkeys(style for style, _, _ in points):
        alike = [(x, y) for each, x, y in points if each == style]
        middles, errors = [], []
        for spreads in zip(*alike, strict=True):
            middles.append([middle for middle, _, _ in spreads])
            errors.append(
                [
                    [middle - low for middle, low, _ in spreads],
                    [high - middle for middle, _, high in spreads],
                ]
            )
        x_errors, y_errors = (sides if any(map(any, sides)) else None for sides in errors)
        looks = {"linestyle": "", "capsize": 3, "alpha": 0.85, **dict(style)}
        axes.errorbar(*middles, xerr=x_errors, yerr=y_errors, **looks)


def precision_handles(precisions):
    """Returns the legend handles and labels of the precisions, sorted by name."""
    known = sorted(precisions)
    return [Line2D([], [], color=precision_color(each)) for each in known], known


def size_axis(axes):
    """Makes the x axis a logarithmic axis of trainable parameters with readable tick labels."""
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters")
    axes.margins(x=0.15)
    low, high = axes.xaxis.get_view_interval()
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 5M
    short = high < 300 * low
    axes.xaxis.set_minor_formatter(EngFormatter(sep="") if short else NullFormatter())


def plain_numbers(axis):
    """Labels a logarithmic axis with plain numbers (0.5, 20, 300), few enough not to overlap."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    low, high = axis.get_view_interval()
    axis.set_minor_locator(LogLocator(subs=(2, 5) if high > 5 * low else range(2, 10)))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def draw_legend(figure, handles, labels, columns=2):
    """Draws a legend above the panels of a figure, in up to `columns` columns."""
    columns = min(columns, len(labels)) or 1
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=8)


def runs_of(groups):
    """Returns the runs of several lists of MeasuredCell, each run once."""
    return list(dict.fromkeys(run for cells in groups for cell in cells for run in cell.runs))


def signed(figure, runs):
    """Writes below a figure which runs it was drawn from, and returns the figure."""
    names = [run.name for run in sorted(runs, key=table.order)]
    if len(names) > 6:
        folders = sorted({str(run.folder.path.parent) for run in runs})
        where = ", ".join(folders[:3]) + (" and others" if len(folders) > 3 else "")
        text = f"{len(names)} runs of {where}: {names[0]} ... {names[-1]}"
    else:
        text = f"{'runs' if len(names) > 1 else 'run'}: {', '.join(names)}"
    room = int(figure.get_figwidth() * LETTERS_PER_INCH)
    if len(text) > room:
        text = text[: room - 4] + " ..."
    figure.supxlabel(literal(text), x=0.01, horizontalalignment="left", fontsize=6, color="0.35")
    return figure


def write_figure(figure, folder, name):
    """Writes `name`.pdf and `name`.png atomically and closes the figure.

    Args:
      figure: a Figure.
      folder: Path of an existing folder.
      name: file name without suffix.

    Returns:
      The figure as SVG text for an HTML page: an <svg> element with ids that start with `name`.
    """
    with styled({**STYLE, "svg.hashsalt": name}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is the same in all three formats
        for suffix in (".pdf", ".png"):
            # In memory first: on a full disk, matplotlib ends in an error about its own state.
            drawn = io.BytesIO()
            figure.savefig(drawn, format=suffix[1:])
            with written_whole(folder / f"{name}{suffix}") as beside:
                beside.write_bytes(drawn.getvalue())
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    return _inline(svg.getvalue(), name)


def _inline(svg, name):
    """Returns matplotlib's SVG without the parts that only a separate file needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Every figure has ids such as "axes_1", and the ids of a page must be unique.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.strip()
