"""What skill does a short training on two cores buy on real radar, over seeds and precisions?

    python benchmarks/real_radar.py --data RADAR --runs runs/real_radar

For each seed and precision: trains the preset synthetic_start, continues with real_radar, and
scores the result on the test events, next to the baselines. Finished runs in --runs are not
repeated. Writes two tables, with MSE in VIL codes squared:

- skill, of the precision named first: the median over seeds (lowest to highest), the baselines,
  and the number of seeds that are better than each. "surely" counts those whose 95% interval of the
  difference, over the test events, excludes 0.
  The JSON file also has the scores of every seed, at all thresholds.
- precision: the second precision minus the first, as the mean over seeds with the 95% interval of
  Student's t of the paired differences.
"""

import csv
import statistics
import subprocess
import sys
from pathlib import Path

from flags import build_parser
from result_files import write_results

from keras_nowcast.records import RunFolder
from keras_nowcast.study.compare import mean_difference

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
LEADS = (5, 10, 15, 20, 30, 45, 60)
BASELINES = ("persistence", "extrapolation", "sprog", "anvil")
SCORES = (
    ("mse", 16),
    ("csi", 16),
    ("csi", 74),
)  # with a threshold, on which the MSE does not depend
BETTER = {"mse": -1, "csi": 1}  # the sign of a difference that is an improvement


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--data", required=True, help="root of the radar in SEVIR's layout")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="runs per precision")
    parser.add_argument(
        "--precision", nargs="+", default=["mixed_bfloat16", "float32"], help="policies to compare"
    )
    arguments = parser.parse_args()
    if arguments.seeds < 2 and len(arguments.precision) > 1:
        parser.error(
            f"`--seeds` must be at least 2 to compare precisions. Received: {arguments.seeds}; "
            "choose more seeds or one --precision"
        )
    for seed in range(arguments.seeds):
        for precision in arguments.precision:
            make(arguments, precision, seed)
    first, *others = arguments.precision
    folders = {
        each: [folder(arguments.runs, each, seed) for seed in range(arguments.seeds)]
        for each in arguments.precision
    }
    note = f"{arguments.seeds} seeds, median (lowest to highest); {trained(folders[first])}"
    raw = [
        {"precision": precision, "seed": seed, **row}
        for precision, of_seeds in folders.items()
        for seed, each in enumerate(of_seeds)
        for row in kept_scores(each)
    ]
    write_results("real_radar", skill_rows(folders[first]), f"{first}, {note}", raw=raw)
    for other in others:
        rows = precision_rows(folders[first], folders[other])
        write_results("real_radar", rows, f"{other} minus {first}; {note}", "precision")


def folder(runs, precision, seed):
    return runs / f"{precision}-{seed}"


def make(arguments, precision, seed):
    """Trains and scores one seed; skips the parts that are finished."""
    start = folder(arguments.runs, f"start-{precision}", seed)
    run = folder(arguments.runs, precision, seed)
    chosen = ["--precision", precision, "--seed", str(seed), "--power-source", "none"]
    train(start, ["--preset", "synthetic_start", *chosen])
    further = ["--preset", "real_radar", "--data", arguments.data, "--start-from", str(start)]
    train(run, [*further, *chosen])
    if not (run / "scores.csv").exists():
        script("evaluate.py", [str(run)])


def train(run_dir, words):
    record = RunFolder(run_dir).read_record()
    if record is not None and record["status"] == "completed":
        return
    resume = ["--resume"] if (run_dir / "config.json").exists() else words
    script("train.py", [*resume, "--run-dir", str(run_dir)])


def script(name, words):
    subprocess.run([sys.executable, EXPERIMENTS / name, *words], check=True)


def trained(folders):
    """Returns the amount of training per seed, of both parts together, as text."""
    parts = [
        RunFolder(folders[0].with_name(f"{prefix}{folders[0].name}")).read_record()["training"]
        for prefix in ("start-", "")
    ]
    windows = sum(part["epochs"] * part["windows_per_epoch"] for part in parts)
    return f"{windows} windows of training per seed"


def skill_rows(folders):
    """Returns one row per score and lead time."""
    scores = [RunFolder(each).read_scores() for each in folders]
    differences = [read_differences(each) for each in folders]
    rows = []
    for score, threshold in SCORES:
        for lead in LEADS:
            at = (score, lead, threshold)
            values = [value(each, *at, method="model") for each in scores]
            row = {
                "score": title(score, threshold),
                "lead_minutes": lead,
                "model": spread(values, score),
            }
            for baseline in BASELINES:
                row[baseline] = shown(value(scores[0], *at, method=baseline), score)
                row[f"better than {baseline}"] = better(differences, *at, baseline)
            rows.append(row)
    return rows


def title(score, threshold):
    return score if score == "mse" else f"{score} {threshold}"


def kept_scores(folder):
    """Returns the scores of one seed that the file keeps, of every method and lead time."""
    names = ("method", "threshold", "lead_minutes", "csi", "mse")
    return [{name: row[name] for name in names} for row in RunFolder(folder).read_scores()]


def better(differences, score, lead, threshold, baseline):
    """Returns how many seeds are better, and for how many of them the interval excludes 0."""
    seen = sure = 0
    for rows in differences:
        row = chosen(rows, lead, threshold, method="model", reference=baseline)
        seen += BETTER[score] * float(row[f"{score}_difference"]) > 0
        ends = [row[f"{score}_{end}"] for end in ("low", "high")]
        sure += all(ends) and min(BETTER[score] * float(end) for end in ends) > 0
    return f"{seen} of {len(differences)} ({sure} surely)"


def precision_rows(first, other):
    """Returns one row per score and lead time: the score of `other` minus that of `first`."""
    scores = [[RunFolder(each).read_scores() for each in folders] for folders in (first, other)]
    rows = []
    for score, threshold in SCORES:
        for lead in LEADS:
            at = (score, lead, threshold)
            a, b = ([value(each, *at, method="model") for each in part] for part in scores)
            differences = [its - mine for mine, its in zip(a, b, strict=True)]
            mean, _, half = mean_difference(differences)
            rows.append(
                {
                    "score": title(score, threshold),
                    "lead_minutes": lead,
                    "first": spread(a, score),
                    "second": spread(b, score),
                    "difference": shown(mean, score),
                    "low": shown(mean - half, score),
                    "high": shown(mean + half, score),
                    "within": "yes" if abs(mean) <= half else "no",
                }
            )
    return rows


def read_differences(folder):
    """Returns the rows of a run's differences.csv as dicts of text."""
    with open(folder / "differences.csv", newline="") as file:
        return list(csv.DictReader(file))


def chosen(rows, lead, threshold, **equal):
    """Returns the first row of a lead time and a threshold whose columns equal `equal`."""
    for row in rows:
        at = (str(row["lead_minutes"]), str(row["threshold"])) == (str(lead), str(threshold))
        if at and all(row[name] == wanted for name, wanted in equal.items()):
            return row
    raise SystemExit(f"no row with {equal} at {lead} minutes")


def value(rows, score, lead, threshold, **equal):
    return float(chosen(rows, lead, threshold, **equal)[score])


def spread(values, score):
    low, high = shown(min(values), score), shown(max(values), score)
    return f"{shown(statistics.median(values), score)} ({low} to {high})"


def shown(number, score):
    return f"{number:.0f}" if score == "mse" and abs(number) >= 10 else f"{number:.2f}"


if __name__ == "__main__":
    main()
