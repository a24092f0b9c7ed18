"""Comparisons of runs and cells whose numbers are known."""

import pytest
import study_runs

from keras_nowcast import records
from keras_nowcast.study import compare, table


def read(tmp_path):
    return table.read(records.read_runs([tmp_path]))


def test_time_to_a_level(tmp_path):
    study_runs.write_run(tmp_path / "a", losses=(0.5, 0.4))
    study_runs.write_run(tmp_path / "b", losses=("", ""))
    one, unscored = table.read(records.read_runs([tmp_path]))
    assert compare.seconds_to(one, 0.45) == 4.0
    assert compare.seconds_to(one, 0.3) is None
    assert compare.seconds_to(unscored, 0.3) is None


@pytest.mark.parametrize(("skipped_events", "seconds"), [(0, 4.2), (1, 4.0)])
def test_the_first_step_counts_as_one_of_the_others(tmp_path, skipped_events, seconds):
    """The first step had 4 of 40 windows: 0.2 s at 20 windows per second, and 10 J per window."""
    study_runs.write_run(
        tmp_path / "a",
        seconds=2.0,
        joules=400.0,
        losses=(0.5, 0.4),
        first_samples=36,
        skipped_events=skipped_events,
    )
    (run,) = table.read(records.read_runs([tmp_path]))
    assert compare.seconds_to(run, 0.4) == pytest.approx(seconds)
    joules = [each for _, _, each in table.whole_epochs(run)]
    assert joules == [440.0 if skipped_events == 0 else 400.0, 400.0]


def test_spread():
    assert compare.spread([None, 3, 1, 2]) == compare.Spread(2, 1, 3, 3)
    assert compare.spread([None]) is None
    assert compare.Spread(2, 1, 3, 3).text(".1f") == "2.0 (1.0 to 3.0, 3 times)"
    assert compare.Spread(2, 2, 2, 1).text(".1f") == "2.0"


def test_increases_as_the_paper_states_them(tmp_path):
    study_runs.write_run(tmp_path / "a", seconds=2.0, joules=100.0, filters=4)
    study_runs.write_run(tmp_path / "b", seconds=5.0, joules=163.22, csi=(0.6, 0.4, 0.2))
    first, second = (run.row for run in read(tmp_path))
    found = compare.increases(first, second, table.choose_skill(read(tmp_path)))
    assert found["energy"] == pytest.approx(63.22)
    assert found["time"] == pytest.approx(150)
    assert found["parameters"] == pytest.approx(100 * (4143628 / first["trainable_parameters"] - 1))
    assert found["skill"] == pytest.approx(100)
    assert found["skill_difference"] == pytest.approx(0.2)
    other = {**second, "energy_source": "rapl"}
    assert compare.increases(first, other, None)["energy"] is None
    without = compare.increases({**first, "joules_per_sample": None}, second, None)
    assert without["energy"] is None and without["skill"] is None


def test_pareto():
    assert compare.pareto([(1, 1), (2, 3), (2, 2), (3, 3), (4, 4), (0.5, 0)]) == [5, 0, 1, 4]


@pytest.mark.parametrize(
    ("count", "t"), [(2, 12.7062), (3, 4.3027), (31, 2.0423), (61, 2.0003), (121, 1.9799)]
)
def test_the_interval_of_a_mean_follows_students_t(count, t):
    """Published 0.975 quantiles, also for more than 30 degrees of freedom."""
    differences = [0.01 * (-1) ** i for i in range(count)]
    mean, deviation, half = compare.mean_difference(differences)
    assert mean == pytest.approx(0 if count % 2 == 0 else 0.01 / count)
    assert half * count**0.5 / deviation == pytest.approx(t, abs=5e-5)
