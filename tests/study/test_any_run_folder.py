"""Any change of a run folder: it is used, or left out with a reason, and no other run changes.

hypothesis replaces a value of record.json, or a stretch of a CSV file, by anything.
"""

import json
import shutil

import pytest
import study_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_nowcast import records
from keras_nowcast.errors import InputError
from keras_nowcast.study import claims, planner, table

SAME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = st.sampled_from(
    [
        None,
        True,
        "",
        "x",
        "12,5",
        "\ud800",
        "$\\frac{",
        0,
        -1,
        1,
        2.5,
        1e308,
        -1e-308,
        10**30,
        [],
        {},
    ]
)
VALUES = st.one_of(
    ODD,
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(ODD, max_size=3),
    st.dictionaries(st.text(max_size=3), ODD, max_size=2),
)
FILES = ("epochs.csv", "scores.csv", "layers.csv", "power.csv")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two runs, what it gives, and the files of a third one."""
    folder = tmp_path_factory.mktemp("study")
    roofs = {"compute_flops_per_second": {"float32": 1e12}, "memory_bytes_per_second": 1e11}
    for name, filters in (("a", 16), ("b", 32), ("bad", 8)):
        study_runs.write_run(
            folder / name,
            filters=filters,
            joules=50.0,
            test_csi=(0.3, 0.2, 0.1),
            roofs=roofs,
            gpus=["A100"],
        )
    files = {path.name: path.read_bytes() for path in (folder / "bad").iterdir()}
    shutil.rmtree(folder / "bad")
    rows = [run.row for run in table.read(records.read_runs([folder]))]
    return folder, rows, files


def check(study, changed):
    """Adds the third run with some files changed, and reads the study."""
    folder, rows, files = study
    shutil.rmtree(folder / "bad", ignore_errors=True)
    (folder / "bad").mkdir()
    for name, content in {**files, **changed}.items():
        (folder / "bad" / name).write_bytes(content)
    found, left_out = records.find_runs([folder])
    runs = table.read(found)
    assert [run.row for run in runs[:2]] == rows
    assert len(runs) + len(left_out) == 3
    for reason in left_out.values():
        assert str(folder / "bad") in reason and ". Received: " in reason
    try:
        claims.claims(runs)
        planned = planner.Planner(runs)
        [planner.text_row(each) for each in planned.next_sizes()]
        skill = table.choose_skill(runs)
        assert skill is None or planner.reaching(runs, skill, 0.0) is not None
    except InputError:
        assert not left_out  # one line, and status 2
    for run in runs:
        run.folder.read_power()
    return left_out


def places(value, path=()):
    """Returns the paths of all values inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    return [path] + [each for key, part in inner for each in places(part, (*path, key))]


@settings(SAME, max_examples=80)
@given(data=st.data(), new=VALUES, removed=st.booleans())
def test_any_value_of_the_record(study, data, new, removed):
    record = json.loads(study[2]["record.json"])
    *above, last = data.draw(st.sampled_from(places(record)[1:]))
    parent = record
    for key in above:
        parent = parent[key]
    if removed:
        del parent[last]
    else:
        parent[last] = new
    check(study, {"record.json": json.dumps(record).encode()})


@settings(SAME, max_examples=80)
@given(data=st.data(), name=st.sampled_from(FILES), new=st.binary(max_size=6) | st.just(b"1,2\n"))
def test_any_stretch_of_a_table(study, data, name, new):
    content = study[2][name]
    start = data.draw(st.integers(0, min(len(content), 600)))
    length = data.draw(st.sampled_from([0, 1, 2, 5, 30, 200, len(content)]))
    check(study, {name: content[:start] + new + content[start + length :]})


@settings(SAME, max_examples=40)
@given(data=st.data(), name=st.sampled_from(FILES), new=ODD.filter(lambda each: each != "\ud800"))
def test_any_cell_of_a_table(study, data, name, new):
    lines = study[2][name].decode().splitlines()
    row = data.draw(st.integers(0, len(lines) - 1))
    cells = lines[row].split(",")
    cells[data.draw(st.integers(0, len(cells) - 1))] = str(new)
    lines[row] = ",".join(cells)
    check(study, {name: ("\n".join(lines) + "\n").encode()})
