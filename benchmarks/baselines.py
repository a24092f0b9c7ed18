"""How strong are the baselines on real radar, and with which settings?

    python benchmarks/baselines.py --data RADAR

Scores each baseline on the windows that docs/real_radar.md holds out: the events from --test-from
on, a window at every frame, grid 128. "no echo for inflow" is extrapolation as it was scored until
November 2026: pixels into which the motion brings air from outside the grid had no echo there. The
others keep the last code in these pixels, whose share of the valid pixels is `inflow_percent`.

With --model, a results file of real_radar.py, a table "model" sets the baselines next to the model
of that file. It takes the model's scores as they are printed: the median of the seeds (lowest to
highest). Where the range of the seeds lies on one side of a baseline, all seeds are better than it
or none. Otherwise it is unknown how many are, since the file has no score of a single seed.

The table "settings" is of the events before --test-from, so that no setting is chosen on
held-out windows. `cpu_s_per_window` is without the motion, which the methods share.
"""

import json
import re
import time
from pathlib import Path

import numpy as np
from flags import build_parser
from result_files import write_results

from keras_nowcast.data import catalog, sevir
from keras_nowcast.verification import baselines, evaluate, scores
from keras_nowcast.vil import FRAME_MINUTES, FRAMES_OUT, MISSING, vil_kg_m2

THRESHOLDS = (16, 74)
LEADS = (5, 10, 15, 20, 30, 45, 60)  # minutes
LEADS_OF_SETTINGS = (30, 60)
UNFILLED = "extrapolation, no echo for inflow"
CHOSEN = {  # frames, options of pysteps
    "sprog": (3, {"precip_thr": 0.5, "probmatching_method": "mean"}),
    "anvil": (4, {"ar_window_radius": None}),
}
SETTINGS = {
    "sprog": {
        "chosen": {},
        "threshold at code 16": {"precip_thr": 16},
        "distribution matched": {"probmatching_method": "cdf"},
        "nothing matched": {"probmatching_method": None},
    },
    "anvil": {
        "chosen": {},
        "VIL in kg/m2": {},
        "window of 50 pixels": {"ar_window_radius": 50},
        "order 1": {"ar_order": 1},
    },
}


def main():
    parser = build_parser(__doc__)
    parser.add_argument(
        "--data", required=True, help="root of a SEVIR data set: CATALOG.csv and data/"
    )
    parser.add_argument("--grid", type=int, default=128, help="pixels along a side")
    parser.add_argument("--test-from", default="2016-09-01", help="first day that is held out")
    parser.add_argument("--stride", type=int, default=1, help="frames between two windows")
    parser.add_argument(
        "--settings-stride", type=int, default=3, help="the same, for the table of settings"
    )
    parser.add_argument("--model", type=Path, help="a .json file of results/real_radar")
    arguments = parser.parse_args()
    events = catalog.read_catalog(arguments.data)
    held_out = [each for each in events if str(each.time.date()) >= arguments.test_from]
    earlier = [each for each in events if str(each.time.date()) < arguments.test_from]

    def note(chosen, stride):
        count = sum(len(sevir.window_starts(each.frames, stride)) for each in chosen)
        return f"{count} windows of {len(chosen)} events, grid {arguments.grid}"

    rows = score_rows(windows(held_out, arguments.grid, arguments.stride))
    write_results("baselines", rows, note(held_out, arguments.stride))
    if arguments.model is not None:
        kept = json.loads(arguments.model.read_text())
        text = f"the model of {kept['date']}, {kept['note']}; {note(held_out, arguments.stride)}"
        write_results("baselines", model_rows(kept["rows"], rows), text, "model")
    rows = setting_rows(windows(earlier, arguments.grid, arguments.settings_stride))
    write_results("baselines", rows, note(earlier, arguments.settings_stride), "settings")


def windows(events, grid, stride):
    """Yields (event, input, target) of each window."""
    for event in events:
        vil = sevir.read_event(event, grid)
        for start in sevir.window_starts(event.frames, stride):
            yield f"{event.id} {event.time}", *sevir.cut_window(vil, start)


def score_rows(pairs):
    """Returns one row per method and lead time."""
    motion = baselines.shared_motion()
    methods = {"persistence": lambda vil: baselines.persistence(vil, FRAMES_OUT)}
    methods[UNFILLED] = lambda vil: np.nan_to_num(carried(vil, motion))
    for name in baselines.PYSTEPS_METHODS:
        methods[name] = lambda vil, name=name: getattr(baselines, name)(vil, FRAMES_OUT, motion)
    inflow = np.zeros(FRAMES_OUT)

    def count_inflow(event, x, y, forecasts):
        lacking = np.isnan(carried(x, motion)) & (y != MISSING)
        inflow[:] += lacking.sum((0, 1, 2))

    totals = evaluate.accumulate(pairs, methods, THRESHOLDS, on_forecast=count_inflow).totals()
    return [
        {
            "method": name,
            "lead_minutes": minutes,
            **numbers(total, minutes, ""),
            "n_pixels": int(total.n()[lead_of(minutes)]),
            "inflow_percent": 100 * inflow[lead_of(minutes)] / int(total.n()[lead_of(minutes)]),
        }
        for name, total in totals.items()
        for minutes in LEADS
    ]


def carried(vil, motion):
    """Returns the last frame carried along, (b, y, x, lead) codes; NaN where there is inflow."""
    fields = motion(vil)  # the first import of pysteps, whose greeting it keeps back
    from pysteps.extrapolation.semilagrangian import extrapolate

    last = np.where(vil[..., -1] == MISSING, 0.0, vil[..., -1])
    return np.stack(
        [
            np.moveaxis(extrapolate(frame, field, FRAMES_OUT), 0, -1)
            for frame, field in zip(last, fields, strict=True)
        ]
    )


def model_rows(kept, rows):
    """Returns one row per score and lead time: the model of a results file and the baselines.

    Args:
      kept: the rows of the table "skill" of real_radar.py.
      rows: of `score_rows`.
    """
    table = []
    for each in kept:
        score = each["score"].replace(" ", "_")
        row = {name: each[name] for name in ("score", "lead_minutes", "model", "persistence")}
        row["better than persistence"] = each["better than persistence"]
        for name in baselines.PYSTEPS_METHODS:
            (value,) = (
                one[score]
                for one in rows
                if (one["method"], one["lead_minutes"]) == (name, each["lead_minutes"])
            )
            row[name] = value
            row[f"seeds better than {name}"] = seeds_better(each, value)
        table.append(row)
    return table


def seeds_better(kept, value):
    """Returns how many seeds are better than `value`, or "unknown".

    Follows from the lowest and the highest score as they are printed, if `value` is outside.
    """
    _, low, high = re.findall(r"[\d.]+", kept["model"])
    half = 0.5 * 10.0 ** -len(low.partition(".")[2])
    low, high = float(low) - half, float(high) + half
    if low <= value <= high:
        return "unknown"
    seeds = int(re.search(r"of (\d+)", kept["better than persistence"])[1])
    return f"{seeds if (high < value) == (kept['score'] == 'mse') else 0} of {seeds}"


def setting_rows(pairs):
    """Returns one row per method and setting."""
    motion = baselines.shared_motion()
    methods = {("extrapolation", "chosen"): lambda vil: filled(carried(vil, motion), vil, motion)}
    for name, settings in SETTINGS.items():
        for setting in settings:
            methods[name, setting] = lambda vil, each=(name, setting): with_setting(
                vil, motion, *each
            )
    seconds = dict.fromkeys(methods, 0.0)

    def timed(key):
        def run(vil):
            motion(vil)
            start = time.process_time()
            forecast = methods[key](vil)
            seconds[key] += time.process_time() - start
            return forecast

        return run

    pairs = list(pairs)
    totals = evaluate.accumulate(pairs, {key: timed(key) for key in methods}, THRESHOLDS).totals()
    rows = []
    for (name, setting), total in totals.items():
        row = {"method": name, "setting": setting}
        for minutes in LEADS_OF_SETTINGS:
            row |= numbers(total, minutes, f"_{minutes}_min")
        rows.append(row | {"cpu_s_per_window": seconds[name, setting] / len(pairs)})
    return rows


def with_setting(vil, motion, name, setting):
    """Returns the forecast of a method of pysteps with one of SETTINGS, (b, y, x, lead) codes."""
    from pysteps.nowcasts import get_method

    frames, options = CHOSEN[name]
    options = {"n_cascade_levels": 6, "ar_order": 2, **options, **SETTINGS[name][setting]}
    frames -= 2 - options["ar_order"]
    fields = np.where(vil == MISSING, 0.0, vil)
    in_kg = setting == "VIL in kg/m2"
    if in_kg:
        fields = vil_kg_m2(fields).astype(np.float64)
    forecasts = []
    for window, field in zip(np.moveaxis(fields, -1, 1), motion(vil), strict=True):
        with baselines.quiet():
            forecast = get_method(name)(window[-frames:], field, FRAMES_OUT, **options)
        forecasts.append(np.moveaxis(forecast, 0, -1))
    forecasts = np.stack(forecasts)
    return filled(codes_of(forecasts) if in_kg else forecasts, vil, motion)


def filled(forecast, vil, motion):
    """Returns the forecast with that of extrapolation where it is not finite."""
    return np.where(
        np.isfinite(forecast), forecast, baselines.extrapolation(vil, FRAMES_OUT, motion)
    )


def codes_of(kg_m2):
    """Returns the codes of VIL in kg/m2, the inverse of `vil_kg_m2`, up to 254."""
    linear = np.where(kg_m2 > 0, 90.66 * kg_m2 + 2, 0)
    exponential = 38.9 * np.log(np.maximum(kg_m2, 1e-9)) + 83.9
    return np.minimum(np.where(kg_m2 <= (18 - 2) / 90.66, linear, exponential), 254)


def numbers(total, minutes, suffix):
    """Returns the scores of one lead time, with `suffix` in their names."""
    lead = lead_of(minutes)
    csi = scores.csi(total.contingency())[lead]
    row = {f"mse{suffix}": float(scores.mse(total)[lead])}
    return row | {
        f"csi_{threshold}{suffix}": float(csi[t]) for t, threshold in enumerate(THRESHOLDS)
    }


def lead_of(minutes):
    return minutes // FRAME_MINUTES - 1


if __name__ == "__main__":
    main()
