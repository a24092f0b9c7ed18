"""How far off is measured energy, by kind of sensor? Random loads with a known exact integral.

Each case is a random load (constant, ramp, square of 30 ms to 10 s, jagged trace) of 40 to 400 W,
measured for 10 to 20 s under the tests' scripted driver on a simulated clock, once with an energy
counter and once from power readings alone. Errors are percent of the exact joules; "stated" is the
uncertainty (two sigma) given with the figure, without calibration, of which the stub has none.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from result_files import write_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "energy"))

from random_cases import SENSORS, random_case  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs" / "energy.md"
HEADING = "### Errors by type of sensor"


def row(name, outcomes):
    """Summarizes the outcomes of one kind of sensor."""
    errors = sorted(abs(each.error) for each in outcomes)
    within = [abs(each.error) <= each.stated + 0.001 for each in outcomes]
    return {
        "sensor": name,
        "cases": len(outcomes),
        "median_error_percent": statistics.median(errors),
        "p95_error_percent": errors[int(0.95 * (len(errors) - 1))],
        "largest_error_percent": errors[-1],
        "median_stated_percent": statistics.median(each.stated for each in outcomes),
        "within_stated_percent": 100 * statistics.mean(within),
    }


def write_docs(rows, cases):
    """Puts the table at the end of docs/energy.md, below its last heading."""
    heads = ("sensor", "cases", "median error %", "95 % of errors below %", "largest %")
    heads += ("median stated %", "within stated %")
    lines = [
        f"{cases} random loads of 40 to 400 W, 10 to 20 s long (`benchmarks/sensor_errors.py`,",
        "which writes this table). Power sensors by update period / averaging window; errors",
        "without calibration.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for each in rows:
        figures = [f"{value:.2f}" for key, value in each.items() if key.endswith("percent")]
        lines.append(f"| {each['sensor']} | {each['cases']} | {' | '.join(figures)} |")
    before = DOCS.read_text().split(HEADING)[0]
    DOCS.write_text(before + HEADING + "\n\n" + "\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=800)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [random_case(seed, folder) for seed in range(args.cases)]
    rows = [row("energy counter, steps of 20 to 100 ms", [counter for counter, _ in pairs])]
    for name in SENSORS:
        rows.append(row(f"power {name} ms", [power for _, power in pairs if power.sensor == name]))
    rows.append(row("power, all", [power for _, power in pairs]))
    write_docs(rows, args.cases)
    write_results("sensor_errors", rows, f"{args.cases} random loads of 10 to 20 s")


if __name__ == "__main__":
    main()
