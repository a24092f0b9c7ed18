"""Packs SEVIR once, for many trainings: smaller pixels, contiguous, checked by checksums.

    python experiments/make_dataset.py --data /data/sevir --grid 128 --out /data/sevir128
    python experiments/train.py --data /data/sevir128
    python experiments/make_dataset.py --data /data/sevir --layout authors --authors-split \\
        --out /data/sevir_in_out
    python experiments/make_dataset.py --verify /data/sevir128

The layout `sevir` is SEVIR's own, with all its radar events: training reads it as it reads the
original, with the same result, faster. `authors` writes IN (n, y, x, 13) and OUT (n, y, x, 12),
uint8, to nowcast_training.h5 and nowcast_testing.h5, as the code of SEVIR's authors reads them;
training here does not. Memory does not grow with the data. After a kill or a signal the same
command goes on where it was. Exit status: 0 done; 2 bad usage or input, or a file that is not as
it was written; 75 interrupted.
"""

import dataclasses
import os
import sys
from pathlib import Path

from keras_nowcast.config import EVENTS, WINDOWS, Parser, RunConfig, add_field, names_of
from keras_nowcast.errors import InputError, Interrupted
from keras_nowcast.process import Signals, run_script

LAYOUTS = ("sevir", "authors")
MOST_THREADS = 8  # unasked
FLAGS = ("data", "grid")
AUTHORS_FLAGS = tuple({*names_of(EVENTS, WINDOWS)} - {"data", "max_windows"})


def main():
    arguments = build_parser().parse_args(sys.argv[1:])
    threads = arguments.threads
    if threads is None:
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    if threads < 1:
        raise InputError(f"`--threads` must be at least 1. Received: {threads}.")
    if arguments.verify is not None:
        from keras_nowcast.data import checksums

        checksums.verify(arguments.verify, threads)
        return
    for name in ("data", "out"):
        if getattr(arguments, name) is None:
            raise InputError(f"`--{name}` must be given. Received: none.")
    if arguments.grid is not None and arguments.grid < 1:
        raise InputError(f"`--grid` must be at least 1. Received: {arguments.grid}.")
    # Its grid, which a network of some depth must fit, is not this one.
    config = RunConfig(**{name: getattr(arguments, name) for name in AUTHORS_FLAGS})
    pack(arguments, config, threads)


def build_parser():
    parser = Parser(description=__doc__)
    for field in dataclasses.fields(RunConfig):
        if field.name in FLAGS + AUTHORS_FLAGS:
            add_field(parser, field)
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="sevir",
        help="SEVIR's own with all events, or the authors' IN and OUT of a split, which the "
        "flags for windows and dates are for (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, help="that read (default: one a core, 8 at most)")
    parser.add_argument(
        "--verify", type=Path, metavar="FOLDER", help="compare its files with their checksums"
    )
    return parser


def pack(arguments, config, threads):
    from keras_nowcast.data import packed, splits

    catalogue = None
    if arguments.layout == "sevir":
        files, catalogue = packed.sevir_files(arguments.data, arguments.grid)
    else:
        split = splits.read_split(
            arguments.data,
            config.max_missing,
            config.train_before_time,
            config.test_from_time,
            config.authors_split,
        )
        print(split.note)
        files = packed.authors_files(split, arguments.grid, config.window_stride)
    with Signals() as signals:

        def check():
            if signals.received:
                raise Interrupted(
                    "interrupted; what is written stays, the same command goes on there"
                )

        packed.write_files(
            arguments.out, files, catalogue, grid=arguments.grid, threads=threads, check=check
        )


if __name__ == "__main__":
    run_script(main)
