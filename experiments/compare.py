"""Prints by how many percent parameters, time, energy and skill increase from one run to another.

    python experiments/compare.py runs/small runs/large

The paper states its results in this form. Time and energy are per window of training, excluding
validation and setup, so that runs of different lengths can be compared. All values are of single
runs: plot_figures.py has the spread over seeds.
"""

import sys

from keras_nowcast.errors import InputError
from keras_nowcast.flags import Parser
from keras_nowcast.process import run_script


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("first", help="a run folder")
    parser.add_argument("second", help="the run folder to compare it with")
    arguments = parser.parse_args(sys.argv[1:])

    from keras_nowcast import records
    from keras_nowcast.study import compare, table

    runs = table.read([only_run(records, arguments, name) for name in ("first", "second")])
    skill = table.choose_skill(runs)
    first, second = (run.row for run in runs)
    increases = compare.increases(first, second, skill)
    print(f"{runs[0].name} to {runs[1].name}:")
    for name, words in (
        ("parameters", "trainable parameters"),
        ("time", "training time per window"),
        ("energy", "energy per window"),
    ):
        print(f"  {words}: {percent_text(increases[name])}{remark(name, first, second)}")
    if skill is None or increases["skill_difference"] is None:
        print("  skill: not measured here, or not with the same score")
        return
    values = f"{skill.of(first):.4f} to {skill.of(second):.4f}"
    print(f"  {skill.name}: {percent_text(increases['skill'])} ({values})")


def only_run(records, arguments, name):
    """Returns the (RunFolder, record) of the only run of the path that an argument names.

    Raises:
      InputError: it is not the folder of one run.
    """
    path = getattr(arguments, name)
    found, left_out = records.find_runs([path], name)
    if len(found) + len(left_out) > 1:
        raise InputError(
            f"`first` and `second` must each be a run folder. Received: {path}, with "
            f"{len(found) + len(left_out)} runs; give one of them."
        )
    return found[0]


def percent_text(percent):
    """Returns an increase as text, for example '+63.22%'."""
    if percent is None:
        return "not measured here"
    return f"{percent:+,.2f}%" if abs(percent) < 100 else f"{percent:+,.0f}%"


def remark(name, first, second):
    """Returns the note on an increase: its sensor, that it is an estimate, or why there is none."""
    if name != "energy":
        return ""
    from keras_nowcast.study.compare import ESTIMATE

    reason = first["energy_reason"] or second["energy_reason"]
    if reason is not None:
        return f" ({reason})"
    sources = first["energy_source"], second["energy_source"]
    if sources[0] != sources[1]:
        return f" (joules of different sensors cannot be compared: {' and '.join(sources)})"
    return ESTIMATE if sources[0] == "estimate" else f" (by {sources[0]})"


if __name__ == "__main__":
    run_script(main)
