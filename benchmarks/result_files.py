"""Where a benchmark leaves what it measured: a table to read and the same numbers in JSON."""

import datetime
from pathlib import Path

from keras_nowcast.files import write_json, written_whole

RESULTS = Path(__file__).parent / "results"
ENVIRONMENT = ("python", "tensorflow", "keras", "cpu", "cores", "git_commit")


def write_results(name, rows, note, raw=None):
    """Prints the rows and writes results/<name>_<date>.txt and .json.

    Args:
        name: The benchmark's.
        rows: Dicts of the same keys; numbers with their unit in the key.
        note: What was run, in a line.
        raw: The single measurements behind the rows, for the .json alone.
    """
    from keras_nowcast.training.distributed import World
    from keras_nowcast.training.environment import describe

    described = describe(World())
    environment = {key: described[key] for key in ENVIRONMENT}
    date = datetime.date.today().isoformat()
    lines = [f"{name}, {date}: {note}", ", ".join(f"{k} {v}" for k, v in environment.items()), ""]
    text = "\n".join(lines + _table(rows)) + "\n"
    print(text, end="")
    RESULTS.mkdir(exist_ok=True)
    content = {"date": date, "note": note, "environment": environment, "rows": rows}
    if raw is not None:
        content["raw"] = raw
    write_json(RESULTS / f"{name}_{date}.json", content)
    with written_whole(RESULTS / f"{name}_{date}.txt") as beside:
        beside.write_text(text)


def _table(rows):
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
