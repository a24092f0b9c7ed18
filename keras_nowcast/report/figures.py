"""Figures of finished runs, from what `study.table.read` gives.

A figure raises `NotDrawn`, with the reason, where the runs do not hold what it shows.
"""

import io
import math
import re
import statistics

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)
from matplotlib.transforms import Bbox

from keras_nowcast.files import written_whole
from keras_nowcast.study import claims, table
from keras_nowcast.study.claims import ESTIMATE, model_name, processes

# Source: Okabe and Ito 2008, colours that stay apart for colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PRECISION_COLORS = {"float32": COLORS[0], "mixed_float16": COLORS[1], "mixed_bfloat16": COLORS[2]}
MARKERS = "osD^vP*X"
KIND_MARKERS = {  # of layers, as layers.csv calls them
    "convolution": "o",
    "transposed convolution": "D",
    "normalization + activation": "s",
    "pooling": "v",
    "concatenation": "^",
    "scaling": "<",
    "loss": ">",
    "optimizer": "X",
}
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
MOST_POINTS = 1500  # of a power trace that are drawn: more than a figure has dots across
FRONT_STYLES = ("-", "--", ":", "-.")  # more fronts than these cannot be told apart
# Where a word may stand beside its point, in printer's points: the first that is free.
LABEL_PLACES = tuple((right, up) for up in (-8, 8, -17, 17, -26, 26) for right in (5, -5))
LETTERS_PER_INCH = 21  # of the line that names a figure's runs


class NotDrawn(Exception):
    """There are no data for a figure; the message says which are missing."""


def training_curves(runs):
    """Draws loss and validation loss over the epochs, a colour for each run.

    Returns:
      A Figure; mean squared error in normalized units, logarithmic. Of many runs a colour is a
      precision, since no legend could name them all.
    """
    drawn = [run for run in runs if run.epochs]
    if not drawn:
        raise NotDrawn("no run has finished an epoch")
    few = len(drawn) <= MANY_RUNS
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, 4.4), sharey=True, layout="constrained"
        )
        for axes, column in ((left, "loss"), (right, "val_loss")):
            if few:
                for number, run in enumerate(drawn):
                    axes.plot(
                        *_curve(run, column),
                        markersize=4,
                        label=label(run.row),
                        color=COLORS[number % len(COLORS)],
                        marker=MARKERS[number // len(COLORS) % len(MARKERS)],
                    )
            else:
                _curves_by_precision(axes, drawn, column)
        left.set_ylabel("mean squared error (normalized VIL)")
        left.set_title("training")
        right.set_title("validation")
        for axes in (left, right):
            axes.set_yscale("log")
            _plain_numbers(axes.yaxis)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if few:
            _legend(figure, *left.get_legend_handles_labels(), columns=2)
        else:
            _legend(figure, *_precision_handles({run.row["precision"] for run in drawn}))
        return _signed(figure, drawn)


def _curve(run, column):
    """Returns (epochs, values) of a column of epochs.csv, NaN where there is none."""
    values = [math.nan if row[column] is None else row[column] for row in run.epochs]
    return [row["epoch"] + 1 for row in run.epochs], values


def _curves_by_precision(axes, runs, column):
    """Draws the curves of each precision as one line with gaps: hundreds take their time."""
    lines = {}
    for run in runs:
        x, y = lines.setdefault(run.row["precision"], ([], []))
        epochs, values = _curve(run, column)
        x += [*epochs, math.nan]
        y += [*values, math.nan]
    for precision, (x, y) in lines.items():
        axes.plot(x, y, color=_precision_color(precision), alpha=0.6, linewidth=0.8)


def cost_by_size(runs):
    """Draws seconds an epoch, and joules an epoch and mean power where measured, against size.

    The bars span the epochs of a run; its point is their median. The first epoch lacks the first,
    compiling step and is left out where there are others.

    Returns:
      A Figure of one panel, or of three when at least one run measured its energy.
    """
    drawn = [run for run in runs if run.is_completed and run.row["seconds_per_epoch"] is not None]
    if not drawn:
        raise NotDrawn("no completed run has a timed epoch")
    measured = [run for run in drawn if run.row["joules_per_epoch"] is not None]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1,
            3 if measured else 1,
            figsize=(12.4 if measured else 5.6, 4.4),
            layout="constrained",
            squeeze=False,
        )
        panels = panels[0]
        _by_size(panels[0], drawn, _epoch_spread("seconds"), "training time (s per epoch)")
        if measured:
            _by_size(
                panels[1], measured, _epoch_spread("joules"), "energy of training (J per epoch)"
            )
            _by_size(
                panels[2],
                measured,
                lambda run: (run.row["mean_watts"],) * 3,
                "mean power of training (W)",
            )
            sources = sorted({run.row["energy_source"] for run in measured})
            notes = [f"by different sensors: {', '.join(sources)}"] if len(sources) > 1 else []
            if "estimate" in sources:
                notes.append("hollow: an ESTIMATE, not measured")
            for axes in panels[1:]:
                axes.set_title("\n".join(notes), fontsize=9)
        _legend(figure, *panels[0].get_legend_handles_labels(), columns=2)
        return _signed(figure, drawn)


def _epoch_spread(column):
    """Returns the function of a Run that gives (median, least, most) of a column over epochs."""

    def of(run):
        values = [e[column] for e in run.epochs[1:] or run.epochs if e[column] is not None]
        return statistics.median(values), min(values), max(values)

    return of


def _by_size(axes, runs, spread_of, unit):
    points = []
    for run in runs:
        middle, least, most = spread_of(run)
        if middle is not None:
            hollow = run.row["energy_is_estimate"] and ("J" in unit or "W" in unit)
            size = run.row["trainable_parameters"]
            points.append((_look(run.row, hollow), (size, size, size), (middle, least, most)))
    _bars(axes, points)
    _size_axis(axes)
    axes.set_ylabel(unit)
    axes.margins(x=0.15, y=0.1)
    axes.set_ylim(bottom=0)


def mixed_speedup(runs):
    """Draws how many times as fast mixed precision trains as float32, against size.

    Returns:
      A Figure of throughput and of time to the same validation loss; bars span pairs of seeds.
    """
    cells = table.cells(runs)
    pairs = claims.precision_pairs(cells)
    if not pairs:
        raise NotDrawn(
            "no completed run in float32 and one in mixed precision differ in nothing else"
        )
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 2, figsize=(10, 4.4), layout="constrained", sharex=True, sharey=True
        )
        for axes, title, ratio_of in (
            (panels[0], "throughput", claims.throughput_ratio),
            (panels[1], "time to the same validation loss", claims.quality_ratio),
        ):
            ratios = [(mixed, ratio_of(plain, mixed)) for plain, mixed in pairs]
            _bars(
                axes,
                [
                    (
                        _look(mixed.setting),
                        (mixed.median("trainable_parameters"),) * 3,
                        (ratio.median, ratio.least, ratio.most),
                    )
                    for mixed, ratio in ratios
                    if ratio
                ],
            )
            axes.axhline(1, color="0.4", linewidth=1)
            axes.set_title(title)
            _size_axis(axes)
        panels[0].set_ylim(bottom=0)  # of both, once both are drawn
        panels[0].set_ylabel("times as fast as float32")
        _legend(figure, *panels[0].get_legend_handles_labels())
        return _signed(figure, _runs_of(pairs))


def skill_by_cost(runs):
    """Draws skill against energy, against time where not all measured it, with Pareto fronts.

    Returns:
      A Figure; a point a cell, the median over its seeds, bars their range. A front is of cells
      that differ in size, precision and processes alone: of another grid or length, skill and cost
      are others.
    """
    skill = table.choose_skill(runs)
    cells = [cell for cell in table.cells(runs) if cell.median("seconds_per_epoch") is not None]
    if skill is None or not cells:
        raise NotDrawn("no score and time are known of all completed runs")
    groups = sorted(table.group(cells, *_FREE_ON_A_FRONT), key=len, reverse=True)
    fronts = [group for group in groups if len(group) > 1][: len(FRONT_STYLES)]
    cost = claims.cost_of_cells(cells)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
        points = []
        for cell in cells:
            scores, costs = skill.of_cell(cell), cell.values(cost.column)
            points.append((_look(cell.setting, cost.is_estimate), _ends(costs), _ends(scores)))
        _bars(axes, points)
        labels = []
        for group, style in zip(fronts, FRONT_STYLES, strict=False):
            front = claims.pareto_cells(group, skill, cost)
            places = [
                (cell.median(cost.column), statistics.median(skill.of_cell(cell))) for cell in front
            ]
            name = f"front: {_set_apart(group, groups)}" if len(groups) > 1 else None
            axes.plot(
                *zip(*places, strict=True),
                style,
                color="0.35",
                linewidth=1,
                zorder=1,
                drawstyle="steps-post",
                label=name,
            )
            names = [f"d{cell.setting['depth']} f{cell.setting['filters']}" for cell in front]
            labels += zip(names, places, strict=True)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.set_xlabel(f"{cost.name} ({cost.unit})")
        better = "higher" if skill.higher_is_better else "lower"
        axes.set_ylabel(f"{skill.name}\n({better} is better)")
        notes = ["the line is the Pareto front"] if fronts else []
        if len(groups) > 1:
            notes = ["Pareto fronts of cells that differ in size, precision and processes alone"]
            if len(fronts) < len(groups):
                notes[0] += f": {len(fronts)} of {len(groups)} groups"
        if cost.name != "energy":
            any_energy = any(cell.values("joules_per_epoch") for cell in cells)
            notes.append(
                "time, since not every run measured energy by one kind of sensor"
                if any_energy
                else "time, since no run measured energy"
            )
        if cost.is_estimate:
            notes.append("hollow: energy is an ESTIMATE, not measured")
        axes.set_title("\n".join(notes), fontsize=9)
        _legend(figure, *axes.get_legend_handles_labels())
        _signed(figure, _runs_of([cells]))
        _label_points(axes, labels, [(x, y) for _, (x, _, _), (y, _, _) in points])
        return figure


_FREE_ON_A_FRONT = ("precision", "fp16_allreduce", "world_size", "hosts", "gpus", *claims.SIZE)


def _set_apart(group, groups):
    """Returns the settings of a group of Cells that other groups have others of, in words."""
    mine = group[0].setting
    names = [
        name
        for name in mine
        if name not in _FREE_ON_A_FRONT
        and any(str(other[0].setting[name]) != str(mine[name]) for other in groups)
    ]
    words = [f"{name.replace('_', ' ')} {str(mine[name])[-20:]}" for name in names]
    return ", ".join(words[:3]) + (", ..." if len(words) > 3 else "")


def _label_points(axes, labels, points):
    """Writes words beside points where they cover no other words and no point; else leaves them.

    Args:
      axes: whose scales and title are final.
      labels: list of (text, (x, y)).
      points: (x, y) of all that are drawn.
    """
    axes.figure.draw_without_rendering()  # now it is known where everything lies
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(points)]
    left, right = axes.get_window_extent().intervalx
    for text, point in labels:
        for place in LABEL_PLACES:
            word = axes.annotate(
                text,
                point,
                xytext=place,
                textcoords="offset points",
                fontsize=7,
                color="0.25",
                ha="left" if place[0] > 0 else "right",
                va="center",
            )
            box = word.get_window_extent()
            if left <= box.x0 and box.x1 <= right and not box.count_overlaps(taken):
                taken.append(box)
                break
            word.remove()


def scaling(runs):
    """Draws speed-up and efficiency over the number of processes.

    Returns:
      A Figure; a line a setting, bars span pairs of seeds.
    """
    cells = table.cells(runs)
    pairs = claims.scaling_pairs(cells)
    if not pairs:
        raise NotDrawn("no two completed runs differ in the number of processes alone")
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
        lines = {}
        for few, many in pairs:
            speed = claims.throughput_ratio(few, many)
            if speed:
                times = many.setting["world_size"] / few.setting["world_size"]
                lines.setdefault(id(few), (few, []))[1].append((times, speed))
        for few, points in lines.values():
            look = {
                "color": _precision_color(few.setting["precision"]),
                "marker": MARKERS[few.setting["depth"] % len(MARKERS)],
                "capsize": 3,
                "alpha": 0.8,
            }
            times = [1, *(each for each, _ in points)]
            speeds = [(1, 1, 1), *((s.median, s.least, s.most) for _, s in points)]
            _line_with_bars(left, times, speeds, **look)
            shares = [
                tuple(end / n for end in speed) for n, speed in zip(times, speeds, strict=True)
            ]
            _line_with_bars(right, times, shares, **look)
        most = max(times for _, points in lines.values() for times, _ in points)
        left.plot([1, most], [1, most], "--", color="0.5", linewidth=1)
        right.axhline(1, linestyle="--", color="0.5", linewidth=1)
        for axes in (left, right):
            axes.set_xlabel("times as many processes")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_ylabel("speed-up (throughput)")
        right.set_ylabel("efficiency (speed-up / times as many processes)")
        left.set_title("dashed: perfect scaling", fontsize=9)
        if any(claims.shares_cores(many.setting) for _, many in pairs):
            right.set_title("processes share the cores of one host", fontsize=9)
        precisions = {few.setting["precision"] for few, _ in pairs}
        _legend(figure, *_precision_handles(precisions), columns=2)
        return _signed(figure, _runs_of(pairs))


def _line_with_bars(axes, places, spreads, **look):
    middle, least, most = zip(*spreads, strict=True)
    below = [a - b for a, b in zip(middle, least, strict=True)]
    above = [b - a for a, b in zip(middle, most, strict=True)]
    axes.errorbar(places, middle, yerr=[below, above], **look)


def roofline(runs):
    """Draws achieved FLOP/s against counted arithmetic intensity, beneath the measured roofs.

    Of whole training steps of all runs, but of those whose number of processes changed; and, in
    each precision, of the layers of the largest network whose run timed them (`--layer-times`),
    with the roofs that run measured. Without such a run no roof is drawn.

    Returns:
      A Figure; GFLOP/s of a process, bars span the repetitions; a panel a precision where layers
      were timed.
    """
    drawn = [
        run
        for run in runs
        if run.is_completed and run.row["achieved_flops_per_second"] and not run.changed_processes
    ]
    if not drawn:
        raise NotDrawn("no completed run has a timed step")
    timed = _largest_with_layers(drawn)
    by_precision = {None: drawn}
    if timed:
        precisions = sorted({run.row["precision"] for run in drawn})
        by_precision = {
            each: [r for r in drawn if r.row["precision"] == each] for each in precisions
        }
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1,
            len(by_precision),
            figsize=(max(7.6, 5.8 * len(by_precision)), 5.4),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        panels = panels[0]
        for axes, (precision, members) in zip(panels, by_precision.items(), strict=True):
            axes.set(xscale="log", yscale="log")
            _bars(axes, [(_look(run.row), *_step_point(run.row)) for run in members])
            if precision in timed:
                _draw_layers(axes, *timed[precision])
            elif timed:
                axes.set_title(f"no run in {precision} timed its layers", fontsize=9)
        for precision, (run, _, _) in timed.items():  # once all that is drawn has set the axes
            _draw_roofs(panels[list(by_precision).index(precision)], run)
        for axes in panels:
            _plain_numbers(axes.xaxis)
            _plain_numbers(axes.yaxis)
            axes.set_xlabel("counted arithmetic intensity (FLOP/byte)")
        panels[0].set_ylabel("achieved GFLOP/s of a process")
        if not timed:
            panels[0].set_title(
                "whole training steps; no roof is drawn: no run measured it with "
                "its layers (--layer-times)",
                fontsize=9,
            )
        found = {}
        for axes in panels:
            found |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        if timed:
            kinds = {row["kind"] for _, rows, _ in timed.values() for row in rows}
            found |= {kind: _kind_handle(kind) for kind in KIND_MARKERS if kind in kinds}
        _legend(figure, list(found.values()), list(found), columns=4 if timed else 2)
        return _signed(figure, drawn)


def _largest_with_layers(runs):
    """Returns {precision: (Run, its rows of layers.csv, how many runs have such)}."""
    found = {}
    for run in sorted(runs, key=lambda each: (-table.order(each)[0], *table.order(each)[1:])):
        rows = run.folder.read_layers() if run.roofs else []
        if rows:
            run, rows, count = found.get(run.row["precision"], (run, rows, 0))
            found[run.row["precision"]] = (run, rows, count + 1)
    return found


def _step_point(row):
    """Returns (intensity, GFLOP/s of a process) of a run's training step, as `_bars` has them."""
    speed = row["achieved_flops_per_second"] / row["world_size"] / 1e9
    return (row["counted_intensity"],) * 3, (speed,) * 3


def _draw_layers(axes, run, rows, count):
    """Draws a run's layers, and its whole step as a star, and says how the two fit."""
    color = _precision_color(run.row["precision"])
    points = []
    for row in rows:
        look = (
            ("color", color),
            ("marker", KIND_MARKERS.get(row["kind"], ".")),
            ("markersize", 5),
            ("elinewidth", 0.7),
            ("markeredgecolor", "white"),
            ("markeredgewidth", 0.4),
        )
        speeds = [
            row["flops"] / row[name] / 1e9
            for name in ("seconds_median", "seconds_high", "seconds_low")
        ]
        points.append((look, (row["intensity"],) * 3, tuple(speeds)))
    _bars(axes, points)
    (x, _, _), (y, _, _) = _step_point(run.row)
    axes.plot(
        x,
        y,
        linestyle="",
        marker="*",
        markersize=18,
        color=color,
        markeredgecolor="black",
        label="whole step of the run whose layers are drawn",
        zorder=5,
    )
    sum_s, step_s = sum(row["seconds_median"] for row in rows), run.row["seconds_per_step"]
    words = f"layers: {label(run.row)}\n"
    if count > 1:
        words += f"(largest of {count} runs that timed them); "
    if step_s:
        words += f"their times add up to {100 * sum_s / step_s:.0f} % of a training step"
    axes.set_title(words, fontsize=9)


def _draw_roofs(axes, run):
    """Draws what a run measured its process to do at most, with its numbers."""
    low, high = axes.get_xlim()
    moved = run.roofs["memory_bytes_per_second"]
    dtype_of_policy = run.row["precision"].removeprefix("mixed_")
    for dtype, flops in run.roofs["compute_flops_per_second"].items():
        ridge = flops / moved
        axes.plot(
            [low, ridge, max(high, ridge)],
            [low * moved / 1e9, flops / 1e9, flops / 1e9],
            color="0.25",
            linewidth=1.2,
            linestyle="-" if dtype == dtype_of_policy else "--",
            zorder=1,
        )
        axes.annotate(
            f"{dtype} {flops / 1e9:.3g} GFLOP/s",
            (ridge, flops / 1e9),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize=7,
            color="0.25",
        )
    # Left of the slope, where no layer is.
    middle = low**0.3 * ridge**0.7
    axes.annotate(
        f"memory {moved / 1e9:.3g} GB/s",
        (middle, middle * moved / 1e9),
        xytext=(-4, 2),
        textcoords="offset points",
        horizontalalignment="right",
        fontsize=7,
        color="0.25",
    )
    axes.set_xlim(low, high)


def _kind_handle(kind):
    return Line2D([], [], linestyle="", marker=KIND_MARKERS[kind], markersize=5, color="0.35")


def memory_by_size(runs):
    """Draws the memory of a process against size: counted, and measured where it was."""
    drawn = [run for run in runs if run.is_completed and measured_memory(run.row)]
    if not drawn:
        raise NotDrawn("no completed run knows the peak memory of its processes")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
        for precision in sorted({run.row["precision"] for run in drawn}):
            rows = [run.row for run in drawn if run.row["precision"] == precision]
            sizes = [row["trainable_parameters"] for row in rows]
            counted = [row["counted_step_bytes"] + row["counted_state_bytes"] for row in rows]
            for what, values, marker in (
                ("measured", map(measured_memory, rows), "o"),
                ("counted", counted, "_"),
            ):
                axes.plot(
                    sizes,
                    [value / 2**20 for value in values],
                    linestyle="",
                    marker=marker,
                    color=_precision_color(precision),
                    alpha=0.8,
                    label=f"{what}, {precision}",
                )
        on_gpu = any(run.row["peak_gpu_bytes"] for run in drawn)
        _size_axis(axes)
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        axes.set_ylabel("memory of a process (MiB)")
        axes.set_title(
            (
                "measured: peak of the GPU's allocator"
                if on_gpu
                else "measured: peak resident memory, with Python and TensorFlow themselves"
            )
            + "\ncounted: parameters, moments, gradients and activations",
            fontsize=9,
        )
        _legend(figure, *axes.get_legend_handles_labels(), columns=2)
        return _signed(figure, drawn)


def measured_memory(row):
    """Returns the peak bytes of the fullest process: of its GPU, else resident; None if neither."""
    return row["peak_gpu_bytes"] or row["peak_rss_bytes"]


def power_traces(runs):
    """Draws the power of up to a dozen runs over time, a panel each, all devices together."""
    traced = [run for run in runs if run.devices]
    if not traced:
        raise NotDrawn("no run has a trace of power: " + _why_no_energy(runs))
    # Evenly over the runs, so that not only the first ones are seen.
    drawn = [traced[len(traced) * i // MANY_RUNS] for i in range(MANY_RUNS)]
    drawn = list(dict.fromkeys(drawn)) if len(traced) > MANY_RUNS else traced
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            rows,
            columns,
            figsize=(4 * columns, 2.3 * rows + 0.8),
            layout="constrained",
            squeeze=False,
            sharey=True,
        )
        for axes, run in zip(panels.flat, drawn, strict=False):
            for number, (seconds, watts) in enumerate(run.folder.read_power().values()):
                axes.plot(
                    *_thinned(seconds, watts), linewidth=0.8, color=COLORS[number % len(COLORS)]
                )
            axes.set_title(label(run.row) + _estimate_mark(run.row), fontsize=7)
            axes.set_ylim(bottom=0)
        for axes in panels.flat[len(drawn) :]:
            axes.axis("off")
        for axes in panels[-1]:
            axes.set_xlabel("time since the start (s)", fontsize=9)
        figure.supylabel("power (W)", fontsize=9)
        if len(drawn) < len(traced):
            figure.suptitle(f"{len(drawn)} of {len(traced)} runs with a trace", fontsize=9)
        return _signed(figure, drawn)


def _why_no_energy(runs):
    return (
        "; ".join(
            dict.fromkeys(run.row["energy_reason"] for run in runs if run.row["energy_reason"])
        )
        or "none was kept"
    )


def _thinned(seconds, watts):
    """Returns a trace of at most MOST_POINTS, least and most of each stretch of a longer one."""
    if len(seconds) <= MOST_POINTS:
        return seconds, watts
    stretch = 2 * len(seconds) // MOST_POINTS + 1
    kept = []
    for start in range(0, len(seconds), stretch):
        places = range(start, min(start + stretch, len(seconds)))
        known = [i for i in places if watts[i] == watts[i]] or [start]
        kept += sorted({min(known, key=watts.__getitem__), max(known, key=watts.__getitem__)})
    return [seconds[i] for i in kept], [watts[i] for i in kept]


def power_trace(run, record):
    """Draws one run's power over time, the epochs marked, and the energy of each epoch.

    Args:
      run: a Run that measured or estimated its energy.
      record: its record.json.

    Returns:
      A Figure; watts of each device against seconds since the start, joules against the epoch.
    """
    energy = record["energy"]
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained")
        traces = run.folder.read_power()
        for number, ((host, device), (seconds, watts)) in enumerate(traces.items()):
            color = COLORS[number % len(COLORS)]
            seconds, watts = _thinned(seconds, watts)
            above.plot(seconds, watts, color=color, linewidth=1, label=f"{host} {device}")
        for window in energy["windows"]:
            if window["name"] in _WINDOW_COLORS:
                above.axvspan(
                    window["start_s"],
                    window["end_s"],
                    color=_WINDOW_COLORS[window["name"]],
                    alpha=0.2,
                    linewidth=0,
                )
        handles, labels = above.get_legend_handles_labels()
        handles += [Patch(color=color, alpha=0.3) for color in _WINDOW_COLORS.values()]
        labels += [name if name != "epoch" else "training" for name in _WINDOW_COLORS]
        _legend(figure, handles, labels, columns=2)
        above.set_ylim(bottom=0)
        above.set_xlabel("time since the start (s)")
        above.set_ylabel("power (W)")
        above.set_title(
            f"{label(run.row)}\nenergy source: {energy['source']}{_estimate_mark(run.row)}",
            fontsize=9,
        )
        known = [
            (row["epoch"] + 1, row["joules"]) for row in run.epochs if row["joules"] is not None
        ]
        if known:
            below.bar(*zip(*known, strict=True), color=COLORS[0])
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("epoch")
        below.set_ylabel("energy of training (J)")
        return _signed(figure, [run])


_WINDOW_COLORS = {"idle": "#999999", "epoch": COLORS[2], "validation": COLORS[4]}

# In the order in which they are shown.
OF_ALL_RUNS = (
    training_curves,
    cost_by_size,
    mixed_speedup,
    skill_by_cost,
    scaling,
    roofline,
    memory_by_size,
    power_traces,
)
CAPTIONS = {  # name: (title, how to read it)
    "training_curves": (
        "Loss over the epochs",
        "On the windows that were trained on, and on those held out. Validation uses the running "
        "averages of batch normalization, which lag while the weights move fast and can "
        "make early peaks.",
    ),
    "cost_by_size": (
        "Training time, energy and mean power by size",
        "A point a run: the median of its epochs; the bar spans them. Energy and power are drawn "
        "where they were measured.",
    ),
    "mixed_speedup": (
        "How much faster mixed precision trains",
        "Above the line mixed precision is faster. Throughput is windows a second; the time to the "
        "same loss also counts what each learns from a window.",
    ),
    "skill_by_cost": (
        "What skill costs",
        "Cheaper is left; d3 f16 is depth 3, 16 filters. Of the cells on a Pareto front none that "
        "compares is both better and cheaper.",
    ),
    "scaling": (
        "Several processes",
        "Speed-up is in windows a second, each process with a batch of its own.",
    ),
    "roofline": (
        "Achieved speed by arithmetic intensity, of steps and of layers",
        "Roofs are drawn where a run measured them: the slanted one is what memory delivers, the "
        "flat one a matrix product. The further below, the more is left unused; what stays in a "
        "cache can lie above the slanted one.",
    ),
    "memory_by_size": (
        "Memory by size",
        "Resident memory also holds Python, TensorFlow and the data being read, which are not in "
        "the count.",
    ),
    "power_traces": (
        "Power over time",
        "Each line is a device of the run.",
    ),
}


def _estimate_mark(row):
    """Returns words for joules that no sensor measured, an empty text otherwise."""
    return ESTIMATE if row["energy_is_estimate"] else ""


def label(row):
    """Returns a run's name in a legend: what sets it apart from other runs."""
    return (
        f"{model_name(row)}, {row['precision']}, {processes(row['world_size'])}, seed {row['seed']}"
    )


def _precision_color(precision):
    return PRECISION_COLORS.get(precision, COLORS[6])


def _look(row, hollow=False):
    """Returns how a point of this precision and number of processes is drawn, and its label."""
    return (
        ("color", _precision_color(row["precision"])),
        ("marker", MARKERS[(row["world_size"] - 1) % len(MARKERS)]),
        ("markerfacecolor", "none" if hollow else _precision_color(row["precision"])),
        ("label", f"{row['precision']}, {processes(row['world_size'])}"),
    )


def _ends(values):
    return statistics.median(values), min(values), max(values)


def _bars(axes, points):
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


def _precision_handles(precisions):
    known = sorted(precisions)
    return [Line2D([], [], color=_precision_color(each)) for each in known], known


def _size_axis(axes):
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters")
    axes.margins(x=0.15)
    low, high = axes.xaxis.get_view_interval()
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 5M
    short = high < 300 * low
    axes.xaxis.set_minor_formatter(EngFormatter(sep="") if short else NullFormatter())


def _plain_numbers(axis):
    """Labels a logarithmic axis with 0.5, 20 and 300, as few as can be told apart."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    low, high = axis.get_view_interval()
    axis.set_minor_locator(LogLocator(subs=(2, 5) if high > 5 * low else range(2, 10)))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def _legend(figure, handles, labels, columns=2):
    columns = min(columns, len(labels)) or 1
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=8)


def _runs_of(groups):
    """Returns the Runs of groups of Cells, each once."""
    return list(dict.fromkeys(run for cells in groups for cell in cells for run in cell.runs))


def _signed(figure, runs):
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
