"""Makes docs/run_folder.md and keras_nowcast/record.schema.json from the schema of the run folder.

    .venv/bin/python docs/make_run_folder.py          # writes both
    .venv/bin/python docs/make_run_folder.py --check  # writes nothing; exit status 1 if stale

The schema is keras_nowcast/schema.py and columns.py; the keys of `config` are RunConfig's fields.
"""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path

from keras_nowcast import columns, schema
from keras_nowcast.config import RunConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "run_folder.md"
JSON_SCHEMA = ROOT / "keras_nowcast" / "record.schema.json"
JSON_TYPES = {
    schema.TEXT: "string",
    schema.INTEGER: "integer",
    schema.NUMBER: "number",
    schema.BOOLEAN: "boolean",
    schema.OBJECT: "object",
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
}
REASON = {"type": "string"}


def main():
    """Writes the files that differ, or, with --check, names them."""
    stale = []
    for path, text in ((PAGE, _page()), (JSON_SCHEMA, _json_schema())):
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in sys.argv[1:]:
            stale.append(path)
        else:
            path.write_text(text)
    if stale:
        names = " and ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"stale: {names}; run: .venv/bin/python docs/make_run_folder.py")


# ---- record.schema.json --------------------------------------------------------------------------


def _json_schema():
    """Returns the JSON Schema of record.json, as text."""
    parts = {"config": _config_schema(), "roofs": _nullable(_object_schema(schema.ROOFS))}
    for section, keys in schema.SECTIONS.items():
        # A failed run has null for everything it could not measure.
        reasoned = [key.name for key in keys if section != "environment" and _is_measured(key)]
        parts[section] = _object_schema(keys, all_nullable=True, reasoned=reasoned)
    properties = {key.name: parts.get(key.name) or _key_schema(key) for key in schema.TOP}
    for key in schema.TOP:
        properties[key.name] = {"description": key.meaning, **properties[key.name]}
    properties["roofs_reason"] = REASON
    properties["schema"]["enum"] = list(range(1, schema.VERSION + 1))
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "record.json of a run folder of keras_nowcast",
        "description": (
            "A value that was not measured is null, with a <name>_reason next to it. Records of "
            "schema 1 may lack keys."
        ),
        "type": "object",
        "properties": properties,
        "required": [k.name for k in schema.TOP if k.since == 1 and k.name != "last_lines"],
        "additionalProperties": False,
        "allOf": [_of_version(version) for version in range(2, schema.VERSION + 1)],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _of_version(version):
    """Returns the JSON Schema that requires the keys that a version of the schema introduced."""

    def new(keys):
        return [key.name for key in keys if key.since == version]

    sections = {name: {"required": new(keys)} for name, keys in schema.SECTIONS.items()}
    return {
        "if": {"properties": {"schema": {"minimum": version}}, "required": ["schema"]},
        "then": {
            "required": new(schema.TOP),
            "properties": {name: each for name, each in sections.items() if each["required"]},
        },
    }


def _config_schema():
    properties = {}
    for each in dataclasses.fields(RunConfig):
        options = typing.get_args(each.type) or (each.type,)
        names = ["null" if kind is types.NoneType else JSON_TYPES[kind] for kind in options]
        properties[each.name] = {"type": names[0] if len(names) == 1 else names}
        properties[each.name]["description"] = each.metadata["help"]
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _object_schema(keys, all_nullable=False, reasoned=()):
    """Returns the JSON Schema of an object.

    Args:
      keys: its Keys.
      all_nullable: whether each may be null, as in the record of a failed run.
      reasoned: names of those that need a reason if they are null.
    """
    properties = {}
    for key in keys:
        may_be_null = all_nullable and _is_measured(key)
        properties[key.name] = _described(key, _nullable(_key_schema(key)) if may_be_null else None)
    described_object = {
        "type": "object",
        "properties": properties,
        "patternProperties": {"^[a-z0-9_]+_reason$": REASON},
        "required": [key.name for key in keys if key.since == 1],
        "additionalProperties": False,
    }
    if reasoned:
        described_object["allOf"] = [
            {
                "if": {"properties": {name: {"type": "null"}}, "required": [name]},
                "then": {"required": [f"{name}_reason"]},
            }
            for name in reasoned
        ]
    return described_object


def _is_measured(key):
    """Returns True if a key may be null: a value, not text about one and not a list of devices."""
    always = ("source", "source_reason", "devices", "windows", "power_limits", "not_included")
    return key.name not in always


def _described(key, value_schema):
    unit = f" ({key.unit})" if key.unit else ""
    return {"description": f"{key.meaning}{unit}", **(value_schema or _key_schema(key))}


def _key_schema(key):
    if key.type in (schema.TEXTS, schema.NUMBERS):
        item = {"type": "string" if key.type == schema.TEXTS else ["number", "null"]}
        value = {"type": "array", "items": item}
    elif key.type == schema.OBJECTS:
        value = {"type": "array", "items": _object_schema(key.members)}
    elif key.type == schema.OBJECT and key.members:
        value = {"type": "object", "additionalProperties": _object_schema(key.members)}
    elif key.type == schema.OBJECT:
        value = {"type": "object", "additionalProperties": {"type": "number"}}
    else:
        value = {"type": JSON_TYPES[key.type]}
        if key.unit == schema.FRACTION:
            value |= {"minimum": 0, "maximum": 1}
        elif key.type in (schema.NUMBER, schema.INTEGER) and not key.signed:
            value["minimum"] = 0
    if key.choices:
        value["enum"] = list(key.choices)
    return _nullable(value) if key.null else value


def _nullable(value):
    if isinstance(value["type"], list):
        return value
    value = {**value, "type": [value["type"], "null"]}
    if "enum" in value:
        value["enum"] = [*value["enum"], None]
    return value


# ---- run_folder.md -------------------------------------------------------------------------------

INTRODUCTION = """\
<!-- Made by docs/make_run_folder.py from keras_nowcast/schema.py and columns.py: edit those. -->

# Run folder

A run folder holds all files of one training run. It is the only connection between training and
everything that reads its results: tables, figures and plans need nothing else. For example:

```bash
.venv/bin/python experiments/train.py --run-dir runs/first --layer-times
.venv/bin/python experiments/evaluate.py runs/first
ls runs/first
```

```text
{listing}
```

To read a run in Python:

```python
from keras_nowcast.records import RunFolder

run = RunFolder("runs/first")
record = run.read_record()
print(record["status"], record["training"]["val_loss"], "after", record["training"]["seconds"], "s")
for row in run.read_epochs():
    print(row["epoch"], row["val_loss"], row["joules"])
```

A value that was not measured is null in record.json and an empty cell in a CSV file, never 0. In
record.json a `<name>_reason` next to the null gives the reason. A value that covers only part of
its time has a `*_reason` too.

After a crash, each of the .json, .csv and .keras files and each checkpoint is complete, or is the
version before the last write. There are two exceptions. Rows are added to power.csv; a crash can
cut its last row short, and readers skip that row. The file running.json is updated in place, and
readers treat it as empty if it is cut short.

What is read is checked against this page: each value by its type, numbers that cannot be negative,
fractions from 0 to 1, and the choices of texts. A file that does not fit is an error that names the
file, the key and what is there. A study leaves such a run out: [Sweep](sweep.md#odd-run-folders).
"""
RECORD = """\
`schema` is {version}. Records of earlier versions are still read; they lack keys, and a missing key
is read as null. A record of a newer version is refused. The JSON Schema of the file is
[keras_nowcast/record.schema.json](../keras_nowcast/record.schema.json). It is made from the same
source as this page, and the package contains it.

`status` is how the last start of the run ended:

- `completed`: it trained to its last epoch.
- `interrupted`: a signal stopped it, and a checkpoint is saved. Rerun it with --resume.
- `failed`: it could not continue. `status_reason` gives the reason: a rank died or stalled, a loss
  was not finite, too many events were unreadable, or a file could not be written.

A folder with config.json and without record.json holds a run that has not ended yet, or one that
was killed. A value is null if the run failed before it was known. If a cell of a sweep fails and
its process wrote no record, the sweep writes one. It holds what was counted before the start, and
everything else is null.

`training` and `energy` refer to the whole run, over all its starts: the first one and each
--resume. They count each step once. The first step of each start, which includes compilation, is
excluded.
"""
NOTES = {
    "model": "Counted by model/cost.py before the UNet is built; nothing here is measured.",
    "energy": (
        "If no energy was measured, all numbers are null. [Energy](energy.md) derives each value. "
        "`problems_reason`, if present, reports what went wrong with the sensors."
    ),
    "memory": "Read before the layers are timed.",
}


def _page():
    """Returns docs/run_folder.md, as text."""
    listing = "\n".join(sorted(each.name for each in columns.FILES if each.name != "tensorboard/"))
    lines = [INTRODUCTION.format(listing=listing)]
    lines += ["## Files", "", *_file_rows(), "", "## record.json", ""]
    lines += [RECORD.format(version=schema.VERSION), *_key_rows(schema.TOP), ""]
    lines += ["### config", "", "One key per flag of train.py, with underscores for hyphens.", ""]
    lines += [*_config_rows(), ""]
    for section, keys in (schema.SECTIONS | {"roofs": schema.ROOFS}).items():
        lines += [f"### {section}", ""]
        if section in NOTES:
            lines += [NOTES[section], ""]
        lines += [*_key_rows(keys), ""]
        for key in keys:
            if key.members:
                lines += [_member_title(section, key), "", *_key_rows(key.members), ""]
    for title, keys in _tables():
        lines += [f"## {title}", "", *_key_rows(keys, "column"), ""]
    return "\n".join(lines).rstrip() + "\n"


def _tables():
    """Yields (title, Keys) of each CSV file."""
    yield "epochs.csv", columns.EPOCHS + columns.MORE_OF_EPOCHS
    yield "power.csv", columns.POWER
    yield "layers.csv", columns.LAYERS
    yield "scores.csv", columns.SCORES + columns.MORE_OF_SCORES
    yield "differences.csv", columns.DIFFERENCES


def _file_rows():
    yield from ("| file | written by | content |", "|---|---|---|")
    for each in columns.FILES:
        yield f"| `{each.name}` | {each.when} | {each.meaning} |"


def _member_title(section, key):
    each = "each problem" if key.name == "problems" else "each entry"
    return f"**{section}.{key.name}**, {each}:"


def _key_rows(keys, head="key"):
    yield from (f"| {head} | type | unit | meaning | null if |", "|---|---|---|---|---|")
    for key in keys:
        meaning = key.meaning
        if key.choices:
            meaning += ": " + ", ".join(key.choices)
        # A vertical bar would end the cell.
        cells = (f"`{key.name}`", key.type, key.unit, meaning, key.null)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _config_rows():
    yield from ("| key | type | meaning |", "|---|---|---|")
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    for each in dataclasses.fields(RunConfig):
        options = typing.get_args(each.type) or (each.type,)
        kinds = " or ".join(names.get(kind, "null") for kind in options)
        meaning = each.metadata["help"]
        if each.metadata["choices"]:
            meaning += f" ({', '.join(each.metadata['choices'])})"
        meaning = meaning.replace("|", "\\|").replace("*", "\\*")
        yield f"| `{each.name}` | {kinds} | {meaning} |"


if __name__ == "__main__":
    main()
