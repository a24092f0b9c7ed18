"""Trains one UNet on SEVIR radar and measures what that costs.

    python experiments/train.py
    horovodrun -np 2 python experiments/train.py --data /data/sevir --filters 32

Writes a run folder with config, environment, epochs.csv, power.csv, the model and record.json.
Exit status: 0 done; 2 bad usage or input; 75 interrupted with a checkpoint saved (run again with
--resume); any other is a failure.
"""

import time
from pathlib import Path

from keras_nowcast.command_line import parse_config
from keras_nowcast.process import each_rank_reports, run_script

STARTED = time.monotonic()
PRESETS = Path(__file__).parent / "presets"


def main():
    with each_rank_reports():
        config = parse_config(__doc__, read_preset=read_preset)
    from keras_nowcast.training.trainer import train

    train(config, started=STARTED)


def read_preset(name):
    from keras_nowcast.sweep import cells

    return cells.read_preset(PRESETS, name)


if __name__ == "__main__":
    run_script(main)
