"""The UNet in Keras 2, the last one that was part of TensorFlow: a peer of benchmarks/peers.py.

    python peer_keras2.py '{"depth": 4, ...}'

Imports nothing of keras_nowcast. Answers each line on standard input with the seconds of one step.
"""

import os

import peer_loop

os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import tensorflow as tf  # noqa: E402

MISSING = 255
layers = tf.keras.layers


def double_convolution(x, filters):
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


def build_unet(settings):
    grid, depth, filters = (settings[each] for each in ("grid", "depth", "filters"))
    mean, scale = settings["mean"], settings["scale"]
    widths = [filters * 2**level for level in range(depth)]
    vil = tf.keras.Input((grid, grid, settings["frames_in"]), dtype="uint8")
    codes = tf.cast(vil, "float32")
    x = (tf.where(codes == MISSING, 0.0, codes) - mean) / scale
    skips = []
    for width in widths:
        x = double_convolution(x, width)
        skips.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = double_convolution(x, settings["center_filters"])
    for width in reversed(widths):
        x = layers.Conv2DTranspose(width, 2, strides=2)(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = double_convolution(x, width)
    return tf.keras.Model(vil, layers.Conv2D(settings["frames_out"], 1)(x))


def build_step(settings):
    """Returns (a function that trains one step and returns its loss, number of parameters)."""
    model = build_unet(settings)
    optimizer = tf.keras.optimizers.Adam(settings["learning_rate"])
    shape = (settings["batch"], settings["grid"], settings["grid"])
    x, y = (
        tf.cast(tf.random.uniform((*shape, settings[each]), 0, MISSING, tf.int32), tf.uint8)
        for each in ("frames_in", "frames_out")
    )

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            valid = tf.not_equal(y, MISSING)
            truth = (tf.cast(y, tf.float32) - settings["mean"]) / settings["scale"]
            error = tf.where(valid, model(x, training=True) - truth, 0.0)
            count = tf.cast(tf.math.count_nonzero(valid), tf.float32)
            loss = tf.reduce_sum(tf.square(error)) / count
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: float(train(x, y)), sum(int(tf.size(v)) for v in model.trainable_variables)


def main():
    step, parameters = build_step(peer_loop.settings())
    step()
    peer_loop.take_steps(tf.__version__, parameters, lambda: peer_loop.timed(step))


if __name__ == "__main__":
    main()
