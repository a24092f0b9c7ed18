"""Starts real Horovod processes for the tests."""

import os
import subprocess
import sys
from pathlib import Path

HORUN = (sys.executable, Path(__file__).with_name("horovodrun.py"))
ROOT = Path(__file__).parents[2]
LONGEST_S = 1200  # a guard against a hang, even on a busy machine


def run_ranks(ranks, script, *arguments, **more):
    """Runs a Python script on several ranks under horovodrun with Gloo.

    Returns:
      The CompletedProcess, with the output of all ranks as text.
    """
    command = [*HORUN, "-np", str(ranks), "--gloo", sys.executable, script, *arguments]
    return run(command, **more)


def run(command, env=None, cwd=ROOT):
    """Runs a command with few log messages and returns its CompletedProcess."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        env=env,
        cwd=cwd,
    )
