"""Trains every cell of a list, each in a separate run, and skips what is finished.

    python experiments/sweep.py --depth 3 4 --filters 8 16 --precision float32 auto --np 1 2
    python experiments/sweep.py --preset demo --dry-run

It takes every flag of train.py except --run-dir and --resume. The cells are all combinations of
the values given. With --preset the cells come from a preset, and the flags change them. After
Ctrl-C the same command resumes the sweep. Exit status: 0 if every cell has completed or failed, 75
if interrupted.
"""

import dataclasses
import sys
from pathlib import Path

from keras_nowcast.config import FOLDER, Parser, RunConfig, add_field, names_of
from keras_nowcast.errors import InputError, Interrupted, TrainingFailed
from keras_nowcast.process import run_script

HERE = Path(__file__).parent
SBATCH_SCRIPT = HERE.parent / "slurm" / "sweep.sbatch"


def main():
    arguments = build_parser().parse_args(sys.argv[1:])
    if arguments.timeout_minutes is not None and not arguments.timeout_minutes > 0:
        raise InputError(
            f"`--timeout-minutes` must be above 0. Received: {arguments.timeout_minutes}."
        )
    from keras_nowcast.study.roofline import GPUS
    from keras_nowcast.sweep import slurm
    from keras_nowcast.sweep.cells import place
    from keras_nowcast.sweep.launch import LAUNCHERS, Launcher

    if arguments.gpu and not (arguments.dry_run and arguments.gpu in GPUS):
        raise InputError(
            f"`--gpu` must be one of {', '.join(GPUS)}, together with --dry-run. "
            f"Received: {arguments.gpu}{'' if arguments.dry_run else ' without --dry-run'}."
        )
    from keras_nowcast.sweep.runner import Options, Sweep

    folder = arguments.sweep_dir or Path("runs") / (preset_name(arguments.preset) or "sweep")
    one_of_a_list = arguments.run_cell is not None
    cells = [slurm.listed_cell(folder, arguments.run_cell)] if one_of_a_list else asked(arguments)
    placed = place(cells, say=print)
    through_slurm = arguments.launcher == "slurm"
    launcher = Launcher(LAUNCHERS[0] if through_slurm else arguments.launcher, HERE)
    timeout_s = arguments.timeout_minutes and 60 * arguments.timeout_minutes
    sweep = Sweep(placed, folder, Options(launcher, timeout_s, arguments.retry, arguments.evaluate))
    if arguments.dry_run:
        from keras_nowcast.sweep.estimate import estimate_table
        from keras_nowcast.sweep.outcome import state_now

        states = [state_now(folder / cell.name) for cell in placed]
        measured = [folder, *arguments.measured]
        print(estimate_table(placed, states, measured, arguments.gpu))
    elif through_slurm:
        submit(sweep, arguments)
    elif one_of_a_list:
        end_as(sweep.run_one(placed[0]))
    else:
        sweep.run()


def build_parser():
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--preset", help="a name in experiments/presets, or a .py file of that form"
    )
    parser.add_argument(
        "--sweep-dir", type=Path, help="folder of the cells (default: runs/sweep, or runs/<preset>)"
    )
    parser.add_argument(
        "--np",
        type=int,
        nargs="+",
        metavar="NP",
        help="numbers of processes of a cell (default: 1)",
    )
    parser.add_argument(
        "--launcher",
        choices=("horovodrun", "mpirun", "slurm"),
        default="horovodrun",
        help="program that starts cells of several processes, or slurm to submit each cell as a "
        "task of a job array (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cells and train nothing")
    parser.add_argument(
        "--measured",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUNS",
        help="for --dry-run: folders of runs to predict from, in addition to the sweep's own",
    )
    parser.add_argument(
        "--gpu",
        metavar="GPU",
        help="for --dry-run: also print the lower bound (roofline) of training on V100, A100 or "
        "H100, from its datasheet",
    )
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument(
        "--timeout-minutes",
        type=float,
        metavar="MINUTES",
        help="stop a cell after this many minutes; it counts as failed, and --retry resumes it",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="score each completed cell with evaluate.py"
    )
    parser.add_argument(
        "--run-cell",
        type=int,
        metavar="INDEX",
        help="run one cell of cells.json in --sweep-dir, as a task of a job array does",
    )
    cell = parser.add_argument_group("the cells")
    for field in dataclasses.fields(RunConfig):
        if field.name not in names_of(FOLDER):
            add_field(cell, field, several=True)
    return parser


def preset_name(preset):
    return preset and Path(preset).stem


def asked(arguments):
    """Returns the Cells of the preset and the flags."""
    from keras_nowcast.sweep.cells import Cell, read_preset, span

    given = vars(arguments)
    axes = {
        field.name: given[field.name] if isinstance(given[field.name], list) else [True]
        for field in dataclasses.fields(RunConfig)
        if field.name in given
    }
    if arguments.np:
        axes["processes"] = arguments.np
    cells = read_preset(HERE / "presets", arguments.preset) if arguments.preset else [Cell({})]
    return span(cells, axes)


def submit(sweep, arguments):
    """Submits the cells that have work; a cell that cannot run gets its record at once."""
    from keras_nowcast.sweep import slurm

    waiting = [cell for cell in sweep.cells if sweep.has_work(cell)]
    for cell in [cell for cell in waiting if cell.refusal]:
        sweep.run_one(cell)
    waiting = [cell for cell in waiting if not cell.refusal]
    words = ["--sweep-dir", str(sweep.folder)]
    if arguments.timeout_minutes:
        words += ["--timeout-minutes", str(arguments.timeout_minutes)]
    words += ["--evaluate"] * arguments.evaluate + ["--retry"] * arguments.retry
    if waiting:
        slurm.submit(sweep.folder, waiting, SBATCH_SCRIPT, words)
    print(sweep.summary())


def end_as(state):
    """Ends a task with the exit status of its cell, so that the queue shows it."""
    if state == "interrupted":
        raise Interrupted("interrupted; the checkpoint is saved, submit it again to resume")
    if state == "failed":
        raise TrainingFailed("the cell failed; its record.json has the reason")


if __name__ == "__main__":
    run_script(main)
