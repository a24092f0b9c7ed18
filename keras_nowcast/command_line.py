"""Reads the command line of train.py, with a preset or the configuration of a run to resume."""

import sys

from keras_nowcast.config import RunConfig, completed
from keras_nowcast.errors import InputError
from keras_nowcast.flags import build_parser
from keras_nowcast.records import RunFolder


def parse_config(description, arguments=None, read_preset=None):
    """Reads the command line into a RunConfig.

    Args:
      description: the script's docstring.
      arguments: the words of the command line (default: those of this process).
      read_preset: function of the value of --preset that returns the cells of that preset
        (default: there is no such flag).

    Raises:
      InputError: an unknown flag, or a value that breaks its rule; or the config.json of the run
        to resume cannot be used.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(description)
    if read_preset is not None:
        parser.add_argument(
            "--preset", help="settings to begin from: a name in experiments/presets, or a .py file"
        )
    asked = parser.parse_args(arguments)
    if getattr(asked, "preset", None) is not None:
        runs = read_preset(asked.preset)
        if len(runs) != 1:
            raise InputError(
                f"`--preset` must have a single run here. Received: {asked.preset}, which has "
                f"{len(runs)}; experiments/sweep.py runs them."
            )
        parser.set_defaults(**runs[0].settings)
        asked = parser.parse_args(arguments)
    if asked.resume and asked.run_dir is not None:
        # A run is resumed as it was started, except for the flags given now.
        parser.set_defaults(**completed(RunFolder(asked.run_dir).stored_config() or {}))
        asked = parser.parse_args(arguments)
    values = vars(asked)
    values.pop("preset", None)
    return RunConfig(**values)
