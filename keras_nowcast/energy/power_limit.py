"""A power limit that never outlives the work: set before it, put back whatever ends it.

A guard process holds the former limits and waits for this process to end in any way, SIGKILL
among them; it alone puts them back. It is in a session of its own, so that killing the process
group of the work leaves it alone. What kills a whole control group at once takes it along, and the
limit stays. As a program, this file is that guard.
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
      devices: their UUIDs, those this process alone is to set (`first_users`).

    Yields:
      For each GPU {"uuid", "asked_w", "enforced_w", "former_w"}, for the record.

    Raises:
      InputError: the limit is outside what a card allows, this user may not set limits, or there
        is no driver; nothing stays changed.
    """
    former = {uuid: _former_limit(uuid, watts) for uuid in devices}
    guard = _start_guard(former)
    try:
        for uuid in former:
            _set_limit(uuid, watts)
        yield [
            {
                "uuid": uuid,
                "asked_w": watts,
                "enforced_w": read_power_limit(uuid)["enforced_w"],
                "former_w": former[uuid],
            }
            for uuid in former
        ]
    finally:
        _let_guard_restore(guard, former)


def _former_limit(uuid, watts):
    try:
        limits = read_power_limit(uuid)
    except (NvmlUnavailable, MeterError) as error:
        raise InputError(
            f"`--power-limit-w` needs a GPU whose limit can be read ({error}). Received: {watts}."
        ) from None
    if not limits["lowest_w"] <= watts <= limits["highest_w"]:
        raise InputError(
            f"`--power-limit-w` must be from {limits['lowest_w']:g} to {limits['highest_w']:g} on "
            f"{uuid}. Received: {watts:g}."
        )
    return limits["limit_w"]


def _set_limit(uuid, watts):
    try:
        write_power_limit(uuid, watts)
    except PermissionError as error:
        raise InputError(
            f"`--power-limit-w` needs the right to set limits, which is root's ({error}). "
            f"Received: {watts:g}. Run without it, or let an administrator set the limit."
        ) from None
    except MeterError as error:
        raise InputError(
            f"`--power-limit-w` needs a GPU that takes a limit ({error}). Received: {watts:g}."
        ) from None


def _start_guard(former):
    """Starts the guard and waits until it could restore; its end of the pipe closes with us."""
    command = [sys.executable, "-m", "keras_nowcast.energy.power_limit", str(os.getpid())]
    guard = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C and a scheduler's signal to our group pass it by
    )
    guard.stdin.write(json.dumps(former) + "\n")
    guard.stdin.flush()
    if guard.stdout.readline().strip() != "ready":
        guard.kill()
        raise InputError("`--power-limit-w` needs a guard process, which did not start.")
    return guard


def _let_guard_restore(guard, former):
    guard.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guard.wait(_GUARD_WAIT_S)
    guard.stdout.close()
    if guard.returncode != 0:  # somebody killed it: we are still here to do its work
        _restore(former)


def _restore(former):
    """Puts the limits back; returns True when all of them took."""
    done = True
    for uuid, watts in former.items():
        try:
            write_power_limit(uuid, watts)
        except (NvmlUnavailable, PermissionError, MeterError) as error:
            print(f"power limit of {uuid} not put back to {watts:g} W: {error}", file=sys.stderr)
            done = False
    return done


def _guard():
    """Waits until the process that started this one is gone, then restores its limits."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    parent = int(sys.argv[1])
    former = json.loads(sys.stdin.readline())
    for uuid in former:
        read_power_limit(uuid)  # the driver is open before anything is changed
    print("ready", flush=True)
    # The pipe ends with the parent, unless a child it forked holds the pipe open still.
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    return 0 if _restore(former) else 1


if __name__ == "__main__":
    sys.exit(_guard())
