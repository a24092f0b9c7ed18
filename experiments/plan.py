"""Predicts time, energy and memory of models that were not trained, from runs and counted cost.

    python experiments/plan.py runs/                                     # sizes nearby
    python experiments/plan.py runs/ --depth 3 4 5 --filters 16 32 --epochs 50 --max-hours 8
    python experiments/plan.py runs/ --reach 0.35                        # the cheapest run

Without settings such as --depth, it predicts sizes between and just beyond those of the completed
runs. Otherwise it predicts each combination of the given values; other settings are those of the
completed runs. Each prediction has a 95% interval, which widens with the distance from the measured
cells. The last lines are the errors of predicting each measured cell from the others, and the
largest ones from the smaller ones.
"""

import sys

from keras_nowcast.errors import InputError
from keras_nowcast.flags import Parser
from keras_nowcast.process import run_script

LISTS = {  # flag: (type, argument of Planner.candidates, help)
    "depth": (int, "depths", "encoder levels (default: those of the runs)"),
    "filters": (int, "filters", "filters of the first level (default: those of the runs)"),
    "precision": (str, "precisions", "precisions of the layers (default: those of the runs)"),
    "np": (int, "processes", "numbers of processes (default: that of the largest run)"),
}
SAME = {
    "grid": (int, "pixels along a side"),
    "epochs": (int, "epochs to train"),
    "batch_per_replica": (int, "windows in the batch of one process"),
    "data": (str, "folder of a data set that one of the runs was trained on"),
}
BUDGETS = {  # flag: (quantity, unit of the flag, units of the quantity in it, what is limited)
    "max_joules": ("joules", "J", 1, "training takes at most this many joules"),
    "max_hours": ("wall_seconds", "hours", 3600, "process runs for at most this many hours"),
    "max_memory_gib": ("memory_bytes", "GiB", 2**30, "process takes at most this many GiB"),
}


def main():
    arguments = build_parser().parse_args(sys.argv[1:])
    check(arguments)

    from keras_nowcast import records
    from keras_nowcast.study import planner, table

    found, left_out = records.find_runs(arguments.runs)
    for line in table.left_out_lines(left_out, len(found)):
        print(line, file=sys.stderr)
    runs = table.read(found)
    if arguments.reach is not None:
        print_reaching(runs, arguments.reach)
        return
    planned = planner.Planner(runs)
    predictions = predictions_asked(planned, arguments)
    print_predictions(predictions)
    for flag in BUDGETS:
        most = getattr(arguments, flag)
        if most is not None:
            print_largest(predictions, flag, most)
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
            help=words,
        )
    for name, (kind, words) in SAME.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, help=f"{words} (default: as in the largest run)")
    for name, (_, _, _, words) in BUDGETS.items():
        flag = "--" + name.replace("_", "-")
        text = f"name the largest model whose {words}"
        parser.add_argument(flag, type=float, help=text)
    parser.add_argument(
        "--reach",
        type=float,
        metavar="SKILL",
        help="list the measured runs that reached this skill, cheapest first: validation CSI, mean "
        "over thresholds, or validation loss if no CSI is known",
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
    """Returns the requested Predictions, or those of sizes next to the measured ones."""
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
            "`--depth` must suit the grid, which is halved at each level. Received: "
            f"{' '.join(map(str, arguments.depth))}; give smaller depths, or another --grid."
        )
    return predictions


def print_predictions(predictions):
    """Prints one row per prediction, with intervals in parentheses."""
    from keras_nowcast.study.planner import text_row
    from keras_nowcast.text_table import aligned

    rows = [text_row(each) for each in predictions]
    header = list(rows[0])
    lines = [header, *([row[name] for name in header] for row in rows)]
    print(aligned(lines, left=len(header)))
    for reason in dict.fromkeys(each for row in predictions for each in row.reasons.values()):
        print(f"not predicted: {reason}")
    print()


def print_largest(predictions, flag, most):
    """Prints the largest model within a budget, by prediction and by the end of its interval."""
    from keras_nowcast.study import planner

    name, unit, factor, _ = BUDGETS[flag]
    likely, sure = planner.largest_within(predictions, name, most * factor)
    print(f"{planner.WORDS[name]}, at most {most:g} {unit}:")
    if likely is None:
        print("  none of these models is predicted to be within it")
    else:
        print(f"  largest by its prediction:                {described(likely, name)}")
    if sure is not None:
        print(f"  largest by the upper end of its interval: {described(sure, name)}")
    elif likely is not None:
        print("  none is within it by the upper end of its interval")
    print()


def described(prediction, name):
    """Returns one line on a model and the quantity `name` of it."""
    from keras_nowcast.study import compare, planner

    row = planner.text_row(prediction)
    processes = compare.processes(prediction.setting["world_size"])
    note = f"; {row['note']}" if row["note"] else ""
    return (
        f"{row['model']}, {row['precision']}, {processes}, "
        f"{row['parameters']} parameters: {row[planner.UNITS[name][0]]}{note}"
    )


def print_total(predictions):
    """Prints the predicted time of all runs, one after another."""
    from keras_nowcast.study import planner

    total_s, without = planner.total(predictions, "wall_seconds")
    if total_s is None:
        print(f"all {len(predictions)} runs, one after another: not predicted")
        return
    missing = f" (except {without} without a prediction)" if without else ""
    in_minutes = total_s.value < 3600
    time = total_s.scaled(1 / (60 if in_minutes else 3600)).text("min" if in_minutes else "hours")
    print(
        f"all {len(predictions)} runs, one after another{missing}: {time}; writing checkpoints is "
        "not included"
    )


def print_errors(planned):
    """Prints the errors of the planner on the measured cells."""
    from keras_nowcast.study import planner

    print("", *planner.error_lines(planned), sep="\n")
    if planned.energy_note:
        print(planned.energy_note)


def print_reaching(runs, level):
    """Prints the cost of each measured run when it reached a skill, cheapest first."""
    from keras_nowcast.study import compare, planner, table

    skill = table.choose_skill(runs)
    if skill is None:
        raise InputError(
            "`runs` must have a completed run with validation scores. Received: none; train a run "
            "to its end first."
        )
    found = planner.reaching(runs, skill, level)
    if not found:
        scores = [skill.of(row) for run in runs if run.is_completed for row in run.epochs]
        known = [score for score in scores if score is not None]
        best = max(known) if skill.higher_is_better else min(known)
        print(f"no measured run reached {level:g} in {skill.name}; the best was {best:.4f}")
        return
    cost, why = planner.cost_of_reaching(found)
    by = "energy" if cost == "joules" else f"time of training, because {why}"
    print(f"measured runs that reached {level:g} in {skill.name}, cheapest first by {by}:")
    for each in found:
        source = each.run.row["energy_source"]
        mark = compare.ESTIMATE if each.run.row["energy_is_estimate"] else f" by {source}"
        joules = "energy not measured here" if each.joules is None else f"{each.joules:.4g} J{mark}"
        print(
            f"  {each.run.name}: {each.seconds:.3g} s of training, {joules}, epoch {each.epoch} of "
            f"{each.run.row['epochs_done']}; after the last {each.last:.4f}"
        )
    print(
        "The first step of each start, which includes compilation, counts with the mean time and "
        "energy of the other steps; setup and validation are not included."
    )
    print("Skill is not predicted for models that were not run.")


if __name__ == "__main__":
    run_script(main)
