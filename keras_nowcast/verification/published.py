"""The published table of SEVIR, and whether a run was trained and is scored by its protocol.

docs/published.md describes the protocol, and which numbers were checked against what.

Source: Gao et al., Earthformer (NeurIPS 2022, arXiv 2207.05833), and its configuration of SEVIR.
"""

import csv
import datetime
import math
from pathlib import Path

from keras_nowcast.errors import InputError
from keras_nowcast.text_table import aligned
from keras_nowcast.vil import VIL_THRESHOLDS

TABLE = Path(__file__).with_name("published.csv")
WINDOWS = 12_159  # of the test set
# The count of a catalog may differ by a few events, since ids that are repeated in it are dropped
# by another rule. Without events that have gaps it is 7% smaller than with them.
_TOLERANCE = 0.01
PROTOCOL = {
    "train-before": datetime.datetime(2019, 1, 1),
    "test-from": datetime.datetime(2019, 6, 1),
    "authors-split": False,
    "max-missing": 0.0,
    "max-windows": None,
    "window-stride": 12,
    "grid": 384,
}
_CODES = 255  # the published MSE is of codes divided by it


def read_table():
    """Returns the rows of published.csv: dictionaries of text; a value that is unknown is ""."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check(settings, thresholds, windows):
    """Raises InputError, in one line, unless a run matches the published protocol.

    Frames are not checked, since all runs have 13 in and 12 out, as the published models.

    Args:
      settings: the run's value of each key of PROTOCOL.
      thresholds: codes that are scored.
      windows: number of test windows.
    """
    different = [
        f"{name} {_shown(settings[name])} (published: {_shown(value)})"
        for name, value in PROTOCOL.items()
        if settings[name] != value
    ]
    absent = sorted(set(VIL_THRESHOLDS) - set(thresholds))
    if absent:
        different.append(f"thresholds without {', '.join(map(str, absent))}")
    if abs(windows - WINDOWS) > _TOLERANCE * WINDOWS:
        different.append(f"{windows:,} test windows (published: {WINDOWS:,})")
    if different:
        raise InputError(
            "`--against published` must have a run of the published protocol. Received: "
            f"{'; '.join(different)}; omit it, or train by docs/published.md."
        )


def _shown(value):
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    if value is None:
        return "not set"
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}"


def text_table(rows, windows):
    """Returns the published table and the methods of a run below it, as text.

    Args:
      rows: of scores.csv, as `evaluate.score_rows` returns them.
      windows: number of test windows of the run.
    """
    lines = [["", "CSI-M pooled", "CSI-M mean over leads", "MSE x 1e-3"]]
    for model in read_table():
        lines.append([model["model"], *(model[n] or "-" for n in list(model)[1:4])])
    pooled = {row["method"]: row for row in rows if row["lead_minutes"] == "all"}
    for method, row in pooled.items():
        values = row["csi_m6"], row["csi_m6_leads"], 1000 * row["mse"] / _CODES**2
        texts = ("-" if math.isnan(value) else f"{value:.4f}" for value in values)
        lines.append([f"this run: {method}", *texts])
    title = (
        f"published (arXiv 2207.05833; {WINDOWS:,} windows) and this run ({windows:,} windows), "
        "six thresholds, MSE of codes / 255:"
    )
    return f"{title}\n{aligned(lines, left=1)}"
