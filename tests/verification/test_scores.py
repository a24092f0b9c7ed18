import numpy as np
import pytest

from keras_nowcast import schema
from keras_nowcast.columns import SCORES
from keras_nowcast.errors import InputError
from keras_nowcast.verification import scores
from keras_nowcast.verification.scores import CATEGORICAL, Contingency, stacked, statistics

THRESHOLDS = (16, 74, 133, 160, 181, 219)
MISSING = 255
NAN = np.nan


def fields(seed=0, shape=(2, 12, 10, 3), gaps=0.1):
    rng = np.random.default_rng(seed)
    forecast = rng.uniform(-10, 265, shape).astype(np.float32)
    observation = rng.integers(0, 255, shape).astype(np.uint8)
    # Values on a threshold, just below it, and missing ones.
    forecast.flat[:40:2] = 74
    forecast.flat[1:40:2] = np.nextafter(np.float32(133), np.float32(0))
    forecast.flat[50:60] = np.nan
    observation.flat[:80:4] = 133
    observation[rng.random(shape) < gaps] = MISSING
    return forecast, observation


def brute_force(forecast, observation, thresholds):
    """Returns counts (l, t, 4) and error sums (l, 3), computed one pixel at a time."""
    leads = observation.shape[-1]
    counts = np.zeros((leads, len(thresholds), 4), np.int64)
    errors = np.zeros((leads, 3))
    for index in np.ndindex(observation.shape):
        f, o, lead = float(forecast[index]), int(observation[index]), index[-1]
        if o == MISSING:
            continue
        f = 0.0 if np.isnan(f) else f
        errors[lead] += f - o, abs(f - o), (f - o) ** 2
        for t, threshold in enumerate(thresholds):
            case = {(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[f >= threshold, o >= threshold]
            counts[lead, t, case] += 1
    return counts, errors


@pytest.mark.parametrize("thresholds", [THRESHOLDS, (74,), (1, 254), tuple(range(1, 255))])
@pytest.mark.parametrize("gaps", [0.0, 0.2, 1.0])
def test_counts_and_errors_equal_a_double_loop(thresholds, gaps):
    forecast, observation = fields(gaps=gaps)
    result = statistics(forecast, observation, thresholds)
    counts, errors = brute_force(forecast, observation, thresholds)
    np.testing.assert_array_equal(result.counts[0], counts)
    np.testing.assert_allclose(result.errors, errors, rtol=1e-12)
    np.testing.assert_array_equal(result.n(), (observation != MISSING).sum((0, 1, 2)))


def test_ratios_equal_a_double_loop():
    forecast, observation = fields()
    h, m, f, c = np.moveaxis(brute_force(forecast, observation, THRESHOLDS)[0], -1, 0)
    table = statistics(forecast, observation, THRESHOLDS).contingency()
    np.testing.assert_allclose(scores.csi(table), h / (h + m + f))
    np.testing.assert_allclose(scores.pod(table), h / (h + m))
    np.testing.assert_allclose(scores.sucr(table), h / (h + f))
    np.testing.assert_allclose(scores.far(table), f / (h + f))
    np.testing.assert_allclose(scores.bias(table), (h + f) / (h + m))
    expected = 2 * (h * c - f * m) / ((h + m) * (m + c) + (h + f) * (f + c))
    np.testing.assert_allclose(scores.hss(table), expected)


def test_error_sums_of_whole_codes_are_exact():
    _, observation = fields(shape=(1, 64, 64, 2))
    forecast = np.random.default_rng(1).integers(0, 255, observation.shape).astype(np.uint8)
    result = statistics(forecast, observation, THRESHOLDS)
    error = forecast.astype(int) - observation
    error[observation == MISSING] = 0
    expected = [error.sum((0, 1, 2)), abs(error).sum((0, 1, 2)), (error**2).sum((0, 1, 2))]
    np.testing.assert_array_equal(result.errors.T, expected)
    np.testing.assert_array_equal(scores.mse(result), expected[2] / result.n())


def test_one_row_wider_than_the_cache_block():
    forecast, observation = fields(shape=(1, 3, 30_000, 12))
    result = statistics(forecast, observation, (16,))
    hit = (forecast >= 16) & (observation >= 16) & (observation != MISSING)
    np.testing.assert_array_equal(result.contingency().hits[:, 0], hit.sum((0, 1, 2)))


def test_the_published_table():
    # 82 hits, 38 false alarms, 23 misses, 222 correct negatives, the example of the WWRP/WGNE
    # forecast verification pages (cawcr.gov.au), with the scores printed there and in pysteps.
    table = Contingency(*(np.array(count) for count in (82, 23, 38, 222)))
    assert float(scores.csi(table)) == pytest.approx(0.573426, abs=1.5e-6)
    assert float(scores.pod(table)) == pytest.approx(0.7809524, abs=5e-8)
    assert float(scores.far(table)) == pytest.approx(0.316667, abs=1.5e-6)
    assert float(scores.sucr(table)) == pytest.approx(1 - 0.316667, abs=1.5e-6)
    assert float(scores.bias(table)) == pytest.approx(1.1428571, abs=5e-8)
    assert float(scores.hss(table)) == pytest.approx(0.608871, abs=1.5e-6)


def test_the_published_table_from_fields():
    def column(*runs):
        return np.concatenate([np.full(n, v) for n, v in runs]).reshape(1, -1, 1, 1)

    forecast = column((82, 100.0), (38, 100.0), (23, 0.0), (222, 0.0))
    observation = column((82, 100), (38, 0), (23, 100), (222, 0)).astype(np.uint8)
    table = statistics(forecast, observation, (16,)).contingency()
    assert [int(count[0, 0]) for count in table] == [82, 23, 38, 222]


def test_counts_of_a_whole_archive_do_not_overflow():
    table = Contingency(*(np.array(count * 10**10) for count in (82, 23, 38, 222)))
    assert float(scores.hss(table)) == pytest.approx(0.608871, abs=1.5e-6)


def test_pysteps_agrees_on_fields_without_gaps():
    pytest.importorskip("pysteps")
    from pysteps.verification.detcatscores import det_cat_fct
    from pysteps.verification.detcontscores import det_cont_fct
    from pysteps.verification.spatialscores import fss

    forecast, observation = fields(gaps=0, shape=(1, 40, 36, 2))
    forecast = np.nan_to_num(forecast)
    sides = (1, 2, 5, 16, 50)
    result = statistics(forecast, observation, THRESHOLDS, scales=sides)
    table = result.contingency()
    for lead in range(2):
        f, o = (field[0, :, :, lead].astype(float) for field in (forecast, observation))
        for t, threshold in enumerate(THRESHOLDS):
            # pysteps counts `> thr`; no value lies within half a code below a threshold here.
            names = ["CSI", "POD", "FAR", "BIAS", "HSS"]
            below = np.nextafter(threshold, 0)
            theirs = det_cat_fct(np.floor(f), o, below, names)
            for name in names:
                ours = getattr(scores, name.lower())(table)[lead, t]
                assert ours == pytest.approx(theirs[name], abs=1e-12)
            for s, side in enumerate(sides):
                ours = scores.fss(result)[s, lead, t]
                assert ours == pytest.approx(fss(f, o, threshold, side), abs=1e-9)
        theirs = det_cont_fct(f, o, ["MAE", "MSE", "ME"])
        assert scores.mae(result)[lead] == pytest.approx(theirs["MAE"])
        assert scores.mse(result)[lead] == pytest.approx(theirs["MSE"])
        assert scores.mean_error(result)[lead] == pytest.approx(theirs["ME"])


def test_a_whole_equals_its_parts():
    forecast, observation = fields(shape=(6, 24, 20, 3))
    forecast = np.floor(np.nan_to_num(forecast))

    def of(part):
        return statistics(forecast[part], observation[part], THRESHOLDS, (1, 4), (3, 8))

    whole, parts = of(slice(None)), [of(slice(0, 1)), of(slice(1, 4)), of(slice(4, 6))]
    for merged in (parts[2] + parts[0] + parts[1], stacked(parts).total()):
        np.testing.assert_array_equal(merged.counts, whole.counts)
        np.testing.assert_array_equal(merged.errors, whole.errors)
        np.testing.assert_array_equal(merged.fractions, whole.fractions)


def test_statistics_of_different_thresholds_do_not_add():
    forecast, observation = fields()
    one, two = (statistics(forecast, observation, (t,)) for t in (16, 74))
    with pytest.raises(InputError, match="same thresholds"):
        one + two


def test_max_pooling_takes_the_maximum_of_observed_pixels_then_thresholds():
    observation = np.zeros((1, 5, 9, 1), np.uint8)
    forecast = np.zeros((1, 5, 9, 1), np.float32)
    observation[0, 0, 0] = 100  # block 0: a hit after pooling
    forecast[0, 3, 3] = 100
    forecast[0, 1, 5] = 100  # block 1: the only forecast echo lies on a missing pixel
    observation[0, 1, 5] = MISSING
    observation[0, 4, 8] = 200  # beyond the last complete block
    result = statistics(forecast, observation, (74,), pools=(1, 4))
    assert [int(count[0, 0]) for count in result.contingency()] == [0, 2, 1, 41]
    assert [int(count[0, 0]) for count in result.contingency(4)] == [1, 0, 0, 1]


def test_a_block_without_observation_does_not_count():
    observation = np.full((1, 4, 8, 1), MISSING, np.uint8)
    observation[0, 0, 7] = 0
    forecast = np.full((1, 4, 8, 1), 100, np.uint8)
    result = statistics(forecast, observation, (74,), pools=(1, 4))
    assert [int(count[0, 0]) for count in result.contingency(4)] == [0, 0, 1, 0]
    observation[0, 0, 7] = MISSING
    result = statistics(forecast, observation, (74,), pools=(1, 4))
    assert result.contingency(4).hits.sum() == result.n().sum() == 0


def test_fss_by_hand():
    # One observed event, the forecast one pixel off: no overlap at 1 px. At 3 px, each has nine
    # windows with one event; six of them are shared, so 1 - (18 - 12) / 18.
    observation = np.zeros((1, 7, 7, 1), np.uint8)
    forecast = np.zeros((1, 7, 7, 1), np.uint8)
    observation[0, 3, 3], forecast[0, 3, 4] = 100, 100
    result = statistics(forecast, observation, (74,), scales=(1, 3))
    np.testing.assert_allclose(scores.fss(result)[:, 0, 0], [0.0, 1 - 6 / 18])
    # With the two middle pixels of the row above unobserved, two shared windows do not count.
    observation[0, 2, 3:5] = MISSING
    result = statistics(forecast, observation, (74,), scales=(1, 3))
    np.testing.assert_array_equal(result.fractions[1, 0, 0], [6, 14])


def test_fss_merges_numerators_and_denominators_before_dividing():
    observation = np.zeros((2, 5, 5, 1), np.uint8)
    forecast = np.zeros((2, 5, 5, 1), np.uint8)
    observation[0, 2, 2], forecast[0, 2, 2] = 100, 100  # perfect: 0 of 2
    forecast[1, :, 0] = 100  # five false alarms: 5 of 5
    result = statistics(forecast, observation, (74,), scales=(1,))
    np.testing.assert_allclose(scores.fss(result)[0, 0, 0], 1 - 5 / 7)


def test_what_empty_cases_are():
    nothing = Contingency(*(np.array([count]) for count in (0, 0, 0, 9)))
    for score in (scores.csi, scores.pod, scores.sucr, scores.bias):
        assert np.isnan(score(nothing)[0])
        assert score(nothing, "one")[0] == 1.0
        assert score(nothing, "zero")[0] == 0.0
    assert [scores.far(nothing, empty)[0] for empty in ("one", "zero")] == [0.0, 1.0]
    assert np.isnan(scores.hss(nothing)[0])
    false_alarms_only = Contingency(*(np.array([count]) for count in (0, 0, 3, 9)))
    assert scores.csi(false_alarms_only, "one")[0] == 0.0
    assert np.isnan(scores.bias(false_alarms_only)[0])
    with pytest.raises(InputError, match="`empty`"):
        scores.csi(nothing, "nan")


def two_batches():
    """Returns two batches of two lead times at one threshold, the second batch without any event.

    Batch 1: lead 1: 3 hits, 1 false alarm; lead 2: 1 hit, 2 misses, 1 false alarm.
    """
    observation = np.zeros((2, 2, 4, 2), np.uint8)
    forecast = np.zeros((2, 2, 4, 2), np.uint8)
    observation[0, 0, :3, 0], forecast[0, 0, :4, 0] = 100, 100
    observation[0, 0, :3, 1], forecast[0, 0, 0, 1], forecast[0, 1, 0, 1] = 100, 100, 100
    return stacked(
        [statistics(forecast[i : i + 1], observation[i : i + 1], (16, 74)) for i in range(2)]
    )


@pytest.mark.parametrize(
    ("pooling", "empty", "expected"),
    [
        ("pooled", "undefined", 4 / 8),  # 4 hits, 2 misses, 2 false alarms
        ("leads", "undefined", (3 / 4 + 1 / 4) / 2),
        ("batches", "undefined", (3 / 4 + 1 / 4) / 2),
        ("batches", "one", (3 / 4 + 1 / 4 + 1 + 1) / 4),  # SEVIR authors' metrics.py
        ("batches", "zero", (3 / 4 + 1 / 4 + 0 + 0) / 4),
    ],
)
def test_conventions(pooling, empty, expected):
    values = scores.score_by_threshold(scores.csi, two_batches(), pooling, empty)
    np.testing.assert_allclose(values, [expected, expected])


def test_pooled_and_mean_over_leads_differ():
    observation = np.zeros((1, 1, 10, 2), np.uint8)
    forecast = np.zeros((1, 1, 10, 2), np.uint8)
    observation[..., :8, 0], forecast[..., :8, 0] = 100, 100  # 8 hits
    observation[..., 0, 1], forecast[..., 1, 1] = 100, 100  # 1 miss, 1 false alarm
    result = statistics(forecast, observation, (16,))
    assert scores.score_by_threshold(scores.csi, result)[0] == pytest.approx(8 / 10)
    assert scores.score_by_threshold(scores.csi, result, "leads")[0] == pytest.approx(1 / 2)


def test_empty_leads_under_each_convention():
    observation = np.zeros((1, 1, 4, 2), np.uint8)
    forecast = np.zeros((1, 1, 4, 2), np.uint8)
    observation[0, 0, 0, 0] = forecast[0, 0, 0, 0] = 100  # lead 1 perfect, lead 2 empty
    result = statistics(forecast, observation, (16,))
    values = [
        scores.score_by_threshold(scores.csi, result, "leads", empty)[0] for empty in scores.EMPTY
    ]
    assert values == [1.0, 1.0, 0.5]


def test_mean_over_the_thresholds_of_a_publication():
    six = np.array([0.7, 0.6, 0.4, 0.3, 0.2, NAN])
    mean = scores.mean_over_thresholds
    assert mean(six, THRESHOLDS, (16, 74, 133)) == pytest.approx(1.7 / 3)
    assert mean(six, THRESHOLDS, THRESHOLDS) == pytest.approx(2.2 / 5)
    with pytest.raises(InputError, match="100"):
        mean(six, THRESHOLDS, (16, 100))


@pytest.mark.parametrize("thresholds", [(0,), (255,), (16.5,), (74, 16), (16, 16), (-1, 5), ()])
def test_thresholds_out_of_range(thresholds):
    with pytest.raises(InputError, match="`thresholds`"):
        statistics(*fields(), thresholds)


def test_bad_arguments():
    forecast, observation = fields()
    for arguments, name in [
        ((forecast[:1], observation, (16,)), "`forecast` and `observation`"),
        ((forecast, observation.astype(float), (16,)), "`observation`"),
        ((forecast, observation, (16,), (4,)), "`pools`"),
        ((forecast, observation, (16,), (1,), (0,)), "`scales`"),
    ]:
        with pytest.raises(InputError, match=name):
            statistics(*arguments)
    with pytest.raises(InputError, match="`pooling`"):
        scores.score_by_threshold(scores.csi, two_batches(), "mean")


def test_every_score_has_its_column():
    columns = schema.names(SCORES)
    assert [score.__name__ for score in CATEGORICAL if score.__name__ not in columns] == []
