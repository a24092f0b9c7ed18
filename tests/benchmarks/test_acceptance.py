"""The acceptance run, rehearsed: a stub driver whose power is known, and tiny sizes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub_nvml import AVERAGING, Device, Sensor, constant

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import acceptance  # noqa: E402
import acceptance_sensors  # noqa: E402
from acceptance_findings import CannotTry, Findings, write_report  # noqa: E402

TINY = ["--rehearse", "--minutes", "0.25", "--backend", "tensorflow"]


@pytest.fixture
def options(tmp_path):
    def build(*words):
        return acceptance.prepare(acceptance.parse([*TINY, "--out", str(tmp_path / "out"), *words]))

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
            assert acceptance.run_here(name, chosen) == verdict
        found = json.loads((chosen.out / f"{name}.json").read_text())
        return found, {each["check"]: each["verdict"] for each in found["checks"]}

    return run


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
    stages = [json.loads((tmp_path / "x.json").read_text()), acceptance._waiting("duty")]
    write_report(tmp_path / "report.md", "Title", ["flags: none"], stages)
    text = (tmp_path / "report.md").read_text()
    assert "| x | why? | **PASS** | 1 of 1 |" in text
    assert "| a \\| b | pass | 1 W | 2 W |" in text
    assert "| 1 | 2.346 |\n| 2 |  |" in text
    assert "**NOT TRIED** | 0 of 0 |  | not yet run |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "`--minutes` must be above 0, at most 600. Received: 0."),
        (["--minutes", "nan"], "Received: nan."),
        (["--grid", "0"], "`--grid` must be at least 1. Received: 0."),
        (["--stages", "nothing"], "invalid choice"),
    ],
)
def test_bad_usage(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        acceptance.parse(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


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
        ("time.sleep(60)", "its time limit of 0.1 s; what it found until then is kept"),
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
    monkeypatch.setattr(GpuMeter, "read_counter", lambda self: 1.2 * read(self))
    _, checks = stage("duty", Device(wave=constant(200.0)), "--minutes", "0.5", verdict="fail")
    assert set(checks.values()) == {"fail"}


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
    with pytest.raises(CannotTry, match="nvml cannot be used"):
        acceptance_sensors.open_source()
    assert acceptance.run_here("duty", options()) == "not tried"


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
    found, _ = stage("overhead", device)
    assert found["measured"]["monitor"]["fours"] >= 3


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
