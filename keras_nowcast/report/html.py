"""report.html: the whole study in one file that a person can read and send.

No network, no script but the few lines below, and every text that comes from a file is escaped.
"""

import html
import shlex

from keras_nowcast.config import as_arguments
from keras_nowcast.report.figures import CAPTIONS
from keras_nowcast.study import planner, table
from keras_nowcast.study.claims import NOT_MEASURED, PAPER
from keras_nowcast.study.compare import ESTIMATE

# Of the table: (head, column, form, what it says when the pointer rests on it).
_SHOWN = (
    ("run", "run", None, "folder of the run"),
    ("status", "status", None, "completed, interrupted, failed, or running"),
    ("depth", "depth", "d", "encoder levels"),
    ("filters", "filters", "d", "filters of the first level"),
    ("precision", "precision", None, "precision of the layers"),
    ("processes", "world_size", "d", "processes that trained together"),
    ("seed", "seed", "d", "seed of weights and shuffling"),
    ("parameters", "trainable_parameters", ",d", "trainable parameters"),
    (
        "s/epoch",
        "seconds_per_epoch",
        ".3g",
        "seconds of training an epoch, median, without validation",
    ),
    ("windows/s", "samples_per_second", ".1f", "windows trained a second, all processes"),
    ("GFLOP/s", "gflops", ".1f", "counted FLOPs over measured time"),
    ("J/epoch", "joules_per_epoch", ".4g", "joules of training an epoch, median"),
    ("W", "mean_watts", ".1f", "mean power while training"),
    ("energy from", "energy_source", None, "the sensor; an estimate is no measurement"),
    ("CSI", "csi", ".4f", "critical success index, higher is better: mean over thresholds"),
    ("MAE", "mae", ".2f", "mean absolute error of VIL codes"),
    ("val. loss", "val_loss", ".4f", "mean squared error of the validation, normalized"),
    (
        "counted MiB",
        "counted_mib",
        ",.0f",
        "parameters, moments, gradients and activations, counted",
    ),
    ("peak MiB", "peak_mib", ",.0f", "measured: of the GPU, else resident memory of a process"),
)

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1b1b1b;
  max-width: 74rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; background: #fff; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 2px solid #0072B2; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
.lead, .note { color: #444; } .note { font-size: .88rem; }
nav a { margin-right: 1rem; }
table { border-collapse: collapse; font-size: .82rem; }
th, td { padding: .22rem .5rem; text-align: left; border-bottom: 1px solid #ddd;
  vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: #f2f5f8; position: sticky; top: 0; }
#runs th button { all: unset; cursor: pointer; font-weight: 600; }
#runs th button:focus-visible { outline: 2px solid #0072B2; }
#runs th[aria-sort=ascending] button::after { content: " \\25B2"; }
#runs th[aria-sort=descending] button::after { content: " \\25BC"; }
.wide { overflow-x: auto; border: 1px solid #ddd; } .tall { max-height: 44rem; }
.claim { border-left: 4px solid #0072B2; padding: .1rem 0 .1rem 1rem; margin: 1.2rem 0; }
.claim.missing { border-color: #999; }
.answer { font-weight: 600; }
.absent { color: #767676; }
.figures { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
figure { margin: 1.2rem 0; max-width: 100%; } figure svg { max-width: 100%; height: auto; }
#runs td:first-child { white-space: nowrap; }
figcaption { max-width: 46rem; }
pre { background: #f2f5f8; padding: .7rem; overflow-x: auto; }
select { max-width: 22rem; }
@media print { nav, #compare { display: none; } .tall { max-height: none; } }
"""

# Sorting and comparing. Cells carry their value in data-v, empty where nothing was measured; what
# is missing stays last in both directions.
_SCRIPT = """
"use strict";
const body = document.querySelector("#runs tbody");
document.querySelectorAll("#runs th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    document.querySelectorAll("#runs th").forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.v;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const number = x - y;
      return (up ? 1 : -1) * (isNaN(number) ? x.localeCompare(y) : number);
    };
    [...body.rows].sort(compare).forEach(row => body.append(row));
  });
});
const [first, second] = document.querySelectorAll("#compare select");
const increase = (a, b) => {
  if (!a || !b) return "NOT_MEASURED";
  const percent = 100 * (b / a - 1);
  const digits = Math.abs(percent) < 100 ? 2 : 0;
  const shown = percent.toLocaleString("en", {
    minimumFractionDigits: digits, maximumFractionDigits: digits });
  return (percent < 0 ? "" : "+") + shown + " %";
};
const show = () => {
  const [a, b] = [first, second].map(s => s.selectedOptions[0].dataset);
  const alike = a.source === b.source;
  let energy = alike ? increase(a.energy, b.energy) : "NOT_MEASURED by one kind of sensor";
  if (alike && a.energy && b.energy && (a.estimate || b.estimate)) {
    energy += "ESTIMATE";
  }
  document.querySelector("#compare output").textContent =
    "trainable parameters " + increase(a.parameters, b.parameters) +
    ", time " + increase(a.time, b.time) + ", energy " + energy +
    ", skill " + increase(a.skill, b.skill);
};
if (first) [first, second].forEach(each => each.addEventListener("change", show)), show();
""".replace("NOT_MEASURED", NOT_MEASURED).replace("ESTIMATE", ESTIMATE)


def page(runs, claims_made, figures, not_drawn, planned, unrecorded, command):
    """Returns the report as the text of one HTML file.

    Args:
      runs: list of Run (`table.read`).
      claims_made: list of Claim.
      figures: {name: inline SVG}.
      not_drawn: {name of a figure: why it was not drawn}.
      planned: the Planner of these runs.
      unrecorded: {path of a run without a record: whether it runs, None where that is not told}.
      command: the command line that made this report.
    """
    skill = table.choose_skill(runs)
    parts = [
        _head(runs),
        _machine(runs),
        _claims(claims_made, skill),
        _figures(figures),
        _table(runs, skill),
        _planner(planned),
        _missing(runs, claims_made, not_drawn, unrecorded),
        _failed(runs),
        _repeat(runs, command),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What training costs</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _head(runs):
    completed = sum(run.is_completed for run in runs)
    of = f"{completed} of {len(runs)}" if completed < len(runs) else f"{len(runs)}"
    links = (
        ("claims", "claims"),
        ("figures", "figures"),
        ("table", "table"),
        ("planner", "planner"),
        ("missing", "not measured"),
        ("failed", "failed"),
        ("repeat", "repeat it"),
    )
    return (
        "<h1>What does training cost, and what does that cost buy?</h1>\n"
        '<p class="lead">A UNet learns to forecast the next hour of radar images (precipitation '
        "nowcasting: 13 frames of vertically integrated liquid, VIL, in; 12 out). This study "
        "trains networks of several sizes, in single and in mixed precision, on one or more "
        "processes, and sets beside each other the <b>time</b> and <b>energy</b> that training "
        f"took and the <b>skill</b> of the forecasts, as the study {_text(PAPER)} did.</p>\n"
        f"<p>{of} runs are completed. Every number here comes from the runs' folders; what was "
        f"not measured is called so.</p>\n<nav>"
        + "".join(f'<a href="#{target}">{words}</a>' for target, words in links)
        + "</nav>"
    )


def _machine(runs):
    names = (
        ("processor", "cpu"),
        ("cores", "cores"),
        ("GPUs", "gpus"),
        ("hosts", "hosts"),
        ("TensorFlow", "tensorflow"),
        ("Keras", "keras"),
        ("Horovod", "horovod"),
        ("code", "git_commit"),
    )
    rows = []
    for words, column in names:
        values = [run.row[column] for run in runs if run.row[column] is not None]
        if column == "git_commit":  # short, with the + of a changed checkout
            values = [each[:10] + ("+" if each.endswith("+") else "") for each in values]
        values = dict.fromkeys(values)
        shown = "; ".join(_text(value if value != "" else "none") for value in values)
        rows.append(f"<tr><th>{words}</th><td>{shown or _absent('not recorded')}</td></tr>")
    sources = dict.fromkeys(
        run.row["energy_source"] for run in runs if run.row["energy_source"] not in (None, "none")
    )
    energy = "; ".join(
        _text(each) + (" <b>(no sensor: an estimate)</b>" if each == "estimate" else "")
        for each in sources
    )
    rows.append(f"<tr><th>energy from</th><td>{energy or _absent(NOT_MEASURED)}</td></tr>")
    return f"<h2>Machine and software</h2>\n<table>{''.join(rows)}</table>"


def _claims(claims_made, skill):
    parts = [
        '<h2 id="claims">The paper\'s claims, and what was measured here</h2>\n'
        '<p class="note">Throughput is windows trained a second. Time to quality is seconds of '
        "training until a level of loss that both runs reached. The two differ where one learns "
        "less from each window. Brackets hold the least and the most of several seeds, or of "
        f"several cells.{_what_skill_is(skill)}</p>"
    ]
    for claim in claims_made:
        missing = "" if claim.is_measured else " missing"
        parts.append(
            f'<div class="claim{missing}"><h3>{_text(claim.title)}</h3>\n'
            f"<p>Paper: {_text(claim.paper)}</p>\n"
            f'<p class="answer">Here: {"<br>".join(map(_text, claim.answer.splitlines()))}</p>'
        )
        if claim.rows:
            parts.append(_plain_table(claim.rows))
        parts += [f'<p class="note">{_text(note)}</p>' for note in (*claim.missing, *claim.notes)]
        parts.append("</div>")
    return "\n".join(parts)


def _what_skill_is(skill):
    if skill is None:
        return ""
    if not skill.higher_is_better:
        return f" Skill is {_text(skill.name)}: lower is better."
    return (
        f" Skill is {_text(skill.name)}: of all pixels that were forecast or observed at or above "
        "a threshold, the share that was both (critical success index; 1 is perfect, 0 is none)."
    )


def _plain_table(rows):
    heads = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
    )


def _figures(figures):
    parts = ['<h2 id="figures">Figures</h2>\n<div class="figures">']
    for name, svg in figures.items():
        title, reading = CAPTIONS[name]
        parts.append(
            f'<figure><figcaption><b>{_text(title)}</b><br><span class="note">{_text(reading)}'
            f"</span></figcaption>\n{svg}</figure>"
        )
    parts.append("</div>")
    return "\n".join(parts)


def _table(runs, skill):
    heads = "".join(
        f'<th title="{_text(says)}" scope="col"><button>{_text(head)}</button></th>'
        for head, _, _, says in _SHOWN
    )
    ordered = sorted(runs, key=table.order)
    lines = "\n".join(f"<tr>{''.join(_cells(run, skill))}</tr>" for run in ordered)
    name = f" Skill is {_text(skill.name)}." if skill else ""
    return (
        '<h2 id="table">All runs</h2>\n'
        '<p class="note">Click a head to sort. An empty cell was not measured. table.csv beside '
        f"this file has more columns.{name}</p>\n{_compare(runs, skill)}\n"
        f'<div class="wide tall"><table id="runs"><thead><tr>{heads}</tr></thead>\n<tbody>\n'
        f"{lines}\n</tbody></table></div>{_aside(runs)}"
    )


_ASIDE = {  # head: (column, form)
    "skipped events": ("skipped_events", ",d"),
    "skipped steps": ("skipped_steps", ",d"),
    "lost s": ("lost_seconds", ",.1f"),
    "lost J": ("lost_joules", ",.0f"),
}


def _aside(runs):
    """Returns what runs skipped, and spent in vain; empty where none did."""
    concerned = [
        run
        for run in sorted(runs, key=table.order)
        if any(run.row[column] for column, _ in _ASIDE.values())
    ]
    if not concerned:
        return ""
    rows = []
    for run in concerned:
        row = {"run": run.name}
        for head, (column, form) in _ASIDE.items():
            value = run.row[column]
            row[head] = NOT_MEASURED if value is None else format(value, form)
            if value and column == "lost_joules" and run.row["energy_is_estimate"]:
                row[head] += ESTIMATE
        rows.append(row)
    return (
        "\n<h3>Skipped, and spent in vain</h3>\n"
        '<p class="note">Skipped events could not be read and were left out: the run learnt from '
        "fewer windows. Skipped steps overflowed in float16: their time and energy count, and they "
        "taught nothing. Lost is what was spent between a checkpoint and a kill and was trained "
        "again: it is in no other time or energy here, and comes on top.</p>\n" + _plain_table(rows)
    )


def _cells(run, skill):
    row = run.row
    mib = 2**20
    counted = row["counted_step_bytes"] and row["counted_step_bytes"] + row["counted_state_bytes"]
    peak = row["peak_gpu_bytes"] or row["peak_rss_bytes"]
    is_test = skill is not None and skill.columns[0].startswith("test")
    extra = {
        "run": run.name,
        "gflops": row["achieved_flops_per_second"] and row["achieved_flops_per_second"] / 1e9,
        "csi": skill.of(row) if skill and skill.higher_is_better else None,
        "mae": row["test_mae" if is_test else "val_mae"],
        "counted_mib": counted and counted / mib,
        "peak_mib": peak and peak / mib,
    }
    for _, column, form, _ in _SHOWN:
        value = extra[column] if column in extra else row[column]
        if value is None:
            yield '<td class="n" data-v=""></td>'
            continue
        text = format(value, form) if form else str(value)
        if column in ("joules_per_epoch", "mean_watts", "energy_source"):
            text += " (estimate)" if row["energy_is_estimate"] and column != "energy_source" else ""
        kind = ' class="n"' if form else ""
        yield f'<td{kind} data-v="{_text(value)}">{_text(text)}</td>'


def _compare(runs, skill):
    completed = sorted((run for run in runs if run.is_completed), key=table.order)
    if len(completed) < 2:
        return ""

    def options(chosen):
        for number, run in enumerate(completed):
            row = run.row
            rate = row["samples_per_second"]
            values = {
                "parameters": row["trainable_parameters"],
                "time": rate and 1 / rate,
                "energy": row["joules_per_sample"],
                "skill": skill and skill.of(row),
                "estimate": row["energy_is_estimate"] or None,
                "source": row["energy_source"],
            }
            data = "".join(
                f' data-{name}="{_text("" if value is None else value)}"'
                for name, value in values.items()
            )
            selected = " selected" if number == chosen else ""
            yield f"<option{data}{selected}>{_text(run.name)}</option>"

    sizes = [run.row["trainable_parameters"] for run in completed]
    ends = (sizes.index(min(sizes)), sizes.index(max(sizes)))
    first, second = ("".join(options(end)) for end in ends)
    return (
        f'<p id="compare">From <select aria-label="first run">{first}</select> to '
        f'<select aria-label="second run">{second}</select>: <output></output></p>'
    )


def _planner(planned):
    parts = [
        '<h2 id="planner">Planner</h2>\n<p class="note">Predicts cells that were not run, from the '
        "measured ones and from counted FLOPs and bytes: <code>experiments/plan.py</code>. How far "
        "off it is was measured by predicting each cell from the others (leave one out).</p>"
    ]
    rows = []
    for name, words in planner.WORDS.items():
        errors = planned.errors[name]
        said = errors.text() if errors else f"{NOT_MEASURED}: {planned.why_no_errors(name)}"
        rows.append({"quantity": words, "error of leaving one out": said})
    parts.append(_plain_table(rows))
    nexts = planned.next_sizes()
    if nexts:
        parts.append(
            "<p>Its predictions for the sizes next to those that were run, everything else as in "
            "the largest cell:</p>"
        )
        parts.append(_plain_table([planner.text_row(each) for each in nexts]))
        share = nexts[0].seconds.share if nexts[0].seconds else None
        if share:
            parts.append(
                f'<p class="note">Brackets: between them lay {share:.0%} of the truths when one '
                "cell was left out. Sizes beyond the measured ones are extrapolated, and "
                "may be further off.</p>"
            )
    if planned.left_out:
        parts.append(
            f'<p class="note">{planned.left_out} cells of other machines are not in it.</p>'
        )
    if planned.energy_note:
        parts.append(f'<p class="note">{_text(planned.energy_note)}</p>')
    return "\n".join(parts)


def _missing(runs, claims_made, not_drawn, unrecorded):
    lines = [
        f"<b>{_text(_title(name))}</b> (figure): {_text(why)}" for name, why in not_drawn.items()
    ]
    lines += [
        f"<b>{_text(claim.title)}</b> (claim): {_text(claim.answer)}"
        for claim in claims_made
        if not claim.is_measured
    ]
    lines += [
        f"<b>Energy</b> of {_plural(len(names))}: {_text(reason)}"
        for reason, names in _by_reason(runs).items()
    ]
    partly = [
        run
        for run in runs
        if run.row["energy_joules"] is not None and run.row["joules_per_epoch"] is None
    ]
    if partly:
        lines.append(
            f"<b>Energy of an epoch</b> of {_plural(len(partly))}: no epoch's was read for "
            f"{table.ENOUGH_COVERAGE:.0%} of its time"
        )
    seeds = [len(cell.runs) for cell in table.cells(runs)]
    if seeds and max(seeds) == 1:
        lines.append("<b>The spread over seeds</b>: no cell has several")
    if not any(run.row["test_mse"] is not None for run in runs):
        lines.append(
            "<b>Scores of the test set</b> beside persistence and extrapolation: no run was "
            "evaluated with experiments/evaluate.py"
        )
    lines += [
        f"<b>{_text(run.name)}</b> is in no comparison: it went on with another number of processes"
        for run in runs
        if run.is_completed and run.changed_processes
    ]
    lines += [
        f"<b>{_text(path)}</b> {_UNRECORDED[runs_now]}" for path, runs_now in unrecorded.items()
    ]
    body = "".join(f"<li>{line}</li>" for line in lines) or "<li>nothing</li>"
    return f'<h2 id="missing">What was not measured, and why</h2>\n<ul>{body}</ul>'


def _title(name):
    # A picture that is no figure of the page, such as one run's trace of power, has no caption.
    return CAPTIONS[name][0] if name in CAPTIONS else name


_UNRECORDED = {
    True: "is running: it has no record yet",
    False: "was killed: it left no record, and nobody trains in it; --resume goes on with it",
    None: "left no record: it runs still, or was killed",
}


def _by_reason(runs):
    found = {}
    for run in runs:
        if run.row["energy_joules"] is None and run.is_completed:
            found.setdefault(run.row["energy_reason"], []).append(run.name)
    return found


def _plural(number):
    return f"{number} run" + ("" if number == 1 else "s")


def _failed(runs):
    failed = [run for run in runs if not run.is_completed]
    if not failed:
        return '<h2 id="failed">Failed cells</h2>\n<p>None.</p>'
    rows = [
        {
            "run": run.name,
            "status": run.row["status"],
            "reason": run.row["reason"] or "not recorded",
            "epochs done": f"{run.row['epochs_done']} of {run.row['epochs']}",
        }
        for run in failed
    ]
    return (
        '<h2 id="failed">Failed cells</h2>\n<p>They are data too: a cell that does not fit is an '
        f"answer. No claim and no figure of cost counts them.</p>\n{_plain_table(rows)}"
    )


def _repeat(runs, command):
    commands = "\n".join(train_command(run) for run in sorted(runs, key=table.order))
    return (
        '<h2 id="repeat">How to repeat it</h2>\n<p>This report, from the run folders:</p>\n'
        f"<pre>{_text(command)}</pre>\n"
        f"<details><summary>The training of each run</summary>\n<pre>{_text(commands)}</pre>"
        "</details>\n<p>Each run's config.json and environment.json say the rest.</p>"
    )


def train_command(run):
    """Returns the command line that trains a Run again."""
    config = {k: v for k, v in run.config.items() if k not in ("run_dir", "resume")}
    words = ["python", "experiments/train.py", *as_arguments(config)]
    if (run.row["world_size"] or 1) > 1:
        words = ["horovodrun", "-np", str(run.row["world_size"]), *words]
    return shlex.join(words)


def _text(value):
    return html.escape(str(value), quote=True)


def _absent(words):
    return f'<span class="absent">{_text(words)}</span>'
