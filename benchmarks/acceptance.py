"""What to run first on a new GPU machine: ten minutes, and a report that says pass or fail.

Each stage runs in a separate process with a time limit, and writes its JSON file at each step. A
stage that fails, hangs or is killed therefore keeps what it found, and ends no other stage.
report.md, which is written before and after each stage, says pass, fail, or what could not be
tried. The stages:

- machine: versions, devices, and what doctor.py finds.
- sensors: NVML's counter and power at 1 kHz, idle and under load: update periods, steps, the
  average against the instantaneous power, the time of a call.
- duty: the energy counter against the integral of the power, under known duty cycles.
- overhead: training steps with and without the energy monitor, in alternating blocks.
- limit: a power limit is set, and restored after the work and after SIGKILL (needs root).
- network: the UNet by depth, filters and precision: samples per second, joules per sample, peak
  memory, loss scale.
- input: the reader against plain h5py, and copies from host to device.
- allreduce: with two GPUs and Horovod, sums of known values right after long matrix products.

The stages use Keras on TensorFlow, JAX or PyTorch, whichever is installed; what needs TensorFlow
or Horovod is not tried without them. The exit status is 0 if no stage failed, otherwise 1.

    python benchmarks/acceptance.py
    python benchmarks/acceptance.py --stages machine sensors duty    # the sensors alone
    python benchmarks/acceptance.py --rehearse --minutes 2           # here, without a GPU
"""

import contextlib
import datetime
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "energy")]  # a clone is enough

from acceptance_findings import (  # noqa: E402
    NOT_ENDED,
    NOT_TRIED,
    CannotTry,
    Findings,
    end_for_the_stage,
    write_report,
)
from flags import build_parser  # noqa: E402

from keras_nowcast.errors import InputError  # noqa: E402
from keras_nowcast.process import EXIT_STOPPED, ends_with_parent, run_script  # noqa: E402

BACKENDS = ("auto", "tensorflow", "jax", "torch")
PRECISIONS = ("float32", "tf32", "mixed_float16", "mixed_bfloat16")
MINUTES = 10.0
KILL_AFTER_S = 8.0  # horovodrun ends its ranks five seconds after its own SIGTERM
# No limit is below it: starting a backend takes this long. A rehearsal may share its cores.
SHORTEST_LIMIT_S, SHORTEST_REHEARSED_S = 45.0, 300.0
REPORT = "report.md"
SPREADS = [
    "minimum and maximum: over the rounds, the copies, or the spans between waits for the device",
    "p5, p95, p99: percentiles; std: standard deviation; uncertainty: two standard deviations",
]


class Stage(NamedTuple):
    """A stage: where its function is, its time limit in a run of ten minutes, its question."""

    module: str
    limit_s: float
    question: str


STAGES = {
    "machine": Stage("acceptance_host", 40, "Is everything there that a run needs?"),
    "sensors": Stage("acceptance_sensors", 70, "How do the sensors of the GPU update, and agree?"),
    "duty": Stage("acceptance_sensors", 90, "Do the energy counter and the power agree?"),
    "overhead": Stage("acceptance_network", 70, "What does the energy monitor cost?"),
    "limit": Stage("acceptance_sensors", 30, "Is a power limit set, and always restored?"),
    "network": Stage("acceptance_network", 210, "What does training the UNet cost?"),
    "input": Stage("acceptance_host", 40, "How fast do windows reach the GPU?"),
    "allreduce": Stage("acceptance_host", 50, "Are sums over two GPUs right?"),
}


def parse(words=None):
    """Returns the parsed flags."""
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder of the files (default: a new one in build/acceptance)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run")
    add("--stage", choices=STAGES, help="run this one in this process, without a time limit")
    add("--backend", choices=BACKENDS, default="auto", help="Keras' backend")
    add("--minutes", type=float, default=MINUTES, help="minutes for all stages together")
    add("--depth", type=int, nargs="+", default=[4, 3], help="encoder levels of the UNet")
    add("--filters", type=int, nargs="+", default=[32, 16], help="filters of the first level")
    add("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="number formats")
    add("--grid", type=int, default=384, help="pixels along a side")
    add("--batch-per-replica", type=int, default=4, help="windows in a batch")
    add("--events", type=int, default=24, help="synthetic events for the reader")
    add("--matmul-side", type=int, default=4096, help="rows of the matrices that load the GPU")
    add(
        "--rehearse",
        action="store_true",
        help="try this script without a GPU: small sizes on the CPU, and a stub of NVIDIA's driver "
        "(tests/energy, needs gcc) in place of the real one",
    )
    options = parser.parse_args(words)
    if not 0 < options.minutes <= 600:
        parser.error(f"`--minutes` must be above 0, at most 600. Received: {options.minutes:g}")
    for flag in ("depth", "filters", "grid", "batch_per_replica", "events", "matmul_side"):
        values = getattr(options, flag)
        for value in values if isinstance(values, list) else [values]:
            if value < 1:
                name = "--" + flag.replace("_", "-")
                parser.error(f"`{name}` must be at least 1. Received: {value}")
    options.stages = list(dict.fromkeys(options.stages))
    return options


def prepare(options):
    """Completes the options: sizes of a rehearsal, and the factor on all durations."""
    options.scale = options.minutes / MINUTES
    if options.rehearse:
        options.depth, options.filters, options.grid = [2], [4], 32
        options.batch_per_replica, options.events, options.matmul_side = 2, 2, 256
    if options.out is None:
        now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        options.out = ROOT / "build" / "acceptance" / f"{now}_{socket.gethostname()}"
    _claim_folder(options)
    return options


def _claim_folder(options):
    """Creates the output folder, which must not hold findings that this run would replace."""
    stages = options.stages if options.stage is None else [options.stage]
    ours = [f"{name}.json" for name in stages]
    if options.stage is None:
        ours.append(REPORT)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.out):
            pass
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be written. Received: {options.out} "
            f"({error.strerror}); choose another folder."
        ) from None
    for name in ours:
        if (options.out / name).exists():
            raise InputError(
                f"`--out` must not hold the findings of an earlier run. Received: {options.out}, "
                f"which has {name}; choose another folder."
            )


def limit_s(name, options):
    """Returns the time limit of a stage, seconds."""
    shortest_s = SHORTEST_REHEARSED_S if options.rehearse else SHORTEST_LIMIT_S
    return max(STAGES[name].limit_s * options.scale, shortest_s)


def run_here(name, options):
    """Runs a stage in this process and returns its verdict."""
    stage = STAGES[name]
    findings = Findings(options.out / f"{name}.json", name, stage.question)
    options.until = time.monotonic() + 0.8 * limit_s(name, options)
    try:
        measure = getattr(importlib.import_module(stage.module), f"measure_{name}")
        measure(options, findings)
    except CannotTry as error:
        return findings.end(f"{'the rest ' if findings.any else ''}could not be tried: {error}")
    except Exception as error:  # any fault of a library or a driver is what the report is about
        findings.end(f"{type(error).__name__}: {error}", failed=True)
        raise
    return findings.end()


def run_apart(name, words, options, environ):
    """Runs a stage in a separate process, ends it at its time limit, and returns its findings.

    Raises:
      KeyboardInterrupt: a signal interrupted it; its process has ended, and its file says so.
    """
    path = options.out / f"{name}.json"
    longest_s = limit_s(name, options)
    command = [sys.executable, __file__, *words, "--out", str(options.out), "--stage", name]
    with open(options.out / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            start_new_session=True,
            preexec_fn=ends_with_parent(signal.SIGKILL),
        )
        interrupted = False
        try:
            status = process.wait(longest_s)
            reason = f"its process ended with status {status}: {_last_line(log.name)}"
        except subprocess.TimeoutExpired:
            reason = f"it reached its time limit of {longest_s:g} s; what it found is kept"
        except KeyboardInterrupt:
            interrupted = True
            reason = "it was interrupted; what it found is kept"
        finally:
            if interrupted:  # further signals wait until all is written
                for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(each, signal.SIG_IGN)
            _end_group(process)
    if not path.exists() or json.loads(path.read_text())["reason"] == NOT_ENDED:
        end_for_the_stage(path, name, STAGES[name].question, reason, failed=not interrupted)
    if interrupted:
        raise KeyboardInterrupt
    return json.loads(path.read_text())


def _end_group(process):
    """Ends a process and its group. Before SIGKILL, horovodrun has time to end its ranks."""
    for each, wait_s in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, 1.0)):
        until = time.monotonic() + wait_s
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, each)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)  # raises when the last process of the group has ended
                time.sleep(0.05)


def _last_line(path):
    lines = Path(path).read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def run_all(options, words, environ):
    """Runs the stages one after the other; the report is written before and after each.

    Returns:
      The list of the stages' findings.

    Raises:
      KeyboardInterrupt: a signal ended the run; the report is complete up to then.
    """
    done = {}
    title = f"Acceptance run on {socket.gethostname()}"
    lines = [f"started {datetime.datetime.now().isoformat(timespec='minutes')}"]
    lines += [f"flags: {' '.join(words) or 'none'}"]
    lines += SPREADS
    if options.rehearse:
        title = f"REHEARSAL without a GPU on {socket.gethostname()}"
        lines += [
            "a stub of NVIDIA's driver stands in for the real one: no number here is of a GPU"
        ]

    def report(current=None):
        rest = [_waiting(each, NOT_ENDED if each == current else "not yet run") for each in order]
        stages = [done.get(each["stage"]) or each for each in rest]
        write_report(options.out / REPORT, title, lines, stages)
        return stages

    order = options.stages
    for name in order:
        report(name)
        print(f"{name}: at most {limit_s(name, options):.0f} s ...", end=" ", flush=True)
        try:
            done[name] = run_apart(name, words, options, environ)
        except KeyboardInterrupt:
            path = options.out / f"{name}.json"
            if path.exists():
                done[name] = json.loads(path.read_text())
            report()
            raise
        reason = done[name]["reason"]
        print(done[name]["verdict"] + (f" ({reason})" if reason else ""), flush=True)
    return report()


def _waiting(name, reason):
    question = STAGES[name].question
    return {"stage": name, "question": question, "verdict": NOT_TRIED, "reason": reason}


def without_out(words):
    """Returns the command line without `--out` and its value."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out="):
            kept.append(word)
    return kept


def main():
    options = prepare(parse())
    if options.stage is not None:
        sys.exit(run_here(options.stage, options) == "fail")
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    if options.rehearse:
        environ |= _stub_environment(options.out / "stub")
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup and a shell's & set it
            signal.signal(each, signal.default_int_handler)
    try:
        stages = run_all(options, without_out(sys.argv[1:]), environ)
    except KeyboardInterrupt:
        print(f"\ninterrupted; report: {options.out / REPORT}", flush=True)
        sys.exit(EXIT_STOPPED)
    print(f"report: {options.out / REPORT}")
    sys.exit(any(each["verdict"] == "fail" for each in stages))


def _stub_environment(folder):
    """Returns the environment variables with which a stage loads the stub driver."""
    from stub_nvml import AVERAGING, Device, Sensor, StubDriver, constant

    # Constant power, as that of a GPU under a steady load.
    gpu = Device(wave=constant(200.0), average=AVERAGING, instant=Sensor(0.1, 0.1), buffer=True)
    try:
        return StubDriver(folder, [gpu]).environment
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"`--rehearse` must find gcc, which builds the stub driver. Received: {error}; install "
            "gcc."
        ) from None


if __name__ == "__main__":
    run_script(main)
