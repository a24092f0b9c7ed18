"""What a sweep will take, before it starts and while it runs."""

import csv
import json

import pytest

from keras_nowcast.study import outlook
from keras_nowcast.study.grid import Cell, PlacedCell
from keras_nowcast.study.outlook import duration, outlook_table, seconds_left
from keras_nowcast.study.planner import Forecast


def cell(name, refusal=None, **settings):
    settings = {"depth": 2, "grid": 32, "precision": "float32", **settings}
    return PlacedCell(Cell(settings), name, (24, 6), refusal)


def finished(folder, one, setup, seconds):
    """Writes what `seconds_left` reads of a completed run."""
    path = folder / one.name
    path.mkdir(parents=True)
    record = {"status": "completed", "training": {"setup_seconds": setup}}
    (path / "record.json").write_text(json.dumps(record))
    with open(path / "epochs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("seconds", "val_seconds"), (seconds - 1, 1)])


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s"), (59.6, "1m 00s"), (185, "3m 05s"), (7800, "2h 10m")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.fixture
def without_planner(monkeypatch):
    """A planner needs several cells; before that there is the rate of those that finished."""
    monkeypatch.setattr(outlook, "predictions", lambda cells, _: [Forecast({}, 1)] * len(cells))


def test_what_is_left_follows_set_up_and_counted_work(tmp_path, without_planner):
    done, same, longer = cell("a"), cell("b", seed=1), cell("c", epochs=30)
    assert seconds_left([same], [], tmp_path) is None
    finished(tmp_path, done, setup=8.0, seconds=20.0)
    assert seconds_left([same], [done], tmp_path) == pytest.approx(8 + 20)
    assert seconds_left([same, longer], [done], tmp_path) == pytest.approx(2 * 8 + 20 + 3 * 20)
    assert seconds_left([same], [done], tmp_path, overhead_s=5.0) == pytest.approx(5 + 8 + 20)
    assert seconds_left([], [done], tmp_path) == 0


def test_each_precision_has_its_own_rate(tmp_path, without_planner):
    full, half = cell("a"), cell("b", precision="mixed_bfloat16")
    finished(tmp_path, full, setup=8.0, seconds=20.0)
    finished(tmp_path, half, setup=8.0, seconds=10.0)
    waiting = cell("c", precision="mixed_bfloat16", seed=1)
    assert seconds_left([waiting], [full, half], tmp_path) == pytest.approx(8 + 10)


def test_the_table_predicts_nothing_from_nothing(tmp_path):
    cells = [cell("fits"), cell("does-not", refusal="`--grid` must be a multiple", depth=6)]
    lines = outlook_table(cells, ["new", "new"], [tmp_path / "absent"]).splitlines()
    assert lines[0].split()[:3] == ["cell", "state", "parameters"]
    assert "258,188" in lines[1] and lines[1].count("not known yet") == 3
    assert lines[2].split(maxsplit=1) == ["does-not", "unfittable: `--grid` must be a multiple"]
    assert lines[3].startswith("1 to run")
