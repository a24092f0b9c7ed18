"""How a sweep treats a cell that a lost rank ended; training is a stub in a real process."""

import json

from keras_nowcast.sweep.cells import Cell, PlacedCell
from keras_nowcast.sweep.launch import Launcher
from keras_nowcast.sweep.runner import CONSOLE, Options, Sweep

REASON = (
    "rank 1 on n2 exited without a shutdown message: killed, or out of memory; the last checkpoint "
    "is kept"
)
TRAIN = f"""
import sys
from keras_nowcast.records import RunFolder

run = RunFolder(sys.argv[sys.argv.index("--run-dir") + 1])
(run.path / "config.json").write_text("{{}}")
record = {{"status": "failed", "status_reason": "{REASON}", "training": {{"seconds": 4.5}}}}
run.write_record(record)
sys.exit("failed: {REASON}")
"""


def test_a_lost_rank_is_a_failure_where_the_sweep_saw_it(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    cell = PlacedCell(Cell({"depth": 3, "grid": 32, "precision": "float32"}, 1), "a", (24, 6), None)
    folder = tmp_path / "a"

    def sweep():
        made = Sweep([cell], tmp_path, Options(Launcher("horovodrun", tmp_path)), lambda line: None)
        made.run()
        commands = [each for each in open(folder / CONSOLE) if each.startswith("$ ")]
        return json.loads((folder / "record.json").read_text()), commands

    record, commands = sweep()
    assert record["status"] == "failed" and len(commands) == 1
    assert record["status_reason"].startswith(
        "crash: rank 1 on n2 exited without a shutdown message"
    )
    assert record["training"] == {"seconds": 4.5} and record["last_lines"]
    assert len(sweep()[1]) == 1  # a failure, so it is not run again without --retry

    # The sweep was lost together with the rank: the cell was interrupted and is resumed.
    (folder / "record.json").write_text(json.dumps({**record, "status_reason": REASON}))
    record, commands = sweep()
    assert len(commands) == 2 and "--resume" in commands[1]
    assert record["status_reason"].startswith("crash: rank 1 on n2")
