"""The UNet of the SEVIR authors, of any depth and width.

Source: the public nowcasting UNet of the group of arXiv 2008.08062. Each encoder level consists of
two 3x3 convolutions and a 2x2 max pooling, with twice the filters of the level above. The decoder
mirrors the encoder, with transposed convolutions and skip connections.
"""

import keras
from keras import layers

from keras_nowcast.errors import InputError
from keras_nowcast.files import written_whole
from keras_nowcast.model.layers import FusedBatchNormalization, ScaleVIL
from keras_nowcast.model.sizes import check_sizes, default_center_filters, level_filters


def build_unet(
    grid,
    frames_in,
    frames_out,
    depth=4,
    filters=16,
    center_filters=None,
    name="unet",
):
    """Returns the UNet, not compiled, in the dtype policy that is set globally.

    Input: (b, grid, grid, frames_in) uint8 stored codes, the frames as channels. Output:
    (b, grid, grid, frames_out) float32 vil_norm, under every policy.

    Args:
      grid: pixels along each side.
      frames_in: number of input frames.
      frames_out: number of forecast frames.
      depth: encoder levels, 1 to 6.
      filters: filters of the first level.
      center_filters: filters of the center; None for `default_center_filters`.
      name: name of the model.

    Raises:
      InputError: a size is out of range, or the grid cannot be halved `depth` times.
    """
    check_sizes(grid, depth, filters, center_filters)
    if center_filters is None:
        center_filters = default_center_filters(depth, filters)

    vil = keras.Input((grid, grid, frames_in), dtype="uint8", name="vil")
    x = ScaleVIL(name="scale_vil")(vil)
    skips = []
    for level in range(1, depth + 1):
        x = _double_conv(x, level_filters(level, filters), f"encoder_{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"encoder_{level}_pool")(x)
    x = _double_conv(x, center_filters, "center")
    for level in range(depth, 0, -1):
        x = _upsample(x, skips.pop(), level_filters(level, filters), f"decoder_{level}")
        x = _double_conv(x, level_filters(level, filters), f"decoder_{level}")
    # The head stays in float32, since half precision has too few digits for the loss.
    vil_norm = layers.Conv2D(frames_out, 1, dtype="float32", name="head")(x)
    return keras.Model(vil, vil_norm, name=name)


def write_unet(model, path):
    """Writes the model in Keras' format, atomically, without its loss, metrics and optimizer.

    To load it, a process must have imported `keras_nowcast.model.layers`, and nothing else of this
    package.
    """
    uncompiled = keras.Model(model.inputs, model.outputs, name=model.name)
    with written_whole(path) as beside:
        uncompiled.save(beside)


def read_unet(path):
    """Returns the model that `write_unet` wrote, not compiled. No code in the file is run.

    Raises:
      InputError: the file is not in Keras' format, is corrupted, or holds code.
    """
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds for a file that it cannot load
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"`run` must hold a model that can be loaded. Received: {path} ({reason}); "
            "restore the file, or train again."
        ) from None


def freeze_normalization(model):
    """Freezes the averages, scales and offsets of batch normalization while the rest trains.

    Source: Keras' guide to transfer learning. Averages that are estimated again from a few events
    fit only these events, whereas the weights were learned under the previous averages.
    """
    for layer in model.layers:
        if isinstance(layer, FusedBatchNormalization):
            layer.trainable = False


def _conv(x, filters, prefix, number):
    x = layers.Conv2D(filters, 3, padding="same", name=f"{prefix}_conv_{number}")(x)
    x = FusedBatchNormalization(name=f"{prefix}_norm_{number}")(x)
    return layers.ReLU(name=f"{prefix}_relu_{number}")(x)


def _double_conv(x, filters, prefix):
    return _conv(_conv(x, filters, prefix, 1), filters, prefix, 2)


def _upsample(x, skip, filters, prefix):
    """Doubles the side of `x` and concatenates it with the encoder output of that level."""
    x = layers.Conv2DTranspose(filters, 2, strides=2, name=f"{prefix}_upsample")(x)
    x = layers.Concatenate(name=f"{prefix}_concatenate")([x, skip])
    x = FusedBatchNormalization(name=f"{prefix}_norm")(x)
    return layers.ReLU(name=f"{prefix}_relu")(x)
