"""Measured energy compared with the exact integral of a scripted GPU's power."""

import statistics

import pytest
from random_cases import random_case

CASES = 200
ROUNDING_PERCENT = 0.001


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [random_case(seed, folder) for seed in range(CASES)]


def test_counter_energy_is_within_one_percent(outcomes):
    assert max(abs(counter.error) for counter, _ in outcomes) < 1
    within = [abs(each.error) <= each.stated + ROUNDING_PERCENT for each, _ in outcomes]
    assert statistics.mean(within) >= 0.95


def test_power_energy_is_within_its_own_uncertainty(outcomes):
    within = [abs(each.error) <= each.stated + ROUNDING_PERCENT for _, each in outcomes]
    assert statistics.mean(within) >= 0.95


def test_the_stated_uncertainty_is_of_use(outcomes):
    """A bound that holds only because it is huge would prove nothing."""
    assert statistics.median(power.stated for _, power in outcomes) < 2
    assert statistics.median(counter.stated for counter, _ in outcomes) < 0.5


def test_all_of_the_time_is_measured(outcomes):
    for pair in outcomes:
        for each in pair:
            assert each.coverage == pytest.approx(1, abs=0.002)
