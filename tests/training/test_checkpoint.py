"""Checkpoints are complete and checked, and the last two are kept."""

import numpy as np
import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.training import checkpoint


def write(folder, epoch, step=0):
    progress = {"epoch": epoch, "step": step, "rows": [{"loss": 0.1 + epoch}]}
    arrays = {"replicated/0": np.full(1000, epoch, "float32"), "statistics/0": np.eye(2)}
    checkpoint.write_checkpoint(folder, progress, arrays)
    return progress, arrays


def test_read_as_written(tmp_path):
    progress, arrays = write(tmp_path, 3, 17)
    read, found, damaged = checkpoint.read_checkpoint(tmp_path)
    assert read == progress and damaged == []
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_last_two_are_kept(tmp_path):
    for epoch, step in ((9, 5), (10, 0), (10, 2)):
        write(tmp_path, epoch, step)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["state-00010-00000000.npz", "state-00010-00000002.npz"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    write(tmp_path, 1)
    write(tmp_path, 2)
    newest = tmp_path / "state-00002-00000000.npz"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
    newest.write_bytes(data[: {"truncate": len(data) // 2, "flip": len(data), "empty": 0}[damage]])
    progress, _, damaged = checkpoint.read_checkpoint(tmp_path)
    assert progress["epoch"] == 1
    assert damaged == [newest.name]


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """Flips every thirteenth bit, so one in each byte of the headers: no wrong value is read."""
    write(tmp_path, 1)
    progress, arrays = write(tmp_path, 2)
    newest = tmp_path / "state-00002-00000000.npz"
    data = newest.read_bytes()
    passed_over = 0
    for bit in [*range(0, 8 * len(data), 13)]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(flipped)
        read, found, damaged = checkpoint.read_checkpoint(tmp_path)
        passed_over += bool(damaged)
        if not damaged:  # for example a date or padding
            assert read == progress and found.keys() == arrays.keys()
            for name, value in arrays.items():
                np.testing.assert_array_equal(found[name], value)
    assert passed_over > len(data) // 2


def test_none_that_is_whole(tmp_path):
    with pytest.raises(InputError, match="`--resume` must have a checkpoint .* with none"):
        checkpoint.read_checkpoint(tmp_path)
    (tmp_path / "state-00002-00000000.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="only corrupted ones: state-00002"):
        checkpoint.read_checkpoint(tmp_path)


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "state-00001-00000000.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="only corrupted"):
        checkpoint.read_checkpoint(tmp_path)


def test_variables_of_another_network_are_refused():
    import keras

    variable = keras.Variable(np.zeros((2, 3)), name="kernel")
    arrays = checkpoint.variable_arrays("replicated", [variable])
    arrays["replicated/0"] = np.ones((2, 3))
    checkpoint.assign_variables("replicated", [variable], arrays)
    np.testing.assert_array_equal(variable.numpy(), 1)
    for wrong in ({"replicated/0": np.ones((3, 2))}, {}):
        with pytest.raises(InputError, match="same model"):
            checkpoint.assign_variables("replicated", [variable], wrong)
