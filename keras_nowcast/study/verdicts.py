"""The cells of the claims' tables: ratios, energies and verdicts on skill, and their text."""

import statistics
from collections import Counter
from dataclasses import dataclass

from keras_nowcast.study.compare import (
    ESTIMATE,
    Spread,
    equivalence_half,
    is_estimate,
    margin_of,
    mean_difference,
    paired,
    ratio_of,
    seed_differences,
    spread,
)

NOT_MEASURED = "not measured here"
EQUIVALENT, UNDECIDED = "equivalent", "not distinguishable and not shown equivalent"
MARGIN_PERCENT = 2.0  # of float32's score: the default of the margin of equal skill
RATIO, PERCENT = ".2f", "+.1f"


@dataclass(frozen=True)
class Energy:
    """A ratio or increase of energy.

    Attributes:
      spread: over pairs of runs; None if it was not measured.
      form: RATIO or PERCENT, how it is written.
      is_estimate: True if the energy of any run is an estimate.
      reason: why it was not measured, or None.
      uncertainty_percent: the largest of the runs' joules; None if unknown.
      lacks: what trained in a run and is not in its joules; None if there is nothing.
    """

    spread: Spread | None
    form: str
    is_estimate: bool
    reason: str | None
    uncertainty_percent: float | None
    lacks: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A comparison of skills.

    Attributes:
      text: the skills, the verdict, the difference with its interval, and the margin.
      verdict: EQUIVALENT, better, worse or UNDECIDED, or None if fewer than two seeds are common.
      pairs: number of common seeds.
      is_within: True if the difference is shown to be smaller than the margin.
    """

    text: str
    verdict: str | None
    pairs: int = 0
    is_within: bool = False


def energy_of(of_pairs, form, *cells):
    """Returns the Energy of compared cells, without a value if different sensors measured them.

    Args:
      of_pairs: the Spread over pairs of their runs, or None.
      form: RATIO or PERCENT.
      *cells: the MeasuredCells.
    """
    rows = [run.row for cell in cells for run in cell.runs]
    sources = {row["energy_source"] for row in rows if row["energy_joules"] is not None}
    if len(sources) > 1:
        reason = f"the runs used different sensors, {' and '.join(sorted(sources))}"
        return Energy(None, form, "estimate" in sources, reason, None)
    reasons = [row["energy_reason"] for row in rows if row["energy_reason"]]
    uncertain = [row["uncertainty_percent"] for row in rows if row["uncertainty_percent"]]
    return Energy(
        of_pairs,
        form,
        any(map(is_estimate, cells)),
        reasons[0] if reasons else None,
        max(uncertain, default=None),
        next((row["energy_not_included"] for row in rows if row["energy_not_included"]), None),
    )


def without_energy(rows):
    """Returns a line for each reason why comparisons have no energy."""
    counts = Counter(row["energy"].reason for row in rows if row["energy"].spread is None)
    return tuple(
        f"Energy{'' if counts.total() == len(rows) else f' of {count} of {len(rows)} comparisons'} "
        f"{NOT_MEASURED}: {reason or 'the runs give no reason'}."
        for reason, count in counts.items()
    )


def certainty(rows):
    """Returns lines on what the joules lack, and on their uncertainty if it is known."""
    energies = [row["energy"] for row in rows if row["energy"].spread is not None]
    lacks = dict.fromkeys(energy.lacks for energy in energies if energy.lacks)
    lines = tuple(f"The joules do not include {each}." for each in lacks)
    known = [row["energy"].uncertainty_percent for row in rows]
    known = [percent for percent in known if percent is not None]
    if not known:
        return lines
    return (
        *lines,
        f"Joules are uncertain by up to {max(known):.0f}% (docs/energy.md). On the same devices "
        "most of that error is common to both sides of a ratio.",
    )


def mark(energies):
    """Returns the mark of an estimate if any of the Energies is one, otherwise an empty text."""
    return ESTIMATE if any(each.is_estimate for each in energies) else ""


def skill_verdict(plain, mixed, skill, margin_percent=MARGIN_PERCENT):
    """Returns the Verdict on the skill of a cell in mixed precision compared with float32.

    Better or worse: the 95% interval of the mean difference excludes 0. Equivalent: it does not,
    and two one-sided tests show a difference smaller than the margin. Both can hold: then the
    verdict is better or worse, and the text adds that it is within the margin.

    Args:
      plain, mixed: MeasuredCells, of float32 and of mixed precision.
      skill: the Skill, or None.
      margin_percent: the margin, percent of float32's mean score over the common seeds.
    """
    if skill is None:
        return Verdict(NOT_MEASURED, None)
    medians = [statistics.median(skill.of_cell(cell)) for cell in (plain, mixed)]
    text = ", ".join(
        f"{cell.setting['precision']} {median:.4f}"
        for cell, median in zip((plain, mixed), medians, strict=True)
    )
    differences = seed_differences(plain, mixed, skill)
    if len(differences) < 2:
        common = f"{len(differences) or 'no'} common seed{'s' * (len(differences) != 1)}"
        return Verdict(f"{text}; {common}, so not distinguished from chance", None)
    mean, deviation, half = mean_difference(differences)
    margin = margin_of(plain, mixed, skill, margin_percent)
    is_within = abs(mean) + equivalence_half(differences) < margin
    verdict = EQUIVALENT if is_within else UNDECIDED
    if abs(mean) > half:
        verdict = "better" if (mean > 0) == skill.higher_is_better else "worse"
    within = ", but within the margin" * (is_within and verdict != EQUIVALENT)
    return Verdict(
        f"{text}; {verdict}{within}: {mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f}) over "
        f"{len(differences)} pairs of seeds, standard deviation {deviation:.4f}; margin "
        f"{margin:.4f}",
        verdict,
        len(differences),
        is_within,
    )


def medians(rows, name):
    """Returns the Spread over rows of the medians of one of their ratios."""
    return spread(row[name] and row[name].median for row in rows)


def over_cells(of_cells, form):
    """Returns a Spread over cells as '1.32 (1.20 to 1.41)', or the median alone for one cell."""
    middle = format(of_cells.median, form)
    if of_cells.count == 1:
        return middle
    return f"{middle} ({of_cells.minimum:{form}} to {of_cells.maximum:{form}})"


_FORMS = {"efficiency": ".0%", "time": "+.1f", "skill": "+.4f"}


def texts(rows):
    """Returns the rows of a claim with every value as text."""
    return tuple({name: _text(name, value) for name, value in row.items()} for row in rows)


def _text(name, value):
    if isinstance(value, str):
        return value
    if isinstance(value, Verdict):
        return value.text
    if isinstance(value, Energy):
        if value.spread is None:
            return NOT_MEASURED
        unit = "%" if value.form == PERCENT else ""
        return value.spread.text(value.form, unit) + mark([value])
    if isinstance(value, Spread):
        unit = "%" if name == "time" else ""
        return value.text(_FORMS.get(name, ".2f"), unit)
    if value is None:
        return NOT_MEASURED
    return f"{value:+,.0f}%"


def energy_ratio(first, second):
    """Returns the Energy of the second cell's joules per window over the first's."""
    pairs = paired(first, second)
    return energy_of(
        spread(ratio_of(b, a, "joules_per_sample") for a, b in pairs), RATIO, first, second
    )
