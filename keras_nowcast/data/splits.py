"""Divides the events of a data set into a training set and a held-out test set."""

import datetime
from dataclasses import dataclass

from keras_nowcast.data.catalog import (
    by_time,
    drop_absent,
    drop_ambiguous,
    read_catalog,
    read_rows,
)
from keras_nowcast.errors import InputError

SPLIT_TIME = datetime.datetime(2019, 6, 1)
AUTHORS_BATCH = 8  # events; the authors drop events that do not fill a batch


@dataclass(frozen=True)
class Split:
    """Training and test events, each sorted by time, and one line on how they were divided."""

    train: list
    test: list
    note: str


def select_events(events, max_missing):
    """Returns the events with at most a fraction `max_missing` (0 to 1) of missing pixels.

    Raises:
      InputError: no event is left.
    """
    kept = [event for event in events if event.missing_share <= max_missing]
    if not kept:
        least = min(event.missing_share for event in events)
        raise InputError(
            f"`--max-missing` must leave at least one of {len(events)} events; the most complete "
            f"one lacks a fraction {least:.6f} of its pixels. Received: {max_missing}."
        )
    return kept


def split_events(events, train_before=None, test_from=None):
    """Splits events by time into training and test.

    Args:
      events: Events.
      train_before: datetime; events up to and including it are for training.
      test_from: datetime; events strictly later are for the test. If one of the two is None, it is
        the same as the other; if both are, they are 2019-06-01.

    Returns:
      A Split. If neither date is given and all events are on one side of 2019-06-01, the test set
      is the last fifth by time: the fewest last times that have at least a fifth of the events.
      Events of the same time are never divided, since they may be crops of one storm.

    Raises:
      InputError: one side is empty, or an event would be on both sides.

    Source: the dates are the authors'. Choice: the last fifth.
    """
    events = sorted(events, key=by_time)
    by_default = train_before is None and test_from is None
    train_before, test_from = (
        train_before or test_from or SPLIT_TIME,
        test_from or train_before or SPLIT_TIME,
    )
    if test_from < train_before:
        raise InputError(
            "`--test-from` must not be before `--train-before`, so that no event is in both sets. "
            f"Received: {test_from} and {train_before}."
        )
    train = [event for event in events if event.time <= train_before]
    test = [event for event in events if event.time > test_from]
    how = f"up to {train_before:%Y-%m-%d %H:%M} and after {test_from:%Y-%m-%d %H:%M}"
    if by_default and not (train and test):
        train, test = _last_fifth(events)
        how = f"the last fifth by time, since all are on one side of {SPLIT_TIME:%Y-%m-%d}"
    for name, side in (("training", train), ("test", test)):
        if not side:
            raise InputError(
                f"`--train-before` and `--test-from` must leave {name} events, of {len(events)} "
                f"from {events[0].time} to {events[-1].time}. Received: {train_before} and "
                f"{test_from}."
            )
    note = f"{len(train)} events to train and {len(test)} to test ({how})"
    return Split(train, test, note)


def _last_fifth(events):
    times = sorted({event.time for event in events})
    for first in reversed(times[1:]):
        test = [event for event in events if event.time >= first]
        if 5 * len(test) >= len(events):
            break
    else:
        raise InputError(
            f"`--data` must have events at two or more times, to train and to test. Received: "
            f"{len(events)} events at {len(times)} time."
        )
    return [event for event in events if event.time < first], test


def authors_split(root, say=print):
    """Splits a SEVIR data set as its authors did.

    Only complete events are used. An id that then still has several rows is dropped, even if their
    times differ. On each side of 2019-06-01 the events are taken in the order of their ids, and
    those that do not fill a batch of 8 are dropped. With the published catalog this gives
    3 x 8 x 1,865 training windows and 3 x 8 x 506 test windows.

    Raises:
      InputError: as for read_catalog, select_events and split_events; or a side has no batch.

    Source: the data generator of the SEVIR authors.
    """
    root, events = read_rows(root)
    events = drop_ambiguous(select_events(events, 0), lambda event: event.id, say)
    split = split_events(drop_absent(root, events, say), SPLIT_TIME, SPLIT_TIME)
    train, test = (_whole_batches(side) for side in (split.train, split.test))
    if not (train and test):
        raise InputError(
            f"`--authors-split` needs at least {AUTHORS_BATCH} complete events on each side of "
            f"{SPLIT_TIME:%Y-%m-%d}. Received: {len(split.train)} and {len(split.test)}; leave it "
            "out for a small data set."
        )
    note = f"{len(train)} events to train and {len(test)} to test (the authors' rule)"
    return Split(train, test, note)


def read_split(root, max_missing, train_before, test_from, authors=False, say=print):
    """Reads the catalog of a data set and splits its events.

    Args:
      root, say: as for read_catalog.
      max_missing: as for select_events.
      train_before, test_from: as for split_events.
      authors: whether to use authors_split, which has fixed rules instead of these arguments.

    Raises:
      InputError: as for these functions.
    """
    if authors:
        return authors_split(root, say)
    events = select_events(read_catalog(root, say), max_missing)
    return split_events(events, train_before, test_from)


def _whole_batches(events):
    kept = len(events) // AUTHORS_BATCH * AUTHORS_BATCH
    return sorted(sorted(events, key=lambda event: event.id)[:kept], key=by_time)
