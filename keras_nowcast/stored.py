"""Checks the configuration of a run as its files hold it, field by field."""

import dataclasses
import datetime

from keras_nowcast.checked import OddFile, is_number, is_text, shown
from keras_nowcast.config import FOLDER, SIZE, WATCHING, RunConfig, broken_rule, names_of
from keras_nowcast.errors import InputError
from keras_nowcast.flags import value_type
from keras_nowcast.model.sizes import check_sizes


def check_stored(stored, path):
    """Checks the configuration in config.json, which --resume and evaluate.py take over.

    Args:
      stored: dict of the fields as the file has them.
      path: the file, for the error.

    Raises:
      OddFile: a key is unknown, a value breaks its rule, or one is absent that every version wrote.
    """
    known = {each.name for each in dataclasses.fields(RunConfig)}
    for name in stored:
        if name not in known:
            raise OddFile(
                path,
                "have no key but the flags of train.py",
                f"`{name}`",
                "remove the key, or update keras_nowcast if a newer version started the run",
            )
    _check_fields(stored, path, "", trained=True)


def check_recorded(config, path, trained):
    """Checks the configuration in record.json; keys of a later version are left alone.

    Args:
      config: dict of the fields as the record has them.
      path: the file, for the error.
      trained: whether the run has completed, so that every value is known and obeys its rule. A run
        that failed may have been refused for one.

    Raises:
      OddFile: a value cannot be used.
    """
    _check_fields(config, path, "config.", trained)
    if not trained:
        return
    for name, undecided in (("grid", None), ("precision", "auto")):
        if config.get(name) == undecided:
            received = shown(undecided) if name in config else "nothing"
            raise OddFile(path, f"have the `config.{name}` that was used", received)


def _check_fields(stored, path, where, trained):
    for each in dataclasses.fields(RunConfig):
        name = f"{where}{each.name}"
        if each.name not in stored:
            if trained and _every_version_has(each):
                raise OddFile(path, f"have `{name}`", "nothing")
            continue
        value = stored[each.name]
        rule = _broken_type(each, value)
        if rule is None and trained and value is not None:
            rule = broken_rule(each, value) or _broken_date(each, value)
        if rule:
            raise OddFile(path, f"have {rule} as `{name}`", shown(value))
    if trained and stored.get("grid") is not None:
        sizes = {each: stored.get(each) for each in names_of(SIZE)}
        try:
            check_sizes(stored["grid"], *sizes.values())
        except InputError as error:
            raise OddFile(path, "have sizes of a model that is possible", error) from None


def _every_version_has(each):
    """Returns True for a field that was in the first version; later ones are off by default."""
    is_later = each.metadata["is_later"] or each.metadata["role"] in (FOLDER, WATCHING)
    return bool(each.default) and not is_later


def _broken_date(each, value):
    """Returns the rule of a date, as text, if a field is one and a stored value is not."""
    if each.name not in ("train_before", "test_from"):
        return None
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return "a date, YYYY-MM-DD, or null"
    return None


def _broken_type(each, value):
    """Returns what the type of a field requires, as text, or None if a stored value has it."""
    kind = value_type(each)
    optional = each.type != kind
    fits = {
        bool: lambda: isinstance(value, bool),
        int: lambda: is_number(value, integer=True),
        float: lambda: is_number(value),
        str: lambda: is_text(value),
    }
    if (value is None and optional) or fits[kind]():
        return None
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return names[kind] + " or null" * optional
