"""Each script from the shell: its help, and bad input as one line and status 2."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))


def script(name, *arguments):
    command = [sys.executable, ROOT / "experiments" / name, *arguments]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_loads_nothing_heavy(path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(path)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code, ended\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'h5py', 'horovod'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_unknown_flag_is_refused(path):
    done = script(path.name, "--bogus")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.fixture(scope="module")
def sevir(tmp_path_factory):
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=10, size=32, progress=False)
    return root


@pytest.fixture
def train(script_here, tmp_path):
    """Starts a run that is refused; returns its one line."""

    def train(root, *flags, start=script_here):
        run_dir = tmp_path / "run"
        done = start("train.py", "--data", root, "--run-dir", run_dir, "--depth", 2, *flags)
        ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2, done.stderr
        assert len(ours) == 1 and "Traceback" not in done.stderr, done.stderr
        assert not run_dir.exists()
        return ours[0]

    return train


def files(root):
    return sorted((root / "data").rglob("*.h5"))


@pytest.fixture
def own(sevir, tmp_path):
    """A copy of the data set to spoil."""
    import shutil

    return Path(shutil.copytree(sevir, tmp_path / "own"))


def test_no_folder(train, script_here, tmp_path):
    """From a shell and in this process, where the refusals below are tested."""
    for start in (script, script_here):
        assert "`--data` must be a folder" in train(tmp_path / "absent", start=start)


def test_a_catalog_without_vil(train, own):
    catalog_file = own / "CATALOG.csv"
    catalog_file.write_text(catalog_file.read_text().replace(",vil,", ",ir069,"))
    assert "rows with img_type vil" in train(own)


def test_a_truncated_file(train, own):
    path = files(own)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert path.name in train(own)


@pytest.mark.parametrize("wrong", ["shape", "type"])
def test_a_dataset_of_another_form(train, own, wrong):
    path = files(own)[0]
    with h5py.File(path, "r+") as file:
        vil = file["vil"][...]
        del file["vil"]
        file["vil"] = vil[:, :16] if wrong == "shape" else vil.astype(np.float32)
    message = train(own)
    assert path.name in message and "Received:" in message


def test_a_grid_that_does_not_divide(train, sevir):
    assert "`--grid`" in train(sevir, "--grid", 20)


def test_an_empty_training_set(train, sevir):
    early = ("--train-before", "2000-01-01", "--test-from", "2000-01-01")
    assert "must leave training events" in train(sevir, *early)


def test_plots_of_nothing(script_here, tmp_path):
    done = script_here("plot_figures.py", tmp_path)
    assert done.returncode == 2 and "`runs` must hold at least one run" in done.stderr


@pytest.mark.slow
def test_the_doctor_finds_a_run_can_work():
    done = script("doctor.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training can start on this machine" in done.stdout


def test_the_doctor_says_what_stands_in_the_way(script_here):
    done = script_here("doctor.py", "--power-source", "nvml", "--json")
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 1 and "`--power-source` nvml cannot be used" in done.stdout
