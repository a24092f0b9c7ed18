"""Do the 95% intervals of scores cover 95% of the true values? Coverage by simulation.

Draws many test sets of skewed, dependent events from a process whose true scores are known, and
counts how often each kind of interval covers them. A day is a block: its events share a factor.
docs/scores.md has the table; `bootstrap.SIMULATED_COVERAGE` repeats the range of the last column.

    python benchmarks/coverage.py
"""

import math

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.verification import bootstrap

BLOCKS = (6, 12, 30, 100)
# Standard deviation of the logarithm of an event's rain: of a day's common part, and of the rest.
SKEWS = {"skewed": (0.8, 0.6), "very skewed": (1.1, 0.8)}
EVENTS_PER_DAY = 3  # mean: one, and a Poisson number of others
BATCH = 100  # test sets that share the draws of the resamples
TRUTH = 2_000_000  # days from which the true scores are computed
QUANTITIES = ("csi", "csi difference", "mse", "mse difference")


def simulated_events(shape, skew, rng):
    """Returns the sums of every event, and which events exist.

    Two methods forecast the same events. Rain area is lognormal; the logit of the fraction that a
    method hits is normal, with a part common to both methods. A day shares most of each factor.

    Args:
      shape: (test sets, days).
      skew: a value of SKEWS.
      rng: a numpy Generator.

    Returns:
      ({"csi": ratios, "mse": ratios}, exists): ratios are the (numerator, denominator) of the first
      and of the second method, arrays (test set, day, event) that are 0 where no event exists.
    """
    count = 1 + rng.poisson(EVENTS_PER_DAY - 1, shape)
    slots = count.max()
    exists = np.arange(slots) < count[..., None]

    def normal(of_day, of_event):
        day = rng.standard_normal((*shape, 1))
        return of_day * day + of_event * rng.standard_normal((*shape, slots))

    rain = np.exp(normal(*skew)) * exists
    easy = normal(0.5, 0.4)
    edge = normal(0.15, 0.15)  # of the first method over the second, in this event
    csi, mse = [], []
    for sign, gain in ((1, 0.1), (-1, 0.0)):
        own = gain + sign * edge
        hits = rain / (1 + np.exp(0.2 - easy - own))
        union = hits + 1.3 * (rain - hits)
        squares = rain * np.exp(0.3 - 0.5 * easy - 0.5 * own + normal(0.1, 0.1))
        csi.append((hits, union))
        mse.append((squares, exists.astype(float)))
    return {"csi": csi, "mse": mse}, exists


def true_scores(skew):
    """Returns {quantity: value} from TRUTH days."""
    rng = np.random.default_rng(99)
    days = TRUTH // 20
    sums = 0
    for _ in range(20):
        sums = sums + np.array(
            [
                [[part.sum() for part in ratio] for ratio in ratios]
                for ratios in simulated_events((1, days), skew, rng)[0].values()
            ]
        )
    scores = sums[..., 0] / sums[..., 1]
    return {
        name: value
        for score, (first, second) in zip(("csi", "mse"), scores, strict=True)
        for name, value in ((score, first), (f"{score} difference", first - second))
    }


def value_of(parts):
    """Returns the score of (numerator, denominator), or the difference of two of them."""
    scores = [
        numerator / denominator
        for numerator, denominator in zip(parts[::2], parts[1::2], strict=True)
    ]
    return scores[0] - scores[1] if len(scores) > 1 else scores[0]


def percentile_interval(parts, rng):
    """Returns (low, high) of one test set, the 2.5% and 97.5% quantiles of the resampled score.

    Args:
      parts: numerators and denominators, each (unit,), of events or of blocks.
      rng: a numpy Generator.
    """
    units = len(parts[0])
    drawn = rng.integers(units, size=(bootstrap.RESAMPLES, units))
    return np.quantile(value_of([part[drawn].sum(1) for part in parts]), [0.025, 0.975])


def bca_interval(parts, rng):
    """Returns (low, high) of one test set, by SciPy (source: Efron 1987)."""
    from scipy import stats

    def statistic(*resampled, axis):
        return value_of([part.sum(axis) for part in resampled])

    found = stats.bootstrap(
        parts,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=bootstrap.RESAMPLES,
        method="BCa",
        rng=rng,
    )
    return found.confidence_interval


def intervals(ratios, exists, seed):
    """Yields (kind, (low, high)) of the quantity of `ratios`, each end (test set,).

    Args:
      ratios: one or two (numerator, denominator), each (test set, day, event).
      exists: (test set, day, event) of bool.
      seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    of_days = [part.sum(-1) for ratio in ratios for part in ratio]  # (test set, day)
    tests = range(len(exists))

    def of_each(interval, parts_of):
        return np.array([interval(parts_of(test), rng) for test in tests]).T

    yield (
        "events, percentile",
        of_each(
            percentile_interval,
            lambda test: [part[test][exists[test]] for ratio in ratios for part in ratio],
        ),
    )

    def days_of(test):
        return [part[test] for part in of_days]

    yield "percentile", of_each(percentile_interval, days_of)
    yield "bca", of_each(bca_interval, days_of)
    found = [bootstrap.Ratio(n.T, d.T) for n, d in zip(of_days[::2], of_days[1::2], strict=True)]
    if len(found) == 1:
        yield "studentized", bootstrap.interval(found[0], seed=seed)
    else:
        yield "studentized", bootstrap.difference_interval(*found, seed=seed)


def coverage(skew, blocks, repetitions, truth):
    """Returns {(quantity, kind): (covered, width)}, arrays over the repetitions."""
    found = {}
    for batch in range(repetitions // BATCH):
        rng = np.random.default_rng((blocks, batch))
        simulated, exists = simulated_events((BATCH, blocks), skew, rng)
        for score, ratios in simulated.items():
            for quantity, mine in ((score, ratios[:1]), (f"{score} difference", ratios)):
                for kind, (low, high) in intervals(mine, exists, batch):
                    covered = (low <= truth[quantity]) & (truth[quantity] <= high)
                    found.setdefault((quantity, kind), []).append((covered, high - low))
    return {key: np.concatenate(each, axis=1) for key, each in found.items()}


def rows_of(name, skew, repetitions):
    """Yields one row per number of blocks and quantity."""
    truth = true_scores(skew)
    for blocks in BLOCKS:
        found = coverage(skew, blocks, repetitions, truth)
        for quantity in QUANTITIES:
            row = {"events": name, "blocks": blocks, "interval_of": quantity}
            mine = {kind: each for (which, kind), each in found.items() if which == quantity}
            for kind, (covered, _) in mine.items():
                row[f"{kind}_%"] = round(100 * float(covered.mean()), 1)
            widths = {kind: float(np.median(width)) for kind, (_, width) in mine.items()}
            row["width_to_percentile"] = round(widths["studentized"] / widths["percentile"], 2)
            yield row


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--repetitions",
        type=int,
        default=1000,
        help=f"simulated test sets, a multiple of {BATCH} (default: %(default)s)",
    )
    repetitions = parser.parse_args().repetitions
    rows = [row for name, skew in SKEWS.items() for row in rows_of(name, skew, repetitions)]
    error = 100 * math.sqrt(0.9 * 0.1 / repetitions)
    write_results(
        "coverage",
        rows,
        f"percent of true values inside nominal 95% intervals, {repetitions} simulated test sets, "
        f"Monte Carlo standard error {error:.1f} at 90. {bootstrap.RESAMPLES} resamples of "
        f"blocks (days of {EVENTS_PER_DAY} events in the mean) or of events. width_to_percentile: "
        "median width of the studentized interval relative to that of the percentile interval",
    )


if __name__ == "__main__":
    main()
