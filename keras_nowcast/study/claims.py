"""The paper's claims, each with this study's own numbers next to the paper's.

Only completed runs answer a claim. If they lack what it needs, the answer is 'not measured here'
and the reason. docs/study.md explains how each number is computed.

Two measures of speed are reported, and they differ: throughput (windows trained per second) and
speed to the same loss (in seconds of training until the lowest validation loss that both runs
reached).
"""

import itertools
import statistics
from collections import Counter
from dataclasses import dataclass, replace

from keras_nowcast.study import compare, table
from keras_nowcast.study.compare import (
    SIZES,
    Spread,
    by_size,
    cost_of_cells,
    growth_percent,
    model_name,
    paired,
    pareto_cells,
    precision_pairs,
    processes,
    quality_ratio,
    scaling_pairs,
    seed_range,
    shares_cores,
    spread,
    throughput_ratio,
)
from keras_nowcast.study.verdicts import (
    EQUIVALENT,
    MARGIN_PERCENT,
    NOT_MEASURED,
    PERCENT,
    certainty,
    energy_of,
    energy_ratio,
    mark,
    medians,
    over_cells,
    skill_verdict,
    texts,
    without_energy,
)
from keras_nowcast.text_table import counted

_SINGLE_SEED = f"{NOT_MEASURED}: both models need two seeds"
PAPER = "arXiv 2008.08062"
PAPER_DEPTH = 4
PAPER_PARAMETERS_PERCENT = 1549
PAPER_ENERGY_PERCENT = 63.22


@dataclass(frozen=True)
class Claim:
    """A claim and this study's answer to it.

    Attributes:
      title: the question.
      paper: the paper's statement, or a note that no value of the paper is available.
      answer: this study's, as text with numbers, one line per precision or setting.
      is_measured: True if there were data for an answer.
      rows: the comparisons behind it, dicts of text with the same keys.
      notes: lines on how to read it.
      missing: lines on what an answered claim still lacks: energy, and why.
      figure: name of the figure that shows it.
    """

    title: str
    paper: str
    answer: str
    is_measured: bool
    rows: tuple = ()
    notes: tuple = ()
    missing: tuple = ()
    figure: str = ""


def claims(runs, margin_percent=MARGIN_PERCENT):
    """Returns the paper's Claims, answered from MeasuredRuns (`table.read`).

    Args:
      runs: MeasuredRuns.
      margin_percent: skills that differ by less than this percentage of float32's are equivalent.
    """
    cells = table.cells(runs)
    skill = table.choose_skill(runs)
    return [
        replace(mixed_precision(cells, skill, margin_percent), figure="mixed_speedup"),
        replace(more_parameters(cells, skill), figure="cost_by_size"),
        replace(larger_models(cells, skill), figure="skill_by_cost"),
        replace(data_parallel(cells), figure="scaling"),
    ]


def mixed_precision(cells, skill, margin_percent=MARGIN_PERCENT):
    """Returns the Claim on time, energy and skill of mixed precision compared with float32."""
    title = "Mixed precision: less time and energy at equal skill?"
    paper = f"Training time falls significantly with no loss of model performance ({PAPER})."
    pairs = precision_pairs(cells)
    if not pairs and cells and not any(map(_has_half_precision, cells)):
        return _not_measured(
            title,
            paper,
            "this processor has no half-precision arithmetic. A CPU with bfloat16 instructions, or "
            "a GPU of compute capability 7 or more, would measure it",
        )
    if not pairs:
        return _not_measured(
            title,
            paper,
            "it needs a completed run in float32 and one in mixed precision that differ in nothing "
            "else except the seed",
        )
    compared = [_precision_row(plain, mixed, skill, margin_percent) for plain, mixed in pairs]
    answers = []
    for policy in dict.fromkeys(mixed.setting["precision"] for _, mixed in pairs):
        mine = [row for row in compared if row["precision"] == policy]
        answers.append(" ".join(_precision_sentences(policy, mine, skill, margin_percent)))
    notes = (
        "Throughput and speed to the same loss are seconds of float32 divided by seconds of mixed "
        "precision: above 1, mixed precision is faster. The latter counts complete epochs until "
        "the lowest validation loss that both runs reached. The first step of each start "
        "includes compilation and is counted at the rate of the other steps. Energy is joules per "
        "window of mixed precision divided by those of float32. Brackets hold the minimum and the "
        "maximum, over the pairs of seeds in the table and over the cells in the answer.",
        "Skill: the median of each precision, then the difference (mixed precision minus "
        "float32) between runs of the same seed: its mean over the seeds and the 95% "
        "confidence interval of the mean (Student's t). Better or worse: the interval excludes 0. "
        "Equivalent: it contains 0, and two one-sided t tests at level 0.05 each show that the "
        f"difference is smaller than the margin, {margin_percent:g}% of float32's score "
        "(--margin of plot_figures.py). Otherwise the skills are not distinguishable and not shown "
        "equivalent: with few seeds the interval is wide, and more seeds would decide.",
        *certainty(compared),
    )
    missing = without_energy(compared)
    return Claim(title, paper, "\n".join(answers), True, texts(compared), notes, missing)


def _has_half_precision(cell):
    """Returns True if the machine of a cell may compute in half precision faster than in float32.

    Runs of earlier versions did not record the instructions of the CPU.
    """
    return bool(cell.setting["gpus"]) or cell.runs[0].row["cpu_has_bfloat16"] is not False


def _precision_row(plain, mixed, skill, margin_percent):
    return {
        "precision": mixed.setting["precision"],
        "model": model_name(mixed.setting),
        "parameters": f"{mixed.median('trainable_parameters'):,.0f}",
        "processes": str(mixed.setting["world_size"]),
        "seeds": _both(len(plain.runs), len(mixed.runs)),
        "throughput": throughput_ratio(plain, mixed),
        "speed to the same loss": quality_ratio(plain, mixed),
        "energy": energy_ratio(plain, mixed),
        "skill": skill_verdict(plain, mixed, skill, margin_percent),
    }


def _told(skill):
    """Returns the words of a Verdict on the skill."""
    within = skill.is_within and skill.verdict != EQUIVALENT
    return f"{skill.verdict}{' but within the margin' * within}"


def _both(first, second):
    return str(first) if first == second else f"{first} and {second}"


def _precision_sentences(policy, rows, skill, margin_percent):
    rates = medians(rows, "throughput")
    quality = medians(rows, "speed to the same loss")
    yield f"{policy} was compared with float32 in {counted(len(rows), 'cell')}."
    if rates:
        yield f"Its throughput was {over_cells(rates, '.2f')} times that of float32."
    if quality:
        yield f"It reached the same validation loss {over_cells(quality, '.2f')} times as fast."
    else:
        yield f"The time to the same validation loss: {NOT_MEASURED}, no level that both reached."
    energies = [row["energy"] for row in rows if row["energy"].spread]
    if energies:
        ratio = spread(each.spread.median for each in energies)
        yield f"Its energy was {over_cells(ratio, '.2f')} times that of float32{mark(energies)}."
    else:
        yield f"Energy: {NOT_MEASURED}."
    told = [row["skill"] for row in rows if row["skill"].verdict]
    if told:
        counts = Counter(map(_told, told))
        found = ", ".join(f"{words} in {count}" for words, count in counts.items())
        where = f"{found} of the {len(told)} cells"
        if len(told) == 1:
            where = f"{_told(told[0])} in the only cell"
        seeds = spread(each.pairs for each in told)
        yield (
            f"Its skill ({skill.name}) was {where} with several seeds, by the 95% confidence "
            f"interval of the mean difference over {over_cells(seeds, 'g')} common seeds and a "
            f"margin of {margin_percent:g}% of float32's score."
        )
    else:
        yield (
            f"Whether the skill differs: {NOT_MEASURED}, no cell has two seeds in both "
            "precisions, and one seed cannot distinguish a difference from chance."
        )


def more_parameters(cells, skill):
    """Returns the Claim on what more parameters cost, at the paper's number of encoding levels."""
    title = f"More parameters: how much more energy, at {PAPER_DEPTH} encoding levels"
    paper = (
        f"+{PAPER_PARAMETERS_PERCENT:,}% trainable parameters cost +{PAPER_ENERGY_PERCENT}% energy "
        f"for a UNet with {PAPER_DEPTH} encoding levels ({PAPER}). The abstract does not name the "
        "two models."
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
    pairs = [pair for ladder in ladders for pair in _shown_pairs(ladder)]
    compared = [_size_row(small, large, skill) for small, large in pairs]
    closest = min(compared, key=_far_from_paper)
    energies = [row["energy"] for row in compared if row["energy"].spread]
    if energies:
        closest = min((row for row in compared if row["energy"].spread), key=_far_from_paper)
        cost = f"{closest['energy'].spread.text('+.1f', '%')} energy{mark([closest['energy']])}"
    else:
        cost = f"energy ({NOT_MEASURED})"
    time = closest["time"]
    time = f"{time.text('+.1f', '%')} training time" if time else f"time ({NOT_MEASURED})"
    answer = (
        f"From {closest['from']} to {closest['to']} in {closest['precision']}, of the measured "
        f"pairs the closest to the paper's, {closest['parameters']:+,.0f}% trainable parameters "
        f"cost {cost} and {time} per window."
    )
    notes = (
        "For each setting: the smallest to the largest model, and the pair closest to the "
        "paper's. Time and energy are per trained window. Values are medians over pairs of seeds; "
        "brackets hold the minimum and the maximum over the pairs.",
        *certainty(compared),
    )
    missing = without_energy(compared)
    return Claim(title, paper, answer, True, texts(compared), notes, missing)


def _far_from_paper(row):
    return abs(row["parameters"] - PAPER_PARAMETERS_PERCENT)


def _shown_pairs(ladder):
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
        "energy": energy_of(spread(each["energy"] for each in both), PERCENT, small, large),
        "skill": spread(each["skill_difference"] for each in both),
    }


def larger_models(cells, skill):
    """Returns the Claim on what skill larger models bring, and what each step up costs."""
    title = "Larger models: what more skill costs"
    paper = f"No value of {PAPER} is available for it except that of the second claim."
    if skill is None:
        return _not_measured(title, paper, "no score is known for all completed runs")
    ladders = [each for each in map(by_size, table.group(cells, *SIZES)) if len(each) > 1]
    if not ladders:
        return _not_measured(
            title, paper, "it needs two completed runs that differ in the size of the model alone"
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
        return _not_measured(title, paper, "neither time nor energy of the runs is known")
    notes = (
        "Each row is a step along the Pareto front of a setting: from one model that no other "
        f"beats in both cost and skill to the next. Skill is {skill.name} "
        f"({'higher' if skill.higher_is_better else 'lower'} is better), the median over seeds. A "
        "gain smaller than the spread of seeds (maximum minus minimum, the wider of the two "
        "models' where both have several) does not show a difference. The fronts in the figure "
        "of skill against cost are drawn across precisions and numbers of processes, so a model "
        "can be on a front here and on none there.",
    )
    return Claim(title, paper, "\n".join(sentences), True, texts(compared), notes)


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
        "cost": f"{more:+.1f}% {cost.label}",
        "skill": f"{gain:+.4f}",
        "spread of seeds": _SINGLE_SEED if chance is None else f"{chance:.4f}",
    }


def _front_sentence(ladder, front, skill, cost):
    setting = ladder[0].setting
    where = f"{setting['precision']}, {processes(setting['world_size'])}"
    first, last = front[0], front[-1]
    if len(front) == 1:
        return (
            f"In {where}, the cheapest of {len(ladder)} models, {model_name(first.setting)}, is "
            f"also the most skillful ({skill.name}: {statistics.median(skill.of_cell(first)):.4f})."
        )
    more = compare.increase_percent(first.median(cost.column), last.median(cost.column))
    return (
        f"In {where}, {model_name(last.setting)} instead of {model_name(first.setting)} has "
        f"{growth_percent(first, last):+,.0f}% trainable parameters and costs {more:+.1f}% "
        f"{cost.label}. Its {skill.name} is {statistics.median(skill.of_cell(last)):.4f} instead "
        f"of {statistics.median(skill.of_cell(first)):.4f}. {len(front)} of {len(ladder)} models "
        "are on the Pareto front."
    )


def data_parallel(cells):
    """Returns the Claim on several processes compared with the fewest of the same setting."""
    title = "Data-parallel training: speed-up and efficiency"
    paper = (
        "No value of the paper is available. An earlier paper of the same group (arXiv 1908.10964) "
        "cut training from 59 hours to just over 1 hour by data parallelism."
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
        speed = medians(mine, "speed-up")
        if speed is None:
            continue
        quality = medians(mine, "speed to the same loss")
        efficiency = medians(mine, "efficiency")
        level = f"The time to the same validation loss: {NOT_MEASURED}."
        if quality:
            times = over_cells(quality, ".2f")
            level = f"They reached the same validation loss {times} times as fast."
        sentences.append(
            f"{many} processes were compared with {few} in {counted(len(mine), 'cell')}. Their "
            f"throughput was {over_cells(speed, '.2f')} times as high, an efficiency of "
            f"{over_cells(efficiency, '.0%')}. {level}"
        )
    notes = [
        "The batch size per process is constant, so the global batch size grows with the number "
        "of processes, and the learning rate as --lr-scaling says. Efficiency is the speed-up "
        "divided by the ratio of the numbers of processes."
    ]
    shared = [many for _, many in pairs if shares_cores(many.setting)]
    if shared:
        notes.append(
            "No process has its own GPU, so all share the cores of one host: up to "
            f"{max(cell.setting['world_size'] for cell in shared)} processes on "
            f"{shared[0].setting['cores']} cores here. That does not measure a cluster."
        )
    answer = "\n".join(sentences)
    return Claim(title, paper, answer, bool(sentences), texts(compared), tuple(notes))


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
        "speed to the same loss": quality_ratio(few, many),
        "energy": energy_ratio(few, many),
        "learning rate": many.setting["lr_scaling"],
    }


def _not_measured(title, paper, why):
    return Claim(title, paper, f"{NOT_MEASURED}: {why}.", False)
