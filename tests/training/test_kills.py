"""SIGKILL at random moments: a run resumed from its checkpoint ends like an undisturbed one.

One kill by default, of one rank of two while it writes a checkpoint. KERAS_NOWCAST_KILLS=20 makes
twenty, alternating the five KINDS. Each prints a line with the seed, and KERAS_NOWCAST_SEED repeats
the moments of an earlier test.
"""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launch import HORUN, LONGEST_S, ROOT  # noqa: E402

from keras_nowcast.records import RunFolder  # noqa: E402
from keras_nowcast.training import checkpoint  # noqa: E402

KILLS = int(os.environ.get("KERAS_NOWCAST_KILLS", 1))
SEED = int(os.environ.get("KERAS_NOWCAST_SEED", random.randrange(10**6)))
KINDS = (
    "rank 0 of two, during a checkpoint",
    "one rank of two",
    "all ranks of two",
    "a process alone",
    "a process alone, during a checkpoint",
)
HAS_HOROVOD = importlib.util.find_spec("horovod") is not None
EPOCHS = 4
WINDOWS = 24  # of an epoch; a step of a rank has one


def start(root, run_dir, ranks, *flags):
    command = [
        sys.executable,
        ROOT / "experiments" / "train.py",
        "--data",
        root,
        "--run-dir",
        run_dir,
        "--depth",
        1,
        "--filters",
        4,
        "--batch-per-replica",
        1,
        "--precision",
        "float32",
        "--epochs",
        EPOCHS,
        "--checkpoint-minutes",
        0.002,
        "--deterministic",
        "--augment",
        *flags,
    ]
    if ranks > 1:
        command = [*HORUN, "-np", ranks, "--gloo", *command]
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def finish(job):
    printed, _ = job.communicate(timeout=LONGEST_S)
    assert job.returncode == 0, printed
    return printed


def wait_for(condition, job, every_s=0.01):
    give_up = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < give_up
        if job.poll() is not None:
            return False
        time.sleep(every_s)
    return True


def final_arrays(run_dir):
    progress, arrays, damaged = checkpoint.read_checkpoint(RunFolder(run_dir).checkpoints)
    assert (progress["epoch"], damaged) == (EPOCHS, [])
    return arrays


def rank_processes(run_dir):
    """Returns the ids of the processes that train in run_dir, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environ = dict(
                each.partition(b"=")[::2] for each in (folder / "environ").read_bytes().split(b"\0")
            )
        except (OSError, ValueError):
            continue
        ours = str(run_dir).encode() in words and str(HORUN[1]).encode() not in words
        if ours and words[0] == sys.executable.encode():
            found[int(environ.get(b"HOROVOD_RANK", 0))] = int(folder.name)
    return found


@pytest.fixture(scope="module")
def undisturbed(small_sevir, tmp_path_factory):
    """Returns a function of a number of ranks: the arrays that a run on them ends with."""
    known = {}

    def of(ranks):
        if ranks not in known:
            run_dir = tmp_path_factory.mktemp("whole") / "run"
            finish(start(small_sevir, run_dir, ranks))
            known[ranks] = final_arrays(run_dir)
        return known[ranks]

    return of


def steps_saved(run_dir, ranks):
    """Returns the number of steps in the newest checkpoint of the run, -1 if there is no run."""
    names = [each.stem for each in (run_dir / "checkpoint").glob("state-*.npz")]
    if not names:
        return 0 if (run_dir / "running.json").exists() else -1
    _, epoch, step = max(names).split("-")
    return int(epoch) * WINDOWS // ranks + int(step)


def kill(kind, job, run_dir, rng, ranks):
    """Kills at a random moment after the run folder exists.

    Returns:
      The ranks that were killed; none if the run had ended, or the checkpoint was written, first.
    """
    moment = rng.randrange(EPOCHS * WINDOWS // ranks)
    if not wait_for(lambda: steps_saved(run_dir, ranks) >= moment, job):
        return ()
    time.sleep(rng.uniform(0, 0.2))
    victims = rank_processes(run_dir)
    try:
        if kind == "one rank of two":
            victims = {rank: victims[rank] for rank in [rng.choice(sorted(victims))]}
        if "during a checkpoint" in kind:
            victims = {0: victims[0]}
            if not wait_for(lambda: stopped_in_a_checkpoint(victims[0], run_dir), job, 0.0002):
                return ()
        for each in victims.values():
            os.kill(each, signal.SIGKILL)
    except (KeyError, OSError):  # it has ended
        return ()
    return victims


def stopped_in_a_checkpoint(process, run_dir):
    """Stops a process that is writing a checkpoint; returns False if it is not writing one."""

    def writing():
        return any((run_dir / "checkpoint").glob(".state-*"))

    if not writing():
        return False
    os.kill(process, signal.SIGSTOP)
    while Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "TZ":
        time.sleep(0.0002)
    if writing():
        return True
    os.kill(process, signal.SIGCONT)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_and_resumed_equals_undisturbed(undisturbed, small_sevir, tmp_path, number, capsys):
    rng = random.Random(f"{SEED} {number}")
    kind = KINDS[number % len(KINDS)]
    ranks = 2 if "two" in kind else 1
    if ranks > 1 and not HAS_HOROVOD:
        pytest.skip("Horovod is not installed")
    arrays = undisturbed(ranks)
    for attempt in range(10):  # if the kill came too late, the run is started again
        run_dir = tmp_path / f"run-{attempt}"
        job = start(small_sevir, run_dir, ranks)
        killed = kill(kind, job, run_dir, rng, ranks)
        printed, _ = job.communicate(timeout=LONGEST_S)
        if killed and job.returncode:
            break
    else:
        pytest.fail("the run was never killed")
    if ranks > 1 and len(killed) == 1:
        assert "exited without a shutdown message: killed, or out of memory" in printed, printed
        record = RunFolder(run_dir).read_record()  # by rank 0, if it survived
        # "completed" if the other rank had nothing left to do.
        assert record is None if 0 in killed else record["status"] in ("failed", "completed")
    saved = RunFolder(run_dir).checkpoints
    if checkpoint.any_in(saved):
        _, _, damaged = checkpoint.read_checkpoint(saved)
        assert damaged == []
    printed = finish(start(small_sevir, run_dir, ranks, "--resume"))
    went_on = next(
        line for line in printed.splitlines() if "resuming" in line or "starting it again" in line
    )
    with capsys.disabled():
        ranks_killed = ", ".join(map(str, sorted(killed)))
        print(
            f"\nkill {number + 1} of {KILLS}, KERAS_NOWCAST_SEED={SEED}: {kind}, "
            f"rank {ranks_killed} | {went_on}"
        )
    found = final_arrays(run_dir)
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    record = RunFolder(run_dir).read_record()
    assert record["status"] == "completed" and len(record["training"]["starts"]) <= 2
    leftovers = [each.name for each in run_dir.rglob(".*") if each.is_file()]
    assert leftovers == []
