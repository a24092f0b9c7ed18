"""Ends all ranks of a job, and prints one line with the reason, if one rank cannot continue.

If a rank is killed, runs out of memory or stalls in a read, the others block in a collective.
Therefore a thread in each rank reports the state of the rank to rank 0 twice per second, over a
connection that is separate from Horovod's, and rank 0 decides. If a connection closes without a
shutdown message, the process has died. Only time during which rank 0's thread runs counts, so a job
that is suspended as a whole and then continued is not reported as stalled.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time

from keras_nowcast.errors import InputError, Interrupted, TrainingFailed
from keras_nowcast.process import EXIT_FAILED, EXIT_STOPPED

_TICK_S = 0.5
_FIRST_STEP_S = 900.0  # added to the limit: the first step loads, builds and compiles
_CONNECT_S = 10.0
# Delay of the report of a broken collective, so that its possible cause is reported first.
_CAUSE_S = 3.0
_RECORD_S = 1.0  # mpirun sends SIGKILL one second after SIGTERM


class Watchdog:
    """Watches the ranks of a job while it is entered as a context manager.

    Args:
      world: the World; a single process watches itself.
      stall_seconds: seconds without progress of a rank after which the job ends, at the latest.
      waiting: function that returns (seconds, text), how long this rank has waited for an input and
        for which, or None if it does not wait.
      on_tick: called on rank 0 at every poll, from the watchdog's thread; it must be quick and
        raise nothing.
      on_failure: called on rank 0 with the reason before rank 0 ends the job, from a thread that is
        joined for at most one second; it must not contact another rank.
    """

    def __init__(
        self,
        world,
        stall_seconds,
        waiting=lambda: None,
        on_tick=lambda: None,
        on_failure=lambda reason: None,
    ):
        self._world = world
        self._stall_s = stall_seconds
        self.waiting = waiting
        self.on_tick = on_tick
        self.on_failure = on_failure
        self._tick_s = min(_TICK_S, stall_seconds / 10)
        self._steps = 0
        self._doing = "setup"
        self._beat = 0  # changes with every sign of progress
        self._failure = None
        self._closing = threading.Event()
        self._ranks = {}  # on rank 0: the _Rank of each rank
        self._lines = None  # on other ranks: the connection to rank 0

    def alive(self, doing, step=False):
        """Reports progress of this rank.

        Args:
          doing: what the rank does next, a noun phrase.
          step: True if a step was completed.
        """
        self._doing = doing
        self._steps += step
        self._beat += 1

    def __enter__(self):
        host = socket.gethostname()
        if self._world.is_first:
            self._open_for_others(host)
        else:
            self._connect(host)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        agreed = (InputError, Interrupted, TrainingFailed)  # all ranks have raised it
        if error is not None and not isinstance(error, agreed) and self._world.size > 1:
            self._report(kind, error)
        self._closing.set()
        self._thread.join(2 * self._tick_s)

    def _report(self, kind, error):
        """Reports to rank 0 that this rank alone failed, and waits for the end of the job."""
        import traceback

        if issubclass(kind, KeyboardInterrupt):
            reason, status = "was stopped by a second Ctrl-C", EXIT_STOPPED
        elif issubclass(kind, MemoryError) or "OOM when" in str(error):
            reason, status = f"ran out of memory ({_first_line(error)})", EXIT_FAILED
        elif _is_broken_collective(kind, error):
            time.sleep(_CAUSE_S)  # the job ends meanwhile if the cause is the death of another rank
            reason, status = f"cannot reach the others ({_first_line(error)})", EXIT_FAILED
        else:
            traceback.print_exc()
            reason, status = f"failed ({kind.__name__}: {_first_line(error)})", EXIT_FAILED
        self._failure = {"failed": reason, "status": status}
        time.sleep(_CAUSE_S + 2 * _TICK_S)

    # ---- connections ---------------------------------------------------------------------------

    def _open_for_others(self, host):
        self._selector = selectors.DefaultSelector()
        if self._world.size > 1:
            hosts = self._world.gather(host)
            one_host = all(each == host for each in hosts)
            server = socket.create_server(("127.0.0.1" if one_host else "", 0), backlog=1024)
            token = secrets.token_hex(16)
            self._world.broadcast((host, _addresses(host), server.getsockname()[1], token))
            for rank, address in enumerate(hosts[1:], 1):
                self._ranks[rank] = _Rank(rank, address)
            self._accept(server, token)
            for alone in self._world.gather(None):
                if alone is not None:
                    print(alone, file=sys.stderr)
        self._ranks[0] = _Rank(0, host)

    def _accept(self, server, token):
        """Accepts connections of the ranks; a rank that does not connect is not watched."""
        give_up = time.monotonic() + _CONNECT_S
        awaited = set(self._ranks)
        with server:
            while awaited and time.monotonic() < give_up:
                server.settimeout(max(0.1, give_up - time.monotonic()))
                try:
                    connection, _ = server.accept()
                    connection.settimeout(2.0)
                    lines = _Lines(connection)
                    hello = lines.wait_for_one()
                except OSError:
                    continue
                if hello is None or hello.get("token") != token or hello.get("rank") not in awaited:
                    connection.close()
                    continue
                connection.setblocking(False)
                rank = self._ranks[hello["rank"]]
                rank.lines = lines
                self._selector.register(connection, selectors.EVENT_READ, rank)
                awaited.remove(rank.number)
        for number in awaited:
            del self._ranks[number]

    def _connect(self, host):
        self._world.gather(host)
        self._first_host, addresses, port, token = self._world.broadcast(None)
        addresses = ["127.0.0.1"] if host == self._first_host else addresses
        problem = "it has no address"
        for address in addresses:
            try:
                connection = socket.create_connection((address, port), _CONNECT_S / len(addresses))
            except OSError as error:
                problem = error
                continue
            self._lines = _Lines(connection)
            self._lines.send({"token": token, "rank": self._world.rank})
            connection.setblocking(False)
            break
        alone = (
            f"rank {self._world.rank} on {host} cannot reach rank 0 at {', '.join(addresses)} "
            f"({problem}): it watches only itself"
        )
        self._world.gather(None if self._lines else alone)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self):
        me = self._ranks.get(self._world.rank) or _Rank(self._world.rank, socket.gethostname())
        silence = _Clock()  # of rank 0
        while not self._closing.is_set():
            me.hear(self._state())
            if self._world.is_first:
                self._poll()
            else:
                self._send_state(me, silence)
                self._closing.wait(self._tick_s)
        self._send_shutdown()

    def _state(self):
        return {
            "beat": self._beat,
            "steps": self._steps,
            "doing": self._doing,
            "input": self.waiting(),
            **(self._failure or {}),
        }

    def _poll(self):
        """Polls all ranks once, on rank 0."""
        self.on_tick()
        if not self._selector.get_map():
            self._closing.wait(self._tick_s)
        for key, _ in self._selector.select(self._tick_s) if self._selector.get_map() else ():
            rank = key.data
            messages, closed = rank.lines.receive()
            for message in messages:
                rank.hear(message)
            if closed:
                self._selector.unregister(key.fileobj)
                rank.gone = True
        ranks = list(self._ranks.values())
        for rank in ranks:
            if rank.number and not rank.gone:
                rank.lines.send({"beat": self._beat})
            paused_s = rank.clock.tick(self._tick_s)
            rank.silence.tick(self._tick_s)
        verdict = _verdict(ranks, self._stall_s - 2 * self._tick_s)
        if verdict is not None and not self._closing.is_set():
            line, status = verdict
            # After such a long pause the others have timed out this process, and reported it.
            self._end(line if paused_s < self._stall_s else None, status)

    def _end(self, line, status):
        """Ends this process, rank 0, and all others."""
        if line is not None:
            print(f"failed: {line}", file=sys.stderr, flush=True)
            if status != EXIT_STOPPED:
                # Before the others end: a launcher that sees one end soon kills this one too.
                self._call_on_failure(line)
        for rank in self._ranks.values():
            if rank.lines is not None:
                rank.lines.send({"end": status})
        sys.stdout.flush()
        os._exit(status)

    def _call_on_failure(self, line):
        """Calls `on_failure`, in a thread because the job may be blocked by the disk."""
        thread = threading.Thread(target=self.on_failure, args=(line,), daemon=True)
        thread.start()
        thread.join(_RECORD_S)

    def _send_state(self, me, silence):
        """Reports to rank 0 and checks that it responds, on the other ranks."""
        me.clock.tick(self._tick_s)
        silence.tick(self._tick_s)
        if self._lines is None:
            verdict = _verdict([me], self._stall_s - 2 * self._tick_s)
            if verdict is not None:
                print(f"failed: {verdict[0]}", file=sys.stderr, flush=True)
                os._exit(verdict[1])
            return
        self._lines.send(self._state())
        messages, closed = self._lines.receive()
        if messages:
            silence.seconds = 0.0
        for message in messages:
            if "end" in message:
                os._exit(message["end"])
            if message.get("bye"):
                self._closing.set()
                return
        if closed or silence.seconds >= self._stall_s:
            if self._world.rank == 1:  # only one of the surviving ranks prints
                why = _EXITED if closed else f"has not responded for {silence.seconds:.0f} s"
                line = f"failed: rank 0 on {self._first_host} {why}; {_REMEDY}"
                print(line, file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)

    def _send_shutdown(self):
        for lines in [self._lines, *(rank.lines for rank in self._ranks.values())]:
            if lines is not None:
                lines.send({"bye": True})
                lines.close()


_EXITED = "exited without a shutdown message: killed, or out of memory"
_REMEDY = "the last checkpoint is kept, run again with --resume"


def _verdict(ranks, limit_s):
    """Returns (line, status) if the job must end, otherwise None.

    Args:
      ranks: the _Ranks.
      limit_s: seconds without progress after which a rank is stalled.
    """
    for rank in ranks:
        if rank.failed is not None:
            return f"{rank} {rank.failed}; {_REMEDY}", rank.status
    for rank in ranks:
        if rank.gone and not rank.left:
            return f"{rank} {_EXITED}; {_REMEDY}", 1
    for rank in ranks:
        if rank.silence.seconds >= limit_s and not rank.left:
            return _no_response(rank), 1
    stalled = [rank for rank in ranks if rank.is_stalled(limit_s)]
    if not stalled:
        return None
    reading = [rank for rank in stalled if rank.input is not None]
    if reading:
        worst = max(reading, key=lambda each: each.input[0])
        seconds, what = worst.input
        return f"{worst} has waited {seconds:.0f} s for {what}; {_REMEDY}", 1
    # Its last step can be older than its last message: what it does now is unknown.
    silent = [rank for rank in stalled if rank.silence.seconds >= limit_s / 2]
    if silent:
        return _no_response(max(silent, key=lambda each: each.silence.seconds)), 1
    worst = min(stalled, key=lambda each: (each.steps, -each.clock.seconds))
    return (
        f"{worst} has made no progress for {worst.clock.seconds:.0f} s, in {worst.doing} after "
        f"step {worst.steps}; {_REMEDY}"
    ), 1


def _no_response(rank):
    return f"{rank} has not responded for {rank.silence.seconds:.0f} s; {_REMEDY}"


class _Clock:
    """Seconds that passed while this thread ran, since they were last set to 0."""

    def __init__(self):
        self._at = time.monotonic()
        self.seconds = 0.0

    def tick(self, tick_s):
        """Returns the time since the last tick; counts at most four times `tick_s` of it."""
        now = time.monotonic()
        passed_s, self._at = now - self._at, now
        self.seconds += min(passed_s, 4 * tick_s)
        return passed_s


class _Rank:
    """The last known state of one rank."""

    def __init__(self, number, host):
        self.number = number
        self.host = host
        self.lines = None
        self.gone = self.left = False
        self.failed = self.status = None
        self.beat = self.steps = 0
        self.doing, self.input = "setup", None
        self.clock = _Clock()  # since its last progress
        self.silence = _Clock()  # since its last message

    def __str__(self):
        return f"rank {self.number} on {self.host}"

    def hear(self, message):
        self.silence.seconds = 0.0
        if message.get("bye"):
            self.left = True
            return
        if message["beat"] != self.beat:
            self.clock.seconds = 0.0
        self.beat, self.steps = message["beat"], message["steps"]
        self.doing, self.input = message["doing"], message["input"]
        self.failed, self.status = message.get("failed"), message.get("status")

    def is_stalled(self, limit_s):
        if self.left or self.clock.seconds < limit_s:
            return False
        waits = self.input is not None and self.input[0] >= limit_s
        return waits or self.steps > 0 or self.clock.seconds >= limit_s + _FIRST_STEP_S


class _Lines:
    """JSON messages, one per line, over a socket; errors of a broken socket are ignored."""

    def __init__(self, connection):
        self._socket = connection
        self._buffer = b""

    def send(self, message):
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # closed, which `receive` reports, or so slow that its buffer is full
            pass

    def receive(self):
        """Returns (messages, closed); `closed` is True if the other side has closed."""
        closed = False
        try:
            while data := self._socket.recv(2**16):
                self._buffer += data
            closed = True
        except BlockingIOError:
            pass
        except OSError:
            closed = True
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines], closed

    def close(self):
        self._socket.close()

    def wait_for_one(self):
        """Returns the first message of a new connection, or None if it is not from a rank."""
        while b"\n" not in self._buffer and len(self._buffer) < 4096:
            data = self._socket.recv(4096)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None


def _addresses(host):
    """Returns addresses at which other hosts may reach this one, the likeliest first."""
    found = [host]
    try:
        found += socket.gethostbyname_ex(host)[2]
    except OSError:
        pass
    return [each for each in dict.fromkeys(found) if not each.startswith("127.")]


def _is_broken_collective(kind, error):
    return kind.__module__.startswith(("tensorflow", "horovod"))


def _first_line(error):
    return str(error).strip().split("\n")[0][:300]
