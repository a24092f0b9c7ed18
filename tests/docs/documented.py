"""The commands of README.md and docs/*.md, and why some of them are not run by the tests."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
PYTHON = ".venv/bin/python"
SCRIPT = re.compile(r"(experiments|benchmarks)/\w+\.py")

# The start of a command that is neither parsed nor run, and the reason.
NOT_HERE = {
    "sudo apt-get install": "needs root; .ci/run installs the same packages",
    "make install": "downloads packages; tests/install plays it with stubs",
    "make demo": "takes minutes",
    "make test": "it is what runs this test",
    "make backends": "downloads packages; .ci/run runs it",
    "make docs": "downloads packages the first time; .ci/run runs it",
    "make lint": "changes with every file; .ci/run runs it",
    "pip install -e": "needs an environment of its own",
    "python3 -m venv build/": "an environment of a benchmark, which downloads packages",
    "python3.11 -m venv build/": "an environment of a benchmark, which downloads packages",
    "build/torch/bin/pip": "downloads packages",
    "build/keras2/bin/pip": "downloads packages",
    "build/cuda/bin/pip": "downloads packages",
    "PYTHONPATH=. build/cuda/bin/python": "tests/benchmarks/test_gpu_graph.py runs it",
    "aws s3 sync": "needs the bucket of SEVIR, 1 TB in all",
    f"{PYTHON} -m pytest": "runs other tests",
    "sacct": "needs Slurm's accounting; tests/slurm/slurm.sh runs it",
    "ls runs": "shows what a command left that is run",
    "kill -USR1": "needs a run in progress; tests/test_process.py sends the signal",
}
# A pattern of commands whose arguments are parsed and that are not run, and the reason.
PARSED_ONLY = {
    r"sbatch": "needs Slurm; tests/slurm/slurm.sh submits each script",
    r"srun": "needs Slurm",
    r"mpirun -np [48]": "needs as many cores; the same with two is run",
    rf"{PYTHON} benchmarks/": "takes minutes and measures this machine",
    r".venv/bin/horovodrun -np 2 (?!.* --run-dir runs/small)": "the one of runs/small is run",
    rf"{PYTHON} experiments/train.py --run-dir runs/first .": "README's makes this folder",
    rf"{PYTHON} experiments/train.py --power-source": "tests/training/test_energy.py runs it",
    rf"{PYTHON} experiments/train.py --layer-times": "tests/training/test_layer_times.py runs it",
    rf"{PYTHON} experiments/train.py --train-before": "the one of /data/sevir has these dates",
    rf"{PYTHON} experiments/evaluate.py runs/(?!first)": "the one of runs/first is run",
    rf"{PYTHON} experiments/(plot_figures|plan).py runs/two_cores": "the one of runs/ is run",
    rf"{PYTHON} experiments/plot_figures.py runs/$": "the one with --margin is run",
}


def commands(page):
    """Returns the commands of a page's bash blocks, each as a list of words."""
    found = []
    for block in BLOCK.finditer(page.read_text()):
        for line in block[2].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def all_commands():
    """Returns {command: page of its first appearance}; a command is a tuple of words."""
    found = {}
    for page in filter(Path.is_file, PAGES):
        for words in commands(page):
            found.setdefault(tuple(words), page.name)
    return found


def script_of(words):
    """Returns (script, its arguments) of a command, or None if it starts none of ours."""
    for position, word in enumerate(words):
        if SCRIPT.fullmatch(word):
            return word, list(words[position + 1 :])
        if word.startswith("slurm/") and word.endswith(".sbatch"):
            return f"experiments/{Path(word).stem}.py", list(words[position + 1 :])
    return None


def reason_not_run(words):
    """Returns why the tests do not run a command, or None if they do."""
    line = " ".join(words)
    for start, reason in NOT_HERE.items():
        if line.startswith(start):
            return reason
    for pattern, reason in PARSED_ONLY.items():
        if re.match(pattern, line):
            return reason
    return None
