"""The roofline figure: training steps and layers beneath the limits of the machine."""

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from keras_nowcast.report.style import (
    STYLE,
    NotDrawn,
    draw_bars,
    draw_legend,
    label,
    plain_numbers,
    point_style,
    precision_color,
    signed,
)
from keras_nowcast.study import table

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
            draw_bars(axes, [(point_style(run.row), *_step_point(run.row)) for run in members])
            if precision in timed:
                _draw_layers(axes, *timed[precision])
            elif timed:
                axes.set_title(f"no run in {precision} timed its layers", fontsize=9)
        for precision, (run, _, _) in timed.items():  # once all that is drawn has set the axes
            _draw_roofs(panels[list(by_precision).index(precision)], run)
        for axes in panels:
            plain_numbers(axes.xaxis)
            plain_numbers(axes.yaxis)
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
        draw_legend(figure, list(found.values()), list(found), columns=4 if timed else 2)
        return signed(figure, drawn)


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
    """Returns (intensity, GFLOP/s of a process) of a training step, as `draw_bars` takes them."""
    speed = row["achieved_flops_per_second"] / row["world_size"] / 1e9
    return (row["counted_intensity"],) * 3, (speed,) * 3


def _draw_layers(axes, run, rows, count):
    """Draws a run's layers, and its whole step as a star, and says how the two fit."""
    color = precision_color(run.row["precision"])
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
    draw_bars(axes, points)
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
