"""The choice of baselines in experiments/evaluate.py: `--methods`, with and without pysteps."""

import importlib.util
from pathlib import Path

import pytest

from keras_nowcast.errors import InputError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ALL = ["model", "persistence", "extrapolation", "sprog", "anvil"]


@pytest.fixture(scope="module")
def evaluate():
    specification = importlib.util.spec_from_file_location("evaluate", EXPERIMENTS / "evaluate.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(params=[True, False], ids=["with pysteps", "without"])
def pysteps(request, monkeypatch):
    """Whether pysteps seems to be installed."""
    found = importlib.util.find_spec
    there = object() if request.param else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: there if name == "pysteps" else found(name)
    )
    return request.param


def test_by_default_all_that_can_be_scored(evaluate, pysteps, capsys):
    methods = evaluate.build_methods(None, None, is_first=True)
    assert list(methods) == (ALL if pysteps else ALL[:2])
    printed = capsys.readouterr().out
    assert printed.count("\n") == (0 if pysteps else 1)
    assert pysteps or "extrapolation, sprog, anvil are not scored: they need pysteps" in printed


def test_named_methods_in_their_order_each_once(evaluate, pysteps):
    names = ["anvil", "persistence", "anvil"]
    if pysteps:
        assert list(evaluate.build_methods(None, names, True)) == ["model", "anvil", "persistence"]
    else:
        with pytest.raises(InputError, match=r"`--methods`.* Received: anvil persistence anvil"):
            evaluate.build_methods(None, names, True)
    assert list(evaluate.build_methods(None, ["persistence"], True)) == ALL[:2]


def test_an_unknown_method_is_refused(evaluate):
    with pytest.raises(InputError, match="`--methods` must be one of .*Received: vet;"):
        evaluate.build_parser().parse_args(["run", "--methods", "vet"])
