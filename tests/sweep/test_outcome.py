"""The outcome of a cell, from its folder and the end of its process."""

import json

import pytest
import valid_record

from keras_nowcast import records
from keras_nowcast.checked import NewerVersion
from keras_nowcast.energy.merge import merge_energy
from keras_nowcast.study import table
from keras_nowcast.sweep import outcome
from keras_nowcast.sweep.cells import Cell, PlacedCell
from keras_nowcast.sweep.launch import Ended


def ended(status=1, printed="", timed_out=False):
    return Ended(status, False, timed_out, 12.0, printed)


@pytest.mark.parametrize(
    ("end", "kills", "words"),
    [
        (ended(timed_out=True), (0, 0), "timeout: stopped after 1.5 minutes"),
        (ended(-9), (3, 4), "out of memory: killed (SIGKILL)"),
        (ended(-9), (3, 3), "killed: by SIGKILL from outside"),
        (ended(-9), (None, None), "killed: by SIGKILL, as the kernel does when memory runs out"),
        (ended(1, "Process name: 1\nExit code: -9\n"), (0, 1), "out of memory: killed"),
        (ended(1, "Process name: 1\nExit code: 137\n"), (0, 1), "out of memory: killed"),
        (ended(137, "rank 1 exited on signal 9 (Killed)"), (0, 1), "out of memory: killed"),
        (
            ended(
                1,
                "failed: rank 1 on n2 exited without a shutdown message: killed\nExit code: -9\n",
            ),
            (0, 0),
            "killed: by SIGKILL from outside; the kernel ended no process to free memory; "
            "rank 1 on n2",
        ),
        (
            ended(1, "x\ntensorflow.ResourceExhaustedError: OOM when allocating tensor\ny"),
            (0, 0),
            "out of memory: tensorflow.ResourceExhaustedError: OOM when allocating tensor",
        ),
        (ended(1, "MemoryError"), (0, 0), "out of memory: MemoryError"),
        (ended(2, "a\nerror: `--data` must be\n"), (0, 0), "refused: `--data` must be"),
        (ended(1, "[0]<stderr>:error: `--data` x\n"), (0, 0), "refused: `--data` x"),
        (ended(1, "Traceback\nKeyError: 3\n\n"), (0, 0), "crash: exit status 1; KeyError: 3"),
        (ended(-11), (0, 0), "crash: signal 11; it printed nothing"),
        (
            ended(1, "[0]<stderr>:failed: rank 1 on n2 has not responded for 298 s\nnode says bye"),
            (0, 0),
            "crash: rank 1 on n2 has not responded for 298 s",
        ),
        (
            ended(1, "failed: rank 1 on n2 ran out of memory (Unable to allocate 3 GiB); ..."),
            (0, 0),
            "out of memory: failed: rank 1 on n2 ran out of memory",
        ),
    ],
)
def test_reasons(end, kills, words):
    assert outcome.reason_of_failure(end, 90.0, *kills).startswith(words)


def test_the_kernel_counts_what_it_kills(tmp_path, monkeypatch):
    monkeypatch.setattr(outcome, "VMSTAT", tmp_path / "vmstat")
    assert outcome.oom_kills() is None
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 12\n")
    assert outcome.oom_kills() == 12


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "new"),
        ({"config.json": "{}"}, "interrupted"),
        ({"config.json": "{}", "record.json": '{"status": "completed"}'}, "completed"),
        ({"record.json": '{"status": "failed", "status_reason": "x"}'}, "failed"),
        ({"record.json": ""}, "failed"),
        ({"record.json": '{"status": "completed", "schema": 99}'}, "failed"),
        ({"record.json": '{"status": "failed", "status_reason": null}'}, "failed"),
        # A rank was lost together with the sweep, so nothing has recorded that the cell failed.
        (
            {"record.json": '{"status": "failed", "status_reason": "rank 1 on n2 exited without"}'},
            "interrupted",
        ),
    ],
)
def test_states(tmp_path, files, state):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert outcome.state(tmp_path)[0] == state


def test_what_its_process_knew_of_the_machine_is_kept(tmp_path):
    """A crash joins with sacct by the job that environment.json names."""
    known = {
        "world_size": 2,
        "cpu": "EPYC",
        "horovod": None,
        "slurm_job_id": "71",
        "slurm_array_task_id": "3",
        "slurm_nodes": "n[1-2]",
    }
    (tmp_path / "environment.json").write_text(json.dumps(known))
    placed = PlacedCell(Cell({"depth": 3, "grid": 32}, 2), "a-name", (24, 6), None)
    outcome.write_failure(tmp_path, placed, "crash: signal 11")
    environment = json.loads((tmp_path / "record.json").read_text())["environment"]
    assert {name: environment[name] for name in known} == known
    assert "slurm_nodes_reason" not in environment
    assert environment["slurm_restart_count"] is None
    assert environment["slurm_restart_count_reason"]


def test_a_failure_has_every_key_of_a_record(tmp_path):
    outcome.write_failure(
        tmp_path, PlacedCell(Cell({"depth": 3, "grid": 32}), "a", (24, 6), None), "crash: x"
    )
    record = json.loads((tmp_path / "record.json").read_text())
    training = record["training"].keys()
    assert training >= {"starts", "skipped_event_reasons", "lost_seconds", "setup_seconds"}
    assert record["energy"].keys() >= merge_energy([]).keys()
    assert valid_record.violations(record) == []


@pytest.mark.parametrize("refusal", [None, "`--grid` must be a multiple of 64"])
def test_a_failure_is_a_row_of_the_table(tmp_path, refusal):
    settings = {"depth": 6 if refusal else 3, "grid": 32, "precision": "float32"}
    placed = PlacedCell(Cell(settings, 2), "a-name", (24, 6), refusal)
    outcome.write_failure(tmp_path, placed, "crash: exit status 1", "one\n\ntwo\n")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "failed" and record["status_reason"] == "crash: exit status 1"
    assert record["last_lines"] == ["one", "two"]
    assert record["config"]["depth"] == settings["depth"]
    assert (record["model"]["parameters"] is None) == (refusal is not None)
    for part in ("environment", "model", "training", "energy", "memory"):
        for name, value in record[part].items():
            if value is None and not name.endswith("_reason"):
                assert record[part][f"{name}_reason"]
    assert valid_record.violations(record) == []
    (run,) = table.read(records.read_runs([tmp_path]))
    row = run.row
    assert row["status"] == "failed" and row["world_size"] == 2 and row["seconds"] is None


def test_what_a_run_measured_before_it_failed_is_kept(tmp_path):
    placed = PlacedCell(Cell({"depth": 3, "grid": 32}), "a-name", (24, 6), None)
    run = records.RunFolder(tmp_path)
    run.write_record({"status": "interrupted", "training": {"seconds": 4.5}})
    outcome.write_failure(tmp_path, placed, "timeout: late", measured=True)
    record = run.read_record()
    assert record["status"] == "failed" and record["training"]["seconds"] == 4.5


def test_a_run_of_a_newer_version_is_not_replaced(tmp_path):
    (tmp_path / "record.json").write_text('{"status": "completed", "schema": 99}')
    with pytest.raises(NewerVersion, match="made by a newer version"):
        outcome.record_of(tmp_path)
    (tmp_path / "record.json").write_text("[]")
    assert outcome.record_of(tmp_path) is None
