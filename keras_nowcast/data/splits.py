"""Divides the events of a data set into a training, a validation and a test set, by time.

Training reads the first two sets. Only evaluate.py reads the test set, so that nothing that is
chosen while training depends on it.
"""

import datetime
from collections import Counter
from dataclasses import dataclass

import numpy as np

from keras_nowcast.data.catalog import (
    by_time,
    drop_absent,
    drop_ambiguous,
    read_catalog,
    read_rows,
)
from keras_nowcast.errors import InputError
from keras_nowcast.vil import FRAME_MINUTES

TRAIN_BEFORE = datetime.datetime(2019, 1, 1)
TEST_FROM = datetime.datetime(2019, 6, 1)
AUTHORS_BATCH = 8  # events; the authors drop events that do not fill a batch
_EVERYWHERE = (-np.inf, -np.inf, np.inf, np.inf)


@dataclass(frozen=True)
class Split:
    """The three sets, each sorted by time, and how the events were divided.

    Attributes:
      train: list of Events.
      validation: list of Events.
      test: list of Events.
      left_out: number of events that are in no set because they overlap one of a later set.
      train_before: naive datetime, UTC; training events have this time or an earlier one. None if
        the sets are those of an earlier version.
      test_from: naive datetime, UTC; test events are later than it. None likewise.
      rule: how the events were divided, one line.
    """

    train: list
    validation: list
    test: list
    left_out: int
    train_before: datetime.datetime | None
    test_from: datetime.datetime | None
    rule: str

    @property
    def note(self):
        """The numbers of events and the rule, one line."""
        text = (
            f"{len(self.train)} events to train, {len(self.validation)} to validate and "
            f"{len(self.test)} to test ({self.rule})"
        )
        if self.left_out:
            text += f"; {self.left_out} left out, which overlap an event of a later set"
        return text


def select_events(events, max_missing):
    """Returns the events with at most a fraction `max_missing` (0 to 1) of missing pixels.

    Raises:
      InputError: no event is left, or none has a valid pixel.
    """
    kept = [event for event in events if event.missing_share <= max_missing]
    if kept and all(event.missing_share == 1 for event in kept):
        raise InputError(
            f"`--data` must have events with valid pixels. Received: {len(kept)} events, which by "
            "`pct_missing` of the catalog have none."
        )
    if not kept:
        least = min(event.missing_share for event in events)
        raise InputError(
            f"`--max-missing` must leave at least one of {len(events)} events; the most complete "
            f"one lacks a fraction {least:.6f} of its pixels. Received: {max_missing}."
        )
    return kept


def check_widths(events):
    """Checks that a pixel of a grid has the same size on the ground in all events.

    Every event has the same number of pixels along a side of the grid, so all must be of one width:
    that of the catalog (width_m), or 1 km per stored pixel if the catalog does not state it.

    Raises:
      InputError: events differ in width by more than 1%.
    """
    widths = {}
    for event in events:
        widths.setdefault(event.width_km or float(event.size), []).append(event)
    if widths and max(widths) > 1.01 * min(widths):
        found = " and ".join(
            f"{width:g} km ({len(members)} events, the first is {members[0].name})"
            for width, members in sorted(widths.items())[:3]
        )
        raise InputError(
            "`--data` must have events of one width on the ground, since all have the same number "
            f"of grid pixels along a side. Received: {found}; keep the events of one width in the "
            "catalog, or correct its `width_m`."
        )


def report_projections(events, say):
    """Tells `say` in one line if the catalog states several projections for events.

    Pixels of different projections differ in shape and direction, and are trained on alike.
    """
    counts = Counter(event.projection for event in events if event.projection)
    if len(counts) > 1:
        found = ", ".join(f"{count} in {text!r}" for text, count in counts.most_common(3))
        say(
            f"the events have {len(counts)} projections (`proj` of the catalog), and their pixels "
            f"are used alike: {found}"
        )


def split_events(events, train_before=None, test_from=None):
    """Divides events by time into three sets for a training.

    An event whose frames overlap, in time and place, those of an event of a later set is left out.

    Args:
      events: Events.
      train_before: datetime; events up to and including it are for training. By default
        2019-01-01, or `test_from` if that is earlier.
      test_from: datetime; events strictly later are for the test. By default 2019-06-01, or
        `train_before` if that is later. What lies between the two is for validation.

    Returns:
      A Split, whose dates may be other ones than the arguments:

      - If no event lies between the dates, the last days of the training events are for validation:
        the fewest that have at least a fifth of these events.
      - If neither date is given and there are no training or no test events, the sets have about
        60, 20 and 20% of the events: validation and test are each the fewest days that have at
        least a fifth.

      These cuts lie between days (UTC) if there are enough days, otherwise between times. Events of
      the same time are never divided, since they may be crops of one storm. If dates are given, the
      test set may be empty.

    Raises:
      InputError: the training or the validation set is empty, or the dates are in the wrong order.

    Source: the default dates are those of the published tables of SEVIR. Choice: the fifths.
    """
    split = _divided(events, *_boundaries(events, train_before, test_from))
    _require(split, events)
    return split


def _boundaries(events, train_before, test_from):
    """Returns train_before and test_from as they apply to the events, and the rule as text."""
    by_default = train_before is None and test_from is None
    train_before = train_before or min(TRAIN_BEFORE, test_from or TRAIN_BEFORE)
    test_from = test_from or max(TEST_FROM, train_before)
    if test_from < train_before:
        raise InputError(
            "`--test-from` must not be before `--train-before`, so that no event is in two sets. "
            f"Received: {test_from} and {train_before}."
        )
    times = [event.time for event in events]
    if by_default and not (min(times) <= train_before and max(times) > test_from):
        (train_before, test_from), units = _last_fifths(times, 2)
        side = f"up to {TRAIN_BEFORE}" if min(times) > TRAIN_BEFORE else f"after {TEST_FROM}"
        why = f"about 60, 20 and 20% by time, between {units}, since no event is {side}"
        return train_before, test_from, _rule(train_before, test_from, why)
    if any(train_before < time <= test_from for time in times):
        return train_before, test_from, _rule(train_before, test_from)
    trained = [time for time in times if time <= train_before]
    if not trained:
        return train_before, test_from, _rule(train_before, test_from)
    (before,), units = _last_fifths(trained, 1)
    why = f"validation is the last fifth of the events up to {train_before}, between {units}"
    return before, test_from, _rule(before, test_from, why)


def _rule(train_before, test_from, why=None):
    dates = f"training up to {train_before}, validation up to {test_from}, test later"
    return dates if why is None else f"{dates}: {why}"


def _last_fifths(times, sets):
    """Cuts sets off the end of a list of times.

    Args:
      times: datetimes of events; each set has the fewest last days with a fifth of them.
      sets: number of sets to cut off. Each earlier set keeps at least one day.

    Returns:
      A list with the last moment before each set, in order of time, and what lies between cuts as
      text: days, or times if there are too few days.

    Raises:
      InputError: there are too few times.
    """
    of_days = Counter(time.date() for time in times)
    by_day = len(of_days) > sets
    counts = of_days if by_day else Counter(times)
    units = sorted(counts)
    if len(units) <= sets:
        raise InputError(
            f"`--data` must have events at {sets + 1} or more times, to divide them into "
            f"{'training, validation and test' if sets == 2 else 'training and validation'}. "
            f"Received: {len(times)} events at {len(units)} time{'s' * (len(units) > 1)}."
        )
    ends = []
    for earlier in range(sets, 0, -1):
        members = 0
        while not members or (5 * members < len(times) and len(units) > earlier):
            members += counts[units.pop()]
        ends.insert(0, units[-1])
    if by_day:
        ends = [datetime.datetime.combine(day, datetime.time(23, 59, 59)) for day in ends]
    return ends, "days" if by_day else "times"


def _divided(events, train_before, test_from, rule, leave_out=True):
    """Returns the Split by dates; its sets may be empty."""
    check_widths(events)
    events = sorted(events, key=by_time)
    train = [event for event in events if event.time <= train_before]
    validation = [event for event in events if train_before < event.time <= test_from]
    test = [event for event in events if event.time > test_from]
    if leave_out:
        validation = _without_overlap(validation, test)
        train = _without_overlap(train, validation + test)
    left_out = len(events) - len(train) - len(validation) - len(test)
    return Split(train, validation, test, left_out, train_before, test_from, rule)


def _without_overlap(earlier, later):
    """Returns the events of `earlier` that overlap no event of `later` in time and place.

    An unknown place counts as every place. Edges that touch do not overlap.
    """
    if not (earlier and later):
        return earlier
    starts, ends = np.array([_span_s(event) for event in later]).T
    south, west, north, east = np.array([event.box or _EVERYWHERE for event in later]).T
    first = starts.min()

    def overlaps(event):
        start, end = _span_s(event)
        if end < first:  # true of most events
            return False
        low_y, low_x, high_y, high_x = event.box or _EVERYWHERE
        at_once = (starts <= end) & (ends >= start)
        there = (south < high_y) & (north > low_y) & (west < high_x) & (east > low_x)
        return bool(np.any(at_once & there))

    return [event for event in earlier if not overlaps(event)]


def _span_s(event):
    """Returns the times of an event's first and last frame, seconds since the year 1."""
    # Numbers, since a faulty catalog may name a time beyond the last datetime.
    start = (event.time - datetime.datetime.min).total_seconds() + 60 * event.first_minute
    return start, start + 60 * FRAME_MINUTES * (event.frames - 1)


def _require(split, events):
    """Raises InputError if the training or the validation set is empty."""
    for name, side in (("training", split.train), ("validation", split.validation)):
        if not side:
            times = [event.time for event in events]
            raise InputError(
                f"`--train-before` and `--test-from` must leave {name} events, of {len(events)} "
                f"from {min(times)} to {max(times)}. Received: {split.train_before} and "
                f"{split.test_from}, with {split.left_out} events left out because they overlap "
                "a later set; choose other dates."
            )


def authors_split(root, say=print):
    """Splits a SEVIR data set as its authors did; the last fifth of their training set validates.

    Only complete events are used. An id that then still has several rows is dropped, even if their
    times differ. On each side of 2019-06-01 the events are taken in the order of their ids, and
    those that do not fill a batch of 8 are dropped. With the published catalog this gives
    3 x 8 x 1,865 windows for training and validation, and 3 x 8 x 506 test windows. No event is
    left out because it overlaps another one.

    Raises:
      InputError: as for read_catalog and select_events; a side has no batch, or the training side
        has too few times for two sets.

    Source: the data generator of the SEVIR authors, whose training code validates on the last fifth
    of its windows. Choice: complete days, the fewest that have a fifth of the events.
    """
    sides = _authors_sides(root, say)
    before, after = map(_whole_batches, sides)
    if not (before and after):
        raise InputError(
            f"`--authors-split` needs at least {AUTHORS_BATCH} complete events on each side of "
            f"{TEST_FROM:%Y-%m-%d}. Received: {len(sides[0])} and {len(sides[1])}; leave it "
            "out for a small data set."
        )
    (train_before,), units = _last_fifths([event.time for event in before], 1)
    why = f"the authors' events; validation is the last fifth up to {TEST_FROM}, between {units}"
    rule = _rule(train_before, TEST_FROM, why)
    return _divided(before + after, train_before, TEST_FROM, rule, leave_out=False)


def _authors_sides(root, say):
    """Returns the authors' events up to 2019-06-01 and after it; batches may be incomplete."""
    root, events = read_rows(root, say)
    events = drop_ambiguous(select_events(events, 0), lambda event: event.id, say)
    events = drop_absent(root, events, say)
    return (
        [event for event in events if event.time <= TEST_FROM],
        [event for event in events if event.time > TEST_FROM],
    )


def _whole_batches(events):
    kept = len(events) // AUTHORS_BATCH * AUTHORS_BATCH
    return sorted(sorted(events, key=lambda event: event.id)[:kept], key=by_time)


def read_split(root, max_missing, train_before, test_from, authors=False, say=print):
    """Reads the catalog of a data set and divides its events for a training.

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


def read_set(name, root, max_missing, train_before, test_from, authors=False, say=print):
    """Reads one set of a data set by the dates of a finished run, to score it.

    Args:
      name: "validation" or "test". The data set may lack events of the other sets.
      root, max_missing, authors, say: as for read_split.
      train_before, test_from: datetimes.

    Returns:
      The Events, sorted by time.

    Raises:
      InputError: as for read_split, or the set is empty.
    """
    if authors:
        events = [each for side in _authors_sides(root, say) for each in _whole_batches(side)]
    else:
        events = select_events(read_catalog(root, say), max_missing)
    rule = _rule(train_before, test_from)
    split = _divided(events, train_before, test_from, rule, leave_out=not authors)
    chosen = getattr(split, name)
    if not chosen:
        times = [event.time for event in events] or [None]
        raise InputError(
            f"`--data` must leave {name} events, by the dates of the run: {rule}. Received: "
            f"{len(events)} events from {min(times)} to {max(times)}. If the run was not trained "
            "on them, give --test-from."
        )
    say(f"{len(chosen)} events of the {name} set ({rule})")
    return chosen


def read_split_of_earlier_version(
    root, max_missing, train_before, test_from, authors=False, say=print
):
    """Divides a data set as a run did whose configuration has no dates: it had two sets.

    Args:
      root, max_missing, train_before, test_from, authors, say: as for read_split. Each date is by
        default the other one, or 2019-06-01.

    Returns:
      A Split whose validation set is the test set, without dates. If neither date is given and all
      events are on one side of 2019-06-01, the test set is the last fifth by time.

    Raises:
      InputError: as for read_split, or a set is empty.
    """
    if authors:
        train, test = map(_whole_batches, _authors_sides(root, say))
    else:
        events = select_events(read_catalog(root, say), max_missing)
        train, test = _two_sets(events, train_before, test_from)
    if not (train and test):
        raise InputError(
            f"`--train-before` and `--test-from` must leave training and test events. Received: "
            f"{len(train)} training events and {len(test)} test events; choose other dates."
        )
    rule = "of an earlier version, which validated on the test set"
    return Split(train, test, test, 0, None, None, rule)


def _two_sets(events, train_before, test_from):
    check_widths(events)
    events = sorted(events, key=by_time)
    end, start = (
        train_before or test_from or TEST_FROM,
        test_from or train_before or TEST_FROM,
    )
    train = [event for event in events if event.time <= end]
    test = [event for event in events if event.time > start]
    if train_before is None and test_from is None and not (train and test):
        times = sorted({event.time for event in events})
        for first in reversed(times[1:]):
            train = [event for event in events if event.time < first]
            test = [event for event in events if event.time >= first]
            if 5 * len(test) >= len(events):
                break
    return train, test
