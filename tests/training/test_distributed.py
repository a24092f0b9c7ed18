"""Two real Horovod processes do what one would."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_nowcast.errors import InputError, TrainingFailed
from keras_nowcast.training import distributed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import ranks_distributed  # noqa: E402
from launch import run_ranks  # noqa: E402

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, small_sevir):
    """The folder of what two ranks saw, from one job; see ranks_distributed.py."""
    if importlib.util.find_spec("horovod") is None:
        pytest.skip("Horovod is not installed")
    out = tmp_path_factory.mktemp("ranks")
    try:
        done = run_ranks(2, HERE / "ranks_distributed.py", out, small_sevir)
    except subprocess.TimeoutExpired:  # blocked in its last part, as it may be
        return out
    assert (out / "outer" / "1.json").exists(), done.stdout + done.stderr
    return out


def weights(folder):
    """Returns the weights of both ranks."""
    for rank in range(2):
        with np.load(folder / f"{rank}.npz") as archive:
            yield [archive[key] for key in archive.files]


def check_both_equal(alone, folder, rtol):
    """Checks that both ranks have the same arrays, and those of one process up to `rtol`."""
    first, second = weights(folder)
    for one, a, b in zip(alone, first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, one, rtol=rtol, atol=1e-6)


def test_two_ranks_equal_one_process_on_the_joint_batch(two_ranks):
    check_both_equal(ranks_distributed.steps(distributed.World()), two_ranks / "together", 1e-4)


def test_ranks_that_differ_are_all_refused_with_one_line(two_ranks):
    said = [json.loads((two_ranks / "agreement" / f"{n}.json").read_text()) for n in range(2)]
    assert said[0] == said[1]
    assert said[0]["nothing"] is None
    assert re.fullmatch(
        r"all ranks must have the same configuration, data and software\. Received: rank 1 on \S+ "
        r"has --seed 7 instead of 0; give every rank the same flags\.",
        said[0]["seed"],
    )
    assert "--max-windows 5 instead of None, train windows 5 instead of 24" in said[0]["windows"]


def test_statistics_are_those_of_all_windows(two_ranks):
    """Rank 0 has three of the five windows, so that a mean of the ranks' means would differ."""
    alone = ranks_distributed.statistics(distributed.World())
    check_both_equal(alone, two_ranks / "statistics", 1e-5)


def test_without_allreduce_the_ranks_part(two_ranks):
    first, second = weights(two_ranks / "apart")
    assert any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(first, second, strict=True))


def test_overflow_on_one_rank_skips_the_step_on_both(two_ranks):
    first, second = (json.loads((two_ranks / f"outer/{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [step["scale"] for step in first] == [8.0, 4.0, 4.0]
    assert [step["applied"] for step in first] == [1, 1, 2]
    # A tenth of the mean of the gradients 1 and 2, then 0.9 of it and another tenth.
    expected = [[0.15, 0.15], [0.15, 0.15], [0.285, 0.285]]
    np.testing.assert_allclose([step["momentum"] for step in first], expected, rtol=1e-6)


def test_reducing_inside_the_loss_scale_goes_wrong(two_ranks):
    """The order that this project avoids: one rank skips a collective in which the other waits."""
    results = [two_ranks / "inner" / f"{rank}.json" for rank in (0, 1)]
    seen = [json.loads(each.read_text()) for each in results if each.exists()]
    assert len(seen) < 2 or seen[0] != seen[1]


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
