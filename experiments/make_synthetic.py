"""Writes a synthetic SEVIR: moving, growing, decaying, merging storms in SEVIR's layout.

    python experiments/make_synthetic.py --root data/storms --events 240

24 events of 384 x 384 pixels take about 20 seconds and 75 MB, 240 events ten times that.
"""

from dataclasses import asdict, dataclass, field

from keras_nowcast.flags import build_parser
from keras_nowcast.process import run_script


def _flag(default, help):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class SyntheticConfig:
    """What to write; the names are those of write_synthetic's arguments."""

    root: str = _flag("data/synthetic", "folder to make; must be new or empty")
    events: int = _flag(24, "number of events; of five, one is for validation and one for the test")
    size: int = _flag(384, "pixels along a side, 1 km each")
    frames: int = _flag(49, "frames of an event, 5 minutes apart")
    seed: int = _flag(0, "event k depends on the seed and k alone")
    contiguous: bool = _flag(False, "store the pixels contiguous instead of compressed")


def main():
    arguments = build_parser(__doc__, SyntheticConfig).parse_args()
    config = SyntheticConfig(**vars(arguments))
    from keras_nowcast.data.synthetic import write_synthetic

    print(f"wrote {write_synthetic(**asdict(config))}")


if __name__ == "__main__":
    run_script(main)
