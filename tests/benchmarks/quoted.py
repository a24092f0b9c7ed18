"""Numbers that documents quote, and the results files that they are quoted from."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?!\w)")
LINK = re.compile(r"\]\((?:\.\./)?benchmarks/results/([\w./-]+)\.txt\)")
# A statement with one of these says that its numbers have no results file.
SAYS_NO_FILE = ("no results file", "no file", "file was lost", "not kept")


def content(stem):
    """Returns the content of a result's JSON file, named relative to results/ without suffix."""
    return json.loads((RESULTS / f"{stem}.json").read_text())


def numbers_of(row):
    """Yields the numbers of one row of a result: its values, and those in texts and keys."""
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)
        texts = f"{value if isinstance(value, str) else ''} {key.replace('_', ' ')}"
        yield from (float(text.replace(",", "")) for text in NUMBER.findall(texts))


def is_in(printed, row):
    """True if a number of `row`, rounded as `printed` is, reads the same."""
    plain = printed.lstrip("+").replace(",", "")
    decimals = len(plain.partition(".")[2])
    return any(f"{number:.{decimals}f}" == plain for number in numbers_of(row))


def not_found(result, rows):
    """Returns the statements of a result, set apart by ";", whose numbers are in no one row."""
    return [each for each in result.split(";") if not is_in_one(each, rows)]


def is_in_one(statement, rows, context=()):
    """True if one row has all numbers of a statement, except those that `context` rows have."""
    numbers = [
        each for each in NUMBER.findall(statement) if not any(is_in(each, row) for row in context)
    ]
    return not numbers or any(all(is_in(each, row) for each in numbers) for row in rows)


def sections(text):
    """Yields (heading, blocks, printed) of a Markdown page.

    A block is text: the row of a table, a paragraph, or an item of a list; fenced code is in none.
    `printed` has the paragraphs of fenced text, the output of a program.
    """
    fences = []

    def take_out(fence):
        fences.append(fence[1])
        return f"\n@{len(fences) - 1}\n"

    text = re.sub(r"^```(.*?)^```$", take_out, text, flags=re.M | re.S)
    for part in re.split(r"^#+ ", "\n" + text, flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        mine = [fences[int(number)] for number in re.findall(r"^@(\d+)$", body, flags=re.M)]
        body = re.sub(r"^@\d+$", "", body, flags=re.M)
        blocks = re.split(r"\n\s*\n|\n(?=\s*- )|\n(?=\|)", body)
        printed = [
            each for fence in mine if fence.startswith("text") for each in fence.split("\n\n")
        ]
        yield heading, [each for each in blocks if re.search(r"\w", each)], printed


def printed_lines(stem):
    """Returns the lines that a program printed, if a result keeps them, as rows."""
    raw = content(stem).get("raw")
    kept = raw.get("printed", []) if isinstance(raw, dict) else []
    return [{"printed": line} for line in kept]


def plain(text):
    """Returns Markdown as text: links by their text, without images, code and file names."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|`[^`]*`", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\S*\d_(?:epyc|xeon)-\S*", "", text)
    text = re.sub(r"(\d)x\b", r"\1 x", text)
    return re.sub(r"\s+", " ", text.replace("**", "")).strip()


def statements(block, by_cell=False):
    """Returns the parts of a block, as plain text, each of which quotes one row of a result.

    They are the clauses of a text, and the row of a table or, with `by_cell`, its cells.
    """
    text = plain(block)
    if text.startswith("|"):
        return text.strip("|").split("|") if by_cell else [text]
    return re.split(r"(?<=[.:;,])\s|\sand\s|\scompared with\s", text)


def says_no_file(block):
    """True if a block says that its numbers have no results file."""
    return any(each in plain(block) for each in SAYS_NO_FILE)


def unfounded(block, sources, settled=lambda text: text, by_cell=False):
    """Returns the statements of a block whose numbers are not in one row of one of the sources.

    Args:
      block: of `sections`.
      sources: results files, relative to results/ without suffix; a block that links some itself
        has those.
      settled: function that takes out of a text what needs no source.
      by_cell: whether the cells of a table's row are of several rows of the results.
    """
    if says_no_file(block):
        return []
    found = [content(stem) for stem in LINK.findall(block) or sources]
    rows = [row for each in found for row in each["rows"]]
    rows += [row for stem in LINK.findall(block) or sources for row in printed_lines(stem)]
    # What was run is in the note; in a whole row of a table it would excuse a wrong number.
    is_row = block.startswith("|") and not by_cell
    notes = [] if is_row else [{"note": each["note"]} for each in found]
    text = settled(plain(block))
    return [each for each in statements(text, by_cell) if not is_in_one(each, rows, notes)]
