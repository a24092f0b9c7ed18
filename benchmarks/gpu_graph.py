"""What does a training step launch on a GPU, and what keeps its host waiting? No GPU is needed.

The step is the trainer's, as keras_nowcast/training/build.py makes it. TensorFlow's graph optimizer
(Grappler) optimizes it for a virtual cluster of one GPU, as it would on a machine that has one. The
CUDA build of TensorFlow also lists which operations have a kernel for a GPU. A few steps of a tiny
model on the CPU count how many values of the device the host reads in each of them.

Needs the CUDA build of TensorFlow, in a separate environment. It needs no GPU and no CUDA
libraries:

    python3 -m venv build/cuda
    build/cuda/bin/pip install -c install/constraints.txt tensorflow h5py deflate nvidia-ml-py tqdm
    PYTHONPATH=. build/cuda/bin/python benchmarks/gpu_graph.py        # about five minutes
"""

import json
import os
import sys
import tempfile
import threading
from pathlib import Path

from device_graph import CAPABILITIES, optimized, summary
from flags import add_model_flags, build_parser
from result_files import write_results
from training_step import run_config

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


def step_graph(config):
    """Returns the ConcreteFunction of one training step of a config, on one rank."""
    import keras
    import tensorflow as tf

    from keras_nowcast.training import build
    from keras_nowcast.training.distributed import World
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    keras.backend.clear_session()
    compiled = build.build_compiled(config, World())
    for layer in compiled.model.layers:  # as StatisticsEstimator sets it for the training steps
        if hasattr(layer, "memory"):
            layer.memory = 1.0

    def spec(frames):
        shape = (None, config.grid, config.grid, frames)
        return tf.TensorSpec(shape, tf.uint8)

    return tf.function(compiled.steps.train).get_concrete_function(
        spec(FRAMES_IN), spec(FRAMES_OUT)
    )


def blocking_reads(steps=6):
    """Returns how many values of the device the host waits for per step of a real, tiny run.

    The reports of the steps are read as on a GPU, by a thread, which the host does not wait for
    before it has started further steps.
    """
    import keras
    from tensorflow.python.framework import ops

    from keras_nowcast.config import RunConfig
    from keras_nowcast.data import synthetic
    from keras_nowcast.training import reports, trainer

    reads, at_step = [0], []
    original = ops._EagerTensorBase._numpy
    begin = keras.callbacks.CallbackList.on_train_batch_begin

    def counted(self):
        reads[0] += threading.current_thread() is threading.main_thread()
        return original(self)

    def begun(self, batch, logs=None):
        at_step.append(reads[0])
        return begin(self, batch, logs)

    lag = reports.lag_of_device
    reports.lag_of_device = lambda: reports.LAG
    ops._EagerTensorBase._numpy = counted
    keras.callbacks.CallbackList.on_train_batch_begin = begun
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "sevir"
            synthetic.write_synthetic(root, events=13, size=32, progress=False)
            config = RunConfig(
                data=str(root),
                run_dir=str(Path(folder) / "run"),
                depth=1,
                filters=2,
                epochs=1,
                batch_per_replica=24 // (steps + 2),
                precision="float32",
                power_source="none",
            )
            trainer.train(config, 0.0)
    finally:
        reports.lag_of_device = lag
        ops._EagerTensorBase._numpy = original
        keras.callbacks.CallbackList.on_train_batch_begin = begin
    # Not the first steps, which trace.
    between = [after - before for before, after in zip(at_step, at_step[1:], strict=False)]
    return max(between[1:])


def main():
    parser = build_parser(__doc__)
    add_model_flags(parser, depth=4, filters=32, grid=384, batch_per_replica=8)
    parser.add_argument("--name", help="suffix of the results files (default: none)")
    parser.add_argument("--print-json", action="store_true", help="print rows, write no results")
    parser.add_argument(
        "--capability", nargs="+", default=CAPABILITIES, help="compute capabilities to optimize for"
    )
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, help="Keras policies")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    import tensorflow as tf

    if not tf.test.is_built_with_cuda():
        sys.exit("the CUDA build of TensorFlow is needed, and no GPU; --help says how")
    rows = []
    for precision in arguments.precision:
        config = run_config(arguments, precision)
        function = step_graph(config)
        for capability in arguments.capability:
            graph = optimized(function, capability)
            rows.append({"precision": precision, "capability": capability, **summary(graph)})
    reads = blocking_reads()
    for row in rows:
        row["blocking_reads"] = reads
    if arguments.print_json:
        print(json.dumps(rows))
        return
    sizes = f"depth {arguments.depth}, {arguments.filters} filters, grid {arguments.grid}"
    write_results("gpu_graph", rows, f"{sizes}; one step on one rank", arguments.name)


if __name__ == "__main__":
    main()
