"""Trains the cells of a sweep, each as a separate run, and skips cells that are finished.

    python experiments/sweep.py --depth 3 4 --filters 8 16 --precision float32 auto --np 1 2
    python experiments/sweep.py --preset demo --dry-run

All flags of train.py except --run-dir and --resume are accepted. Flags may have several values:
each combination of values is a cell. With --preset, a file gives the cells, and flags change them.
After Ctrl-C, run the same command again to resume. Exit status: 0 if every cell has completed or
failed, 75 if interrupted.
"""

import dataclasses
import sys
from pathlib import Path

from keras_nowcast.config import FOLDER, RunConfig, names_of
from keras_nowcast.errors import InputError, Interrupted, TrainingFailed
from keras_nowcast.flags import Parser, add_field
from keras_nowcast.process import run_script

HERE = Path(__file__).parent
SBATCH_SCRIPT = HERE.parent / "slurm" / "sweep.sbatch"


def main():
    arguments = build_parser().parse_args(sys.argv[1:])
    if arguments.timeout_minutes is not None and not arguments.timeout_minutes > 0:
        raise InputError(
            f"`--timeout-minutes` must be above 0. Received: {arguments.timeout_minutes}; give "
            "minutes, or omit the flag for no limit."
        )
    if arguments.measured and not arguments.dry_run:
        raise InputError(
            "`--measured` must be given with --dry-run, which alone predicts. Received: "
            f"{' '.join(map(str, arguments.measured))} without --dry-run; add it, or omit the flag."
        )
    from keras_nowcast.records import find_runs
    from keras_nowcast.study.roofline import GPUS
    from keras_nowcast.sweep import slurm
    from keras_nowcast.sweep.cells import place, without_repeats
    from keras_nowcast.sweep.launch import LAUNCHERS, Launcher

    if arguments.gpu and not (arguments.dry_run and arguments.gpu in GPUS):
        raise InputError(
            f"`--gpu` must be one of {', '.join(GPUS)}, and needs --dry-run. "
            f"Received: {arguments.gpu}{'' if arguments.dry_run else ' without --dry-run'}."
        )
    for measured in arguments.measured:  # each must hold something to predict from
        find_runs([measured], "--measured")
    from keras_nowcast.sweep.runner import Options, Sweep

    folder = arguments.sweep_dir or Path("runs") / (preset_name(arguments.preset) or "sweep")
    is_one_task = arguments.run_cell is not None
    cells = [slurm.listed_cell(folder, arguments.run_cell)] if is_one_task else requested(arguments)
    placed = place(cells, say=print)
    through_slurm = arguments.launcher == "slurm"
    if not (through_slurm or is_one_task):  # the nodes may have other processors than this machine
        placed = without_repeats(placed, say=print)
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
    elif is_one_task:
        end_as(sweep.run_one(placed[0]))
    else:
        sweep.run()


def build_parser():
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--preset", help="name of a preset in experiments/presets, or path of a .py file like these"
    )
    parser.add_argument(
        "--sweep-dir",
        type=Path,
        help="folder of the cells (default: runs/<preset>, or runs/sweep without a preset)",
    )
    parser.add_argument(
        "--np", type=int, nargs="+", metavar="NP", help="number of processes of a cell (default: 1)"
    )
    parser.add_argument(
        "--launcher",
        choices=("horovodrun", "mpirun", "slurm"),
        default="horovodrun",
        help="program that starts cells of several processes; slurm submits each cell as a task of "
        "a job array (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the cells with predictions, and train nothing"
    )
    parser.add_argument(
        "--measured",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUNS",
        help="with --dry-run: folders of runs to predict from, in addition to the sweep's own",
    )
    parser.add_argument(
        "--gpu",
        metavar="GPU",
        help="with --dry-run: also print a lower bound (roofline) of the training time, from the "
        "datasheet of V100, A100 or H100",
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
        help="run only the cell with this index in cells.json of --sweep-dir, as a task of a job "
        "array does",
    )
    cell = parser.add_argument_group("settings of the cells")
    for field in dataclasses.fields(RunConfig):
        if field.name not in names_of(FOLDER):
            add_field(cell, field, several=True)
    return parser


def preset_name(preset):
    return preset and Path(preset).stem


def requested(arguments):
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
    """Submits the cells with work left; those that cannot run are recorded as failed at once."""
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
    """Ends a task with the exit status of its cell, so that Slurm shows how the cell ended."""
    if state == "interrupted":
        raise Interrupted("interrupted; the checkpoint is saved, submit the sweep again to resume")
    if state == "failed":
        raise TrainingFailed("the cell failed; its record.json has the reason")


if __name__ == "__main__":
    run_script(main)
