"""What the jobs of scaling.py measured: one row per number of processes."""

import json
import statistics

LEAST_TURNS, RESAMPLES = 3, 1000  # of the interval of a median


def read_jobs(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("np*.json"))]


def kind_of(job):
    return job["world_size"], job["controller"]


def values(jobs, kind, phase):
    """Returns what a phase took, a round each, of all jobs of a kind."""
    rounds = [each for job in jobs if kind_of(job) == kind for each in job["rounds"]]
    return [each[phase] for each in rounds if phase in each]


def row(jobs, processes, controller):
    """Returns the row of one number of processes and what joins them.

    Ratios are within a round where both sides are of one job; to one process, round by round in
    the order of the jobs, which took turns.
    """
    kind = processes, controller
    alone, one = values(jobs, kind, "alone"), values(jobs, (1, "none"), "alone")
    together, beside, strong, fed, wait, allreduce = (
        values(jobs, kind, phase)
        for phase in ("together", "beside", "strong", "fed", "wait", "allreduce")
    )

    def ratios(above, below):
        return [a / b for a, b in zip(above, below, strict=False)]

    def ratio(above, below):
        return spread(ratios(above, below))

    def difference(above, below):
        return spread([a - b for a, b in zip(above, below, strict=False)])

    return {
        "processes": processes,
        "controller": controller,
        "alone_s": spread(alone),
        "beside_s": spread(beside),
        "together_s": spread(together),
        "fed_s": spread(fed),
        "wait_for_input_s": spread(wait),
        "input_adds_s": difference(fed, together or alone),
        "allreduce_by_itself_s": spread(allreduce),
        "allreduce_adds_s": difference(together, beside),
        "weak_efficiency": ratio(one, together),
        "weak_efficiency_95": interval_of_median(ratios(one, together), len(jobs[0]["rounds"])),
        "weak_to_alone_in_job": ratio(alone, together),
        "machine_allows": ratio(one, beside),
        "machine_allows_in_job": ratio(alone, beside),
        "strong_speedup": ratio(one, strong),
        **{
            f"{phase}_{what}": spread(values(jobs, kind, f"{phase} {what}"))
            for phase in ("alone", "beside", "together")
            for what in ("cpu_s", "switches")
        },
        "matmul_beside_efficiency": ratio(
            values(jobs, kind, "matmul_alone"), values(jobs, kind, "matmul_beside")
        ),
        "copy_beside_efficiency": ratio(
            values(jobs, kind, "copy_alone"), values(jobs, kind, "copy_beside")
        ),
    }


def interval_of_median(numbers, rounds):
    """Returns between what 95 % of the medians are if turns, of so many rounds, are drawn anew.

    Turns are drawn and not rounds: those of one job share a start, its cores and its memory.
    """
    import numpy as np

    if len(numbers) < LEAST_TURNS * rounds or len(numbers) % rounds:  # jobs of unlike rounds
        return "-"
    turns = np.reshape(numbers, (-1, rounds))
    drawn = np.random.default_rng(0).integers(len(turns), size=(RESAMPLES, len(turns)))
    medians = np.median(turns[drawn], axis=(1, 2))
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{low:.3f} to {high:.3f}"


def spread(numbers):
    if not numbers:
        return "-"
    return f"{statistics.median(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"
