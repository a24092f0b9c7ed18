"""Checkpoints: everything needed to resume a run, in one file that is written atomically.

A checkpoint is a NumPy .npz archive. It holds arrays by name, one JSON text and a digest of both.
It holds no pickles, so loading one runs no code. The CRC of each member is not enough: the headers
of the archive and of the arrays decide what is read, and no CRC covers them.
"""

import hashlib
import json

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.files import written_whole

KEPT = 2  # if the newest is corrupted, the previous one is used


def write_checkpoint(folder, progress, arrays):
    """Writes the state of a run, then removes all checkpoints except the newest KEPT.

    Args:
      folder: Path of the checkpoint folder.
      progress: JSON-able dict with at least `epoch` and `step`, the position to resume from.
      arrays: dict of name to NumPy array.
    """
    name = f"state-{progress['epoch']:05d}-{progress['step']:08d}.npz"
    arrays = {"progress": np.array(json.dumps(progress)), **arrays}
    with written_whole(folder / name) as beside:
        np.savez(beside, digest=np.array(_digest(arrays)), **arrays)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def read_checkpoint(folder):
    """Reads the newest checkpoint that is not corrupted.

    Returns:
      (progress, arrays, corrupted): as given to write_checkpoint, and the names of newer files
      that were skipped because they are corrupted.

    Raises:
      InputError: there is no checkpoint, or all are corrupted.
    """
    corrupted = []
    for file in _newest_first(folder):
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if str(arrays.pop("digest")) != _digest(arrays):
                raise ValueError("the digest does not match")
            progress = json.loads(str(arrays.pop("progress")))
        except Exception:  # a corrupted archive raises nearly any exception
            corrupted.append(file.name)
            continue
        return progress, arrays, corrupted
    state = f"only corrupted ones: {', '.join(corrupted)}" if corrupted else "none"
    raise InputError(
        f"`--resume` must have a checkpoint that is not corrupted. Received: {folder} with {state};"
        " start the run again under another --run-dir."
    )


def _digest(arrays):
    """Returns the SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.data)
    return digest.hexdigest()


def any_in(folder):
    """Returns True if a folder holds a checkpoint, corrupted or not."""
    return bool(_newest_first(folder))


def _newest_first(folder):
    return sorted(folder.glob("state-*.npz"), reverse=True)


def variable_arrays(prefix, variables):
    """Returns {`<prefix>/<index>`: array} of Keras variables, for write_checkpoint."""
    import keras

    return {
        f"{prefix}/{index}": keras.ops.convert_to_tensor(each).numpy()
        for index, each in enumerate(variables)
    }


def assign_variables(prefix, variables, arrays):
    """Assigns to Keras variables the values that variable_arrays returned for them.

    Args:
      prefix: as given to variable_arrays.
      variables: the Keras variables.
      arrays: dict of name to NumPy array.

    Raises:
      InputError: the checkpoint is of variables with other shapes.
    """
    stored = [arrays.get(f"{prefix}/{index}") for index in range(len(variables))]
    for variable, value in zip(variables, stored, strict=True):
        if value is None or value.shape != tuple(variable.shape):
            received = "none" if value is None else f"shape {value.shape}"
            raise InputError(
                f"`--resume` must have a checkpoint of the same model. Received: {received} for "
                f"{variable.path}, which has shape {tuple(variable.shape)}."
            )
        variable.assign(value)
