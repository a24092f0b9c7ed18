"""Exit statuses, signals, and the rank that prints."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_nowcast import process
from keras_nowcast.errors import InputError, Interrupted, TrainingFailed


@pytest.mark.parametrize(
    ("raised", "status"),
    [(InputError("a\n b"), 2), (Interrupted("a b"), 75), (TrainingFailed("a b"), 1)],
)
def test_status_and_one_line(raised, status, capsys, monkeypatch):
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)

    def main():
        raise raised

    with pytest.raises(SystemExit) as ended:
        process.run_script(main)
    assert ended.value.code == status
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.rstrip().endswith("a b")


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setenv("HOROVOD_SIZE", "2")

    def main():
        raise InputError("a")

    with pytest.raises(SystemExit):
        process.run_script(main)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("environ", "launched"),
    [
        ({}, None),
        ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "4"}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ({"PMI_RANK": "3", "PMI_SIZE": "8"}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # plain python inside sbatch
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),  # srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_launched_as(environ, launched):
    assert process.launched_as(environ) == launched


def test_a_message_cannot_steer_the_terminal():
    assert process.one_line("a\nb \x1b[2J\u202e é") == "a b \\x1b[2J\\u202e é"


def test_a_child_ends_with_its_parent_even_if_that_is_killed():
    script = """
import os, signal, subprocess, sys
from keras_nowcast.process import ends_with_parent
child = [sys.executable, "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(child, preexec_fn=ends_with_parent(signal.SIGTERM)).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    state, until = Path(f"/proc/{int(done.stdout)}/stat"), time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.02)
    raise AssertionError("the child is still there")


def test_signals_are_counted_while_it_is_open():
    before = signal.getsignal(signal.SIGINT)
    with process.Signals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)
        assert signals.received == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_acts_at_once():
    with process.Signals(second_interrupt_is_now=True) as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_rank_that_is_refused_alone_says_so(capsys, monkeypatch):
    monkeypatch.setattr(process, "RANK_0_S", 0.0)
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("HOROVOD_RANK", rank)
        monkeypatch.setenv("HOROVOD_SIZE", "2")
        with pytest.raises(InputError), process.each_rank_reports():
            raise InputError("`--depth` must be 1")
        printed[rank] = capsys.readouterr().err
    assert printed == {"0": "", "1": "error: rank 1: `--depth` must be 1\n"}


def script(text):
    """Returns the words of a process that runs a main of this body as a script does."""
    code = f"import sys\nfrom keras_nowcast.process import run_script\ndef main():\n {text}\n"
    return [sys.executable, "-c", code + "run_script(main)"]


LONG = "print('x' * 100000, flush=True); print('done', file=sys.stderr)"


def test_a_reader_that_ends_is_no_failure_of_the_work():
    with subprocess.Popen(script(LONG), stdout=-1, stderr=-1, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "done\n"
    assert process.returncode == 141


@pytest.mark.parametrize("text", [LONG, "print('x'); print('done', file=sys.stderr)"])
def test_output_to_a_full_disk_is_one_line(text):
    with open("/dev/full", "w") as full:
        done = subprocess.run(script(text), stdout=full, stderr=-1, text=True, check=False)
    assert done.stderr == (
        "done\nfailed: standard output cannot be written: No space left on device\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_wherever_it_is_met(number, capsys):
    def main():
        raise OSError(number, os.strerror(number), "figures/table.csv")

    with pytest.raises(SystemExit) as ended:
        process.run_script(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: the disk must have space for the results. Received: figures/table.csv "
        f"({os.strerror(number)}); make room, and run the same command again.\n"
    )


def test_another_error_of_the_disk_is_a_fault():
    def main():
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        process.run_script(main)


def test_another_status_is_kept_and_errors_go_nowhere():
    text = "print('x' * 100000); print('y' * 100000, file=sys.stderr); sys.exit(75)"
    with open("/dev/full", "w") as full:
        done = subprocess.run(script(text), stdout=full, stderr=full, check=False)
    assert done.returncode == 75


def test_a_fault_keeps_its_traceback_and_the_streams_come_back():
    def main():
        raise RuntimeError("fault")

    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError):
        process.run_script(main)
    assert (sys.stdout, sys.stderr) == before
