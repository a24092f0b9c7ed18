import csv
import dataclasses

import numpy as np
import pytest

from keras_nowcast import columns, schema
from keras_nowcast.errors import InputError
from keras_nowcast.verification import baselines, evaluate, scores
from keras_nowcast.vil import VIL_THRESHOLDS

MISSING = 255
THRESHOLDS = (16, 74)
SETTINGS = {"pools": (1, 4), "scales": (3,), "tile": 4, "pixel_km": 2.0}


def last(x):
    return baselines.persistence(x, 12)


def mean(x):
    return np.repeat(x[..., -3:].mean(-1, keepdims=True), 12, axis=-1) + np.float32(1 / 3)


METHODS = {"persistence": last, "mean": mean}


FOUR = ("b", "a", "c", "d")  # the fewest blocks that have an interval


def windows(events=("b", "a", "c"), per_event=2):
    for event in events:
        rng = np.random.default_rng(list(event.encode()))
        for _ in range(per_event):
            vil = rng.integers(0, 200, (8, 8, 25)).astype(np.uint8)
            vil[rng.random(vil.shape) < 0.1] = MISSING
            yield event, vil[..., :13], vil[..., 13:]


def evaluation_of(events=("b", "a", "c"), **more):
    return evaluate.accumulate(windows(events), METHODS, THRESHOLDS, **(SETTINGS | more))


def assert_equal(one, other):
    assert one.pixel_km == other.pixel_km == 2
    assert one.events == other.events and list(one.methods) == list(other.methods)
    assert one.blocks == other.blocks
    for name, mine in one.methods.items():
        its = other.methods[name]
        assert (mine.thresholds, mine.pools) == (its.thresholds, its.pools)
        assert (mine.scales, mine.tile) == (its.scales, its.tile) == ((3,), 4)
        for field in ("counts", "errors", "fractions", "power"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(its, field))


def test_every_event_is_scored_as_its_windows_are():
    evaluation = evaluation_of()
    assert evaluation.events == ("a", "b", "c")
    x, y = (np.stack([window[i] for window in windows("b")]) for i in (1, 2))
    for name, method in METHODS.items():
        alone = scores.statistics(method(x), y, THRESHOLDS, (1, 4), (3,))
        np.testing.assert_array_equal(evaluation.methods[name].counts[1], alone.counts)
        np.testing.assert_array_equal(evaluation.methods[name].errors[1], alone.errors)


def test_processes_merge_to_the_same_numbers():
    whole = evaluation_of()
    parts = [evaluation_of(("c",)), evaluation_of(("b", "a"))]
    assert_equal(evaluate.merged(parts), whole)
    assert_equal(evaluate.merged(parts[::-1]), whole)


def test_an_event_whose_windows_are_apart_is_one_event():
    b, a = list(windows("b")), list(windows("a"))
    whole = evaluation_of(("a", "b"))
    mixed = [b[0], a[0], a[1], b[1]]
    one = evaluate.accumulate(mixed, METHODS, THRESHOLDS, **SETTINGS)
    two = evaluate.merged(
        [
            evaluate.accumulate(part, METHODS, THRESHOLDS, **SETTINGS)
            for part in ([b[0]], [a[0], a[1], b[1]])
        ]
    )
    for result in (one, two):
        assert result.events == whole.events
        for name in METHODS:
            np.testing.assert_array_equal(result.methods[name].counts, whole.methods[name].counts)
            np.testing.assert_allclose(result.methods[name].errors, whole.methods[name].errors)


def test_statistics_survive_the_disk(tmp_path):
    evaluation = evaluation_of()
    evaluate.write_evaluation(tmp_path / "statistics.npz", evaluation)
    assert_equal(evaluate.read_evaluation(tmp_path / "statistics.npz"), evaluation)


def test_statistics_of_an_earlier_version(tmp_path):
    evaluation = evaluation_of()
    evaluate.write_evaluation(tmp_path / "new.npz", evaluation)
    with np.load(tmp_path / "new.npz") as file:
        new = ("blocks", "pixel_km", "tile_0", "tile_1", "power_0", "power_1")
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file if name not in new})
    read = evaluate.read_evaluation(tmp_path / "old.npz")
    assert read.pixel_km is None and read.methods["mean"].power.shape == (3, 12, 0, 2)
    now, then = (evaluate.score_rows(each, resamples=20) for each in (evaluation, read))
    assert [row["csi_m3"] for row in then] == pytest.approx(
        [row["csi_m3"] for row in now], nan_ok=True
    )
    assert all(np.isnan(row["power_below_16km"]) for row in then)


DAYS = {
    "R2 2019-06-02 00:00": "2019-06-02",
    "S1 2019-06-01 23:50": "2019-06-01",
    "S1 2019-06-02 12:30": "2019-06-02",
    "no time": "no time",
}


def test_a_day_is_a_block():
    evaluation = evaluation_of(tuple(DAYS))
    assert dict(zip(evaluation.events, evaluation.blocks, strict=True)) == DAYS
    assert evaluation.n_blocks == 3
    blocks, events = evaluation.by_block()["mean"], evaluation.methods["mean"]
    np.testing.assert_array_equal(
        blocks.counts, [events.counts[1], events.counts[0] + events.counts[2], events.counts[3]]
    )


def test_blocks_change_the_intervals_but_not_the_scores():
    days = evaluation_of(tuple(f"{name} 2019-06-0{i} 12:00" for i in range(1, 5) for name in "ab"))
    events = dataclasses.replace(days, blocks=days.events)
    assert (days.n_blocks, events.n_blocks) == (4, 8)
    for table in (evaluate.score_rows, lambda each: evaluate.difference_rows(each, "mean")):
        for one, other in zip(table(days), table(events), strict=True):
            same = {name for name in one if not name.endswith(("_low", "_high", "n_blocks"))}
            np.testing.assert_equal(*({name: row[name] for name in same} for row in (one, other)))
            assert one["mse_high"] != other["mse_high"]


def test_statistics_of_earlier_versions_have_days_as_blocks(tmp_path):
    evaluation = evaluation_of(tuple(DAYS))
    path = tmp_path / "statistics.npz"
    evaluate.write_evaluation(path, dataclasses.replace(evaluation, blocks=("a", "a", "b", "c")))
    assert evaluate.read_evaluation(path).blocks == ("a", "a", "b", "c")
    with np.load(path) as file:
        new = ("blocks", "pixel_km", "tile_0", "tile_1", "power_0", "power_1")
        arrays = {name: file[name] for name in file if name not in new}
    np.savez(path, **arrays)
    earlier = evaluate.read_evaluation(path)
    assert (earlier.blocks, earlier.pixel_km) == (evaluation.blocks, None)
    for name, statistics in earlier.methods.items():
        np.testing.assert_array_equal(statistics.errors, evaluation.methods[name].errors)
    assert evaluate.score_rows(earlier)[0]["mse"] == evaluate.score_rows(evaluation)[0]["mse"]


def test_forecasts_are_handed_out():
    seen = []
    evaluation_of(on_forecast=lambda event, x, y, forecasts: seen.append((event, forecasts)))
    assert [event for event, _ in seen] == ["b", "a", "c"]
    assert seen[0][1]["persistence"].shape == (2, 8, 8, 12)


def test_no_windows():
    with pytest.raises(InputError, match="`windows`"):
        evaluate.accumulate(iter(()), METHODS, THRESHOLDS)


def test_a_forecast_of_another_length():
    with pytest.raises(InputError, match="one shape"):
        evaluate.accumulate(windows(), {"short": lambda x: last(x)[..., :6]}, THRESHOLDS)


def test_rows_hold_the_scores_of_each_lead_and_of_all():
    evaluation = evaluation_of(FOUR)
    rows = evaluate.score_rows(evaluation, resamples=100)
    assert len(rows) == 2 * 13 * 2
    assert [row["lead_minutes"] for row in rows[:26:2]] == [*range(5, 65, 5), "all"]
    total = evaluation.totals()["mean"]
    row = next(
        r for r in rows if (r["method"], r["threshold"], r["lead_minutes"]) == ("mean", 74, 30)
    )
    table = total.contingency()
    assert (
        row["hits"] == table.hits[5, 1]
        and row["correct_negatives"] == (table.correct_negatives[5, 1])
    )
    assert row["csi"] == scores.csi(table)[5, 1] and row["mse"] == scores.mse(total)[5]
    assert row["fss_3"] == scores.fss(total)[0, 5, 1]
    assert row["csi_pool4"] == scores.csi(total.contingency(4))[5, 1]
    assert row["n"] == total.n()[5] and row["csi_low"] <= row["csi"] <= row["csi_high"]
    assert row["n_blocks"] == 4
    pooled = next(r for r in rows if r["method"] == "mean" and r["lead_minutes"] == "all")
    assert pooled["n"] == total.n().sum() and pooled["hits"] == table.hits[:, 0].sum()
    assert pooled["csi"] == scores.score_by_threshold(scores.csi, total)[0]


def test_the_file_begins_with_the_contract(tmp_path):
    evaluation = evaluate.accumulate(windows(), METHODS, (16, 254))
    rows = evaluate.score_rows(evaluation, resamples=20)
    evaluate.write_rows(tmp_path / "scores.csv", rows, evaluate.COLUMNS)
    with open(tmp_path / "scores.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert ",".join(read[0]).startswith(
        "method,threshold,lead_minutes,hits,misses,false_alarms,csi,pod,sucr,far,bias,mae,mse,n"
    )
    assert float(read[0]["mse"]) == rows[0]["mse"] and int(read[0]["hits"]) == rows[0]["hits"]
    # No pixel reaches 254: an undefined score is an empty cell, not 0.
    assert read[1]["threshold"] == "254" and read[1]["csi"] == read[1]["csi_low"] == ""


def test_differences_are_between_methods_on_the_same_events():
    evaluation = evaluation_of(FOUR)
    rows = evaluate.difference_rows(evaluation, "mean", resamples=100)
    assert {row["reference"] for row in rows} == {"persistence"} and len(rows) == 13 * 2
    totals = evaluation.totals()
    mse = scores.mse(totals["mean"]) - scores.mse(totals["persistence"])
    assert [row["mse_difference"] for row in rows[:24:2]] == list(mse)
    assert all(row["mse_low"] <= row["mse_difference"] <= row["mse_high"] for row in rows)
    assert rows[-1]["lead_minutes"] == "all" and rows[-1]["mse_high"] < 0 < rows[-1]["csi_low"]
    assert rows[0]["events"] == rows[0]["n_blocks"] == 4


def test_the_console_table_has_a_line_a_method():
    rows = evaluate.score_rows(evaluation_of(), resamples=20)
    lines = evaluate.console_table(rows).splitlines()
    assert [line.split()[0] for line in lines] == ["CSI", "persistence", "mean"]
    assert len({len(line) for line in lines}) == 1


def of_one_window(forecast, observed, thresholds, **more):
    """Returns the rows of scores.csv of one window, {(threshold, lead_minutes): row}."""
    window = "a", np.zeros((*observed.shape[:2], 13), np.uint8), observed
    evaluation = evaluate.accumulate([window], {"it": lambda x: forecast[None]}, thresholds, **more)
    rows = evaluate.score_rows(evaluation, resamples=2)
    return {(row["threshold"], row["lead_minutes"]): row for row in rows}


def two_leads():
    """Returns a forecast and an observation (8, 8, 2).

    Lead 1: at every threshold 4 hits and 4 misses. Lead 2: at 16 and 74 4 hits and 4 false alarms,
    above them 4 misses.
    """
    forecast, observed = np.zeros((8, 8, 2)), np.zeros((8, 8, 2), np.uint8)
    observed[0, :, 0], forecast[0, :4, 0] = 250, 250
    observed[0, :4, 1], forecast[0, :, 1] = 250, 100
    return forecast, observed


def test_csi_m():
    rows = of_one_window(*two_leads(), VIL_THRESHOLDS)
    for threshold in VIL_THRESHOLDS:
        mine = [rows[threshold, lead] for lead in (5, 10, "all")]
        # Pooled: 8 hits of 16 at 16 and 74, and 4 of 12 above.
        assert [row["csi_m3"] for row in mine] == pytest.approx([1 / 2, 1 / 3, 4 / 9])
        assert [row["csi_m6"] for row in mine] == pytest.approx([1 / 2, 1 / 6, 7 / 18])
        for name, mean in (("csi_m3_leads", 5 / 12), ("csi_m6_leads", 1 / 3)):
            values = [row[name] for row in mine]
            assert values == pytest.approx([np.nan, np.nan, mean], nan_ok=True)


def test_csi_m_of_other_thresholds_and_of_no_event():
    names = [f"csi_m{number}{leads}" for number in (3, 6) for leads in ("", "_leads")]
    rows = of_one_window(*two_leads(), (16, 74, 133, 160))
    means = [rows[16, "all"][name] for name in names]
    assert means == pytest.approx([4 / 9, 5 / 12, np.nan, np.nan], nan_ok=True)
    forecast, observed = two_leads()
    observed[observed == 250] = 150
    forecast[forecast == 250] = 150
    rows = of_one_window(forecast, observed, VIL_THRESHOLDS)  # no event from 160 on
    assert rows[16, "all"]["csi_m3"] == pytest.approx(4 / 9)
    assert np.isnan(rows[16, 5]["csi_m6"]) and np.isnan(rows[16, "all"]["csi_m6_leads"])


def test_the_power_columns():
    # Waves of 4 pixels of 2 km, in a tile of 64 km; the forecast has half the amplitude at lead 1.
    wave = np.tile(np.repeat([[140, 100, 60, 100]], 32, axis=0), 8)[..., None]
    observed = np.repeat(wave, 2, axis=-1).astype(np.uint8)
    forecast = np.concatenate([50 + wave / 2, wave], axis=-1)
    rows = of_one_window(forecast, observed, (16, 74), tile=32, pixel_km=2.0)
    for threshold in (16, 74):
        mine = [rows[threshold, lead]["power_below_16km"] for lead in (5, 10, "all")]
        assert mine == pytest.approx([1 / 4, 1, 5 / 8])
    # The ring of 8 km is not below 8 km, but its neighbor of 7.5 km is.
    assert rows[16, "all"]["power_below_8km"] == pytest.approx(5 / 8)
    for unknown in ({"tile": 32}, {"pixel_km": 2.0}, {"tile": 32, "pixel_km": 9.0}):
        row = of_one_window(forecast, observed, (16, 74), **unknown)[16, "all"]
        assert np.isnan([row["power_below_8km"], row["power_below_16km"]]).all()


def test_scores_csv_ends_with_the_columns_that_were_added_last(tmp_path):
    rows = evaluate.score_rows(evaluation_of(), resamples=20)
    evaluate.write_rows(tmp_path / "scores.csv", rows, evaluate.COLUMNS)
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert header.split(",") == [
        *schema.names(columns.SCORES),
        "csi_pool4",
        "fss_3",
        *schema.names(columns.MORE_OF_SCORES)[2:],
    ]
