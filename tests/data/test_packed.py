"""Packed data have the original's events and batches, and are complete after an interruption."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_nowcast.data import catalog, checksums, packed, sevir, splits
from keras_nowcast.data.pipeline import WindowPipeline
from keras_nowcast.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "raw"
    return synthetic.write_synthetic(root, events=20, size=32, progress=False)


def pack(root, out, grid=None, **more):
    files, catalog_text = packed.sevir_files(root, grid, say=pytest.fail)
    packed.write_files(out, files, catalog_text, grid=grid, say=lambda line: None, **more)


def pack_authors(root, out, grid=None, **more):
    split = splits.split_events(catalog.read_catalog(root))
    files = packed.authors_files(split, grid)
    packed.write_files(out, files, grid=grid, say=lambda line: None, **more)
    return split


def script(*words):
    command = [sys.executable, ROOT / "experiments" / "make_dataset.py", *words]
    return [str(word) for word in command]


def batches(events, grid):
    pipeline = WindowPipeline(events, grid=grid, batch_per_replica=4, seed=3)
    with_end = zip(range(pipeline.steps), pipeline.batches(), strict=False)
    return [batch for _, batch in with_end]


@pytest.mark.parametrize("grid", [None, 8])
def test_training_sees_the_same_batches(root, tmp_path, grid):
    pack(root, tmp_path / "new", grid, threads=3)
    old = splits.split_events(catalog.read_catalog(root))
    new = splits.split_events(catalog.read_catalog(tmp_path / "new", say=pytest.fail))
    assert [e.name for e in old.train] == [e.name for e in new.train]
    assert [e.missing_share for e in old.test] == [e.missing_share for e in new.test]
    side = grid or 32
    for (x, y), (new_x, new_y) in zip(
        batches(old.train, side), batches(new.train, side), strict=True
    ):
        np.testing.assert_array_equal(x, new_x)
        np.testing.assert_array_equal(y, new_y)


def test_pixels_lie_contiguous(root, tmp_path):
    pack(root, tmp_path, 16)
    for path in (tmp_path / "data").rglob("*.h5"):
        with h5py.File(path) as file:
            assert file["vil"].chunks is None and file["vil"].id.get_offset() is not None
            assert file["vil"].shape[1:] == (16, 16, 49) and len(file["id"]) == len(file["vil"])


def test_the_real_radar_too(radar, tmp_path):
    pack(radar, tmp_path, 128)
    old, new = catalog.read_catalog(radar), catalog.read_catalog(tmp_path)
    for before, after in zip(old, new, strict=True):
        np.testing.assert_array_equal(sevir.read_event(before, 128), sevir.read_event(after))


def test_the_authors_files(root, tmp_path):
    split = pack_authors(root, tmp_path)
    for name, events in zip(
        ("nowcast_training.h5", "nowcast_testing.h5"),
        (split.train + split.validation, split.test),
        strict=True,
    ):
        with h5py.File(tmp_path / name) as file:
            count = 3 * len(events)
            assert file["IN"].shape == (count, 32, 32, 13) and file["IN"].dtype == np.uint8
            assert file["OUT"].shape == (count, 32, 32, 12) and file["OUT"].dtype == np.uint8
            for i, event in enumerate(events):
                vil = sevir.read_event(event)
                for j, start in enumerate((0, 12, 24)):
                    row = 3 * i + j
                    np.testing.assert_array_equal(file["IN"][row], vil[..., start : start + 13])
                    np.testing.assert_array_equal(
                        file["OUT"][row], vil[..., start + 13 : start + 25]
                    )
                    assert file["id"][row].decode() == event.id
                    assert file["time_utc"][row].decode() == str(event.frame_time(start))


@pytest.mark.parametrize("how", [pack, pack_authors])
def test_stopped_anywhere_it_goes_on(root, tmp_path, how):
    """Interrupted after every third event, the files are byte-identical to an uninterrupted run."""
    how(root, tmp_path / "whole")
    stops = 0

    def stop_now_and_then():
        nonlocal events
        events += 1
        if events == 3:
            raise KeyboardInterrupt

    while True:
        events = 0
        try:
            how(root, tmp_path / "cut", check=stop_now_and_then)
            break
        except KeyboardInterrupt:
            stops += 1
            assert not (tmp_path / "cut" / "CATALOG.csv").exists()
    assert stops >= 5
    assert listed(tmp_path / "cut") == listed(tmp_path / "whole")
    assert checksums.read_sums(tmp_path / "cut") == checksums.read_sums(tmp_path / "whole")


def listed(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_goes_on(root, tmp_path, number):
    whole = subprocess.run(
        script("--data", root, "--grid", 16, "--out", tmp_path / "whole"), capture_output=True
    )
    assert whole.returncode == 0, whole.stderr
    command = script("--data", root, "--grid", 16, "--out", tmp_path / "cut", "--threads", 1)
    slow = {**os.environ, "PYTHONPATH": f"{slow_reads(tmp_path)}:{ROOT}"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=slow, text=True)
    while not list(tmp_path.glob("cut/data/vil/*/.*.journal")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == (75 if number == signal.SIGTERM else -number), errors
    assert list(tmp_path.glob("cut/data/vil/*/.*.part"))
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert listed(tmp_path / "cut") == listed(tmp_path / "whole")


def slow_reads(folder):
    """Returns a folder for PYTHONPATH with which reading an event takes a tenth of a second."""
    (folder / "slow").mkdir()
    (folder / "slow" / "sitecustomize.py").write_text(
        "import os, time\npread = os.pread\n"
        "def slow(*words):\n    time.sleep(0.1)\n    return pread(*words)\nos.pread = slow\n"
    )
    return folder / "slow"


def test_what_reads_back_otherwise_is_written_anew(root, tmp_path):
    spoiled = []

    def spoil_and_stop():
        if not spoiled:
            [path] = tmp_path.rglob("*.part")
            with open(path, "r+b") as file:
                file.seek(-5, os.SEEK_END)
                file.write(b"?")
            spoiled.append(path)

    files, catalog_text = packed.sevir_files(root)
    last = len(files[0].events)
    calls = iter(range(10**6))
    with pytest.raises(InputError, match="must return what was written"):
        packed.write_files(
            tmp_path,
            files,
            catalog_text,
            say=lambda line: None,
            check=lambda: spoil_and_stop() if next(calls) == last - 1 else None,
        )
    assert spoiled and not (tmp_path / files[0].path).exists()
    packed.write_files(tmp_path, files, catalog_text, say=lambda line: None)
    checksums.verify(tmp_path, say=lambda line: None)


def test_verify_finds_a_flipped_bit_and_a_lost_file(root, tmp_path):
    pack(root, tmp_path)
    done = subprocess.run(["sha256sum", "--check", "--quiet", checksums.SUMS], cwd=tmp_path)
    assert done.returncode == 0
    first, second = sorted((tmp_path / "data").rglob("*.h5"))[:2]
    pixels = bytearray(first.read_bytes())
    pixels[-100] ^= 1
    first.write_bytes(pixels)
    second.unlink()
    said = []
    with pytest.raises(InputError, match="2 of 4"):
        checksums.verify(tmp_path, say=said.append)
    assert f"{first}: differs" in said and f"{second}: No such file or directory" in said


def test_nothing_is_written_over(root, tmp_path):
    before = listed(root)
    for out in (root, tmp_path):
        if out == tmp_path:
            (tmp_path / "CATALOG.csv").write_text("another's\n")
        with pytest.raises(InputError, match="`--out` must be new"):
            pack(root, out)
    assert {k: v for k, v in listed(root).items() if k != ".lock"} == before
    pack(root, tmp_path / "coarse", 8)
    with pytest.raises(InputError, match="another data set|other contents"):
        pack(root, tmp_path / "coarse", 16)


def test_what_other_flags_began_is_not_gone_on_with(root, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path, 8, check=stop)
    with pytest.raises(InputError, match="started with other data or flags"):
        pack(root, tmp_path, 16)


def test_one_process_writes(root, tmp_path):
    with packed._alone(tmp_path):
        with pytest.raises(InputError, match="two processes"):
            pack(root, tmp_path)


def test_a_full_disk(root, tmp_path, monkeypatch):
    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    needed = r"must have space for [\d.]+ (kB|MB) more. Received: .*, where 41.0 kB are free"
    with pytest.raises(InputError, match=needed):
        pack(root, tmp_path)


def test_a_catalog_cannot_write_elsewhere(root, tmp_path):
    own = shutil.copytree(root, tmp_path / "own" / "sevir")
    name = "vil/2018/SEVIR_VIL_SYNTHETIC_2018_0101_1231.h5"
    shutil.move(own / "data" / name, tmp_path / "own" / "evil.h5")
    catalog_file = own / "CATALOG.csv"
    catalog_file.write_text(catalog_file.read_text().replace(name, "../../evil.h5"))
    with pytest.raises(InputError, match="must be a path below"):
        pack(own, tmp_path / "new")


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "`--data` must be given"),
        (("--data", "absent"), "`--out` must be given"),
        (("--data", "absent", "--out", "x"), "`--data` must be a folder"),
        (("--verify", "absent"), "`--verify` must be a folder"),
        (("--data", "absent", "--out", "x", "--grid", "0"), "`--grid` must be at least 1"),
        (("--threads", "0", "--verify", "absent"), "`--threads` must be at least 1"),
    ],
)
def test_bad_usage(tmp_path, words, message):
    done = subprocess.run(script(*words), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


# ---- the sources change -----------------------------------------------------------------------


def _pack_again(root, out, **more):
    said = []
    files, catalog_text = packed.sevir_files(root, say=pytest.fail)
    packed.write_files(out, files, catalog_text, say=said.append, **more)
    return said


def _change(root, number=1):
    """Changes pixels in one file of the source; returns its path."""
    path = sorted((root / "data").rglob("*.h5"))[0]
    # In a copy, since a thread may have the file open, and HDF5 opens none twice in other modes.
    changed = shutil.copy(path, root / "changed")
    with h5py.File(changed, "r+") as file:
        file["vil"][number] = file["vil"][number] ^ 1
    os.replace(changed, path)
    return path


@pytest.fixture
def source(root, tmp_path):
    return shutil.copytree(root, tmp_path / "source")


@pytest.mark.parametrize("how", [pack, pack_authors])
def test_a_source_that_has_changed_is_packed_again(source, tmp_path, how):
    how(source, tmp_path / "packed")
    _change(source)
    how(source, tmp_path / "packed")
    how(source, tmp_path / "new")
    checksums.verify(tmp_path / "packed", say=lambda line: None)
    assert listed(tmp_path / "packed") == listed(tmp_path / "new")


def test_only_what_has_changed_is_read_in_full_and_packed_again(source, tmp_path, monkeypatch):
    _pack_again(source, tmp_path / "packed")
    changed = _change(source)
    read = []
    read_event = sevir.read_event
    monkeypatch.setattr(
        sevir, "read_event", lambda event, grid=None: read.append(event) or read_event(event, grid)
    )
    said = _pack_again(source, tmp_path / "packed")
    assert [line.partition(": ")[2][:20] for line in said] == [
        "differs from its sou",
        "12 events, 602.1 kB,",
        "exists already",
        "exists already",
    ]
    counts = {path: sum(event.file == path for event in read) for path in {e.file for e in read}}
    others = {path: count for path, count in counts.items() if path != changed}
    assert len(others) == 2 and set(others.values()) == {1}
    assert _pack_again(source, tmp_path / "packed")[0].endswith("exists already")


def test_another_time_alone_packs_nothing(source, tmp_path):
    _pack_again(source, tmp_path / "packed")
    before = listed(tmp_path / "packed")
    path = _change(source)
    _change(source)  # back to the same pixels
    os.utime(path, (1, 1))
    assert [line.endswith("exists already") for line in _pack_again(source, tmp_path / "packed")]
    after = listed(tmp_path / "packed")
    assert {name for name in after if after[name] != before[name]} == {"SOURCES.json"}


def test_other_pixels_of_the_same_size_and_time(source, tmp_path):
    """The first event of each file is compared in any case."""
    _pack_again(source, tmp_path / "packed")
    status = sorted((source / "data").rglob("*.h5"))[0].stat()
    path = _change(source, 0)
    with open(path, "r+b") as file:
        file.truncate(max(status.st_size, path.stat().st_size))
    sources = checksums.read_sources(tmp_path / "packed")
    stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns]]
    name = str(path.relative_to(source))
    checksums.note_sources(tmp_path / "packed", name, stamps)
    assert sources[name] != stamps
    assert "differs from its source" in _pack_again(source, tmp_path / "packed")[0]


def test_a_data_set_packed_before_sources_were_noted(source, tmp_path):
    _pack_again(source, tmp_path / "packed")
    (tmp_path / "packed" / "SOURCES.json").unlink()
    assert _pack_again(source, tmp_path / "packed")[0].endswith("exists already")
    (tmp_path / "packed" / "SOURCES.json").write_text("[1")
    _change(source, -1)
    assert "differs from its source" in _pack_again(source, tmp_path / "packed")[0]


def test_what_was_begun_with_other_pixels_is_begun_again(source, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _pack_again(source, tmp_path / "packed", check=stop)
    _change(source, 0)
    _pack_again(source, tmp_path / "packed")
    _pack_again(source, tmp_path / "new")
    assert listed(tmp_path / "packed") == listed(tmp_path / "new")


def test_a_source_that_changes_while_it_is_packed(source, tmp_path):
    changes = iter([_change])

    def change():
        for each in changes:
            each(source, 0)

    with pytest.raises(InputError, match="`--data` must not change while it is packed"):
        _pack_again(source, tmp_path / "packed", check=change)
    _pack_again(source, tmp_path / "packed")
    _pack_again(source, tmp_path / "new")
    assert listed(tmp_path / "packed") == listed(tmp_path / "new")


def test_pixels_of_several_sizes_on_the_ground(source, tmp_path):
    text = (source / "CATALOG.csv").read_text()
    (source / "CATALOG.csv").write_text(text.replace("32000.0,32000.0", "64000.0,64000.0", 1))
    with pytest.raises(InputError, match=r"one width on the ground.* 32 km \(19 events.* 64 km"):
        packed.sevir_files(source, 16)
    packed.sevir_files(source)
