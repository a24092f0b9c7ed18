"""Prints the increase of size, time, energy and skill from one run to another.

    python experiments/compare.py runs/small runs/large

Time and energy are per trained window, without validation and setup, so that runs of different
length can be compared. Each is from one run: plot_figures.py shows the spread over seeds.
"""

import sys

from keras_nowcast.config import Parser
from keras_nowcast.errors import InputError
from keras_nowcast.process import run_script


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("first", help="a run folder")
    parser.add_argument("second", help="another run folder")
    arguments = parser.parse_args(sys.argv[1:])

    from keras_nowcast import records
    from keras_nowcast.study import compare, table

    runs = table.read([only_run(records, path) for path in (arguments.first, arguments.second)])
    skill = table.choose_skill(runs)
    first, second = (run.row for run in runs)
    increases = compare.increases(first, second, skill)
    print(f"{runs[0].name} to {runs[1].name}:")
    for name, words in (
        ("parameters", "trainable parameters"),
        ("time", "time"),
        ("energy", "energy"),
    ):
        print(f"  {words}: {told(increases[name])}{remark(name, first, second)}")
    if skill is None or increases["skill_difference"] is None:
        print("  skill: not measured here, or not by the same score")
        return
    values = f"{skill.of(first):.4f} to {skill.of(second):.4f}"
    print(f"  {skill.name}: {told(increases['skill'])} ({values})")


def only_run(records, path):
    """Returns the one (RunFolder, record) of a path.

    Raises:
      InputError: it is not the folder of one run.
    """
    found = records.read_runs([path])
    if len(found) > 1:
        raise InputError(
            f"`first` and `second` must each be a run folder. Received: {path}, with "
            f"{len(found)} runs; give one of them."
        )
    return found[0]


def told(percent):
    """Returns '+63.22%'."""
    if percent is None:
        return "not measured here"
    return f"{percent:+,.2f}%" if abs(percent) < 100 else f"{percent:+,.0f}%"


def remark(name, first, second):
    """Returns the note on an increase: its sensor, that it is an estimate, or why it is absent."""
    if name != "energy":
        return ""
    from keras_nowcast.study.compare import ESTIMATE

    reason = first["energy_reason"] or second["energy_reason"]
    if reason is not None:
        return f" ({reason})"
    sources = first["energy_source"], second["energy_source"]
    if sources[0] != sources[1]:
        return f" (joules of different sensors, {' and '.join(sources)}, cannot be compared)"
    return ESTIMATE if sources[0] == "estimate" else f" (by {sources[0]})"


if __name__ == "__main__":
    run_script(main)
