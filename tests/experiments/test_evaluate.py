"""experiments/evaluate.py on a small finished run, from the shell."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from keras_nowcast.config import RunConfig
from keras_nowcast.data import catalog, sevir, splits, synthetic
from keras_nowcast.verification import bootstrap
from keras_nowcast.vil import VIL_SCALE

ROOT = Path(__file__).parents[2]
EVALUATE = [sys.executable, ROOT / "experiments" / "evaluate.py"]
HORUN = (sys.executable, ROOT / "tests" / "training" / "horovodrun.py")
CONTRACT = "method,threshold,lead_minutes,hits,misses,false_alarms,csi,pod,sucr,far,bias,mae,mse,n"


def shell(*command):
    """Runs a command; each of its processes has one thread, however many of them there are.

    Without oneDNN, that is on CPUs without AVX512, the last bits of a convolution depend on the
    number of threads, and by default the processes of a job divide the cores.
    """
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "TF_NUM_INTRAOP_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=10, size=32, progress=False)
    return root


@pytest.fixture(scope="module")
def run_dir(root, tmp_path_factory):
    """A run of one epoch."""
    import keras

    from keras_nowcast.training.trainer import train

    path = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig(
        data=str(root), run_dir=str(path), depth=1, filters=2, epochs=1, precision="float32"
    )
    train(config, started=time.monotonic())
    keras.mixed_precision.set_global_policy("float32")
    return path


@pytest.fixture(scope="module")
def evaluated(run_dir, tmp_path_factory):
    """Results of one process, with saved forecasts; and what it printed."""
    out = tmp_path_factory.mktemp("evaluated")
    done = shell(*EVALUATE, run_dir, "--out", out, "--save-forecasts", out / "forecasts")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_columns_of_the_contract(evaluated):
    out, printed = evaluated
    header = (out / "scores.csv").read_text().splitlines()[0]
    assert header.startswith(CONTRACT)
    rows = rows_of(out / "scores.csv")
    assert {row["method"] for row in rows} >= {"model", "persistence"}
    assert {row["lead_minutes"] for row in rows} == {str(5 * k) for k in range(1, 13)} | {"all"}
    assert "CSI 16" in printed and "persistence" in printed


def test_the_scores_are_those_of_the_validation(script_here, run_dir):
    """Two ways to one number: counts in the graph while training, in NumPy from the saved model."""
    done = script_here("evaluate.py", run_dir, "--set", "validation")
    assert done.returncode == 0, done.stderr
    assert "2 events of the validation set" in done.stdout
    assert not (run_dir / "scores.csv").exists()  # the place of the test set's scores
    rows = rows_of(run_dir / "validation" / "scores.csv")
    record = json.loads((run_dir / "record.json").read_text())
    last = rows_of(run_dir / "epochs.csv")[-1]
    pooled = [r for r in rows if (r["method"], r["lead_minutes"]) == ("model", "all")]
    mse = record["training"]["val_loss"] * VIL_SCALE**2
    assert float(pooled[0]["mse"]) == pytest.approx(mse, rel=1e-4)
    assert float(pooled[0]["mae"]) == pytest.approx(float(last["val_mae"]), rel=1e-4)
    for row in pooled:
        if f"val_csi_{row['threshold']}" in last:
            known = float(last[f"val_csi_{row['threshold']}"] or "nan")
            assert float(row["csi"] or "nan") == pytest.approx(known, abs=1e-3, nan_ok=True)


def test_persistence_is_the_last_input_frame(evaluated, root):
    rows = rows_of(evaluated[0] / "scores.csv")
    (first,) = (
        row
        for row in rows
        if (row["method"], row["threshold"], row["lead_minutes"]) == ("persistence", "16", "60")
    )
    hits = 0
    for event in splits.split_events(catalog.read_catalog(root)).test:
        vil = sevir.read_event(event)
        for start in (0, 12, 24):
            last, truth = vil[..., start + 12], vil[..., start + 24]
            hits += ((last >= 16) & (last != 255) & (truth >= 16) & (truth != 255)).sum()
    assert int(first["hits"]) == hits


def test_the_pictures_are_there(evaluated):
    names = {each.name for each in evaluated[0].iterdir()}
    assert names >= {
        "panel.png",
        "scores_by_lead.png",
        "power_by_lead.png",
        "performance_diagram.png",
        "animation.gif",
        "differences.csv",
        "statistics.npz",
    }


def test_the_blocks_are_days_and_few_are_warned_of(evaluated, root):
    out, printed = evaluated
    days = {f"{e.time:%Y-%m-%d}" for e in splits.split_events(catalog.read_catalog(root)).test}
    for name in ("scores.csv", "differences.csv"):
        assert {row["n_blocks"] for row in rows_of(out / name)} == {str(len(days))}
    with np.load(out / "statistics.npz") as file:
        assert set(file["blocks"]) == days
    assert f"Warning: {bootstrap.warning(len(days))}" in printed


def test_saved_forecasts_are_read_by_our_own_reader(evaluated):
    events = catalog.read_catalog(evaluated[0] / "forecasts")
    assert len(events) == 6 and {event.frames for event in events} == {12}
    assert sevir.read_event(events[0]).shape == (32, 32, 12)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed")
def test_two_processes_give_the_same(evaluated, run_dir, tmp_path):
    done = shell(*HORUN, "-np", 2, "--gloo", *EVALUATE, run_dir, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    files = [folder / "statistics.npz" for folder in (evaluated[0], tmp_path)]
    with np.load(files[0]) as one, np.load(files[1]) as two:
        assert one.files == two.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture
def only_of(root, tmp_path):
    """Copies the data set with only the events of one file, by a part of its name."""

    def only_of(part):
        own = Path(shutil.copytree(root, tmp_path / part))
        for path in (own / "data").rglob("*.h5"):
            if part not in path.name:
                path.unlink()
        return own

    return only_of


def test_a_data_set_wholly_in_the_test_period_in_blocks_of_a_column_of_the_catalog(
    evaluated, root, only_of, script_here, run_dir, tmp_path
):
    words = ("--data", only_of("2019_0602"), "--blocks", "id", "--out", tmp_path / "out")
    done = script_here("evaluate.py", run_dir, *words)
    assert done.returncode == 0, done.stderr
    test = splits.split_events(catalog.read_catalog(root)).test
    with np.load(tmp_path / "out" / "statistics.npz") as file:
        found = dict(zip(file["events"], file["blocks"], strict=True))
    assert found == {event.name: event.id for event in test}
    assert "(by id)" in done.stdout
    mine, theirs = (rows_of(folder / "scores.csv") for folder in (tmp_path / "out", evaluated[0]))
    assert [row["n"] for row in mine] == [row["n"] for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        assert float(row["mse"]) == pytest.approx(float(other["mse"]), rel=1e-4)


@pytest.fixture
def refused(script_here):
    """Starts evaluate.py, which refuses; returns its one line."""

    def refused(*arguments):
        done = script_here("evaluate.py", *arguments)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and len(lines) == 1, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return lines[0]

    return refused


def test_a_folder_without_a_run(refused, tmp_path):
    assert "`run` must be a run folder" in refused(tmp_path)


def test_training_events_are_not_scored_unless_that_is_said(
    only_of, refused, run_dir, script_here, tmp_path
):
    own = only_of("2018_0101")
    message = refused(run_dir, "--data", own)
    assert "must leave test events" in message and "give --test-from" in message
    words = ("--data", own, "--test-from", "2018-01-01", "--out", tmp_path / "out")
    done = script_here("evaluate.py", run_dir, *words)
    assert done.returncode == 0, done.stderr
    assert "trained or chosen on events up to 2019-06-01" in done.stdout
    assert "6 events of the test set" in done.stdout


def test_a_run_without_a_model(refused, run_dir, tmp_path):
    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    assert "`run` must hold a trained model" in refused(tmp_path)


def test_a_model_of_another_window_length(refused, run_dir, tmp_path):
    import keras

    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    other = keras.Sequential([keras.Input((32, 32, 7)), keras.layers.Conv2D(6, 1)])
    other.save(tmp_path / "model.keras")
    assert "13 frames in and 12 out. Received: 7 in and 6 out" in refused(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--test-from", "2030-01-01"], "must leave test events"),
        (["--test-from", "2018-01-01"], "must not be before the test set of the run, 2019-06-01"),
        (["--test-from", "2019-08-01", "--set", "validation"], "must be omitted with --set valid"),
        (["--test-from", "soon"], "`--test-from` must be a date"),
        (["--thresholds", "16", "300"], "threshold"),
        (["--levels", *"0 16 31 59 74 100 133 160 219 181 255".split()], "`levels` must be 11"),
        (["--data", "absent"], "`--data` must be a folder"),
        (["--against", "published"], "grid 32 (published: 384); 6 test windows"),
        (["--blocks", "storm"], "`--blocks` must be day or a column of the catalog"),
    ],
)
def test_bad_flags(refused, run_dir, flags, words):
    assert words in refused(run_dir, *flags)
