"""Estimates of a sweep's time, before it starts and while it runs."""

import json

import pytest

from keras_nowcast.model.cost import count_unet
from keras_nowcast.records import EPOCH_COLUMNS, RunFolder
from keras_nowcast.study.laws import step_terms
from keras_nowcast.sweep.cells import Cell, PlacedCell
from keras_nowcast.sweep.estimate import duration, estimate_table, measured_seconds, seconds_left


def cell(name, refusal=None, processes=1, **settings):
    settings = {"depth": 2, "grid": 32, "precision": "float32", **settings}
    return PlacedCell(Cell(settings, processes), name, (24, 6), refusal)


def finished(folder, one, setup, seconds, validation=(1,), **training):
    """Writes what `seconds_left` reads of a completed run: `seconds`, including validation."""
    path = folder / one.name
    path.mkdir(parents=True)
    record = {"status": "completed", "training": {"setup_seconds": setup, **training}}
    (path / "record.json").write_text(json.dumps(record))
    training_s = (seconds - sum(validation)) / len(validation)
    write_epochs(path, [training_s] * len(validation), validation)


def write_epochs(path, seconds, validation):
    rows = [
        dict.fromkeys(EPOCH_COLUMNS) | {"epoch": epoch, "seconds": took, "val_seconds": val}
        for epoch, (took, val) in enumerate(zip(seconds, validation, strict=True))
    ]
    RunFolder(path).write_epochs(rows)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s"), (59.6, "1m 00s"), (185, "3m 05s"), (7800, "2h 10m")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_what_is_left_follows_set_up_and_counted_work(tmp_path):
    done, same, longer = cell("a"), cell("b", seed=1), cell("c", epochs=30)
    assert seconds_left([same], [], tmp_path) is None
    finished(tmp_path, done, setup=8.0, seconds=20.0)
    assert seconds_left([same], [done], tmp_path) == pytest.approx(8 + 20)
    assert seconds_left([same, longer], [done], tmp_path) == pytest.approx(2 * 8 + 20 + 3 * 20)
    assert seconds_left([same], [done], tmp_path, overhead_s=5.0) == pytest.approx(5 + 8 + 20)
    assert seconds_left([], [done], tmp_path) == 0
    assert seconds_left([], [], tmp_path) == 0


def test_one_small_network_does_not_tell_the_rate_of_large_ones(tmp_path):
    """16 times the filters have 200 times the FLOPs, and the same number of layers."""
    small, large = cell("a", filters=4), cell("b", filters=64)
    finished(tmp_path, small, setup=8.0, seconds=20.0)
    assert large.training_flops > 200 * small.training_flops
    assert seconds_left([large], [small], tmp_path) == pytest.approx(8 + 20)


def test_three_cells_tell_the_time_of_a_layer_and_of_a_flop(tmp_path):
    """Times that follow a law, another for each precision, are recovered."""

    def seconds_of(one, slower):
        cost = count_unet(32, 13, 12, one.cell.value("depth"), one.cell.value("filters"))
        computed, _, layers, _ = step_terms(cost, one.policy, 4)
        return 10 * 6 * (slower * 1e-10 * computed + 1e-3 * layers)  # 10 epochs of 6 steps

    done = []
    for precision, slower in (("float32", 3.0), ("mixed_bfloat16", 1.0)):
        for number, (depth, filters) in enumerate(((1, 16), (2, 16), (2, 32))):
            one = cell(f"{precision}{number}", depth=depth, filters=filters, precision=precision)
            finished(tmp_path, one, setup=8.0, seconds=seconds_of(one, slower))
            done.append(one)
    for precision, slower in (("float32", 3.0), ("mixed_bfloat16", 1.0)):
        new = cell("new", depth=3, filters=64, precision=precision)
        expected = 8 + seconds_of(new, slower)
        assert seconds_left([new], done, tmp_path) == pytest.approx(expected, rel=1e-6)


def test_the_work_of_two_processes_is_that_of_both(tmp_path):
    """24 windows in batches of 4: 6 steps with one process, 3 with two."""
    done, both = cell("a"), cell("b", processes=2)
    finished(tmp_path, done, setup=8.0, seconds=20.0)
    assert seconds_left([both], [done], tmp_path) == pytest.approx(8 + 20)


def test_of_an_interrupted_cell_the_epochs_that_are_left_count(tmp_path):
    done, half = cell("a"), cell("b", seed=1)
    finished(tmp_path, done, setup=8.0, seconds=20.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")
    write_epochs(tmp_path / "b", [2.0] * 4, [0.1] * 4)
    assert seconds_left([half], [done], tmp_path) == pytest.approx(8 + 0.6 * 20)


def test_a_cell_with_odd_epochs_is_no_measure(tmp_path):
    done, odd, same = cell("a"), cell("c"), cell("b", seed=1)
    finished(tmp_path, done, setup=8.0, seconds=20.0)
    finished(tmp_path, odd, setup=8.0, seconds=20.0)
    (tmp_path / "c" / "epochs.csv").write_text("seconds;val_seconds\n1;2\n")
    assert seconds_left([same], [done, odd], tmp_path) == pytest.approx(8 + 20)
    assert seconds_left([same], [odd], tmp_path) is None


def test_what_compiles_is_set_up(tmp_path):
    """The first validation took 2 s longer than the others; setup covers two starts."""
    one = cell("a")
    finished(tmp_path, one, 16.0, 22.0, validation=(3, 1, 1), starts=[{}, {}])
    assert measured_seconds(tmp_path / "a") == pytest.approx((8 + 2, 20))


def test_the_table_predicts_nothing_from_nothing(tmp_path):
    cells = [cell("fits"), cell("does-not", refusal="`--grid` must be a multiple", depth=6)]
    lines = estimate_table(cells, ["new", "new"], [tmp_path / "absent"]).splitlines()
    assert lines[0].split()[:3] == ["cell", "state", "parameters"]
    assert "258,188" in lines[1] and lines[1].count("not known yet") == 3
    assert lines[2].split(maxsplit=1) == ["does-not", "unfittable: `--grid` must be a multiple"]
    assert lines[3].startswith("1 left to run")
