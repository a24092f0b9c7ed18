"""Checks records by the JSON Schema that the package contains."""

import json
from importlib import resources

import jsonschema


def violations(record):
    """Returns a line for each place where a record breaks the JSON Schema, [] if it is valid."""
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator().iter_errors(record)
    ]


def validator():
    """Returns the validator of record.json."""
    text = resources.files("keras_nowcast").joinpath("record.schema.json").read_text()
    return jsonschema.Draft202012Validator(json.loads(text))
