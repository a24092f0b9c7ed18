"""The run folder."""

import dataclasses
import json
import math
import signal
import subprocess
import sys

import pytest

from keras_nowcast import records, schema
from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock, written_whole


def test_a_number_that_is_not_finite_is_null_with_its_reason():
    assert records.without_nan({"a": math.nan, "b": [1.0, math.inf], "c": {"d": -math.inf}}) == {
        "a": None,
        "a_reason": "the value is nan",
        "b": [1.0, None],
        "c": {"d": None, "d_reason": "the value is -inf"},
    }


def test_a_given_reason_is_kept():
    value = {"a_reason": "cold", "a": math.nan}
    assert records.without_nan(value) == {"a": None, "a_reason": "cold"}


def test_epochs_are_read_as_written(tmp_path):
    folder = records.RunFolder(tmp_path)
    row = dict.fromkeys(records.EPOCH_COLUMNS, 1.5) | {"epoch": 0, "joules": None, "samples": 7}
    row["skipped_steps"] = 2
    folder.write_epochs([row])
    assert folder.read_epochs() == [row]
    header = (tmp_path / "epochs.csv").read_text().splitlines()[0]
    assert header == (
        "epoch,loss,val_loss,learning_rate,loss_scale,skipped_steps,seconds,val_seconds,"
        "samples_per_second,joules,samples"
    )


def test_layers_are_read_as_written(tmp_path):
    folder = records.RunFolder(tmp_path)
    assert folder.read_layers() == []  # a run of an earlier version, or without --layer-times
    row = dict.fromkeys(records.LAYER_COLUMNS, 0.5) | {"name": "head", "kind": "convolution"}
    row |= {"flops": 100, "bytes": 10, "repetitions": 5}
    folder.write_layers([row])
    assert folder.read_layers() == [row]


def opened(path, **fields):
    folder = records.RunFolder(path)
    folder.check(RunConfig(run_dir=str(path), **fields))
    folder.open(RunConfig(run_dir=str(path), **fields))
    return folder


def test_a_run_is_not_written_over(tmp_path):
    opened(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError, match="`--run-dir` must not hold a run already.*unfinished"):
        opened(tmp_path / "run", filters=8)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_resume_without_a_run(tmp_path):
    with pytest.raises(InputError, match="`--resume` needs a run"):
        opened(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_resume_as_another_run(tmp_path):
    opened(tmp_path, filters=8)
    with pytest.raises(InputError, match="`--filters` must stay .* 8. Received: 16"):
        opened(tmp_path, filters=16, resume=True)
    opened(tmp_path, filters=8, epochs=99, resume=True)


def test_resume_of_a_run_from_before_a_field(tmp_path):
    """It had the value that such runs had, and keeps it."""
    opened(tmp_path, filters=8)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored.pop("lr_scaling") == "linear"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="`--lr-scaling` must stay .* 'linear'. Received: 'sqrt'"):
        opened(tmp_path, filters=8, lr_scaling="sqrt", resume=True)
    opened(tmp_path, filters=8, resume=True)


OPEN_AND_DIE = """
import os, signal, sys
from keras_nowcast.config import RunConfig
from keras_nowcast.records import RunFolder

config, left = RunConfig(run_dir=sys.argv[1]), int(sys.argv[2])

def die(event, arguments):
    global left
    if event in ("open", "os.mkdir", "os.link", "os.rename", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
RunFolder(config.run_dir).open(config)
os._exit(0)
"""


def test_killed_at_any_moment_a_folder_holds_a_whole_run_or_none(tmp_path):
    """Before each operation on files, until there is none left to be killed at."""
    went_on = []
    for moment in range(50):
        path = tmp_path / str(moment)
        done = subprocess.run([sys.executable, "-c", OPEN_AND_DIE, str(path), str(moment)])
        started = (path / "config.json").exists()  # what slurm/train.sbatch asks
        opened(path, resume=started)
        assert records.RunFolder(path).stored_config()["run_dir"] == str(path)
        went_on.append(started)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert not went_on[0] and went_on[-2:] == [True, True]


def test_of_two_that_open_a_folder_one_gets_it(tmp_path):
    config = RunConfig(run_dir=str(tmp_path))
    records.RunFolder(tmp_path).open(config)
    with pytest.raises(InputError, match="which another process has just taken"):
        records.RunFolder(tmp_path).open(dataclasses.replace(config, depth=1))
    assert records.RunFolder(tmp_path).stored_config()["depth"] == 4


def test_a_new_file_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    test_of_two_that_open_a_folder_one_gets_it(tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`--run-dir` must be a writable folder"):
        opened(tmp_path / "file" / "run")


def test_runs_are_found_at_any_depth(tmp_path):
    for name in ("b", "a/c"):
        folder = opened(tmp_path / name)
        folder.write_record({"status": "failed"})
    runs = records.read_runs([tmp_path, tmp_path / "b"])
    assert [folder.path.name for folder, _ in runs] == ["c", "b"]
    assert runs[0][1] == {"schema": schema.VERSION, "status": "failed"}


@pytest.mark.parametrize("name", ["absent", "."])
def test_no_runs(tmp_path, name):
    with pytest.raises(InputError, match="`runs` must"):
        records.read_runs([tmp_path / name])


def test_a_file_is_whole_or_the_former_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as beside:
        beside.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    with written_whole(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_config_is_stored(tmp_path):
    folder = opened(tmp_path)
    assert folder.stored_config() == dataclasses.asdict(RunConfig(run_dir=str(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["depth"] == 4


def test_scores_are_read_with_their_gaps(tmp_path):
    (tmp_path / "scores.csv").write_text(
        "method,threshold,lead_minutes,csi\nmodel,16,5,0.5\nmodel,219,all,\n"
    )
    assert records.RunFolder(tmp_path).read_scores() == [
        {"method": "model", "threshold": 16, "lead_minutes": 5, "csi": 0.5},
        {"method": "model", "threshold": 219, "lead_minutes": "all", "csi": None},
    ]


def test_a_file_is_locked_by_one_or_shared(tmp_path):
    """Locks belong to open files, so that two of one process are enough."""
    path = tmp_path / ".lock"
    with open(path, "a") as first, open(path, "a") as second:
        assert take_lock(first) and not take_lock(second) and not take_lock(second, shared=True)
    with open(path, "a") as first, open(path) as second, open(path, "a") as third:
        assert (
            take_lock(first, shared=True)
            and take_lock(second, shared=True)
            and not take_lock(third)
        )
    with open(path, "a") as last:
        assert take_lock(last, wait=True)
