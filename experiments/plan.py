"""Predicts what untrained models would take, from finished runs and counted cost.

    python experiments/plan.py runs/                                     # sizes nearby
    python experiments/plan.py runs/ --depth 3 4 5 --filters 16 32 --epochs 50 --max-hours 8
    python experiments/plan.py runs/ --reach 0.35                        # cheapest that reached it

Flags that are not given take their values from the largest finished run. Each prediction has an
interval; the last lines show the leave-one-out error of the measured cells.
"""

import sys

from keras_nowcast.config import Parser
from keras_nowcast.errors import InputError
from keras_nowcast.process import run_script

LISTS = {  # flag: (type, argument of Planner.candidates, help)
    "depth": (int, "depths", "encoder levels"),
    "filters": (int, "filters", "filters of the first level"),
    "precision": (str, "precisions", "precisions of the layers"),
    "np": (int, "processes", "numbers of processes"),
}
SAME = {
    "grid": (int, "pixels along a side"),
    "epochs": (int, "epochs to train"),
    "batch_per_replica": (int, "per-replica batch size"),
    "data": (str, "root of a data set that one of the runs was trained on"),
}
BUDGETS = {  # flag: (quantity, its units in one of the flag, help)
    "max_joules": ("joules", 1, "joules of training"),
    "max_hours": ("wall_seconds", 3600, "hours of the process"),
    "max_memory_gib": ("memory_bytes", 2**30, "GiB of memory per process"),
}


def main():
    arguments = build_parser().parse_args(sys.argv[1:])
    check(arguments)

    from keras_nowcast import records
    from keras_nowcast.study import planner, table

    runs = table.read(records.read_runs(arguments.runs))
    if arguments.reach is not None:
        print_reaching(runs, arguments.reach)
        return
    planned = planner.Planner(runs)
    predictions = predictions_asked(planned, arguments)
    print_predictions(predictions)
    for flag, (name, factor, _) in BUDGETS.items():
        most = getattr(arguments, flag)
        if most is not None:
            print_largest(predictions, name, most * factor)
    print_total(predictions)
    print_errors(planned)


def build_parser():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    for name, (kind, _, words) in LISTS.items():
        parser.add_argument(
            f"--{name}",
            type=kind,
            nargs="+",
            metavar=name.upper(),
            help=f"{words} (default: those of the runs and the next sizes)",
        )
    for name, (kind, words) in SAME.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, help=f"{words} (default: as in the largest run)")
    for name, (_, _, words) in BUDGETS.items():
        flag = "--" + name.replace("_", "-")
        text = f"also name the largest model within N {words}"
        parser.add_argument(flag, type=float, help=text)
    parser.add_argument(
        "--reach",
        type=float,
        metavar="SKILL",
        help="name the measured runs that reached this skill, cheapest first: mean validation CSI "
        "over thresholds, or the validation loss if no CSI is known",
    )
    return parser


def check(arguments):
    """Raises InputError if a flag breaks its rule."""
    for name in (*BUDGETS, "np"):
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not 0 < value < float("inf"):
                flag = name.replace("_", "-")
                raise InputError(f"`--{flag}` must be above 0. Received: {value}.")


def predictions_asked(planned, arguments):
    """Returns the requested Predictions, by default of the sizes next to those that were run."""
    lists = {
        argument: getattr(arguments, flag)
        for flag, (_, argument, _) in LISTS.items()
        if getattr(arguments, flag) is not None
    }
    same = {name: getattr(arguments, name) for name in SAME if getattr(arguments, name) is not None}
    if not lists and not same:
        return planned.next_sizes()
    predictions = [planned.predict(*each) for each in planned.candidates(**lists, **same)]
    if not predictions:
        raise InputError(
            "`--depth` must suit the grid, which each level halves. Received: "
            f"{' '.join(map(str, arguments.depth))}; give smaller depths, or another --grid."
        )
    return predictions


def print_predictions(predictions):
    """Prints one line per model, with intervals in brackets."""
    from keras_nowcast.study.planner import text_row
    from keras_nowcast.text_table import aligned

    rows = [text_row(each) for each in predictions]
    header = list(rows[0])
    lines = [header, *([row[name] for name in header] for row in rows)]
    print(aligned(lines, left=len(header)))
    for reason in dict.fromkeys(each for row in predictions for each in row.reasons.values()):
        print(f"not predicted: {reason}")
    print()


def print_largest(predictions, name, most):
    """Prints the largest model within a budget: by its prediction, and by its complete interval."""
    from keras_nowcast.study import planner

    words, unit, factor = planner.UNITS[name]
    likely, sure = planner.largest_within(predictions, name, most)
    print(f"{planner.WORDS[name]}, at most {most * factor:g} {unit}:")
    if likely is None:
        print("  none of these models is predicted to be within it")
    else:
        print(f"  the largest by its prediction:          {described(likely, name)}")
    if sure is not None:
        print(f"  the largest with its complete interval: {described(sure, name)}")
    elif likely is not None:
        print("  none is within it with its complete interval")
    print()


def described(prediction, name):
    """Returns a line on a model and what it takes."""
    from keras_nowcast.study import planner

    row = planner.text_row(prediction)
    note = f"; {row['note']}" if row["note"] else ""
    return (
        f"{row['model']}, {row['precision']}, {row['processes']} process(es), "
        f"{row['parameters']} parameters: {row[planner.UNITS[name][0]]}{note}"
    )


def print_total(predictions):
    """Prints how long all of them would take, one after the other."""
    from keras_nowcast.study import planner

    whole, without = planner.total(predictions, "wall_seconds")
    if whole is None:
        print(f"all {len(predictions)} one after the other: not predicted")
        return
    missing = f", without {without} that could not be predicted" if without else ""
    hours = whole.scaled(1 / 3600).text("hours")
    print(
        f"all {len(predictions)} one after the other{missing}: {hours}, without writing checkpoints"
    )


def print_errors(planned):
    """Prints the leave-one-out errors of the measured cells."""
    from keras_nowcast.study import planner

    print("\nleave-one-out errors (each measured cell predicted from the others):")
    for name, words in planner.WORDS.items():
        errors = planned.errors[name]
        said = errors.text() if errors else f"not measured here: {planned.why_no_errors(name)}"
        print(f"  {words}: {said}")
    if planned.energy_note:
        print(planned.energy_note)


def print_reaching(runs, level):
    """Prints the cost of the measured runs when they reached a skill, cheapest first."""
    from keras_nowcast.study import compare, planner, table

    skill = table.validation_skill(runs)
    if skill is None:
        raise InputError("`runs` must be completed runs with a validation. Received: none scored.")
    found = planner.reaching(runs, skill, level)
    if not found:
        scores = [skill.of(row) for run in runs if run.is_completed for row in run.epochs]
        known = [score for score in scores if score is not None]
        best = max(known) if skill.higher_is_better else min(known)
        print(f"no measured run reached {skill.name} of {level:g}; the best was {best:.4f}")
        return
    cost, why = planner.cost_of_reaching(found)
    by = "energy" if cost == "joules" else f"time of training, since {why}"
    print(f"{skill.name} of {level:g}, as measured, cheapest first by {by}:")
    for each in found:
        source = each.run.row["energy_source"]
        told = compare.ESTIMATE if each.run.row["energy_is_estimate"] else f" by {source}"
        joules = "energy not measured here" if each.joules is None else f"{each.joules:.4g} J{told}"
        print(f"  {each.run.name}: {each.seconds:.3g} s of training, {joules}, epoch {each.epoch}")
    print(
        "The first step of each start includes compilation and is counted at the rate of the other "
        "steps. Setup and validation are excluded."
    )
    print("Skill is not predicted for models that were not run.")


if __name__ == "__main__":
    run_script(main)
