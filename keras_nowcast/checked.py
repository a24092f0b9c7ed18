"""Reads the JSON and CSV files of a run folder, and checks every value against its Key.

A file is checked where it is read, so that no later code meets a text for a number or a list for an
object. What is absent is accepted as null, because runs of earlier versions wrote fewer keys and
columns, except where a Key is `needed`.
"""

import csv
import io
import json
import math
import re

from keras_nowcast import keys as kinds
from keras_nowcast.errors import InputError

REMEDY = "restore the file, or move the run folder away"
_HIGHEST = 1e30  # no number of a run is larger, and sums of such numbers stay finite
_LARGEST_INTEGER = 2**63
_SHOWN_LETTERS = 60


class OddFile(InputError):
    """A file of a run folder that cannot be used."""

    def __init__(self, path, rule, received, remedy=REMEDY):
        super().__init__(f"{path} must {rule}. Received: {received}; {remedy}.")


class NewerVersion(OddFile):
    """A record that a newer version of this package wrote."""

    def __init__(self, path, version, known):
        super().__init__(
            path,
            f"have `schema` {known} or lower",
            f"{version}, so the run was made by a newer version",
            "update keras_nowcast to read it",
        )


def read_object(path):
    """Returns the JSON object in a file as a dict, or None if there is no file.

    Raises:
      OddFile: it is not a readable file with a JSON object.
    """
    text = _read_text(path, "JSON")
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        received = "an empty file" if not text.strip() else f"a file that is not ({error})"
        raise OddFile(path, "be JSON", received) from None
    if not isinstance(value, dict):
        raise OddFile(path, "hold a JSON object", shown(value))
    return value


def read_rows(path, keys, needed=()):
    """Returns the rows of a CSV file as dicts, [] if there is no file.

    A cell is a number, None if it is empty, or a text by its Key. A column without a Key has a
    number where one can be read, and otherwise a text.

    Args:
      path: the file.
      keys: Keys of its columns; `<...>` in a name stands for a number.
      needed: names of the columns that it must have.

    Raises:
      OddFile: it is not a readable, complete CSV file, or a cell does not fit its Key.
    """
    text = _read_text(path, "CSV")
    if text is None:
        return []
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    except csv.Error as error:
        raise OddFile(path, "be CSV", f"a file that is not ({error})") from None
    header = lines[0] if lines else []
    check_header(path, header, needed)
    if not text.endswith(("\n", "\r")):
        raise OddFile(path, "end with a line break", "a file whose last row is cut short")
    if len(set(header)) < len(header):
        raise OddFile(path, "have each column once", ", ".join(header)[:_SHOWN_LETTERS])
    by_name = {name: _key_of_column(name, keys) for name in header}
    rows = []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            rule = f"have {len(header)} cells in row {number}, as in its first line"
            raise OddFile(path, rule, len(line))
        row = {name: _cell(cell, by_name[name]) for name, cell in zip(header, line, strict=True)}
        for name, value in row.items():
            if value is not None and (rule := _broken(by_name[name], value)):
                raise OddFile(path, f"have {rule} as `{name}` in row {number}", shown(value))
        rows.append(row)
    return rows


def check_header(path, header, needed):
    """Raises OddFile unless the first line of a CSV file names the columns that it must have."""
    absent = [name for name in needed if name not in header]
    if absent:
        names = ", ".join(f"`{name}`" for name in absent)
        received = ",".join(header)[:_SHOWN_LETTERS] if header else "an empty file"
        raise OddFile(path, f"have the columns {names}, separated by commas", received)


def check_keys(path, where, value, keys, complete=False):
    """Checks an object of a JSON file.

    Args:
      path: the file, for the error.
      where: names of the objects around `value`, each with a dot, "" at the top.
      value: what is there.
      keys: its Keys.
      complete: whether it must have the Keys that are `needed`.

    Raises:
      OddFile: it is not an object, or a value does not fit its Key.
    """
    if not isinstance(value, dict):
        raise OddFile(path, f"have an object as `{where.rstrip('.')}`", shown(value))
    for key in keys:
        name, found = f"{where}{key.name}", value.get(key.name)
        if found is None:
            if complete and key.needed:
                raise OddFile(path, f"have `{name}`", "null" if key.name in value else "nothing")
            continue
        rule = _broken(key, found)
        if rule:
            raise OddFile(path, f"have {rule} as `{name}`", shown(found))
        if key.type == kinds.OBJECTS:
            for number, each in enumerate(found):
                check_keys(path, f"{name}[{number}].", each, key.members)
        elif key.type == kinds.OBJECT and key.members:
            for each, inner in found.items():
                check_keys(path, f"{name}.{each}.", inner, key.members)
        elif key.type == kinds.OBJECT and key.unit:
            for each, inner in found.items():
                check_keys(
                    path, f"{name}.", {each: inner}, (kinds.Key(each, kinds.NUMBER, "", ""),)
                )


def shown(value):
    """Returns a JSON value as text for an error: in quotes if it is a text, and not too long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = f"the text {value!r}" if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."


def is_number(value, integer=False):
    """Returns True if a JSON value is a number that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int):
        return abs(value) < (_LARGEST_INTEGER if integer else _HIGHEST)
    return math.isfinite(value) and (value.is_integer() if integer else True)


def is_text(value):
    """Returns True if a JSON value is a text that can be written to a file."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a pair of code units
        return False


def _broken(key, value):
    """Returns what a Key requires, as text, if a value that is not None is not that."""
    if key is None:
        return None
    if key.type in (kinds.NUMBER, kinds.INTEGER):
        return _broken_number(key, value)
    if key.type == kinds.TEXT and key.unit and is_number(value):
        return None  # lead_minutes, which may be "all"
    if key.type in (kinds.TEXT, kinds.BOOLEAN):
        fits = is_text(value) if key.type == kinds.TEXT else isinstance(value, bool)
        if key.choices and not (fits and value in key.choices):
            return f"one of {', '.join(key.choices)}"
        return None if fits else ("a text" if key.type == kinds.TEXT else "true or false")
    if key.type == kinds.OBJECT:
        return None if isinstance(value, dict) and all(map(is_text, value)) else "an object"
    rules = {
        kinds.TEXTS: is_text,
        kinds.NUMBERS: lambda each: each is None or _in_range(each),
        kinds.OBJECTS: lambda each: isinstance(each, dict),
    }
    fits = isinstance(value, list) and all(map(rules[key.type], value))
    return None if fits else f"a {key.type}"


def _broken_number(key, value):
    integer = key.type == kinds.INTEGER
    kind = "an integer" if integer else "a number"
    if not is_number(value, integer) or abs(value) > _HIGHEST:
        return kind
    if key.signed:
        return None
    if key.unit == kinds.FRACTION:
        return None if 0 <= value <= 1 + 1e-6 else f"{kind} from 0 to 1"
    if key.needed and value <= 0:
        return f"{kind} above 0"
    return None if value >= 0 else f"{kind} of at least 0"


def _in_range(value):
    return is_number(value) and 0 <= value <= _HIGHEST


def _read_text(path, kind):
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise OddFile(path, "be a file", "a link that leads nowhere") from None
        return None
    except OSError as error:  # a folder, no permission, a name that is too long
        raise OddFile(path, "be a readable file", error) from None
    except ValueError as error:
        raise OddFile(path, f"be {kind}", f"a file that is not text ({error})") from None


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON number")


def _key_of_column(name, keys):
    for key in keys:
        if name == key.name or (
            "<" in key.name and re.fullmatch(re.sub(r"<\w+>", r"\\d+", key.name), name)
        ):
            return key
    return None


def _cell(text, key):
    if text == "":
        return None
    if key is not None and key.type == kinds.TEXT:
        return _number(text) if key.unit and _number(text) is not None else text
    number = _number(text)
    return text if number is None else number


def _number(text):
    for kind in (int, float):
        try:
            return kind(text) if "_" not in text else None
        except ValueError:
            continue
    return None
