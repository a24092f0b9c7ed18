"""The list of cells, and the options for sbatch. tests/slurm/slurm.sh uses a real Slurm."""

import json
import sys

import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.sweep import slurm
from keras_nowcast.sweep.cells import Cell, PlacedCell


def cells(*filters, processes=1):
    return [
        PlacedCell(Cell({"filters": f}, processes), f"f{f}-np{processes}", (24, 6), None)
        for f in filters
    ]


def test_an_index_stays_what_it_is(tmp_path):
    assert slurm.list_cells(tmp_path, cells(4, 8)) == [0, 1]
    assert slurm.list_cells(tmp_path, cells(16, 8)) == [2, 1]
    assert slurm.listed_cell(tmp_path, 0) == Cell({"filters": 4})
    assert slurm.listed_cell(tmp_path, 2) == Cell({"filters": 16})


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_that_is_not_there(tmp_path, index):
    slurm.list_cells(tmp_path, cells(4, 8))
    with pytest.raises(InputError, match="`--run-cell` must be an index"):
        slurm.listed_cell(tmp_path, index)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A stub sbatch that logs its arguments and prints what sbatch prints."""

    def install(answer="print('17;cluster')"):
        program = tmp_path / "bin" / "sbatch"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"print(json.dumps(sys.argv[1:]), file=open({str(tmp_path / 'words')!r}, 'a'))\n"
            f"{answer}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        return lambda: [json.loads(line) for line in (tmp_path / "words").open()]

    return install


def test_an_array_for_each_number_of_processes(tmp_path, sbatch):
    words = sbatch()
    folder = tmp_path / "a sweep; $HOME"
    both = cells(4, 8) + cells(4, processes=2)
    said = []
    jobs = slurm.submit(folder, both, "slurm/sweep.sbatch", ["--retry"], said.append)
    assert jobs == ["17", "17"]
    output = f"--output={folder}/slurm-%A_%a.out"
    assert words() == [
        [
            "--parsable",
            "--array=0,1",
            "--ntasks=1",
            "--job-name=sweep-np1",
            output,
            "slurm/sweep.sbatch",
            "--retry",
        ],
        [
            "--parsable",
            "--array=2",
            "--ntasks=2",
            "--job-name=sweep-np2",
            output,
            "slurm/sweep.sbatch",
            "--retry",
        ],
    ]
    assert said == ["job 17: 2 cells of 1 process each", "job 17: 1 cell of 2 processes each"]


def test_what_sbatch_refuses_is_told(tmp_path, sbatch):
    sbatch("sys.exit('sbatch: error: invalid partition')")
    with pytest.raises(
        InputError, match="`sbatch` must accept the job. Received: sbatch: error: invalid"
    ):
        slurm.submit(tmp_path, cells(4), "slurm/sweep.sbatch", [])


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="if sbatch is not on PATH"):
        slurm.submit(tmp_path, cells(4), "slurm/sweep.sbatch", [])


@pytest.mark.parametrize("content", ["", "{}x", "3", "[3]", '[{"name": 1}]', '[{"settings": 3}]'])
def test_an_odd_list_of_cells_is_one_line(tmp_path, content):
    (tmp_path / "cells.json").write_text(content)
    with pytest.raises(InputError, match="cells.json must be the list of cells that the sweep wr"):
        slurm.listed_cell(tmp_path, 0)
