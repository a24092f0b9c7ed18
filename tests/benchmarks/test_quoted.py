"""Every number that a page quotes as measured is in the results file that its section links.

A section links its results files. Each row of a table and each clause of a text must then have its
numbers in one row of one of them, rounded as printed. Beside these there are:

- DERIVED: texts whose numbers follow from the files by a rule;
- PHRASES: texts whose numbers are not measured, such as what was run;
- texts that say that they have no results file.

Sections without a results file are in NOT_MEASURED, with the reason. Of the pages in LINKED only
the sections with a results file are checked; NOT_COVERED lists the other pages. Of fenced code only
the output of a program is read, if a results file of the section keeps what was printed. A number
that equals another number of the same row, such as a small count, is not distinguished from it.
"""

import re
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import quoted  # noqa: E402
from quoted import (  # noqa: E402
    LINK,
    ROOT,
    content,
    is_in_one,
    plain,
    printed_lines,
    says_no_file,
    sections,
    unfounded,
)

SETTINGS = "settings, versions, names and dates"
PAPER = "numbers of papers and of other software"
# Every number of these pages has a source or a reason here.
NOT_MEASURED = {
    "README.md": {
        "keras_nowcast": PAPER,
        "Quick start": "settings, and the time of the demo, which was timed by hand",
        "A design space and its answers": SETTINGS,
        "Energy in your own code": SETTINGS,
        "SEVIR": "sizes that SEVIR's authors publish, or that follow from its shape",
        "What has not been shown": PAPER,
        "License": PAPER,
    },
    "docs/benchmarks.md": {"Measured here": SETTINGS},
    "docs/real_radar.md": {"Data": SETTINGS},
    "docs/two_cores.md": {
        "A worked example on two CPU cores": SETTINGS,
        "The measurement": "settings, and times that it says have no results file",
    },
    "docs/scaling.md": {"Scaling over several processes": SETTINGS, "What is measured": SETTINGS},
}
# Of these pages only the sections that link a results file.
LINKED = ("docs/energy.md", "docs/scores.md", "docs/data.md", "docs/horovod.md", "docs/train.md")
NOT_COVERED = {
    "docs/run_folder.md": "generated; it describes keys and columns",
    "docs/cluster.md": "what was tried on a Slurm of one machine; no results files are kept",
    "docs/sweep.md": "rules and settings",
    "docs/study.md": "rules, and an estimate whose runs are not kept, as it says",
    "docs/index.md": "the setup and limits; its times are those of README.md",
    "docs/published.md": "numbers of papers; the tests compare them with published.csv",
}
# What is run, not measured, on any page.
EVERYWHERE = re.compile(
    r"95%|\d{4}-\d\d(-\d\d)?|VIL (code )?\d+(, \d+ and \d+)?|\d+ x \d+ x \d+|\d+ x ?\d+( x ?\d+)?"
    r"|arXiv \d+\.\d+|[Ss]eeds? \d+( (to|and) \d+)?|batch( sizes?)? \d+( and \d+)?|10⁻.|0/0 is [01]"
)
PHRASES = {
    "docs/two_cores.md": ["The target is 10% in time"],
    "README.md": ["at grid 128 (3 km per pixel)"],
    "docs/benchmarks.md": ["over 24 rounds", "of grid 64 to 256", "limits: 1,200 operations"],
    "docs/scaling.md": ["(16.6 MB)", "from 1,000 bootstrap resamples"],
    "docs/energy.md": ["of 40 to 400 W"],
    "docs/scores.md": [
        *("the 12 events of real radar (24 windows", "(neurips-2020-sevir)", "13 input frames"),
        *("six (16, 74, 133, 160, 181, 219) or three (16, 74, 133)", "et al. (1994)"),
        *("Earthformer 0.4419, ConvLSTM 0.4185", "for 7.1 million pixels", "(November 2026)"),
    ],
    "docs/horovod.md": ["There are 90 gradients"],
    "docs/train.md": ["of a synthetic data set, 288", "with 128 windows"],
}
# Tables in which a row of the page has cells of several rows of the results.
BY_CELL = {
    ("docs/benchmarks.md", "Reading"),
    ("docs/benchmarks.md", "Measuring energy"),
    ("docs/scaling.md", "Results on two cores"),
    ("docs/scaling.md", "Weak scaling by machine and batch size"),
    ("docs/horovod.md", "The cost of compression and fusion"),
}

EPYC = "scaling/2026-11-24_epyc-2c"
SLOW_EPYC = tuple(f"scaling/{each}" for each in ("2026-11-26_epyc-2c", "2026-11-27_epyc-2c_weak"))
TURNS = "scaling/2026-11-27_epyc-2c_turns"
XEON = {
    name: f"scaling/2026-11-27_xeon-2c_{name}" for name in ("short", "long", "batch32", "batch4")
}


def rows(stem, **equal):
    """Returns the rows of a result whose columns equal `equal`."""
    return [
        row
        for row in content(stem)["rows"]
        if all(row[name] == value for name, value in equal.items())
    ]


def first(value):
    """Returns the median of "0.91 (0.85 to 0.97)" as a number."""
    return float(value.split()[0])


def extent(value):
    """Returns the highest minus the lowest of "0.91 (0.85 to 0.97)"."""
    low, high = re.search(r"\((\S+) to (\S+)\)", value).groups()
    return float(high) - float(low)


def of_two(stem, column, controller="MPI"):
    """Returns the median of a column of the two processes of a scaling result."""
    (row,) = rows(stem, processes=2, controller=controller)
    return first(row[column])


def of_one(stem):
    return first(rows(stem, processes=1)[0]["alone_s"])


def precision_losses():
    found = [row["val_loss"] for row in rows("precision/2026-11-23_epyc-2c")]
    return abs(first(found[1]) - first(found[0])), max(map(extent, found))


def fused_speedup():
    steps = rows("step/2026-11-23_epyc-2c", batch_norm="fused")
    by_precision = {row["precision"]: row["median_s"] for row in steps}
    return (by_precision["float32"] / by_precision["mixed_bfloat16"],)


def rounds_of_keras_2():
    """Returns in how many rounds TensorFlow 2.15 was faster than we, of how many, at both grids."""
    found = []
    for grid in (128, 384):
        seconds = content(f"peers/2026-11-28_xeon-2c_g{grid}")["raw"]["seconds"]
        rounds = list(zip(seconds["keras_nowcast"], seconds["TensorFlow 2.15"], strict=True))
        found += [sum(theirs < ours for ours, theirs in rounds), len(rounds)]
    return found


def monitor():
    one, eight = rows("monitor_overhead/2026-11-24_epyc-1c")[1:]
    return [(row["thread_us_a_look"], row["looks_per_s"]) for row in (one, eight)]


def memory_errors():
    errors = [row["step_error_percent"] for row in rows("memory/2026-11-25_epyc-2c")]
    return -min(errors), max(errors)


TWO_CORES = "two_cores/2026-11-28_xeon-2c"


def mixed_speedups(*filters):
    """Returns the lowest and highest throughput relative to float32, of the same seed."""
    speed = {
        (row["depth"], row["filters"], row["seed"], row["precision"]): row["samples_per_second"]
        for row in rows(TWO_CORES, processes=1)
        if row["filters"] in filters
    }
    ratios = [
        speed[(*cell, "mixed_bfloat16")] / value
        for (*cell, precision), value in speed.items()
        if precision == "float32"
    ]
    return min(ratios), max(ratios)


def two_processes():
    """Returns the median throughput of two processes relative to one, in both precisions."""

    def median(precision, processes):
        cell = {"depth": 3, "filters": 16, "precision": precision, "processes": processes}
        return statistics.median(row["samples_per_second"] for row in rows(TWO_CORES, **cell))

    return [median(each, 2) / median(each, 1) for each in ("float32", "mixed_bfloat16")]


def more_parameters():
    small, large = (
        rows(TWO_CORES, depth=4, filters=filters, precision="float32")[0] for filters in (4, 16)
    )
    return (
        100 * (large["trainable_parameters"] / small["trainable_parameters"] - 1),
        100 * (small["samples_per_second"] / large["samples_per_second"] - 1),
    )


def epyc_efficiencies():
    found = [of_two(stem, "weak_efficiency") for stem in (EPYC, *SLOW_EPYC, TURNS)]
    return min(found), max(found)


def allreduces():
    stems = (EPYC, *SLOW_EPYC, TURNS, *XEON.values())
    found = [1000 * of_two(stem, "allreduce_by_itself_s") for stem in stems]
    lost = [100 * (1 - of_two(stem, "machine_allows")) for stem in stems]
    parts = [
        (100 * of_two(stem, "allreduce_by_itself_s") / of_one(stem), of_one(stem))
        for stem in (EPYC, XEON["long"], XEON["batch32"])
    ]
    return min(found), max(found), *sum(parts, ()), min(lost), max(lost)


def at_batch_32():
    stem = f"{EPYC}_batch32"
    seconds = of_two(stem, "allreduce_by_itself_s")
    return 1000 * seconds, 100 * seconds / of_two(stem, "together_s")


def csi_m():
    found = [row["csi_m_six"] for row in rows("score_conventions/2026-11-23_epyc-2c")]
    return min(found), max(found)


def horovod_step(threshold, fp16):
    (row,) = rows(
        "horovod_options/2026-11-24_epyc-2c",
        measured="step",
        fusion_threshold_mib=threshold,
        fp16_allreduce=fp16,
    )
    return row["median_ms"]


def coverages(interval, blocks, *quantities):
    """Returns the lowest and the highest simulated coverage of an interval, percent."""
    found = [
        row[f"{interval}_%"]
        for row in rows("coverage/2026-11-28_xeon-2c", blocks=blocks)
        if row["interval_of"] in quantities
    ]
    return min(found), max(found)


DIFFERENCES = ("csi difference", "mse difference")
CSI_AND_DIFFERENCES = ("csi", *DIFFERENCES)


# (page, text with its numbers left out, function that returns them)
def largest_difference(windows):
    """Returns by how many percent a sample's loss differs at most from that of all windows."""
    found = [
        row
        for processes in (1, 2)
        for row in content(f"batch_statistics/2026-11-28_xeon-2c_np{processes}")["rows"]
    ]
    return 100 * max(abs(row[windows] / row["all"] - 1) for row in found)


DERIVED = (
    (
        "docs/train.md",
        "differs from that by at most {:.1f}%, with 16 by at most {:.1f}%",
        lambda: [largest_difference("128"), largest_difference("16")],
    ),
    (
        "docs/benchmarks.md",
        "The medians differ by {:.3f}, and the seeds of one precision by {:.3f}.",
        precision_losses,
    ),
    ("docs/benchmarks.md", "it was {:.2f} times as fast, by the medians.", fused_speedup),
    (
        "docs/benchmarks.md",
        "2.15 was faster in {:.0f} of the {:.0f} rounds at grid 128, and in {:.0f} of the {:.0f} "
        "at grid 384.",
        rounds_of_keras_2,
    ),
    ("docs/benchmarks.md", "at batch size 8 gave {:.3f} to {:.3f}.", epyc_efficiencies),
    ("docs/benchmarks.md", "| {:.2f} ms |", lambda: [monitor()[0][0] / 1000]),
    ("docs/benchmarks.md", "| {:.2f} ms |", lambda: [monitor()[1][0] / 1000]),
    (
        "docs/benchmarks.md",
        "the thread takes {:.1f}% of one core with one GPU, as each rank has, and {:.1f}% with "
        "eight",
        lambda: [us * per_s / 1e4 for us, per_s in monitor()],
    ),
    (
        "docs/benchmarks.md",
        "The count is between {:.1f}% too low and {:.1f}% too high",
        memory_errors,
    ),
    (
        "docs/two_cores.md",
        "is {:.2f} to {:.2f} times as fast as float32 with 16 and 32 filters, and {:.2f} to "
        "{:.2f} times with 4 and 8 filters",
        lambda: (*mixed_speedups(16, 32), *mixed_speedups(4, 8)),
    ),
    (
        "docs/two_cores.md",
        "(+1,549% parameters) has +{:,.0f}% here, and takes +{:.0f}% time",
        more_parameters,
    ),
    (
        "docs/two_cores.md",
        "the ratio of the medians is {:.2f} in float32 and {:.2f} in mixed_bfloat16",
        two_processes,
    ),
    (
        "docs/scaling.md",
        "the weak-scaling efficiency of two processes is {:.2f} over MPI and {:.2f} over Gloo",
        lambda: [of_two(EPYC, "weak_efficiency", each) for each in ("MPI", "Gloo")],
    ),
    (
        "docs/scaling.md",
        "They take {:.2f} times as long for a matrix product in the cache, and {:.1f} times as "
        "long for a copy of memory",
        lambda: [1 / of_two(EPYC, f"{each}_beside_efficiency") for each in ("matmul", "copy")],
    ),
    (
        "docs/scaling.md",
        "{:.0f} ms over MPI. At batch size 32 that is {:.0f}% of a step",
        at_batch_32,
    ),
    (
        "docs/scaling.md",
        "The allreduce takes about {:.0f} to {:.0f} ms: {:.0f}% of a step of {:.2f} s, {:.0f}% of "
        "{:.2f} s, {:.0f}% of {:.1f} s. Two processes that share no step lose {:.0f} to {:.0f}%.",
        allreduces,
    ),
    ("docs/scores.md", "from {:.3f} to {:.3f}.", csi_m),
    (
        "docs/scores.md",
        "thresholds and twelve lead times, on 384x384, takes {:.1f} ms",
        lambda: [rows("scores/2026-11-24_epyc-2c", way="numpy")[0]["median_ms"]],
    ),
    (
        "docs/scores.md",
        "it covers {:.0f}% to {:.0f}% of them over six days, where percentile intervals cover "
        "{:.0f}% to {:.0f}%.",
        lambda: (
            *coverages("studentized", 6, *CSI_AND_DIFFERENCES),
            *coverages("percentile", 6, *CSI_AND_DIFFERENCES),
        ),
    ),
    (
        "docs/scores.md",
        "it covers {:.0f}% to {:.0f}% over six days and {:.0f}% to {:.0f}% over thirty.",
        lambda: (*coverages("studentized", 6, "mse"), *coverages("studentized", 30, "mse")),
    ),
    (
        "docs/horovod.md",
        "Fusion makes a step {:.1f} times as fast.",
        lambda: [horovod_step(0, False) / horovod_step(64, False)],
    ),
    (
        "docs/horovod.md",
        "float16 makes a step {:.1f} times as long.",
        lambda: [horovod_step(64, True) / horovod_step(64, False)],
    ),
)


def derived(page):
    """Returns the texts of a page whose numbers follow from results, as they must be."""
    return [text.format(*numbers()) for where, text, numbers in DERIVED if where == page]


def problems(page, text):
    """Returns the statements of a page's text whose numbers are not in the files they are of."""
    expected = derived(page)
    found = [each for each in expected if each not in plain(text)]
    known = [*expected, *PHRASES.get(page, ())]

    def settled(block):
        for each in known:
            block = block.replace(each, "|" if each.endswith("|") else "")
        return EVERYWHERE.sub("", block)

    for heading, blocks, printed in sections(text):
        sources = LINK.findall("\n".join(blocks))
        left_alone = page in LINKED or any(map(says_no_file, blocks))
        if heading in NOT_MEASURED.get(page, ()) or (not sources and left_alone):
            continue
        by_cell = (page, heading) in BY_CELL
        for block in blocks:
            found += unfounded(block, sources, settled, by_cell)
        lines = [line for stem in sources for line in printed_lines(stem)]
        found += [each for each in printed if lines and not is_in_one(each, lines)]
    return found


def page_text(page):
    return (ROOT / page).read_text()


@pytest.mark.parametrize("page", [*NOT_MEASURED, *LINKED])
def test_the_numbers_of_a_page_are_in_its_files(page):
    assert not problems(page, page_text(page))


def test_each_page_is_covered_or_has_a_reason():
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} | {"README.md"}
    assert pages - {*NOT_MEASURED, *LINKED, *NOT_COVERED} == set()


@pytest.mark.parametrize(
    ("page", "text", "broken"),
    [
        ("README.md", "| 63 (62 to 66) | 112 [5]", "| 64 (62 to 66) | 112 [5]"),
        ("README.md", "| 63 (62 to 66) | 112 [5]", "| 63 (62 to 66) | 152 [5]"),
        ("docs/two_cores.md", "is 1.21 to 2.00 times", "is 1.3 to 2.00 times"),
        ("docs/two_cores.md", "| 1.00 | 45.4 |", "| 1.00 | 45.5 |"),
        ("docs/real_radar.md", "| 1.88 (-3.49 to 7.25) |", "| 1.88 (-3.49 to 7.26) |"),
        (
            "docs/scaling.md",
            "efficiency of two processes is 0.91",
            "efficiency of two processes is 0.92",
        ),
        ("docs/scaling.md", "**0.944 (0.920 to 0.985)**", "**0.944 (0.887 to 0.985)**"),
        ("docs/scaling.md", "(no results file). They save", ". They save"),
        ("docs/benchmarks.md", "0.951 (interval 0.932", "0.951 (interval 0.931"),
        ("docs/benchmarks.md", "| 233 (13x) |", "| 234 (13x) |"),
        ("docs/energy.md", "| 0.04 | 1.28 | 4.08 |", "| 0.04 | 1.28 | 4.09 |"),
        ("docs/data.md", "31.5 times", "31 times"),
        ("docs/horovod.md", "a step 2.5 times", "a step 2.6 times"),
    ],
)
def test_one_broken_number_is_found(page, text, broken):
    whole = page_text(page)
    assert whole.count(text) == 1
    assert problems(page, whole.replace(text, broken))


def test_the_output_of_a_program_is_found_in_what_a_file_keeps(monkeypatch):
    lines = ["Its throughput was 0.84 (0.54 to 1.78) times.", "time: median 9.3%, at most 48.7%"]
    result = {"rows": [], "note": "", "raw": {"printed": lines}}
    monkeypatch.setattr(quoted, "content", lambda stem: result)
    page = (
        "# Claims\n\nSource: [file](../benchmarks/results/two_cores/x.txt)\n\n```text\n# Mixed?\n"
        "  Its throughput was 0.84\n  (0.54 to 1.78) times.\n```\n\n"
        "| | |\n|---|---|\n| time | 9.3% |\n"
    )
    assert not problems("docs/sweep.md", page)
    assert problems("docs/sweep.md", page.replace("1.78", "1.77"))
    assert problems("docs/sweep.md", page.replace("9.3", "9.4"))


def test_a_number_without_a_file_is_found():
    assert problems("README.md", page_text("README.md") + "\n## New\n\nIt takes 3.7 s.\n")
    assert not problems("README.md", page_text("README.md") + "\n## New\n\nIt is fast.\n")
