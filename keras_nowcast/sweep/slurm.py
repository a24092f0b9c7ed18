"""A sweep as Slurm jobs: one array per number of processes, one task per cell."""

import json
import shutil
import subprocess
from collections import defaultdict

from keras_nowcast.errors import InputError
from keras_nowcast.files import take_lock, write_json
from keras_nowcast.sweep.cells import Cell

CELLS = "cells.json"


def list_cells(folder, cells):
    """Adds cells to the list in a sweep's folder and returns the index of each cell in the list.

    The index of a cell never changes, because it identifies the cell of a task that is queued.

    Args:
      folder: Path of the sweep's folder.
      cells: PlacedCells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".cells.lock", "a") as file:
        take_lock(file, wait=True)
        listed = _read(folder / CELLS)
        indices = {each["name"]: index for index, each in enumerate(listed)}
        for cell in cells:
            if cell.name not in indices:
                indices[cell.name] = len(listed)
                listed.append(
                    {
                        "name": cell.name,
                        "settings": cell.cell.settings,
                        "processes": cell.cell.processes,
                    }
                )
        write_json(folder / CELLS, listed)
    return [indices[cell.name] for cell in cells]


def listed_cell(folder, index):
    """Returns the Cell with an index in the list of a sweep's folder.

    Raises:
      InputError: there is no list, it cannot be used, or it has no such index.
    """
    listed = _read(folder / CELLS)
    if not 0 <= index < len(listed):
        raise InputError(
            f"`--run-cell` must be an index into {folder / CELLS}, which lists {len(listed)} "
            f"cells. Received: {index}; submit the sweep with --launcher slurm."
        )
    return Cell(listed[index]["settings"], listed[index]["processes"])


def _read(path):
    """Returns the list of cells in a file, [] if there is no file."""
    if not path.exists():
        return []
    try:
        listed = json.loads(path.read_text())
        for each in listed:
            Cell(dict(each["settings"]), int(each["processes"])), each["name"].strip()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} must be the list of cells that the sweep wrote. Received: a file that is not "
            f"({type(error).__name__}: {error}); restore it, or remove it and submit the sweep "
            "again, once no task of it is queued."
        ) from None
    return listed


def submit(folder, cells, script, arguments, say=print):
    """Submits one job array per number of processes, so that no task allocates more than it needs.

    Args:
      folder: Path of the sweep's folder.
      cells: PlacedCells to run.
      script: Path of sweep.sbatch.
      arguments: words for experiments/sweep.py, which the script forwards.
      say: function that is called with one line per job.

    Returns:
      The job ids.

    Raises:
      InputError: sbatch is not installed, or it refuses a job.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "`--launcher` must be horovodrun or mpirun if sbatch is not on PATH. Received: slurm; "
            "submit on a host of the cluster, or choose another launcher."
        )
    by_processes = defaultdict(list)
    for index, cell in zip(list_cells(folder, cells), cells, strict=True):
        by_processes[cell.cell.processes].append(index)
    return [
        _submit_array(folder, processes, indices, script, arguments, say)
        for processes, indices in by_processes.items()
    ]


def _submit_array(folder, processes, indices, script, arguments, say):
    command = [
        "sbatch",
        "--parsable",
        f"--array={','.join(map(str, indices))}",
        f"--ntasks={processes}",
        f"--job-name=sweep-np{processes}",
        # Slurm expands %; %% stands for one %.
        f"--output={str(folder).replace('%', '%%')}/slurm-%A_%a.out",
        str(script),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"`sbatch` must accept the job. Received: {' '.join(done.stderr.split())}; check the "
            "options for sbatch in slurm/site.sh."
        )
    job = done.stdout.strip().split(";")[0]
    cells = f"{len(indices)} cell{'s' * (len(indices) > 1)}"
    say(f"job {job}: {cells} of {processes} process{'es' * (processes > 1)} each")
    return job
