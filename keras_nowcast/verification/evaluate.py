"""Evaluation of any number of methods on the same windows, in one pass, event by event.

Only statistics are kept, a few kilobytes per event and method: the counts of every lead time and
threshold. They are kept by event because confidence intervals resample blocks of events. Three
methods on the 4,000 test events of SEVIR need about 30 MB, or 130 MB with FSS and pooling. Pixels
are released window by window.

Each event is scored separately, and the sum over events is taken in the order of their names. From
the same forecasts, any distribution of events over processes gives bit-identical scores.
"""

import csv
import itertools
import re
from dataclasses import dataclass, fields

import numpy as np

from keras_nowcast import schema
from keras_nowcast.columns import DIFFERENCES, SCORES
from keras_nowcast.errors import InputError
from keras_nowcast.files import written_whole
from keras_nowcast.text_table import aligned
from keras_nowcast.verification import bootstrap, scores, spectrum
from keras_nowcast.vil import FRAME_MINUTES, VALIDATION_THRESHOLDS, VIL_THRESHOLDS

ALL_LEADS = "all"

COLUMNS = schema.names(SCORES)
_FIELDS = tuple(field.name for field in fields(scores.Statistics))
DIFFERENCE_COLUMNS = schema.names(DIFFERENCES)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The statistics of several methods on the same events.

    Attributes:
      events: names of the events, sorted.
      methods: dictionary of name -> Statistics with a first axis over `events`.
      blocks: the name of each event's block, which confidence intervals resample; events of one
        block have the same name.
      pixel_km: side of a pixel in km, or None if it is unknown.
    """

    events: tuple
    methods: dict
    blocks: tuple
    pixel_km: float | None = None

    def totals(self):
        """Returns a dictionary of name -> Statistics summed over the events."""
        return {name: statistics.total() for name, statistics in self.methods.items()}

    def by_block(self):
        """Returns a dictionary of name -> Statistics with a first axis over sorted blocks."""
        return {
            name: scores.grouped(statistics, self.blocks)
            for name, statistics in self.methods.items()
        }

    @property
    def n_blocks(self):
        """The number of blocks."""
        return len(set(self.blocks))


def day_of(event):
    """Returns the UTC day of an event, the default block: "2019-06-01" of "R1 2019-06-01 12:00".

    An event whose name does not end with a time is its own block, and its name is returned.
    """
    time = re.search(r"(\d{4}-\d\d-\d\d) \d\d:\d\d$", event)
    return time[1] if time else event


def accumulate(
    windows, methods, thresholds, pools=(1,), scales=(), on_forecast=None, tile=0, pixel_km=None
):
    """Scores every method on every window and returns the Evaluation, with days as blocks.

    Args:
      windows: iterator of (event, x, y): name of the event, (y, x, 13) and (y, x, 12) uint8
        codes. Consecutive windows of one event make one batch.
      methods: dictionary of name -> function of (b, y, x, 13) uint8 codes that returns
        (b, y, x, 12) codes, uint8 or float.
      thresholds, pools, scales, tile: see `scores.statistics`.
      on_forecast: called with (event, x, y, forecasts) for each batch, to draw or to save;
        `forecasts` is a dictionary of name -> (b, y, x, 12).
      pixel_km: side of a pixel in km, or None if it is unknown.

    Raises:
      InputError: there are no windows, or a forecast has another shape than the observation.
    """
    parts = {}
    for event, group in itertools.groupby(windows, key=lambda window: window[0]):
        _, x, y = zip(*group, strict=True)
        x, y = np.stack(x), np.stack(y)
        forecasts = {name: np.asarray(method(x)) for name, method in methods.items()}
        part = {
            name: scores.statistics(forecast, y, thresholds, pools, scales, tile)
            for name, forecast in forecasts.items()
        }
        if event in parts:
            part = {name: parts[event][name] + statistics for name, statistics in part.items()}
        parts[event] = part
        if on_forecast is not None:
            on_forecast(event, x, y, forecasts)
    if not parts:
        raise InputError("`windows` must hold at least one window to score. Received: none")
    events = tuple(sorted(parts))
    return Evaluation(
        events,
        {name: scores.stacked([parts[event][name] for event in events]) for name in methods},
        tuple(map(day_of, events)),
        pixel_km,
    )


def merged(evaluations):
    """Returns one Evaluation merged from those of several processes, of the same methods.

    The statistics of an event whose windows several processes scored are summed.
    """
    parts, blocks = {}, {}
    methods = evaluations[0].methods
    for evaluation in evaluations:
        blocks |= zip(evaluation.events, evaluation.blocks, strict=True)
        for i, event in enumerate(evaluation.events):
            parts.setdefault(event, []).append((evaluation.methods, i))
    events = tuple(sorted(parts))

    def summed(name, seen):
        first, *rest = (statistics[name].event(i) for statistics, i in seen)
        return sum(rest, first)

    return Evaluation(
        events,
        {
            name: scores.stacked([summed(name, parts[event]) for event in events])
            for name in methods
        },
        tuple(blocks[event] for event in events),
        evaluations[0].pixel_km,
    )


def write_evaluation(path, evaluation):
    """Writes the statistics as an .npz file, atomically, to merge or for other intervals later."""
    arrays = {
        "events": np.array(evaluation.events),
        "methods": np.array(list(evaluation.methods)),
        "blocks": np.array(evaluation.blocks),
        "pixel_km": np.array(evaluation.pixel_km or np.nan),
    }
    for i, statistics in enumerate(evaluation.methods.values()):
        for field in _FIELDS:
            arrays[f"{field}_{i}"] = np.asarray(getattr(statistics, field))
    with written_whole(path) as beside:
        np.savez_compressed(beside, **arrays)


def read_evaluation(path):
    """Returns what `write_evaluation` wrote; an earlier version's has no blocks and no power."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    methods = {}
    for i, name in enumerate(arrays["methods"].tolist()):
        without = {"tile": np.array(0), "power": np.zeros((*arrays[f"errors_{i}"].shape[:2], 0, 2))}
        stored = {field: arrays.get(f"{field}_{i}", without.get(field)) for field in _FIELDS}
        for field in ("thresholds", "pools", "scales", "tile"):
            value = stored[field].tolist()
            stored[field] = tuple(value) if isinstance(value, list) else value
        methods[name] = scores.Statistics(**stored)
    pixel_km = float(arrays.get("pixel_km", np.nan))
    events = arrays["events"].tolist()
    blocks = arrays["blocks"].tolist() if "blocks" in arrays else map(day_of, events)
    return Evaluation(
        tuple(events), methods, tuple(blocks), None if np.isnan(pixel_km) else pixel_km
    )


def score_rows(evaluation, resamples=bootstrap.RESAMPLES, seed=0):
    """Returns the rows of scores.csv: dictionaries of COLUMNS, NaN if a score is undefined.

    There is one row for each method, lead time (and "all", pooled) and threshold. Rows of one lead
    time have the same MAE, MSE, mean error, CSI-M, power and n, which have no threshold. After
    COLUMNS come `csi_pool<side>` and `fss_<side>` of the pools and scales that were counted, sides
    in pixels, then the other columns of MORE_OF_SCORES. `csi_m3_leads` and `csi_m6_leads` are those
    of "all".

    Args:
      evaluation: an Evaluation.
      resamples, seed: of the bootstrap over blocks, as for `bootstrap.interval`.
    """
    rows = []
    for method, statistics in evaluation.methods.items():
        by_block = _by_lead_and_all(evaluation.by_block()[method])
        for (leads, part), (_, blocks) in zip(_by_lead_and_all(statistics), by_block, strict=True):
            table = _score_table(part.total(), blocks, resamples, seed)
            table |= _csi_m_table(part, statistics, leads == (ALL_LEADS,))
            table |= _power_table(part.total(), evaluation.pixel_km)
            rows += _rows({"method": method}, statistics.thresholds, leads, table)
    return rows


def relative_spectra(evaluation):
    """Returns the power spectrum of each method at the last lead time, relative to the observed.

    Returns:
      (wavelength, {method: power}): arrays over the rings from the tile's width to two pixels, the
      wavelengths in km. Both are empty if no spectrum was computed or the pixel size is unknown.
    """
    totals = evaluation.totals()
    tile = next(iter(totals.values())).tile
    if not (tile and evaluation.pixel_km):
        return np.zeros(0), {}
    wavelength = tile * evaluation.pixel_km / np.arange(1, (tile + 1) // 2)
    return wavelength, {
        name: spectrum.relative_power(total.power[-1, 1:]) for name, total in totals.items()
    }


def difference_rows(evaluation, method, resamples=bootstrap.RESAMPLES, seed=0):
    """Returns rows of DIFFERENCE_COLUMNS: `method` minus each other method, on the same events.

    Args:
      evaluation: an Evaluation.
      method: the name of one of its methods.
      resamples, seed: as for `score_rows`.
    """
    rows = []
    parts = {name: dict(_by_lead_and_all(each)) for name, each in evaluation.by_block().items()}
    events = {name: dict(_by_lead_and_all(each)) for name, each in evaluation.methods.items()}
    for reference in evaluation.methods:
        if reference == method:
            continue
        names = {"method": method, "reference": reference, "events": len(evaluation.events)}
        for leads, its in parts[reference].items():
            table = {"n_blocks": np.array(evaluation.n_blocks)}
            for name, ratio, bounds in (("csi", _csi, (-1, 1)), ("mse", _mse, _ANY)):
                mine, other = (ratio(events[each][leads]).score() for each in (method, reference))
                table[f"{name}_difference"] = mine - other
                interval = bootstrap.difference_interval(
                    ratio(parts[method][leads]), ratio(its), bounds, resamples, seed=seed
                )
                table[f"{name}_low"], table[f"{name}_high"] = interval
            rows += _rows(names, evaluation.methods[reference].thresholds, leads, table)
    return rows


def write_rows(path, rows, columns):
    """Writes rows as CSV, atomically: `columns`, then any others; an undefined value is empty."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with written_whole(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def console_table(rows):
    """Returns a table of all lead times pooled: one line per method, with CSI, MAE and MSE."""
    rows = [row for row in rows if row["lead_minutes"] == ALL_LEADS]
    thresholds = list(dict.fromkeys(row["threshold"] for row in rows))
    lines = [["", *(f"CSI {threshold}" for threshold in thresholds), "MAE", "MSE", "MSE 95 %"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        last = mine[-1]
        lines.append(
            [
                method,
                *(_shown(row["csi"], ".3f") for row in mine),
                _shown(last["mae"], ".2f"),
                _shown(last["mse"], ".1f"),
                f"{_shown(last['mse_low'], '.1f')} to {_shown(last['mse_high'], '.1f')}",
            ]
        )
    return aligned(lines)


def _by_lead_and_all(statistics):
    """Yields (names of the leads, Statistics): first each lead time, then all pooled."""
    leads = statistics.counts.shape[-3]
    yield tuple(FRAME_MINUTES * (lead + 1) for lead in range(leads)), statistics
    yield (ALL_LEADS,), scores.all_leads(statistics)


_ANY, _FRACTION, _NOT_NEGATIVE = (-np.inf, np.inf), (0, 1), (0, np.inf)  # bounds of intervals


def _csi(statistics):
    """Returns the Ratio of CSI, (block, l, t)."""
    counts = statistics.contingency()
    return bootstrap.Ratio(counts.hits, counts.hits + counts.misses + counts.false_alarms)


def _mae(statistics):
    """Returns the Ratio of MAE, (block, l, 1), the axes of scores by threshold."""
    return bootstrap.Ratio(statistics.errors[..., 1, None], statistics.n()[..., None])


def _mse(statistics):
    """Returns the Ratio of MSE, (block, l, 1)."""
    return bootstrap.Ratio(statistics.errors[..., 2, None], statistics.n()[..., None])


def _score_table(total, blocks, resamples, seed):
    """Returns a dictionary of column -> array that broadcasts to (l, t).

    Args:
      total: Statistics of everything.
      blocks: the same by block, with a first axis over blocks.
      resamples, seed: as for `bootstrap.interval`.
    """
    table = total.contingency()._asdict()
    for score in scores.CATEGORICAL:
        table[score.__name__] = score(total.contingency())
    for score in (scores.mae, scores.mse, scores.mean_error):
        table[score.__name__] = score(total)[:, None]
    table["n"] = total.n()[:, None]
    table["n_blocks"] = np.array(len(blocks.counts))
    intervals = (
        ("csi", _csi, _FRACTION),
        ("mae", _mae, _NOT_NEGATIVE),
        ("mse", _mse, _NOT_NEGATIVE),
    )
    for name, ratio, bounds in intervals:
        interval = bootstrap.interval(ratio(blocks), bounds, resamples, seed=seed)
        table[f"{name}_low"], table[f"{name}_high"] = interval
    for pool in total.pools[1:]:
        table[f"csi_pool{pool}"] = scores.csi(total.contingency(pool))
    for scale, values in zip(total.scales, scores.fss(total), strict=True):
        table[f"fss_{scale}"] = values
    return table


def _csi_m_table(statistics, by_lead, is_all):
    """Returns the columns of CSI-M, arrays that broadcast to (l, t).

    Args:
      statistics: Statistics with a leading axis of events.
      by_lead: the same, with all lead times apart.
      is_all: whether `statistics` has all lead times pooled.
    """
    table = {}
    for name, chosen in (("csi_m3", VALIDATION_THRESHOLDS), ("csi_m6", VIL_THRESHOLDS)):
        table[name] = _csi_m(statistics, chosen)[:, None]
        table[f"{name}_leads"] = _csi_m(by_lead, chosen).mean() if is_all else np.nan
    return table


def _csi_m(statistics, chosen):
    """Returns (l,): the mean CSI over thresholds, NaN if one is undefined or was not counted.

    Source: CSI-M of Earthformer (arXiv 2207.05833), after the SEVIR challenge's mCSI. There an
    undefined CSI is 0; docs/scores.md compares the conventions.
    """
    if not set(chosen) <= set(statistics.thresholds):
        return np.full(statistics.counts.shape[-3], np.nan)
    places = [statistics.thresholds.index(threshold) for threshold in chosen]
    return scores.csi(statistics.total().contingency())[:, places].mean(-1)


def _power_table(total, pixel_km):
    """Returns the columns of the power spectrum, arrays (l, 1).

    Args:
      total: Statistics without leading axes.
      pixel_km: side of a pixel in km, or None.
    """
    side_km = total.tile * pixel_km if pixel_km else None
    return {
        f"power_below_{band}km": spectrum.power_below(total.power, band, side_km)[:, None]
        for band in spectrum.BANDS_KM
    }


def _rows(names, thresholds, leads, table):
    """Returns one row per lead time and threshold of `table`."""
    shape = (len(leads), len(thresholds))
    table = {column: np.broadcast_to(values, shape) for column, values in table.items()}
    return [
        names
        | {"threshold": threshold, "lead_minutes": lead}
        | {column: values[i, j].item() for column, values in table.items()}
        for i, lead in enumerate(leads)
        for j, threshold in enumerate(thresholds)
    ]


def _cell(value):
    return "" if isinstance(value, float) and np.isnan(value) else value


def _shown(value, form):
    return "-" if np.isnan(value) else format(value, form)
