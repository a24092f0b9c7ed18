"""Keeps the numbers of the worked example, whose run folders are not part of the repository.

    python experiments/sweep.py --preset two_cores --data data/synthetic96
    python benchmarks/two_cores.py runs/two_cores

Trains nothing. Writes one row per completed run, the columns of the table in docs/two_cores.md, and
in the JSON file also the text of the claims and the errors of the planner.
"""

from flags import build_parser
from result_files import write_results

from keras_nowcast import records
from keras_nowcast.study import claims, planner, table

MIB = 2**20


def main():
    parser = build_parser(__doc__)
    parser.add_argument("runs", nargs="+", help="folders of the sweep")
    parser.add_argument("--note", default="preset two_cores", help="what was run, in one line")
    parser.add_argument("--variant", help="suffix of the result files")
    arguments = parser.parse_args()
    runs = table.read(records.read_runs(arguments.runs))
    completed = sorted((run for run in runs if run.is_completed), key=table.order)
    skill = table.choose_skill(runs)
    printed = [f"{each.title}: {each.answer}" for each in claims.claims(runs)]
    printed += [each.strip() for each in planner.error_lines(planner.Planner(runs))]
    write_results(
        "two_cores",
        [row(run, skill) for run in completed],
        f"{arguments.note}; seconds are medians over the epochs of a run, scores are of the last "
        f"epoch; the CSI is: {skill.name}",
        arguments.variant,
        raw={"printed": printed},
    )


def row(run, skill):
    """Returns the row of one run."""
    values = run.row
    return {
        "depth": values["depth"],
        "filters": values["filters"],
        "precision": values["precision"],
        "processes": values["world_size"],
        "seed": values["seed"],
        "trainable_parameters": values["trainable_parameters"],
        "seconds_per_epoch": values["seconds_per_epoch"],
        "samples_per_second": values["samples_per_second"],
        "val_loss": values["val_loss"],
        "val_csi": skill.of(values),
        "peak_rss_mib": values["peak_rss_bytes"] / MIB,
    }


if __name__ == "__main__":
    main()
