"""Packs SEVIR: in its own layout for training, or as the authors' IN and OUT.

A file is allocated in full before its first pixel, as contiguous data sets. Events are then written
in place, one after the other, with one line per written event in a journal next to the file. A kill
therefore loses only the current event, and memory holds a few events for any file size. A finished
file is read back and compared with the checksums of what was written; only then does it get its
name. `SHA256SUMS` is for `sha256sum -c` and for `verify`.

`SOURCES.json` has the size and the time of each source. A file whose source has changed is compared
with it, and written again if a pixel differs.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_nowcast.data import catalog, checksums, hdf5, sevir, splits
from keras_nowcast.errors import InputError
from keras_nowcast.files import new_hdf5, size_text, take_lock, written_whole
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

AUTHORS_FILES = ("nowcast_training.h5", "nowcast_testing.h5")


@dataclass(frozen=True)
class PackedFile:
    """One file to write.

    Attributes:
      path: its path, relative to the root.
      shapes: {name of a uint8 data set: its shape}.
      labels: {name of a small data set: its array}, with one value per row of `shapes`.
      events: the events to read, in order.
      pieces: function of the (y, x, time) codes of an event -> {name: (rows, ...)} for `shapes`.
    """

    path: Path
    shapes: dict
    labels: dict
    events: list
    pieces: object

    @property
    def plan(self):
        """A digest of what the file will hold; a file of another plan is not continued."""
        events = [(e.id, str(e.time), e.file.name, e.index, e.size, e.frames) for e in self.events]
        labels = {name: values.tolist() for name, values in self.labels.items()}
        described = repr((str(self.path), self.shapes, labels, events))
        return hashlib.sha256(described.encode()).hexdigest()

    @property
    def size(self):
        """Bytes of its pixels."""
        return sum(map(math.prod, self.shapes.values()))

    def read_sources(self):
        """Returns [name, size in bytes, time in ns] of each file that it is made of."""
        files = dict.fromkeys(event.file for event in self.events)
        stamps = [stamp for file in files for stamp in sevir.stamps(file)]
        return [[Path(path).name, size, time] for path, size, time in stamps]


# ---- what is written --------------------------------------------------------------------------


def sevir_files(data, grid=None, say=print):
    """Plans a copy of all radar events in the layout of SEVIR, which training reads as `--data`.

    Args:
      data: root of a SEVIR data set.
      grid: pixels along a side, a divisor of the stored size; None for that size.
      say: function that takes a line about what was left out.

    Returns:
      PackedFiles, one per file of the data set, and the text of their CATALOG.csv. Its rows are
      the original ones, except for the place and the size of the pixels, so that the same flags
      choose the same events from both data sets. data_min, data_max and pct_missing stay those of
      the stored pixels.

    Raises:
      InputError: as for catalog.read_catalog, or the grid does not divide a stored size, or gives
        pixels of several sizes on the ground.
    """
    root = Path(data).absolute()
    events = catalog.present_events(root, say)
    sevir.check_files(events)
    if grid is not None:  # the packed catalog need not state the width
        splits.check_widths(events)
    files = []
    places = {}  # (file, index) in the data set -> index in the packed file
    for file, members in _by_file(events).items():
        path = _inside(file, root / "data")
        for index, event in enumerate(members):
            sevir.block_factor(event, grid or event.size)
            places[str(path), event.index] = index, grid or event.size
        side = grid or members[0].size
        shape = (len(members), side, side, members[0].frames)
        ids = np.array([event.id.encode() for event in members])
        files.append(
            PackedFile(
                Path("data") / path,
                {"vil": shape},
                {"id": ids},
                members,
                lambda vil: {"vil": vil[np.newaxis]},
            )
        )
    return files, _catalog_text(root / "CATALOG.csv", places)


def _by_file(events):
    """Returns {file: its events in order of index}, with each index once."""
    files = {}
    for event in sorted(events, key=lambda event: (str(event.file), event.index)):
        files.setdefault(event.file, {})[event.index] = event
    return {file: list(members.values()) for file, members in files.items()}


def _inside(file, folder):
    path = file.relative_to(folder)  # the reader of the catalog refuses paths outside it
    if not str(path).isprintable():  # SHA256SUMS has one line per file
        raise InputError(f"`file_name` in the catalog must be printable. Received: {str(path)!r}.")
    return path


def _catalog_text(path, places):
    """Returns the packed catalog as text, with the rows whose pixels have a place."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file)
        header = next(rows)
        writer.writerow(header)
        at = {name: header.index(name) for name in header}
        for row in rows:
            if len(row) <= at["img_type"] or not catalog.is_radar(row[at["img_type"]]):
                continue
            place = places.get((str(Path(row[at["file_name"]])), int(row[at["file_index"]])))
            if place is not None:
                row[at["file_index"]], side = place
                row[at["size_x"]] = row[at["size_y"]] = side
                writer.writerow(row)
    return text.getvalue()


def authors_files(split, grid=None, stride=sevir.WINDOW_STRIDE):
    """Plans the two files of the authors: one of training and validation, one of the test events.

    The authors' own training code divides the first file further. Each has IN (n, y, x, 13) and
    OUT (n, y, x, 12), uint8, contiguous, and also the `id` of the event and the `time_utc` of the
    first frame of each window. Windows are in order of time.

    Args:
      split: a Split.
      grid: pixels along a side, a divisor of the stored size; None for that size.
      stride: frames between the starts of two windows of an event.

    Raises:
      InputError: events have several sizes and there is no grid, the grid does not divide a size,
        or there is no event, or none that is long enough.
    """
    sides = (split.train + split.validation, split.test)
    return [
        _authors_file(name, events, grid, stride)
        for name, events in zip(AUTHORS_FILES, sides, strict=True)
    ]


def _authors_file(name, events, grid, stride):
    if not events:
        raise InputError(
            f"`--test-from` must leave events for {name}. Received: none; choose another date."
        )
    side = grid or events[0].size
    for event in events:
        sevir.block_factor(event, side)
        if grid is None and event.size != side:
            raise InputError(
                f"`--grid` must be given if events differ in size. Received: {side} and "
                f"{event.size} pixels."
            )
    sevir.check_files(events)
    events = [event for event in events if sevir.window_starts(event.frames, stride)]
    windows = [
        (event.id.encode(), event.frame_time(start).isoformat(" ").encode())
        for event in events
        for start in sevir.window_starts(event.frames, stride)
    ]
    if not windows:
        raise InputError(
            f"`--data` must have events of {FRAMES_IN + FRAMES_OUT} frames or more. "
            f"Received: none for {name}."
        )
    ids, times = map(np.array, zip(*windows, strict=True))

    def pieces(vil):
        starts = sevir.window_starts(vil.shape[-1], stride)
        x, y = zip(*(sevir.cut_window(vil, start) for start in starts), strict=True)
        return {"IN": np.stack(x), "OUT": np.stack(y)}

    shape = (len(windows), side, side)
    shapes = {"IN": (*shape, FRAMES_IN), "OUT": (*shape, FRAMES_OUT)}
    return PackedFile(Path(name), shapes, {"id": ids, "time_utc": times}, events, pieces)


# ---- how it is written ------------------------------------------------------------------------


def write_files(
    root, files, catalog_text=None, *, grid=None, threads=1, check=lambda: None, say=print
):
    """Writes PackedFiles below a root, or resumes an earlier call that was stopped.

    Args:
      root: the folder; created if absent.
      files: PackedFiles.
      catalog_text: text of CATALOG.csv, written last, since it makes the data set readable.
      grid: the grid for which they were planned.
      threads: number of reading threads.
      check: called after each event; an exception from it stops the work and keeps what is
        written.
      say: function that takes a line about each file.

    Raises:
      InputError: the folder cannot be written or is too small, has other files of these names, or
        another process writes there; an event is unreadable; or a file differs from what was
        written when it is read back.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            _check_catalog(root / "CATALOG.csv", catalog_text)
            _check_space(root, sum(_bytes_needed(root, file) for file in files))
            for file in files:
                _write_file(root, file, grid, threads, check, say)
            if catalog_text is not None:
                _write_catalog(root, catalog_text)
    except OSError as error:
        raise InputError(
            f"`--out` must be a writable folder with enough space. Received: {root} ({error}); "
            "what was written is kept, and the same command resumes there."
        ) from None


@contextlib.contextmanager
def _alone(root):
    with open(root / ".lock", "a") as file:
        if not take_lock(file):
            raise InputError(
                f"`--out` must not be written by two processes. Received: {root}, which another "
                "one is writing to."
            )
        yield


def _check_catalog(path, catalog_text):
    """Raises InputError if another data set is there."""
    if (
        catalog_text is not None
        and path.exists()
        and path.read_text(errors="replace") != catalog_text
    ):
        raise InputError(
            f"`--out` must be new or from the same command. Received: {path}, which "
            "belongs to another data set; give another folder."
        )


def _bytes_needed(root, file):
    beside, _ = _beside(root / file.path)
    if (root / file.path).exists():
        return 0
    there = beside.stat().st_blocks * 512 if beside.exists() else 0
    return max(0, file.size - there)


def _check_space(root, need):
    free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
    if need > free:
        raise InputError(
            f"`--out` must have space for {size_text(need)} more. Received: {root}, where "
            f"{size_text(free)} are free; make space, or give another folder."
        )


def _beside(path):
    """Returns the paths of a file and its journal until the file is complete."""
    return path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.journal")


def _write_file(root, file, grid, threads, check, say):
    path = root / file.path
    sources = file.read_sources()
    beside, journal_file = _beside(path)
    if path.exists():
        if _plan_of(path) != file.plan:
            raise InputError(
                f"`--out` must be new or from the same command. Received: {path}, which "
                "has other contents; give another folder."
            )
        # A run can have been stopped between the renaming and the checksum.
        if str(file.path) not in checksums.read_sums(root):
            checksums.note_sum(root, file.path, checksums.sha256_of(path))
        if _is_current(root, file, sources, grid, threads):
            journal_file.unlink(missing_ok=True)
            say(f"{path}: exists already")
            return
        say(f"{path}: differs from its source, which has changed; it is packed again")
        _check_space(root, file.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    first_line = f"{file.plan} {hashlib.sha256(json.dumps(sources).encode()).hexdigest()}"
    done = _read_journal(beside, journal_file, file, first_line)
    if done is None:
        _lay_out(beside, file)
        with written_whole(journal_file) as new:
            new.write_text(first_line + "\n")
        done = []
    _write_events(beside, journal_file, file, done, grid, threads, check)
    if file.read_sources() != sources:
        journal_file.unlink()
        raise InputError(
            f"`--data` must not change while it is packed. Received: the sources of {path}, which "
            "have changed since; run the same command again."
        )
    digest = _read_back(beside, journal_file, file, done)
    checksums.forget_sum(root, file.path)
    os.replace(beside, path)
    checksums.note_sum(root, file.path, digest)
    checksums.note_sources(root, file.path, sources)
    journal_file.unlink()
    say(f"{path}: {len(file.events)} events, {size_text(file.size)}, sha256 {digest[:16]}...")


def _is_current(root, file, sources, grid, threads):
    """Returns True if a packed file has the pixels of its sources.

    If their sizes and times are those of the packing, one event is compared, otherwise all are.
    """
    is_known = checksums.read_sources(root).get(str(file.path)) == sources
    events = file.events[:1] if is_known else file.events
    path, row = root / file.path, 0
    offsets = _offsets(path, file)
    with open(path, "rb") as pixels:
        for vil in sevir.read_events(events, grid, threads):
            for name, rows in file.pieces(vil).items():
                at = offsets[name] + row * math.prod(rows.shape[1:])
                if os.pread(pixels.fileno(), rows.size, at) != rows.tobytes():
                    return False
            row += len(rows)
    if not is_known:
        checksums.note_sources(root, file.path, sources)
    return True


def _plan_of(path):
    try:
        with hdf5.open_file(path) as file:
            return file.attrs.get("plan")
    except OSError:
        return None


def _read_journal(beside, journal_file, file, first_line):
    """Returns the checksums of the events that are written, or None if the file is to be started.

    Raises:
      InputError: the file was started by another plan.
    """
    if not (beside.exists() and journal_file.exists()):
        return None
    started, *lines = journal_file.read_text().split("\n")
    if started.partition(" ")[0] != file.plan:
        raise InputError(
            f"`--out` must be new or from the same command. Received: {beside}, started with other "
            "data or flags; remove it, or give another folder."
        )
    if started != first_line:  # of other sources
        return None
    done = [
        json.loads(line) for line in lines[:-1]
    ]  # what follows the last end of line is truncated
    os.truncate(journal_file, sum(len(line) + 1 for line in [started, *lines[:-1]]))
    return done


def _lay_out(path, file):
    """Writes a file with all data sets allocated and no pixels yet."""
    import h5py

    with new_hdf5(path) as (laid, _):
        laid.attrs["plan"] = file.plan
        for name, values in file.labels.items():
            laid[name] = values
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_obj_track_times(False)  # so that the same data give the same bytes
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # otherwise everything is written twice
        for name, shape in file.shapes.items():
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(laid.id, name.encode(), h5py.h5t.STD_U8LE, space, settings)


def _offsets(path, file):
    """Returns {name: first byte of the data set}, in order of the offsets."""
    with hdf5.open_file(path) as laid:
        offsets = {name: hdf5.read_layout(laid[name]).offset for name in file.shapes}
    return dict(sorted(offsets.items(), key=lambda item: item[1]))


def _write_events(path, journal_file, file, done, grid, threads, check):
    """Writes the remaining events and adds their entries to `done`."""
    from tqdm import tqdm

    offsets = _offsets(path, file)
    row = sum(entry["rows"] for entry in done)
    bar = tqdm(
        total=len(file.events), initial=len(done), desc=path.name[1:-5], unit="event", disable=None
    )
    with open(path, "r+b") as pixels, open(journal_file, "a") as journal, bar:
        for vil in sevir.read_events(file.events[len(done) :], grid, threads):
            pieces = file.pieces(vil)
            digests = {}
            for name, offset in offsets.items():
                rows = np.ascontiguousarray(pieces[name])
                _write_bytes(pixels, offset + row * math.prod(rows.shape[1:]), rows)
                digests[name] = hashlib.sha256(rows).hexdigest()
            entry = {"rows": len(rows), "sha256": digests}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            done.append(entry)
            row += len(rows)
            bar.update()
            check()
        os.fsync(pixels.fileno())


def _write_bytes(file, offset, rows):
    view = memoryview(rows).cast("B")
    while view:
        count = os.pwrite(file.fileno(), view, offset)
        view, offset = view[count:], offset + count


def _read_back(path, journal_file, file, done):
    """Compares the file with the checksums of what was written, and returns its SHA-256.

    Raises:
      InputError: an event differs. The journal then drops it and the events after it, so that the
        same command writes them again.
    """
    whole = hashlib.sha256()
    with open(path, "rb") as pixels:
        at = 0
        for name, offset in _offsets(path, file).items():
            checksums.hash_bytes(pixels, offset - at, [whole])
            at = offset
            row_bytes = math.prod(file.shapes[name][1:])
            for number, entry in enumerate(done):
                event = hashlib.sha256()
                count = entry["rows"] * row_bytes
                checksums.hash_bytes(pixels, count, [whole, event])
                at += count
                if event.hexdigest() != entry["sha256"][name]:
                    _forget_from(journal_file, number)
                    raise InputError(
                        f"`--out` must return what was written. Received: event "
                        f"{file.events[number].name} in {path}, which differs; the same command "
                        "writes it again, and if this recurs the disk is faulty."
                    )
        checksums.hash_bytes(pixels, os.fstat(pixels.fileno()).st_size - at, [whole])
    return whole.hexdigest()


def _forget_from(journal_file, number):
    lines = journal_file.read_text().splitlines(keepends=True)
    with written_whole(journal_file) as new:
        new.write_text("".join(lines[: 1 + number]))


def _write_catalog(root, catalog_text):
    path = root / "CATALOG.csv"
    with written_whole(path) as beside:
        beside.write_text(catalog_text)
    checksums.note_sum(root, path.relative_to(root), checksums.sha256_of(path))
