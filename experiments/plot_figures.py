"""Draws the figures of finished runs and writes their table, from run folders alone.

    python experiments/plot_figures.py runs/

writes figures/training_curves, figures/cost_by_size, a figures/power_<run> for each run that
measured power (each as .pdf and .png), and figures/table.csv.
"""

import sys
from pathlib import Path

from keras_nowcast.config import Parser
from keras_nowcast.process import run_script


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="default: %(default)s")
    arguments = parser.parse_args(sys.argv[1:])

    from keras_nowcast import records

    runs = records.read_runs(arguments.runs)
    from keras_nowcast.report import figures

    arguments.out.mkdir(parents=True, exist_ok=True)
    for draw in (figures.training_curves, figures.cost_by_size):
        figures.write_figure(draw(runs), arguments.out, draw.__name__)
    names = [folder.path.resolve().name for folder, _ in runs]
    for number, (folder, record) in enumerate(runs):
        if record["energy"]["devices"]:
            again = names[:number].count(names[number])  # runs of one name in several folders
            name = f"power_{names[number]}" + (f"-{again + 1}" if again else "")
            figures.write_figure(figures.power_trace((folder, record)), arguments.out, name)
    records.write_table(runs, arguments.out / "table.csv")
    print(f"{len(runs)} runs: figures and table.csv written to {arguments.out}")


if __name__ == "__main__":
    run_script(main)
