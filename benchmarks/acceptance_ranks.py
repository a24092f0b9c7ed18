"""One rank of the allreduce stage of acceptance.py: sums known values right after long products.

Usage: horovodrun -np 2 python acceptance_ranks.py OUT SIDE PRODUCTS ROUNDS
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keras_nowcast.files import write_json  # noqa: E402
from keras_nowcast.training import distributed  # noqa: E402

ELEMENTS = (1, 1000, 2**20)
DTYPES = ("float32", "float16")


def main():
    out, side, products, rounds = Path(sys.argv[1]), *map(int, sys.argv[2:])
    world = distributed.start()

    import tensorflow as tf

    # Each product of this matrix with itself equals it exactly, if `side` is a power of two.
    matrix = tf.fill((side, side), tf.constant(1 / side))

    @tf.function
    def total(elements, dtype):
        product = matrix
        for _ in range(products):
            product = tf.matmul(product, matrix)
        # Known on every rank, and ready only when the last product is: side * (1 / side) = 1.
        one = tf.reduce_sum(product[0])
        mine = tf.cast(tf.fill((elements,), one * (world.rank + 1.0)), dtype)
        return world.total(mine)

    wanted = sum(range(1, world.size + 1))
    began = time.monotonic()
    rows = []
    for dtype in DTYPES:
        for elements in ELEMENTS:
            sums = [total(elements, dtype) for _ in range(rounds)]
            wrong = sum(int(tf.math.count_nonzero(each != wanted)) for each in sums)
            rows.append({"dtype": dtype, "elements": elements, "wrong": wrong})
    every = world.gather(rows)
    gpus = tf.config.get_visible_devices("GPU")
    devices = world.gather(gpus[0].name.removeprefix("/physical_device:") if gpus else "the CPU")
    if world.is_first:
        for index, row in enumerate(rows):
            row["wrong"] = sum(each[index]["wrong"] for each in every)
        built = distributed.horovod_features()
        write_json(
            out,
            {
                "devices": devices,
                "built_with": [name for name, there in built.items() if there],
                "seconds": time.monotonic() - began,
                "sums": rows,
            },
        )


if __name__ == "__main__":
    main()
