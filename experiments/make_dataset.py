r"""Packs SEVIR once for many trainings: coarser, contiguous, and verified by checksums.

    python experiments/make_dataset.py --data /data/sevir --grid 128 --out /data/sevir128
    python experiments/train.py --data /data/sevir128
    python experiments/make_dataset.py --data /data/sevir --layout authors --authors-split \
        --out /data/sevir_in_out
    python experiments/make_dataset.py --verify /data/sevir128

The layout `sevir` is that of SEVIR, with all its radar events. Training reads it like the original,
with the same result, but faster. The layout `authors` writes IN (n, y, x, 13) and OUT
(n, y, x, 12), uint8, to nowcast_training.h5 and nowcast_testing.h5, which the code of SEVIR's
authors reads; training here does not. Memory does not grow with the data. After a kill or a signal
the same command resumes. Exit status: 0 done; 2 bad usage or input, or a file that differs from
what was written; 75 interrupted.
"""

import dataclasses
import os
import sys
from pathlib import Path

from keras_nowcast.config import EVENTS, WINDOWS, RunConfig, names_of
from keras_nowcast.errors import InputError, Interrupted
from keras_nowcast.flags import Parser, add_field
from keras_nowcast.process import Signals, run_script

LAYOUTS = ("sevir", "authors")
MOST_THREADS = 8  # by default
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
            raise InputError(f"`--{name}` must be given. Received: none; name a folder.")
    if arguments.grid is not None and arguments.grid < 1:
        raise InputError(f"`--grid` must be at least 1. Received: {arguments.grid}.")
    # Without the grid, which need not fit a UNet of the default depth here.
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
        help="layout: that of SEVIR with all events, or the authors' IN and OUT of a split, to "
        "which the flags for windows and dates apply (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, help="reading threads (default: one per core, up to 8)"
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="FOLDER",
        help="compare the files of this folder with their checksums, and write nothing",
    )
    return parser


def pack(arguments, config, threads):
    from keras_nowcast.data import packed, splits

    catalog_text = None
    if arguments.layout == "sevir":
        files, catalog_text = packed.sevir_files(arguments.data, arguments.grid)
    else:
        split = splits.read_split(arguments.data, *config.selection)
        print(split.note)
        files = packed.authors_files(split, arguments.grid, config.window_stride)
    with Signals() as signals:

        def check():
            if signals.received:
                raise Interrupted(
                    "interrupted; what is written is kept, and the same command resumes there"
                )

        packed.write_files(
            arguments.out, files, catalog_text, grid=arguments.grid, threads=threads, check=check
        )


if __name__ == "__main__":
    run_script(main)
