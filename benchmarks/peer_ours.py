"""Our training step, as train.py builds it, among the peers of benchmarks/peers.py.

    python peer_ours.py '{"depth": 4, ...}'

Answers each line on standard input with the seconds of one step and the rate of a matrix product.
"""

import json
import sys
import time
from types import SimpleNamespace

from training_step import random_batch, run_config

from keras_nowcast.training import build, distributed

MATMUL_SIDE = 2048


def main():
    settings = json.loads(sys.argv[1])
    world = distributed.start()
    distributed.load_tensorflow(world)
    import tensorflow as tf

    sizes = SimpleNamespace(batch_per_replica=settings["batch"], **settings)
    config = run_config(sizes, "float32")
    model = build.build_compiled(config, world).model
    x, y = random_batch(config)
    matrix = tf.random.normal((MATMUL_SIDE, MATMUL_SIDE))
    multiply = tf.function(tf.matmul)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    model.train_on_batch(x, y)
    parameters = sum(int(tf.size(each)) for each in model.trainable_variables)
    print(json.dumps({"version": tf.__version__, "parameters": parameters}), flush=True)
    for _ in sys.stdin:
        step = seconds(lambda: model.train_on_batch(x, y))  # its loss is a number
        product = seconds(lambda: multiply(matrix, matrix).numpy()[0, 0])
        rate = 2 * MATMUL_SIDE**3 / product / 1e9
        print(json.dumps({"seconds": step, "matmul_gflops": rate}), flush=True)


if __name__ == "__main__":
    main()
