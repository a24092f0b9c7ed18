"""More windows from few: the same weather seen turned, mirrored, shifted and weaker or stronger.

A storm moves as well to the north as to the east, nothing ties it to a place on the grid, and what
is heavy rain to one radar, or in one season, is moderate to another. All frames of a window are
changed alike, as uint8, inside TensorFlow.
"""

from keras_nowcast.vil import MISSING

SHIFT_SHARE = 8  # shifts go up to an eighth of the grid, so that most of a window stays on it
# Codes are multiplied by a factor from this range. Choice: codes and not VIL, so that echoes keep
# their order and weak ones fade into no echo as they do for a less sensitive radar.
STRENGTHS = (0.4, 1.1)


def augmented(dataset, seed, rank=0, first_step=0):
    """Changes each window of a dataset of batches at random.

    Args:
      dataset: tf.data.Dataset of (x, y), uint8 (b, grid, grid, 13) and (b, grid, grid, 12).
      seed, rank: with the number of a step they decide the changes in it, whatever came before.
      first_step: number of the dataset's first batch, counted from the beginning of the run.

    Returns:
      A dataset of the same form. What a shift brings in from beyond the grid is missing (255): no
      echo as input, masked in the loss.
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
    """Returns one (grid, grid, time) window mirrored or not, turned, scaled and shifted."""
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
    """Returns a window of codes multiplied by `factor`, rounded, at most the highest code."""
    import tensorflow as tf

    highest = MISSING - 1
    scaled = tf.minimum(tf.round(tf.cast(window, tf.float32) * factor), float(highest))
    return tf.where(window == MISSING, window, tf.cast(scaled, tf.uint8))
