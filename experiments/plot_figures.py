"""Writes the table, the figures and the report of finished runs, from their run folders only.

    python experiments/plot_figures.py runs/

Writes to figures/, or to --out:

    table.csv      one row per run
    report.html    the whole study in one file
    *.pdf, *.png   training_curves, cost_by_size, mixed_speedup, skill_by_cost, scaling, roofline,
                   memory_by_size and power_traces, each if the runs have its data; and one
                   power_<run> per run that measured power, unless more than 12 did

Prints how the runs answer the paper's claims.
"""

import shlex
import sys
import textwrap
from pathlib import Path

from keras_nowcast.errors import InputError
from keras_nowcast.flags import Parser
from keras_nowcast.process import run_script
from keras_nowcast.study.verdicts import MARGIN_PERCENT


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders that contain them")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN_PERCENT,
        metavar="PERCENT",
        help="two skills are equivalent if they are shown to differ by less than this percentage "
        "of float32's score (default: %(default)g)",
    )
    arguments = parser.parse_args(sys.argv[1:])
    if not 0 < arguments.margin < 100:
        raise InputError(
            f"`--margin` must be a percentage between 0 and 100. Received: {arguments.margin:g}; "
            "give the difference in skill that does not matter to you, such as 2."
        )

    from keras_nowcast import records
    from keras_nowcast.study import claims, planner, table

    found, left_out = records.find_runs(arguments.runs)
    for line in table.left_out_lines(left_out, len(found)):
        print(line, file=sys.stderr)
    runs = table.read(found)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be written. Received: {arguments.out} ({error}); "
            "give another path."
        ) from None
    table.write_table(runs, arguments.out / "table.csv")
    answers = claims.claims(runs, arguments.margin)
    drawn, not_drawn = draw_all(runs, found, arguments.out)
    write_report(runs, answers, drawn, not_drawn, planner.Planner(runs), left_out, arguments)
    print_answers(answers)
    for name, why in not_drawn.items():
        print(f"{name} is not drawn: {why}")
    without = f" ({len(left_out)} left out)" if left_out else ""
    print(
        f"{len(runs)} runs{without}: table.csv, report.html and {len(drawn)} figures written to "
        f"{arguments.out}"
    )


def print_answers(answers):
    """Prints each claim with its answer, then what the answers lack."""
    for claim in answers:
        print(textwrap.fill(claim.title, 100))
        indent = {"initial_indent": "    ", "subsequent_indent": "    "}
        for line in claim.answer.splitlines():
            print(textwrap.fill(line, 100, **indent))
        print()
    for line in dict.fromkeys(line for claim in answers for line in claim.missing):
        print(line)


def draw_all(runs, found, folder):
    """Writes every figure that the runs have data for.

    Returns:
      ({name: SVG}, {name: why it was not drawn}).
    """
    from keras_nowcast.report import figures, power, style

    drawn, not_drawn = {}, {}
    for name, drawing in figures.OF_ALL_RUNS.items():
        try:
            drawn[name] = style.write_figure(drawing.draw(runs), folder, name)
        except style.NotDrawn as why:
            not_drawn[name] = str(why)
    traced = [i for i, run in enumerate(runs) if run.devices]
    if len(traced) > style.MANY_RUNS:
        not_drawn["power_<run>"] = (
            f"{len(traced)} runs have a power trace, and at most {style.MANY_RUNS} get a "
            "separate figure; give fewer run folders"
        )
        return drawn, not_drawn
    names = [runs[i].name for i in traced]
    for number, i in enumerate(traced):
        again = names[:number].count(names[number])  # runs in several folders can have one name
        name = f"power_{names[number]}" + (f"-{again + 1}" if again else "")
        style.write_figure(power.power_trace(runs[i], found[i][1]), folder, name)
    return drawn, not_drawn


def write_report(runs, answers, drawn, not_drawn, planned, left_out, arguments):
    """Writes report.html atomically."""
    from keras_nowcast import records
    from keras_nowcast.files import written_whole
    from keras_nowcast.report import html

    unrecorded = {run.path: run.is_running() for run in records.unrecorded_runs(arguments.runs)}
    words = ["python", "experiments/plot_figures.py", *arguments.runs, "--out", str(arguments.out)]
    if arguments.margin != MARGIN_PERCENT:
        words += ["--margin", f"{arguments.margin:g}"]
    command = shlex.join(words)
    page = html.page(runs, answers, drawn, not_drawn, planned, unrecorded, left_out, command)
    with written_whole(arguments.out / "report.html") as beside:
        beside.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
