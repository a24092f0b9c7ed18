"""Runs commands of scripts one after the other in this process, then blocks of Python code.

The file that is given holds {"commands": [[script, arguments, launcher]], "copies": {copy: run
folder}, "blocks": [code]}. A command with a launcher runs in separate processes. A copy is made as
soon as its folder is there. The first failure ends everything.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import test_commands


def main():
    given = json.loads(Path(sys.argv[1]).read_text())
    for script, arguments, launcher in given["commands"]:
        make_copies(given["copies"])
        begin = time.monotonic()
        print(f"== {' '.join([*launcher, script, *arguments])}", flush=True)
        if launcher:
            done = test_commands.start(launcher, script, arguments, Path.cwd())
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
        else:
            sys.argv = [script, *arguments]
            sys.path.insert(0, str((test_commands.ROOT / script).parent))
            test_commands.load(script).main()
        print(f"== {time.monotonic() - begin:.1f} s", flush=True)
    for block in given["blocks"]:
        exec(compile(block, "README.md", "exec"), names_of_a_reader())


def make_copies(copies):
    for copy, folder in copies.items():
        if Path(folder, "model.keras").is_file() and not Path(copy).exists():
            shutil.copytree(folder, copy)


def names_of_a_reader():
    """Returns the names that README's Python code supposes: a compiled model and its data."""
    import keras
    import numpy as np

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    return {"model": model, "x": np.ones((8, 3)), "y": np.ones((8, 1)), "work": lambda: None}


if __name__ == "__main__":
    main()
