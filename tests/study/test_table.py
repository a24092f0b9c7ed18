"""The table of runs, one row per run."""

import csv
import json

import pytest
import study_runs

from keras_nowcast import records
from keras_nowcast.study import claims, compare, table


def read(tmp_path):
    return table.read(records.read_runs([tmp_path]))


def test_a_row_has_what_the_run_measured(tmp_path):
    study_runs.write_run(tmp_path / "a", seconds=2.0, joules=300.0, test_csi=(0.5, 0.4, 0.3))
    (run,) = read(tmp_path)
    row = run.row
    assert (row["skipped_events"], row["lost_seconds"]) == (1, 2.5)
    assert (row["status"], row["depth"], row["center_filters"], row["gpus"]) == (
        "completed",
        4,
        512,
        "",
    )
    assert row["trainable_parameters"] == 4143628
    # 40 windows in batches of 4: 10 steps per epoch.
    assert (row["seconds_per_epoch"], row["seconds_per_step"]) == (2.0, 0.2)
    assert (row["energy_source"], row["energy_joules"], row["joules_per_epoch"]) == (
        "nvml_counter",
        1200.0,
        300.0,
    )
    assert row["energy_is_estimate"] is False and row["energy_reason"] is None
    assert (row["val_csi_16"], row["test_csi_16"], row["test_mse"]) == (0.3, 0.5, 300.0)
    assert row["counted_state_bytes"] == 4 * (4148556 + 2 * 4143628)


@pytest.mark.parametrize(
    ("coverages", "joules", "median"),
    [
        ((1.0, 1.0, 0.995, 0.4), (100.0, 200.0, 300.0, 50.0), 250.0),
        ((1.0, 0.98, 0.5, 0.4), (100.0, 200.0, 300.0, 50.0), None),
        ((1.0, 1.0, 1.0, ""), (100.0, 200.0, 300.0, ""), 250.0),
        (None, (100.0, 200.0, 300.0, 50.0), 200.0),  # of an earlier version
    ],
)
def test_joules_of_a_part_of_an_epoch_are_not_those_of_an_epoch(
    tmp_path, coverages, joules, median
):
    study_runs.write_run(tmp_path / "a", joules=joules, coverages=coverages)
    (run,) = read(tmp_path)
    assert run.row["joules_per_epoch"] == median
    assert run.epochs[3]["joules"] == (50.0 if coverages is None else None)


def test_without_coverage_of_each_epoch_that_of_the_run_counts(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=100.0)
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    record["energy"]["coverage"] = 0.9
    (tmp_path / "a" / "record.json").write_text(json.dumps(record))
    (run,) = read(tmp_path)
    assert run.row["joules_per_epoch"] is None and run.row["energy_joules"] == 400.0


def test_what_was_not_measured_is_empty_and_says_why(tmp_path):
    study_runs.write_run(tmp_path / "a")
    runs = read(tmp_path)
    table.write_table(runs, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["energy_joules"], row["test_csi_16"], row["mean_watts"]) == ("", "", "")
    assert row["energy_source"] == "none" and row["energy_reason"] == study_runs.WHY_NO_ENERGY


def test_a_cell_that_never_started_is_a_row(tmp_path):
    config = {**study_runs.CONFIG, "precision": "auto"}
    record = {
        "status": "failed",
        "status_reason": "out of memory: killed",
        "config": config,
        "environment": {"world_size": 2, "gpus": None, "hosts": None},
        "model": {},
        "training": {},
        "energy": {"source": "none", "devices": []},
        "memory": {},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "record.json").write_text(json.dumps(record))
    (run,) = read(tmp_path)
    assert (run.row["status"], run.row["reason"]) == ("failed", "out of memory: killed")
    assert run.row["seconds_per_epoch"] is None and run.row["counted_step_bytes"] is None
    assert not run.is_completed and table.cells([run]) == []


def test_how_a_run_is_watched_makes_no_cell(tmp_path):
    study_runs.write_run(tmp_path / "a")
    study_runs.write_run(
        tmp_path / "b", seed=1, stall_seconds=60.0, checkpoint_minutes=0.0, skip_bad_events=2
    )
    (cell,) = table.cells(read(tmp_path))
    assert len(cell.runs) == 2


def test_an_epoch_without_a_timed_step_has_no_time(tmp_path):
    """The only step of such an epoch is the first, which compiles; its time is 0 in epochs.csv."""
    study_runs.write_run(tmp_path / "a")
    path = tmp_path / "a" / "epochs.csv"
    with open(path, newline="") as file:
        rows = [{**row, "seconds": "0.0"} for row in csv.DictReader(file)]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (run,) = read(tmp_path)
    assert run.row["seconds_per_epoch"] is None


def test_a_cell_holds_the_seeds_of_one_setting(tmp_path):
    for name, fields in {
        "a": {},
        "b": {"seed": 1, "seconds": 3.0},
        "c": {"filters": 8},
        "d": {"status": "interrupted"},
        "e": {"cores": 64},
    }.items():
        study_runs.write_run(tmp_path / name, **fields)
    cells = table.cells(read(tmp_path))
    assert [[run.name for run in cell.runs] for cell in cells] == [["c"], ["a", "b"], ["e"]]
    assert cells[1].median("seconds_per_epoch") == 2.5
    assert [len(alike) for alike in table.group(cells, "filters", "center_filters")] == [2, 1]


def test_a_run_of_an_earlier_version_is_in_the_same_cell(tmp_path):
    study_runs.write_run(tmp_path / "new", start_from=None)
    study_runs.write_run(tmp_path / "old", seed=1)
    for part in ("augment", "start_from"):
        record = json.loads((tmp_path / "old" / "record.json").read_text())
        record["config"].pop(part, None)
        (tmp_path / "old" / "record.json").write_text(json.dumps(record))
    (cell,) = table.cells(read(tmp_path))
    assert len(cell.runs) == 2


def test_a_run_that_changed_its_processes_is_in_no_cell(tmp_path):
    for name, sizes in {"same": (2, 2), "other": (1, 2)}.items():
        study_runs.write_run(tmp_path / name, world_size=2)
        record = json.loads((tmp_path / name / "record.json").read_text())
        record["training"]["starts"] = [{"world_size": size, "steps": 0} for size in sizes]
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    (cell,) = table.cells(read(tmp_path))
    assert [run.name for run in cell.runs] == ["same"]


def test_a_cell_that_fits_no_network_is_a_row(tmp_path):
    study_runs.write_run(tmp_path / "a", status="failed", reason="unfittable: `--grid` ...")
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    record["config"] |= {"depth": 6, "grid": 96}
    (tmp_path / "a" / "record.json").write_text(json.dumps(record))
    (run,) = read(tmp_path)
    assert run.row["reason"] == "unfittable: `--grid` ..." and run.row["depth"] == 6
    assert run.row["counted_step_bytes"] is None


def test_one_measure_of_skill_for_all(tmp_path):
    study_runs.write_run(tmp_path / "a", test_csi=(0.5, 0.4, 0.3))
    runs = read(tmp_path)
    skill = table.choose_skill(runs)
    assert skill.name == "validation CSI, mean of VIL 16, 74, 133"  # although the test was scored
    assert skill.of(runs[0].row) == pytest.approx(0.2)
    assert skill.of_test(runs[0].row) == pytest.approx(0.4)
    study_runs.write_run(tmp_path / "b", csi=(0.3, 0.2, ""))  # nothing at or above 133 was observed
    runs = read(tmp_path)
    skill = table.choose_skill(runs)
    assert skill.name == "validation CSI, mean of VIL 16, 74"
    assert [skill.of(run.row) for run in runs] == [0.25, 0.25]
    study_runs.write_run(tmp_path / "c", csi=("", "", ""))
    skill = table.choose_skill(read(tmp_path))
    assert (skill.name, skill.higher_is_better) == ("validation loss", False)


def test_joules_that_lack_the_gpus_are_not_compared_with_others(tmp_path):
    lacks = {"joules": 100.0, "source": "rapl", "not_included": ["the GPUs that TensorFlow uses"]}
    study_runs.write_run(tmp_path / "a", **lacks)
    study_runs.write_run(tmp_path / "b", **lacks, precision="mixed_float16")
    study_runs.write_run(tmp_path / "c", joules=100.0, source="rapl", filters=8)
    runs = read(tmp_path)
    assert [run.row["energy_not_included"] for run in runs] == [
        "the GPUs that TensorFlow uses",
        "the GPUs that TensorFlow uses",
        None,
    ]
    assert runs[0].row["energy_source"] == "rapl without the GPUs that TensorFlow uses"
    first, second, complete = (run.row for run in runs)
    assert compare.increases(first, second, None)["energy"] == 0
    assert compare.increases(first, complete, None)["energy"] is None
    notes = [line for claim in claims.claims(runs[:2]) for line in claim.notes]
    assert "The joules do not include the GPUs that TensorFlow uses." in notes
