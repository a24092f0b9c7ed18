"""Flags come from RunConfig; bad ones are one clear line."""

import dataclasses
import json
from pathlib import Path

import pytest

from keras_nowcast import config as config_module
from keras_nowcast.command_line import parse_config
from keras_nowcast.config import RunConfig, completed, names_of
from keras_nowcast.errors import InputError
from keras_nowcast.flags import build_parser
from keras_nowcast.sweep.cells import read_preset

PRESETS = Path(__file__).parents[1] / "experiments" / "presets"
CONTRACT = (
    "--data --run-dir --depth --filters --center-filters --precision --grid --epochs "
    "--batch-per-replica --learning-rate --warmup-epochs --seed --resume --power-source "
    "--power-interval-s --window-stride --max-windows --max-missing --train-before --test-from"
).split()


def preset(name):
    return read_preset(PRESETS, name)


def test_every_flag_of_the_contract_is_there():
    flags = {flag for action in build_parser("x")._actions for flag in action.option_strings}
    assert flags >= set(CONTRACT)


def test_flags_set_their_fields():
    words = ["--grid", "128", "--learning-rate", "2e-3", "--data", "a b"]
    config = parse_config("x", words)
    assert config == RunConfig(grid=128, learning_rate=2e-3, data="a b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "9"], ["`--depth`", "1 to 6", "Received: 9"]),
        (["--grid", "100"], ["`--grid`", "multiple of 16", "Received: 100"]),
        (["--precision", "float8"], ["`--precision`", "mixed_bfloat16", "Received: float8"]),
        (["--power-source", "meter"], ["`--power-source`", "rapl", "Received: meter"]),
        (["--layer-times", "yes"], ["`yes`", "not a flag"]),
        (["--bogus"], ["`--bogus`", "not a flag"]),
        (["--dep", "3"], ["`--dep`", "not a flag"]),
        (["--epochs", "many"], ["`--epochs`", "int", "Received: 'many'"]),
        (["--epochs", "0"], ["`--epochs`", "at least 1", "Received: 0"]),
        (["--max-missing", "2"], ["`--max-missing`", "0 to 1", "Received: 2"]),
        (["--max-missing", "nan"], ["`--max-missing`", "Received: nan"]),
        (["--learning-rate", "nan"], ["`--learning-rate`", "Received: nan"]),
        (["--warmup-epochs", "nan"], ["`--warmup-epochs`", "Received: nan"]),
        (
            ["--schedule", "cosine", "--epochs", "2", "--warmup-epochs", "2"],
            ["`--schedule cosine`", "more `--epochs`", "Received: 2 and 2;", "constant"],
        ),
        (["--lr-scaling", "half"], ["`--lr-scaling`", "linear, sqrt, none", "Received: half"]),
        (["--train-before", "June"], ["`--train-before`", "YYYY-MM-DD", "Received: 'June'"]),
        (["--resume"], ["`--resume`", "--run-dir"]),
    ],
)
def test_bad_flags(arguments, words):
    with pytest.raises(InputError) as raised:
        parse_config("x", arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_fields_of_each_role():
    """A new field is listed here too, if its role is meant."""
    roles = config_module
    assert roles.MAY_CHANGE_ON_RESUME == {
        *("data", "run_dir", "epochs", "resume", "power_source", "power_interval_s"),
        *("watts_per_core", "tensorboard", "checkpoint_minutes", "stall_seconds"),
        *("skip_bad_events", "layer_times", "reader_threads"),
    }
    assert names_of(roles.SIZE) == ("depth", "filters", "center_filters")
    assert set(names_of(roles.EVENTS)) == {
        *("data", "max_missing", "train_before", "test_from", "authors_split")
    }
    assert names_of(roles.WINDOWS) == ("window_stride", "max_windows")
    assert names_of(roles.SEED) == ("seed",)
    assert names_of(roles.FOLDER) == ("run_dir", "resume")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("learning_rate", float("inf"), "above 0 and finite"),
        ("learning_rate", 0.0, "above 0 and finite"),
        ("warmup_epochs", float("inf"), "at least 0 and finite"),
        ("seed", 2**31, "from 0 to 2147483647"),
        ("seed", -1, "from 0 to 2147483647"),
        ("power_interval_s", 0.0005, "from 0.001 to 60"),
        ("stall_seconds", 0.5, "at least 1 and finite"),
        ("stall_seconds", float("inf"), "at least 1 and finite"),
        ("checkpoint_minutes", float("inf"), "at least 0 and finite"),
        ("watts_per_core", float("nan"), "above 0 and below 1000"),
        ("power_limit_w", float("nan"), "above 0 and finite"),
        ("center_filters", 0, "at least 1"),
        ("reader_threads", 0, "at least 1"),
    ],
)
def test_bounds_are_rules(field, value, rule):
    with pytest.raises(InputError, match=f"must be {rule}. Received: {value}"):
        RunConfig(**{field: value})


def test_values_on_the_bounds_are_allowed():
    RunConfig(seed=2**31 - 1, power_interval_s=60, max_missing=0.0, stall_seconds=1.0)
    RunConfig(center_filters=None, grid=None)


def test_a_cosine_needs_room_to_fall_a_constant_rate_does_not():
    assert RunConfig(schedule="cosine", epochs=2, warmup_epochs=1.9).epochs == 2
    assert RunConfig(epochs=1, warmup_epochs=2.0).schedule == "constant"


def test_resume_takes_what_is_not_given_from_the_run(tmp_path):
    stored = dataclasses.asdict(RunConfig(depth=2, filters=8, run_dir=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = parse_config("x", ["--resume", "--run-dir", str(tmp_path), "--epochs", "20"])
    assert config == RunConfig(depth=2, filters=8, run_dir=str(tmp_path), epochs=20, resume=True)


def test_a_field_that_the_run_did_not_have_keeps_the_value_of_its_time(tmp_path):
    stored = dataclasses.asdict(RunConfig(depth=2))
    del stored["lr_scaling"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    words = ["--resume", "--run-dir", str(tmp_path)]
    assert parse_config("x", words).lr_scaling == "linear"
    assert completed({"depth": 2, "lr_scaling": "sqrt"})["lr_scaling"] == "sqrt"
    assert completed({"depth": 2}) == {**dataclasses.asdict(RunConfig(depth=2))}
    assert parse_config("x", [*words, "--lr-scaling", "sqrt"]).lr_scaling == "sqrt"


def test_a_preset_is_what_flags_begin_from():
    start = parse_config("x", ["--preset", "real_radar"], preset)
    assert (start.grid, start.augment, start.test_from) == (128, True, "2016-09-01")
    changed = parse_config("x", ["--preset", "real_radar", "--grid", "64", "--seed", "3"], preset)
    assert changed == dataclasses.replace(start, grid=64, seed=3)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.py")), ids=lambda path: path.stem)
def test_every_preset_is_made_of_configs(path):
    for run in read_preset(PRESETS, path.stem):
        # A depth that does not fit the grid is a result of a sweep.
        RunConfig(**{**run.settings, "grid": None})
        assert run.processes >= 1


def test_a_preset_of_many_runs_is_not_one_run(tmp_path):
    many = tmp_path / "many.py"
    many.write_text(
        "from keras_nowcast.sweep.cells import all_combinations\n"
        "RUNS = all_combinations(filters=(4, 8))\n"
    )
    with pytest.raises(InputError, match="`--preset` must have a single run here.*2; exp"):
        parse_config("x", ["--preset", str(many)], preset)
    with pytest.raises(InputError, match="`--preset` must be one of .*real_radar.*Received: none"):
        parse_config("x", ["--preset", "none"], preset)
