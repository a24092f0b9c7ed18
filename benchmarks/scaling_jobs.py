"""The measured table of scaling.py: one row per number of ranks, from the files of its jobs."""

import json
import statistics

MIN_JOBS, RESAMPLES = 3, 1000  # for the interval of a median


def read_jobs(folder):
    """Returns the contents of all job files below a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("np*.json"))]


def kind_of(job):
    """Returns (number of ranks, controller), by which jobs are grouped."""
    return job["world_size"], job["controller"]


def values(jobs, kind, phase):
    """Returns the measured values of a phase in all jobs of a kind, one per round."""
    rounds = [each for job in jobs if kind_of(job) == kind for each in job["rounds"]]
    return [each[phase] for each in rounds if phase in each]


def row(jobs, processes, controller):
    """Returns the row of one number of ranks and one controller.

    If both sides of a ratio are of the same job, the ratio is within a round. Ratios to the jobs of
    one rank pair the rounds in the order of the jobs, which alternated.
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
    """Returns the 95% bootstrap interval of the median, as text, or "-" for too few jobs.

    Whole jobs are resampled and not rounds: the rounds of one job share its start, its cores and
    its memory.

    Args:
      numbers: one value per round, job after job.
      rounds: rounds per job.
    """
    import numpy as np

    if len(numbers) < MIN_JOBS * rounds or len(numbers) % rounds:  # jobs differ in rounds
        return "-"
    jobs = np.reshape(numbers, (-1, rounds))
    drawn = np.random.default_rng(0).integers(len(jobs), size=(RESAMPLES, len(jobs)))
    medians = np.median(jobs[drawn], axis=(1, 2))
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{low:.3f} to {high:.3f}"


def spread(numbers):
    """Returns "median (minimum to maximum)", or "-" if there are no numbers."""
    if not numbers:
        return "-"
    return f"{statistics.median(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"
