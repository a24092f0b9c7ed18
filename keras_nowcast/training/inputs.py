"""The data of a run as one rank reads it: what it trains on, validates on, and samples."""

import time

from keras_nowcast.data.augment import augmented
from keras_nowcast.data.pipeline import WindowPipeline
from keras_nowcast.training import gpu_options
from keras_nowcast.training.statistics import SAMPLE_WINDOWS


class Inputs:
    """The WindowPipelines of a run on one rank.

    Args:
      config: a RunConfig whose `grid` is chosen.
      world: the World.
      split: the Split of the events.
      sample_windows: number of windows of the sample, over all ranks.

    Attributes:
      training: of the training set, without end.
      validation: of the validation set, one pass in the order of the events.
      sample: of a sample of the training set, for the statistics of batch normalization.
    """

    def __init__(self, config, world, split, sample_windows=SAMPLE_WINDOWS):
        def pipeline(events, **more):
            return WindowPipeline(
                events,
                grid=config.grid,
                window_stride=config.window_stride,
                batch_per_replica=config.batch_per_replica,
                rank=world.rank,
                world_size=world.size,
                seed=config.seed,
                threads=config.reader_threads,
                **{"max_windows": config.max_windows, **more},
            )

        most = min(sample_windows, config.max_windows or sample_windows)
        self.training = pipeline(split.train)
        self.validation = pipeline(split.validation, shuffle=False)
        self.sample = pipeline(split.train, endless=False, max_windows=most)
        self._all = (self.training, self.validation, self.sample)
        self._config = config
        self._rank = world.rank

    def training_data(self, progress):
        """Returns the endless dataset to train on, from the position of a Progress."""
        dataset = self.training.dataset(progress.epoch, progress.step, progress.seen)
        if self._config.augment:
            dataset = augmented(dataset, self._config.seed, self._rank, progress.steps)
        return gpu_options.on_device(dataset)

    def validation_data(self):
        """Returns the dataset that `model.fit` validates on, one pass."""
        return gpu_options.on_device(self.validation.dataset())

    def on_bad_event(self, function):
        """Sets the function that all pipelines call with (event, error) for an unreadable event."""
        for each in self._all:
            each.on_bad_event = function

    def awaited(self):
        """Returns (seconds, text) for the event that a batch waits for, or None if none does."""
        for each in self._all:
            waiting = each.waiting
            if waiting is not None:
                since_s, event = waiting
                return time.monotonic() - since_s, f"event {event.name} of {event.file}"
        return None

    @property
    def error(self):
        """The exception that ended reading, or None.

        TensorFlow wraps the error of a data generator; the original error is clearer.
        """
        return next((each.error for each in self._all if each.error is not None), None)
