"""Command-line flags that several benchmarks share."""

import argparse

from keras_nowcast.errors import InputError
from keras_nowcast.flags import Parser
from keras_nowcast.process import EXIT_BAD_INPUT


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description and appends each default that is a value."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class _Parser(Parser):
    """A Parser that ends the process at bad usage: one line on standard error, status 2."""

    def __init__(self, description):
        super().__init__(description)
        self.formatter_class = _Formatter

    def error(self, message):
        try:
            super().error(message)
        except InputError as error:
            self.exit(EXIT_BAD_INPUT, f"error: {error}\n")


def build_parser(description):
    """Returns an ArgumentParser that prints `description`, a module docstring, as it is."""
    return _Parser(description)


def add_model_flags(parser, depth, filters, grid, batch_per_replica):
    """Adds the flags of the UNet's size and of the batch, with these defaults."""
    parser.add_argument("--depth", type=int, default=depth, help="encoder levels of the UNet")
    parser.add_argument("--filters", type=int, default=filters, help="filters of the first level")
    parser.add_argument("--grid", type=int, default=grid, help="pixels along a side")
    parser.add_argument(
        "--batch-per-replica",
        type=int,
        default=batch_per_replica,
        help="windows in a batch of one rank",
    )
