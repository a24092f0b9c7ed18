"""Windows are rotated, mirrored, shifted and scaled equally in all frames, from the seed alone."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_nowcast.data import augment
from keras_nowcast.data.augment import SHIFT_SHARE, STRENGTHS, augmented
from keras_nowcast.vil import MISSING

GRID = 16


def batches(count=6, size=3):
    """Returns windows whose frames are one image plus the frame's number."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (count, size, GRID, GRID, 1), dtype=np.uint8)
    vil = image + np.arange(25, dtype=np.uint8)
    return tf.data.Dataset.from_tensor_slices((vil[..., :13], vil[..., 13:])), vil


@pytest.fixture
def as_strong(monkeypatch):
    """Keeps the codes of moved windows unchanged."""
    monkeypatch.setattr(augment, "STRENGTHS", (1.0, 1.0))


def changed(seed=1, first_step=0, skip=0):
    dataset, _ = batches()
    return [
        np.concatenate(pair, axis=-1)
        for pair in augmented(dataset.skip(skip), seed, 0, first_step).as_numpy_iterator()
    ]


def possible(image):
    """Yields every image that mirroring, rotating and shifting can make of one image."""
    margin = GRID // SHIFT_SHARE
    for mirror, turns in itertools.product((False, True), range(4)):
        turned = np.rot90(image[:, ::-1] if mirror else image, turns)
        beyond = np.pad(turned, margin, constant_values=MISSING)
        for y, x in itertools.product(range(2 * margin + 1), repeat=2):
            yield beyond[y : y + GRID, x : x + GRID]


def test_each_window_is_a_mirrored_turned_and_shifted_one(as_strong):
    _, before = batches()
    kinds = set()
    for step, batch in enumerate(changed()):
        for number, window in enumerate(batch):
            images = list(possible(before[step, number, ..., 0]))
            kinds.add(
                next(i for i, each in enumerate(images) if np.array_equal(each, window[..., 0]))
            )
    assert len(kinds) > 12  # 18 windows: each is changed differently


def test_all_frames_are_changed_alike(as_strong):
    for batch in changed():
        valid = batch[..., 0] != MISSING
        np.testing.assert_array_equal((batch == MISSING).all(-1), ~valid)
        frames = batch[valid]
        np.testing.assert_array_equal(frames, frames[:, :1] + np.arange(25, dtype=np.uint8))


def test_the_seed_and_the_step_decide():
    first, again, other = changed(), changed(), changed(seed=2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first[4:], changed(first_step=4, skip=4))


def test_all_codes_of_a_window_are_scaled_by_one_factor_and_missing_ones_by_none():
    codes = np.array([[0, 100], [200, MISSING]], np.uint8)
    vil = np.tile(codes[None, None, :, :, None], (8, 2, GRID // 2, GRID // 2, 25))
    dataset = tf.data.Dataset.from_tensor_slices((vil[..., :13], vil[..., 13:]))
    factors = set()
    for x, y in augmented(dataset, seed=1).as_numpy_iterator():
        for window in np.concatenate([x, y], axis=-1):
            found = np.unique(window)
            none, weak, strong, missing = found
            assert (none, missing) == (0, MISSING)
            low, high = (weak - 0.5) / 100, (weak + 0.5) / 100
            assert min(round(200 * low), 254) <= strong <= min(round(200 * high), 254)
            factors.add(int(weak))
    assert 100 * STRENGTHS[0] <= min(factors) < max(factors) <= 100 * STRENGTHS[1]
    assert len(factors) > 8
