"""Corrupted data sets are read correctly or refused; fuzz.py describes the faults.

The cases are the same each time. For more and others: `python tests/data/fuzz.py --cases 5000`.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzz  # noqa: E402
import fuzz_reader  # noqa: E402

CASES, SEED = 510, 20


def test_spoiled_data_sets_are_read_right_or_refused():
    print(f"{CASES} cases, seed {SEED}")
    results = fuzz.run(range(CASES), SEED)
    failed = [each for each in results if not each.passed]
    assert not failed, f"seed {SEED}: {failed}"
    assert {"all read", "read in part", "all refused"} <= {each.end for each in results}


@pytest.mark.parametrize("storage", fuzz.STORAGES)
def test_an_intact_data_set_is_read(tmp_path, storage):
    truth = fuzz.write_intact(tmp_path, storage)
    assert fuzz.verdict(fuzz.read_all(tmp_path, truth)) == (True, "all read")


def test_wrong_pixels_do_not_pass(tmp_path):
    truth = fuzz.write_intact(tmp_path, "gzip")
    truth["S3"] = truth["S3"] ^ 1
    passed, end = fuzz.verdict(fuzz.read_all(tmp_path, truth))
    assert not passed and end.startswith("wrong pixels: S3 ")


@pytest.mark.parametrize(
    ("sent", "end"),
    [(signal.SIGSEGV, "died: SIGSEGV"), (signal.SIGSTOP, "died: nothing within 0.5 s")],
)
def test_a_crash_and_a_hang_do_not_pass(tmp_path, sent, end):
    truth = fuzz.write_intact(tmp_path, "gzip")
    with contextlib.closing(fuzz.Reader(truth, limit_s=0.5)) as reader:
        reader.start()
        os.kill(reader.process.pid, sent)
        assert fuzz.verdict(reader.read(tmp_path)) == (False, end)


# ---- the search that is guided by coverage ----------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(fuzz_reader.CORPUS.glob("*.h5")), ids=lambda path: path.stem
)
def test_each_file_of_the_corpus_passes(path):
    assert fuzz_reader.difference(path) is None


def test_a_reader_that_errs_does_not_pass(monkeypatch):
    from keras_nowcast.data import hdf5

    path = fuzz_reader.CORPUS / "gzip-earliest.h5"
    read_item = hdf5.read_item
    monkeypatch.setattr(hdf5, "read_item", lambda layout, index: read_item(layout, index) ^ 1)
    assert fuzz_reader.difference(path) == "event 0 differs in 100.0% of its pixels"
