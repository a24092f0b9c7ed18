"""The watchdog's verdicts and its connections; ranks are threads here."""

import contextlib
import threading
import time

import pytest

from keras_nowcast.training import watchdog
from keras_nowcast.training.distributed import World

LONGEST_S = 120.0  # a guard against a hang, even on a busy machine


def rank(number, **known):
    made = watchdog._Rank(number, f"n{number}")
    made.steps = 5
    for name, value in known.items():
        holder, _, inner = name.partition("__")
        if inner:
            setattr(getattr(made, holder), inner, value)
        else:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "second, line",
    [
        ({}, None),
        ({"clock__seconds": 9.0}, None),
        (
            {"gone": True},
            "rank 1 on n1 exited without a shutdown message: killed, or out of memory",
        ),
        ({"gone": True, "left": True}, None),
        ({"silence__seconds": 12.0}, "rank 1 on n1 has not responded for 12 s"),
        ({"failed": "ran out of memory (8 GiB)", "status": 1}, "rank 1 on n1 ran out of memory"),
        (
            {"clock__seconds": 11.0, "input": [10.5, "event S1 of a.h5"]},
            "rank 1 on n1 has waited 10 s for event S1 of a.h5",
        ),
        ({"clock__seconds": 11.0, "doing": "saving"}, "no progress for 11 s, in saving after step"),
        ({"clock__seconds": 11.0, "steps": 0}, None),  # the first step compiles
        ({"clock__seconds": 11.0, "steps": 0, "input": [10.5, "a.h5"]}, "waited 10 s for a.h5"),
    ],
)
def test_verdict(second, line):
    verdict = watchdog._verdict([rank(0), rank(1, **second)], 10.0)
    if line is None:
        assert verdict is None
    else:
        assert line in verdict[0] and verdict[1] == 1
        assert "the last checkpoint is kept" in verdict[0]


def test_the_rank_that_reads_is_blamed_and_not_those_that_wait_for_it():
    ranks = [
        rank(0, clock__seconds=30.0),
        rank(1, clock__seconds=29.0, input=[28.0, "event S1 of a.h5"]),
    ]
    assert watchdog._verdict(ranks, 10.0)[0].startswith("rank 1 on n1 has waited 28 s")


def test_of_a_rank_that_has_stopped_the_last_word_may_be_younger_than_the_last_step():
    ranks = [
        rank(0, clock__seconds=9.0),
        rank(1, clock__seconds=11.0, silence__seconds=8.0),
    ]
    assert watchdog._verdict(ranks, 10.0)[0].startswith("rank 1 on n1 has not responded for 8 s")


def test_a_pause_of_the_watchdog_itself_counts_for_little():
    clock = watchdog._Clock()
    clock._at -= 1000.0
    assert clock.tick(0.5) >= 1000.0
    assert clock.seconds <= 2.0


class ThreadWorld(World):
    """A World of ranks that are threads of one process; collectives meet at a barrier."""

    def __new__(cls, *arguments):
        return super().__new__(cls)

    def meet(self, value):
        here = ThreadWorld.shared
        here["values"][self.rank] = value
        here["barrier"].wait(LONGEST_S)
        values = list(here["values"])
        here["barrier"].wait(LONGEST_S)
        return values

    def gather(self, value):
        return self.meet(value)

    def broadcast(self, value):
        return self.meet(value)[0]


@pytest.fixture
def ended(monkeypatch):
    """Runs two ranks until one ends the process; returns the output and the statuses."""
    statuses = []

    class Ended(BaseException):
        pass

    def end(status):
        statuses.append(status)
        raise Ended

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    ThreadWorld.shared = {"values": [None, None], "barrier": threading.Barrier(2)}
    return statuses


def run_ranks(*bodies):
    threads = [threading.Thread(target=body) for body in bodies]
    for each in threads:
        each.start()
    for each in threads:
        each.join(LONGEST_S)
    assert not any(each.is_alive() for each in threads)


def test_ranks_that_end_in_good_order_say_nothing(ended, capsys):
    def body(number):
        with watchdog.Watchdog(ThreadWorld(number, 2), LONGEST_S) as dog:
            for _ in range(10):
                dog.alive("training", step=True)
                time.sleep(0.05)
            time.sleep(0.7 * number)  # rank 1 stays longer

    run_ranks(lambda: body(0), lambda: body(1))
    assert ended == []
    assert capsys.readouterr().err == ""


def rank_1_fails(error):
    with contextlib.suppress(type(error)), watchdog.Watchdog(ThreadWorld(1, 2), LONGEST_S):
        raise error


def rank_1_out_of_memory():
    rank_1_fails(MemoryError("8 GiB"))


# The real end of a process closes its connections.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "error, reason",
    [
        (MemoryError("8 GiB"), "ran out of memory (8 GiB)"),
        (RuntimeError("something unheard of"), "failed (RuntimeError: something unheard of)"),
    ],
    ids=["memory", "other"],
)
def test_a_failure_of_one_ends_both_with_its_reason(ended, capsys, error, reason):
    def first():
        with watchdog.Watchdog(ThreadWorld(0, 2), LONGEST_S) as dog:
            while not ended:
                dog.alive("training", step=True)
                time.sleep(0.05)

    run_ranks(first, lambda: rank_1_fails(error))
    assert ended == [1, 1]
    traceback, told, line = capsys.readouterr().err.rpartition("failed: rank 1 on ")
    assert told and reason in line and line.count("\n") == 1
    assert traceback == "" if isinstance(error, MemoryError) else "Traceback" in traceback


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("disk_hangs", [False, True])
def test_the_reason_is_handed_on_and_not_waited_for(ended, disk_hangs):
    told, written = [], []
    disk = threading.Event()

    def write(reason):
        told.append((reason, list(ended)))
        if disk_hangs:
            disk.wait(LONGEST_S)
        written.append(reason)

    def first():
        with watchdog.Watchdog(ThreadWorld(0, 2), LONGEST_S, on_failure=write) as dog:
            while not ended:
                dog.alive("training", step=True)
                time.sleep(0.05)

    run_ranks(first, rank_1_out_of_memory)
    assert ended == [1, 1] and not (disk_hangs and written)
    disk.set()
    ((reason, ended_before),) = told
    assert reason.startswith("rank 1 on ") and "8 GiB" in reason and ended_before == []
