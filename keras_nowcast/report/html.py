"""Writes the whole study into one HTML file, report.html, to read and to send.

The page needs no network, and its only script is templates/report.js. This module prepares the
data; the template (templates/report.html.j2) escapes every text that comes from a file.
"""

import shlex
from importlib import resources
from typing import Any, NamedTuple

from keras_nowcast.config import FOLDER, names_of
from keras_nowcast.flags import as_arguments
from keras_nowcast.process import one_line
from keras_nowcast.report.figures import OF_ALL_RUNS
from keras_nowcast.study import planner, table
from keras_nowcast.study.claims import NOT_MEASURED, PAPER
from keras_nowcast.study.compare import ESTIMATE
from keras_nowcast.text_table import counted
from keras_nowcast.verification import bootstrap


class Column(NamedTuple):
    """A column of the table of runs.

    Attributes:
      head: its heading.
      name: column of table.csv, or key of `_more`.
      form: format of its numbers, or None for text.
      meaning: tooltip of its heading.
    """

    head: str
    name: str
    form: str | None
    meaning: str


class TableCell(NamedTuple):
    """A cell of the table of runs: the text it shows, and the value it is sorted by."""

    text: str
    value: Any
    is_number: bool


COLUMNS = (
    Column("run", "run", None, "folder of the run"),
    Column("status", "status", None, "completed, interrupted, failed, or running"),
    Column("depth", "depth", "d", "encoder levels"),
    Column("filters", "filters", "d", "filters of the first level"),
    Column("precision", "precision", None, "precision of the layers"),
    Column("processes", "world_size", "d", "processes that trained together"),
    Column("seed", "seed", "d", "seed of weights and shuffling"),
    Column("parameters", "trainable_parameters", ",d", "trainable parameters"),
    Column(
        "s/epoch",
        "seconds_per_epoch",
        ".3g",
        "training time per epoch in seconds, median, without validation",
    ),
    Column("windows/s", "samples_per_second", ".1f", "windows trained per second by all processes"),
    Column("GFLOP/s", "gflops", ".1f", "counted FLOPs divided by measured time"),
    Column("J/epoch", "joules_per_epoch", ".4g", "training energy per epoch in joules, median"),
    Column("W", "mean_watts", ".1f", "mean power during training"),
    Column(
        "energy from", "energy_source", None, "kind of sensor; an estimate is not a measurement"
    ),
    Column(
        "val. CSI",
        "csi",
        ".4f",
        "critical success index on the validation set, higher is better: mean over thresholds",
    ),
    Column("val. MAE", "val_mae", ".2f", "mean absolute error on the validation set, VIL codes"),
    Column("val. loss", "val_loss", ".4f", "mean squared error on the validation set, normalized"),
    Column(
        "test CSI",
        "test_csi",
        ".4f",
        "the same CSI on the test set, if evaluate.py scored it; nothing is chosen by it",
    ),
    Column("test MAE", "test_mae", ".2f", "mean absolute error on the test set, VIL codes"),
    Column(
        "counted MiB",
        "counted_mib",
        ",.0f",
        "counted: parameters, moments, gradients and activations",
    ),
    Column(
        "peak MiB",
        "peak_mib",
        ",.0f",
        "measured: memory of the GPU, or resident memory of a process that has none",
    ),
)


def page(runs, claims_made, figures, not_drawn, planned, unrecorded, left_out, command):
    """Returns the report as the text of one HTML file.

    Args:
      runs: list of MeasuredRun (`table.read`).
      claims_made: list of Claim.
      figures: {name: inline SVG}.
      not_drawn: {name of a figure: why it was not drawn}.
      planned: the Planner of these runs.
      unrecorded: {path of a run without a record: True if it is running, None if that is unknown}.
      left_out: {path of a run that cannot be read: why}.
      command: the command line that writes this report.
    """
    from markupsafe import Markup

    skill = table.choose_skill(runs)
    ordered = sorted(runs, key=table.order)
    completed = sum(run.is_completed for run in runs)
    return _template().render(
        css=Markup(_file("report.css")),
        script=Markup(_file("report.js")),
        paper=PAPER,
        not_measured=NOT_MEASURED,
        estimate_mark=ESTIMATE,
        completed=f"{completed} of {len(runs)}" if completed < len(runs) else len(runs),
        setup=_setup(runs),
        energy_sources=_energy_sources(runs),
        skill=skill,
        claims=claims_made,
        figures={
            name: {"drawing": OF_ALL_RUNS[name], "svg": Markup(svg)}
            for name, svg in figures.items()
        },
        columns=COLUMNS,
        rows=[_cells(run, skill) for run in ordered],
        choices=_choices(ordered, skill),
        lost=_lost(ordered),
        planner=_planner(planned),
        missing=_missing(runs, claims_made, not_drawn, unrecorded) + _left_out(left_out),
        failed=_failed(runs),
        command=one_line(command),
        train_commands=[train_command(run) for run in ordered],
    )


def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def _file(name):
    """Returns the text of a file in templates/."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


_SETUP = (  # (name, column of table.csv, or field of the configuration)
    ("data set", "data"),
    ("grid in pixels", "grid"),
    ("training windows per epoch", "windows_per_epoch"),
    ("validation windows", "validation_windows"),
    ("test windows", "test_windows"),
    ("training up to", "train_before"),
    ("test after", "test_from"),
    ("epochs", "epochs"),
    ("processor", "cpu"),
    ("cores", "cores"),
    ("GPUs", "gpus"),
    ("hosts", "hosts"),
    ("TensorFlow", "tensorflow"),
    ("Keras", "keras"),
    ("Horovod", "horovod"),
    ("code", "git_commit"),
)


def _setup(runs):
    """Returns (name, distinct values over all runs) of what they trained on, and with."""
    rows = []
    for name, column in _SETUP:
        values = [(run.config | run.row).get(column) for run in runs]
        values = [value for value in values if value is not None]
        if column == "git_commit":  # short, with the + of uncommitted changes
            values = [each[:10] + ("+" if each.endswith("+") else "") for each in values]
        rows.append((name, [value if value != "" else "none" for value in dict.fromkeys(values)]))
    return rows


def _energy_sources(runs):
    sources = dict.fromkeys(run.row["energy_source"] for run in runs)
    return [source for source in sources if source not in (None, "none")]


_LOST = {  # head: (column, form)
    "skipped events": ("skipped_events", ",d"),
    "skipped steps": ("skipped_steps", ",d"),
    "lost s": ("lost_seconds", ",.1f"),
    "lost J": ("lost_joules", ",.0f"),
}


def _lost(runs):
    """Returns one row per run that skipped events or steps, or lost work."""
    rows = []
    for run in runs:
        if not any(run.row[column] for column, _ in _LOST.values()):
            continue
        row = {"run": run.name}
        for head, (column, form) in _LOST.items():
            value = run.row[column]
            row[head] = NOT_MEASURED if value is None else format(value, form)
            if value and column == "lost_joules" and run.row["energy_is_estimate"]:
                row[head] += ESTIMATE
        rows.append(row)
    return rows


def _more(run, skill):
    """Returns the values of the table of runs that table.csv lacks or has in other units."""
    row, mib = run.row, 2**20
    counted = row["counted_step_bytes"] and row["counted_step_bytes"] + row["counted_state_bytes"]
    peak = row["peak_gpu_bytes"] or row["peak_rss_bytes"]
    is_csi = skill is not None and skill.higher_is_better
    return {
        "run": run.name,
        "gflops": row["achieved_flops_per_second"] and row["achieved_flops_per_second"] / 1e9,
        "csi": skill.of(row) if is_csi else None,
        "test_csi": skill.of_test(row) if is_csi else None,
        "counted_mib": counted and counted / mib,
        "peak_mib": peak and peak / mib,
    }


def _cells(run, skill):
    """Returns the TableCells of a run, one per column of COLUMNS."""
    cells, shown = [], run.row | _more(run, skill)
    for column in COLUMNS:
        value = shown[column.name]
        if value is None:
            cells.append(TableCell("", "", True))
            continue
        text = format(value, column.form) if column.form else str(value)
        if column.name in ("joules_per_epoch", "mean_watts") and run.row["energy_is_estimate"]:
            text += " (estimate)"
        cells.append(TableCell(text, value, column.form is not None))
    return cells


def _choices(runs, skill):
    """Returns the completed runs to compare and the first choice, or None for fewer than two."""
    completed = [run for run in runs if run.is_completed]
    if len(completed) < 2:
        return None
    sizes = [run.row["trainable_parameters"] for run in completed]
    return {
        "runs": [{"name": run.name, "data": _compared(run.row, skill)} for run in completed],
        "smallest": sizes.index(min(sizes)),
        "largest": sizes.index(max(sizes)),
    }


def _compared(row, skill):
    """Returns the values that report.js compares, None if unknown."""
    rate = row["samples_per_second"]
    return {
        "parameters": row["trainable_parameters"],
        "time": rate and 1 / rate,
        "energy": row["joules_per_sample"],
        "skill": skill and skill.of(row),
        "estimate": row["energy_is_estimate"] or None,
        "source": row["energy_source"],
    }


def _planner(planned):
    rows = []
    for name, words in planner.WORDS.items():
        errors = planned.errors[name]
        text = errors.text() if errors else f"{NOT_MEASURED}: {planned.why_no_errors(name)}"
        largest = [f"{key}: {each.text()}" for key, each in planned.largest(name).items()]
        rows.append(
            {
                "quantity": words,
                "leave-one-out error": text,
                "largest cells, from the smaller ones": "; ".join(largest),
            }
        )
    nexts = planned.next_sizes()
    share = nexts[0].seconds.share if nexts and nexts[0].seconds else None
    notes = []
    if planned.left_out:
        notes.append(f"Not included: {counted(planned.left_out, 'cell')} from other machines.")
    if planned.energy_note:
        notes.append(planned.energy_note)
    return {
        "errors": rows,
        "next_sizes": [planner.text_row(each) for each in nexts],
        "interval_share": share and f"{share:.0%}",
        "notes": notes,
    }


def _missing(runs, claims_made, not_drawn, unrecorded):
    """Returns (subject, rest of the sentence) for everything that was not measured."""
    lines = [(_title(name), f" (figure): {why}") for name, why in not_drawn.items()]
    lines += [
        (claim.title, f" (claim): {claim.answer}") for claim in claims_made if not claim.is_measured
    ]
    lines += [
        ("Energy", f" of {counted(len(names), 'run')}: {reason}")
        for reason, names in _by_reason(runs).items()
    ]
    partly = [
        run
        for run in runs
        if run.row["energy_joules"] is not None and run.row["joules_per_epoch"] is None
    ]
    if partly:
        why = f"no epoch has valid readings for {table.ENOUGH_COVERAGE:.0%} of its time"
        lines.append(("Energy of an epoch", f" of {counted(len(partly), 'run')}: {why}"))
    seeds = [len(cell.runs) for cell in table.cells(runs)]
    if seeds and max(seeds) == 1:
        lines.append(("The spread over seeds", ": no cell has more than one seed"))
    if not any(run.row["test_mse"] is not None for run in runs):
        why = "no run was evaluated with experiments/evaluate.py"
        lines.append(
            ("Scores on the test set", f" compared with persistence and extrapolation: {why}")
        )
    blocks = [rows[0].get("n_blocks") for run in runs if (rows := run.folder.read_scores())]
    few = bootstrap.warning(min(filter(None, blocks), default=bootstrap.FEW_BLOCKS), "of events")
    if few:
        lines.append(("Test scores on other days", f" (scores.csv and differences.csv): {few}"))
    why = " is in no comparison: it was resumed with another number of processes"
    lines += [(run.name, why) for run in runs if run.is_completed and run.changed_processes]
    return lines + [
        (one_line(str(path)), f" {_UNRECORDED[is_run]}") for path, is_run in unrecorded.items()
    ]


def _left_out(left_out):
    return [
        (one_line(str(path)), f" is left out: {one_line(why)}") for path, why in left_out.items()
    ]


def _title(name):
    # The power trace of a single run is not on the page and has no title.
    return OF_ALL_RUNS[name].title if name in OF_ALL_RUNS else name


_UNRECORDED = {
    True: "is running and has no record yet",
    False: "was killed: it has no record and no process is training; continue it with --resume",
    None: "has no record: it is still running or was killed; the system does not report which",
}


def _by_reason(runs):
    found = {}
    for run in runs:
        if run.row["energy_joules"] is None and run.is_completed:
            found.setdefault(run.row["energy_reason"], []).append(run.name)
    return found


def _failed(runs):
    return [
        {
            "run": run.name,
            "status": run.row["status"],
            "reason": run.row["reason"] or "not recorded",
            "epochs done": f"{run.row['epochs_done']} of {run.row['epochs']}",
        }
        for run in runs
        if not run.is_completed
    ]


def train_command(run):
    """Returns the command line that trains a MeasuredRun again."""
    config = {k: v for k, v in run.config.items() if k not in names_of(FOLDER)}
    words = ["python", "experiments/train.py", *as_arguments(config)]
    if (run.row["world_size"] or 1) > 1:
        words = ["horovodrun", "-np", str(run.row["world_size"]), *words]
    return shlex.join(words)
