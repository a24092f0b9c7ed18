"""An odd config.json: --resume and evaluate.py end with one line that names file and key."""

import dataclasses
import json

import pytest

from keras_nowcast.command_line import parse_config
from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder

ODD = {
    "unknown key": (dict(flag_of_a_later_version=3), "`flag_of_a_later_version`; remove the key"),
    "null": (dict(seed=None), "must have an integer as `seed`. Received: null"),
    "text": (dict(depth="2"), "must have an integer as `depth`. Received: the text '2'"),
    "half": (dict(depth=2.5), "must have an integer as `depth`. Received: 2.5"),
    "number": (dict(data=3), "must have a text or null as `data`. Received: 3"),
    "true": (dict(epochs=True), "must have an integer as `epochs`. Received: true"),
    "one": (dict(augment=1), "must have true or false as `augment`. Received: 1"),
    "list": (dict(learning_rate=[1]), "must have a number as `learning_rate`. Received: a list"),
    "below": (dict(epochs=0), "must have at least 1 as `epochs`. Received: 0"),
    "choice": (dict(schedule="step"), "must have one of constant, cosine as `schedule`"),
    "sizes": (dict(grid=47), "sizes of a model that is possible. Received: `--grid` must be"),
    "date": (dict(test_from="31/12/2018"), "must have a date, YYYY-MM-DD, or null as `test_from`"),
}


@pytest.fixture
def stored(tmp_path):
    """Writes config.json with changed values, or a text, and returns its folder."""

    def write(change):
        values = dataclasses.asdict(RunConfig(run_dir=str(tmp_path))) | {"grid": 48}
        text = change if isinstance(change, str) else json.dumps(values | change)
        (tmp_path / "config.json").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("how", ODD)
def test_resume_names_the_key_and_the_file(stored, how):
    change, named = ODD[how]
    run = stored(change)
    with pytest.raises(InputError) as error:
        parse_config("x", ["--resume", "--run-dir", str(run)])
    assert named in str(error.value) and str(error.value).startswith(f"{run}/config.json must")


@pytest.mark.parametrize("text", ["", "[1]", "null", "3", "{", '{"depth": NaN}', "\0\0"])
def test_resume_names_a_file_that_is_no_object(stored, text):
    run = stored(text)
    with pytest.raises(InputError, match=rf"{run}/config.json must (be JSON|hold a JSON object)"):
        parse_config("x", ["--resume", "--run-dir", str(run)])


def test_resume_names_a_link_to_nothing(tmp_path):
    (tmp_path / "config.json").symlink_to("gone")
    with pytest.raises(InputError, match="config.json must be a file. Received: a link that leads"):
        parse_config("x", ["--resume", "--run-dir", str(tmp_path)])
    with pytest.raises(InputError, match="`--run-dir` must not hold a run already"):
        RunFolder(tmp_path).check(RunConfig(run_dir=str(tmp_path)))


@pytest.mark.parametrize("name", ["max_missing", "depth", "precision", "learning_rate"])
def test_a_key_that_every_version_wrote_is_missed(stored, name):
    run = stored({})
    values = json.loads((run / "config.json").read_text())
    del values[name]
    run = stored(json.dumps(values))
    with pytest.raises(InputError, match=f"config.json must have `{name}`. Received: nothing"):
        RunFolder(run).stored_config()


def test_keys_of_later_versions_may_be_absent(stored):
    values = json.loads((stored({}) / "config.json").read_text())
    for name in ("lr_scaling", "deterministic", "start_from", "stall_seconds", "layer_times"):
        del values[name]
    assert RunFolder(stored(json.dumps(values))).stored_config() == values


@pytest.mark.parametrize("how", ["unknown key", "null", "text"])
def test_train_ends_at_once(stored, script_here, how):
    change, named = ODD[how]
    done = script_here("train.py", "--resume", "--run-dir", stored(change), "--epochs", 20)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr and done.stderr.count("\n") == 1


def test_evaluate_ends_at_once(stored, script_here):
    values = json.loads((stored({}) / "config.json").read_text())
    del values["max_missing"]
    for text, named in ((json.dumps(values), "must have `max_missing`"), ("[1]", "a JSON object")):
        done = script_here("evaluate.py", stored(text))
        assert (done.returncode, done.stdout) == (2, "")
        assert named in done.stderr and done.stderr.count("\n") == 1
