"""Checkpoints: everything needed to go on, in one file that is whole or absent.

A checkpoint is a NumPy .npz archive: arrays by name and one JSON text, no pickles, so that loading
one runs nothing, and a digest of all that it holds. (The CRC of each member is not enough: bits of
an archive's and an array's headers decide what is read and are under no CRC.)
"""

import hashlib
import json

import numpy as np

from keras_nowcast.errors import InputError
from keras_nowcast.files import written_whole

KEPT = 2  # the newest may be damaged; the one before it is there then


def write_checkpoint(folder, progress, arrays):
    """Writes the state of a run, then removes all but the newest checkpoints.

    Args:
      folder: Path of the checkpoint folder.
      progress: JSON-able dict with at least `epoch` and `step`, the position to go on from.
      arrays: dict of name to NumPy array.
    """
    name = f"state-{progress['epoch']:05d}-{progress['step']:08d}.npz"
    arrays = {"progress": np.array(json.dumps(progress)), **arrays}
    with written_whole(folder / name) as beside:
        np.savez(beside, digest=np.array(_digest(arrays)), **arrays)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def read_checkpoint(folder):
    """Reads the newest checkpoint that is whole.

    Returns:
      (progress, arrays, skipped): as given to write_checkpoint, and the names of newer files that
      are damaged and were passed over.

    Raises:
      InputError: there is none, or none that is whole.
    """
    damaged = []
    for file in _newest_first(folder):
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if str(arrays.pop("digest")) != _digest(arrays):
                raise ValueError("not what was written")
            progress = json.loads(str(arrays.pop("progress")))
        except Exception:  # a damaged archive raises nearly anything
            damaged.append(file.name)
            continue
        return progress, arrays, damaged
    state = f"only damaged ones: {', '.join(damaged)}" if damaged else "none"
    raise InputError(
        f"`--resume` needs a checkpoint that is whole. Received: {folder} with {state}; start the "
        "run again under another --run-dir."
    )


def _digest(arrays):
    """Returns a SHA-256 of names, forms and contents."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.data)
    return digest.hexdigest()


def any_in(folder):
    """Returns whether a folder holds any checkpoint, whole or damaged."""
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
    """Gives Keras variables the values that variable_arrays took of them.

    Raises:
      InputError: the checkpoint holds other variables than these.
    """
    stored = [arrays.get(f"{prefix}/{index}") for index in range(len(variables))]
    for variable, value in zip(variables, stored, strict=True):
        if value is None or value.shape != tuple(variable.shape):
            received = "none" if value is None else f"shape {value.shape}"
            raise InputError(
                f"`--resume` needs a checkpoint of the same network. Received: {received} for "
                f"{variable.path}, which has shape {tuple(variable.shape)}."
            )
        variable.assign(value)
