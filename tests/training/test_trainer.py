"""Whole runs in this process: a real fit on real files."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import valid_record

from keras_nowcast import columns, schema
from keras_nowcast.command_line import parse_config
from keras_nowcast.config import RunConfig
from keras_nowcast.data import splits
from keras_nowcast.errors import InputError, Interrupted, TrainingFailed
from keras_nowcast.model.unet import read_unet
from keras_nowcast.records import EPOCH_COLUMNS, RunFolder
from keras_nowcast.training import reports
from keras_nowcast.training.trainer import train
from keras_nowcast.training.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("float32_after")


def run(root, run_dir, **fields):
    """Trains a tiny network and returns its RunFolder."""
    defaults = {"depth": 1, "filters": 2, "epochs": 2, "batch_per_replica": 4}
    fields = {**defaults, "precision": "float32", "power_source": "none", **fields}
    config = RunConfig(data=str(root), run_dir=str(run_dir), **fields)
    train(config, started=time.monotonic())
    return RunFolder(run_dir)


def weights(folder):
    """Returns the arrays of the newest checkpoint."""
    newest = sorted(folder.checkpoints.glob("*.npz"))[-1]
    with np.load(newest) as archive:
        return {n: archive[n] for n in archive.files if n not in ("progress", "digest")}


@pytest.fixture(scope="module")
def finished(small_sevir, tmp_path_factory):
    """A run of four epochs that nothing disturbed."""
    return run(small_sevir, tmp_path_factory.mktemp("runs") / "whole", epochs=4)


def test_the_run_folder_is_complete(finished):
    names = {each.name for each in finished.path.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "epochs.csv",
        "power.csv",
        "model.keras",
        "model_best.keras",
        "checkpoint",
        "record.json",
    }
    assert (finished.path / "power.csv").read_text().splitlines() == [
        "time_s,host,device,watts,utilization_percent,memory_mib,sm_mhz,temperature_c,"
        "throttle_reasons"
    ]


def test_the_record_has_every_key_and_a_reason_for_each_null(finished):
    record = finished.read_record()
    assert record["schema"] == schema.VERSION and record["status"] == "completed"
    assert valid_record.violations(record) == []
    assert valid_record.violations(record | {"environment": finished.read_environment()}) == []


def test_every_column_is_described(finished):
    described = [
        re.sub("<threshold>", r"\\d+", key.name) for key in columns.EPOCHS + columns.MORE_OF_EPOCHS
    ]
    for name in finished.read_epochs()[0]:
        assert any(re.fullmatch(pattern, name) for pattern in described), name


def test_the_numbers_of_the_record_fit_each_other(finished):
    record, rows = finished.read_record(), finished.read_epochs()
    training = record["training"]
    assert (training["epochs"], training["windows_per_epoch"], training["steps"]) == (4, 24, 24)
    assert training["seconds"] == pytest.approx(sum(training["seconds_per_epoch"]))
    assert [row["samples"] for row in rows] == [20, 24, 24, 24]  # the first step compiles
    assert training["samples_per_second"] == pytest.approx(92 / training["seconds"])
    assert training["loss"] == rows[-1]["loss"] < rows[0]["loss"]
    assert training["val_loss"] == rows[-1]["val_loss"]
    flops = record["model"]["training_flops_per_sample"] * training["samples_per_second"]
    assert training["achieved_flops_per_second"] == pytest.approx(flops)
    assert record["energy"]["source"] == "none" and record["energy"]["joules"] is None


def test_the_record_and_the_configuration_have_the_sets(finished):
    assert finished.read_record()["data"] == {
        "train_events": 8,
        "train_windows": 24,
        "validation_events": 3,
        "validation_windows": 9,
        "test_events": 2,
        "test_windows": 6,
        "left_out_events": 0,
        "train_before": "2019-01-01",
        "test_from": "2019-06-01",
        "rule": "training up to 2019-01-01 00:00:00, validation up to 2019-06-01 00:00:00, test "
        "later",
    }
    stored = finished.stored_config()
    assert (stored["train_before"], stored["test_from"]) == ("2019-01-01", "2019-06-01")


def test_training_never_opens_the_test_set(small_sevir, tmp_path):
    root = shutil.copytree(small_sevir, tmp_path / "sevir")
    split = splits.read_split(root, 1.0, None, None)
    spoiled = {event.file for event in split.test}
    assert spoiled and spoiled.isdisjoint(event.file for event in split.train + split.validation)
    for file in spoiled:
        file.write_bytes(b"no HDF5")
    folder = run(root, tmp_path / "run", epochs=1)
    assert folder.read_record()["status"] == "completed"


def test_a_resumed_run_has_the_same_sets(small_sevir, tmp_path):
    """All events are before the test, so the last fifth of the days validates, and so again."""
    early = {"test_from": "2018-12-31", "max_windows": 6}
    first = run(small_sevir, tmp_path, epochs=1, **early)
    sets = first.read_record()["data"]
    assert (sets["train_events"], sets["validation_events"], sets["test_events"]) == (6, 2, 5)
    assert (sets["train_windows"], sets["validation_windows"], sets["test_windows"]) == (6, 6, 6)
    assert sets["train_before"] == first.stored_config()["train_before"]
    assert sets["train_before"].endswith("T23:59:59") and sets["test_from"] == "2018-12-31"
    words = ["--resume", "--run-dir", str(tmp_path), "--epochs", "2"]
    for more in ([], ["--test-from", "2018-12-31"]):  # without and with what was given at first
        train(parse_config("", words + more), started=time.monotonic())
        again = first.read_record()["data"]
        assert {k: v for k, v in again.items() if k != "rule"} == {
            k: v for k, v in sets.items() if k != "rule"
        }
        words[-1] = "3"
    with pytest.raises(InputError, match="`--test-from` must stay as it was"):
        train(parse_config("", [*words, "--test-from", "2018-12-30"]), started=time.monotonic())


def test_epochs_csv_has_the_columns_of_the_contract_first(finished):
    with open(finished.path / "epochs.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0][: len(EPOCH_COLUMNS)]) == EPOCH_COLUMNS
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "3"]
    assert {row[9] for row in rows[1:]} == {""}  # joules: not measured, not zero


def test_validation_loss_is_the_saved_networks_own(finished, small_sevir):
    """The mean over every valid pixel of the validation set, in double precision, with NumPy."""
    import keras

    from keras_nowcast.data import catalog, sevir

    network = keras.models.load_model(finished.model_file)
    split = splits.split_events(catalog.read_catalog(small_sevir))
    total = count = 0
    for event in split.validation:
        vil = sevir.read_event(event)
        for start in (0, 12, 24):
            x, y = vil[None, ..., start : start + 13], vil[None, ..., start + 13 : start + 25]
            error = network.predict(x, verbose=0) - (y.astype(float) - 33.44) / 47.54
            total += np.square(error)[y != 255].sum()
            count += (y != 255).sum()
    assert finished.read_record()["training"]["val_loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.slow
def test_the_model_loads_in_plain_keras(finished):
    code = (
        "import sys, keras, keras_nowcast.model.layers\n"
        f"keras.models.load_model({str(finished.model_file)!r}, safe_mode=True).summary()\n"
        "assert 'keras_nowcast.training' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_finished_run_is_refused(finished, small_sevir):
    before = (finished.path / "record.json").read_bytes()
    with pytest.raises(InputError, match="`--run-dir` must not hold a run.*completed"):
        run(small_sevir, finished.path)
    assert (finished.path / "record.json").read_bytes() == before


@pytest.mark.parametrize(
    "after_steps, lag",
    [
        pytest.param(3, 0, marks=pytest.mark.slow),
        (6, 0),
        (6, reports.LAG),
        pytest.param(9, 0, marks=pytest.mark.slow),
        pytest.param(9, reports.LAG, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_equals_undisturbed(
    finished, small_sevir, tmp_path, monkeypatch, after_steps, lag
):
    """A signal inside the first epoch, in its last step (thus its validation), in the second.

    With the reports of the steps read at once, as on a CPU, and late, as on a GPU.
    """
    from keras_nowcast.training import callbacks

    monkeypatch.setattr(reports, "lag_of_device", lambda: lag)

    seen = []
    original = callbacks.EpochRecorder.on_train_batch_end

    def counting(self, batch, logs=None):
        original(self, batch, logs)
        seen.append(batch)
        if len(seen) == after_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(callbacks.EpochRecorder, "on_train_batch_end", counting)
    with pytest.raises(Interrupted):
        run(small_sevir, tmp_path, epochs=4)
    interrupted = RunFolder(tmp_path).read_record()
    assert interrupted["status"] == "interrupted"
    assert valid_record.violations(interrupted) == []
    monkeypatch.undo()
    resumed = run(small_sevir, tmp_path, epochs=4, resume=True)

    assert resumed.read_record()["status"] == "completed"
    again, once = weights(resumed), weights(finished)
    assert again.keys() == once.keys()
    for name, value in once.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    for row, other in zip(resumed.read_epochs(), finished.read_epochs(), strict=True):
        for name in ("loss", "val_loss", "val_mae", "val_csi_16"):
            assert row[name] == pytest.approx(other[name], rel=1e-6), name
    record = resumed.read_record()
    assert record["training"]["steps"] == 24
    assert record["energy"]["lost_coverage_reason"].startswith("no lost work was detected")
    assert finished.read_record()["energy"]["lost_coverage_reason"] == "no work was lost"


@pytest.mark.slow
def test_work_that_a_damaged_checkpoint_held_is_counted_as_lost(finished, small_sevir, tmp_path):
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    saved = []
    for each in sorted(folder.checkpoints.glob("*.npz")):
        with np.load(each) as archive:
            saved.append(json.loads(str(archive["progress"]))["saved_unix_s"])
    each.write_bytes(each.read_bytes()[:-100])
    record = run(small_sevir, folder.path, epochs=4, resume=True).read_record()
    assert record["training"]["lost_seconds"] == pytest.approx(saved[1] - saved[0])
    assert record["energy"]["lost_joules"] is None
    assert record["energy"]["lost_joules_reason"].startswith("no power was read")
    assert record["energy"]["lost_coverage"] == 0


@pytest.mark.slow
def test_the_folder_is_locked_until_the_watchdog_has_ended(small_sevir, tmp_path, monkeypatch):
    """It writes the record of a job whose collective broke before it found the rank that died."""
    held = []
    original = Watchdog.__exit__

    def looking(self, *exception):
        original(self, *exception)
        held.append(RunFolder(tmp_path).is_running())

    monkeypatch.setattr(Watchdog, "__exit__", looking)
    folder = run(small_sevir, tmp_path, epochs=1)
    assert held == [True]
    assert folder.is_running() is False


def test_every_epoch_counts_its_own_pixels(small_sevir, tmp_path, monkeypatch):
    """At a learning rate of almost 0, no score of the validation changes with the epochs."""
    from keras_nowcast.training import callbacks

    pixels = []
    original = callbacks.EpochRecorder.on_epoch_end

    def noting(self, epoch, logs=None):
        self.settle()
        pixels.append(self._progress.sums.pixels)
        original(self, epoch, logs)

    monkeypatch.setattr(callbacks.EpochRecorder, "on_epoch_end", noting)
    folder = run(small_sevir, tmp_path, epochs=3, learning_rate=1e-12)
    assert pixels == [pixels[0]] * 3
    first, *others = folder.read_epochs()
    for name in ("val_loss", "val_mae", "val_csi_16"):
        assert [row[name] for row in others] == pytest.approx([first[name]] * 2, rel=1e-5), name


@pytest.mark.parametrize("lag", [0, reports.LAG])
def test_a_loss_that_is_not_finite_ends_the_run(small_sevir, tmp_path, monkeypatch, lag):
    """Read at once or late, it names the same step, and no checkpoint holds what followed."""
    monkeypatch.setattr(reports, "lag_of_device", lambda: lag)
    with pytest.raises(TrainingFailed, match=r"not finite in epoch 1, step 2, on rank 0"):
        run(small_sevir, tmp_path, learning_rate=1e30, checkpoint_minutes=1e-9)
    for saved in RunFolder(tmp_path).checkpoints.glob("*.npz"):
        with np.load(saved) as archive:
            assert all(
                np.isfinite(archive[name]).all()
                for name in archive.files
                if archive[name].dtype.kind == "f"
            )
    record = RunFolder(tmp_path).read_record()
    assert record["status"] == "failed" and "rank 0" in record["status_reason"]
    assert valid_record.violations(record) == []
    json.dumps(record, allow_nan=False)


def test_targets_that_are_all_missing_are_the_reason(small_sevir, tmp_path, monkeypatch):
    from keras_nowcast.data import sevir

    def all_missing(event, grid=None):
        vil = np.full((grid or event.size, grid or event.size, event.frames), 7, np.uint8)
        vil[..., sevir.FRAMES_IN :] = sevir.MISSING
        return vil

    monkeypatch.setattr(sevir, "read_event", all_missing)
    with pytest.raises(TrainingFailed, match="all target pixels are missing"):
        run(small_sevir, tmp_path, max_windows=2)
    assert "all target pixels" in RunFolder(tmp_path).read_record()["status_reason"]


def test_a_file_that_breaks_while_training(small_sevir, tmp_path, monkeypatch):
    from keras_nowcast.data import sevir

    def refuse(*arguments):
        raise InputError("`--data` is broken.")

    monkeypatch.setattr(sevir, "read_event", refuse)
    with pytest.raises(InputError, match="`--data` is broken"):
        run(small_sevir, tmp_path)


@pytest.mark.parametrize(
    "precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_half_precision_trains(small_sevir, tmp_path, precision):
    folder = run(small_sevir, tmp_path, precision=precision, max_windows=8, epochs=3)
    rows, training = folder.read_epochs(), folder.read_record()["training"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    if precision == "mixed_float16":
        assert training["final_loss_scale"] == rows[-1]["loss_scale"] > 0
    else:
        assert training["final_loss_scale"] is None and rows[-1]["loss_scale"] is None


@pytest.mark.slow
def test_a_run_starts_from_another_runs_network(finished, small_sevir, tmp_path):
    started = run(
        small_sevir,
        tmp_path / "started",
        epochs=1,
        start_from=str(finished.path),
        learning_rate=1e-12,
    )
    theirs, ours = read_unet(finished.model_file), read_unet(started.model_file)
    for before, after in zip(theirs.weights, ours.weights, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-8, err_msg=before.path)


@pytest.mark.slow
def test_only_what_is_not_normalization_learns_on(finished, small_sevir, tmp_path):
    further = run(
        small_sevir,
        tmp_path / "further",
        epochs=1,
        start_from=str(finished.path),
        learning_rate=1e-2,
    )
    before, after = read_unet(finished.model_file), read_unet(further.model_file)
    for mine, other in zip(before.layers, after.layers, strict=True):
        for old, new in zip(mine.weights, other.weights, strict=True):
            assert np.array_equal(old, new) == ("norm" in mine.name), old.path
    first, second = (each.read_record()["model"] for each in (finished, further))
    scales = sum(layer.count_params() for layer in before.layers if "norm" in layer.name) // 2
    assert second["parameters"] == first["parameters"]
    assert second["trainable_parameters"] == first["trainable_parameters"] - scales


def test_a_network_of_other_sizes_is_no_start(finished, small_sevir, tmp_path):
    with pytest.raises(
        InputError, match="`--start-from` must be a run with a model of the same depth"
    ):
        run(small_sevir, tmp_path / "other", filters=3, start_from=str(finished.path))
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="`--start-from` must be a run folder"):
        run(small_sevir, tmp_path / "none", start_from=str(tmp_path))
