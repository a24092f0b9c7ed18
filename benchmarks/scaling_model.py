"""The model of scaling.py: the efficiency with more ranks than were measured.

A ring allreduce of B bytes over n ranks takes 2 (n - 1) (latency + B / n / bandwidth). A fraction
of it is hidden behind the rest of the step. It is a model and not a measurement.
"""

import statistics
from dataclasses import dataclass

from scaling_jobs import kind_of, values

MODEL_PROCESSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Link:
    """The ranks of the model and their interconnect.

    Attributes:
      step_s: seconds of a step without its allreduce.
      gradient_bytes: bytes that the allreduce of a step carries.
      latency_s: seconds of latency of one of a ring's 2 (n - 1) steps.
      bytes_per_s: bytes per second that a rank sends while it receives as many.
      fitted_at: smallest number of ranks that it was fitted to.
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

        If only one number of ranks was measured, it is unknown how much of the latency is Horovod's
        negotiation, once per allreduce, and how much is the ring's. `latency_once` assumes that all
        of it is the negotiation.
        """
        steps, sent = ring_terms(processes, self.gradient_bytes)
        if latency_once and processes > 1:
            steps, _ = ring_terms(self.fitted_at, 0)
        return steps * self.latency_s + sent / self.bytes_per_s

    def efficiency(self, processes, hidden, latency_once=False):
        """Returns the expected weak-scaling efficiency if the fraction `hidden` is hidden."""
        added = (1 - hidden) * self.allreduce_s(processes, latency_once)
        return self.step_s / (self.step_s + added)


def ring_terms(processes, size):
    """Returns (steps, bytes): the factors of latency and of seconds per byte in a ring allreduce.

    It takes 2 (n - 1) steps. In each of them a rank sends an n-th of the bytes.
    """
    return 2 * (processes - 1), 2 * (processes - 1) / processes * size


def fit(jobs):
    """Fits a Link to the median allreduce of each size, by least squares on the relative error."""
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
    """Returns the Link of the assumed GPUs, which have not been measured, from the flags."""
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


def hidden_fraction(jobs):
    """Returns the fraction of the allreduce that the rest of the step hid, 0 to 1."""
    fractions = []
    for kind in {kind_of(job) for job in jobs}:
        together, beside, allreduce = (
            values(jobs, kind, phase) for phase in ("together", "beside", "allreduce")
        )
        added = statistics.median(a - b for a, b in zip(together, beside, strict=True))
        fractions.append(1 - added / statistics.median(allreduce))
    return min(1.0, max(0.0, statistics.median(fractions)))


def model_rows(here, gpus, hidden):
    """Returns one row of the model per number of ranks."""
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


def in_short(link):
    """Returns a Link as text."""
    return (
        f"latency {1e6 * link.latency_s:.0f} us, {link.bytes_per_s / 1e9:.2f} GB/s, step "
        f"{link.step_s:.3f} s, {link.gradient_bytes / 1e6:.1f} MB of gradients"
    )
