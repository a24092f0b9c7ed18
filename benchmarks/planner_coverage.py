"""Do the planner's 95% intervals cover 95% of the true values, also beyond the measured sizes?

Draws many studies: the seconds of cells of known cost with lognormal noise, from which the planner
predicts other cells and the largest of the same study. Only the first of the costs has the form of
the planner's law:

- law: FLOPs, bytes, layers and parameters at fixed rates;
- caches: the activations beyond 400 MB of a step move at half the rate;
- blocks of 32: channels are filled up to 32, not to 16 as the planner assumes;
- power: the law times FLOPs to the power of 0.12; and of -0.12.

"jackknife" is the interval of one width that the planner had until November 2026: the largest of
the leave-one-out errors, up to 90% of them. The factor is the upper end relative to the prediction,
the median over the studies. Nothing is trained or timed.

    python benchmarks/planner_coverage.py
"""

import math
from unittest import mock

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.model.cost import count_unet
from keras_nowcast.study import intervals, laws

# (depth, filters): the float32 cells of the preset two_cores on one process, and fewer of them.
LARGE_STUDY = [(d, f) for d in (2, 3, 4, 5) for f in (4, 8, 16)] + [(2, 32), (3, 32)]
DESIGNS = {14: LARGE_STUDY, 8: [(d, f) for d in (2, 3, 4, 5) for f in (4, 8)]}
DESIGNS[5] = [(2, 4), (3, 4), (2, 8), (3, 8), (4, 8)]
WITHIN = {14: [(3, 12), (4, 6), (2, 24)], 8: [(3, 6), (4, 6)], 5: [(2, 6), (3, 6)]}
BEYOND = {14: [(4, 32), (5, 32), (4, 64)], 8: [(3, 16), (5, 16), (4, 32)], 5: [(3, 16), (4, 16)]}
RATES = np.array([2e-12, 5e-11, 6.5e-5, 1e-10])  # about those of two EPYC cores
CACHE_BYTES = 4e8
POWER = 0.12
NOISES = (0.03, 0.1)
GRID, BATCH = 96, 4


def terms_of(cell, block=laws.CHANNEL_BLOCK):
    """Returns the terms of a step of a (depth, filters), with channels in blocks."""
    with mock.patch.object(laws, "CHANNEL_BLOCK", block):
        cost = count_unet(GRID, 13, 12, *cell)
        return np.array(laws.step_terms(cost, "float32", BATCH))


def law(cell):
    return float(terms_of(cell) @ RATES)


def caches(cell):
    terms = terms_of(cell)
    return law(cell) + RATES[1] * max(0.0, terms[1] - CACHE_BYTES)


def blocks(cell):
    return float(terms_of(cell, 32) @ RATES)


def power(cell, exponent=POWER):
    return law(cell) * (terms_of(cell)[0] / terms_of((2, 4))[0]) ** exponent


COSTS = {
    "law": law,
    "caches": caches,
    "blocks of 32": blocks,
    "power": power,
    "negative power": lambda cell: power(cell, -POWER),
}


def point(cell, value=None):
    return laws.Point("float32", 1, tuple(terms_of(cell)), 0, 1, value=value, cell=cell)


def jackknife_half(errors):
    """Returns half the width of the earlier interval of the logarithm."""
    sizes = sorted(abs(math.log1p(each / 100)) for each in errors.percent)
    return sizes[min(len(sizes), math.ceil(0.9 * (len(sizes) + 1))) - 1]


def row_of(design, name, noise, repetitions):
    """Returns the row of one design, cost and noise."""
    cost = COSTS[name]
    cells = {"measured": DESIGNS[design], "within": WITHIN[design], "beyond": BEYOND[design]}
    points = {key: [(point(cell), cost(cell)) for cell in mine] for key, mine in cells.items()}
    inside = {key: [] for key in ("within", "beyond", "largest", "jackknife", "jackknife_beyond")}
    factors = {"within": [], "beyond": []}
    for repetition in range(repetitions):
        rng = np.random.default_rng((design, repetition))

        def measured(seconds, rng=rng):
            return seconds * math.exp(noise * rng.standard_normal())

        study = [point(each.cell, measured(value)) for each, value in points["measured"]]
        predictor = intervals.Predictor("seconds", study)
        earlier = jackknife_half(predictor.errors)
        for key in ("within", "beyond"):
            for new, seconds in points[key]:
                value, (found, _) = measured(seconds), predictor.interval(new)
                if found is None:
                    factors[key].append(math.inf)
                    continue
                inside[key].append(found.low <= value <= found.high)
                factors[key].append(found.high / found.value)
                near = abs(math.log(value / found.value)) <= earlier
                inside["jackknife" if key == "within" else "jackknife_beyond"].append(near)
        inside["largest"] += [each.is_inside for each in predictor.largest.checks]
    return summary(design, name, noise, inside, factors)


def summary(design, name, noise, inside, factors):
    """Returns a row of percentages and median factors."""

    def percent(key):
        return round(100 * float(np.mean(inside[key])), 1) if inside[key] else None

    asked = sum(map(len, factors.values()))
    refused = sum(each == math.inf for mine in factors.values() for each in mine)
    return {
        "cells": design,
        "cost": name,
        "noise_%": 100 * noise,
        "within_%": percent("within"),
        "beyond_%": percent("beyond"),
        "largest_%": percent("largest"),
        "jackknife_within_%": percent("jackknife"),
        "jackknife_beyond_%": percent("jackknife_beyond"),
        "factor_within": round(float(np.median(factors["within"])), 2),
        "factor_beyond": round(float(np.median(factors["beyond"])), 2),
        "not_predicted_%": round(100 * refused / asked, 1),
    }


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--repetitions", type=int, default=200, help="simulated studies (default: %(default)s)"
    )
    repetitions = parser.parse_args().repetitions
    rows = [
        row_of(design, name, noise, repetitions)
        for design in DESIGNS
        for name in COSTS
        for noise in NOISES
    ]
    write_results(
        "planner_coverage",
        rows,
        f"percent of true values inside nominal {intervals.SHARE:.0%} intervals of the planner, "
        f"{repetitions} simulated studies. Largest: up to four largest cells from the smaller "
        "ones. Beyond: cells of up to 16 times a measured size. Jackknife: the interval until "
        "November 2026, nominal 90% or less",
    )


if __name__ == "__main__":
    main()
