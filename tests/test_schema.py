"""The schema of the run folder, and the two files that are made from it."""

import copy
import runpy
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import valid_record

from keras_nowcast import columns, records, schema

ROOT = Path(__file__).parents[1]
MADE = ("docs/run_folder.md", "keras_nowcast/record.schema.json")


def complete(record):
    """Returns an empty record with the keys that the writer adds."""
    return {
        "schema": schema.VERSION,
        "status": "failed",
        "status_reason": "x",
        "config": {},
    } | record


def test_the_page_and_the_json_schema_are_not_stale():
    command = [sys.executable, str(ROOT / "docs" / "make_run_folder.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stale_file_is_named(tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "docs" / "make_run_folder.py"))
    page = tmp_path / "docs" / "run_folder.md"
    page.parent.mkdir()
    page.write_text("old")
    monkeypatch.setitem(script["main"].__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(script["main"].__globals__, "PAGE", page)
    json_schema = tmp_path / "keras_nowcast" / "record.schema.json"
    monkeypatch.setitem(script["main"].__globals__, "JSON_SCHEMA", json_schema)
    monkeypatch.setattr(sys, "argv", ["make_run_folder.py", "--check"])
    with pytest.raises(
        SystemExit, match="stale: .*docs/run_folder.md.*; run: .venv/bin/python docs/make"
    ):
        script["main"]()
    assert page.read_text() == "old"


def test_the_json_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(valid_record.validator().schema)


def test_names_are_unique():
    lists = [schema.TOP, schema.ROOFS, *schema.SECTIONS.values()]
    lists += [key.members for keys in schema.SECTIONS.values() for key in keys if key.members]
    lists += [columns.EPOCHS + columns.MORE_OF_EPOCHS, columns.POWER, columns.LAYERS]
    lists += [columns.SCORES + columns.MORE_OF_SCORES, columns.DIFFERENCES]
    for keys in lists:
        assert len(set(schema.names(keys))) == len(keys)


def test_an_empty_record_has_every_key_and_its_reason():
    record = records.empty_record("the run failed")
    assert valid_record.violations(complete(record)) == []
    for section, keys in schema.SECTIONS.items():
        for name in schema.names(keys):
            assert name in record[section]
            if record[section][name] is None:
                assert record[section][f"{name}_reason"] == "the run failed"
    assert record["training"]["seconds"] is None and record["environment"]["gpus"] is None
    energy = record["energy"]
    assert (energy["source"], energy["source_reason"]) == ("none", "the run failed")
    assert energy["devices"] == energy["windows"] == energy["power_limits"] == []
    assert energy["not_included"] == []
    assert record["roofs"] is None and record["roofs_reason"] == "the run failed"


def test_what_is_filled_in_has_no_reason():
    record = records.empty_record("the run failed")
    records.fill(record["training"], epochs=3, loss=None)
    assert record["training"]["epochs"] == 3 and "epochs_reason" not in record["training"]
    assert "loss_reason" not in record["training"] and "steps_reason" in record["training"]


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda record: record["training"].pop("seconds"), "training: 'seconds' is a required"),
        (lambda record: record["training"].pop("loss_reason"), "training: 'loss_reason' is a req"),
        (
            lambda record: record["memory"].update(swap_bytes=1),
            "memory: 'swap_bytes' does not match",
        ),
        (lambda record: record["energy"].update(coverage=1.5), "energy/coverage: 1.5 is greater"),
        (lambda record: record["energy"].update(source="guess"), "energy/source: 'guess' is not"),
        (lambda record: record["config"].update(width=3), "config: Additional properties"),
        (lambda record: record["config"].update(depth="3"), "config/depth: '3' is not of type"),
        (lambda record: record.update(schema=6), "schema: 6 is not one of"),
        (lambda record: record.update(status="running"), "status: 'running' is not one of"),
        (lambda record: record.pop("roofs"), ": 'roofs' is a required property"),
    ],
)
def test_what_breaks_the_schema_is_found(change, told):
    record = copy.deepcopy(complete(records.empty_record("the run failed")))
    change(record)
    (line,) = valid_record.violations(record)
    assert line.startswith(told)
