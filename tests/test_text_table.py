"""Text tables, character by character."""

from keras_nowcast.text_table import aligned


def test_numbers_are_aligned_right():
    rows = [("depth", "s"), ("3", "10.25"), ("12", "9.5")]
    assert aligned(rows).splitlines() == [
        "depth      s",
        "    3  10.25",
        "   12    9.5",
    ]


def test_leading_columns_are_aligned_left():
    rows = [("cell", "state", "J"), ("depth3", "new", "1,200"), ("d4", "completed", "7")]
    assert aligned(rows, left=2).splitlines() == [
        "cell    state          J",
        "depth3  new        1,200",
        "d4      completed      7",
    ]


def test_no_line_ends_in_spaces():
    assert aligned([("a", "note"), ("b", "")], left=2).splitlines() == ["a  note", "b"]


def test_the_message_of_a_short_row_widens_no_column():
    rows = [("cell", "state", "J"), ("depth30", "unfittable: 24 is too small"), ("d4", "new", "7")]
    assert aligned(rows, left=2).splitlines() == [
        "cell     state  J",
        "depth30  unfittable: 24 is too small",
        "d4       new    7",
    ]


def test_a_message_is_not_aligned_right():
    assert aligned([("no",), ("cells", "b")]).splitlines() == ["no", "cells  b"]


def test_no_rows_are_no_text():
    assert aligned([]) == ""
