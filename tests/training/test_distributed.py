"""Two real Horovod processes do what one would."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_nowcast.errors import InputError, TrainingFailed
from keras_nowcast.training import distributed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from launch import run, run_ranks  # noqa: E402

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)


def steps(tmp_path, name, ranks, *arguments):
    out = tmp_path / name
    out.mkdir()
    script = HERE / "ranks_steps.py"
    if ranks == 1:
        done = run([sys.executable, script, out])
    else:
        done = run_ranks(ranks, script, out, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    weights = [np.load(out / f"{rank}.npz") for rank in range(ranks)]
    return [[each[key] for key in each.files] for each in weights]


@needs_horovod
def test_two_ranks_equal_one_process_on_the_joint_batch(tmp_path):
    (alone,) = steps(tmp_path, "one", 1)
    first, second = steps(tmp_path, "two", 2)
    for one, a, b in zip(alone, first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, one, rtol=1e-4, atol=1e-6)


@needs_horovod
def test_without_allreduce_the_ranks_part(tmp_path):
    first, second = steps(tmp_path, "apart", 2, "--no-allreduce")
    assert any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(first, second, strict=True))


@needs_horovod
def test_overflow_on_one_rank_skips_the_step_on_both(tmp_path):
    done = run_ranks(2, HERE / "ranks_overflow.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [step["scale"] for step in first] == [8.0, 4.0, 4.0]
    assert [step["applied"] for step in first] == [1, 1, 2]
    # The mean of the gradients 1 and 2 is 1.5, applied in the first and the third step.
    assert [step["weight"] for step in first] == [[-1.5, -1.5], [-1.5, -1.5], [-3.0, -3.0]]


@needs_horovod
def test_reducing_inside_the_loss_scale_goes_wrong(tmp_path):
    """The order this project avoids: one rank skips a collective that the other waits in."""
    try:
        done = run_ranks(2, HERE / "ranks_overflow.py", tmp_path, "--inner", timeout=25)
    except subprocess.TimeoutExpired:
        return
    results = [(tmp_path / f"{rank}.json") for rank in range(2)]
    seen = [json.loads(each.read_text()) for each in results if each.exists()]
    assert done.returncode != 0 or seen[0] != seen[1]


def test_world_of_one_reduces_nothing():
    world = distributed.World()
    assert world.gather("a") == ["a"]
    assert world.broadcast(3) == 3
    assert world.total(2.5) == 2.5
    assert world.average(2.5) == 2.5


def test_what_rank_0_raises_reaches_the_caller():
    def refuse():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        distributed.World().on_first(refuse)

    def fill_the_disk():
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingFailed, match="No space left"):
        distributed.World().on_first(fill_the_disk)


def test_what_rank_0_raises_ends_the_other_ranks(monkeypatch):
    world = distributed.World(rank=1, size=2)
    outcomes = [((None, True, "bad"), InputError), ((None, False, "x"), TrainingFailed)]
    for outcome, kind in outcomes:
        monkeypatch.setattr(distributed.World, "broadcast", lambda self, value, o=outcome: o)
        with pytest.raises(kind):
            world.on_first(lambda: pytest.fail("called on a rank other than 0"))


def test_launcher_without_horovod_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "launched_as", lambda: (0, 2))
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="`horovod` must be installed"):
        distributed.start()


@needs_horovod
def test_a_horovod_without_a_needed_operation_is_refused(monkeypatch):
    import horovod.tensorflow

    monkeypatch.setattr(distributed, "launched_as", lambda: (0, 2))
    monkeypatch.delattr(horovod.tensorflow, "allgather_object")
    with pytest.raises(InputError, match="`horovod` must have .* without allgather_object"):
        distributed.start()

    def fail():
        raise ImportError("libtensorflow.so: undefined symbol")

    monkeypatch.setattr(distributed, "_horovod", fail)
    with pytest.raises(InputError, match="`horovod` must load .* undefined symbol; run `make"):
        distributed.start()


def test_stop_flags_of_one_process_agree_at_once():
    flags = distributed.StopFlags(distributed.World())
    assert flags.agreed() == set()
    flags.ask("stop")
    assert flags.agreed() == {"stop"}
    flags.ask("save")
    flags.ask("stop", False)
    assert flags.agreed() == {"save"}
