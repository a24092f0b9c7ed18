"""The figure of skill against cost, with Pareto fronts."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

from keras_nowcast.report.style import (
    STYLE,
    NotDrawn,
    draw_bars,
    draw_legend,
    ends_of,
    plain_numbers,
    point_style,
    runs_of,
    signed,
)
from keras_nowcast.study import compare, table

FRONT_STYLES = ("-", "--", ":", "-.")  # more fronts than these cannot be told apart
# Where a word may stand beside its point, in printer's points: the first that is free.
LABEL_PLACES = tuple((right, up) for up in (-8, 8, -17, 17, -26, 26) for right in (5, -5))


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
    cost = compare.cost_of_cells(cells)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
        points = []
        for cell in cells:
            scores, costs = skill.of_cell(cell), cell.values(cost.column)
            points.append(
                (point_style(cell.setting, cost.is_estimate), ends_of(costs), ends_of(scores))
            )
        draw_bars(axes, points)
        labels = []
        for group, style in zip(fronts, FRONT_STYLES, strict=False):
            front = compare.pareto_cells(group, skill, cost)
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
        plain_numbers(axes.xaxis)
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
        draw_legend(figure, *axes.get_legend_handles_labels())
        signed(figure, runs_of([cells]))
        _label_points(axes, labels, [(x, y) for _, (x, _, _), (y, _, _) in points])
        return figure


_FREE_ON_A_FRONT = ("precision", "fp16_allreduce", "world_size", "hosts", "gpus", *compare.SIZES)


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
