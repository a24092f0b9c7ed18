"""Figures of power over time."""

import matplotlib.pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from keras_nowcast.report.style import (
    COLORS,
    MANY_RUNS,
    NotDrawn,
    draw_legend,
    estimate_mark,
    label,
    literal,
    signed,
    styled,
)

MAX_POINTS = 1500  # of a power trace; a figure is fewer pixels wide
WINDOW_COLORS = {
    "idle": "#999999",
    "epoch": COLORS[2],
    "validation": COLORS[4],
    "statistics": COLORS[4],
}


def power_traces(runs):
    """Draws power over time of up to MANY_RUNS runs, one panel per run, one line per device.

    Raises:
      NotDrawn: no run has a power trace.
    """
    traced = [run for run in runs if run.devices]
    if not traced:
        raise NotDrawn("no run has a power trace: " + _why_no_energy(runs))
    # Evenly spaced over all runs, not only the first ones.
    drawn = [traced[len(traced) * i // MANY_RUNS] for i in range(MANY_RUNS)]
    drawn = list(dict.fromkeys(drawn)) if len(traced) > MANY_RUNS else traced
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    with styled():
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
            # On two lines, since both together are wider than a panel.
            lines = (label(run.row), estimate_mark(run.row).strip())
            axes.set_title("\n".join(filter(None, lines)), fontsize=7)
        # All panels share this axis. Earlier, it would fix the top at the traces drawn so far.
        panels[0, 0].set_ylim(bottom=0)
        for axes in panels.flat[len(drawn) :]:
            axes.axis("off")
        for axes in panels[-1]:
            axes.set_xlabel("time since the start (s)", fontsize=9)
        figure.supylabel("power (W)", fontsize=9)
        if len(drawn) < len(traced):
            figure.suptitle(f"{len(drawn)} of {len(traced)} runs with a power trace", fontsize=9)
        return signed(figure, drawn)


def _why_no_energy(runs):
    return (
        "; ".join(
            dict.fromkeys(run.row["energy_reason"] for run in runs if run.row["energy_reason"])
        )
        or "no trace was kept"
    )


def _thinned(seconds, watts):
    """Returns at most MAX_POINTS of a trace: the minimum and maximum of each stretch if longer."""
    if len(seconds) <= MAX_POINTS:
        return seconds, watts
    stretch = 2 * len(seconds) // MAX_POINTS + 1
    kept = []
    for start in range(0, len(seconds), stretch):
        places = range(start, min(start + stretch, len(seconds)))
        known = [i for i in places if watts[i] == watts[i]] or [start]
        kept += sorted({min(known, key=watts.__getitem__), max(known, key=watts.__getitem__)})
    return [seconds[i] for i in kept], [watts[i] for i in kept]


def power_trace(run, record):
    """Draws the power of one run over time with its epochs marked, and the energy of each epoch.

    Args:
      run: a MeasuredRun that measured or estimated its energy.
      record: its record.json.

    Returns:
      A Figure of two panels: watts of each device against seconds since the start, and joules
      against the epoch.
    """
    energy = record.get("energy") or {}
    with styled():
        figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained")
        traces = run.folder.read_power()
        for number, ((host, device), (seconds, watts)) in enumerate(traces.items()):
            color = COLORS[number % len(COLORS)]
            seconds, watts = _thinned(seconds, watts)
            above.plot(seconds, watts, color=color, linewidth=1, label=literal(f"{host} {device}"))
        for window in energy.get("windows") or ():
            ends = window.get("start_s"), window.get("end_s")
            color = WINDOW_COLORS.get(window.get("name"))
            if color is not None and None not in ends:
                above.axvspan(*ends, color=color, alpha=0.2, linewidth=0)
        handles, labels = above.get_legend_handles_labels()
        handles += [Patch(color=color, alpha=0.3) for color in WINDOW_COLORS.values()]
        labels += [name if name != "epoch" else "training" for name in WINDOW_COLORS]
        draw_legend(figure, handles, labels, columns=2)
        above.set_ylim(bottom=0)
        above.set_xlabel("time since the start (s)")
        above.set_ylabel("power (W)")
        above.set_title(
            f"{label(run.row)}\nenergy source: {energy.get('source')}{estimate_mark(run.row)}",
            fontsize=9,
        )
        known = [
            (row["epoch"] + 1, row["joules"]) for row in run.epochs if row["joules"] is not None
        ]
        if known:
            below.bar(*zip(*known, strict=True), color=COLORS[0])
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("epoch")
        below.set_ylabel("training energy (J)")
        return signed(figure, [run])
