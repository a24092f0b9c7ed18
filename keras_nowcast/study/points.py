"""Turns cells into Points: what is measured of them, and the terms that the laws multiply."""

import dataclasses
import statistics

from keras_nowcast.data.pipeline import steps_per_epoch
from keras_nowcast.study import table
from keras_nowcast.study.laws import Point, memory_terms, step_terms


def measured_point(cell, quantity):
    """Returns the Point of a measured cell, or None if this was not measured."""
    value = _measured(cell, quantity)
    windows = cell.median("windows_per_epoch")
    if not value or not windows:
        return None
    point = new_point(cell.setting, table.count_config(cell.setting), windows, quantity)
    training = point.training
    if training is not None:
        training = dataclasses.replace(training, value=_measured(cell, "seconds"))
    return dataclasses.replace(point, training=training, value=value, cell=cell)


def new_point(setting, cost, windows, quantity):
    """Returns the Point of a cell that need not have run.

    Args:
      setting: dict of the cell's configuration and its world_size.
      cost: the Cost of its model.
      windows: of an epoch, over all processes.
      quantity: one of QUANTITIES.
    """
    precision, processes = setting["precision"], setting["world_size"]
    batch = setting["batch_per_replica"]
    steps = steps_per_epoch(windows, processes, batch)
    if quantity == "memory_bytes":
        return Point(precision, processes, memory_terms(cost, precision, batch), 0, 1)
    terms = step_terms(cost, precision, windows / steps / processes)
    times = steps * setting["epochs"]
    point = Point(precision, processes, terms, cost.allreduce_bytes(), times)
    if quantity == "wall_seconds":
        # Setup happens once: a constant time, and a time for each layer that is traced. Validation
        # has terms like those of training, and exchanges no gradients.
        terms = (1, *(times * term for term in terms), len(cost.layers))
        return Point(precision, processes, terms, 0, 1, training=point)
    return point


def measured_by(cells, source):
    """Returns the cells, reduced to the runs whose energy one kind of sensor measured."""
    mine = [
        table.MeasuredCell(cell.setting, [r for r in cell.runs if r.row["energy_source"] == source])
        for cell in cells
    ]
    return [cell for cell in mine if cell.runs]


def _measured(cell, quantity):
    """Returns the median over the seeds of one quantity of complete runs, or None."""
    if quantity == "memory_bytes":
        return cell.median("peak_gpu_bytes") or cell.median("peak_rss_bytes")
    totals = [_total_of_run(run.row, quantity) for run in cell.runs]
    known = [each for each in totals if each is not None]
    return statistics.median(known) if known else None


def _total_of_run(row, quantity):
    """Returns seconds or joules of all epochs of a run, including the first step's training."""
    windows = row["epochs"] * row["windows_per_epoch"] if row["windows_per_epoch"] else 0
    if quantity == "joules":
        each = row["joules_per_sample"]
        return None if each is None else each * windows
    if not row["samples_per_second"] or not windows:
        return None
    # The median epoch is robust to one that was delayed. With a single epoch the rate is used,
    # because that epoch lacks its first step.
    several = row["epochs_done"] > 1
    rate = row["samples_per_second"]
    seconds = row["epochs"] * row["seconds_per_epoch"] if several else windows / rate
    if quantity == "seconds":
        return seconds
    if row["val_seconds_per_epoch"] is None or row["setup_seconds"] is None:
        return None
    setup = row["setup_seconds"] / (row["starts"] or 1)  # per start, if the run was resumed
    # Runs of earlier versions estimated no batch-norm statistics.
    validating = row["val_seconds_per_epoch"] + (row["statistics_seconds_per_epoch"] or 0)
    return setup + seconds + row["epochs"] * validating
