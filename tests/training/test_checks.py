"""What is refused before TensorFlow loads: here it cannot be loaded at all."""

import dataclasses
import importlib.util
import sys

import pytest

from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder
from keras_nowcast.training import checks
from keras_nowcast.training.runlock import RunLock
from keras_nowcast.training.trainer import train


@pytest.fixture
def refused(small_sevir, tmp_path, monkeypatch):
    """Returns why a run with these fields is refused."""
    for name in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, None)

    def refused(**fields):
        fields = {"data": str(small_sevir), "power_source": "none", **fields}
        with pytest.raises(InputError) as refusal:
            train(RunConfig(**fields), started=0.0)
        return str(refusal.value)

    return refused


@pytest.fixture
def begun(small_sevir, tmp_path):
    """The folder of a run that was killed before its first checkpoint."""

    def begun(**fields):
        config = RunConfig(
            data=str(small_sevir), grid=32, precision="float32", run_dir=str(tmp_path / "r")
        )
        folder = RunFolder(config.run_dir)
        folder.open(dataclasses.replace(config, **fields))
        return folder

    return begun


def test_xla_has_no_deterministic_gradient_of_max_pooling(refused, monkeypatch):
    reason = refused(xla=True, deterministic=True)
    assert reason.startswith("`--xla` must not")
    assert "Received: --xla and --deterministic;" in reason
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    assert "Received: --xla and TF_DETERMINISTIC_OPS=1;" in refused(xla=True)


def test_a_run_folder_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "link").symlink_to("gone")
    for name in ("link", "link/below"):
        reason = refused(run_dir=str(tmp_path / name))
        assert reason.startswith("`--run-dir` must not lead through a link to nothing. Received: ")
        assert f"{tmp_path}/link is a link to gone, which does not exist" in reason
    assert not (tmp_path / "gone").exists()
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        reason = refused(run_dir=str(tmp_path / name))
        assert f"{tmp_path}/file is not a folder" in reason


def test_a_run_folder_through_a_link_to_a_folder_is_used(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    checks._check_place(tmp_path / "link" / "run")


def test_a_folder_that_holds_a_run(refused, begun):
    assert refused(run_dir=str(begun().path)).startswith("`--run-dir` must not hold a run already.")


def test_a_run_that_cannot_be_resumed_so(refused, begun, tmp_path):
    again = {"run_dir": str(begun().path), "resume": True, "precision": "float32"}
    assert refused(**again, seed=7).startswith("`--seed` must stay as it was")
    lock = RunLock(again["run_dir"])
    lock.take()
    dates = {"train_before": "2019-01-01", "test_from": "2019-06-01"}
    RunFolder(again["run_dir"]).open(
        RunConfig(**RunFolder(again["run_dir"]).stored_config() | dates | {"resume": True})
    )
    assert refused(**again, **dates).startswith("`--run-dir` must not be in use by another job.")
    lock.release()
    assert "which holds none" in refused(resume=True, run_dir=str(tmp_path / "none"))


def test_a_package_or_a_power_source_that_is_not_there(refused, monkeypatch):
    def none(*arguments, **more):
        raise InputError(f"`--power-source` {arguments}")

    monkeypatch.setattr(checks, "choose_source", none)
    assert refused(power_source="rapl") == "`--power-source` ('rapl',)"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "board" in n else find(n))
    assert refused(tensorboard=True).startswith("`--tensorboard` must have the package")


def test_a_start_without_a_model_or_of_another_size(refused, begun, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    none = "`--start-from` must be a run folder with a finished model"
    assert refused(start_from=str(start)).startswith(none)
    # A run that has no checkpoint yet takes these weights again when it is resumed.
    again = {"resume": True, "precision": "float32", "start_from": str(start)}
    dates = {"train_before": "2019-01-01", "test_from": "2019-06-01"}
    folder = begun(start_from=str(start), **dates)
    assert refused(run_dir=str(folder.path), **again).startswith(none)
    RunFolder(start).open(RunConfig(filters=2))
    (start / "model.keras").touch()
    reason = refused(run_dir=str(folder.path), **again)
    assert reason.startswith("`--start-from` must be a run with a model of the same depth and")
    assert reason.endswith(f"Received: {start}, whose --filters is 2; here it is 16.")
    assert "whose --center-filters is 64; here it is 7" in refused(
        start_from=str(start), filters=2, center_filters=7
    )


def test_a_checkpoint_has_the_weights(begun, tmp_path):
    folder = begun()
    (folder.checkpoints / "state-00001-00000000.npz").touch()
    checks._check_start(
        RunConfig(resume=True, run_dir=str(folder.path), start_from=str(tmp_path / "gone"))
    )


def test_what_the_catalog_states_wrongly_is_told_before_training(small_sevir, monkeypatch):
    """Both by the function that `train` calls; tests/data has what they say."""
    called = []
    monkeypatch.setattr(checks.sevir, "check_missing", lambda events, say: called.append(events))
    monkeypatch.setattr(
        checks.splits, "report_projections", lambda events, say: called.append(events)
    )
    config = RunConfig(data=str(small_sevir), power_source="none")
    _, split = checks.check(config, is_first=True, say=str)
    assert called == [split.train + split.validation] * 2
    checks.check(config, is_first=False, say=str)  # a single rank tells it
    assert len(called) == 2
