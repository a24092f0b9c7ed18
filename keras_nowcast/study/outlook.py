"""What a sweep will take: the table of --dry-run, and what is left while it runs."""

import statistics

from keras_nowcast.records import RunFolder


def duration(seconds):
    """Returns seconds in words: 42s, 3m 05s, 2h 10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def seconds_left(waiting, finished, folder):
    """Estimates how long cells that wait will take, from those that are finished.

    Each takes the median set-up of the finished, and its counted FLOPs at their median rate in
    the same precision (in any, where there is none).

    Args:
      waiting, finished: PlacedCells.
      folder: Path of the sweep's folder.

    Returns:
      Seconds; None while nothing is finished.
    """
    if not finished:
        return None
    setups, rates = [], {}
    for cell in finished:
        setup, seconds = _measured(folder / cell.name)
        setups.append(setup)
        rates.setdefault(cell.policy, []).append(cell.training_flops / seconds)
    any_rate = [rate for some in rates.values() for rate in some]
    setup = statistics.median(setups)
    return sum(
        setup + cell.training_flops / statistics.median(rates.get(cell.policy, any_rate))
        for cell in waiting
    )


def _measured(folder):
    """Returns a finished run's seconds of set-up and of its epochs with validation."""
    run = RunFolder(folder)
    epochs = sum(row["seconds"] + (row["val_seconds"] or 0) for row in run.read_epochs())
    return run.read_record()["training"]["setup_seconds"], epochs


def outlook_table(cells, folder, state):
    """Returns the cells with what each will take, as lines of text.

    Args:
      cells: PlacedCells.
      folder: Path of the sweep's folder.
      state: function of a cell that returns its state.
    """
    header = ("cell", "state", "parameters", "training TFLOP", "tensors MiB", "time", "energy")
    rows = [header]
    for cell in cells:
        if cell.refusal:
            rows.append((cell.name, f"unfittable: {cell.refusal}"))
            continue
        rows.append(
            (
                cell.name,
                state(cell),
                f"{cell.cost.parameters:,}",
                f"{cell.training_flops / 1e12:,.2f}",
                f"{cell.tensor_bytes / 2**20:,.0f}",
                "not known yet",
                "not known yet",
            )
        )
    return _aligned(rows)


def _aligned(rows):
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row[1:], widths[1:], strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
