"""Is our training step as fast as those of other frameworks on this machine?

The same UNet, written for PyTorch and for Keras 2 as their users would write it, trains on batches
that are already in memory, in float32 on all cores. The peers are PyTorch eager (NCHW), eager with
the channels last, and compiled with the channels last, and TensorFlow 2.15 with oneDNN. Each peer
is a process in a separate environment, and takes a step in turn while the others sleep. A ratio,
our time divided by the peer's, is that of one round, so that a slow moment of the machine affects
all. An absent peer is left out and named.

    python3 -m venv build/torch
    build/torch/bin/pip install torch==2.13.0 numpy
    python3.11 -m venv build/keras2
    build/keras2/bin/pip install tensorflow-cpu==2.15.1
    python benchmarks/peers.py
    python benchmarks/peers.py --grid 384 --filters 32 --batch-per-replica 2 --rounds 7

All peers together need about 20 GB at grid 384; --peers takes them in turn.

The peak is that of a product of two large matrices, measured between the steps. torch.compile needs
a C++ compiler.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from flags import add_model_flags, build_parser
from result_files import write_results

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
OURS = "keras_nowcast"
PAUSE_S = 0.3  # so that the threads of the peer before have stopped waiting for work


def peers():
    """Returns {name: (Python of its environment, script, variant)}."""
    torch, keras2 = (str(BUILD / name / "bin" / "python") for name in ("torch", "keras2"))
    return {
        OURS: (sys.executable, "peer_ours.py", ""),
        "PyTorch eager": (torch, "peer_torch.py", "eager"),
        "PyTorch eager, channels last": (torch, "peer_torch.py", "channels last"),
        "PyTorch compiled": (torch, "peer_torch.py", "compiled"),
        "TensorFlow 2.15": (keras2, "peer_keras2.py", ""),
    }


class Peer:
    """A process that takes one step each time it is asked to.

    Attributes:
      version: version of its framework.
      parameters: number of its trainable parameters.
    """

    def __init__(self, python, script, settings):
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self._answer()
        self.version, self.parameters = found["version"], found["parameters"]

    def step(self):
        """Returns the answer to one request: the seconds of a step."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self):
        """Ends the process and waits for it."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a peer ended: {' '.join(map(str, self._process.args[:2]))}")
        return json.loads(line)


def settings_of(arguments):
    """Returns what every peer is built from, as a dict."""
    from keras_nowcast.model.sizes import default_center_filters
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT, VIL_MEAN, VIL_SCALE

    return {
        "depth": arguments.depth,
        "filters": arguments.filters,
        "center_filters": default_center_filters(arguments.depth, arguments.filters),
        "grid": arguments.grid,
        "batch": arguments.batch_per_replica,
        "frames_in": FRAMES_IN,
        "frames_out": FRAMES_OUT,
        "mean": VIL_MEAN,
        "scale": VIL_SCALE,
        "learning_rate": 1e-3,
        "threads": len(os.sched_getaffinity(0)),
    }


def main():
    parser = build_parser(__doc__)
    add_model_flags(parser, depth=4, filters=16, grid=128, batch_per_replica=8)
    parser.add_argument(
        "--peers", nargs="+", choices=list(peers())[1:], help="names; all if not given"
    )
    parser.add_argument("--variant", help="suffix of the results files in addition to the grid")
    parser.add_argument("--rounds", type=int, default=15, help="rounds over all peers")
    arguments = parser.parse_args()
    settings = settings_of(arguments)
    running, absent = {}, []
    for name, (python, script, variant) in peers().items():
        if arguments.peers and name not in [OURS, *arguments.peers]:
            continue
        if Path(python).exists():
            running[name] = Peer(python, script, {**settings, "variant": variant})
        else:
            absent.append(name)
    if len({each.parameters for each in running.values()}) > 1:
        sys.exit(f"not the same network: { ({n: p.parameters for n, p in running.items()}) }")
    seconds = {name: [] for name in running}
    peaks = []
    for turn in range(arguments.rounds + 2):
        for name, peer in running.items():
            time.sleep(PAUSE_S)
            answer = peer.step()
            if turn < 2:  # not the first two, in which memory is reserved
                continue
            if name == OURS:
                peaks.append(answer["matmul_gflops"])
                answer = answer["seconds"]
            seconds[name].append(answer)
    for peer in running.values():
        peer.end()
    write(arguments, running, absent, seconds, statistics.median(peaks))


def write(arguments, running, absent, seconds, peak):
    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    cost = count_unet(arguments.grid, FRAMES_IN, FRAMES_OUT, arguments.depth, arguments.filters)
    batch = arguments.batch_per_replica
    gflop = cost.training_flops("float32", batch) * batch / 1e9
    rows = []
    for name, times in seconds.items():
        ratios = [mine / its for mine, its in zip(seconds[OURS], times, strict=True)]
        median = statistics.median(times)
        rows.append(
            {
                "peer": name,
                "version": running[name].version,
                "seconds": median,
                "minimum": min(times),
                "maximum": max(times),
                "ratio": statistics.median(ratios),
                "ratio_minimum": min(ratios),
                "ratio_maximum": max(ratios),
                "matmul_peak_%": 100 * gflop / median / peak,
            }
        )
    sizes = f"depth {arguments.depth}, {arguments.filters} filters, grid {arguments.grid}"
    left_out = f"; absent: {', '.join(absent)}" if absent else ""
    write_results(
        "peers",
        rows,
        f"{sizes}, batch {arguments.batch_per_replica}, float32, {arguments.rounds} rounds; matmul "
        f"peak {peak:.0f} GFLOP/s{left_out}",
        variant="_".join(filter(None, (f"g{arguments.grid}", arguments.variant))),
        raw={"seconds": seconds, "absent": absent},
    )


if __name__ == "__main__":
    main()
