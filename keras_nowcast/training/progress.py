"""The position and the sums of a run so far, which a checkpoint stores."""

from dataclasses import asdict, dataclass, field

FIRST_ORIGIN = (0, 0.0, 1.0)  # of a new run: step 0, epoch 0, the learning rate of one rank


@dataclass
class Sums:
    """Sums over the current epoch and all ranks; its row in epochs.csv is computed from them."""

    error: float = 0.0  # squared errors, normalized units
    pixels: float = 0.0  # valid ones
    skipped_steps: int = 0
    seconds: float = 0.0  # of training, after the first step, which includes compilation
    samples: int = 0  # trained in those seconds
    waited_s: float = 0.0  # part of those seconds, waiting for batches, the mean over the ranks


@dataclass
class Progress:
    """The position of a run: what a checkpoint stores in addition to the weights.

    Attributes:
      epoch: the current epoch, from 0.
      step: steps of it that the current ranks have done.
      seen: [world_size, steps] of each other number of ranks that did a part of it before.
      steps: steps of all epochs, by any number of ranks.
      sums: the Sums of the current epoch.
      rows: one dict per finished epoch, as in epochs.csv.
      origin: the `origin` of ScaledWarmup.
      starts: {world_size, steps} of each start: its number of ranks, and `steps` when it began.
      bad_events: {name: reason} of events that were skipped because they are unreadable.
      setup_seconds: time from the start of the process to the end of its first step, over all
        starts.
      zero_unix_s: Unix time of the first start, from which power.csv counts.
      energy: measurements of the ranks in earlier starts, as `merge_energy` takes them.
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
        """Sets joules and coverage in the row of each finished epoch, None if not measured.

        Args:
          energy: what `merge_energy` returned for these epochs.
        """
        both = zip(energy["joules_per_epoch"], energy["coverage_per_epoch"], strict=True)
        for row, (joules, coverage) in zip(self.rows, both, strict=True):
            row["joules"], row["joules_coverage"] = joules, coverage

    def as_dict(self):
        """Returns the attributes as a dict of JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Returns the Progress from which as_dict made `values`."""
        return cls(**{**values, "sums": Sums(**values["sums"])})
