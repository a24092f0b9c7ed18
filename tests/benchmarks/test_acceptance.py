"""The acceptance run, rehearsed: a stub driver whose power is known, and tiny sizes."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from stub_nvml import AVERAGING, Device, Sensor, constant

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import acceptance  # noqa: E402
import acceptance_host  # noqa: E402
import acceptance_network  # noqa: E402
import acceptance_sensors  # noqa: E402
from acceptance_findings import NOT_ENDED, CannotTry, Findings, write_report  # noqa: E402

from keras_nowcast.errors import InputError  # noqa: E402

TINY = ["--rehearse", "--minutes", "0.25", "--backend", "tensorflow"]


@pytest.fixture
def options(tmp_path):
    number = itertools.count()

    def build(*words):
        out = tmp_path / f"out{next(number)}"
        return acceptance.prepare(acceptance.parse([*TINY, "--out", str(out), *words]))

    return build


@pytest.fixture
def stage(options, stub_driver, monkeypatch):
    """Runs a stage in this process on a stub driver; returns its file, and {check: verdict}."""

    def run(name, device, *words, verdict="pass"):
        stub = stub_driver([device])
        monkeypatch.setenv("LD_LIBRARY_PATH", stub.environment["LD_LIBRARY_PATH"])
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        chosen = options(*words)
        with stub.loaded_here():
            assert acceptance.run_here(name, chosen) == verdict or verdict is None
        found = json.loads((chosen.out / f"{name}.json").read_text())
        return found, {each["check"]: each["verdict"] for each in found["checks"]}

    return run


def test_a_backend_sets_its_memory_up_before_the_reader_uses_tensorflow(options, monkeypatch):
    """On a GPU, TensorFlow refuses memory growth once tf.data has started its devices."""

    class Ended(Exception):
        pass

    def read(given, findings, backend):
        assert backend is loaded
        raise Ended

    loaded = object()
    monkeypatch.setattr(acceptance_host, "load_backend", lambda name: loaded)
    monkeypatch.setattr(acceptance_host, "_measure_reader", read)
    with pytest.raises(Ended):
        acceptance_host.measure_input(options(), None)


def test_update_periods_and_means_of_a_series():
    times, joules = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 10.0, 40.0, 40.0, 100.0, 100.0]
    assert acceptance_sensors.changes(times, joules) == {
        "at": [2, 4],
        "gaps": [2.0],
        "steps": [30.0, 60.0],
    }
    each = {"times": times, "values": joules}
    assert acceptance_sensors.mean_watts("counter", each) == 30.0  # 60 J in 2 s
    assert acceptance_sensors.mean_watts("usage", each) == 50.0
    still = {"times": times, "values": [7.0] * 6}
    assert acceptance_sensors.mean_watts("counter", still) is None


def test_a_verdict_is_the_worst_of_the_checks(tmp_path):
    def verdict(*checks, **more):
        findings = Findings(tmp_path / "x.json", "x", "why?")
        for each in checks:
            if each is None:
                findings.not_tried("a", "b")
            else:
                findings.check("a", each, "1", "2")
        return findings.end(**more)

    assert verdict() == verdict(None) == "not tried"
    assert verdict(True, None) == "pass"
    assert verdict(True, False, None) == "fail"
    assert verdict(True, failed=True) == "fail"


def test_findings_are_on_disk_before_the_stage_ends(tmp_path):
    findings = Findings(tmp_path / "x.json", "x", "why?")
    findings.measured("rate", 3.0)
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["measured"], content["reason"]) == ({"rate": 3.0}, "it has not ended")


def test_the_report_says_pass_fail_and_not_tried(tmp_path):
    findings = Findings(tmp_path / "x.json", "x", "why?")
    findings.check("a | b", True, "1 W", "2 W")
    findings.measured("rows", [{"n": 1, "w": 2.34567}, {"n": 2, "w": None}])
    findings.end()
    waiting = acceptance._waiting("duty", "not yet run")
    stages = [json.loads((tmp_path / "x.json").read_text()), waiting]
    write_report(tmp_path / "report.md", "Title", ["flags: none"], stages)
    text = (tmp_path / "report.md").read_text()
    assert "| x | why? | **PASS** | 1 of 1 |" in text
    assert "| a \\| b | pass | 1 W | 2 W |" in text
    assert "| 1 | 2.346 |\n| 2 |  |" in text
    assert "**NOT TRIED** | 0 of 0 |  | not yet run |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "`--minutes` must be above 0, at most 600. Received: 0;"),
        (["--minutes", "-1"], "`--minutes` must be above 0, at most 600. Received: -1;"),
        (["--minutes", "nan"], "Received: nan;"),
        (["--minutes", "ten"], "`--minutes` must be of type float. Received: 'ten';"),
        (["--minutes"], "`--minutes` must have one value. Received: none;"),
        (["--grid", "0"], "`--grid` must be at least 1. Received: 0;"),
        (["--depth", "3", "-1"], "`--depth` must be at least 1. Received: -1;"),
        (["--stages", "duty", "nothing"], "`--stages` must be one of machine, sensors, duty,"),
        (["--nothing"], "`--nothing` is not a flag of this script."),
    ],
)
def test_bad_usage_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        acceptance.parse(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: `") and error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="`--out` must be a folder that can be written. Received"):
        acceptance.prepare(acceptance.parse([*TINY, "--out", "/proc/acceptance"]))


@pytest.mark.parametrize(
    ("words", "name", "refused"),
    [
        ([], "report.md", True),
        (["--stages", "duty"], "duty.json", True),
        (["--stages", "duty"], "limit.json", False),
        (["--stage", "duty"], "report.md", False),
    ],
)
def test_earlier_findings_are_not_replaced(words, name, refused, tmp_path):
    (tmp_path / name).write_text("earlier")
    options = acceptance.parse([*TINY, "--out", str(tmp_path), *words])
    if refused:
        with pytest.raises(InputError, match="`--out` must not hold the findings of an earlier"):
            acceptance.prepare(options)
    else:
        acceptance.prepare(options)
    assert (tmp_path / name).read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_rehearsal_without_gcc_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("stub_nvml.SOURCE", tmp_path / "new.c")
    (tmp_path / "new.c").write_text(f"// {tmp_path}: is built for no other test")
    with pytest.raises(InputError, match="`--rehearse` must find gcc"):
        acceptance._stub_environment(tmp_path / "stub")


SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
content = {"stage": "duty", "question": "?", "verdict": "not tried", "reason": "it has not ended",
           "checks": [{"check": "a", "verdict": "pass", "measured": "1", "wanted": "2"}],
           "measured": {}, "seconds": 1.0}
print("before the end", flush=True)
(out / "duty.new").write_text(json.dumps(content))
(out / "duty.new").rename(out / "duty.json")
%s
"""


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("time.sleep(60)", "it reached its time limit of 0.1 s; what it found is kept"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with status -11: before the end"),
        ("sys.exit('no memory')", "ended with status 1: no memory"),
    ],
)
def test_a_stage_that_hangs_or_dies_keeps_what_it_found(
    ending, reason, options, tmp_path, monkeypatch
):
    (tmp_path / "script.py").write_text(SCRIPT % ending)
    monkeypatch.setattr(acceptance, "__file__", str(tmp_path / "script.py"))
    chosen = options("--minutes", "0.01")
    if "sleep" in ending:
        popen = subprocess.Popen

        def started(*arguments, **more):  # the limit counts once the script has written its file
            process = popen(*arguments, **more)
            while not (chosen.out / "duty.json").exists():
                time.sleep(0.01)
            return process

        monkeypatch.setattr(subprocess, "Popen", started)
        monkeypatch.setattr(acceptance, "limit_s", lambda *_: 0.1)
    found = acceptance.run_apart("duty", [], chosen, os.environ)
    assert found["verdict"] == "fail"
    assert reason in found["reason"]
    assert [each["check"] for each in found["checks"]] == ["a"]
    assert sorted(path.name for path in chosen.out.iterdir()) == ["duty.json", "duty.log"]


def test_sensors_at_1_khz(stage):
    device = Device(wave=constant(200.0), average=AVERAGING, instant=Sensor(0.1, 0.1))
    found, checks = stage("sensors", device, "--minutes", "1")
    rows = {row["sensor"]: row for row in found["measured"]["load"]}
    assert rows["counter"]["mean_w"] == pytest.approx(200, rel=0.01)
    assert rows["counter"]["step_j"] == pytest.approx(4.0, rel=0.3)  # 200 W in 20 ms
    assert rows["counter"]["update_period_ms"] == pytest.approx(20, rel=0.3)
    assert rows["instant"]["update_period_ms"] == pytest.approx(100, rel=0.3)
    assert checks["the load draws power"] == "not tried"
    assert set(checks.values()) == {"pass", "not tried"}


def test_a_sensor_that_stands_still_fails(stage):
    device = Device(faults=(("GetTotalEnergyConsumption", "frozen", 0, 1e9),))
    found, checks = stage("sensors", device, verdict="fail")
    assert checks["energy counter moves"] == "fail"
    average = "mean power under load: average against instant"
    assert checks[average] == "not tried"


def test_duty_compares_counter_and_integral(stage):
    found, checks = stage("duty", Device(wave=constant(200.0)), "--minutes", "0.5")
    rows = found["measured"]["cycles"]
    assert [(row["period_s"], row["duty"]) for row in rows] == list(acceptance_sensors.CYCLES)
    for row in rows:
        assert row["counter_w"] == pytest.approx(200, rel=0.05)
        assert row["integral_w"] == pytest.approx(200, rel=0.05)
    assert len(checks) == len(rows)


def test_duty_sees_a_counter_of_another_scale(stage, monkeypatch):
    from keras_nowcast.energy.nvml import GpuMeter

    read = GpuMeter.read_counter
    monkeypatch.setattr(GpuMeter, "read_counter", lambda self: 2.0 * read(self))
    device = Device(wave=constant(200.0))
    found, checks = stage("duty", device, "--minutes", "0.5", verdict="fail")
    assert set(checks.values()) == {"fail"}
    for row in found["measured"]["cycles"]:  # by how much the counter is above the integral
        assert row["difference_percent"] == pytest.approx(100, abs=15)


def test_the_limit_is_set_and_restored_after_sigkill(stage):
    found, checks = stage("limit", Device(limits_w=(100.0, 300.0, 250.0)))
    assert found["measured"]["limits before"]["limit_w"] == 250.0
    assert checks == {
        "the limit is enforced": "pass",
        "the limit is restored after the work": "pass",
        "the limit is restored after SIGKILL": "pass",
    }


def test_a_limit_that_may_not_be_set_is_not_tried(stage):
    faults = (("SetPowerManagementLimit", "no_permission", 0, 1e9),)
    found, _ = stage("limit", Device(faults=faults), verdict="not tried")
    assert "right to set limits" in found["reason"]


def test_without_a_driver_nothing_is_tried(options):
    with pytest.raises(CannotTry, match="no NVIDIA driver responds"):
        acceptance_sensors.open_source()
    assert acceptance.run_here("duty", options()) == "not tried"


def test_only_the_gpu_that_trains_is_measured(stub_driver):
    gpus = [Device(uuid=f"GPU-{k}", bus=f"00000000:{k}5:00.0") for k in (2, 1)]
    with stub_driver(gpus).loaded_here():
        assert [meter.key for meter in acceptance_sensors.open_source().meters] == ["GPU-1"]


@pytest.mark.parametrize(
    ("lowest", "highest", "now", "other"),
    [(100.0, 300.0, 250.0, 175), (100.0, 300.0, 100.0, 300), (100.5, 300.0, 101.0, 300)],
)
def test_the_limit_that_is_tried_differs_from_the_present_one(lowest, highest, now, other):
    limits = {"lowest_w": lowest, "highest_w": highest, "limit_w": now}
    assert acceptance_sensors.another_limit(limits) == other


def test_a_card_with_a_single_limit_is_not_tried():
    with pytest.raises(CannotTry, match="accepts no other limit than 100 W"):
        acceptance_sensors.another_limit({"lowest_w": 100.0, "highest_w": 100.0, "limit_w": 100.0})


def test_a_counter_that_shows_zero_leaves_the_others(stage):
    """It is no reading; the power is still measured, and nothing is divided by it."""
    device = Device(faults=(("GetTotalEnergyConsumption", "zero", 0, 1e9),))
    found, checks = stage("duty", device, "--minutes", "0.5", verdict="not tried")
    assert set(checks.values()) == {"not tried"}
    assert {row["wanted"] for row in found["checks"]} == {"the counter has no valid readings"}
    assert found["measured"]["cycles"][0]["integral_w"] == pytest.approx(200, rel=0.05)


def test_a_load_is_judged_by_a_sensor_that_moves(tmp_path):
    """Not by a counter that stands still, of which the mean power is unknown."""
    still = {"times": [0.0, 1.0], "values": [7.0, 7.0], "costs": [0.0, 0.0]}
    idle, busy = ({"times": [0.0, 1.0], "values": [w, w], "costs": [0, 0]} for w in (50.0, 100.0))
    findings = Findings(tmp_path / "x.json", "x", "why?")
    acceptance_sensors._compare(
        {"counter": still, "usage": idle},
        {"counter": still, "usage": busy},
        "usage",
        acceptance.parse([]),
        findings,
    )
    content = json.loads((tmp_path / "x.json").read_text())
    load = {each["check"]: each for each in content["checks"]}["the load draws power"]
    assert (load["verdict"], load["measured"][:5]) == ("pass", "usage")


@pytest.mark.parametrize(
    ("cost", "error", "verdict"),
    [(0.2, 0.1, "pass"), (1.6, 0.2, "fail"), (0.2, 3.9, "not tried"), (1.3, 3.9, "not tried")],
)
def test_a_cost_passes_only_if_it_is_certain(cost, error, verdict, tmp_path):
    findings = Findings(tmp_path / "x.json", "x", "why?")
    acceptance_network.judge_cost(cost, error, findings)
    assert findings.end() == verdict


@pytest.mark.parametrize(("capability", "tried"), [((7, 0), False), ((8, 0), True)])
def test_tf32_is_tried_only_where_the_gpu_has_it(capability, tried, options):
    backend = SimpleNamespace(gpus=1, capability=capability)
    cell = acceptance_network.Cell(2, 4, "tf32")
    reason = acceptance_network._impossible(cell, backend, options())
    assert (reason is None) == tried
    if not tried:
        assert "this GPU has 7.0" in reason


def test_rates_of_reading_are_medians_of_paired_rounds():
    seconds = {acceptance_host.H5PY: [2.0, 4.0, 3.0], "our reader": [1.0, 1.0, 3.0]}
    row = acceptance_host.reading_rows(6, seconds)[1]
    assert (row["rounds"], row["windows_per_s"], row["minimum"], row["maximum"]) == (3, 6, 2, 6)
    assert (row["times_h5py"], row["times_minimum"], row["times_maximum"]) == (2, 1, 4)


def test_sums_on_cpus_do_not_pass_for_sums_on_gpus(tmp_path):
    """TensorFlow that sees no GPU sums in the host's memory, and may do it right."""
    found = {"devices": ["the CPU", "the CPU"], "sums": []}
    options = acceptance.parse([])
    findings = Findings(tmp_path / "x.json", "x", "why?")
    acceptance_host.report_sums(found, 3, options, findings)
    assert findings.end() == "fail"


def test_without_a_backend_the_machine_fails_and_the_reader_is_measured(options, monkeypatch):
    monkeypatch.setattr("acceptance_backend._installed", lambda name: False)
    chosen = options("--events", "1")
    assert acceptance.run_here("machine", chosen) == "fail"
    assert acceptance.run_here("input", chosen) == "pass"
    found = json.loads((chosen.out / "input.json").read_text())
    assert found["reason"] == "the rest could not be tried: tensorflow is not installed"


@pytest.mark.parametrize("name", ["sensors", "duty", "overhead", "network"])
def test_without_a_gpu_no_load_is_put_on_the_cpu(name, stub_driver, tmp_path, monkeypatch):
    """Training the UNet at full size on a CPU would only reach the stage's time limit."""
    backend = SimpleNamespace(name="tensorflow", gpus=0)
    for module in (acceptance_sensors, acceptance_network):
        monkeypatch.setattr(module, "load_backend", lambda asked: backend)
    words = ["--minutes", "0.02", "--out", str(tmp_path / "out")]
    with stub_driver([Device()]).loaded_here():
        acceptance.run_here(name, acceptance.prepare(acceptance.parse(words)))
    reason = json.loads((tmp_path / "out" / f"{name}.json").read_text())["reason"]
    assert reason.endswith("could not be tried: tensorflow uses no GPU in this process")


def test_a_stage_of_which_a_part_could_not_be_tried_says_so(options, monkeypatch):
    def measure(options, findings):
        findings.check("a", True, "1", "1")
        raise CannotTry("no backend")

    monkeypatch.setattr(acceptance_sensors, "measure_duty", measure)
    chosen = options()
    assert acceptance.run_here("duty", chosen) == "pass"
    found = json.loads((chosen.out / "duty.json").read_text())
    assert found["reason"] == "the rest could not be tried: no backend"


def _processes_of(folder):
    """Returns the ids of the processes with a folder's name on their command line."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in each.read_bytes():
                found.append(int(each.parent.name))
    return found


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_an_interrupted_run_keeps_its_findings_and_leaves_no_process(number, status, tmp_path):
    out = tmp_path / "out"
    words = ["--rehearse", "--stages", "sensors", "limit", "--out", out]
    process = subprocess.Popen(
        [sys.executable, BENCHMARKS / "acceptance.py", *words],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's & ignores SIGINT
    )
    until = time.monotonic() + 60
    while not (out / "sensors.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == status
    while (left := _processes_of(out)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
    report = (out / "report.md").read_text()
    reason = NOT_ENDED if number == signal.SIGKILL else "it was interrupted; what it found is kept"
    assert f"| {reason} |" in report
    assert "| limit | Is a power limit set, and always restored? | **NOT TRIED** |" in report
    assert json.loads((out / "sensors.json").read_text())["verdict"] == "not tried"


@pytest.mark.slow
def test_network_and_overhead(stage):
    device = Device(wave=constant(200.0))
    words = ("--precision", "float32", "tf32", "mixed_float16")
    found, checks = stage("network", device, *words)
    rows = found["measured"]["training on tensorflow"]
    assert [row["precision"] for row in rows] == ["float32", "mixed_float16"]
    for row in rows:
        assert row["mean_w"] == pytest.approx(200, rel=0.1)
        assert row["joules_per_sample"] * row["samples_per_s"] == pytest.approx(200, rel=0.1)
    assert rows[0]["loss_scale"] is None
    assert rows[1]["loss_scale"] >= 1
    assert checks["depth 2, 4 filters, tf32"] == "not tried"
    found, _ = stage("overhead", device, verdict=None)
    assert found["measured"]["monitor"]["groups_of_four_blocks"] >= 3


@pytest.mark.slow
def test_the_whole_run_without_tensorflow(tmp_path):
    python = ROOT / "build" / "backends" / "jax" / "bin" / "python"
    if not (python.parents[1] / "made-with").exists():
        pytest.skip("build/backends/jax is not there: run `make backends`")
    words = ["--rehearse", "--minutes", "0.25", "--backend", "jax", "--out", tmp_path / "out"]
    done = subprocess.run(
        [python, BENCHMARKS / "acceptance.py", *words], capture_output=True, text=True
    )
    stages = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for name in acceptance.STAGES
    }
    # A step that shares two busy cores may show any cost of the monitor.
    failed = {name for name, each in stages.items() if each["verdict"] == "fail"} - {"overhead"}
    assert not failed, done.stdout + (tmp_path / "out" / "report.md").read_text()
    assert stages["allreduce"]["verdict"] == "not tried"
    assert "tensorflow, which is not installed" in stages["allreduce"]["reason"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("# REHEARSAL without a GPU")
    assert "training on jax" in report
