"""Our training step, as train.py builds it, among the peers of benchmarks/peers.py.

    python peer_ours.py '{"depth": 4, ...}'

Answers each line on standard input with the seconds of one step and the rate of a matrix product.
"""

from types import SimpleNamespace

import peer_loop
from training_step import random_batch, run_config

from keras_nowcast.training import build, distributed

MATMUL_SIDE = 2048


def main():
    settings = peer_loop.settings()
    world = distributed.start()
    distributed.load_tensorflow(world)
    import tensorflow as tf

    sizes = SimpleNamespace(batch_per_replica=settings["batch"], **settings)
    config = run_config(sizes, "float32")
    model = build.build_compiled(config, world).model
    x, y = random_batch(config)
    matrix = tf.random.normal((MATMUL_SIDE, MATMUL_SIDE))
    multiply = tf.function(tf.matmul)

    def answer():
        step = peer_loop.timed(lambda: model.train_on_batch(x, y))  # its loss is a number
        product = peer_loop.timed(lambda: multiply(matrix, matrix).numpy()[0, 0])
        return {"seconds": step, "matmul_gflops": 2 * MATMUL_SIDE**3 / product / 1e9}

    model.train_on_batch(x, y)
    parameters = sum(int(tf.size(each)) for each in model.trainable_variables)
    peer_loop.take_steps(tf.__version__, parameters, answer)


if __name__ == "__main__":
    main()
