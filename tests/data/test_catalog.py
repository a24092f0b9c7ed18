"""What the catalog may leave out."""

import pytest

from keras_nowcast.data import catalog


@pytest.mark.parametrize(
    ("text", "km"),
    [
        ("384000", 384.0),
        ("16e3", 16.0),
        ("", None),
        ("x", None),
        ("nan", None),
        ("-1", None),
        (None, None),
    ],
)
def test_the_width_is_read_if_it_is_stated(tmp_path, write_catalog, catalog_row, text, km):
    columns = [c for c in catalog.CATALOG_COLUMNS if c != "width_m" or text is not None]
    write_catalog(tmp_path, [catalog_row(width_m=text)], columns)
    assert catalog.read_catalog(tmp_path)[0].width_km == km
