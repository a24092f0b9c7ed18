"""Figures of finished runs, from the runs that `study.table.read` returns.

A function that draws raises NotDrawn, with the reason, if the runs lack the data it shows.
OF_ALL_RUNS lists the figures of a study, with the title and caption that report.html shows.
"""

import math
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from keras_nowcast.report import power, roofline, skill
from keras_nowcast.report.style import (
    COLORS,
    MANY_RUNS,
    MARKERS,
    NotDrawn,
    draw_bars,
    draw_legend,
    ends_of,
    label,
    plain_numbers,
    point_style,
    precision_color,
    precision_handles,
    runs_of,
    signed,
    size_axis,
    styled,
)
from keras_nowcast.study import compare, table

_RATE_LINES = {"linear": "-", "sqrt": "--", "none": ":"}  # by --lr-scaling


def training_curves(runs):
    """Draws training loss and validation loss against the epoch, one color per run.

    With more than MANY_RUNS runs, the color is the precision, since a legend cannot name them all.

    Returns:
      A Figure; mean squared error of normalized VIL, on a logarithmic axis.

    Raises:
      NotDrawn: no run has finished an epoch.
    """
    drawn = [run for run in runs if run.epochs]
    if not drawn:
        raise NotDrawn("no run has finished an epoch")
    few = len(drawn) <= MANY_RUNS
    with styled():
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
    """Returns (epochs, values) of a column of epochs.csv, NaN for an empty cell."""
    values = [math.nan if row[column] is None else row[column] for row in run.epochs]
    return [row["epoch"] + 1 for row in run.epochs], values


def _curves_by_precision(axes, runs, column):
    """Draws the curves of each precision as one line with gaps: hundreds of lines are slow."""
    lines = {}
    for run in runs:
        x, y = lines.setdefault(run.row["precision"], ([], []))
        epochs, values = _curve(run, column)
        x += [*epochs, math.nan]
        y += [*values, math.nan]
    for precision, (x, y) in lines.items():
        axes.plot(x, y, color=precision_color(precision), alpha=0.6, linewidth=0.8)


def cost_by_size(runs):
    """Draws seconds per epoch, joules per epoch and mean power against model size.

    A point is the median over the epochs of a run; its bar spans their minimum to maximum. The
    first epoch is left out if there are others, because it lacks the first step, which includes
    compilation.

    Returns:
      A Figure of three panels, or of the first one only if no run measured its energy.

    Raises:
      NotDrawn: no completed run has a timed epoch.
    """
    drawn = [run for run in runs if run.is_completed and run.row["seconds_per_epoch"] is not None]
    if not drawn:
        raise NotDrawn("no completed run has a timed epoch")
    measured = [run for run in drawn if run.row["joules_per_epoch"] is not None]
    with styled():
        figure, panels = plt.subplots(
            1,
            3 if measured else 1,
            figsize=(12.4 if measured else 5.6, 4.4),
            layout="constrained",
            squeeze=False,
        )
        panels = panels[0]
        _by_size(
            panels[0], [(point_style(run.row), run.row, _spread(run, "seconds")) for run in drawn]
        )
        panels[0].set_ylabel("training time (s per epoch)")
        if measured:
            styles = [
                (point_style(run.row, run.row["energy_is_estimate"]), run) for run in measured
            ]
            _by_size(panels[1], [(style, run.row, _spread(run, "joules")) for style, run in styles])
            panels[1].set_ylabel("training energy (J per epoch)")
            watts = [(style, run.row, (run.row["mean_watts"],) * 3) for style, run in styles]
            _by_size(panels[2], [each for each in watts if each[2][0] is not None])
            panels[2].set_ylabel("mean training power (W)")
            sources = sorted({run.row["energy_source"] for run in measured})
            notes = [f"by different sensors: {', '.join(sources)}"] if len(sources) > 1 else []
            if "estimate" in sources:
                notes.append("hollow: an ESTIMATE, not measured")
            for axes in panels[1:]:
                axes.set_title("\n".join(notes), fontsize=9)
        draw_legend(figure, *panels[0].get_legend_handles_labels(), columns=2)
        return signed(figure, drawn)


def _spread(run, column):
    """Returns (median, minimum, maximum) of a column over the epochs of a run."""
    epochs = run.epochs[1:] or run.epochs
    return ends_of([epoch[column] for epoch in epochs if epoch[column] is not None])


def _by_size(axes, points):
    """Draws (style, row, (middle, minimum, maximum)) against the trainable parameters."""
    draw_bars(axes, [(style, (row["trainable_parameters"],) * 3, y) for style, row, y in points])
    size_axis(axes)
    axes.margins(x=0.15, y=0.1)
    axes.set_ylim(bottom=0)


def mixed_speedup(runs):
    """Draws how many times as fast as float32 mixed precision trains, against model size.

    Returns:
      A Figure of two panels, for throughput and for the speed to the same validation loss. A point
      is the median over pairs of seeds; its bar spans their minimum to maximum.

    Raises:
      NotDrawn: no two completed runs differ only in precision.
    """
    cells = table.cells(runs)
    pairs = compare.precision_pairs(cells)
    if not pairs:
        raise NotDrawn(
            "no completed run in float32 differs from one in mixed precision only in precision"
        )
    with styled():
        figure, panels = plt.subplots(
            1, 2, figsize=(10, 4.4), layout="constrained", sharex=True, sharey=True
        )
        for axes, title, ratio_of in (
            (panels[0], "throughput", compare.throughput_ratio),
            (panels[1], "speed to the same validation loss", compare.quality_ratio),
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
        # Both panels share their axes, and both have their points now. On a logarithmic axis,
        # matplotlib would find the limits of a single point by rounding errors.
        for axes in panels:
            size_axis(axes)
        panels[0].set_ylim(0, 1.05 * panels[0].get_ylim()[1])
        panels[0].set_ylabel("times as fast as float32")
        draw_legend(figure, *panels[0].get_legend_handles_labels())
        return signed(figure, runs_of(pairs))


def scaling(runs):
    """Draws speed-up and efficiency against the number of processes.

    Returns:
      A Figure of two panels with one line per setting. A point is the median over pairs of seeds;
      its bar spans their minimum to maximum.

    Raises:
      NotDrawn: no two completed runs differ only in the number of processes.
    """
    cells = table.cells(runs)
    pairs = compare.scaling_pairs(cells)
    if not pairs:
        raise NotDrawn("no two completed runs differ only in the number of processes")
    with styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
        lines = {}
        for few, many in pairs:
            speed = compare.throughput_ratio(few, many)
            if speed:
                times = many.setting["world_size"] / few.setting["world_size"]
                line = id(few), many.setting["lr_scaling"]
                lines.setdefault(line, (few, []))[1].append((times, speed))
        for (_, rule), (few, points) in lines.items():
            style = {
                "linestyle": _RATE_LINES[rule],
                "color": precision_color(few.setting["precision"]),
                "marker": MARKERS[few.setting["depth"] % len(MARKERS)],
                "capsize": 3,
                "alpha": 0.8,
            }
            times = [1, *(each for each, _ in points)]
            speeds = [(1, 1, 1), *((s.median, s.minimum, s.maximum) for _, s in points)]
            _line_with_bars(left, times, speeds, **style)
            efficiencies = [
                tuple(end / n for end in speed) for n, speed in zip(times, speeds, strict=True)
            ]
            _line_with_bars(right, times, efficiencies, **style)
        last = max(times for _, points in lines.values() for times, _ in points)
        left.plot([1, last], [1, last], "--", color="0.5", linewidth=1)
        right.axhline(1, linestyle="--", color="0.5", linewidth=1)
        for axes in (left, right):
            axes.set_xlabel("processes / fewest processes of the setting")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_ylabel("speed-up (throughput)")
        right.set_ylabel("efficiency (speed-up / ratio of processes)")
        left.set_title("dashed: perfect scaling", fontsize=9)
        if any(compare.shares_cores(many.setting) for _, many in pairs):
            right.set_title("processes share the cores of one host", fontsize=9)
        precisions = {few.setting["precision"] for few, _ in pairs}
        _draw_scaling_legend(figure, precisions, {rule for _, rule in lines})
        return signed(figure, runs_of(pairs))


def _draw_scaling_legend(figure, precisions, rules):
    """Draws the precisions, and the rules of the learning rate if there are several."""
    handles, names = precision_handles(precisions)
    for rule in sorted(rules) if len(rules) > 1 else ():
        handles.append(Line2D([], [], color="0.3", linestyle=_RATE_LINES[rule]))
        names.append(f"learning rate: {rule}")
    draw_legend(figure, handles, names, columns=2)


def _line_with_bars(axes, x, spreads, **style):
    middle, low, high = zip(*spreads, strict=True)
    below = [a - b for a, b in zip(middle, low, strict=True)]
    above = [b - a for a, b in zip(middle, high, strict=True)]
    axes.errorbar(x, middle, yerr=[below, above], **style)


def memory_by_size(runs):
    """Draws the counted and the measured memory per process against model size.

    Raises:
      NotDrawn: no completed run measured its memory.
    """
    drawn = [run for run in runs if run.is_completed and measured_memory(run.row)]
    if not drawn:
        raise NotDrawn("no completed run measured the peak memory of its processes")
    with styled():
        figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
        for precision in sorted({run.row["precision"] for run in drawn}):
            rows = [run.row for run in drawn if run.row["precision"] == precision]
            sizes = [row["trainable_parameters"] for row in rows]
            counted = [row["counted_step_bytes"] + row["counted_state_bytes"] for row in rows]
            for name, values, marker in (
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
                    label=f"{name}, {precision}",
                )
        on_gpu = any(run.row["peak_gpu_bytes"] for run in drawn)
        size_axis(axes)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        axes.set_ylabel("memory per process (MiB)")
        axes.set_title(
            (
                "measured: peak of the GPU's allocator"
                if on_gpu
                else "measured: peak resident memory, including Python and TensorFlow"
            )
            + "\ncounted: parameters, moments, gradients and activations",
            fontsize=9,
        )
        draw_legend(figure, *axes.get_legend_handles_labels(), columns=2)
        return signed(figure, drawn)


def measured_memory(row):
    """Returns the peak bytes of the process that used most, or None if they were not measured.

    They are those of its GPU if it trained on one, and its resident memory otherwise.
    """
    return row["peak_gpu_bytes"] or row["peak_rss_bytes"]


class Drawing(NamedTuple):
    """A figure of a study.

    Attributes:
      draw: function that takes a list of MeasuredRun and returns a Figure, or raises NotDrawn.
      title: heading in report.html.
      caption: how to read the figure.
    """

    draw: Any
    title: str
    caption: str


# {file name without suffix: Drawing}, in the order of report.html.
OF_ALL_RUNS = {
    "training_curves": Drawing(
        training_curves,
        "Loss over the epochs",
        "On the training windows and on the validation windows, which are held out.",
    ),
    "cost_by_size": Drawing(
        cost_by_size,
        "Training time, energy and mean power by size",
        "One point per run: the median over its epochs. The bar spans their minimum to maximum. "
        "Energy and power are drawn for the runs that measured them.",
    ),
    "mixed_speedup": Drawing(
        mixed_speedup,
        "How much faster mixed precision trains",
        "Above the line, mixed precision is faster. Throughput is windows per second. The speed to "
        "the same loss also depends on how much each precision learns from a window.",
    ),
    "skill_by_cost": Drawing(
        skill.skill_by_cost,
        "What skill costs",
        "Cheaper cells are further left; d3 f16 is depth 3, 16 filters. No comparable cell is both "
        "better and cheaper than a cell on its Pareto front.",
    ),
    "scaling": Drawing(
        scaling,
        "Several processes",
        "Speed-up is in windows per second. Each process has its own batch.",
    ),
    "roofline": Drawing(
        roofline.roofline_figure,
        "Achieved speed by arithmetic intensity, of steps and of layers",
        "The roofline limits are drawn if a run measured them: the sloped line is the memory "
        "bandwidth, the flat line the compute rate of a matrix product. The further a point is "
        "below them, the more of the machine is unused. Layers whose data stay in a cache can lie "
        "above the sloped line.",
    ),
    "memory_by_size": Drawing(
        memory_by_size,
        "Memory by size",
        "Resident memory also includes Python, TensorFlow and the data being read, which the count "
        "does not include.",
    ),
    "power_traces": Drawing(
        power.power_traces,
        "Power over time",
        "Each line is one device of the run.",
    ),
}
