"""How large is the error of measured energy, by type of sensor?

Each case is a random load with a known exact integral, of 40 to 400 W: constant, a ramp, a square
wave of 30 ms to 10 s, or a jagged trace. It is measured for 10 to 20 s with the tests' scripted
driver on a simulated clock, once with an energy counter and once from power readings alone. Errors
are in percent of the exact joules. "stated" is the uncertainty (two sigma) that accompanies the
measured energy, without a calibration, which the stub driver does not have.

    python benchmarks/sensor_errors.py
"""

import statistics
import sys
import tempfile
from pathlib import Path

from flags import build_parser
from result_files import write_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "energy"))

from random_cases import SENSORS, random_case  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "energy.md"
HEADING = "### Errors by type of sensor"


def row(name, outcomes):
    """Returns the row of one type of sensor."""
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


def docs_section(rows, cases, source):
    """Returns the section of docs/energy.md.

    Args:
      rows: dicts as `row` returns.
      cases: number of random loads.
      source: the result file of the rows, relative to the repository.
    """
    heads = ("sensor", "cases", "median error (%)", "95% of errors below (%)", "largest error (%)")
    heads += ("median stated uncertainty (%)", "errors within the stated one (%)")
    lines = [
        HEADING,
        "",
        f"This table gives the errors for {cases} random loads of 40 to 400 W, each 10 to 20 s "
        "long, measured with a",
        "scripted driver on a simulated clock, without calibration errors. "
        "`benchmarks/sensor_errors.py` writes it. A",
        "power sensor is named by its update period and its averaging window.",
        "",
        f"Source: [{source}](../{source})",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for each in rows:
        values = [f"{value:.2f}" for key, value in each.items() if key.endswith("percent")]
        lines.append(f"| {each['sensor']} | {each['cases']} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def write_docs(section):
    """Replaces the end of docs/energy.md, from its last heading on."""
    DOCS.write_text(DOCS.read_text().split(HEADING)[0] + section)


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--cases", type=int, default=800, help="random loads")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [random_case(seed, folder) for seed in range(args.cases)]
    rows = [row("energy counter, steps of 20 to 100 ms", [counter for counter, _ in pairs])]
    for name in SENSORS:
        rows.append(row(f"power {name} ms", [power for _, power in pairs if power.sensor == name]))
    rows.append(row("power, all", [power for _, power in pairs]))
    path = write_results("sensor_errors", rows, f"{args.cases} random loads of 10 to 20 s")
    write_docs(docs_section(rows, args.cases, path.relative_to(ROOT)))


if __name__ == "__main__":
    main()
