"""Writes the results of a benchmark: a table to read, and the same numbers as JSON.

Both files are in results/<question>/ and named <date>_<machine>.txt and .json, with a suffix if a
question has several variants. results/README.md lists them.
"""

import datetime
import re
from pathlib import Path

from keras_nowcast.files import write_json, written_whole
from keras_nowcast.text_table import aligned

RESULTS = Path(__file__).resolve().parent / "results"
ENVIRONMENT = ("python", "tensorflow", "keras", "cpu", "cores", "git_commit")


def write_results(question, rows, note, variant=None, raw=None):
    """Prints the rows and writes them to results/<question>/<date>_<machine>[_<variant>].

    Args:
      question: the folder's name, as a rule that of the benchmark's module.
      rows: dicts with the same keys; numbers with their unit in the key.
      note: what was run, in one line.
      variant: suffix that distinguishes several measurements of one question, or None.
      raw: the single measurements behind the rows, for the JSON file only.

    Returns:
      The path of the text file.
    """
    from keras_nowcast.training.distributed import World
    from keras_nowcast.training.environment import describe

    described = describe(World())
    environment = {key: described[key] for key in ENVIRONMENT}
    date = datetime.date.today().isoformat()
    title = "_".join(filter(None, (question, variant)))
    lines = [f"{title}, {date}: {note}", ", ".join(f"{k} {v}" for k, v in environment.items()), ""]
    text = "\n".join([*lines, text_table(rows)]) + "\n"
    print(text, end="")
    content = {"date": date, "note": note, "environment": environment, "rows": rows}
    if raw is not None:
        content["raw"] = raw
    folder = RESULTS / question
    folder.mkdir(parents=True, exist_ok=True)
    name = file_stem(date, environment, variant)
    write_json(folder / f"{name}.json", content)
    with written_whole(folder / f"{name}.txt") as beside:
        beside.write_text(text)
    return folder / f"{name}.txt"


def file_stem(date, environment, variant=None):
    """Returns the name of a result's files without their suffix.

    Args:
      date: "YYYY-MM-DD".
      environment: dict with `cpu`, the model name as Linux reports it, or None; and `cores`.
      variant: suffix that distinguishes several measurements of one question, or None.
    """
    return "_".join(filter(None, (date, machine_slug(environment), variant)))


def machine_slug(environment):
    """Returns the CPU model and the cores as part of a file name, such as epyc-7b13-8c.

    Vendor, trademarks, clock rate and the words "CPU", "Processor" and "64-Core" are left out.
    """
    model = re.sub(r"\(\w+\)|@.*|\d+-Core", " ", environment["cpu"] or "unknown")
    noise = {"amd", "intel", "genuine", "cpu", "processor"}
    words = [word for word in re.findall(r"[a-z0-9]+", model.lower()) if word not in noise]
    return "-".join([*words, f"{environment['cores']}c"])


def text_table(rows):
    """Returns the rows as an aligned table: their keys, then one line per row.

    Numbers have four significant digits.
    """
    return aligned([list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)])


def _cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
