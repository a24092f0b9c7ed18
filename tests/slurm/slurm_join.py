"""Compares a record with sacct: slurm_join.py RUN JOB STARTS. Exits with 1 if they disagree."""

import csv
import json
import subprocess
import sys
from pathlib import Path

run, job, starts = sys.argv[1:]
record = json.loads((Path(run) / "record.json").read_text())
environment = record["environment"]
fields = "JobIDRaw,State,NodeList,Start,End,ElapsedRaw,AllocCPUS"
listed = subprocess.run(
    [
        "sacct",
        "--allocations",
        "--duplicates",
        "--parsable2",
        f"--format={fields}",
        "--jobs",
        environment["slurm_job_id"],
    ],
    capture_output=True,
    text=True,
    check=True,
).stdout
print(listed)
rows = list(csv.DictReader(listed.splitlines(), delimiter="|"))
print({name: value for name, value in environment.items() if name.startswith("slurm")})
assert record["status"] == "completed", record["status"]
assert environment["slurm_job_id"] == job
assert {row["JobIDRaw"] for row in rows} == {job}
assert [row["State"] for row in rows] == ["REQUEUED"] * (int(starts) - 1) + ["COMPLETED"]
assert environment["slurm_restart_count"] == int(starts) - 1
assert environment["slurm_nodes"] == rows[-1]["NodeList"]
assert sum(int(row["ElapsedRaw"]) for row in rows) >= record["training"]["seconds"]
