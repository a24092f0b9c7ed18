"""Names that a shell or a figure would take for more than names, and models that hold code."""

import importlib.util
import json
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import pytest

from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.records import RunFolder

ROOT = Path(__file__).parents[2]
HOSTILE = "a 'b'\"; touch pwned; $(touch pwned) `touch pwned`\n| touch pwned & # %s {0} $^$ \\"


def rename_events(data):
    """Gives the events of the data set names that are formulas to matplotlib, and no good ones."""
    catalog_file = data / "CATALOG.csv"
    catalog_file.write_text(catalog_file.read_text().replace("S0000", "$^$00"))
    for path in data.rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["id"][...] = [id_.replace(b"S0000", b"$^$00") for id_ in file["id"][...]]


@pytest.mark.slow
def test_names_are_names_to_every_script(tmp_path, monkeypatch, script_here):
    def script(*words):
        done = script_here(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(tmp_path.rglob("pwned"))

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / HOSTILE
    folder.mkdir()
    data, run, out = (f"{HOSTILE}/{name}; $(touch pwned)" for name in ("data", "run", "out"))
    script("make_synthetic.py", "--root", data, "--events", 10, "--size", 32)
    rename_events(tmp_path / data)
    sizes = ("--depth", 1, "--filters", 2, "--epochs", 1, "--precision", "float32")
    script("train.py", "--data", data, "--run-dir", run, *sizes)
    script("train.py", "--run-dir", run, "--resume", "--epochs", 2)
    script("evaluate.py", run, "--out", out, "--save-forecasts", f"{out} f")
    script("plot_figures.py", HOSTILE, "--out", out)
    names = {path.name for path in (tmp_path / out).iterdir()}
    assert {"scores.csv", "panel.png", "table.csv", "training_curves.pdf"} <= names
    assert [path.name for path in tmp_path.iterdir()] == [HOSTILE]


class Code:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def with_config(file, change):
    """Changes config.json inside of a .keras file."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    members["config.json"] = json.dumps(change(config))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def call_of_system(config):
    return {
        "module": "os",
        "class_name": "system",
        "config": {"command": "touch pwned"},
        "registered_name": None,
    }


def call_in_a_layer(config):
    config["config"]["layers"][-1]["config"]["kernel_initializer"] = call_of_system(config)
    return config


def call_as_a_layer(config):
    of_text = {"module": "subprocess", "class_name": "getoutput", "config": "touch pwned"}
    config["config"]["layers"][1].update(of_text)
    return config


def builtin_as_a_layer(config):
    code = {"source": "open('pwned', 'w')"}
    config["config"]["layers"][1].update(module="builtins", class_name="exec", config=code)
    return config


def lambda_layer(file):
    import keras

    def write(x):
        open("pwned", "w").close()
        return x[..., :12]

    layers = [keras.layers.Input((8, 8, 13)), keras.layers.Lambda(write)]
    keras.Sequential(layers).save(file)
    Path("pwned").unlink()  # building it ran its code; loading it must not


HOSTILE_MODELS = {
    "lambda": lambda_layer,
    "call": lambda file: with_config(file, call_of_system),
    "call in a layer": lambda file: with_config(file, call_in_a_layer),
    "call as a layer": lambda file: with_config(file, call_as_a_layer),
    "builtin as a layer": lambda file: with_config(file, builtin_as_a_layer),
    "pickle": lambda file: file.write_bytes(pickle.dumps(Code())),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "nothing": lambda file: file.write_bytes(b""),
}


@pytest.fixture
def evaluate():
    """experiments/evaluate.py as a module."""
    specification = importlib.util.spec_from_file_location(
        "evaluate_script", ROOT / "experiments" / "evaluate.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["file/below", "file", "x" * 300])
def test_results_that_cannot_be_put_anywhere(tmp_path, evaluate, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="`--out` must be a folder that can be created"):
        evaluate.make_folder(tmp_path / name)


@pytest.mark.parametrize("kind", HOSTILE_MODELS)
def test_loading_a_model_runs_no_code_from_it(tmp_path, monkeypatch, evaluate, kind):
    from keras_nowcast.model.unet import build_unet, write_unet

    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path)
    write_unet(build_unet(8, 13, 12, depth=1, filters=2), run.model_file)
    assert evaluate.load_model(run, "last")[1] == 8
    HOSTILE_MODELS[kind](run.model_file)
    with pytest.raises(InputError, match="`run` must hold a model that can be loaded.*model.keras"):
        evaluate.load_model(run, "last")
    assert not (tmp_path / "pwned").exists()


def test_a_model_that_holds_code_is_one_line_to_a_script(tmp_path, monkeypatch, script_here):
    from keras_nowcast.data.synthetic import write_synthetic

    monkeypatch.chdir(tmp_path)
    write_synthetic(tmp_path / "data", events=10, size=32, progress=False)
    run = RunFolder(tmp_path / "run")
    run.open(RunConfig(data=str(tmp_path / "data"), run_dir=str(run.path)))
    lambda_layer(run.model_file)
    done = script_here("evaluate.py", run.path)
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "model.keras" in told[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "pwned").exists()
