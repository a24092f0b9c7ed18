"""How far predictions are off, on points whose values are known."""

import pytest

from keras_nowcast.study import intervals, laws


def test_the_cell_left_out_has_no_say():
    points = [laws.Point("float32", 1, (1.0,), 0, 1, value=value) for value in (1, 1, 1, 1, 2)]
    assert intervals.leave_one_out("seconds", points).percent[-1] == pytest.approx(-50)
    # The only cell of two processes has no other cell to be predicted from.
    points.append(laws.Point("float32", 2, (1.0,), 0, 1, value=3))
    assert len(intervals.leave_one_out("seconds", points).percent) == 5


def test_numbers_have_three_figures():
    interval = intervals.Interval(12345.6, 999.6, 1234567.0, 0.9)
    assert interval.text("J") == "12,300 (1,000 to 1,230,000) J"


def test_errors():
    errors = intervals.Errors((10.0, -5.0, 1.0))
    assert errors.text() == "median 5.0%, at most 10.0%, over 3 cells"
    factor, share = errors.factor
    assert (factor, share) == (pytest.approx(1.1), 0.75)
