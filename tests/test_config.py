"""Flags come from RunConfig; bad ones are one clear line."""

import dataclasses
import json

import pytest

from keras_nowcast.config import RunConfig, build_parser, parse_config
from keras_nowcast.errors import InputError

CONTRACT = (
    "--data --run-dir --depth --filters --center-filters --precision --grid --epochs "
    "--batch-per-replica --learning-rate --warmup-epochs --seed --resume --power-source "
    "--power-interval-s --window-stride --max-windows --max-missing --train-before --test-from"
).split()


def test_every_flag_of_the_contract_is_there():
    flags = {flag for action in build_parser("x")._actions for flag in action.option_strings}
    assert flags >= set(CONTRACT)


def test_flags_set_their_fields():
    config = parse_config("x", ["--grid", "128", "--learning-rate", "2e-3", "--data", "a b"])
    assert config == RunConfig(grid=128, learning_rate=2e-3, data="a b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "9"], ["`--depth`", "1 to 6", "Received: 9"]),
        (["--grid", "100"], ["`--grid`", "multiple of 16", "Received: 100"]),
        (["--precision", "float8"], ["`--precision`", "mixed_bfloat16", "Received: float8"]),
        (["--power-source", "meter"], ["`--power-source`", "rapl", "Received: meter"]),
        (["--bogus"], ["`--bogus`", "no flag"]),
        (["--dep", "3"], ["`--dep`", "no flag"]),
        (["--epochs", "many"], ["`--epochs`", "int", "Received: 'many'"]),
        (["--epochs", "0"], ["`--epochs`", "at least 1", "Received: 0"]),
        (["--max-missing", "2"], ["`--max-missing`", "0 to 1", "Received: 2"]),
        (["--max-missing", "nan"], ["`--max-missing`", "Received: nan"]),
        (["--learning-rate", "nan"], ["`--learning-rate`", "Received: nan"]),
        (["--warmup-epochs", "nan"], ["`--warmup-epochs`", "Received: nan"]),
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


def test_resume_takes_what_is_not_given_from_the_run(tmp_path):
    stored = dataclasses.asdict(RunConfig(depth=2, filters=8, run_dir=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = parse_config("x", ["--resume", "--run-dir", str(tmp_path), "--epochs", "20"])
    assert config == RunConfig(
        depth=2, filters=8, run_dir=str(tmp_path), epochs=20, resume=True
    )
