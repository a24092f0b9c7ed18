"""How figures look: colors, markers, axes, legends, and the line that names the runs of each."""

import io
import re
import statistics

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    NullFormatter,
    StrMethodFormatter,
)

from keras_nowcast.files import written_whole
from keras_nowcast.study import table
from keras_nowcast.study.compare import ESTIMATE, model_name, processes

# Source: Okabe and Ito 2008, colours that stay apart for colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PRECISION_COLORS = {"float32": COLORS[0], "mixed_float16": COLORS[1], "mixed_bfloat16": COLORS[2]}
MARKERS = "osD^vP*X"
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "svg.fonttype": "none",  # and in the SVG
}
MANY_RUNS = 12  # more lines than this cannot be told apart by a legend
LETTERS_PER_INCH = 21  # of the line that names a figure's runs


class NotDrawn(Exception):
    """There are no data for a figure; the message says which are missing."""


def estimate_mark(row):
    """Returns words for joules that no sensor measured, an empty text otherwise."""
    return ESTIMATE if row["energy_is_estimate"] else ""


def label(row):
    """Returns a run's name in a legend: what sets it apart from other runs."""
    return (
        f"{model_name(row)}, {row['precision']}, {processes(row['world_size'])}, seed {row['seed']}"
    )


def precision_color(precision):
    """Returns the color of a precision, black for an unknown one."""
    return PRECISION_COLORS.get(precision, COLORS[6])


def point_style(row, hollow=False):
    """Returns how a point of this precision and number of processes is drawn, and its label."""
    return (
        ("color", precision_color(row["precision"])),
        ("marker", MARKERS[(row["world_size"] - 1) % len(MARKERS)]),
        ("markerfacecolor", "none" if hollow else precision_color(row["precision"])),
        ("label", f"{row['precision']}, {processes(row['world_size'])}"),
    )


def ends_of(values):
    """Returns (median, minimum, maximum) of some values."""
    return statistics.median(values), min(values), max(values)


def draw_bars(axes, points):
    """Draws points with bars: those of one look at once, since hundreds take their time.

    Args:
      points: list of (look, x, y), x and y each (middle, least, most).
    """
    for look in dict.fromkeys(look for look, _, _ in points):
        mine = [(x, y) for each, x, y in points if each == look]
        places, errors = [], []
        for spreads in zip(*mine, strict=True):
            places.append([middle for middle, _, _ in spreads])
            errors.append(
                [
                    [middle - least for middle, least, _ in spreads],
                    [most - middle for middle, _, most in spreads],
                ]
            )
        x_errors, y_errors = (sides if any(map(any, sides)) else None for sides in errors)
        axes.errorbar(
            *places, xerr=x_errors, yerr=y_errors, linestyle="", capsize=3, alpha=0.85, **dict(look)
        )


def precision_handles(precisions):
    """Returns the legend handles and labels of some precisions, sorted by name."""
    known = sorted(precisions)
    return [Line2D([], [], color=precision_color(each)) for each in known], known


def size_axis(axes):
    """Makes the x axis one of trainable parameters, logarithmic, with legible ticks."""
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters")
    axes.margins(x=0.15)
    low, high = axes.xaxis.get_view_interval()
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 5M
    short = high < 300 * low
    axes.xaxis.set_minor_formatter(EngFormatter(sep="") if short else NullFormatter())


def plain_numbers(axis):
    """Labels a logarithmic axis with 0.5, 20 and 300, as few as can be told apart."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    low, high = axis.get_view_interval()
    axis.set_minor_locator(LogLocator(subs=(2, 5) if high > 5 * low else range(2, 10)))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def draw_legend(figure, handles, labels, columns=2):
    """Puts a legend above the panels of a figure, in up to `columns` columns."""
    columns = min(columns, len(labels)) or 1
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=8)


def runs_of(groups):
    """Returns the Runs of groups of Cells, each once."""
    return list(dict.fromkeys(run for cells in groups for cell in cells for run in cell.runs))


def signed(figure, runs):
    """Writes beneath a figure which runs it was drawn from, and returns it."""
    names = [run.name for run in sorted(runs, key=table.order)]
    if len(names) > 6:
        folders = sorted({str(run.folder.path.parent) for run in runs})
        where = ", ".join(folders[:3]) + (" and others" if len(folders) > 3 else "")
        text = f"{len(names)} runs of {where}: {names[0]} ... {names[-1]}"
    else:
        text = f"{'runs' if len(names) > 1 else 'run'}: {', '.join(names)}"
    most = int(figure.get_figwidth() * LETTERS_PER_INCH)
    if len(text) > most:
        text = text[: most - 4] + " ..."
    figure.supxlabel(text, x=0.01, horizontalalignment="left", fontsize=6, color="0.35")
    return figure


def write_figure(figure, folder, name):
    """Writes `name`.pdf and `name`.png into a Path, whole, closes the figure.

    Returns:
      It as SVG text to put into HTML: an <svg> element whose ids are its own.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for all three
    with plt.rc_context({**STYLE, "svg.hashsalt": name}):
        for suffix in (".pdf", ".png"):
            with written_whole(folder / f"{name}{suffix}") as beside:
                figure.savefig(beside)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    return _inline(svg.getvalue(), name)


def _inline(svg, name):
    """Returns matplotlib's SVG without what only a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids such as "axes_1" are in every figure, and a page has each once.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.strip()
