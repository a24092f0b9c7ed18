"""Spoils SEVIR data sets at random and reads them: no traceback, no hang, no wrong pixel.

    python tests/data/fuzz.py --cases 1000 --seed 7

Each case is a small data set with one or two faults:

- files that are truncated, extended, or have holes or flipped bits (in HDF5's headers, its B-trees,
  compressed pixels, ids);
- data sets of another shape, type or storage;
- a catalog with noise.

Another process reads it as training does, with limits of time and memory, so that a crash or hang
inside HDF5's C library is found too. A case passes if every event that was read has exactly the
pixels of the intact data set, and if everything else was refused with a readable InputError. The
exit status is 1 if a case does not pass. Its seed and number repeat it: `--seed 7 --only 123`.

Some bytes are not changed. If pixels have no checksum (contiguous storage, or chunks without gzip
or fletcher32), a changed pixel byte is a valid pixel. So are the bytes that a changed address in
the header points to. Nothing in such a file distinguishes them from intact pixels.
"""

import argparse
import contextlib
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_catalog import spoil_cell, spoil_columns, spoil_rows, spoil_text
from fuzz_files import change_contents, flip_bits, grow, overwrite_bytes, replace_file, truncate
from fuzz_intact import EVENTS, STORAGES, write_intact

LIMIT_BYTES = 8 * 2**30  # of address space
LONGEST_MESSAGE = 1500  # characters; paths are in it
FAULTS = (flip_bits,) * 8 + (
    overwrite_bytes,
    overwrite_bytes,
    truncate,
    truncate,
    grow,
    replace_file,
    change_contents,
    change_contents,
    change_contents,
    spoil_cell,
    spoil_cell,
    spoil_cell,
    spoil_cell,
    spoil_rows,
    spoil_columns,
    spoil_text,
    spoil_text,
)


def spoil(root, rng):
    """Spoils the data set in one way, sometimes in two; returns a text on what was done."""
    fault = rng.choice(FAULTS)
    said = f"{fault.__name__}: {fault(root, rng)}"
    if rng.random() < 0.1:
        catalog = (spoil_cell, spoil_rows) if fault not in (spoil_text, spoil_columns) else ()
        for second in catalog[: rng.randrange(3)]:
            said += f"; {second.__name__}: {second(root, rng)}"
    return said


# ---- reading, in a separate process -----------------------------------------------------------


def read_all(root, truth):
    """Reads the catalog, splits, checks, and every event and window, as training does.

    Returns:
      {read: number of events; refusals: texts of InputErrors; wrong: events with other pixels;
      traceback: that of any other exception; died: None}.
    """
    outcome = {"read": 0, "refusals": [], "wrong": [], "traceback": None, "died": None}
    try:
        _read_all(root, truth, outcome)
    except Exception:
        outcome["traceback"] = traceback.format_exc()
    return outcome


def _read_all(root, truth, outcome):
    from keras_nowcast.data import catalog, sevir, splits
    from keras_nowcast.data.pipeline import WindowPipeline
    from keras_nowcast.errors import InputError

    @contextlib.contextmanager
    def refusing():
        try:
            yield
        except InputError as error:
            outcome["refusals"].append(str(error))

    def compare(event, vil, expected):
        if vil.dtype != np.uint8 or not np.array_equal(vil, expected):
            outcome["wrong"].append(event.name)

    with refusing():
        splits.authors_split(root, str)
    events = []
    with refusing():
        events = splits.select_events(catalog.read_catalog(root, str), 1)
    for check in (splits.split_events, sevir.check_files) if events else ():
        with refusing():
            check(events)
    readable = []
    for event in events:
        with refusing():
            compare(event, sevir.read_event(event), truth.get(event.id))
            outcome["read"] += 1
            readable.append(event)
    if not readable:
        return
    pipeline = WindowPipeline(readable, grid=8, batch_per_replica=2, shuffle=False, threads=2)
    windows = ((x, y) for batch in pipeline.batches() for x, y in zip(*batch, strict=True))
    for event, (x, y) in zip(pipeline.events, windows, strict=True):
        coarse = sevir.block_mean(truth[event.id], 2)
        compare(event, np.concatenate([x, y], axis=-1), coarse)


def _answer(connection, truth):
    """Reads the data sets whose roots come in and sends the outcomes."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    while True:
        connection.send(read_all(connection.recv(), truth))


class Reader:
    """The reading process, started again after a crash or a hang.

    Attributes:
      process: the process, None until it is needed.
    """

    def __init__(self, truth, limit_s=30):
        self._truth = truth
        self._limit_s = limit_s  # of a case, which takes some milliseconds
        self.process = None

    def start(self):
        """Starts the process if there is none."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self.process = context.Process(target=_answer, args=(theirs, self._truth), daemon=True)
            self.process.start()
            theirs.close()

    def read(self, root):
        """Returns the outcome of one data set, as read_all does; `died` is the cause of a death."""
        self.start()
        try:
            self._connection.send(root)
            if self._connection.poll(self._limit_s):
                return self._connection.recv()
            how = f"nothing within {self._limit_s} s"
        except (EOFError, OSError):
            self.process.join()
            status = self.process.exitcode
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self.close()
        return {"read": 0, "refusals": [], "wrong": [], "traceback": None, "died": how}

    def close(self):
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def verdict(outcome):
    """Returns (True if the case passes, a few words on how it ended)."""
    if outcome["died"]:
        return False, f"died: {outcome['died']}"
    if outcome["traceback"]:
        return False, "traceback: " + outcome["traceback"].strip().splitlines()[-1][:200]
    if outcome["wrong"]:
        return False, f"wrong pixels: {', '.join(outcome['wrong'])}"
    for message in outcome["refusals"]:
        if "Received:" not in message or len(message) > LONGEST_MESSAGE:
            return False, f"not one clear line: {message[:300]!r}"
    if outcome["read"] == EVENTS:
        return True, "all read"
    if not outcome["refusals"]:
        return True, "events dropped, and reported"
    return True, "read in part" if outcome["read"] else "all refused"


@dataclass(frozen=True)
class Result:
    """One case: its number, the storage, a text on the fault, and the verdict."""

    case: int
    storage: str
    fault: str
    passed: bool
    end: str


def run(cases, seed):
    """Makes and reads cases.

    Args:
      cases: the numbers of the cases.
      seed: seed of all random choices; with a case's number it repeats that case.

    Returns:
      One Result per case.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for number, storage in enumerate(STORAGES):
            truth = write_intact(folder / f"intact-{number}", storage)
        with contextlib.closing(Reader(truth)) as reader:
            for case in cases:
                rng = random.Random(f"{seed} {case}")
                number = rng.randrange(len(STORAGES))
                root = folder / "case"
                shutil.copytree(folder / f"intact-{number}", root)
                fault = spoil(root, rng)
                passed, end = verdict(reader.read(root))
                results.append(Result(case, list(STORAGES)[number], fault, passed, end))
                shutil.rmtree(root)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="default: another each time")
    parser.add_argument("--only", type=int, help="make and read this case alone")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    only = arguments.only
    results = run(range(arguments.cases) if only is None else [only], seed)
    kinds = Counter((each.fault.partition(":")[0], each.end.partition(":")[0]) for each in results)
    for (fault, end), count in sorted(kinds.items()):
        print(f"{count:6}  {fault:16} {end}")
    failed = [each for each in results if not each.passed]
    for each in failed:
        print(f"case {each.case} ({each.storage}; {each.fault[:300]}): {each.end}")
    seconds = time.monotonic() - began
    print(f"{len(results)} cases, seed {seed}, {seconds:.0f} s: {len(failed)} did not pass")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
