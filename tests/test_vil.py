"""VIL's codes and thresholds in kg/m2, against the published values."""

import math

import numpy as np
import pytest

from keras_nowcast.vil import VIL_THRESHOLDS, vil_kg_m2


def test_thresholds_in_kg_m2():
    expected = [0.154, 0.775, 3.53, 7.07, 12.1, 32.2]  # as published
    for code, kg_m2 in zip(VIL_THRESHOLDS, expected, strict=True):
        assert float(f"{vil_kg_m2(code):.3g}") == kg_m2


def test_vil_of_no_echo_is_zero_and_of_missing_is_nan():
    vil = vil_kg_m2(np.array([[0, 5, 6], [18, 19, 255]], np.uint8))
    assert vil.dtype == np.float32
    assert vil[0].tolist() == [0, 0, pytest.approx(4 / 90.66)]
    assert vil[1, 0] == pytest.approx(16 / 90.66)
    assert vil[1, 1] == pytest.approx(math.exp((19 - 83.9) / 38.9))
    assert np.isnan(vil[1, 2])
