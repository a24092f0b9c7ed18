"""The paper's claims, each with this study's own numbers beside the paper's.

A claim is answered from completed runs alone. Where they do not hold what it needs, its answer is
'not measured here' and why. docs/study.md says how each number is made.

Two things are called faster, and they differ: throughput (windows trained a second) and time to
quality (seconds of training until the loss level that the slower-converging of the two reached).
"""

import itertools
import statistics
from collections import Counter
from dataclasses import dataclass

from keras_nowcast.study import compare, table
from keras_nowcast.study.compare import (
    ESTIMATE,
    SIZES,
    Spread,
    by_size,
    cost_of_cells,
    counted,
    growth_percent,
    is_estimate,
    mean_difference,
    model_name,
    paired,
    pareto_cells,
    precision_pairs,
    processes,
    quality_ratio,
    ratio_of,
    scaling_pairs,
    seed_differences,
    seed_range,
    shares_cores,
    spread,
    throughput_ratio,
)

NOT_MEASURED = "not measured here"
PAPER = "arXiv 2008.08062"
PAPER_DEPTH = 4
PAPER_PARAMETERS_PERCENT = 1549
PAPER_ENERGY_PERCENT = 63.22
_VERDICTS = ("not told apart", "better", "worse")


@dataclass(frozen=True)
class Claim:
    """A claim and what this study has to say of it.

    Attributes:
      title: what is asked.
      paper: what the paper says of it, or that no figure of it is at hand.
      answer: this study's, in words and numbers, a line a precision or setting.
      is_measured: whether there were data for an answer.
      rows: the comparisons behind it, dicts of text with the same keys.
      notes: lines on how to read it.
      missing: lines on what it lacks although it is answered: energy, and why.
    """

    title: str
    paper: str
    answer: str
    is_measured: bool
    rows: tuple = ()
    notes: tuple = ()
    missing: tuple = ()


def claims(runs):
    """Returns the paper's Claims, answered from Runs (`table.read`)."""
    cells = table.cells(runs)
    skill = table.choose_skill(runs)
    return [
        mixed_precision(cells, skill),
        more_parameters(cells, skill),
        larger_models(cells, skill),
        data_parallel(cells),
    ]


def mixed_precision(cells, skill):
    """Mixed precision's time and energy against float32's, and whether the skill is equal."""
    title = "Mixed precision: less time and energy at equal skill?"
    paper = f"Training time falls significantly with no loss of model performance ({PAPER})."
    pairs = precision_pairs(cells)
    if not pairs:
        return _not_measured(
            title,
            paper,
            "it needs a completed run in float32 and one in mixed precision that differ in nothing "
            "else but the seed",
        )
    compared = [_precision_row(plain, mixed, skill) for plain, mixed in pairs]
    answers = []
    for policy in dict.fromkeys(mixed.setting["precision"] for _, mixed in pairs):
        mine = [row for row in compared if row["precision"] == policy]
        answers.append(" ".join(_precision_sentences(policy, mine, skill)))
    notes = (
        "Throughput and time to quality: seconds of float32 over seconds of mixed precision, above "
        "1 where mixed precision is faster. Time to quality counts whole epochs until the "
        "validation loss that the slower-converging of the two reached; the first step of each "
        "start, which compiles, counts as one of the others. Energy: joules a window of mixed "
        "precision over those of float32.",
        "Skill: the difference between runs of the same seed, its mean over the seeds and the 95 % "
        "interval of that (Student's t). Not told apart: the interval holds 0. Of few seeds it is "
        "wide, and that is no proof that there is no difference. Better or worse: it does not hold "
        "0.",
        *_certainty(compared),
    )
    missing = _without_energy(compared)
    return Claim(title, paper, "\n".join(answers), True, _texts(compared), notes, missing)


def _precision_row(plain, mixed, skill):
    return {
        "precision": mixed.setting["precision"],
        "model": model_name(mixed.setting),
        "parameters": f"{mixed.median('trainable_parameters'):,.0f}",
        "processes": str(mixed.setting["world_size"]),
        "seeds": _both(len(plain.runs), len(mixed.runs)),
        "throughput": throughput_ratio(plain, mixed),
        "time to quality": quality_ratio(plain, mixed),
        "energy": _energy_ratio(plain, mixed),
        "skill": _skill_verdict(plain, mixed, skill),
    }


def _both(first, second):
    return str(first) if first == second else f"{first} and {second}"


def _precision_sentences(policy, rows, skill):
    rates = spread(row["throughput"] and row["throughput"].median for row in rows)
    quality = spread(row["time to quality"] and row["time to quality"].median for row in rows)
    yield f"{policy}, over {counted(len(rows), 'cell')}:"
    if rates:
        yield f"throughput {_over_cells(rates, '.2f')} times float32's;"
    if quality:
        yield f"to the same validation loss {_over_cells(quality, '.2f')} times as fast;"
    else:
        yield f"time to the same validation loss {NOT_MEASURED}, no level was reached by both;"
    energies = [row["energy"] for row in rows if row["energy"].spread]
    if energies:
        ratio = spread(each.spread.median for each in energies)
        yield f"energy {_over_cells(ratio, '.2f')} times float32's{_mark(energies)};"
    else:
        yield f"energy {NOT_MEASURED};"
    told = [row["skill"] for row in rows if row["skill"].verdict]
    if told:
        counts = Counter(each.verdict for each in told)
        found = ", ".join(f"{word} in {counts[word]}" for word in _VERDICTS if counts[word])
        yield f"{skill.name} {found} of the {counted(len(told), 'cell')} with several seeds."
    else:
        yield (
            f"whether the skill is equal is {NOT_MEASURED}: no cell has several seeds of both, and "
            "a difference in one cannot be told from chance."
        )


def more_parameters(cells, skill):
    """More parameters against more energy and time, at the paper's number of encoding levels."""
    title = f"More parameters against more energy, at {PAPER_DEPTH} encoding levels"
    paper = (
        f"+{PAPER_PARAMETERS_PERCENT} % trainable parameters cost +{PAPER_ENERGY_PERCENT} % energy "
        f"for a UNet with {PAPER_DEPTH} encoding levels ({PAPER}); which two models is not said."
    )
    deep = [cell for cell in cells if cell.setting["depth"] == PAPER_DEPTH]
    ladders = [ladder for ladder in map(by_size, table.group(deep, *SIZES)) if len(ladder) > 1]
    if not ladders:
        return _not_measured(
            title,
            paper,
            f"it needs two completed runs of --depth {PAPER_DEPTH} that differ in their filters "
            "alone",
        )
    pairs = [pair for ladder in ladders for pair in _told_pairs(ladder)]
    compared = [_size_row(small, large, skill) for small, large in pairs]
    closest = min(compared, key=_far_from_paper)
    energies = [row["energy"] for row in compared if row["energy"].spread]
    if energies:
        closest = min((row for row in compared if row["energy"].spread), key=_far_from_paper)
        cost = f"{closest['energy'].spread.text('+.1f', ' %')} energy{_mark([closest['energy']])}, "
    else:
        cost = f"energy {NOT_MEASURED}, "
    time = closest["time"]
    answer = (
        f"{closest['from']} to {closest['to']} in {closest['precision']}, the pair closest to the "
        f"paper's of those measured here: {closest['parameters']:+,.0f} % trainable parameters, "
        f"{cost}{time.text('+.1f', ' %') + ' time' if time else 'time ' + NOT_MEASURED}."
    )
    notes = (
        "Of every setting, smallest to largest and the pair closest to the paper's. Time and "
        "energy are those of a trained window; the spread is over pairs of seeds.",
        *_certainty(compared),
    )
    missing = _without_energy(compared)
    return Claim(title, paper, answer, True, _texts(compared), notes, missing)


def _far_from_paper(row):
    return abs(row["parameters"] - PAPER_PARAMETERS_PERCENT)


def _told_pairs(ladder):
    """Returns the smallest and largest of a ladder, and the pair nearest the paper's increase."""
    pairs = list(itertools.combinations(ladder, 2))
    nearest = min(pairs, key=lambda pair: abs(growth_percent(*pair) - PAPER_PARAMETERS_PERCENT))
    ends = (ladder[0], ladder[-1])
    return [ends] if nearest == ends else [ends, nearest]


def _size_row(small, large, skill):
    both = [compare.increases(a.row, b.row, skill) for a, b in paired(small, large)]
    return {
        "from": model_name(small.setting),
        "to": model_name(large.setting),
        "precision": small.setting["precision"],
        "processes": str(small.setting["world_size"]),
        "parameters": growth_percent(small, large),
        "time": spread(each["time"] for each in both),
        "energy": _energy(spread(each["energy"] for each in both), _PERCENT, small, large),
        "skill": spread(each["skill_difference"] for each in both),
    }


def larger_models(cells, skill):
    """What skill larger models bring, and what each step up costs."""
    title = "Larger models: what more skill costs"
    paper = f"No figure of {PAPER} is at hand for it but that of the second claim."
    if skill is None:
        return _not_measured(title, paper, "no score is known of all completed runs")
    ladders = [each for each in map(by_size, table.group(cells, *SIZES)) if len(each) > 1]
    if not ladders:
        return _not_measured(
            title, paper, "it needs two completed runs that differ in the size of the network alone"
        )
    compared, sentences = [], []
    for ladder in ladders:
        cost = cost_of_cells(ladder)
        if cost is None:
            continue
        front = pareto_cells(ladder, skill, cost)
        steps = [_step_row(a, b, skill, cost) for a, b in itertools.pairwise(front)]
        compared += steps
        sentences.append(_front_sentence(ladder, front, skill, cost))
    if not sentences:
        return _not_measured(title, paper, "neither time nor energy is known of the runs")
    notes = (
        "Along the Pareto front of each setting: from each network that no other beats in both "
        f"cost and skill to the next. Skill is {skill.name}, "
        f"{'higher' if skill.higher_is_better else 'lower'} is better, the median over seeds. A "
        "gain smaller than the spread of the seeds is none that was shown.",
    )
    return Claim(title, paper, "\n".join(sentences), True, _texts(compared), notes)


def _step_row(small, large, skill, cost):
    gain = statistics.median(skill.of_cell(large)) - statistics.median(skill.of_cell(small))
    more = compare.increase_percent(small.median(cost.column), large.median(cost.column))
    chance = seed_range(small, large, skill)
    return {
        "from": model_name(small.setting),
        "to": model_name(large.setting),
        "precision": small.setting["precision"],
        "processes": str(small.setting["world_size"]),
        "parameters": growth_percent(small, large),
        "cost": f"{more:+.1f} % {cost.label}",
        "skill": f"{gain:+.4f}",
        "spread of seeds": NOT_MEASURED if chance is None else f"{chance:.4f}",
    }


def _front_sentence(ladder, front, skill, cost):
    setting = ladder[0].setting
    where = f"{setting['precision']}, {processes(setting['world_size'])}"
    first, last = front[0], front[-1]
    if len(front) == 1:
        return (
            f"{where}: of {len(ladder)} networks the cheapest, {model_name(first.setting)}, is "
            f"also the most skilful ({skill.name} {statistics.median(skill.of_cell(first)):.4f})."
        )
    more = compare.increase_percent(first.median(cost.column), last.median(cost.column))
    return (
        f"{where}: {model_name(first.setting)} to {model_name(last.setting)}, "
        f"{growth_percent(first, last):+,.0f} % trainable parameters, {more:+.1f} % {cost.label}, "
        f"{skill.name} {statistics.median(skill.of_cell(first)):.4f} to "
        f"{statistics.median(skill.of_cell(last)):.4f}; {len(front)} of {len(ladder)} networks are "
        "on the Pareto front."
    )


def data_parallel(cells):
    """Speed-up and efficiency of several processes against the fewest of the same setting."""
    title = "Data-parallel training: speed-up and efficiency"
    paper = (
        "No figure of the paper is at hand; the same group's earlier one (arXiv 1908.10964) cut "
        "training from 59 hours to just over 1 hour by data parallelism."
    )
    pairs = scaling_pairs(cells)
    if not pairs:
        return _not_measured(
            title,
            paper,
            "it needs two completed runs that differ in the number of processes alone",
        )
    compared = [_scaling_row(few, many) for few, many in pairs]
    sentences = []
    for few, many in sorted({(r["from"], r["processes"]) for r in compared}):
        mine = [row for row in compared if (row["from"], row["processes"]) == (few, many)]
        speed = spread(row["speed-up"] and row["speed-up"].median for row in mine)
        if speed is None:
            continue
        quality = spread(row["time to quality"] and row["time to quality"].median for row in mine)
        efficiency = spread(row["efficiency"].median for row in mine if row["efficiency"])
        sentences.append(
            f"{many} processes against {few}, over {counted(len(mine), 'cell')}: throughput "
            f"{_over_cells(speed, '.2f')} times, efficiency {_over_cells(efficiency, '.0%')}; to "
            "the same validation loss "
            + (f"{_over_cells(quality, '.2f')} times as fast." if quality else f"{NOT_MEASURED}.")
        )
    notes = [
        "Each process keeps its batch, so the global batch grows with the processes, and so does "
        "the learning rate. Efficiency is the speed-up over the ratio of processes."
    ]
    shared = [many for _, many in pairs if shares_cores(many.setting)]
    if shared:
        notes.append(
            "Without a GPU of its own, each process shares the cores of one host with the others: "
            f"{max(cell.setting['world_size'] for cell in shared)} processes on "
            f"{shared[0].setting['cores']} cores here. That is no measure of a cluster."
        )
    answer = "\n".join(sentences)
    return Claim(title, paper, answer, bool(sentences), _texts(compared), tuple(notes))


def _scaling_row(few, many):
    times = many.setting["world_size"] / few.setting["world_size"]
    speed = throughput_ratio(few, many)
    efficiency = speed and Spread(
        speed.median / times, speed.minimum / times, speed.maximum / times, speed.count
    )
    return {
        "model": model_name(many.setting),
        "precision": many.setting["precision"],
        "from": str(few.setting["world_size"]),
        "processes": str(many.setting["world_size"]),
        "speed-up": speed,
        "efficiency": efficiency,
        "time to quality": quality_ratio(few, many),
        "energy": _energy_ratio(few, many),
    }


@dataclass(frozen=True)
class _Energy:
    """A ratio or increase of energy; `spread` is None where it was not measured."""

    spread: Spread | None
    form: str
    is_estimate: bool
    reason: str | None
    uncertainty_percent: float | None


@dataclass(frozen=True)
class _Verdict:
    """What the seeds tell of two skills: one of _VERDICTS; None where they tell nothing."""

    text: str
    verdict: str | None


_RATIO, _PERCENT = ".2f", "+.1f"


def _energy(of_pairs, form, *cells):
    rows = [run.row for cell in cells for run in cell.runs]
    sources = {row["energy_source"] for row in rows if row["energy_joules"] is not None}
    if len(sources) > 1:
        reason = f"the runs were measured by different sensors, {' and '.join(sorted(sources))}"
        return _Energy(None, form, "estimate" in sources, reason, None)
    reasons = [row["energy_reason"] for row in rows if row["energy_reason"]]
    uncertain = [row["uncertainty_percent"] for row in rows if row["uncertainty_percent"]]
    return _Energy(
        of_pairs,
        form,
        any(map(is_estimate, cells)),
        reasons[0] if reasons else None,
        max(uncertain, default=None),
    )


def _without_energy(rows):
    """Returns a line for each reason why comparisons have no energy."""
    counts = Counter(row["energy"].reason for row in rows if row["energy"].spread is None)
    return tuple(
        f"Energy{'' if counts.total() == len(rows) else f' of {count} of {len(rows)} comparisons'} "
        f"{NOT_MEASURED}: {reason or 'the runs do not say why'}."
        for reason, count in counts.items()
    )


def _certainty(rows):
    """Returns a line on how sure the joules are, where the sensors' calibration is known."""
    known = [row["energy"].uncertainty_percent for row in rows]
    known = [percent for percent in known if percent is not None]
    if not known:
        return ()
    return (
        f"Joules are certain to {max(known):.0f} % (docs/energy.md); on the same devices most of "
        "that is common to both sides of a ratio.",
    )


def _mark(energies):
    return ESTIMATE if any(each.is_estimate for each in energies) else ""


def _skill_verdict(plain, mixed, skill):
    if skill is None:
        return _Verdict(NOT_MEASURED, None)
    medians = [statistics.median(skill.of_cell(cell)) for cell in (plain, mixed)]
    text = "{:.4f}, {:.4f}".format(*medians)
    differences = seed_differences(plain, mixed, skill)
    if len(differences) < 2:
        common = counted(len(differences), "common seed")
        return _Verdict(f"{text}; {common}: not told from chance", None)
    mean, deviation, half = mean_difference(differences)
    verdict = "better" if (mean > 0) == skill.higher_is_better else "worse"
    if abs(mean) <= half:
        verdict = "not told apart"
    return _Verdict(
        f"{text}; {verdict}: {mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f}) over "
        f"{len(differences)} pairs of seeds, standard deviation {deviation:.4f}",
        verdict,
    )


def _over_cells(of_cells, form):
    middle = format(of_cells.median, form)
    if of_cells.count == 1:
        return middle
    return f"{middle} ({of_cells.minimum:{form}} to {of_cells.maximum:{form}})"


def _not_measured(title, paper, why):
    return Claim(title, paper, f"{NOT_MEASURED}: {why}.", False)


_FORMS = {"efficiency": ".0%", "time": "+.1f", "skill": "+.4f"}


def _texts(rows):
    """Returns the rows of a claim with every value as text."""
    return tuple({name: _text(name, value) for name, value in row.items()} for row in rows)


def _text(name, value):
    if isinstance(value, str):
        return value
    if isinstance(value, _Verdict):
        return value.text
    if isinstance(value, _Energy):
        if value.spread is None:
            return NOT_MEASURED
        unit = " %" if value.form == _PERCENT else ""
        return value.spread.text(value.form, unit) + _mark([value])
    if isinstance(value, Spread):
        unit = " %" if name == "time" else ""
        return value.text(_FORMS.get(name, ".2f"), unit)
    if value is None:
        return NOT_MEASURED
    return f"{value:+,.0f} %"


def _energy_ratio(first, second):
    pairs = paired(first, second)
    return _energy(
        spread(ratio_of(b, a, "joules_per_sample") for a, b in pairs), _RATIO, first, second
    )
