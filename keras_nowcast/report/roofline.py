"""The roofline figure: training steps and layers below the limits of the machine."""

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from keras_nowcast.report.style import (
    NotDrawn,
    draw_bars,
    draw_legend,
    label,
    plain_numbers,
    point_style,
    precision_color,
    signed,
    styled,
)
from keras_nowcast.study import table

KIND_MARKERS = {  # of the kinds of layer in layers.csv
    "convolution": "o",
    "transposed convolution": "D",
    "normalization + activation": "s",
    "pooling": "v",
    "concatenation": "^",
    "scaling": "<",
    "loss": ">",
    "optimizer": "X",
}


def roofline_figure(runs):
    """Draws achieved FLOP/s against counted arithmetic intensity, with the roofline limits.

    It has the training steps of all completed runs, except for runs that were resumed with
    another number of processes. If runs timed their layers (`--layer-times`), it has one panel
    per precision, with the layers and the roofline limits of the largest of these models. If no
    run did, no limits are drawn.

    Returns:
      A Figure. GFLOP/s are per process; the bars of a layer span the minimum to maximum over its
      repetitions.

    Raises:
      NotDrawn: no completed run has a timed step.
    """
    drawn = [
        run
        for run in runs
        if run.is_completed and run.row["achieved_flops_per_second"] and not run.changed_processes
    ]
    if not drawn:
        raise NotDrawn("no completed run has a timed step")
    timed = _largest_with_layers(drawn)
    by_precision = _by_precision(drawn) if timed else {None: drawn}
    count = len(by_precision)
    with styled():
        figure, panels = plt.subplots(
            1,
            count,
            figsize=(max(7.6, 5.8 * count), 5.4),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        panels = dict(zip(by_precision, panels[0], strict=True))
        for precision, axes in panels.items():
            _draw_panel(axes, precision, by_precision[precision], timed)
        for precision, (run, _, _) in timed.items():  # all points have set the limits of the axes
            _draw_limits(panels[precision], run)
        for axes in panels.values():
            plain_numbers(axes.xaxis)
            plain_numbers(axes.yaxis)
            axes.set_xlabel("counted arithmetic intensity (FLOP/byte)")
        figure.axes[0].set_ylabel("achieved GFLOP/s per process")
        entries = _legend_entries(panels.values(), timed)
        draw_legend(figure, list(entries.values()), list(entries), columns=4 if timed else 2)
        return signed(figure, drawn)


def _largest_with_layers(runs):
    """Returns {precision: (run, its rows of layers.csv, the number of runs with layers)}."""
    found = {}
    for run in sorted(runs, key=lambda each: (-table.order(each)[0], *table.order(each)[1:])):
        rows = run.folder.read_layers() if run.roofs else []
        if rows:
            run, rows, count = found.get(run.row["precision"], (run, rows, 0))
            found[run.row["precision"]] = (run, rows, count + 1)
    return found


def _by_precision(runs):
    precisions = sorted({run.row["precision"] for run in runs})
    return {each: [run for run in runs if run.row["precision"] == each] for each in precisions}


def _draw_panel(axes, precision, runs, timed):
    """Draws the training steps of runs, and the layers of one of them if there are any."""
    axes.set(xscale="log", yscale="log")
    draw_bars(axes, [(point_style(run.row), *_step_point(run.row)) for run in runs])
    if precision in timed:
        _draw_layers(axes, *timed[precision])
    elif timed:
        axes.set_title(f"no run in {precision} timed its layers", fontsize=9)
    else:
        axes.set_title(
            "training steps; no roofline limits: no run measured them (--layer-times)", fontsize=9
        )


def _step_point(row):
    """Returns (intensity, GFLOP/s per process) of a training step, as `draw_bars` takes them."""
    speed = row["achieved_flops_per_second"] / row["world_size"] / 1e9
    return (row["counted_intensity"],) * 3, (speed,) * 3


def _draw_layers(axes, run, rows, count):
    """Draws the layers of a run, its training step as a star, and how the times compare."""
    color = precision_color(run.row["precision"])
    points = []
    for row in rows:
        style = (
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
        points.append((style, (row["intensity"],) * 3, tuple(speeds)))
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
        label="training step of the run whose layers are drawn",
        zorder=5,
    )
    sum_s, step_s = sum(row["seconds_median"] for row in rows), run.row["seconds_per_step"]
    title = f"layers: {label(run.row)}\n"
    if count > 1:
        title += f"(largest of {count} runs that timed them); "
    if step_s:
        title += f"their times add up to {sum_s / step_s:.0%} of a training step"
    axes.set_title(title, fontsize=9)


def _draw_limits(axes, run):
    """Draws the peak compute rates and the memory bandwidth that a run measured, with numbers."""
    low, high = axes.get_xlim()
    moved = run.roofs["memory_bytes_per_second"]
    rates = run.roofs["compute_flops_per_second"]
    dtype_of_policy = run.row["precision"].removeprefix("mixed_")
    last_ridge = max(rates.values()) / moved  # right of it, no slope crosses the labels
    for dtype, flops in rates.items():
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
            (last_ridge, flops / 1e9),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize=7,
            color="0.25",
        )
    # Left of the slope, where no layer is.
    middle = low**0.3 * last_ridge**0.7
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


def _legend_entries(panels, timed):
    """Returns {label: handle} of the points in all panels and of the kinds of layer."""
    entries = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    kinds = {row["kind"] for _, rows, _ in timed.values() for row in rows}
    return entries | {kind: _kind_handle(kind) for kind in KIND_MARKERS if kind in kinds}


def _kind_handle(kind):
    return Line2D([], [], linestyle="", marker=KIND_MARKERS[kind], markersize=5, color="0.35")
