"""What does a job say whose ranks disagree, and after how many seconds?

    python benchmarks/disagreement.py --data RADAR

Starts two ranks, of which one differs in one thing, by horovodrun and by mpirun. A job passes if it
ends with one line that says what differs and with status 2, and has made no run folder. Needs a
Horovod with MPI for mpirun. Nothing is trained.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import h5py
from flags import build_parser
from result_files import write_results

import keras_nowcast
from keras_nowcast.data import catalog, splits

TRAIN = Path(__file__).parents[1] / "experiments" / "train.py"
LAUNCHERS = {
    "horovodrun": [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--gloo"],
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "-bind-to", "none"],
}
SIZE = ["--depth", "1", "--filters", "2", "--precision", "float32", "--epochs", "1"]
# {kind: (words that rank 1 gets in addition, what the line must say)}
OTHER_WORDS = {
    "seed": ("--seed 7", "rank 1 on {host} has --seed 7 instead of 0"),
    "depth": ("--depth 2", "has --depth 2 instead of 1"),
    "precision": ("--precision mixed_bfloat16", "--precision mixed_bfloat16 instead of float32"),
    "learning rate": ("--learning-rate 0.01", "has --learning-rate 0.01 instead of "),
    "batch": ("--batch-per-replica 1", "has --batch-per-replica 1 instead of "),
    "epochs": ("--epochs 2", "has --epochs 2 instead of 1"),
    "fewer windows": ("--max-windows 3", "has --max-windows 3 instead of None, train windows"),
    "a refused flag": ("--filters 0", "rank 1: `--filters` must be at least 1. Received: 0"),
    "no data": ("--data /dev/null/data", "rank 1: `--data` must "),
    "one rank resumes": ("--resume", "has --resume True instead of False"),
}
SHELL = 'if [ "${HOROVOD_RANK:-$OMPI_COMM_WORLD_RANK}" = 1 ]; then %s; fi; exec "$@"'
LIMIT_S = 120


def kinds(root, scratch):
    """Returns {kind: (shell command that makes rank 1 differ, what the line must say)}."""
    found = {
        kind: (f'set -- "$@" {words}', line.format(host=os.uname().nodename))
        for kind, (words, line) in OTHER_WORDS.items()
    }
    for change, line in (
        (an_event_fewer, "train events"),
        (another_name, "the list of train events"),
        (a_longer_file, "has the bytes of "),
        (other_pixels, "has the pixels of event "),
        (an_unreadable_event, "unreadable instead of "),
    ):
        copy = shutil.copytree(root, scratch / change.__name__)
        change(copy)
        kind = change.__name__.replace("_", " ")
        found[kind] = (f'set -- "$@" --data {copy}', line)
    package = scratch / "code" / "keras_nowcast"
    shutil.copytree(Path(keras_nowcast.__file__).parent, package)
    (package / "vil.py").write_text((package / "vil.py").read_text() + "# changed\n")
    found["another code"] = (with_path(package.parent), "has the source of keras_nowcast ")
    found["another h5py"] = (with_path(another_h5py(scratch)), "has h5py 3.0.0 instead of ")
    found["without oneDNN"] = ("export TF_ENABLE_ONEDNN_OPTS=0", "TF_ENABLE_ONEDNN_OPTS 0 instead")
    found["another variable"] = ("export TF_DETERMINISTIC_OPS=1", "TF_DETERMINISTIC_OPS 1 instead")
    return found


def with_path(folder):
    return f"export PYTHONPATH={folder}:$PYTHONPATH"


def another_h5py(scratch):
    """Copies the installed h5py, under another version number."""
    site = Path(h5py.__file__).parents[1]
    for name in ("h5py", "h5py.libs"):
        shutil.copytree(site / name, scratch / "h5py" / name)
    with open(scratch / "h5py" / "h5py" / "__init__.py", "a") as file:
        file.write('\n__version__ = "3.0.0"\n')
    return scratch / "h5py"


def first_event(root):
    return splits.split_events(catalog.read_catalog(root)).train[0]


def an_event_fewer(root):
    name = first_event(root).id
    change_catalog(root, lambda row: row if row["id"] != name else None)


def another_name(root):
    name = first_event(root).id
    change_catalog(root, lambda row: {**row, "id": f"{row['id']}{'0' * (row['id'] == name)}"})
    event = first_event(root)
    with h5py.File(event.file, "r+") as file:
        ids = file["id"][:]
        file["id"][event.index] = event.id.encode()[: ids.dtype.itemsize]


def change_catalog(root, change):
    path = root / "CATALOG.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(filter(None, map(change, rows)))


def a_longer_file(root):
    with open(first_event(root).file, "ab") as file:
        file.write(b"\0")


def other_pixels(root):
    event = first_event(root)
    with h5py.File(event.file, "r+") as file:
        vil = file["vil"]
        if vil.chunks is None:
            vil[event.index] = 0
            return
        place = vil.id.get_chunk_info(event.index)
        packed = zlib.compress(bytes(vil[event.index].size), 9)
    overwrite(event.file, place.byte_offset, packed.ljust(place.size, b"\0"))


def an_unreadable_event(root):
    event = first_event(root)
    with h5py.File(event.file) as file:
        place = file["vil"].id.get_chunk_info(event.index)
    overwrite(event.file, place.byte_offset, b"\0" * 20)


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def job(launcher, change, words, run_dir):
    """Runs a job and returns (seconds, status of the first rank that ended, lines of errors)."""
    command = [*LAUNCHERS[launcher], "bash", "-c", SHELL % change, "rank", sys.executable, TRAIN]
    start = time.monotonic()
    done = subprocess.run(
        [*command, *words, "--run-dir", run_dir], capture_output=True, text=True, timeout=LIMIT_S
    )
    seconds = time.monotonic() - start
    status = 2 if "Exit code: 2" in done.stderr else done.returncode
    return seconds, status, [each for each in done.stderr.splitlines() if "error: " in each]


def row(kind, change, wanted, words, scratch):
    found = {"kind": kind}
    for launcher in LAUNCHERS:
        run_dir = scratch / "run"
        seconds, status, lines = job(launcher, change, words, run_dir)
        right = status == 2 and len(lines) == 1 and wanted in lines[0] and not run_dir.exists()
        found |= {f"{launcher}_s": round(seconds, 1), launcher: "right" if right else "WRONG"}
        found["line"] = lines[0] if lines else ""
        if not right:
            print(kind, launcher, status, *lines, sep="\n  ", file=sys.stderr)
        shutil.rmtree(run_dir, ignore_errors=True)
    return found


def main():
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="root of a SEVIR data set")
    parser.add_argument("--grid", default="64", help="pixels along a side")
    parser.add_argument("--kinds", nargs="+", help="kinds to try; all if not given")
    arguments = parser.parse_args()
    words = ["--data", str(arguments.data.absolute()), "--grid", arguments.grid, *SIZE]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = [
            row(kind, change, wanted, words, scratch)
            for kind, (change, wanted) in kinds(arguments.data, scratch).items()
            if kind in (arguments.kinds or [kind])
        ]
    write_results(
        "disagreement",
        [{key: each[key] for key in each if key != "line"} for each in found],
        f"seconds of a whole job of two ranks, from the command to its end, {len(found)} kinds, "
        "each once; right: one line with the rank and the difference, status 2 and no run folder",
        raw=found,
    )


if __name__ == "__main__":
    main()
