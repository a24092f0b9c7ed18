"""How many cores feed 1 and 8 GPUs? A model, from the rates that input.py measured.

A GPU trains as fast as its memory allows: the bytes of a training window, as count_unet counts
them, at 60% of the bandwidth of its data sheet. That rate is an estimate. A core reads and cuts as
many windows per second as one thread did in the newest results of input.py, from gzip files as
published and from contiguous ones as packed. More threads are assumed to read in proportion. The
cores that run the training come on top. The disk and the page cache are taken to be faster;
`megabytes_per_s` is what they must deliver of packed files, from which each event of 49 frames is
read once.

    python benchmarks/feeding.py
"""

import json
from pathlib import Path

from flags import add_model_flags, build_parser
from result_files import write_results
from training_step import run_config

from keras_nowcast.data.sevir import window_starts
from keras_nowcast.model.cost import count_unet

INPUT = Path(__file__).parent / "results" / "input"
BANDWIDTH = {"V100": 0.9e12, "A100": 2.0e12, "H100": 3.35e12}  # bytes per second, data sheets, SXM
SHARE = 0.6
EVENT_FRAMES = 49
WAY = "read_event"


def rates_of_a_core():
    """Returns ({storage: windows per second of one thread}, name of the results file)."""
    newest = max(INPUT.glob("*_synthetic.json"))
    rows = json.loads(newest.read_text())["rows"]
    return {row["storage"]: row["windows_per_s"] for row in rows if row["way"] == WAY}, newest.stem


def main():
    from keras_nowcast.training.build import unet_sizes

    parser = build_parser(__doc__)
    add_model_flags(parser, depth=4, filters=32, grid=384, batch_per_replica=8)
    args = parser.parse_args()
    cost = count_unet(*unet_sizes(run_config(args, "mixed_float16")))
    batch = args.batch_per_replica
    bytes_ = cost.training_bytes_moved("mixed_float16", batch)
    rates, source = rates_of_a_core()
    read = EVENT_FRAMES * args.grid**2 / len(window_starts(EVENT_FRAMES))  # bytes per window
    rows = []
    for gpu, bandwidth in BANDWIDTH.items():
        needed = SHARE * bandwidth / bytes_
        rows += [
            {
                "gpu": gpu,
                "gpus": gpus,
                "windows_per_s": gpus * needed,
                "cores_gzip": gpus * needed / rates["gzip"],
                "cores_packed": gpus * needed / rates["contiguous"],
                "megabytes_per_s": gpus * needed * read / 1e6,
            }
            for gpus in (1, 8)
        ]
    note = (
        f"a model: depth {args.depth}, {args.filters} filters, grid {args.grid}, batch {batch}, "
        f"mixed_float16; {bytes_ / 2**20:,.0f} MiB per window at {100 * SHARE:.0f}% of the "
        f"bandwidth; a core reads {rates['gzip']:.1f} windows per second from gzip files and "
        f"{rates['contiguous']:.1f} from contiguous ones (input/{source})"
    )
    write_results("feeding", rows, note)


if __name__ == "__main__":
    main()
