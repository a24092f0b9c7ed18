"""Ranks that do not agree: what each kind of disagreement is called, and what may differ."""

import dataclasses
import os
import shutil
import zlib
from pathlib import Path

import h5py
import pytest

import keras_nowcast
from keras_nowcast.config import RunConfig
from keras_nowcast.data import catalog, splits
from keras_nowcast.errors import InputError
from keras_nowcast.training import agreement, checks

ALL = "all ranks must have the same configuration, data and software. Received: "
FLAGS = "; give every rank the same flags."


@pytest.fixture
def root(small_sevir, tmp_path):
    """A copy of the data set, to change."""
    return shutil.copytree(small_sevir, tmp_path / "copy")


def described(root, **fields):
    config = RunConfig(data=str(root), power_source="none", **fields)
    return agreement.describe(*checks.check(config, is_first=False, say=lambda line: None))


def refused(*ranks, hosts=("a", "b", "c", "d", "e", "f")):
    """Returns the line on these descriptions, without its beginning."""
    line = agreement.difference(ranks, hosts[: len(ranks)])
    assert line.startswith(ALL) and "\n" not in line
    return line.removeprefix(ALL)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": 7}, "--seed 7 instead of 0"),
        ({"batch_per_replica": 2}, "--batch-per-replica 2 instead of 4"),
        ({"learning_rate": 0.01}, "--learning-rate 0.01 instead of 0.001"),
        ({"epochs": 3}, "--epochs 3 instead of 10"),
        ({"grid": 16}, "--grid 16 instead of 32"),
        ({"start_from": "a"}, "--start-from a instead of None"),
        ({"resume": True, "run_dir": "none"}, "--resume True instead of False"),
        ({"power_limit_w": 200.0}, "--power-limit-w 200.0 instead of None"),
    ],
)
def test_another_flag(small_sevir, fields, words):
    line = refused(described(small_sevir), described(small_sevir, **fields))
    assert line == f"rank 1 on b has {words}{FLAGS}"


def test_where_things_are_and_how_they_are_watched_may_differ(small_sevir, root):
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    other = described(
        root,
        run_dir="elsewhere",
        power_interval_s=1.0,
        watts_per_core=6.0,
        stall_seconds=20.0,
        skip_bad_events=3,
        checkpoint_minutes=0.0,
        layer_times=True,
    )
    assert other == described(small_sevir)


def test_fewer_windows_of_the_same_events(small_sevir):
    line = refused(described(small_sevir), described(small_sevir, max_windows=5))
    assert line == (
        "rank 1 on b has --max-windows 5 instead of None, train windows 5 instead of 24, "
        f"validation windows 5 instead of 9{FLAGS}"
    )


def test_an_event_fewer(small_sevir, root):
    catalog = root / "CATALOG.csv"
    first, *lines = catalog.read_text().splitlines(keepends=True)
    catalog.write_text(first + "".join(line for line in lines if not line.startswith("S000000")))
    line = refused(described(small_sevir), described(root))
    assert line.startswith("rank 1 on b has train windows 21 instead of 24, train events 7 ")
    assert line.endswith("; give every rank the same copy of the data.")


def test_a_file_of_another_size(small_sevir, root):
    file = sorted(root.rglob("*.h5"))[0]
    size = file.stat().st_size
    with open(file, "ab") as longer:
        longer.write(b"\0")
    name = file.relative_to(root / "data")
    line = refused(described(small_sevir), described(root))
    assert line.startswith(f"rank 1 on b has the bytes of {name} {size + 1} instead of {size}; ")


def test_other_pixels_in_files_of_the_same_size(small_sevir, root):
    event, place, pixels = first_event(root)
    packed = zlib.compress(bytes(pixels.size), 9)  # no rain at all, which takes no room
    overwrite(event.file, place.byte_offset, packed.ljust(place.size, b"\0"))
    line = refused(described(small_sevir), described(root))
    assert line.startswith(f"rank 1 on b has the pixels of event {event.name} ")
    assert line.endswith("; give every rank the same copy of the data.")


def first_event(root):
    """Returns the first training event, the place of its chunk in its file, and its pixels."""
    event = splits.split_events(catalog.read_catalog(root)).train[0]
    with h5py.File(event.file) as file:
        return event, file["vil"].id.get_chunk_info(event.index), file["vil"][event.index]


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def test_an_event_that_one_rank_cannot_read(small_sevir, root):
    event, place, _ = first_event(root)
    overwrite(event.file, place.byte_offset, b"\0" * 20)
    assert refused(described(small_sevir), described(root)).startswith(
        f"rank 1 on b has the pixels of event {event.name} unreadable instead of "
    )


def test_other_code(small_sevir, tmp_path, monkeypatch):
    ours = described(small_sevir)
    package = shutil.copytree(Path(keras_nowcast.__file__).parent, tmp_path / "package")
    monkeypatch.setattr(keras_nowcast, "__file__", str(package / "__init__.py"))
    assert described(small_sevir) == ours
    with open(package / "vil.py", "a") as file:
        file.write("# changed\n")
    theirs = described(small_sevir)
    assert refused(ours, theirs) == (
        "rank 1 on b has the source of keras_nowcast "
        f"{theirs['code']['the source of keras_nowcast']} instead of "
        f"{ours['code']['the source of keras_nowcast']}; install the same version of "
        "keras_nowcast on every host."
    )


def test_another_version_and_another_variable(small_sevir, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    ours = described(small_sevir)
    monkeypatch.setattr(h5py, "__version__", "3.9.0")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert refused(ours, described(small_sevir)) == (
        f"rank 1 on b has h5py 3.9.0 instead of {ours['software']['h5py']}, "
        "TF_ENABLE_ONEDNN_OPTS 0 instead of absent; install the same versions on every host, set "
        "the same environment variables on every rank."
    )


def flags(**values):
    return {"flags": values}


def test_the_minority_is_named_also_if_it_is_rank_0():
    assert refused(flags(a=1), flags(a=2), flags(a=2)) == f"rank 0 on a has a 1 instead of 2{FLAGS}"


def test_ranks_with_the_same_difference_are_named_together():
    hosts = ("n1", "n1", "n2", "n2", "n2", "n3")
    usual, other = flags(a=1), flags(a=2)
    line = refused(usual, usual, other, other, flags(b=3), usual, hosts=hosts)
    assert line == (
        "ranks 2, 3 on n2 have a 2 instead of 1; rank 4 on n2 has a absent instead of 1, b 3 "
        f"instead of absent{FLAGS}"
    )


def test_many_differences_are_counted():
    ours, theirs = (flags(**dict.fromkeys("abcde", value)) for value in (0, 1))
    assert "c 1 instead of 0, and 2 more;" in refused(ours, theirs)
    line = refused(ours, ours, *(flags(**dict.fromkeys("abcde", v)) for v in (1, 2, 3, 4)))
    assert "; and 1 more; give" in line


class TwoRanks:
    """A World in which the other rank has another digest, and then another description."""

    size = 2

    def __init__(self, other):
        self.other = other
        self.gathered = []

    def gather(self, value):
        self.gathered.append(value)
        return [value, value if self.other is None else self.other(value)]


def test_descriptions_travel_only_if_they_differ(small_sevir):
    checked = checks.check(RunConfig(data=str(small_sevir)), False, lambda line: None)
    world = TwoRanks(None)
    agreement.check(world, *checked)
    assert [len(each) for each in world.gathered] == [64]

    def other(value):
        if isinstance(value, str):
            return value[::-1]
        return {**value, "flags": {**value["flags"], "--seed": 7}}

    with pytest.raises(InputError, match=r"rank 1 on \S+ has --seed 7 instead of 0; give"):
        agreement.check(TwoRanks(other), checked[0], checked[1])


def test_one_rank_agrees_with_itself():
    world = TwoRanks(None)
    world.size = 1
    agreement.check(world, config=None, split=None)
    assert world.gathered == []


def test_every_field_has_a_rule_for_ranks():
    """A new field is listed here if it may differ between ranks, and if that is meant."""
    rules = {}
    for field in dataclasses.fields(RunConfig):
        rules.setdefault(field.metadata["ranks"], set()).add(field.name)
    assert rules["own"] == {
        *("data", "power_source", "power_interval_s", "watts_per_core", "reader_threads"),
    }
    assert rules["first"] == {
        *("run_dir", "checkpoint_minutes", "stall_seconds", "skip_bad_events", "tensorboard"),
        "layer_times",
    }
