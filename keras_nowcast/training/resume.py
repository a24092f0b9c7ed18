"""What a checkpoint holds of a run, and how a resumed run continues from it.

A resumed run may have another number of ranks than the run that saved the checkpoint. It must have
the same training windows, because the position in an epoch is stored as numbers of steps.
"""

import time
from dataclasses import dataclass, field

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.training import checkpoint
from keras_nowcast.training.progress import Progress

_STATISTICS = "statistics/"


@dataclass(frozen=True)
class Saved:
    """The state from which a run continues; without arguments, that of a new run.

    Attributes:
      progress: the Progress, for the ranks that this run has now.
      saved_unix_s: Unix time at which the checkpoint was saved, or None if there is none.
      arrays: on rank 0 all arrays of the checkpoint, on the other ranks its batch-norm statistics;
        None if there is no checkpoint.
    """

    progress: Progress = field(default_factory=Progress)
    saved_unix_s: float | None = None
    arrays: dict | None = None


def read_saved(folder, lock, world, pipeline, batch_per_replica, say):
    """Reads the newest checkpoint that is not corrupted, for the current number of ranks.

    All ranks call it together.

    Args:
      folder: the RunFolder.
      lock: the RunLock, taken on rank 0.
      world: the World.
      pipeline: the WindowPipeline of the training windows.
      batch_per_replica: windows in a batch of one rank.
      say: called with each line for the console.

    Returns:
      A Saved; if the run ended before its first checkpoint, that of a new run, whose power trace
      continues the previous one.

    Raises:
      InputError: the run had other training windows, or all its checkpoints are corrupted.
    """
    arrays = {}

    def read():
        if not checkpoint.any_in(folder.checkpoints):
            return None
        values, found, corrupted = checkpoint.read_checkpoint(folder.checkpoints)
        for name in corrupted:
            say(f"checkpoint {name} is corrupted; resuming from the previous one")
        arrays.update(found)
        return values, {k: v for k, v in found.items() if k.startswith(_STATISTICS)}

    restored = world.on_first(read)
    if restored is None:
        say("the run ended before its first checkpoint: starting it again")
        return Saved(Progress(zero_unix_s=world.broadcast(lock.zero_unix_s)))
    values, statistics = restored
    stored, schedule = values.pop("layout"), values.pop("schedule")
    saved_unix_s = values.pop("saved_unix_s")
    _check_layout(stored, _layout(world, pipeline))
    progress = Progress.from_dict(values)
    if stored["world_size"] != world.size:
        _change_world(progress, pipeline, stored["world_size"], **schedule)
        say(_change_line(progress, pipeline, stored["world_size"], world.size, batch_per_replica))
    say(f"resuming in epoch {progress.epoch + 1} after step {progress.step}")
    return Saved(progress, saved_unix_s, {**statistics, **arrays})


def write_saved(folder, world, progress, energy, compiled, pipeline):
    """Writes a checkpoint of a run as it is now. All ranks call it together.

    Args:
      folder: the RunFolder.
      world: the World.
      progress: the Progress.
      energy: what EnergyRecorder.results returned, of this start.
      compiled: the Compiled that is trained.
      pipeline: the WindowPipeline of the training windows.

    Returns:
      Unix time that the checkpoint states as the time at which it was saved.

    Raises:
      TrainingFailed: the file cannot be written.
    """
    model = compiled.model
    statistics = world.gather(
        checkpoint.variable_arrays("statistics", model.non_trainable_variables)
    )
    arrays = checkpoint.variable_arrays("replicated", replicated_variables(model))
    for name in statistics[0]:
        arrays[name] = np.stack([of_rank[name] for of_rank in statistics])
    values = progress.as_dict()
    values["energy"] = values["energy"] + energy
    values["layout"] = _layout(world, pipeline)
    step = float(model.optimizer.iterations)
    values["schedule"] = {"step": step, "multiple": float(compiled.schedule.multiple(step))}
    values["saved_unix_s"] = time.time()
    world.on_first(lambda: checkpoint.write_checkpoint(folder.checkpoints, values, arrays))
    return values["saved_unix_s"]


def replicated_variables(model):
    """Returns the variables that are the same on all ranks: all except batch-norm statistics."""
    return model.trainable_variables + model.optimizer.variables


def restore_variables(model, world, arrays):
    """Assigns a checkpoint's arrays to a model and its optimizer.

    Rank 0 alone restores the replicated variables; they are to be broadcast afterwards. A
    checkpoint has batch-norm statistics for each rank, since those of an earlier version differ
    between ranks. Each rank restores its own, or the mean over all ranks if the number of ranks
    has changed. The next validation estimates them from scratch.

    Args:
      model: the compiled Keras model.
      world: the World; all ranks call it together.
      arrays: as in Saved.

    Raises:
      InputError: the checkpoint is of a model of other sizes.
    """
    world.on_first(
        lambda: checkpoint.assign_variables("replicated", replicated_variables(model), arrays)
    )
    mine = {
        name: by_rank[world.rank]
        if len(by_rank) == world.size
        else by_rank.mean(axis=0, dtype=by_rank.dtype)
        for name, by_rank in arrays.items()
        if name.startswith(_STATISTICS)
    }
    checkpoint.assign_variables("statistics", model.non_trainable_variables, mine)


def _layout(world, pipeline):
    """Returns what the numbers of steps in a checkpoint refer to."""
    return {
        "world_size": world.size,
        "windows": pipeline.windows,
        "list_of_windows": pipeline.fingerprint(),
    }


def _check_layout(stored, mine):
    if stored["windows"] != mine["windows"]:
        raise InputError(
            "`--resume` must train on the same windows as the original run, "
            f"{stored['windows']}. Received: {mine['windows']}; check that --data is the same data "
            "set and complete."
        )
    if stored["list_of_windows"] != mine["list_of_windows"]:
        raise InputError(
            "`--resume` must train on the same windows as the original run, whose list has the "
            f"digest {stored['list_of_windows']}. Received: {mine['list_of_windows']}; check that "
            "--data is the same data set and complete."
        )


def _change_world(progress, pipeline, previous_size, step, multiple):
    """Changes a Progress to continue from where another number of ranks stopped.

    The position becomes a number of windows, because steps of other ranks have other windows.

    Args:
      progress: the Progress, changed in place.
      pipeline: the WindowPipeline of the training windows.
      previous_size: the number of ranks that wrote the checkpoint.
      step: the number of steps that their optimizer made.
      multiple: of the learning rate of one rank, reached so far.
    """
    if progress.step:
        progress.seen.append([previous_size, progress.step])
        progress.step = 0
    left = pipeline.windows_left(progress.seen)
    progress.origin = [step, progress.epoch + 1 - left / pipeline.windows, multiple]


def _change_line(progress, pipeline, previous_size, size, batch_per_replica):
    return (
        f"the run was on {previous_size} process{'es' if previous_size > 1 else ''} and continues "
        f"with {size}: {pipeline.windows_left(progress.seen)} windows of epoch "
        f"{progress.epoch + 1} are left, the global batch size is {size * batch_per_replica}"
    )
