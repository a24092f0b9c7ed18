"""A power limit that never outlives the work: set before it, and restored however it ends.

A guard process holds the original limits and waits for this process to end in any way, including
SIGKILL; the guard restores them. It has a separate session, so that killing the process group of
the work does not reach it. If a whole control group is killed at once, the guard ends with it and
the limit stays. Run as a program, this file is that guard.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys

from keras_nowcast.energy.nvml import NvmlUnavailable, read_power_limit, write_power_limit
from keras_nowcast.energy.reading import MeterError
from keras_nowcast.errors import InputError

_GUARD_WAIT_S = 10.0


@contextlib.contextmanager
def power_limit(watts, devices):
    """Limits the power of GPUs while the body runs.

    Args:
      watts: the limit of each GPU.
      devices: UUIDs of the GPUs whose limit this process sets (`first_users`).

    Yields:
      For each GPU {"uuid", "asked_w", "enforced_w", "former_w"}, for the record.

    Raises:
      InputError: the limit is outside the range of a card, this user may not set limits, or there
        is no driver; no limit stays changed.
    """
    original = {uuid: _original_limit(uuid, watts) for uuid in devices}
    guard = _start_guard(original)
    try:
        for uuid in original:
            _set_limit(uuid, watts)
        yield [
            {
                "uuid": uuid,
                "asked_w": watts,
                "enforced_w": read_power_limit(uuid)["enforced_w"],
                "former_w": original[uuid],
            }
            for uuid in original
        ]
    finally:
        _release_guard(guard, original)


def _original_limit(uuid, watts):
    try:
        limits = read_power_limit(uuid)
    except (NvmlUnavailable, MeterError) as error:
        raise InputError(
            f"`--power-limit-w` needs a GPU whose limit can be read ({error}). Received: {watts}; "
            "leave it out."
        ) from None
    if not limits["lowest_w"] <= watts <= limits["highest_w"]:
        raise InputError(
            f"`--power-limit-w` must be from {limits['lowest_w']:g} to {limits['highest_w']:g} on "
            f"{uuid}. Received: {watts:g}; choose a limit in this range."
        )
    return limits["limit_w"]


def _set_limit(uuid, watts):
    try:
        write_power_limit(uuid, watts)
    except PermissionError as error:
        raise InputError(
            f"`--power-limit-w` needs the right to set limits, which only root has ({error}). "
            f"Received: {watts:g}; leave it out, or let an administrator set the limit."
        ) from None
    except MeterError as error:
        raise InputError(
            f"`--power-limit-w` needs a GPU that accepts a limit ({error}). Received: {watts:g}; "
            "leave it out."
        ) from None


def _start_guard(original):
    """Starts the guard and waits until it is ready; its pipe closes with this process."""
    command = [sys.executable, "-m", "keras_nowcast.energy.power_limit", str(os.getpid())]
    guard = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # out of reach of Ctrl-C and signals to our group
    )
    guard.stdin.write(json.dumps(original) + "\n")
    guard.stdin.flush()
    if guard.stdout.readline().strip() != "ready":
        guard.kill()
        raise InputError(
            "`--power-limit-w` needs a guard process, which did not start. Received: no "
            "answer; leave the limit out."
        )
    return guard


def _release_guard(guard, original):
    guard.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guard.wait(_GUARD_WAIT_S)
    guard.stdout.close()
    if guard.returncode != 0:  # it was killed, so this process restores the limits
        _restore(original)


def _restore(original):
    """Restores the limits; returns True if all were accepted."""
    done = True
    for uuid, watts in original.items():
        try:
            write_power_limit(uuid, watts)
        except (NvmlUnavailable, PermissionError, MeterError) as error:
            print(
                f"power limit of {uuid} was not restored to {watts:g} W: {error}", file=sys.stderr
            )
            done = False
    return done


def _guard():
    """Waits until the process that started this one has ended, then restores the limits."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    parent = int(sys.argv[1])
    original = json.loads(sys.stdin.readline())
    for uuid in original:
        read_power_limit(uuid)  # opens the driver before anything is changed
    print("ready", flush=True)
    # The pipe closes with the parent, unless a child that it forked still holds it open.
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    return 0 if _restore(original) else 1


if __name__ == "__main__":
    sys.exit(_guard())
