"""The cells of a sweep, their names, and the cells that cannot run."""

import re
import shutil

import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.model import precision
from keras_nowcast.sweep import cells
from keras_nowcast.sweep.cells import (
    Cell,
    all_combinations,
    place,
    settings_that_matter,
    span,
    without_repeats,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set of 13 events of 32x32: 24 windows for training, 9 for validation."""
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=13, size=32, progress=False)
    return root


@pytest.fixture
def placed(root):
    """Returns the PlacedCell with these settings on the small data set."""

    def of(processes=1, **settings):
        cell = Cell({"data": str(root), "depth": 2, **settings}, processes)
        (one,) = place([cell], say=lambda line: None)
        return one

    return of


def test_a_grid_is_every_combination():
    cells = all_combinations(depth=(3, 4), filters=(8, 16, 32), processes=(1, 2))
    found = {(cell.value("depth"), cell.value("filters"), cell.processes) for cell in cells}
    assert found == {(d, f, n) for d in (3, 4) for f in (8, 16, 32) for n in (1, 2)}
    assert len(cells) == 12
    assert {cell.value("precision") for cell in cells} == {"auto"}  # RunConfig's default


def test_flags_change_the_cells_of_a_preset():
    preset = [Cell({"depth": 3}), Cell({"depth": 4, "epochs": 7}, processes=2)]
    cells = span(preset, {"epochs": [5], "seed": [0, 1]})
    assert [(cell.value("depth"), cell.processes, cell.value("seed")) for cell in cells] == [
        (3, 1, 0),
        (3, 1, 1),
        (4, 2, 0),
        (4, 2, 1),
    ]
    assert {cell.value("epochs") for cell in cells} == {5}


@pytest.mark.parametrize(
    ("settings", "processes", "words"),
    [
        ({"depth": 9}, 1, "`--depth` must be from 1 to"),
        ({"precision": "float8"}, 1, "`--precision` must be one of"),
        ({}, 0, "`--np` must be at least 1"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(settings, processes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Cell(settings, processes)


def test_a_cell_knows_its_grid_and_windows(placed):
    cell = placed()
    assert cell.name.startswith("d2-f16-g32-auto-np1-s0-")
    assert cell.windows == (24, 9) and cell.refusal is None
    assert placed(max_windows=5).windows == (5, 5)
    assert placed(window_stride=24).windows == (16, 6)


@pytest.mark.parametrize(
    "settings",
    [
        {"filters": 8},
        {"center_filters": 8},
        {"epochs": 3},
        {"seed": 1},
        {"max_windows": 4},
        {"precision": "float32"},
        {"augment": True},
        {"learning_rate": 0.1},
        {"grid": 16},
        {"power_limit_w": 100.0},
        {"max_missing": 0.0},
        {"processes": 2},
    ],
)
def test_what_matters_is_in_the_name(placed, settings):
    assert placed(**settings).name != placed().name


@pytest.mark.parametrize(
    "settings",
    [
        {"power_source": "none"},
        {"power_interval_s": 1.0},
        {"tensorboard": True},
        {"layer_times": True},
        {"watts_per_core": 3.0},
        {"grid": 32},
        {"center_filters": 128},
        {"warmup_epochs": 1},
        {"train_before": "2019-01-01"},
        {"train_before": "2019-01-01", "test_from": "2019-06-01"},
    ],
)
def test_what_does_not_matter_is_not(placed, settings):
    """How a run is watched, an explicit default, or data options that select the same events."""
    assert placed(**settings).name == placed().name


def test_the_rule_of_the_learning_rate_matters_with_several_processes(placed):
    names = [placed(2, lr_scaling=rule).name for rule in ("linear", "sqrt", "none")]
    assert len(set(names)) == 3 and names[0] == placed(2).name
    assert {placed(1, lr_scaling=rule).name for rule in ("sqrt", "none")} == {placed().name}


def test_later_fields_leave_the_names_of_earlier_cells():
    """The settings of a name, exactly as version 2e26330 had them."""
    settings = {"depth": 3, "filters": 8, "grid": 64, "augment": True}
    assert settings_that_matter(Cell(settings, processes=2)) == {
        "depth": 3,
        "filters": 8,
        "center_filters": 128,
        "precision": "auto",
        "grid": 64,
        "epochs": 10,
        "batch_per_replica": 4,
        "learning_rate": 1e-3,
        "warmup_epochs": 1.0,
        "schedule": "constant",
        "augment": True,
        "window_stride": 12,
        "processes": 2,
    }


def test_data_are_known_by_their_events_not_their_path(placed, root, tmp_path):
    moved = shutil.copytree(root, tmp_path / "moved")
    assert placed(data=str(moved)).name == placed().name
    of_training, _, of_test = sorted((moved / "data").rglob("*.h5"))
    of_test.write_bytes(b"no HDF5")  # a sweep needs no test events
    assert placed(data=str(moved)).name == placed().name
    of_training.unlink()  # fewer events are other data
    assert placed(data=str(moved)).name != placed().name


def test_other_training_or_validation_events_are_another_cell(placed):
    names = {
        placed(**dates).name
        for dates in ({}, {"train_before": "2018-08-01"}, {"test_from": "2019-03-01"})
    }
    assert len(names) == 3


def test_a_cell_that_fits_no_network_or_no_data_is_told_before_it_starts(placed, root):
    settings = {"data": str(root), "depth": 2}
    fits, too_deep, no_divisor = place(
        [Cell(settings), Cell({**settings, "depth": 6}), Cell({**settings, "grid": 20})],
        say=lambda line: None,
    )
    assert fits.refusal is None
    assert "`--grid` must be a multiple of 64 at `--depth` 6" in too_deep.refusal
    assert "`--grid` must divide the stored size, 32" in no_divisor.refusal


def test_a_sweep_of_which_no_cell_can_run_is_refused(placed):
    with pytest.raises(InputError, match="must be a multiple of 64"):
        placed(depth=6)


def test_the_same_cell_twice_is_one(root):
    cells = [Cell({"data": str(root), "depth": 2, "seed": seed}) for seed in (0, 1, 0)]
    assert [cell.cell.value("seed") for cell in place(cells, say=lambda line: None)] == [0, 1]


@pytest.mark.parametrize(
    "bfloat16, left", [(False, ["float32"] * 2), (True, ["float32", "auto"] * 2)]
)
def test_cells_that_would_be_the_same_here_are_one(root, monkeypatch, bfloat16, left):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda cpuinfo: bfloat16)
    asked = all_combinations(data=(str(root),), precision=("float32", "auto"), layer_times=(True,))
    asked += all_combinations(data=(str(root),), precision=("float32", "auto"), seed=(1,))
    said = []
    kept = without_repeats(place(asked, say=str), said.append)
    assert [cell.cell.value("precision") for cell in kept] == left
    assert len(said) == (0 if bfloat16 else 1)
    if said:
        assert said[0].startswith("2 of 4 cells are left out: this processor has no half-precision")


def test_with_a_gpu_no_cell_is_left_out(root, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda cpuinfo: False)
    monkeypatch.setattr(cells, "list_gpus", lambda: ["a GPU"])
    asked = place(all_combinations(data=(str(root),), precision=("float32", "auto")), say=str)
    assert without_repeats(asked, pytest.fail) == asked


def test_bad_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="`--data` must be a folder"):
        place([Cell({"data": str(tmp_path / "absent")})])


ONE_CELL = "from keras_nowcast.sweep.cells import Cell\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RUNS = [", "that runs. Received: {path}, line 1: SyntaxError: '[' was never closed; "),
        ("X = 1\nRUNS = [1 / 0]", "Received: {path}, line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "that runs. Received: {path}, line 1: SystemExit: 3; "),
        ("import os", "RUNS, a list of Cells that is not empty. Received: {path}, with no RUNS; "),
        ("RUNS = []", "Received: {path}, with RUNS = []; "),
        ("RUNS = {'a': 1}", "Received: {path}, with RUNS = {{'a': 1}}; "),
        ("RUNS = [3]", "Received: {path}, with RUNS = [3]; experiments/presets has examples."),
        (ONE_CELL + "RUNS = [Cell({'depht': 3})]", "line 2: TypeError: "),
        (ONE_CELL + "RUNS = [Cell({'depth': '3'})]", "line 2: TypeError: "),
        (ONE_CELL + "RUNS = [Cell({'depth': 9})]", "{path}: `--depth` must be from 1 to 6. Rec"),
    ],
)
def test_a_preset_with_a_fault_is_one_line(tmp_path, text, words):
    path = tmp_path / "odd.py"
    path.write_text(text)
    with pytest.raises(InputError, match="^`--preset` must ") as refusal:
        cells.read_preset(tmp_path, str(path))
    assert words.format(path=path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
