"""The model of scaling.py: the efficiency of more processes than were measured."""

import statistics
from dataclasses import dataclass

from scaling_jobs import kind_of, values

MODEL_PROCESSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Link:
    """What the model knows of processes and what joins them.

    Attributes:
      step_s: a step without its allreduce.
      gradient_bytes: that the allreduce of a step carries.
      latency_s: of one of a ring's 2 (n - 1) steps.
      bytes_per_s: that a process sends while it receives as many.
      fitted_at: smallest number of processes it was fitted to.
      worst_error: largest relative error of the fit.
    """

    step_s: float
    gradient_bytes: int
    latency_s: float
    bytes_per_s: float
    fitted_at: int = 2
    worst_error: float = 0.0

    def allreduce_s(self, processes, latency_once=False):
        """Returns the seconds of one allreduce of the gradients.

        Where only one number of processes was measured, nobody knows how much of the latency is
        Horovod's agreement, once an allreduce, and how much the ring's: `latency_once` takes it
        all for the first.
        """
        steps, sent = ring_terms(processes, self.gradient_bytes)
        if latency_once and processes > 1:
            steps, _ = ring_terms(self.fitted_at, 0)
        return steps * self.latency_s + sent / self.bytes_per_s

    def efficiency(self, processes, hidden, latency_once=False):
        """Returns the expected weak-scaling efficiency if so much of the allreduce is hidden."""
        added = (1 - hidden) * self.allreduce_s(processes, latency_once)
        return self.step_s / (self.step_s + added)


def ring_terms(processes, size):
    """Returns what latency and seconds a byte are multiplied by in a ring allreduce.

    It takes 2 (n - 1) steps, in each of which a process sends an n-th of the bytes.
    """
    return 2 * (processes - 1), 2 * (processes - 1) / processes * size


def fit(jobs):
    """Fits a Link to the medians of the allreduces by size, least squares of relative errors."""
    import numpy as np

    terms, taken = [], []
    for job in jobs:
        for size, seconds in job["allreduce_s_by_bytes"].items():
            terms.append(ring_terms(job["world_size"], int(size)))
            taken.append(statistics.median(seconds))
    terms, taken = np.array(terms), np.array(taken)
    (latency, per_byte), *_ = np.linalg.lstsq(terms / taken[:, None], np.ones(len(taken)))
    return Link(
        step_s=statistics.median(values(jobs, max(map(kind_of, jobs)), "beside")),
        gradient_bytes=jobs[0]["gradient_bytes"],
        latency_s=float(latency),
        bytes_per_s=float(1 / per_byte),
        fitted_at=min(job["world_size"] for job in jobs),
        worst_error=float(np.abs(terms @ (latency, per_byte) / taken - 1).max()),
    )


def assume_gpus(arguments):
    """Returns the Link of GPUs that nobody measured, from the flags."""
    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    batch = arguments.model_batch
    sizes = (arguments.model_grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.model_filters)
    cost = count_unet(*sizes)
    flops = batch * cost.training_flops("mixed_float16", batch)
    return Link(
        step_s=flops / (1e12 * arguments.model_tflops),
        gradient_bytes=cost.allreduce_bytes(arguments.fp16_allreduce),
        latency_s=1e-6 * arguments.model_latency_us,
        bytes_per_s=1e9 * arguments.model_gbytes_per_s,
    )


def hidden_share(jobs):
    """Returns the share of the allreduce that the rest of the step hid, 0 to 1."""
    shares = []
    for kind in {kind_of(job) for job in jobs}:
        together, beside, by_itself = (
            values(jobs, kind, phase) for phase in ("together", "beside", "allreduce")
        )
        added = statistics.median(a - b for a, b in zip(together, beside, strict=True))
        shares.append(1 - added / statistics.median(by_itself))
    return min(1.0, max(0.0, statistics.median(shares)))


def model_rows(here, gpus, hidden):
    """Returns the model's row of each number of processes."""
    return [
        {
            "processes": processes,
            "as_here_allreduce_s": here.allreduce_s(processes),
            "as_here_efficiency": here.efficiency(processes, hidden),
            "as_here_efficiency_latency_once": here.efficiency(processes, hidden, True),
            "gpus_allreduce_s": gpus.allreduce_s(processes),
            "gpus_efficiency_nothing_hidden": gpus.efficiency(processes, 0),
            "gpus_efficiency_hidden_as_here": gpus.efficiency(processes, hidden),
        }
        for processes in MODEL_PROCESSES
    ]


def told(link):
    """Says a Link in words."""
    return (
        f"latency {1e6 * link.latency_s:.0f} us, {link.bytes_per_s / 1e9:.2f} GB/s, step "
        f"{link.step_s:.3f} s, {link.gradient_bytes / 1e6:.1f} MB of gradients"
    )
