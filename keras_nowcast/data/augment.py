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
        keys = tf.random.split(tf.random.fold_in([seed, rank], step), tf.shape(x)[0])
        side, margin = x.shape[1], x.shape[1] // SHIFT_SHARE
        draws = (tf.int32,) * 4 + (tf.float32,)
        *places, factors = tf.map_fn(
            lambda key: _draw(key, margin), keys, fn_output_signature=draws
        )
        windows = _moved(tf.concat([x, y], axis=-1), side, margin, *places)
        windows = _scaled(windows, factors[:, tf.newaxis, tf.newaxis, tf.newaxis])
        return windows[..., : x.shape[3]], windows[..., x.shape[3] :]

    return dataset.enumerate(first_step).map(change_batch, num_parallel_calls=1).prefetch(1)


def _draw(key, margin):
    """Returns the changes of one window, from its key alone.

    Returns:
      (mirror, turns, down, across, factor): 1 to mirror left and right, quarter turns, where the
      window begins on the image with a margin, and the factor of its codes.
    """
    import tensorflow as tf

    keys = tf.random.split(key, 4)
    mirror = tf.random.stateless_uniform((), keys[0], maxval=2, dtype=tf.int32)
    turns = tf.random.stateless_uniform((), keys[1], maxval=4, dtype=tf.int32)
    places = tf.random.stateless_uniform((3,), keys[2], maxval=tf.int32.max, dtype=tf.int32)
    factor = tf.random.stateless_uniform((), keys[3], *STRENGTHS)
    return mirror, turns, *tf.unstack(places[:2] % (2 * margin + 1)), factor


def _moved(windows, side, margin, mirror, turns, down, across):
    """Returns (b, side, side, time) windows, each mirrored, turned and shifted, in one pass.

    For each pixel of the result, the place that it comes from is computed.
    """
    import tensorflow as tf

    line = tf.range(side)
    row = (line + down[:, tf.newaxis])[:, :, tf.newaxis] - margin
    column = (line + across[:, tf.newaxis])[:, tf.newaxis, :] - margin
    shape = tf.shape(row + column)
    row, column = tf.broadcast_to(row, shape), tf.broadcast_to(column, shape)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    last = side - 1
    turns, mirror = turns[:, tf.newaxis, tf.newaxis], mirror[:, tf.newaxis, tf.newaxis]
    is_odd, is_later = turns % 2 == 1, turns >= 2
    # Where a turned image has (row, column), the image before has:
    y = tf.where(is_odd, column, row)
    x = tf.where(is_odd, last - row, column)
    y, x = tf.where(is_later, last - y, y), tf.where(is_later, last - x, x)
    x = tf.where(mirror == 1, last - x, x)
    places = tf.where(inside, y * side + x, 0)
    frames = windows.shape[3]
    moved = tf.gather(tf.reshape(windows, (-1, side * side, frames)), places, batch_dims=1)
    return tf.where(inside[..., tf.newaxis], moved, tf.constant(MISSING, tf.uint8))


def _scaled(windows, factor):
    """Returns codes multiplied by `factor`, rounded and limited to the highest code."""
    import tensorflow as tf

    highest = MISSING - 1
    scaled = tf.minimum(tf.round(tf.cast(windows, tf.float32) * factor), float(highest))
    return tf.where(windows == MISSING, windows, tf.cast(scaled, tf.uint8))
