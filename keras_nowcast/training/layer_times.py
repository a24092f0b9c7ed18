"""Times each layer of a model alone, and measures the roofline limits of the machine.

A layer is timed as in a training step: forward and backward, in the step's precision and batch, on
its device, with its threads. It is repeated inside one graph, since to start a graph from Python
takes as long as a small layer. The clock is read when a number is available that depends on the
last results, so that a GPU has completed them too.

Two things differ from a step. The operands of a repeated layer can still be in the caches, and
nothing else runs at the same time.
"""

import statistics
import time
from dataclasses import dataclass

from keras_nowcast.vil import MISSING

LAYER_S = 0.1  # for all repetitions of a layer
MIN_REPETITIONS = 3  # also of a layer that takes longer than LAYER_S
CALL_S = 0.01  # minimum of one repetition, which repeats the layer until starting is negligible
MATMUL_SIDES = (512, 1024, 2048, 4096, 8192)
MATMUL_S = 0.05  # a product that takes this long is large enough
STREAM_BYTES = 2**28  # size of an array; two exceed the caches by far
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Part:
    """Layers that are timed together.

    A Part is a single layer, or a normalization with the activation that TensorFlow fuses to it.

    Attributes:
      name: name of the first layer.
      kind: kind of its layers, as in model/cost.py; or optimizer, which updates all weights.
      layers: names of its layers in the model.
      passes_gradient: True if the gradient with respect to its input is needed.
      flops: counted FLOPs of a training step of the full batch, forward and backward.
      bytes: counted bytes that such a step moves.
    """

    name: str
    kind: str
    layers: tuple
    passes_gradient: bool
    flops: float
    bytes: float


def parts_of(cost, policy, batch_per_replica):
    """Returns the Parts of a step, in order; they add up to all its counted FLOPs and bytes.

    Args:
      cost: the Cost of the model.
      policy: the precision.
      batch_per_replica: windows in a batch of one rank.
    """
    groups = []
    for layer in cost.layers:
        if layer.kind == "activation":
            groups[-1].append(layer)
        else:
            groups.append([layer])
    parts = [
        Part(
            name=group[0].name,
            kind=" + ".join(layer.kind for layer in group),
            layers=tuple(layer.name for layer in group),
            passes_gradient=group[0].passes_gradient,
            flops=batch_per_replica * sum(layer.training_flops for layer in group),
            bytes=batch_per_replica
            * sum(layer.training_bytes_moved(policy, batch_per_replica) for layer in group),
        )
        for group in groups
    ]
    flops, moved = cost.optimizer_flops(policy), cost.optimizer_bytes_moved
    return [*parts, Part("optimizer", "optimizer", (), False, flops, moved)]


def layer_row(part, model, policy, batch_per_replica):
    """Times a Part of a model in this process.

    Args:
      part: the Part.
      model: the Keras model, which is not changed.
      policy: the precision in which it was built.
      batch_per_replica: windows in a batch of one rank.

    Returns:
      A row of layers.csv, a dict.
    """
    if part.kind == "optimizer":
        step = _optimizer_step(model, policy)
    elif part.kind == "loss":
        step = _loss_step(model.output, batch_per_replica)
    else:
        step = _layers_step(part, model, batch_per_replica)
    seconds = seconds_of(step)
    median_s = statistics.median(seconds)
    return {
        "name": part.name,
        "kind": part.kind,
        "flops": part.flops,
        "bytes": part.bytes,
        "intensity": part.flops / part.bytes,
        "seconds_median": median_s,
        "seconds_low": min(seconds),
        "seconds_high": max(seconds),
        "repetitions": len(seconds),
        "flops_per_second": part.flops / median_s,
    }


def measure_roofs(policy):
    """Measures the roofline limits of this process: the `roofs` part of record.json.

    Args:
      policy: the precision.

    Returns:
      A dict {compute_flops_per_second, memory_bytes_per_second, method}. The first is a dict
      {dtype: FLOP/s} for float32 and the dtype in which the policy computes; `method` is text.
    """
    import keras

    dtypes = {keras.DTypePolicy(policy).compute_dtype, "float32"}
    return {
        "compute_flops_per_second": {dtype: compute_roof(dtype) for dtype in sorted(dtypes)},
        "memory_bytes_per_second": memory_roof(),
        "method": (
            "the fastest of several repetitions each: products of square matrices of the fastest "
            f"size; a += b in float32, {STREAM_BYTES // 2**20} MiB each, two read and one written"
        ),
    }


def summary_line(rows, roofs):
    """Returns the console line about the rows of layers.csv and the `roofs` of the record."""
    step_s = sum(row["seconds_median"] for row in rows)
    compute = ", ".join(
        f"{dtype} {rate / 1e9:.3g}" for dtype, rate in roofs["compute_flops_per_second"].items()
    )
    return (
        f"timed the layers in {roofs['measuring_seconds']:.0f} s, which no training time includes: "
        f"{step_s:.3g} s per step as the sum of all layers; roofline limits: {compute} GFLOP/s, "
        f"{roofs['memory_bytes_per_second'] / 1e9:.3g} GB/s"
    )


def compute_roof(dtype):
    """Returns the FLOP/s of the fastest of several products of square matrices of growing size.

    For float32, TensorFlow chooses the format as it does in the layers: TF32 with
    --tf32 only.
    """
    import tensorflow as tf

    best = 0.0
    for side in MATMUL_SIDES:
        a = tf.cast(tf.random.stateless_normal((side, side), (0, 0)), dtype)
        fastest_s = min(seconds_of(lambda a=a: [tf.matmul(a, a)]))
        best = max(best, 2 * side**3 / fastest_s)
        if fastest_s >= MATMUL_S:
            break
    return best


def memory_roof():
    """Returns the bytes moved per second by the fastest of several additions to a large array."""
    import tensorflow as tf

    # In place, because the system would create a new array for the sum page by page.
    a = tf.Variable(tf.ones(STREAM_BYTES // FLOAT32_BYTES))
    b = tf.ones(STREAM_BYTES // FLOAT32_BYTES)

    def add():
        a.assign_add(b)
        return [a]

    return 3 * STREAM_BYTES / min(seconds_of(add))


def seconds_of(step):
    """Times a computation.

    Args:
      step: function without arguments that TensorFlow traces; returns its results, a list of
        tensors.

    Returns:
      Seconds of each repetition, a list of at least MIN_REPETITIONS numbers. Each is the mean over
      the calls that fill CALL_S.
    """
    import tensorflow as tf

    @tf.function(autograph=False)  # there is no Python control flow to convert, which takes time
    def repeat(times):
        def once(done, _):
            # A number that depends on every result, so that none is skipped or still in progress.
            firsts = [tf.cast(tf.reshape(each, [-1])[0], tf.float32) for each in step()]
            return done + 1, tf.add_n(firsts)

        return tf.while_loop(lambda done, _: done < times, once, (0, 0.0), parallel_iterations=1)[1]

    def clock(times):
        start = time.perf_counter()
        repeat(tf.constant(times)).numpy()
        return time.perf_counter() - start

    clock(1)  # traces it
    times = 1
    while clock(times) < CALL_S:
        times *= 2
    until = time.perf_counter() + LAYER_S
    seconds = []
    while len(seconds) < MIN_REPETITIONS or time.perf_counter() < until:
        seconds.append(clock(times) / times)
    return seconds


def _layers_step(part, model, batch):
    """Returns a function that does the step of layers in sequence, on made-up input."""
    import tensorflow as tf

    originals = [model.get_layer(name) for name in part.layers]
    # Copies with separate weights: a normalization updates its averages in every pass.
    layers = [type(layer).from_config(layer.get_config()) for layer in originals]

    def forward(x):
        for layer in layers:
            x = layer(x, training=True)
        return x

    x = tf.nest.map_structure(lambda each: _random(each, batch), originals[0].input)
    by_output = _random(forward(x), batch)  # this call also creates the weights
    weights = [weight for layer in layers for weight in layer.trainable_weights]

    def step():
        inputs = [tf.identity(each) for each in tf.nest.flatten(x)]
        with tf.GradientTape() as tape:
            tape.watch([each for each in inputs if each.dtype.is_floating])
            outputs = forward(inputs if len(inputs) > 1 else inputs[0])
        sources = weights + (inputs if part.passes_gradient else [])
        gradients = tape.gradient(outputs, sources, output_gradients=by_output)
        if part.kind == "concatenation":
            # The encoder's output also feeds the next level, so its two gradients are added.
            gradients[1] += tf.identity(x[1])
        return [outputs, *gradients]

    return step


def _loss_step(output, batch):
    import tensorflow as tf

    from keras_nowcast.model.loss import MaskedMeanSquaredError

    loss = MaskedMeanSquaredError()
    vil_norm = _random(output, batch)
    vil = tf.cast(tf.clip_by_value(100 * vil_norm, 0, MISSING), tf.uint8)

    def step():
        forecast = tf.identity(vil_norm)
        with tf.GradientTape() as tape:
            tape.watch(forecast)
            value = loss(vil, forecast)
        return [value, tape.gradient(value, forecast)]

    return step


def _optimizer_step(model, policy):
    """Returns a function: the step of a separate optimizer on weights like the model's."""
    import keras
    import tensorflow as tf

    from keras_nowcast.training.adam import build_optimizer

    optimizer = build_optimizer(1e-3, policy)
    gradients = [
        tf.random.stateless_normal(each.shape, (0, 0)) for each in model.trainable_variables
    ]
    weights = [keras.Variable(each, dtype="float32") for each in gradients]
    optimizer.build(weights)

    def step():
        optimizer.apply([tf.identity(each) for each in gradients], weights)
        return [each.value for each in weights]

    return step


def _random(like, batch):
    """Returns random numbers in the shape and dtype of a layer's input or output, (batch, ...)."""
    import tensorflow as tf

    shape = (batch, *like.shape[1:])
    # Stateless, so that the random numbers of the run do not change.
    if like.dtype == "uint8":
        codes = tf.random.stateless_uniform(shape, (0, 0), 0, MISSING, tf.int32)
        return tf.cast(codes, tf.uint8)
    return tf.cast(tf.random.stateless_normal(shape, (0, 0)), like.dtype)
