"""How much of a training step is spent outside its graph, on the host's work and on waiting?

A small UNet trains on packed data as train.py trains it, with its reader, its callbacks and its
files, but without measuring energy. Each step's graph is timed, from when it is given its batch
until it ends, and so is each block of steps. The rest of a block is the host's part, in percent.
`alone` is the time of the same number of steps on one batch in memory, before and after each block:
the difference shows how reading slows the graph. The first epoch is left out. The standard error of
a median is from a bootstrap over the blocks.

    python benchmarks/host_time.py
    python benchmarks/host_time.py --depth 4 --filters 16 --grid 128 --events 100
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from flags import add_model_flags, build_parser
from packed import pack
from result_files import write_results
from training_step import run_config

from keras_nowcast.data import synthetic


def timer_of(run, block):
    """Returns a Keras callback that times blocks of steps; its `rows` have seconds of each."""
    import keras
    import tensorflow as tf

    class Timer(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.rows = []
            self._batch = [tf.constant(part) for part in next(run.training.batches())]
            specs = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in self._batch]
            self._graph = tf.function(run.compiled.steps.train, specs, autograph=False)
            self._time_alone()  # which traces it
            self._in_step_s = 0.0
            run.model.train_function = self._timed(run.model.train_function)

        def on_epoch_begin(self, epoch, logs=None):
            self._before = None

        def on_train_batch_end(self, batch, logs=None):
            if batch % block:
                return
            whole = time.perf_counter() - self._since if self._before else None
            graph = self._in_step_s - run.compiled.steps.waited_s
            alone = self._time_alone()
            if self._before:
                part = graph - self._graph_before
                self.rows.append((whole, part, (self._before + alone) / 2))
            self._before, self._graph_before = alone, graph
            self._since = time.perf_counter()

        def _timed(self, step):
            def timed(iterator):
                since = time.perf_counter()
                result = step(iterator)
                self._in_step_s += time.perf_counter() - since
                return result

            return timed

        def _time_alone(self):
            since = time.perf_counter()
            for _ in range(block):
                self._graph(*self._batch)[0].numpy()
            return time.perf_counter() - since

    return Timer()


def measure(args, folder):
    """Trains, and returns (whole, graph, alone) seconds of each block after the first epoch."""
    from keras_nowcast.training import user_settings

    user_settings.load_keras()
    from keras_nowcast.training.run import Run
    from keras_nowcast.training.trainer import train

    hooks, timers = Run._hooks, []

    def with_timer(run):
        timers.append(timer_of(run, args.block))
        return [*hooks(run), timers[0]]

    Run._hooks = with_timer  # the trainer as it is, and one more callback
    root = synthetic.write_synthetic(folder / "published", args.events, size=args.grid)
    pack(root, folder / "packed", args.grid)
    config = dataclasses.replace(
        run_config(args, args.precision),
        data=str(folder / "packed"),
        run_dir=str(folder / "run"),
        power_source="none",
        warmup_epochs=0.0,
        epochs=args.epochs + 1,
        xla=args.xla,
    )
    train(config, time.monotonic())
    rows = timers[0].rows
    return rows[len(rows) // config.epochs :]


def standard_error(values):
    """Returns that of the median, by a bootstrap."""
    rng = np.random.default_rng(0)
    return float(np.median(rng.choice(values, (2000, len(values))), axis=1).std())


def main():
    parser = build_parser(__doc__)
    add_model_flags(parser, depth=2, filters=4, grid=64, batch_per_replica=4)
    parser.add_argument("--precision", default="float32", help="a Keras policy")
    parser.add_argument("--xla", action="store_true", help="with the graph that XLA compiles")
    parser.add_argument("--events", type=int, default=400, help="events of the synthetic data set")
    parser.add_argument("--block", type=int, default=30, help="steps of a block")
    parser.add_argument("--epochs", type=int, default=8, help="epochs that are timed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    columns = {
        "step_ms": [1000 * whole / args.block for whole, _, _ in rows],
        "graph_ms": [1000 * graph / args.block for _, graph, _ in rows],
        "alone_ms": [1000 * alone / args.block for _, _, alone in rows],
        "host_percent": [100 * (1 - graph / whole) for whole, graph, _ in rows],
        "not_alone_percent": [100 * (1 - alone / whole) for whole, _, alone in rows],
    }
    table = [
        {
            "measured": name,
            "median": statistics.median(values),
            "standard_error": standard_error(values),
            "quartile_1": float(np.quantile(values, 0.25)),
            "quartile_3": float(np.quantile(values, 0.75)),
            "minimum": min(values),
            "maximum": max(values),
        }
        for name, values in columns.items()
    ]
    note = (
        f"depth {args.depth}, {args.filters} filters, grid {args.grid}, batch "
        f"{args.batch_per_replica}, {args.precision}{', XLA' if args.xla else ''}; packed data; "
        f"{len(rows)} blocks of {args.block} steps"
    )
    write_results("host_time", table, note, f"g{args.grid}{'_xla' if args.xla else ''}")


if __name__ == "__main__":
    main()
