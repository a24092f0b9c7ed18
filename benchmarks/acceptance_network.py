"""The stages of the acceptance run that train the network: its cost, and that of the monitor."""

import itertools
import time
from dataclasses import dataclass

import numpy as np
from acceptance_backend import load_backend, need_gpu
from acceptance_findings import CannotTry, signed
from acceptance_sensors import open_source

from keras_nowcast.energy import Monitor
from keras_nowcast.energy.merge import merge_energy
from keras_nowcast.machine import cpu_has_bfloat16
from keras_nowcast.model.cost import count_unet
from keras_nowcast.model.precision import set_precision
from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, MISSING

CELL_S, OVERHEAD_S, BLOCK_S = 8.0, 25.0, 0.1  # of a run of ten minutes
LEAST_STEPS = 10  # that are measured, however long they take
WARM_STEPS = 3  # the first compiles; cuDNN tries its algorithms in the next
LOOK_S = 0.3  # between two waits for the device, so that no long queue builds up
PRECISIONS = ("float32", "tf32", "mixed_float16", "mixed_bfloat16")
TF32_CAPABILITY = (8, 0)  # an older GPU computes in float32 and reports nothing
HIGHEST_COST_PERCENT = 1.0
BATCHES = 8  # that are in memory


@dataclass(frozen=True)
class Cell:
    """One training: sizes of the UNet and precision, in which tf32 is float32 with TensorFloat-32.

    Attributes:
      depth, filters, precision: as the flags of the same names.
    """

    depth: int
    filters: int
    precision: str

    @property
    def policy(self):
        """The Keras policy."""
        return "float32" if self.precision == "tf32" else self.precision

    def __str__(self):
        return f"depth {self.depth}, {self.filters} filters, {self.precision}"


def measure_network(options, findings):
    """Trains the UNet in each cell: samples/s, joules per sample, peak memory, loss scale."""
    backend = load_backend(options.backend)
    need_gpu(backend, options)
    source = _source_or_none(findings)
    sizes = itertools.product(options.depth, options.filters)
    cells = [Cell(*size, precision) for size in sizes for precision in options.precision]
    rows, longest_s = [], 0.0
    for cell in cells:
        reason = _impossible(cell, backend, options)
        if reason is None and time.monotonic() + longest_s > options.until:
            reason = "no time was left"
        if reason is not None:
            findings.not_tried(str(cell), reason)
            continue
        began = time.monotonic()
        try:
            row = train_cell(cell, backend, source, options)
        except Exception as error:  # the others are still measured: it may have run out of memory
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            findings.check(str(cell), False, text[:200], "it trains")
            continue
        longest_s = max(longest_s, time.monotonic() - began)
        rows.append(row)
        findings.measured(f"training on {backend.name}", rows)
        learned = np.isfinite(row["loss"]) and row["loss"] < row["first_loss"]
        loss = f"{row['first_loss']:.4g} -> {row['loss']:.4g}"
        findings.check(str(cell), bool(learned), loss, "a finite loss that falls")
    _compare_first_losses(rows, findings)


def _source_or_none(findings):
    """Returns the Source of energy, or None with a line why there is none."""
    try:
        return open_source()
    except CannotTry as error:
        findings.not_tried("joules per sample", error)
        return None


def _impossible(cell, backend, options):
    if options.grid % 2**cell.depth:
        return f"grid {options.grid} cannot be halved {cell.depth} times"
    if cell.precision == "tf32" and not backend.gpus:
        return "TensorFloat-32 needs a GPU"
    if cell.precision == "tf32" and backend.capability < TF32_CAPABILITY:
        major, minor = backend.capability
        return f"TensorFloat-32 needs compute capability 8.0; this GPU has {major}.{minor}"
    if cell.precision == "mixed_bfloat16" and not backend.gpus and not cpu_has_bfloat16():
        return "this CPU has no bfloat16 instructions"
    return None


def train_cell(cell, backend, source, options):
    """Trains one cell with a plain `model.fit` and returns its row."""
    import keras

    from keras_nowcast.model.loss import MaskedMeanSquaredError
    from keras_nowcast.model.unet import build_unet

    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    set_precision(cell.policy)
    backend.set_tf32(cell.precision == "tf32")
    backend.reset_peak()
    batch, grid = options.batch_per_replica, options.grid
    model = build_unet(grid, FRAMES_IN, FRAMES_OUT, cell.depth, cell.filters)
    model.compile(
        build_optimizer(cell.policy, backend),
        MaskedMeanSquaredError(),
        jit_compile=backend.compiles,
    )
    monitor = Monitor(source if source is not None else "none", idle_s=0).start()
    timed = _timed(monitor, CELL_S * options.scale)
    frames = random_frames(BATCHES * batch, grid)
    model.fit(*frames, batch_size=batch, epochs=10**6, shuffle=False, verbose=0, callbacks=[timed])
    samples = timed.steps * batch
    energy = merge_energy([monitor.stop()], samples=samples, window="cell")
    cost = count_unet(grid, FRAMES_IN, FRAMES_OUT, cell.depth, cell.filters)
    rate = samples / timed.seconds
    rates = [steps * batch / seconds for steps, seconds in timed.spans]
    scaled = hasattr(model.optimizer, "dynamic_scale")
    row = {
        "depth": cell.depth,
        "filters": cell.filters,
        "precision": cell.precision,
        "grid": grid,
        "batch": batch,
        "steps": timed.steps,
        "samples_per_s": rate,
        "minimum": min(rates),
        "maximum": max(rates),
        "spans": len(rates),
        "tflop_per_s": rate * cost.training_flops(cell.policy, batch) / 1e12,
        "joules_per_sample": energy["joules_per_sample"],
        "joules_uncertainty_percent": energy["uncertainty_percent"],
        "mean_w": energy["mean_watts"],
        "coverage": energy["coverage"],
        "peak_mib": None,
        "loss_scale": float(model.optimizer.dynamic_scale) if scaled else None,
        "first_loss": timed.first_loss,
        "loss": timed.loss,
    }
    peak = backend.peak_bytes()
    if peak is not None:
        row["peak_mib"] = peak / 2**20
    set_precision("float32")
    return row


def build_optimizer(policy, backend):
    """Returns the trainer's Adam on TensorFlow, and on other backends Keras' own."""
    if backend.name == "tensorflow":
        from keras_nowcast.training import adam

        return adam.build_optimizer(1e-3, policy)
    import keras

    optimizer = keras.optimizers.Adam(1e-3)
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def random_frames(windows, grid):
    """Returns (x, y): uint8 valid codes, smooth enough to be learned."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, MISSING, (windows, grid, grid, 1), "uint8")
    frames = np.repeat(still, FRAMES_IN + FRAMES_OUT, axis=-1)
    return frames[..., :FRAMES_IN], frames[..., FRAMES_IN:]


def _timed(monitor, seconds):
    """Returns a callback that measures `seconds` of steps as the window "cell", and ends `fit`."""
    import keras

    class Timed(keras.callbacks.Callback):
        """Has `steps`, `seconds`, `first_loss` and `loss` when `fit` has ended.

        `spans` is the (steps, seconds) between each two waits for the device.
        """

        def __init__(self):
            super().__init__()
            self.done, self.first_loss, self.spans = 0, None, []

        def wait(self):
            smallest = min(self.model.trainable_weights, key=lambda each: len(each.shape))
            keras.ops.convert_to_numpy(smallest)

        def on_train_batch_end(self, batch, logs=None):
            self.done += 1
            if self.first_loss is None:
                self.first_loss = float(logs["loss"])
            if self.done < WARM_STEPS:
                return
            if self.done == WARM_STEPS:
                self.wait()
                self.began = self.looked = time.monotonic()
                self.counted = self.done
                monitor.begin("cell")
            elif time.monotonic() - self.looked >= min(LOOK_S, seconds / 2):
                self.wait()
                now = time.monotonic()
                self.spans.append((self.done - self.counted, now - self.looked))
                self.looked, self.counted = now, self.done
                enough = self.done >= WARM_STEPS + LEAST_STEPS
                if enough and self.looked - self.began >= seconds:
                    self.finish(logs)

        def finish(self, logs):
            self.seconds = time.monotonic() - self.began
            monitor.end("cell")
            self.steps = self.done - WARM_STEPS
            self.loss = float(logs["loss"])
            self.model.stop_training = True

    return Timed()


def _compare_first_losses(rows, findings):
    """Checks that each precision begins with the loss of float32 at the same size."""
    of_float32 = [row for row in rows if row["precision"] == "float32"]
    known = {(row["depth"], row["filters"]): row["first_loss"] for row in of_float32}
    for row in rows:
        expected = known.get((row["depth"], row["filters"]))
        if expected is None or row["precision"] == "float32":
            continue
        what = f"first loss of {row['precision']} at depth {row['depth']}, {row['filters']} filters"
        percent = 100 * (row["first_loss"] / expected - 1)
        findings.check(what, abs(percent) < 2, signed(percent, 2), "within 2% of float32")


def measure_overhead(options, findings):
    """Compares training steps with and without the energy monitor, in alternating blocks."""
    from blocks import Held, run_four, with_error

    source = open_source()
    backend = load_backend(options.backend)
    need_gpu(backend, options)
    step = _small_step(backend)
    for _ in range(5):
        step()
    began = time.monotonic()
    for _ in range(10):
        step()
    steps = max(2, round(BLOCK_S / (time.monotonic() - began) * 10))
    monitor = Monitor(source, idle_s=0).start()
    held, fours = Held(monitor), []
    time.sleep(1.5 * min(1.0, options.scale))  # after the faster polling at the start
    until = time.monotonic() + OVERHEAD_S * options.scale
    try:
        while time.monotonic() < until or len(fours) < 3:
            fours.append(run_four(step, steps, held))
    finally:
        held.switch(True)
        monitor.stop()
    on, off = (np.array([four[which] for four in fours]) for which in (True, False))
    costs = 100 * (on[:, 0] / off[:, 0] - 1)
    cost, error = map(float, with_error(costs))
    step_ms = 1000 * off[:, 0] / (2 * steps)
    findings.measured(
        "monitor",
        {
            "groups_of_four_blocks": len(fours),
            "steps_per_block": steps,
            "step_ms": float(np.median(step_ms)),
            "step_minimum_ms": float(step_ms.min()),
            "step_maximum_ms": float(step_ms.max()),
            "cost_percent": cost,
            "standard_error_percent": error,
            "thread_us_per_poll": 1e6 * on[:, 2].sum() / max(1.0, on[:, 3].sum()),
        },
    )
    findings.measured("cost_percent of each group of four blocks", costs.tolist())
    judge_cost(cost, error, findings)


def judge_cost(cost, error, findings):
    """Adds the check of the monitor's cost.

    It is not tried if the limit is less than two standard errors from the cost.
    """
    what, most = "cost of the monitor", HIGHEST_COST_PERCENT
    measured = f"{signed(cost, 2)} of a step's wall-clock time (standard error {error:.2f}%)"
    if abs(cost - most) < 2 * error:
        findings.not_tried(what, f"{measured} is too uncertain to compare with {most:g}%")
        return
    wanted = f"at most {most:g}%, and at least two standard errors from it"
    findings.check(what, cost <= most, measured, wanted)


def _small_step(backend):
    """Returns a function that does one training step of a small UNet and waits for its end."""
    from keras_nowcast.model.loss import MaskedMeanSquaredError
    from keras_nowcast.model.unet import build_unet

    set_precision("float32")
    model = build_unet(64, FRAMES_IN, FRAMES_OUT, depth=2, filters=8)
    model.compile(
        build_optimizer("float32", backend), MaskedMeanSquaredError(), jit_compile=backend.compiles
    )
    frames = random_frames(2, 64)
    return lambda: model.train_on_batch(*frames)  # its loss is a number: the step has ended
