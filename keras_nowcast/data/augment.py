"""Augmentation: windows that are rotated, mirrored, shifted, and weakened or strengthened.

A storm can move north as well as east and has no fixed place on the grid. Rain that one radar or
season shows as heavy can be moderate for another. All frames of a window are changed equally, as
uint8, inside TensorFlow.
"""

from keras_nowcast.vil import MISSING

SHIFT_SHARE = 8  # shifts are up to an eighth of the grid, so most of a window stays on it
# Codes are multiplied by a factor from this range. Choice: codes and not VIL, so that echoes keep
# their order and weak ones become no echo, as with a less sensitive radar.
STRENGTHS = (0.4, 1.1)


def augmented(dataset, seed, rank=0, first_step=0):
    """Changes each window of a dataset of batches at random.

    Args:
      dataset: tf.data.Dataset of (x, y), uint8 (b, grid, grid, 13) and (b, grid, grid, 12).
      seed, rank: together with the number of a step, they alone determine its changes.
      first_step: number of the first batch of the dataset, counted from the start of the run.

    Returns:
      A dataset of the same form. Pixels that a shift brings in from outside the grid are missing
      (255): no echo as input, masked in the loss.
    """
    import tensorflow as tf

    def change_batch(step, batch):
        x, y = batch
        key = tf.random.fold_in([seed, rank], step)
        keys = tf.random.split(key, tf.shape(x)[0])
        windows = tf.map_fn(
            lambda each: _changed(*each), (tf.concat([x, y], axis=-1), keys), tf.uint8
        )
        windows = tf.ensure_shape(windows, (None, *x.shape[1:3], x.shape[3] + y.shape[3]))
        return windows[..., : x.shape[3]], windows[..., x.shape[3] :]

    return dataset.enumerate(first_step).map(change_batch, num_parallel_calls=1).prefetch(1)


def _changed(window, key):
    """Returns one (grid, grid, time) window, possibly mirrored, rotated, scaled and shifted."""
    import tensorflow as tf

    keys = tf.random.split(key, 4)
    mirror = tf.random.stateless_uniform((), keys[0], maxval=2, dtype=tf.int32)
    turns = tf.random.stateless_uniform((), keys[1], maxval=4, dtype=tf.int32)
    window = tf.cond(mirror == 1, lambda: tf.reverse(window, [1]), lambda: window)
    window = tf.image.rot90(window, turns)
    window = _scaled(window, tf.random.stateless_uniform((), keys[3], *STRENGTHS))
    margin = window.shape[0] // SHIFT_SHARE
    beyond = tf.pad(window, [[margin, margin], [margin, margin], [0, 0]], constant_values=MISSING)
    return tf.image.stateless_random_crop(beyond, window.shape, keys[2])


def _scaled(window, factor):
    """Returns a window of codes multiplied by `factor`, rounded and limited to the highest code."""
    import tensorflow as tf

    highest = MISSING - 1
    scaled = tf.minimum(tf.round(tf.cast(window, tf.float32) * factor), float(highest))
    return tf.where(window == MISSING, window, tf.cast(scaled, tf.uint8))
