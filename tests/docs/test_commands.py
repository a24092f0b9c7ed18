"""Every command of README and docs is run here, or listed in documented.py with the reason."""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import documented
import pytest
from documented import PYTHON, ROOT

SCRIPTS = [words for words in documented.all_commands() if documented.script_of(words)]
SMALL = ["--grid", "24", "--depth", "1", "--filters", "2", "--epochs", "1", "--max-windows", "4"]
# What makes the run of a script small; the last value of a flag counts.
SMALLER = {
    "make_synthetic.py": ["--events", "10", "--size", "48", "--frames", "25"],
    "make_dataset.py": ["--grid", "24"],
    "train.py": [*SMALL, "--warmup-epochs", "0", "--test-from", "2019-06-01"],
    "evaluate.py": ["--max-events", "2"],
    "sweep.py": ["--grid", "24", "--dry-run"],
    "cost.py": ["--grid", "48"],
}
# This sweep trains, instead of listing its cells.
TRAINED_SWEEP = "--depth 3 4 --filters 8 16 --precision float32 auto --grid 64"
# Data sets that the reader of a page has, and folders of runs that another command makes.
DATA = ("/data/sevir", "/data/radar")
COPIES = {"runs/large": "runs/first"}


class Parsed(Exception):
    """The arguments of a script were accepted."""


def load(script):
    """Returns the module of a script without running it."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_is_run_or_has_a_reason():
    unknown = [
        f"{page}: {' '.join(words)}"
        for words, page in documented.all_commands().items()
        if documented.reason_not_run(words) is None and not documented.script_of(words)
    ]
    assert not unknown, "list it in documented.py, with the reason why it is not run"


def test_no_reason_is_left_over():
    lines = [" ".join(words) for words in documented.all_commands()]
    for start in documented.NOT_HERE:
        assert any(line.startswith(start) for line in lines), start
    for pattern in documented.PARSED_ONLY:
        assert any(re.match(pattern, line) for line in lines), pattern


def test_each_make_target_is_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words, page in documented.all_commands().items():
        if words[0] == "make":
            assert words[1] in targets, f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_arguments_are_accepted(words, monkeypatch):
    script, arguments = documented.script_of(words)
    assert (ROOT / script).is_file()
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *given, **more):
        parse(self, *given, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    module = load(script)
    with pytest.raises(Parsed):
        module.main()


def test_training_commands_make_a_valid_configuration():
    from keras_nowcast.command_line import parse_config

    read_preset = load("experiments/train.py").read_preset
    for words in SCRIPTS:
        script, arguments = documented.script_of(words)
        if script == "experiments/train.py":
            assert parse_config("", arguments, read_preset).epochs > 0


def here(word, folder):
    """Returns a word of a command with the data of the tests in place of the reader's."""
    for data in DATA:
        if word == data or word.startswith(f"{data}_") or re.fullmatch(rf"{data}\d+", word):
            return str(folder / "data" / word.removeprefix("/data/"))
    return word


def to_run(folder):
    """Returns the commands that run here, in a reader's order: [script, arguments, launcher]."""
    chosen = []
    for words in SCRIPTS:
        if documented.reason_not_run(words) is not None:
            continue
        script, arguments = documented.script_of(words)
        smaller = SMALLER.get(Path(script).name, [])
        if " ".join(arguments) == TRAINED_SWEEP:
            smaller = [*SMALL, "--filters", "2", "3", "--precision", "float32"]
        if {"--resume", "--verify"} & set(arguments):
            smaller = []
        launcher = [] if words[0] == PYTHON else list(words[: words.index(PYTHON)])
        chosen.append([script, [here(word, folder) for word in arguments] + smaller, launcher])
    return sorted(chosen, key=turn)


def turn(command):
    """Returns what sorts a command behind those whose files it reads."""
    script, arguments, _ = command
    order = ("make_synthetic", "make_dataset", "train", "evaluate")
    stem = Path(script).stem
    later = ("--start-from", "--verify", "--resume")
    return order.index(stem) if stem in order else len(order), any(
        flag in arguments for flag in later
    )


def start(ranks, script, arguments, folder):
    """Runs one command on several ranks."""
    programs = {".venv/bin/horovodrun": str(Path(sys.executable).with_name("horovodrun"))}
    command = [programs.get(word, word) for word in ranks]
    command += [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **quiet, **root}


def can_start(ranks):
    """Returns False for mpirun if it is not there, or if Horovod was built without MPI."""
    if not ranks or ranks[0] != "mpirun":
        return True
    if not shutil.which("mpirun"):
        return False
    built = "import horovod.tensorflow as hvd, sys; sys.exit(not hvd.mpi_built())"
    command = [sys.executable, "-c", built]
    return not subprocess.run(command, env=environment(), capture_output=True).returncode


@pytest.mark.slow
def test_commands_run(tmp_path):
    """One process runs all commands of one rank, so that TensorFlow starts once for them."""
    from keras_nowcast.data.synthetic import write_synthetic

    for data in DATA:
        root = tmp_path / "data" / Path(data).name
        write_synthetic(root, events=50, size=48, frames=25, progress=False)
    commands = [each for each in to_run(tmp_path) if can_start(each[2])]
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    work = tmp_path / "commands.json"
    work.write_text(json.dumps({"commands": commands, "copies": COPIES, "blocks": blocks}))
    done = start([], "tests/docs/run_commands.py", [str(work)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
