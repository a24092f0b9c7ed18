"""Figures of finished runs, from what `study.table.read` gives.

A figure raises `NotDrawn`, with the reason, where the runs do not hold what it shows.
"""

import math
import statistics

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from keras_nowcast.report.power import power_traces
from keras_nowcast.report.roofline import roofline
from keras_nowcast.report.skill import skill_by_cost
from keras_nowcast.report.style import (
    COLORS,
    MANY_RUNS,
    MARKERS,
    STYLE,
    NotDrawn,
    draw_bars,
    draw_legend,
    label,
    plain_numbers,
    point_style,
    precision_color,
    precision_handles,
    runs_of,
    signed,
    size_axis,
)
from keras_nowcast.study import compare, table


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
            plain_numbers(axes.yaxis)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if few:
            draw_legend(figure, *left.get_legend_handles_labels(), columns=2)
        else:
            draw_legend(figure, *precision_handles({run.row["precision"] for run in drawn}))
        return signed(figure, drawn)


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
        axes.plot(x, y, color=precision_color(precision), alpha=0.6, linewidth=0.8)


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
        draw_legend(figure, *panels[0].get_legend_handles_labels(), columns=2)
        return signed(figure, drawn)


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
            points.append((point_style(run.row, hollow), (size, size, size), (middle, least, most)))
    draw_bars(axes, points)
    size_axis(axes)
    axes.set_ylabel(unit)
    axes.margins(x=0.15, y=0.1)
    axes.set_ylim(bottom=0)


def mixed_speedup(runs):
    """Draws how many times as fast mixed precision trains as float32, against size.

    Returns:
      A Figure of throughput and of time to the same validation loss; bars span pairs of seeds.
    """
    cells = table.cells(runs)
    pairs = compare.precision_pairs(cells)
    if not pairs:
        raise NotDrawn(
            "no completed run in float32 and one in mixed precision differ in nothing else"
        )
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 2, figsize=(10, 4.4), layout="constrained", sharex=True, sharey=True
        )
        for axes, title, ratio_of in (
            (panels[0], "throughput", compare.throughput_ratio),
            (panels[1], "time to the same validation loss", compare.quality_ratio),
        ):
            ratios = [(mixed, ratio_of(plain, mixed)) for plain, mixed in pairs]
            draw_bars(
                axes,
                [
                    (
                        point_style(mixed.setting),
                        (mixed.median("trainable_parameters"),) * 3,
                        (ratio.median, ratio.minimum, ratio.maximum),
                    )
                    for mixed, ratio in ratios
                    if ratio
                ],
            )
            axes.axhline(1, color="0.4", linewidth=1)
            axes.set_title(title)
            size_axis(axes)
        panels[0].set_ylim(bottom=0)  # of both, once both are drawn
        panels[0].set_ylabel("times as fast as float32")
        draw_legend(figure, *panels[0].get_legend_handles_labels())
        return signed(figure, runs_of(pairs))


def scaling(runs):
    """Draws speed-up and efficiency over the number of processes.

    Returns:
      A Figure; a line a setting, bars span pairs of seeds.
    """
    cells = table.cells(runs)
    pairs = compare.scaling_pairs(cells)
    if not pairs:
        raise NotDrawn("no two completed runs differ in the number of processes alone")
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
        lines = {}
        for few, many in pairs:
            speed = compare.throughput_ratio(few, many)
            if speed:
                times = many.setting["world_size"] / few.setting["world_size"]
                lines.setdefault(id(few), (few, []))[1].append((times, speed))
        for few, points in lines.values():
            look = {
                "color": precision_color(few.setting["precision"]),
                "marker": MARKERS[few.setting["depth"] % len(MARKERS)],
                "capsize": 3,
                "alpha": 0.8,
            }
            times = [1, *(each for each, _ in points)]
            speeds = [(1, 1, 1), *((s.median, s.minimum, s.maximum) for _, s in points)]
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
        if any(compare.shares_cores(many.setting) for _, many in pairs):
            right.set_title("processes share the cores of one host", fontsize=9)
        precisions = {few.setting["precision"] for few, _ in pairs}
        draw_legend(figure, *precision_handles(precisions), columns=2)
        return signed(figure, runs_of(pairs))


def _line_with_bars(axes, places, spreads, **look):
    middle, least, most = zip(*spreads, strict=True)
    below = [a - b for a, b in zip(middle, least, strict=True)]
    above = [b - a for a, b in zip(middle, most, strict=True)]
    axes.errorbar(places, middle, yerr=[below, above], **look)


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
                    color=precision_color(precision),
                    alpha=0.8,
                    label=f"{what}, {precision}",
                )
        on_gpu = any(run.row["peak_gpu_bytes"] for run in drawn)
        size_axis(axes)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
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
        draw_legend(figure, *axes.get_legend_handles_labels(), columns=2)
        return signed(figure, drawn)


def measured_memory(row):
    """Returns the peak bytes of the fullest process: of its GPU, else resident; None if neither."""
    return row["peak_gpu_bytes"] or row["peak_rss_bytes"]


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
