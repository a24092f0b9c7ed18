"""Makes the table, the figures and the report of finished runs, from run folders alone.

    python experiments/plot_figures.py runs/

writes to figures/: table.csv, one row a run; report.html, the whole study in one file; a figure for
each question (training_curves, cost_by_size, mixed_speedup, skill_by_cost, scaling, roofline,
memory_by_size, power_traces), and of up to a dozen runs that measured power a power_<run> each; all
as .pdf and .png. Prints what the runs say of the paper's claims.
"""

import shlex
import sys
import textwrap
from pathlib import Path

from keras_nowcast.config import Parser
from keras_nowcast.errors import InputError
from keras_nowcast.process import run_script


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="default: %(default)s")
    arguments = parser.parse_args(sys.argv[1:])

    from keras_nowcast import records
    from keras_nowcast.study import claims, planner, table

    found = records.read_runs(arguments.runs)
    runs = table.read(found)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be written. Received: {arguments.out} ({error})."
        ) from None
    table.write_table(runs, arguments.out / "table.csv")
    answers = claims.claims(runs)
    drawn, not_drawn = draw_all(runs, found, arguments.out)
    write_report(runs, answers, drawn, not_drawn, planner.Planner(runs), arguments)
    for claim in answers:
        print(textwrap.fill(claim.title, 100))
        indent = {"initial_indent": "    ", "subsequent_indent": "    "}
        for line in claim.answer.splitlines():
            print(textwrap.fill(line, 100, **indent))
        print()
    for line in dict.fromkeys(line for claim in answers for line in claim.missing):
        print(line)
    for name, why in not_drawn.items():
        print(f"{name} is not drawn: {why}")
    print(
        f"{len(runs)} runs: table.csv, report.html and {len(drawn)} figures written to "
        f"{arguments.out}"
    )


def draw_all(runs, found, folder):
    """Writes all figures there are data for.

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
            f"{len(traced)} runs have a trace of power, and {style.MANY_RUNS} are drawn each by "
            "itself; give fewer run folders"
        )
        return drawn, not_drawn
    names = [runs[i].name for i in traced]
    for number, i in enumerate(traced):
        again = names[:number].count(names[number])  # runs of one name in several folders
        name = f"power_{names[number]}" + (f"-{again + 1}" if again else "")
        style.write_figure(power.power_trace(runs[i], found[i][1]), folder, name)
    return drawn, not_drawn


def write_report(runs, answers, drawn, not_drawn, planned, arguments):
    """Writes report.html, whole."""
    from keras_nowcast import records
    from keras_nowcast.files import written_whole
    from keras_nowcast.report import html

    unrecorded = {run.path: run.is_running() for run in records.unrecorded_runs(arguments.runs)}
    command = shlex.join(
        ["python", "experiments/plot_figures.py", *arguments.runs, "--out", str(arguments.out)]
    )
    page = html.page(runs, answers, drawn, not_drawn, planned, unrecorded, command)
    with written_whole(arguments.out / "report.html") as beside:
        beside.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
