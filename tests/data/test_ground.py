"""What the pixels of different events are on the ground: widths and projections."""

import pytest

from keras_nowcast.data import catalog, splits
from keras_nowcast.errors import InputError


def test_events_of_several_widths_are_refused(tmp_path, catalog_row, write_catalog):
    """They would be pixels of several sizes on the ground in one grid."""

    def read(*more):
        rows = [
            catalog_row(id=f"S{k}", file_index=k, time_utc=f"2018-0{1 + k}-01 00:00:00")
            for k in range(4)
        ]
        for row, change in zip(rows[::-1], more, strict=False):
            row.update(change)
        write_catalog(tmp_path, rows)
        return splits.read_split(tmp_path, 1, None, None, say=str)

    assert len(read({"size_x": 32, "size_y": 32, "width_m": 16000}).train) == 2
    assert len(read({"width_m": 16050}).train) == 2
    with pytest.raises(InputError, match=r"one width on the ground.*16 km \(3 events.* 32 km \(1"):
        read({"size_x": 32, "size_y": 32})
    with pytest.raises(InputError, match="first is S3 2018-04-01"):
        read({"width_m": 32000})


@pytest.mark.parametrize(
    "projections, said",
    [
        (("+proj=laea +lat_0=38", "+proj=laea  +lat_0=38 "), []),  # but for spaces
        (("+proj=laea", ""), []),  # not stated
        (
            ("+proj=laea", "+proj=stere"),
            [
                "the events have 2 projections (`proj` of the catalog), and their pixels are used "
                "alike: 2 in '+proj=laea', 1 in '+proj=stere'"
            ],
        ),
    ],
)
def test_several_projections_are_told(tmp_path, catalog_row, write_catalog, projections, said):
    first, other = projections
    rows = [
        catalog_row(id=f"S{k}", file_index=k, time_utc=f"2018-0{1 + k}-01 00:00:00", proj=proj)
        for k, proj in enumerate((first, first, other))
    ]
    write_catalog(tmp_path, rows)
    lines = []
    splits.report_projections(catalog.read_catalog(tmp_path), lines.append)
    assert lines == said


def test_runs_of_earlier_versions_need_one_width_too(tmp_path, catalog_row, write_catalog):
    rows = [
        catalog_row(id=f"S{k}", file_index=k, time_utc=f"20{18 + k}-07-01 00:00:00", width_m=width)
        for k, width in enumerate((16000, 32000))
    ]
    write_catalog(tmp_path, rows)
    with pytest.raises(InputError, match="one width on the ground"):
        splits.read_split_of_earlier_version(tmp_path, 1.0, None, None, say=str)
