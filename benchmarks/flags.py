"""Command-line flags that several benchmarks share."""

import argparse


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description and appends each default that is a value."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def build_parser(description):
    """Returns an ArgumentParser that prints `description`, a module docstring, as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter)


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
