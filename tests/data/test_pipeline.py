"""Each rank's part of each epoch: complete, repeatable, read ahead and bounded in memory."""

import collections
import itertools
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

from keras_nowcast.data import catalog, pipeline, sevir, synthetic
from keras_nowcast.data.augment import augmented
from keras_nowcast.data.pipeline import WindowPipeline, epoch_plan
from keras_nowcast.errors import InputError

# ---- the plan ---------------------------------------------------------------------------------

SIZES = [[1], [3] * 2, [3, 0, 1, 2] * 5, [2] * 33, [3] * 50]  # windows of each event
CASES = list(itertools.product(SIZES, (1, 2, 3, 7), (1, 2, 5), (True, False)))


def _plans(sizes, world_size, batch, shuffle=True, seed=0, epoch=0):
    starts = [range(0, 12 * size, 12) for size in sizes]
    return [
        epoch_plan(starts, seed, epoch, rank, world_size, batch, shuffle)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("sizes", "world_size", "batch", "shuffle"), CASES)
def test_all_windows_once_an_epoch_in_equal_steps(sizes, world_size, batch, shuffle):
    plans = _plans(sizes, world_size, batch, shuffle)
    windows = [window for plan in plans for step in plan for window in step]
    every = [(event, 12 * i) for event, size in enumerate(sizes) for i in range(size)]
    assert sorted(windows) == every

    per_rank = -(-len(every) // world_size)
    assert {len(plan) for plan in plans} == {-(-per_rank // batch)}
    shares = [sum(map(len, plan)) for plan in plans]
    assert max(shares) - min(shares) <= 1
    for plan in plans:
        lengths = [len(step) for step in plan]
        assert max(lengths) <= batch
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("sizes", "world_size", "batch", "shuffle"), CASES)
def test_few_events_are_read_by_two_ranks(sizes, world_size, batch, shuffle):
    readers = collections.Counter()
    for plan in _plans(sizes, world_size, batch, shuffle):
        readers.update({event for step in plan for event, _ in step})
    assert sum(readers.values()) - len(readers) <= world_size - 1


def test_the_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        return _plans([3] * 40, 2, 4, seed=seed, epoch=epoch)

    assert order(0, 3) == order(0, 3)
    different = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_a_rank_sees_other_events_in_another_epoch():
    def events(epoch):
        return {event for step in _plans([3] * 40, 2, 4, epoch=epoch)[0] for event, _ in step}

    assert len(events(0) & events(1)) < 18  # about half of its 20


def test_without_shuffle_the_order_is_kept():
    (plan,) = _plans([2, 1], 1, 2, shuffle=False)
    assert plan == [[(0, 0)], [(0, 12), (1, 0)]]


def test_shuffle_mixes_no_more_than_a_pool_of_events():
    (plan,) = _plans([3] * 200, 1, 4)
    windows = [window for step in plan for window in step]
    first, last = {}, {}
    for place, (event, _) in enumerate(windows):
        first.setdefault(event, place)
        last[event] = place
    alive = [sum(first[e] <= place <= last[e] for e in first) for place in range(len(windows))]
    assert pipeline.POOL_EVENTS // 2 < max(alive) <= pipeline.POOL_EVENTS
    neighbors = sum(a[0] == b[0] for a, b in itertools.pairwise(windows))
    assert neighbors < 0.15 * len(windows)


SEEN = [((2, 3),), ((1, 5), (4, 1)), ((3, 0), (2, 1)), ((1, 10**6),)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_other_ranks_left_is_seen_once_too(sizes, seen, world_size):
    """An epoch with changing numbers of ranks: every window once, as the counts predict."""
    starts = [range(0, 12 * size, 12) for size in sizes]
    total = sum(sizes)
    windows, left = [], total
    for at, (former, steps) in enumerate((*seen, (world_size, 10**6))):
        of_epoch = pipeline.steps_per_epoch(left, former, 2)
        plans = [
            epoch_plan(starts, 0, 3, rank, former, 2, seen=seen[:at]) for rank in range(former)
        ]
        assert {len(plan) for plan in plans} == {of_epoch}
        made = [window for plan in plans for step in plan[:steps] for window in step]
        assert pipeline.windows_in_steps(left, former, 2, min(steps, of_epoch)) == len(made)
        windows += made
        left -= len(made)
    assert left == 0
    assert sorted(windows) == [(e, 12 * i) for e, size in enumerate(sizes) for i in range(size)]


# ---- the batches ------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, write_sevir):
    codes = write_sevir(tmp_path, events=11, chunks=(1, 16, 16, 49), compression="gzip")
    return catalog.read_catalog(tmp_path), codes


def _build(events, **options):
    return WindowPipeline(events, **{"grid": 16, "batch_per_replica": 4} | options)


def _epoch(pipe, **options):
    batches = pipe.batches(**options)
    steps = list(itertools.islice(batches, pipe.steps))
    batches.close()
    return steps


def _window(codes, event, start):
    vil = codes[int(event.id[1:])]
    return vil[..., start : start + 13], vil[..., start + 13 : start + 25]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("part", [pipeline._LEAST_PART, 1])
def test_batches_hold_the_windows_of_the_plan(
    data, threads, world_size, shuffle, part, monkeypatch
):
    monkeypatch.setattr(pipeline, "_LEAST_PART", part)  # 1: several threads cut these windows too
    events, codes = data
    for rank in range(world_size):
        pipe = _build(
            events, rank=rank, world_size=world_size, threads=threads, shuffle=shuffle, seed=3
        )
        assert pipe.windows == 33
        assert pipe.samples == sum(map(len, pipe.plan(0)))
        batches = _epoch(pipe)
        assert len(batches) == pipe.steps
        for (x, y), step in zip(batches, pipe.plan(0), strict=True):
            assert x.dtype == y.dtype == np.uint8
            windows = [_window(codes, pipe.events[event], start) for event, start in step]
            np.testing.assert_array_equal(x, [window[0] for window in windows])
            np.testing.assert_array_equal(y, [window[1] for window in windows])


def test_a_coarser_grid(data):
    events, _ = data
    pipe = _build(events, grid=4, shuffle=False)
    x, y = next(pipe.batches())
    assert (x.shape[1:], y.shape[1:]) == ((4, 4, 13), (4, 4, 12))
    np.testing.assert_array_equal(x[0], sevir.read_event(events[0], 4)[..., :13])
    with pytest.raises(InputError, match="`--grid`"):
        _build(events, grid=5)


def _equal(batches, others):
    return all(
        np.array_equal(a, b)
        for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


def test_training_goes_on_from_any_epoch_and_step(data):
    events, _ = data
    pipe = _build(events)
    three = list(itertools.islice(pipe.batches(), 3 * pipe.steps))
    assert not _equal(three[: pipe.steps], three[pipe.steps : 2 * pipe.steps])
    rest = 2 * pipe.steps - 5
    again = list(itertools.islice(pipe.batches(first_epoch=1, first_step=5), rest))
    assert _equal(three[pipe.steps + 5 :], again)


def test_what_is_skipped_is_not_read(data, monkeypatch):
    events, _ = data
    pipe = _build(events, shuffle=False, threads=1)
    read = []
    real = sevir.read_event
    monkeypatch.setattr(sevir, "read_event", lambda e, grid: read.append(e.id) or real(e, grid))
    list(pipe.batches(first_step=pipe.steps - 1))
    assert read == [pipe.events[event].id for event in (9, 10)]


def test_each_event_is_read_once_an_epoch(data, monkeypatch):
    events, _ = data
    read = collections.Counter()
    real = sevir.read_event
    monkeypatch.setattr(sevir, "read_event", lambda e, grid: read.update([e.id]) or real(e, grid))
    list(_build(events, shuffle=False).batches())
    assert set(read.values()) == {1}
    assert len(read) == 11


def test_reading_does_not_run_far_ahead(data, monkeypatch):
    events, _ = data
    read = []
    real = sevir.read_event
    monkeypatch.setattr(sevir, "read_event", lambda e, grid: read.append(e.id) or real(e, grid))
    batches = _build(events, batch_per_replica=1, threads=1, shuffle=False).batches()
    for _ in range(4):
        next(batches)
    batches.close()
    assert 2 <= len(read) <= 4


def test_validation_is_one_pass_and_repeatable(data):
    events, _ = data
    pipe = _build(events, shuffle=False)
    first, second = list(pipe.batches()), list(pipe.batches())
    assert len(first) == pipe.steps
    assert _equal(first, second)


def test_a_rank_without_windows_gets_batches_without_a_valid_pixel(data):
    events, _ = data
    pipe = _build(events[:1], world_size=5, rank=0, batch_per_replica=1)
    assert (pipe.windows, pipe.steps, pipe.samples) == (3, 1, 0)
    for x, y in itertools.islice(pipe.batches(), 3):
        np.testing.assert_array_equal(x, np.full((1, 16, 16, 13), 255))
        np.testing.assert_array_equal(y, np.full((1, 16, 16, 12), 255))
    assert sum(_build(events[:1], world_size=5, rank=r).samples for r in range(5)) == 3


def test_windows_of_all_ranks_in_a_step(data):
    events, _ = data
    ranks = [_build(events, world_size=3, rank=rank) for rank in range(3)]
    for step in range(ranks[0].steps):
        together = sum(len(rank.plan(0)[step]) for rank in ranks)
        assert {rank.step_samples(step) for rank in ranks} == {together}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 10, 32, 33, 100])
def test_a_cap_on_windows(data, most):
    events, _ = data
    pipe = _build(events, max_windows=most)
    assert pipe.windows == min(most, 33)
    assert len(_epoch(pipe)) == pipe.steps
    times = [event.time for event in pipe.events]
    assert times == sorted(times)
    assert len(pipe.events) == -(-min(most, 33) // 3)


def test_events_too_short_for_a_window(tmp_path, write_sevir):
    write_sevir(tmp_path, events=2, frames=24)
    with pytest.raises(InputError, match="25 frames or more. Received: at most 24"):
        _build(catalog.read_catalog(tmp_path))


def test_a_damaged_file_ends_reading_with_its_error(data):
    events, _ = data
    pipe = _build(events)
    events[0].file.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="must be readable as HDF5"):
        _epoch(pipe)
    assert isinstance(pipe.error, InputError)


def test_an_event_that_cannot_be_read_may_be_left_out(data, monkeypatch):
    events, codes = data
    bad, real = events[2], sevir.read_event

    def read_event(event, grid):
        if event is bad:
            raise InputError("no")
        return real(event, grid)

    monkeypatch.setattr(sevir, "read_event", read_event)
    met = []
    pipe = _build(events, batch_per_replica=2, on_bad_event=lambda *pair: met.append(pair))
    batches, plan = _epoch(pipe), pipe.plan(0)
    assert len(batches) == pipe.steps
    assert {(event.name, str(error)) for event, error in met} == {(bad.name, "no")}
    left_out = 0
    for number, ((x, _), step) in enumerate(zip(batches, plan, strict=True)):
        good = [_window(codes, pipe.events[e], s)[0] for e, s in step if pipe.events[e] is not bad]
        np.testing.assert_array_equal(x, good or np.full((1, 16, 16, 13), 255))
        assert pipe.left_out.get((0, number), 0) == len(step) - len(good)
        left_out += len(step) - len(good)
    assert left_out == 3


def test_which_event_a_batch_waits_for_is_known(data, monkeypatch):
    events, _ = data
    go_on = threading.Event()
    real = sevir.read_event
    monkeypatch.setattr(sevir, "read_event", lambda e, grid: go_on.wait(30) and real(e, grid))
    pipe = _build(events, shuffle=False)
    assert pipe.waiting is None
    reader = threading.Thread(target=next, args=(pipe.batches(),))
    reader.start()
    while pipe.waiting is None:
        reader.join(0.001)
    assert pipe.waiting[1] is pipe.events[0]
    go_on.set()
    reader.join(30)
    assert pipe.waiting is None


def test_leaving_early_ends_the_threads(data):
    events, _ = data
    before = threading.active_count()
    batches = _build(events, threads=3).batches()
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread.name.startswith("read-sevir"):
            thread.join(timeout=10)
    assert threading.active_count() == before


# ---- TensorFlow -------------------------------------------------------------------------------


def test_the_dataset_gives_the_same_batches(data):
    events, _ = data
    pipe = _build(events)
    dataset = pipe.dataset(first_epoch=1)
    shapes = [tuple(spec.shape) for spec in dataset.element_spec]
    assert shapes == [(None, 16, 16, 13), (None, 16, 16, 12)]
    batches = [(x.numpy(), y.numpy()) for x, y in dataset.take(2 * pipe.steps)]
    assert _equal(batches, list(itertools.islice(pipe.batches(1), 2 * pipe.steps)))


def test_a_validation_dataset_can_be_iterated_again(data):
    events, _ = data
    pipe = _build(events, shuffle=False)
    dataset = pipe.dataset()
    assert sum(1 for _ in dataset) == sum(1 for _ in dataset) == pipe.steps


def test_to_end_an_iterator_waits_for_no_tuner(data):
    """TensorFlow's tuner sleeps for up to as long as it has run, and ending it waits for that."""
    events, _ = data
    dataset = _build(events, shuffle=False).dataset()
    for each in (dataset, augmented(dataset, seed=0)):
        assert each.options().autotune.enabled is False


def test_an_error_comes_through_the_dataset(data):
    import tensorflow as tf

    events, _ = data
    pipe = _build(events)
    events[0].file.write_bytes(b"no HDF5")
    with pytest.raises(tf.errors.OpError):
        list(pipe.dataset().take(pipe.steps))
    assert isinstance(pipe.error, InputError)


@pytest.mark.slow
def test_a_process_that_leaves_early_ends(tmp_path, write_sevir):
    write_sevir(tmp_path, events=8, chunks=(1, 16, 16, 49), compression="gzip")
    script = (
        "import sys\n"
        "from keras_nowcast.data import catalog, pipeline\n"
        "events = catalog.read_catalog(sys.argv[1])\n"
        "pipe = pipeline.WindowPipeline(events, grid=16, batch_per_replica=1)\n"
        "batches = iter(pipe.dataset())\n"
        "next(batches)\n"
        "print('left')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


# ---- memory -----------------------------------------------------------------------------------

MEASURE = """
import itertools, re, sys
from pathlib import Path
from keras_nowcast.data import catalog, pipeline
events = catalog.read_catalog(sys.argv[1])
pipe = pipeline.WindowPipeline(events, grid=96, batch_per_replica=4, threads=2)
for x, y in itertools.islice(pipe.batches(), 2 * pipe.steps):
    pass
peak_kib = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())
print(pipe.windows, peak_kib[1])
"""  # not getrusage's peak, which a process inherits from its parent


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path, write_sevir):
    """Ten times as many events, 180 MB of pixels, take the same memory."""
    peak_kib = {}
    for events in (40, 400):
        root = tmp_path / str(events)
        _write_blank(root, events, write_sevir)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, root], capture_output=True, text=True, check=True
        )
        windows, peak_kib[events] = map(int, done.stdout.split())
        assert windows == 3 * events
    assert peak_kib[400] < peak_kib[40] + 16 * 1024


def _write_blank(root, events, write_sevir):
    """Writes events of 96x96 dry pixels, which take no disk space."""
    import h5py

    write_sevir(root, events, size=1, per_file=events)
    catalog_file = root / "CATALOG.csv"
    catalog_file.write_text(catalog_file.read_text().replace(",1,1,,,,,", ",96,96,,,,,"))
    with h5py.File(root / "data/vil/0.h5", "a") as file:
        del file["vil"]
        vil = file.create_dataset(
            "vil", (events, 96, 96, 49), np.uint8, chunks=(1, 96, 96, 49), compression="gzip"
        )
        for k in range(events):
            vil[k] = 0


# ---- memory that is freed ----------------------------------------------------------------------


def _faults(before):
    """Returns the page faults of a process that allocates and frees 4 x 8 MiB thirty times."""
    script = f"""
import resource
from keras_nowcast.data import pipeline
{before}
def use():
    blocks = [bytearray(2**23) for _ in range(4)]
    for block in blocks:
        block[::4096] = bytes(2**11)
use(), use()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again():
    assert _faults("pipeline.keep_freed_memory()") < 0.1 * _faults("")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_reading_beside_tensorflow_reuses_what_was_freed(tmp_path):
    """An event is 7 MB, 1,764 pages; with TensorFlow's settings it cost several times that."""
    events = catalog.read_catalog(synthetic.write_synthetic(tmp_path / "sevir", 8, progress=False))
    dataset = WindowPipeline(events, grid=96, batch_per_replica=4, shuffle=False).dataset()

    def go_through():
        for _ in dataset:
            pass

    go_through()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    go_through()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 1764 * len(events)


def test_the_memory_of_a_batch_is_used_again_when_nothing_refers_to_it():
    buffers = pipeline._Buffers()
    batch = buffers.take((2, 5))
    address, view = batch.ctypes.data, batch[:1]
    del batch
    other = buffers.take((2, 5)).ctypes.data
    assert other != address and other % 64 == address % 64 == 0
    del view
    assert buffers.take((3, 3)).ctypes.data == address


def test_tensors_keep_their_batch(data):
    """Also when all of them are kept, so that no memory can be used again."""
    events, _ = data
    made = _build(events, shuffle=False)
    kept = list(made.dataset())
    for (x, y), batch in zip(kept, made.batches(), strict=True):
        np.testing.assert_array_equal(x, batch[0])
        np.testing.assert_array_equal(y, batch[1])
