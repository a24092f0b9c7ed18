import datetime
import re
from pathlib import Path

import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.verification import published
from keras_nowcast.vil import VIL_THRESHOLDS

PAGE = Path(__file__).parents[2] / "docs" / "published.md"


def refusal(thresholds=VIL_THRESHOLDS, windows=12_159, **settings):
    """Returns the line of the refusal, or None."""
    settings = {name.replace("_", "-"): value for name, value in settings.items()}
    assert settings.keys() <= published.PROTOCOL.keys()
    try:
        published.check(published.PROTOCOL | settings, thresholds, windows)
    except InputError as error:
        assert "\n" not in str(error)
        return re.search(r"Received: (.*); omit it", str(error))[1]


def test_a_run_of_the_protocol():
    assert refusal() is None
    assert refusal(thresholds=(16, 31, *VIL_THRESHOLDS[1:])) is None
    assert refusal(windows=12_159 + 121) is None and refusal(windows=12_159 - 121) is None


@pytest.mark.parametrize(
    ("differs", "line"),
    [
        ({"grid": 128}, "grid 128 (published: 384)"),
        ({"train_before": None}, "train-before not set (published: 2019-01-01)"),
        (
            {"test_from": datetime.datetime(2019, 6, 1, 12)},
            "test-from 2019-06-01 12:00:00 (published: 2019-06-01)",
        ),
        ({"authors_split": True}, "authors-split yes (published: no)"),
        ({"max_missing": 1.0}, "max-missing 1 (published: 0)"),
        ({"max_windows": 96}, "max-windows 96 (published: not set)"),
        ({"window_stride": 6}, "window-stride 6 (published: 12)"),
        ({"thresholds": (16, 74, 133)}, "thresholds without 160, 181, 219"),
        ({"windows": 12_281}, "12,281 test windows (published: 12,159)"),
        (
            {"grid": 32, "windows": 3},
            "grid 32 (published: 384); 3 test windows (published: 12,159)",
        ),
    ],
)
def test_a_run_of_another_protocol(differs, line):
    assert refusal(**differs) == line


def test_the_table_of_the_page_is_the_file():
    head, *lines = re.findall(r"^\| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert head == "model | CSI-M pooled | CSI-M mean over leads | MSE x 1e-3 | checked"
    table = [[cell.strip() for cell in line.split("|")] for line in lines]
    rows = [list(row.values()) for row in published.read_table()]
    assert table[: len(rows)] == rows and len(rows) == 7


def test_the_table_with_the_scores_of_a_run():
    def row(method, lead, *values):
        names = "csi_m6", "csi_m6_leads", "mse"
        return {"method": method, "lead_minutes": lead} | dict(zip(names, values, strict=True))

    nan = float("nan")
    rows = [
        row("model", 5, 0.9, nan, 1.0),
        row("model", "all", 0.4, 0.39871, 4 * 65.025),
        row("persistence", "all", nan, nan, 11.5 * 65.025),
    ]
    title, *lines = published.text_table(rows, 12_150).splitlines()
    assert "12,159 windows" in title and "this run (12,150 windows)" in title
    heads = re.split(r"\s{2,}", lines[0].strip())
    assert heads == ["CSI-M pooled", "CSI-M mean over leads", "MSE x 1e-3"]
    cells = [line.split() for line in lines[1:]]
    assert cells[0] == ["persistence", "0.2613", "0.2695", "11.53"]
    assert cells[2] == ["Rainformer", "0.3661", "0.3619", "-"]
    assert cells[-2] == ["this", "run:", "model", "0.4000", "0.3987", "4.0000"]
    assert cells[-1] == ["this", "run:", "persistence", "-", "-", "11.5000"]


def test_values_are_numbers_and_their_units_fit():
    rows = published.read_table()
    for row in rows:
        assert 0 < float(row["csi_m6"]) < 1 and 0 < float(row["csi_m6_leads"]) < 1
        assert row["mse_1e3"] == "" or 1 < float(row["mse_1e3"]) < 20
    # Earthformer's CSI at the six thresholds, from another source.
    csi = 0.7513, 0.6860, 0.4271, 0.3232, 0.2848, 0.1791
    assert float(rows[-1]["csi_m6"]) == pytest.approx(sum(csi) / 6, abs=5e-5)
