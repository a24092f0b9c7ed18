"""Flags come from RunConfig; bad ones are one clear line."""

import dataclasses
import json
from pathlib import Path

import pytest

from keras_nowcast.config import RunConfig, build_parser, parse_config, read_preset
from keras_nowcast.errors import InputError

PRESETS = Path(__file__).parents[1] / "experiments" / "presets"
CONTRACT = (
    "--data --run-dir --depth --filters --center-filters --precision --grid --epochs "
    "--batch-per-replica --learning-rate --warmup-epochs --seed --resume --power-source "
    "--power-interval-s --window-stride --max-windows --max-missing --train-before --test-from"
).split()


def test_every_flag_of_the_contract_is_there():
    flags = {flag for action in build_parser("x")._actions for flag in action.option_strings}
    assert flags >= set(CONTRACT)


def test_flags_set_their_fields():
    words = ["--grid", "128", "--learning-rate", "2e-3", "--data", "a b"]
    config = parse_config("x", PRESETS, words)
    assert config == RunConfig(grid=128, learning_rate=2e-3, data="a b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "9"], ["`--depth`", "1 to 6", "Received: 9"]),
        (["--grid", "100"], ["`--grid`", "multiple of 16", "Received: 100"]),
        (["--precision", "float8"], ["`--precision`", "mixed_bfloat16", "Received: float8"]),
        (["--power-source", "meter"], ["`--power-source`", "rapl", "Received: meter"]),
        (["--layer-times", "yes"], ["`yes`", "no flag"]),
        (["--bogus"], ["`--bogus`", "no flag"]),
        (["--dep", "3"], ["`--dep`", "no flag"]),
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
        (["--train-before", "June"], ["`--train-before`", "YYYY-MM-DD", "Received: 'June'"]),
        (["--resume"], ["`--resume`", "--run-dir"]),
    ],
)
def test_bad_flags(arguments, words):
    with pytest.raises(InputError) as raised:
        parse_config("x", PRESETS, arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_cosine_needs_room_to_fall_a_constant_rate_does_not():
    assert RunConfig(schedule="cosine", epochs=2, warmup_epochs=1.9).epochs == 2
    assert RunConfig(epochs=1, warmup_epochs=2.0).schedule == "constant"


def test_resume_takes_what_is_not_given_from_the_run(tmp_path):
    stored = dataclasses.asdict(RunConfig(depth=2, filters=8, run_dir=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = parse_config("x", PRESETS, ["--resume", "--run-dir", str(tmp_path), "--epochs", "20"])
    assert config == RunConfig(depth=2, filters=8, run_dir=str(tmp_path), epochs=20, resume=True)


def test_a_preset_is_what_flags_begin_from():
    preset = parse_config("x", PRESETS, ["--preset", "real_radar"])
    assert (preset.grid, preset.augment, preset.test_from) == (128, True, "2016-09-01")
    changed = parse_config("x", PRESETS, ["--preset", "real_radar", "--grid", "64", "--seed", "3"])
    assert changed == dataclasses.replace(preset, grid=64, seed=3)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.py")), ids=lambda path: path.stem)
def test_every_preset_is_made_of_configs(path):
    for run in read_preset(PRESETS, path.stem):
        # A depth that does not fit the grid is a result of a sweep.
        RunConfig(**{**run.settings, "grid": None})
        assert run.processes >= 1


def test_a_preset_of_many_runs_is_not_one_run(tmp_path):
    many = tmp_path / "many.py"
    many.write_text(
        "from keras_nowcast.sweep.cells import grid_of\nRUNS = grid_of(filters=(4, 8))\n"
    )
    with pytest.raises(InputError, match="`--preset` must be one of a single run here.*2; exp"):
        parse_config("x", PRESETS, ["--preset", str(many)])
    with pytest.raises(InputError, match="`--preset` must be one of .*real_radar.*Received: none"):
        parse_config("x", PRESETS, ["--preset", "none"])
