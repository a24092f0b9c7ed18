"""Faults in a data set's catalog: in its cells, its rows and columns, and its text."""

import csv

from fuzz_intact import COLUMNS, write_catalog

_WORDS = (
    "",
    " ",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1e400",
    "NULL",
    "None",
    "-1",
    "-0",
    "0",
    "1",
    "2",
    "3",
    "1e3",
    "1.5",
    "0x10",
    "1_0",
    "١",
    "99999999999999999999",
    "9" * 5000,
    "'",
    '"',
    '""',
    ";",
    "$(touch pwned)",
    "`touch pwned`",
    "%s%n",
    "\r\n",
    "\n",
    "\0",
    "\ufeff",
    "\u202e",
    "🌧" * 100,
    "x" * 300,
    "x" * 200000,
    "../../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "CATALOG.csv",
    "vil/../vil/2018/0.h5",
    "//",
    "vil\\2018\\0.h5",
    "s3://bucket/0.h5",
    "2019-06-01",
    "2019-06-01T00:00:00Z",
    "0001-01-01 00:00:00+23:59",
    "9999-12-31 23:59:59-23:59",
    "2019-02-30 00:00:00",
    "6/1/19 0:00",
    "13/13/2019 0:00",
    "0:5:10",
    ":",
    "0:x",
    "-9" * 30,
    "S1",
    "S5",
    "vil",
    "VIL",
    "ir069",
)


def spoil_cell(root, rng):
    """Puts unexpected text into one to three cells."""
    rows = _rows(root)
    said = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        column = rng.choice(
            [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 14, 15, 20, 20, rng.randrange(len(COLUMNS))]
        )
        word = rng.choice(_WORDS)
        row = rng.choice(rows[1:])
        row += [""] * (len(COLUMNS) - len(row))  # another fault may have truncated it
        row[column] = word
        said.append(f"{COLUMNS[column]} {word[:30]!r}")
    write_catalog(root, rows)
    return ", ".join(said)


def spoil_rows(root, rng):
    """Repeats, leaves out, shuffles, shortens or lengthens rows."""
    rows = _rows(root)
    place = rng.randrange(1, len(rows))
    kind = rng.choice(
        [
            "repeated",
            "repeated id",
            "dropped",
            "shuffled",
            "short",
            "long",
            "blank",
            "all repeated",
            "header again",
            "cells exchanged",
        ]
    )
    if kind == "repeated":
        rows.insert(place, rows[place])
    elif kind == "repeated id":
        rows[place] = [rows[1][0], *rows[place][1:]]
    elif kind == "dropped":
        del rows[place : place + rng.randrange(1, 7)]
    elif kind == "shuffled":
        rows[1:] = rng.sample(rows[1:], len(rows) - 1)
    elif kind == "short":
        rows[place] = rows[place][: rng.randrange(len(COLUMNS))]
    elif kind == "long":
        rows[place] = [*rows[place], "more", "cells"]
    elif kind == "blank":
        rows.insert(place, [])
    elif kind == "all repeated":
        rows += rows[1:]
    elif kind == "header again":
        rows.insert(place, list(COLUMNS))
    else:
        other, column = rng.randrange(1, len(rows)), rng.randrange(len(COLUMNS))
        rows[place][column], rows[other][column] = rows[other][column], rows[place][column]
    write_catalog(root, rows)
    return kind


def spoil_columns(root, rng):
    """Leaves out, renames, repeats or shuffles columns."""
    rows = _rows(root)
    kind = rng.choice(["absent", "renamed", "repeated", "shuffled", "no header"])
    place = rng.randrange(len(COLUMNS))
    if kind == "absent":
        rows = [row[:place] + row[place + 1 :] for row in rows]
    elif kind == "renamed":
        rows[0][place] = rows[0][place].upper()
    elif kind == "repeated":
        rows = [[*row, row[place]] for row in rows]
    elif kind == "shuffled":
        order = rng.sample(range(len(COLUMNS)), len(COLUMNS))
        rows = [[row[column] for column in order] for row in rows]
    else:
        del rows[0]
    write_catalog(root, rows)
    return kind if kind in ("shuffled", "no header") else f"{COLUMNS[place]} {kind}"


def spoil_text(root, rng):
    """Changes the catalog's bytes: encoding, ends of lines, quotes, holes, a cut."""
    path = root / "CATALOG.csv"
    raw = path.read_bytes()
    place = rng.randrange(len(raw))
    changed = {
        "BOM": b"\xef\xbb\xbf" + raw,
        "CRLF": raw.replace(b"\n", b"\r\n"),
        "CR": raw.replace(b"\n", b"\r"),
        "UTF-16": raw.decode().encode("utf-16"),
        "not UTF-8": raw[:place] + b"\xff\xfe\xe9" + raw[place:],
        "NUL": raw[:place] + b"\0" + raw[place:],
        "quote": raw[:place] + b'"' + raw[place:],
        "cut": raw[:place],
        "empty": b"",
        "semicolons": raw.replace(b",", b";"),
        "HDF5": b"\x89HDF\r\n\x1a\n" + rng.randbytes(500),
        "one long line": raw.replace(b"\n", b" "),
        "long": raw + b'"' + b"x" * 200000,
        "noise": bytes(each if rng.random() > 0.01 else rng.randrange(256) for each in raw),
    }
    kind = rng.choice([*changed, "folder", "absent"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_bytes(changed[kind])
    return kind


def _rows(root):
    csv.field_size_limit(10**6)
    with open(root / "CATALOG.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))
