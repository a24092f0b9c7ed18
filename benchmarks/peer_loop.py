"""How a peer of benchmarks/peers.py takes its steps; imports nothing but Python's own modules."""

import json
import sys
import time


def settings():
    """Returns the settings that the peer was started with, as a dict."""
    return json.loads(sys.argv[1])


def timed(step):
    """Returns the seconds that one call of `step` takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def take_steps(version, parameters, answer):
    """Prints what the peer is, and then `answer()` as JSON for each line on standard input."""
    print(json.dumps({"version": version, "parameters": parameters}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(answer()), flush=True)
