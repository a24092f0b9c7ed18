"""What a run remembers of its training so far; a checkpoint keeps it."""

from dataclasses import asdict, dataclass, field

FIRST_ORIGIN = (0, 0.0, 1.0)  # of a run that starts: no step, no epoch, the rate of one process


@dataclass
class Sums:
    """What an epoch has added up so far, over all ranks; its row is computed from these once."""

    error: float = 0.0  # squared errors, normalized units
    pixels: float = 0.0  # valid ones
    skipped_steps: int = 0
    seconds: float = 0.0  # of training, after the first compiled step
    samples: int = 0  # trained in those seconds


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps besides weights.

    Attributes:
      epoch: the epoch under way, from 0.
      step: steps of it that these ranks have done.
      seen: [world_size, steps] of each other number of ranks that did a part of it before.
      steps: of all epochs, by whatever ranks.
      sums: what the epoch has added up.
      rows: one dict for each finished epoch, as epochs.csv has them.
      origin: what ScaledWarmup takes.
      starts: {world_size, steps} of each start: its ranks, and `steps` when it began.
      bad_events: {name: reason} of events that could not be read and were left out.
      setup_seconds: from the start of the process to the end of its first step, over all starts.
      zero_unix_s: unix time of the first start, which power.csv counts from.
      energy: what the ranks measured in earlier starts, as `merge_energy` takes it.
    """

    epoch: int = 0
    step: int = 0
    seen: list = field(default_factory=list)
    steps: int = 0
    sums: Sums = field(default_factory=Sums)
    rows: list = field(default_factory=list)
    origin: list = field(default_factory=lambda: list(FIRST_ORIGIN))
    starts: list = field(default_factory=list)
    bad_events: dict = field(default_factory=dict)
    setup_seconds: float = 0.0
    zero_unix_s: float | None = None
    energy: list = field(default_factory=list)

    def set_energy(self, energy):
        """Puts joules and coverage of each finished epoch, None where not measured, into its row.

        Args:
          energy: what `merge_energy` returned of them.
        """
        both = zip(energy["joules_per_epoch"], energy["coverage_per_epoch"], strict=True)
        for row, (joules, coverage) in zip(self.rows, both, strict=True):
            row["joules"], row["joules_coverage"] = joules, coverage

    def as_dict(self):
        """Returns it as plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Returns the Progress that as_dict described."""
        return cls(**{**values, "sums": Sums(**values["sums"])})
