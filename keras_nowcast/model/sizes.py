"""The width of the UNet at each level, and which sizes are possible. Without TensorFlow."""

from keras_nowcast.errors import InputError

MAX_DEPTH = 6


def level_filters(level, filters):
    """Returns the filters of encoder or decoder level 1, 2, ...; each level has twice as many."""
    return filters * 2 ** (level - 1)


def default_center_filters(depth, filters):
    """Returns the filters of the center.

    Source: at the authors' depth of 4, 32 times the filters of the first level, which skips one
    doubling. Choice: other depths skip one as well.
    """
    return filters * 2 ** (depth + 1)


def check_sizes(grid, depth, filters, center_filters=None):
    """Raises InputError unless a UNet of these sizes is possible."""
    if not 1 <= depth <= MAX_DEPTH:
        raise InputError(f"`--depth` must be 1 to {MAX_DEPTH}. Received: {depth}.")
    if filters < 1:
        raise InputError(f"`--filters` must be at least 1. Received: {filters}.")
    if center_filters is not None and center_filters < 1:
        raise InputError(f"`--center-filters` must be at least 1. Received: {center_filters}.")
    if grid < 1 or grid % 2**depth:
        raise InputError(
            f"`--grid` must be a multiple of {2**depth} at `--depth` {depth}, which halves it "
            f"{depth} times. Received: {grid}. Choose another grid or a smaller depth."
        )
