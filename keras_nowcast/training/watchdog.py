"""Ends all ranks of a job, with one line that says why, when one of them cannot go on.

A rank that is killed, out of memory or stuck in a read leaves the others waiting in a collective.
So a thread in each rank tells rank 0 twice a second what the rank does, over a connection of its
own beside Horovod's, and rank 0 decides. A connection that closes without a farewell is a process
that died. Time counts while rank 0's thread runs, so that a job that was suspended as a whole and
goes on blames nobody.
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
_FIRST_STEP_S = 900.0  # beyond the limit: the first step loads, builds and compiles
_CONNECT_S = 10.0
_CAUSE_S = 3.0  # a broken collective is told so much later than what may have caused it
_RECORD_S = 1.0  # mpirun kills a second after it tells to end


class Watchdog:
    """Watches over the ranks of a job while it is open.

    Args:
      world: the World; a single process watches itself.
      stall_seconds: within so many seconds without a step the job ends.
      waiting: function that returns (seconds, words) since when this rank waits for which input,
        or None.
      on_tick: called on rank 0 with every look, from the thread; quick, and raises nothing.
      on_failure: called on rank 0 with the reason before it ends the job, from a thread that is
        waited for a second at most; it must not need another rank.
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
        self._doing = "its set-up"
        self._beat = 0  # moves with every sign of progress
        self._failure = None
        self._closing = threading.Event()
        self._ranks = {}  # on rank 0: what is known of each rank
        self._lines = None  # on other ranks: the connection to rank 0

    def alive(self, doing, step=False):
        """Tells that this rank makes progress, what it does next, and whether a step was made."""
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
        """Tells rank 0 that this rank alone failed, and waits for the end of the job."""
        import traceback

        if issubclass(kind, KeyboardInterrupt):
            reason, status = "was stopped by a second Ctrl-C", EXIT_STOPPED
        elif issubclass(kind, MemoryError) or "OOM when" in str(error):
            reason, status = f"ran out of memory ({_first_line(error)})", EXIT_FAILED
        elif _is_broken_collective(kind, error):
            time.sleep(_CAUSE_S)  # by now the job has ended, if the cause is another rank's death
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
        """Accepts the ranks; those that do not come are not watched."""
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
            f"({problem}): it watches itself alone"
        )
        self._world.gather(None if self._lines else alone)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self):
        me = self._ranks.get(self._world.rank) or _Rank(self._world.rank, socket.gethostname())
        silence = _Clock()  # of rank 0
        while not self._closing.is_set():
            me.hear(self._state())
            if self._world.is_first:
                self._look()
            else:
                self._tell(me, silence)
                self._closing.wait(self._tick_s)
        self._say_farewell()

    def _state(self):
        return {
            "beat": self._beat,
            "steps": self._steps,
            "doing": self._doing,
            "input": self.waiting(),
            **(self._failure or {}),
        }

    def _look(self):
        """What rank 0 does each tick."""
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
            # After a pause that long it is this process that the others gave up, and told so.
            self._end(line if paused_s < self._stall_s else None, status)

    def _end(self, line, status):
        """Ends this process, rank 0, and with it the others."""
        if line is not None:
            print(f"failed: {line}", file=sys.stderr, flush=True)
            if status != EXIT_STOPPED:
                # Before the others end: a launcher that sees one end soon kills this one too.
                self._leave_word(line)
        for rank in self._ranks.values():
            if rank.lines is not None:
                rank.lines.send({"end": status})
        sys.stdout.flush()
        os._exit(status)

    def _leave_word(self, line):
        """Calls `on_failure`, in a thread because the disk may be what the job waits for."""
        leave = threading.Thread(target=self.on_failure, args=(line,), daemon=True)
        leave.start()
        leave.join(_RECORD_S)

    def _tell(self, me, silence):
        """What the other ranks do each tick."""
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
            if self._world.rank == 1:  # one of those that are left prints
                why = (
                    "ended without a word: killed, or out of memory"
                    if closed
                    else (f"has not answered for {silence.seconds:.0f} s")
                )
                line = f"failed: rank 0 on {self._first_host} {why}; {_LAST_WORDS}"
                print(line, file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)

    def _say_farewell(self):
        for lines in [self._lines, *(rank.lines for rank in self._ranks.values())]:
            if lines is not None:
                lines.send({"bye": True})
                lines.close()


_LAST_WORDS = "the last checkpoint is kept, run again with --resume"


def _verdict(ranks, limit_s):
    """Returns (line, status) when the job must end, else None.

    Args:
      ranks: _Ranks.
      limit_s: seconds without progress that are too many.
    """
    for rank in ranks:
        if rank.failed is not None:
            return f"{rank} {rank.failed}; {_LAST_WORDS}", rank.status
    for rank in ranks:
        if rank.gone and not rank.left:
            return f"{rank} ended without a word: killed, or out of memory; {_LAST_WORDS}", 1
    for rank in ranks:
        if rank.silence.seconds >= limit_s and not rank.left:
            return _no_answer(rank), 1
    stuck = [rank for rank in ranks if rank.is_stuck(limit_s)]
    if not stuck:
        return None
    reading = [rank for rank in stuck if rank.input is not None]
    if reading:
        worst = max(reading, key=lambda each: each.input[0])
        seconds, what = worst.input
        return f"{worst} has waited {seconds:.0f} s for {what}; {_LAST_WORDS}", 1
    # Its last step may be older than its last word: what it is in now is not known.
    silent = [rank for rank in stuck if rank.silence.seconds >= limit_s / 2]
    if silent:
        return _no_answer(max(silent, key=lambda each: each.silence.seconds)), 1
    worst = min(stuck, key=lambda each: (each.steps, -each.clock.seconds))
    return (
        f"{worst} has made no progress for {worst.clock.seconds:.0f} s, in {worst.doing} after "
        f"step {worst.steps}; {_LAST_WORDS}"
    ), 1


def _no_answer(rank):
    return f"{rank} has not answered for {rank.silence.seconds:.0f} s; {_LAST_WORDS}"


class _Clock:
    """Seconds that went by while this thread ran, since they were last set to 0."""

    def __init__(self):
        self._at = time.monotonic()
        self.seconds = 0.0

    def tick(self, tick_s):
        """Counts what went by since the last tick, meant to be `tick_s`; returns all of it."""
        now = time.monotonic()
        passed_s, self._at = now - self._at, now
        self.seconds += min(passed_s, 4 * tick_s)
        return passed_s


class _Rank:
    """What is known of one rank."""

    def __init__(self, number, host):
        self.number = number
        self.host = host
        self.lines = None
        self.gone = self.left = False
        self.failed = self.status = None
        self.beat = self.steps = 0
        self.doing, self.input = "its set-up", None
        self.clock = _Clock()  # since its last progress
        self.silence = _Clock()  # since it was last heard of

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

    def is_stuck(self, limit_s):
        if self.left or self.clock.seconds < limit_s:
            return False
        waits = self.input is not None and self.input[0] >= limit_s
        return waits or self.steps > 0 or self.clock.seconds >= limit_s + _FIRST_STEP_S


class _Lines:
    """JSON messages, one a line, over a socket; a broken one is silent."""

    def __init__(self, connection):
        self._socket = connection
        self._buffer = b""

    def send(self, message):
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # gone, which `receive` tells, or so slow that nothing more fits
            pass

    def receive(self):
        """Returns (messages, whether the other side has closed)."""
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
        """Returns the first message of a new connection, None if it is not one of ours."""
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
    """Returns addresses under which other hosts may reach this one, the likeliest first."""
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
