"""Figures of finished runs. Each takes what records.read_runs gives and returns a Figure."""

import statistics

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from keras_nowcast.files import written_whole

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
}
MANY_RUNS = 12  # more lines than this cannot be told apart by a legend


def training_curves(runs):
    """Draws loss and validation loss over the epochs, a colour for each run.

    Args:
      runs: list of (RunFolder, record).

    Returns:
      A Figure; mean squared error in normalized units, logarithmic.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, 4.4), sharey=True, layout="constrained"
        )
        for number, (folder, record) in enumerate(runs):
            rows = folder.read_epochs()
            look = {
                "color": COLORS[number % len(COLORS)],
                "marker": MARKERS[number // len(COLORS) % len(MARKERS)],
                "markersize": 4,
                "label": label(record["config"], record["environment"]),
            }
            for axes, column in ((left, "loss"), (right, "val_loss")):
                drawn = [(row["epoch"] + 1, row[column]) for row in rows if row[column] is not None]
                if drawn:
                    axes.plot(*zip(*drawn, strict=True), **look)
        left.set_ylabel("mean squared error (normalized VIL)")
        left.set_title("training")
        right.set_title("validation")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(runs) <= MANY_RUNS:
            handles, labels = left.get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside lower center", ncols=min(2, len(labels)), fontsize=8
            )
        return figure


def cost_by_size(runs):
    """Draws seconds an epoch, and joules an epoch where measured, against parameters.

    The bars span the epochs of a run; its point is their median. The first epoch lacks the first,
    compiling step and is left out where there are others.

    Returns:
      A Figure of one panel, or of two when at least one run measured its energy.
    """
    measured = any(record["energy"]["joules"] is not None for _, record in runs)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 1 + measured, figsize=(5.2 + 4.4 * measured, 4.2), layout="constrained",
            squeeze=False,
        )  # fmt: skip
        panels = panels[0]
        _by_size(panels[0], runs, "seconds", "training time (s per epoch)")
        if measured:
            _by_size(panels[1], runs, "joules", "energy of training (J per epoch)")
            if any(_estimate_mark(record) for _, record in runs):
                panels[1].set_title("hollow: an ESTIMATE, not measured", fontsize=9)
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
        )
        return figure


def _by_size(axes, runs, column, unit):
    drawn = set()
    for folder, record in runs:
        rows = folder.read_epochs()
        values = [row[column] for row in rows[1:] or rows if row[column] is not None]
        if not values:
            continue
        kind = (record["config"]["precision"], record["environment"]["world_size"])
        middle = statistics.median(values)
        axes.errorbar(
            record["model"]["trainable_parameters"],
            middle,
            yerr=[[middle - min(values)], [max(values) - middle]],
            color=PRECISION_COLORS[kind[0]],
            marker=MARKERS[(kind[1] - 1) % len(MARKERS)],
            markerfacecolor="none" if column == "joules" and _estimate_mark(record) else None,
            capsize=3,
            label=None if kind in drawn else f"{kind[0]}, {processes(kind[1])}",
        )
        drawn.add(kind)
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(unit)
    axes.margins(x=0.2, y=0.1)
    axes.set_ylim(bottom=0)


def _estimate_mark(record):
    """Returns words for joules that no sensor measured, an empty text otherwise."""
    return " (an ESTIMATE, not measured)" if record["energy"]["source"] == "estimate" else ""


def power_trace(run):
    """Draws one run's power over time, the epochs marked, and the energy of each epoch.

    Args:
      run: (RunFolder, record) of a run that measured or estimated its energy.

    Returns:
      A Figure; watts of each device against seconds since the start, joules against the epoch.
    """
    folder, record = run
    energy = record["energy"]
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.2), layout="constrained")
        for number, ((host, device), (seconds, watts)) in enumerate(folder.read_power().items()):
            color = COLORS[number % len(COLORS)]
            above.plot(seconds, watts, color=color, linewidth=1, label=f"{host} {device}")
        for window in energy["windows"]:
            if window["name"] in _WINDOW_COLORS:
                above.axvspan(
                    window["start_s"], window["end_s"], color=_WINDOW_COLORS[window["name"]],
                    alpha=0.2, linewidth=0,
                )  # fmt: skip
        handles, labels = above.get_legend_handles_labels()
        handles += [Patch(color=color, alpha=0.3) for color in _WINDOW_COLORS.values()]
        labels += [name if name != "epoch" else "training" for name in _WINDOW_COLORS]
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        above.set_ylim(bottom=0)
        above.set_xlabel("time since the start (s)")
        above.set_ylabel("power (W)")
        above.set_title(
            f"{label(record['config'], record['environment'])}\n"
            f"energy source: {energy['source']}{_estimate_mark(record)}",
            fontsize=9,
        )
        known = [
            (row["epoch"] + 1, row["joules"])
            for row in folder.read_epochs()
            if row["joules"] is not None
        ]
        if known:
            below.bar(*zip(*known, strict=True), color=COLORS[0])
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("epoch")
        below.set_ylabel("energy of training (J)")
        return figure


_WINDOW_COLORS = {"idle": "#999999", "epoch": COLORS[2], "validation": COLORS[4]}


def label(config, environment):
    """Returns a run's name in a legend: what sets it apart from other runs."""
    return (
        f"depth {config['depth']}, {config['filters']} filters, {config['precision']}, "
        f"{processes(environment['world_size'])}, seed {config['seed']}"
    )


def processes(world_size):
    """Returns '1 process' or 'n processes'."""
    return f"{world_size} process" + ("es" if world_size > 1 else "")


def write_figure(figure, folder, name):
    """Writes `name`.pdf and `name`.png into a Path, whole, and closes the figure."""
    for suffix in (".pdf", ".png"):
        with written_whole(folder / f"{name}{suffix}") as beside:
            figure.savefig(beside)
    plt.close(figure)
