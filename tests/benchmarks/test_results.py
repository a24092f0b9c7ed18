"""The results of the benchmarks: every file has its twin and its row, and every number is there."""

import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = ["question", "command", "result", "machine", "file"]

sys.path[:0] = [str(BENCHMARKS), str(Path(__file__).parent)]

import sensor_errors  # noqa: E402
from quoted import NUMBER, RESULTS, ROOT, content, not_found  # noqa: E402
from result_files import file_stem, machine_slug, text_table  # noqa: E402


def table():
    """Returns one dict per row of the table in results/README.md."""
    lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (RESULTS / "README.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert lines[0] == COLUMNS
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[2:]]


def named_file(row):
    """Returns the path of the row's text file without its suffix."""
    text, target = re.fullmatch(r"\[(\S+)\]\((\S+)\.txt\)", row["file"]).groups()
    assert text == target
    return target


def stems():
    """Returns the result files, relative to results/, without their suffix. Reports are none."""
    files = [path for path in RESULTS.rglob("*") if path.is_file() and path.suffix != ".md"]
    return sorted({str(path.relative_to(RESULTS).with_suffix("")) for path in files})


def test_each_result_has_its_row():
    assert sorted(named_file(row) for row in table()) == stems()


def test_each_report_is_linked_and_says_what_it_is_of():
    reports = sorted(RESULTS.glob("*/*.md"))
    assert reports
    for path in reports:
        assert f"]({path.relative_to(RESULTS)})" in (RESULTS / "README.md").read_text()
        assert path.read_text().startswith("# REHEARSAL without") == path.stem.endswith(
            "_rehearsal"
        )


@pytest.mark.parametrize("stem", stems())
def test_the_two_files_say_the_same(stem):
    result = content(stem)
    question, name = stem.split("/")
    date, _, variant = re.fullmatch(r"([\d-]+)_([^_]+)(?:_(\w+))?", name).groups()
    assert date == result["date"]
    assert name == file_stem(date, result["environment"], variant)
    assert question in {path.stem for path in BENCHMARKS.glob("*.py")}
    text = (RESULTS / f"{stem}.txt").read_text()
    title, environment, empty, table = text.split("\n", 3)
    assert title.endswith(f", {date}: {result['note']}")
    assert environment == ", ".join(f"{k} {v}" for k, v in result["environment"].items())
    assert empty == ""
    assert table == text_table(result["rows"]) + "\n"


@pytest.mark.parametrize("row", table(), ids=named_file)
def test_the_numbers_of_the_table_are_in_the_file(row):
    result = content(named_file(row))
    # What holds for all rows, such as the fit of a model, is in the note.
    rows = [*result["rows"], {"note": result["note"]}]
    assert NUMBER.findall(row["result"])
    assert not not_found(row["result"], rows)


@pytest.mark.parametrize("row", table(), ids=named_file)
def test_the_machine_of_the_table_is_the_files(row):
    name, cores = re.fullmatch(r"(.+), (\d+) cores?", row["machine"]).groups()
    slug = machine_slug(content(named_file(row))["environment"])
    assert slug == machine_slug({"cpu": name, "cores": cores})


def test_the_commands_of_the_table_name_scripts():
    for row in table():
        for script in re.findall(r"`(\w+\.py)", row["command"]):
            assert (BENCHMARKS / script).is_file(), script


def test_documents_name_results_that_exist():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *BENCHMARKS.glob("*.md")]
    named = [
        (str(document.relative_to(ROOT)), path.rstrip("."))
        for document in documents
        for path in re.findall(r"benchmarks/results/[\w./-]*", document.read_text())
    ]
    assert named
    assert not [pair for pair in named if not (ROOT / pair[1]).exists()]


@pytest.mark.parametrize(
    "cpu, cores, slug",
    [
        ("AMD EPYC", 2, "epyc-2c"),
        ("AMD EPYC 7B13 64-Core Processor", 8, "epyc-7b13-8c"),
        ("Intel(R) Xeon(R) Processor", 2, "xeon-2c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 4, "xeon-platinum-8481c-4c"),
        (None, 1, "unknown-1c"),
    ],
)
def test_slug_of_a_machine(cpu, cores, slug):
    assert machine_slug({"cpu": cpu, "cores": cores}) == slug


@pytest.mark.parametrize(
    "result, missing",
    [
        ("step 0.352 s (0.279 to 0.515), 59%; 1,841 windows", []),
        ("step 0.353 s (0.279 to 0.515)", ["step 0.353 s (0.279 to 0.515)"]),
        ("0.352 s; 1,840 windows", [" 1,840 windows"]),
        ("0.352 s in 1,841 windows", ["0.352 s in 1,841 windows"]),  # of two rows
        ("batch 8; +0.10 at 60 minutes; float32, h5py", []),
    ],
)
def test_numbers_that_are_not_in_a_row(result, missing):
    rows = [
        {"median_s": 0.35209, "min_s": 0.27899, "max_s": 0.5154, "percent": 58.75},
        {"windows": 1840.6, "note": "batch 8", "gain_60_min": 0.1},
    ]
    assert not_found(result, rows) == missing


def test_docs_have_the_measured_errors_of_the_sensors():
    stem = max(each for each in stems() if each.startswith("sensor_errors/"))
    rows = content(stem)["rows"]
    section = sensor_errors.docs_section(
        rows, rows[0]["cases"], source=f"benchmarks/results/{stem}.txt"
    )
    assert sensor_errors.DOCS.read_text().endswith("\n\n" + section)
