"""The figure of skill against cost, with Pareto fronts."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

from keras_nowcast.report.style import (
    NotDrawn,
    draw_bars,
    draw_legend,
    ends_of,
    plain_numbers,
    point_style,
    runs_of,
    signed,
    styled,
)
from keras_nowcast.study import compare, table

FRONT_STYLES = ("-", "--", ":", "-.")  # more fronts than these are not distinguishable
# Offsets of a label from its point, in points (1/72 inch); the first that is free is used.
LABEL_OFFSETS = tuple((right, up) for up in (-8, 8, -17, 17, -26, 26) for right in (5, -5))
# Settings in which the cells of one front differ.
_FREE_ON_A_FRONT = ("precision", "fp16_allreduce", "world_size", "hosts", "gpus", *compare.SIZES)


def skill_by_cost(runs):
    """Draws skill against cost, with the Pareto fronts.

    The cost is energy if all runs measured it with one kind of sensor, and time otherwise. A front
    has cells that differ only in size, precision and processes: with another grid or another
    number of epochs, neither skill nor cost is comparable.

    Returns:
      A Figure with one point per cell: the median over its seeds; its bars span their minimum to
      maximum.

    Raises:
      NotDrawn: the completed runs have no common score, or none has a timed epoch.
    """
    skill = table.choose_skill(runs)
    cells = [cell for cell in table.cells(runs) if cell.median("seconds_per_epoch") is not None]
    if skill is None or not cells:
        raise NotDrawn("the completed runs have no common score, or none has a timed epoch")
    groups = sorted(table.group(cells, *_FREE_ON_A_FRONT), key=len, reverse=True)
    fronts = [group for group in groups if len(group) > 1][: len(FRONT_STYLES)]
    cost = compare.cost_of_cells(cells)
    points = [
        (
            point_style(cell.setting, cost.is_estimate),
            ends_of(cell.values(cost.column)),
            ends_of(skill.of_cell(cell)),
        )
        for cell in cells
    ]
    with styled():
        figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
        draw_bars(axes, points)
        labels = []
        for group, style in zip(fronts, FRONT_STYLES, strict=False):
            name = f"front: {_set_apart(group, groups)}" if len(groups) > 1 else None
            labels += _draw_front(axes, compare.pareto_cells(group, skill, cost), skill, cost)
            axes.lines[-1].set(linestyle=style, label=name)
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.set_xlabel(f"{cost.name} ({cost.unit})")
        better = "higher" if skill.higher_is_better else "lower"
        axes.set_ylabel(f"{skill.name}\n({better} is better)")
        axes.set_title("\n".join(_notes(cells, groups, fronts, cost)), fontsize=9)
        draw_legend(figure, *axes.get_legend_handles_labels())
        signed(figure, runs_of([cells]))
        _label_points(axes, labels, [(x, y) for _, x, y in points])
        return figure


def _draw_front(axes, front, skill, cost):
    """Draws a Pareto front as steps.

    Returns:
      A list of (label, (x, y)) of its cells.
    """
    places = [(cell.median(cost.column), statistics.median(skill.of_cell(cell))) for cell in front]
    axes.plot(
        *zip(*places, strict=True), color="0.35", linewidth=1, zorder=1, drawstyle="steps-post"
    )
    names = [f"d{cell.setting['depth']} f{cell.setting['filters']}" for cell in front]
    return list(zip(names, places, strict=True))


def _set_apart(group, groups):
    """Returns, as text, the settings of a group of cells that differ from those of other groups."""
    mine = group[0].setting
    names = [
        name
        for name in mine
        if name not in _FREE_ON_A_FRONT
        and any(str(other[0].setting[name]) != str(mine[name]) for other in groups)
    ]
    words = [f"{name.replace('_', ' ')} {str(mine[name])[-20:]}" for name in names]
    return ", ".join(words[:3]) + (", ..." if len(words) > 3 else "")


def _notes(cells, groups, fronts, cost):
    """Returns the lines of the title: what the fronts are, and why the cost is what it is."""
    notes = ["the line is the Pareto front"] if fronts else []
    if len(groups) > 1:
        notes = ["Pareto fronts of cells that differ only in size, precision and processes"]
        if len(fronts) < len(groups):
            notes[0] += f": {len(fronts)} of {len(groups)} groups"
    if cost.column != "joules_per_epoch":
        any_energy = any(cell.values("joules_per_epoch") for cell in cells)
        notes.append(
            "time, since not every run measured energy with one kind of sensor"
            if any_energy
            else "time, since no run measured energy"
        )
    if cost.is_estimate:
        notes.append("hollow: energy is an ESTIMATE, not measured")
    return notes


def _label_points(axes, labels, spreads):
    """Writes each label next to its point, or nowhere if it would cover a label, point or bar.

    Args:
      axes: with its final scales and title.
      labels: list of (text, (x, y)).
      spreads: (x, y) of all points, each (middle, minimum, maximum).
    """
    axes.figure.draw_without_rendering()  # fixes the layout
    taken = []
    for (x, left, right), (y, bottom, top) in spreads:
        for low, high in (((x, y), (x, y)), ((left, y), (right, y)), ((x, bottom), (x, top))):
            box = Bbox(axes.transData.transform([low, high]))
            taken.append(box.padded(4))
    left, right = axes.get_window_extent().intervalx
    for text, point in labels:
        for offset in LABEL_OFFSETS:
            word = axes.annotate(
                text,
                point,
                xytext=offset,
                textcoords="offset points",
                fontsize=7,
                color="0.25",
                ha="left" if offset[0] > 0 else "right",
                va="center",
            )
            box = word.get_window_extent()
            if left <= box.x0 and box.x1 <= right and not box.count_overlaps(taken):
                taken.append(box)
                break
            word.remove()
