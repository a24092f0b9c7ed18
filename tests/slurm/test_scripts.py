"""The batch scripts without a Slurm: how they handle its variables, their flags and signals.

The programs they call, including Python, are stubs that log their arguments.
tests/slurm/slurm.sh runs the same scripts on a real Slurm.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
HOSTILE = "a b; touch injected\n$(touch injected) `touch injected` \"'\\& | * ?"

# Logs its arguments, each ended by a NUL, and its threads, then does what STUB_* variables say.
STUB = """#!/bin/bash
[ "$1" != - ] || exit 0
printf '%s\\0' "${0##*/}" "$@" >>"$STUBS/calls"
echo "$OMP_NUM_THREADS $TF_NUM_INTRAOP_THREADS $SLURM_TASKS_PER_NODE" >>"$STUBS/threads"
if [ "${0##*/}" = scontrol ]; then
  echo "$STUB_SHOWS"
  [ -e "$STUBS/saved" ] || touch "$STUBS/unsaved"
  exit 1  # otherwise a script would wait until Slurm ends it
fi
trap 'echo told >>"$STUBS/told"; sleep "${STUB_SAVES:-0}"; touch "$STUBS/saved"; exit 75' USR1
touch "$STUBS/started"
for _ in $(seq "${STUB_WAITS:-0}"); do sleep 0.05; done
exit "${STUB_STATUS:-0}"
"""


@pytest.fixture
def job(tmp_path):
    """A copy of slurm/ and stub programs to run a script with."""
    return Job(tmp_path)


class Job:
    def __init__(self, folder):
        self.repository = folder / "re po'sitory"
        self.stubs = folder / "stubs"
        self.stubs.mkdir()
        shutil.copytree(ROOT / "slurm", self.repository / "slurm")
        for name in ("python", "mpirun", "srun", "scontrol"):
            (self.stubs / name).write_text(STUB)
            (self.stubs / name).chmod(0o755)

    def start(self, script, *words, **variables):
        environment = {
            "PATH": f"{self.stubs}:{os.environ['PATH']}",
            "STUBS": str(self.stubs),
            "KERAS_NOWCAST_PYTHON": str(self.stubs / "python"),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_ON_NODE": "1",
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(self.repository / "slurm" / f"{script}.sbatch"), *words],
            cwd=self.repository,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script, *words, **variables):
        """Returns (status, standard error) of a job that gets no signal."""
        process = self.start(script, *words, **variables)
        errors = process.communicate(timeout=120)[1]
        return process.returncode, errors

    def warn(self, number, script, *words, times=1, **variables):
        """Sends one signal or several once the training has started; returns the status."""
        process = self.start(script, *words, STUB_WAITS="200", **variables)
        while not (self.stubs / "started").exists():
            time.sleep(0.01)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.1)
        process.communicate(timeout=120)
        return process.returncode

    @property
    def words(self):
        """The arguments of all calls, in order."""
        return (self.stubs / "calls").read_text().split("\0")[:-1]

    @property
    def threads(self):
        return (self.stubs / "threads").read_text().splitlines()[0]

    def requeued(self):
        return "requeue" in self.words and self.words[self.words.index("requeue") + 1]


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_arguments_arrive_unchanged(job, script):
    status, errors = job.run(script, "--data", HOSTILE, f"--grid={HOSTILE}", "", "-x")
    assert status == 0, errors
    first = job.words.index("--data")
    assert job.words[first : first + 5] == ["--data", HOSTILE, f"--grid={HOSTILE}", "", "-x"]
    assert f"experiments/{script}.py" in job.words
    assert not list(job.repository.parent.rglob("injected"))


NUMBERS = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_CPUS_ON_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_JOB_ID",
    "KERAS_NOWCAST_MAX_REQUEUES",
)


@pytest.mark.parametrize("variable", NUMBERS)
@pytest.mark.parametrize("value", ["x[$(touch injected)]", "1; touch injected", "-1", "1\n2"])
def test_invalid_numbers_are_refused(job, variable, value):
    others = {"SLURM_ARRAY_TASK_ID": "1"} if variable == "SLURM_ARRAY_JOB_ID" else {}
    status, errors = job.run("train", **others, **{variable: value})
    assert status == 2 and "must be a whole number" in errors, errors
    assert errors.count("\n") == 1
    assert not (job.stubs / "calls").exists()
    assert not list(job.repository.parent.rglob("injected"))


@pytest.mark.parametrize(
    "variable", ["SLURM_TASKS_PER_NODE", "SLURM_JOB_NODELIST", "SLURM_JOB_NAME", "TMPDIR"]
)
def test_other_variables_run_no_command(job, variable):
    job.run("train", **{"SLURM_NTASKS": "1", variable: f"1[$(touch injected)]{HOSTILE}"})
    assert not list(job.repository.parent.rglob("injected"))


@pytest.mark.parametrize(
    "variables, launched, threads",
    [
        ({"SLURM_CPUS_ON_NODE": "6"}, "python", 6),
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}, "srun", 3),
        (
            {
                "SLURM_CPUS_ON_NODE": "8",
                "SLURM_CPUS_PER_TASK": "4",
                "SLURM_NTASKS": "4",
                "SLURM_TASKS_PER_NODE": "2(x2)",
                "SLURM_JOB_NUM_NODES": "2",
            },
            "srun",
            4,
        ),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "4"}, "srun", 2),
        (
            {
                "SLURM_CPUS_ON_NODE": "2",
                "SLURM_NTASKS": "3",
                "SLURM_TASKS_PER_NODE": "2,1",
                "SLURM_JOB_NUM_NODES": "2",
            },
            "srun",
            1,
        ),
    ],
)
def test_threads_are_the_cores_of_a_rank(job, variables, launched, threads):
    status, errors = job.run("train", KERAS_NOWCAST_LAUNCHER="srun", **variables)
    assert status == 0, errors
    assert job.words[0] == launched
    assert job.threads.split()[:2] == [str(threads)] * 2


def test_one_rank_per_gpu_on_every_node(job):
    variables = {
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_TASKS_PER_NODE": "1(x3)",
    }
    job.run("train", KERAS_NOWCAST_LAUNCHER="mpirun", **variables)
    assert job.words[:5] == ["mpirun", "-np", "12", "--bind-to", "none"]
    assert job.threads.split()[2] == "4(x3)"


def test_the_run_folder_is_named_after_the_job(job):
    job.run("train", "--depth", "3")
    assert job.words[1:] == ["experiments/train.py", "--depth", "3", "--run-dir", "runs/slurm-17"]


@pytest.mark.parametrize("given", [["--run-dir", HOSTILE], [f"--run-dir={HOSTILE}"]])
def test_a_restart_resumes(job, given):
    job.run("train", *given, SLURM_RESTART_COUNT="1")
    assert "--resume" not in job.words  # the job ended before the run began
    run = job.repository / HOSTILE
    run.mkdir()
    (run / "config.json").touch()
    job.run("train", *given, SLURM_RESTART_COUNT="1")
    assert job.words[-len(given) - 1 :] == [*given, "--resume"]


def test_a_warned_job_saves_and_is_requeued(job):
    assert job.warn(signal.SIGUSR1, "train") == 75
    assert (job.stubs / "told").read_text() == "told\n"
    assert job.requeued() == "17"


def test_warnings_while_it_saves(job):
    assert job.warn(signal.SIGUSR1, "train", times=3, STUB_SAVES="0.5") == 75
    assert job.requeued() == "17" and not (job.stubs / "unsaved").exists()


def test_a_task_of_an_array_requeues_only_itself(job):
    job.warn(signal.SIGUSR1, "sweep", SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="4")
    assert job.requeued() == "17_4"
    assert job.words[2:4] == ["--run-cell", "4"]


def test_a_canceled_job_saves_and_is_not_requeued(job):
    assert job.warn(signal.SIGTERM, "train") == 75
    assert (job.stubs / "told").exists() and not job.requeued()


def test_the_limit_of_requeues(job):
    assert job.warn(signal.SIGUSR1, "train", SLURM_RESTART_COUNT="20") == 75
    assert not job.requeued()


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_other_statuses_are_final(job, status):
    assert job.run("train", STUB_STATUS=str(status))[0] == status
    assert not job.requeued()


@pytest.mark.parametrize(
    "shows, requeued", [("PreemptTime=None", False), ("PreemptTime=2026-11-24T13:15:46", "17")]
)
def test_preemption_that_ends_the_launcher(job, shows, requeued):
    job.run("train", STUB_STATUS="143", STUB_SHOWS=f"JobState=RUNNING {shows} EndTime=Unknown")
    assert job.requeued() == requeued


def test_gloo_is_for_one_node(job):
    two = {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_JOB_NUM_NODES": "2"}
    status, errors = job.run("train", KERAS_NOWCAST_LAUNCHER="horovodrun", **two)
    assert status == 2 and "needs ssh" in errors and errors.count("\n") == 1
    one = {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}
    assert job.run("train", KERAS_NOWCAST_LAUNCHER="horovodrun", **one)[0] == 0
    assert job.words[:6] == ["python", "-m", "horovod.runner.launch", "-np", "2", "--gloo"]


def test_outside_the_repository_the_error_says_where_to_submit(tmp_path):
    script = ROOT / "slurm" / "train.sbatch"
    done = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "submit there, or set --chdir" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_shellcheck():
    scripts = [
        *SCRIPTS,
        *(ROOT / "slurm").glob("*.sh"),
        *(ROOT / "tests" / "slurm").glob("*sh"),
        *(ROOT / "install").glob("*.sh"),
        ROOT / ".ci" / "run",
    ]
    done = subprocess.run(
        ["shellcheck", "-x", "-s", "bash", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
