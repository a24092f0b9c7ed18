"""The command-line flags of the scripts, from the fields of their config dataclasses."""

import argparse
import dataclasses
import re

from keras_nowcast.config import RunConfig, as_flag
from keras_nowcast.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser that reports bad usage as an InputError, in one line.

    Flags cannot be abbreviated: a new flag could change the meaning of an abbreviation.
    """

    def __init__(self, description):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message):
        """Raises InputError with the message of argparse, in the form of our own."""
        # argparse has no other hook to reword its messages.
        value = re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message)
        if value:
            flag, kind, received = value.groups()
            message = f"`{flag}` must be of type {kind}. Received: {received}"
        choice = re.fullmatch(
            r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message
        )
        if choice:
            flag, received, choices = choice.groups()
            choices = choices.replace("'", "")  # newer versions of Python leave them out
            message = f"`{flag}` must be one of {choices}. Received: {received}"
        lacking = re.fullmatch(r"argument (\S+): expected (one|at least one) argument", message)
        if lacking:
            message = f"`{lacking[1]}` must have {lacking[2]} value. Received: none"
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message)
        if unknown:
            message = (
                f"`{unknown[1].split()[0]}` is not a flag of this script. Received: {unknown[1]}"
            )
        raise InputError(f"{message}; {self.prog} --help lists the flags.")


def build_parser(description, config_class=RunConfig):
    """Builds the argument parser of a script from the fields of a config dataclass.

    Args:
      description: the script's docstring; its first line is shown first by --help.
      config_class: a dataclass whose fields carry `help` (and `choices`) in their metadata.

    Returns:
      An ArgumentParser that raises InputError on bad usage; abbreviations are refused.
    """
    parser = Parser(description)
    for each in dataclasses.fields(config_class):
        add_field(parser, each)
    return parser


def add_field(parser, each, several=False):
    """Adds the flag of one dataclass field to a parser.

    Args:
      parser: an ArgumentParser.
      each: the field.
      several: take one or more values, as a list; a flag not given is then absent from what is
        parsed.
    """
    flag, kind = as_flag(each.name), value_type(each)
    text = each.metadata["help"].replace("%", "%%")  # argparse formats it
    default = argparse.SUPPRESS if several else each.default
    if kind is bool:
        parser.add_argument(flag, action="store_true", default=default, help=text)
        return
    if each.default is not None:
        text += f" (default: {each.default})"
    parser.add_argument(
        flag,
        type=kind,
        default=default,
        nargs="+" if several else None,
        metavar="|".join(each.metadata.get("choices", ())) or _METAVARS[kind],
        help=text,
    )


def as_arguments(values):
    """Returns the words of train.py's command line for values of RunConfig's fields, by name.

    What is default or not in `values` is left out.
    """
    words = []
    for each in dataclasses.fields(RunConfig):
        value = values.get(each.name, each.default)
        if value != each.default:
            words += [as_flag(each.name)] + ([] if value is True else [str(value)])
    return words


_METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}


def value_type(each):
    """Returns the type of a field of RunConfig when it is not None: bool, int, float or str."""
    for kind in (bool, int, float, str):  # `int | None` takes an int
        if each.type is kind or each.type == kind | None:
            return kind
    raise TypeError(f"no flag for a field of type {each.type}")
