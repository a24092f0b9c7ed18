"""Scores the forecasts of a finished run on its test set, next to those of baselines.

    python experiments/evaluate.py runs/<run>
    python experiments/evaluate.py runs/<run> --set validation
    horovodrun -np 2 python experiments/evaluate.py runs/<run> --data /data/sevir

The test set is all events after the run's --test-from, of its data set or of --data; no other
script reads it. Writes to the run folder, or to --out: scores.csv; differences.csv (model minus
each baseline, with 95% confidence intervals over days); statistics.npz; the pictures panel,
scores_by_lead, power_by_lead and performance_diagram, each as .png and .pdf; and animation.gif. The
scores do not depend on the number of processes, except for rounding if the number of threads per
process changes the forecasts.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import sys
from pathlib import Path

import numpy as np

from keras_nowcast.config import RunConfig, completed
from keras_nowcast.data import catalog, sevir, splits
from keras_nowcast.errors import InputError
from keras_nowcast.flags import Parser
from keras_nowcast.process import (
    each_rank_reports,
    is_first_process,
    launched_as,
    run_script,
)
from keras_nowcast.records import RunFolder
from keras_nowcast.verification.baselines import (
    PYSTEPS_METHODS,
    build_methods,
    choose_methods,
)
from keras_nowcast.vil import (
    FRAMES_IN,
    FRAMES_OUT,
    MISSING,
    VIL_LEVELS,
    VIL_MEAN,
    VIL_SCALE,
    VIL_THRESHOLDS,
)

POOLS = (1, 4, 16)
SCALES = (1, 5, 17)  # in pixels; odd, so that each neighborhood has a center


def main():
    with each_rank_reports():
        arguments = build_parser().parse_args(sys.argv[1:])
        check(arguments)
        say = print if is_first_process() else (lambda line: None)
        run, stored = find_run(arguments)
        events = scored_events(stored, arguments, say)
        blocks = blocks_of(events, stored, arguments)
        out = arguments.out or (run.path if arguments.set == "test" else run.path / "validation")
        if is_first_process():
            sevir.check_files(events)
            make_folder(out)
        from keras_nowcast.training import agreement, distributed, gpu_options

        world = distributed.start()
    agreement.require(world, lambda: described(run, stored, events, arguments))
    distributed.load_tensorflow(world)
    gpu_options.set_options(argparse.Namespace(**completed(stored)))
    model = world.on_all(lambda: load_model(run, arguments.weights))
    if arguments.against is not None:
        world.on_all(lambda: check_published(stored, arguments, events, model[1]))
    evaluation, example = score(world, model, events, stored, arguments)
    if world.is_first:
        if blocks:
            names = tuple(blocks[event] for event in evaluation.events)
            evaluation = dataclasses.replace(evaluation, blocks=names)
        rows = write_results(evaluation, example, out, arguments)
        if arguments.against is not None:
            print_published(rows, window_count(events, stored, arguments))


def check(arguments):
    """Raises InputError if a flag breaks its rule; needs no TensorFlow."""
    from keras_nowcast.report.panels import vil_colors

    for name in ("window_stride", "max_events"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            flag = name.replace("_", "-")
            raise InputError(
                f"`--{flag}` must be at least 1. Received: {value}; leave it out for the default."
            )
    vil_colors(arguments.levels)
    choose_methods(arguments.methods)
    launched = launched_as()
    if arguments.save_forecasts is not None and launched is not None and launched[1] > 1:
        raise InputError(
            f"`--save-forecasts` must run in one process, which writes one file. Received: "
            f"{launched[1]} processes; start evaluate.py without horovodrun."
        )


def find_run(arguments):
    """Returns the RunFolder of the run and its stored configuration.

    Raises:
      InputError: there is no such run, or it has no model yet.
    """
    run = RunFolder(arguments.run)
    stored = run.stored_config()
    if stored is None:
        raise InputError(
            f"`run` must be a run folder. Received: {run.path}, which has no config.json; give a "
            "folder that train.py wrote."
        )
    model_file(run, arguments.weights)
    return run, stored


def model_file(run, weights):
    """Returns the file of the model that `--weights` chooses.

    Raises:
      InputError: the run has none.
    """
    file = run.model_file if weights == "last" else run.best_model_file
    if not file.exists():
        raise InputError(
            f"`run` must hold a trained model, {file.name}. Received: {run.path}, which has none; "
            "finish its training with train.py --resume."
        )
    return file


def described(run, stored, events, arguments):
    """Returns what must be the same on all ranks, as agreement.describe does for a training."""
    from keras_nowcast.training import agreement

    paths = ("run", "data", "out", "save_forecasts", "against")
    given = {name: value for name, value in vars(arguments).items() if name not in paths}
    model = hashlib.sha256(model_file(run, arguments.weights).read_bytes()).hexdigest()[:12]
    return {
        "flags": agreement.flags(given | {"window_stride": stride_of(stored, arguments)}),
        "data": {
            "the model": model,
            **agreement.describe_data(arguments.data or stored["data"], {"scored": events}),
        },
        **agreement.describe_software(),
    }


def stride_of(stored, arguments):
    """Returns the number of frames between the starts of two windows."""
    return arguments.window_stride or stored["window_stride"]


def build_parser():
    parser = Parser(description=__doc__)
    parser.add_argument("run", help="a run folder with a trained model")
    parser.add_argument("--data", help="root of a SEVIR data set (default: that of the run)")
    parser.add_argument(
        "--weights",
        choices=("last", "best"),
        default="last",
        help="the model after the last epoch, or after the epoch with the lowest validation loss, "
        "which is chosen on the validation set (default: %(default)s)",
    )
    add_choice_of_events(parser)
    parser.add_argument(
        "--thresholds",
        type=int,
        nargs="+",
        default=list(VIL_THRESHOLDS),
        help="VIL codes at which events are counted (default: %(default)s)",
    )
    add_levels_and_blocks(parser)
    parser.add_argument(
        "--against",
        choices=("published",),
        help="print the published table of SEVIR with the scores of this run; refused, before the "
        "scoring, if the run was trained or is scored by another protocol (default: not printed)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=("persistence", *PYSTEPS_METHODS),
        metavar="METHOD",
        help="baselines to score next to the model: persistence, and with pysteps extrapolation, "
        "sprog and anvil (default: all, without the last three if pysteps is not installed)",
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: the run folder)")
    parser.add_argument(
        "--save-forecasts",
        type=Path,
        help="new folder for the forecasts, in the layout of SEVIR (default: not saved)",
    )
    return parser


def add_levels_and_blocks(parser):
    """Adds the flags of the pictures' colors and of the confidence intervals."""
    parser.add_argument(
        "--levels",
        type=int,
        nargs=11,
        default=list(VIL_LEVELS),
        help="VIL codes at the edges of the colors of the pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--blocks",
        default="day",
        metavar="COLUMN",
        help="which events the confidence intervals treat as dependent: those of a UTC day, or "
        "those with the same value in this column of CATALOG.csv, such as episode_id (default: "
        "%(default)s)",
    )


def add_choice_of_events(parser):
    """Adds the flags that choose the events and the windows to score."""
    parser.add_argument(
        "--set",
        choices=("test", "validation"),
        default="test",
        help="the events to score, by the dates of the run; the results of validation go to "
        "validation/ in the run folder, unless --out is given (default: %(default)s)",
    )
    parser.add_argument(
        "--test-from",
        help="score the events after this time, which may be earlier than in the run only with "
        "--data (default: as in the run)",
    )
    parser.add_argument(
        "--window-stride",
        type=int,
        help="frames between the starts of two windows (default: as in the run)",
    )
    parser.add_argument(
        "--max-events", type=int, help="score the first N events only (default: all)"
    )


def load_model(run, weights):
    """Returns the trained model as a function of (b, y, x, 13) VIL codes, and its grid."""
    file = model_file(run, weights)
    from keras_nowcast.model.unet import read_unet

    model = read_unet(file)
    frames = (model.input_shape[-1], model.output_shape[-1])
    if frames != (FRAMES_IN, FRAMES_OUT):
        raise InputError(
            f"`run` must hold a model of {FRAMES_IN} frames in and {FRAMES_OUT} out. "
            f"Received: {frames[0]} in and {frames[1]} out, in {file}; give a run of train.py."
        )

    def forecast(vil):
        codes = model.predict_on_batch(vil).astype(np.float32)
        return codes * np.float32(VIL_SCALE) + np.float32(VIL_MEAN)

    return forecast, model.input_shape[1]


def make_folder(out):
    """Creates the folder for the results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be created. Received: {out} ({error.strerror}); "
            "give another path."
        ) from None


def scored_events(stored, arguments, say):
    """Returns the events of `--set` by the rule of the run, from its data set or from `--data`."""
    if arguments.test_from is not None and arguments.set != "test":
        raise InputError(
            f"`--test-from` must be omitted with --set {arguments.set}, which the run's own dates "
            f"choose. Received: {arguments.test_from}."
        )
    root = arguments.data or stored["data"]
    of_run = RunConfig(train_before=stored["train_before"], test_from=stored["test_from"])
    chosen = RunConfig(
        train_before=stored["train_before"], test_from=arguments.test_from or stored["test_from"]
    )
    authors = stored["authors_split"] and arguments.test_from is None
    if None in (of_run.train_before, of_run.test_from):
        dates = chosen.train_before_time, chosen.test_from_time
        split = splits.read_split_of_earlier_version(
            root, stored["max_missing"], *dates, authors, say
        )
        say(split.note)
        return getattr(split, arguments.set)[: arguments.max_events]
    if chosen.test_from_time < of_run.test_from_time:
        if arguments.data is None:
            raise InputError(
                f"`--test-from` must not be before the test set of the run, {of_run.test_from}: it "
                f"was trained or chosen on earlier events. Received: {arguments.test_from}; omit "
                "it, or score another data set with --data."
            )
        say(
            f"events after {chosen.test_from}, although the run was trained or chosen on events up "
            f"to {of_run.test_from}: these scores are of unseen events only if --data has none of "
            "its events"
        )
    return splits.read_set(
        arguments.set,
        root,
        stored["max_missing"],
        min(of_run.train_before_time, chosen.test_from_time),
        chosen.test_from_time,
        authors,
        say,
    )[: arguments.max_events]


def blocks_of(events, stored, arguments):
    """Returns {name of an event: its block} by `--blocks`, or None for the days.

    An event whose cell is empty, as those of SEVIR's random events are, has its day as its block.
    """
    from keras_nowcast.verification.evaluate import day_of

    if arguments.blocks == "day":
        return None
    root = arguments.data or stored["data"]
    column = catalog.read_column(root, arguments.blocks)
    if column is None:
        raise InputError(
            f"`--blocks` must be day or a column of the catalog. Received: {arguments.blocks}, "
            f"which {root} does not have; give another column, such as episode_id."
        )
    return {event.name: column[event.file, event.index] or day_of(event.name) for event in events}


def score(world, model, events, stored, arguments):
    """Scores the events of this rank and merges them with those of the other ranks.

    Returns:
      (Evaluation, example). The example is (name of the event, x, y, {method: forecast}) of the
      window with the highest mean VIL, or None if no window has any.
    """
    from keras_nowcast.verification import evaluate, spectrum

    forecast, grid = model
    methods = build_methods(forecast, arguments.methods, world.is_first)
    stride = stride_of(stored, arguments)
    example = (0.0, None)

    def score_mine():
        with saving(arguments.save_forecasts, events, grid, stride) as save:

            def on_forecast(event, x, y, forecasts):
                nonlocal example
                save(event, forecasts["model"])  # windows arrive in order
                rain = np.where(y == MISSING, 0, y).mean(axis=(1, 2, 3))
                window = int(rain.argmax())
                if rain[window] > example[0]:
                    fields = {name: field[window] for name, field in forecasts.items()}
                    example = rain[window], (event, x[window], y[window], fields)

            windows = read_windows(events[world.rank :: world.size], grid, stride)
            return evaluate.accumulate(
                windows,
                methods,
                arguments.thresholds,
                POOLS,
                SCALES,
                on_forecast,
                spectrum.TILE,
                pixel_km(events, grid),
            )

    parts = world.gather((world.on_all(score_mine), example))
    evaluation = evaluate.merged([part for part, _ in parts])
    return evaluation, max((one for _, one in parts), key=lambda one: one[0])[1]


def pixel_km(events, grid):
    """Returns the side of a pixel of the grid in km, or None if it is unknown or varies."""
    widths = {event.width_km for event in events}
    (width,) = widths if len(widths) == 1 else (None,)
    return width and width / grid


def read_windows(events, grid, stride):
    """Yields (name of the event, x, y) of every window, and reads one event ahead."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        ahead = None
        for event, following in itertools.pairwise([*events, None]):
            vil = (ahead or executor.submit(sevir.read_event, event, grid)).result()
            if following is not None:
                ahead = executor.submit(sevir.read_event, following, grid)
            for start in sevir.window_starts(event.frames, stride):
                yield event.name, *sevir.cut_window(vil, start)


@contextlib.contextmanager
def saving(folder, events, grid, stride):
    """Yields a function of (name of an event, forecasts) that saves them, unless folder is None."""
    from keras_nowcast.verification.forecasts import saved_forecasts

    if folder is None:
        yield lambda name, forecasts: None
        return
    by_name = {event.name: event for event in events}
    columns = catalog.CATALOG_COLUMNS
    with saved_forecasts(folder, "model", columns, grid) as append:

        def save(name, forecasts):
            event = by_name[name]
            for start, codes in zip(
                sevir.window_starts(event.frames, stride), forecasts, strict=True
            ):
                time = event.frame_time(start + FRAMES_IN - 1)
                append(f"{event.id}_{time:%Y%m%d%H%M}", time, codes)

        yield save


def write_results(evaluation, example, out, arguments):
    """Writes tables and pictures to a folder and prints the scores over all lead times.

    Returns:
      The rows of scores.csv.
    """
    from keras_nowcast.report import panels
    from keras_nowcast.report.example import draw_power, write_example
    from keras_nowcast.report.style import write_figure
    from keras_nowcast.verification import bootstrap, evaluate

    evaluate.write_evaluation(out / "statistics.npz", evaluation)
    rows = evaluate.score_rows(evaluation)
    evaluate.write_rows(out / "scores.csv", rows, evaluate.COLUMNS)
    differences = evaluate.difference_rows(evaluation, "model")
    evaluate.write_rows(out / "differences.csv", differences, evaluate.DIFFERENCE_COLUMNS)
    count = len(evaluation.events)
    print(f"{count} events, all lead times pooled; MAE in VIL codes, MSE in VIL codes squared:")
    print(evaluate.console_table(rows))
    if set(PYSTEPS_METHODS) & set(evaluation.methods):
        print("Air from outside the grid: the baselines keep the last observed code of the pixel.")
    kind = "days" if arguments.blocks == "day" else f"by {arguments.blocks}"
    if warning := bootstrap.warning(evaluation.n_blocks, kind):
        print(f"Warning: {warning}")

    shown = [threshold for threshold in arguments.thresholds if threshold in (16, 74, 133)]
    by_lead = panels.scores_by_lead(rows, shown or arguments.thresholds[:3])
    write_figure(by_lead, out, "scores_by_lead")
    write_figure(panels.performance_diagram(rows, arguments.thresholds), out, "performance_diagram")
    draw_power(evaluation, rows, out)
    write_example(example, out, arguments.levels)
    print(f"scores.csv, differences.csv, statistics.npz and pictures written to {out}")
    return rows


def check_published(stored, arguments, events, grid):
    """Raises InputError unless the run was trained and is scored as the published models."""
    from keras_nowcast.verification import published

    if arguments.set != "test":
        raise InputError(
            "`--against published` must score the test set, as the published table does. Received: "
            f"--set {arguments.set}; omit one of the two."
        )
    dates = RunConfig(
        train_before=stored["train_before"], test_from=arguments.test_from or stored["test_from"]
    )
    settings = {
        "train-before": dates.train_before_time,
        "test-from": dates.test_from_time,
        "authors-split": stored["authors_split"],
        "max-missing": stored["max_missing"],
        "max-windows": stored["max_windows"],
        "window-stride": stride_of(stored, arguments),
        "grid": grid,
    }
    published.check(settings, arguments.thresholds, window_count(events, stored, arguments))


def window_count(events, stored, arguments):
    """Returns the number of windows that are scored."""
    stride = stride_of(stored, arguments)
    return sum(len(sevir.window_starts(event.frames, stride)) for event in events)


def print_published(rows, windows):
    """Prints the published table with the scores of the run, rows of scores.csv."""
    from keras_nowcast.verification import published

    print(published.text_table(rows, windows))


if __name__ == "__main__":
    run_script(main)
