"""A network in virtual time: datagrams, streams and kept connections between simulated hosts, and their faults.

Decides when what one process sends is read by another, if ever; and what a kernel does for a process that is slow,
stopped or gone. Never decides what anything means: processes are whatever implements `Process`, bytes are bytes.

What a fault looks like from outside follows the real thing (membership.md, "Exit evidence"):

- a process that ends lets every peer read the end of its connection, and from then on its port refuses (`process`), or
  refuses for 50 to 200 ms and is silent after that (`container`); a machine that loses power is `silent` at once;
- a paused or starved process closes nothing, its kernel still accepts connections and keeps what arrives, as far as its
  receive buffer goes; when it runs again it reads what waits before any timer fires;
- a network that is cut is silent: datagrams vanish, streams and connections hang. Only a partition that is said to be
  refusing answers connects with a refusal.

Loss takes datagrams for good, and makes TCP late: a lost segment comes again after a time-out, and what was sent after
it waits for it.

Invariants:
- The same calls in the same order give the same run: every random purpose has its own source, derived from the seed,
  and nothing iterates a set.
- Time never goes back, and what happens at one instant happens in the order in which it was scheduled.
- A process that is paused or gone is never called.
"""

from __future__ import annotations

import hashlib
import math
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Literal, TypeAlias

Name: TypeAlias = str
"""Of a host: its address."""
CrashKind: TypeAlias = Literal["process", "container", "silent"]

TIMER_STEP_S = 1e-6
"""Least advance between two timer calls of a process: a deadline of *now* takes some time too."""
RECEIVE_BUFFER_BYTES = 212_992
"""Linux's net.core.rmem_default: what a UDP socket holds for a process that does not read."""
PACKET_OVERHEAD_BYTES = 768
"""What Linux charges a receive buffer for a packet beyond its content, about."""
SYN_RETRY_S = 1.0
"""Linux's first time-out of an unanswered connect."""
SEGMENT_RETRY_S = 0.2
"""Linux's least retransmission time-out. Both double with each further loss."""
SEGMENT_RETRY_MAX_S = 120.0
"""Linux's greatest retransmission time-out."""
CONNECT_TIMEOUT_S = 1.0
HELLO_TIMEOUT_S = 2.0
"""After the connect. Both as in `zephyr.peer.connection`."""
KEEPALIVE_S = 11.0
"""After that long of silence the kernel ends a connection: 5 s idle and 3 probes, 2 s apart, as
`zephyr.peer.connection` asks for."""
REFUSAL_LEAST_S = 0.050
REFUSAL_MOST_S = 0.200
"""For so long a container's port refuses after its process ended; then its network is gone."""
STARVED_LATE_S = (0.5, 2.5)
"""How late a starved process reads, from least to most: Lifeguard's scenario."""


# --- time -------------------------------------------------------------------------------------------


class Scheduler:
    """A heap of what will happen, and the clock that goes from one to the next."""

    __slots__ = ("_queue", "_serial", "_stopped", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._serial = 0
        self._stopped = False

    def at(self, at_s: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do something at a virtual second; now, if that is over."""
        self._serial = serial = self._serial + 1
        now_s = self.now_s
        at_s = at_s if at_s > now_s else now_s  # noqa: FURB136  # max() takes four times as long
        heappush(self._queue, (at_s, serial, action, arguments))

    def run_until(self, end_s: float) -> None:
        """Let time pass, until `end_s` or until `stop` is called."""
        queue = self._queue
        self._stopped = False
        while queue and queue[0][0] <= end_s:
            self.now_s, _, action, arguments = heappop(queue)
            action(*arguments)
            if self._stopped:
                return
        self.now_s = end_s

    def stop(self) -> None:
        """End the present `run_until` after the present action, at the present time."""
        self._stopped = True

    def __len__(self) -> int:
        return len(self._queue)


class EventLog:
    """What happened, as lines or as a running hash of them: two runs are the same when their hashes are."""

    def __init__(self, scheduler: Scheduler, *, keep: bool) -> None:
        """`keep`: the lines too, not the hash alone."""
        self._scheduler = scheduler
        self._hash = hashlib.blake2b(digest_size=8)
        self.lines: list[str] | None = [] if keep else None
        self.line_count = 0

    def write(self, text: str) -> None:
        """Add one line, with the time before it."""
        line = f"{self._scheduler.now_s:.6f} {text}"
        self.line_count += 1
        self._hash.update(line.encode() + b"\n")
        if self.lines is not None:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Fingerprint of every line so far."""
        return self._hash.hexdigest()


# --- quality of a path ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Constant:
    """Every packet takes equally long."""

    latency_s: float

    def sampler(self, rng: random.Random) -> Callable[[], float]:  # noqa: ARG002  # the others need it
        """Return a function that gives the latency of the next packet."""
        latency_s = self.latency_s
        return lambda: latency_s


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every latency between two bounds is equally likely."""

    low_s: float
    high_s: float

    def sampler(self, rng: random.Random) -> Callable[[], float]:
        """Return a function that gives the latency of the next packet."""
        low_s, span_s, draw = self.low_s, self.high_s - self.low_s, rng.random
        return lambda: low_s + span_s * draw()


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Most latencies near the median, some far above: what real networks show."""

    median_s: float
    sigma: float
    """Of the logarithm: 0.5 puts the 99th percentile at 3.2 times the median, 1.0 at 10 times."""
    floor_s: float = 0.0
    """Added to each: the part that light and cable take."""
    most_s: float = 10.0

    def sampler(self, rng: random.Random) -> Callable[[], float]:
        """Return a function that gives the latency of the next packet."""
        median_s, sigma, floor_s, most_s = self.median_s, self.sigma, self.floor_s, self.most_s
        gauss, exp = rng.gauss, math.exp
        return lambda: min(floor_s + median_s * exp(sigma * gauss(0.0, 1.0)), most_s)


Latency: TypeAlias = Constant | Uniform | Lognormal


@dataclass(frozen=True, slots=True)
class Path:
    """How good the way from one host to another is."""

    latency: Latency = Uniform(0.0002, 0.005)
    loss: float = 0.0
    """Share of packets that vanish."""
    datagram_loss: float = 0.0
    """Of what loss leaves, the share of datagrams that vanish: 1 is a firewall that lets TCP pass and no UDP."""
    duplicate: float = 0.0
    """Share of datagrams that arrive twice."""
    reorder: float = 0.0
    """Share of datagrams that others overtake, because they take longer."""
    reorder_late_s: tuple[float, float] = (0.005, 0.1)
    """By how much, from least to most."""


class _LivePath:
    """A `Path` ready for use."""

    __slots__ = (
        "datagram_loss",
        "delay_s",
        "duplicate",
        "loss",
        "path",
        "reorder",
        "reorder_least_s",
        "reorder_span_s",
    )

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.delay_s = path.latency.sampler(rng)
        self.loss = path.loss
        self.datagram_loss = 1 - (1 - path.loss) * (1 - path.datagram_loss)
        """Both losses together."""
        self.duplicate = path.duplicate
        self.reorder = path.reorder
        self.reorder_least_s = path.reorder_late_s[0]
        self.reorder_span_s = path.reorder_late_s[1] - path.reorder_late_s[0]


# --- hosts ------------------------------------------------------------------------------------------


class Process:
    """What runs on a host: override what it listens to. Never called while it is paused, nor after its end."""

    def datagram_received(self, source: Name, data: bytes) -> None:
        """A datagram was read."""

    def stream_received(self, stream: Stream, data: bytes) -> None:
        """Somebody opened a stream to here and sent this; answer by `Network.reply`, now, later or never."""

    def stream_replied(self, stream_id: int, data: bytes) -> None:
        """The other side of an own stream answered."""

    def stream_failed(self, stream_id: int, reason: str) -> None:
        """An own stream ended without an answer."""

    def connected(self, peer: Name) -> None:
        """An own connection is up: the other process greeted."""

    def connect_failed(self, peer: Name, reason: str) -> None:
        """An own connection could not be made: `refused`, or `timed out`."""

    def disconnected(self, peer: Name, *, goodbye: bool, reason: str) -> None:
        """An own connection that was up ended."""

    def frame_received(self, source: Name, data: bytes) -> None:
        """A frame arrived over a connection, which either side made."""

    def timer_fired(self) -> None:
        """The time that was given to `Network.arm` has come."""

    def resumed(self, paused_s: float) -> None:
        """The process runs again and has read what waited. Due timers fire next."""


class Host:
    """One address: its kernel, and the process that runs there."""

    __slots__ = (
        "_late_rng", "boot", "bytes_received", "bytes_sent", "connections", "dropped_full", "group", "inbox",
        "inbox_bytes", "kernel", "life", "name", "number", "overdue", "packets_received", "packets_sent",
        "paused_since_s", "process", "reads_at_once", "refuses_peers", "refusing_until_s", "served", "skew_ms",
        "starved_s", "streams", "timer_s", "wake_serial",
    )  # fmt: skip

    def __init__(self, name: Name, number: int, late_rng: random.Random) -> None:
        self.name = name
        self.number = number
        self.life = 0
        """Counts the processes that ran here."""
        self.boot = 0
        """Counts the kernels or networks that were here: with one goes what it had still to send."""
        self.process: Process | None = None
        self.kernel: Literal["listening", "refusing", "silent"] = "silent"
        """What a connect meets here."""
        self.refusing_until_s = math.inf
        self.group = 0
        """Hosts of different groups cannot reach each other."""
        self.refuses_peers = False
        """Its port for connections is closed, the one for streams is not."""
        self.skew_ms = 0
        """How far this host's calendar clock is ahead. Its monotonic clock is as good as anyone's."""
        self.paused_since_s: float | None = None
        self.starved_s: tuple[float, float] | None = None
        self.reads_at_once = False
        """The process runs and is neither paused nor starved."""
        self.inbox: deque[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = deque()
        """What the kernel keeps until the process reads it: (when that is, charged bytes, what it is)."""
        self.inbox_bytes = 0
        self.wake_serial = 0
        """Tells the present plan to read the inbox from earlier ones."""
        self.overdue: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """Timers that came while the process was paused."""
        self.timer_s = math.inf
        self.connections: dict[Host, Connection] = {}
        """Made by this host, to each target at most one."""
        self.served: dict[Connection, None] = {}
        """Made by others, and accepted by the process here."""
        self.streams: dict[Stream, None] = {}
        """Open ones, of both directions."""
        self.packets_sent = 0
        self.packets_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.dropped_full = 0
        """Datagrams that the receive buffer had no room for."""
        self._late_rng = late_rng

    @property
    def running(self) -> bool:
        """A process is there, be it paused."""
        return self.process is not None

    def late_s(self) -> float:
        """Return how long the starved process lets the next arrival wait."""
        assert self.starved_s is not None
        return self._late_rng.uniform(*self.starved_s)


class _Line:
    """One direction of a TCP connection: everything arrives once and in order, or not at all."""

    __slots__ = ("boot", "closed", "last_s", "receiver", "sender", "waiting")

    def __init__(self, sender: Host, receiver: Host) -> None:
        self.sender = sender
        self.receiver = receiver
        self.boot = sender.boot
        self.waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        """What was sent but did not pass yet."""
        self.last_s = 0.0
        """Arrival of the last that did."""
        self.closed = False


class Connection:
    """A kept connection that `source` made."""

    __slots__ = ("accepted", "back", "forth", "source", "target", "up")

    def __init__(self, source: Host, target: Host) -> None:
        self.source = source
        self.target = target
        self.forth = _Line(source, target)
        self.back = _Line(target, source)
        self.accepted = False
        """By the kernel there."""
        self.up = False
        """The source read the greeting of the process there."""


class Stream:
    """One question and one answer over a TCP connection of its own."""

    __slots__ = ("back", "forth", "over", "source", "stream_id", "target")

    def __init__(self, source: Host, target: Host, stream_id: int) -> None:
        self.source = source
        self.target = target
        self.stream_id = stream_id
        self.forth = _Line(source, target)
        self.back = _Line(target, source)
        self.over = False


class Network:
    """Hosts, and everything between them."""

    def __init__(
        self, scheduler: Scheduler, seed: int | str, *, path: Path | None = None, log: EventLog | None = None
    ) -> None:
        """`path` holds between any two hosts, unless `set_path` says otherwise."""
        self.scheduler = scheduler
        self.log = log
        self.hosts: dict[Name, Host] = {}
        self.receive_buffer_bytes = RECEIVE_BUFFER_BYTES
        self.packets_lost = 0
        """Datagrams that loss or a cut took."""
        self._seed = seed
        self._latency_rng = self._rng("latency")
        self._loss_draw = self._rng("loss").random
        self._duplicate_draw = self._rng("duplicate").random
        self._reorder_draw = self._rng("reorder").random
        self._refusal_rng = self._rng("refusal")
        self._path = _LivePath(path or Path(), self._latency_rng)
        self._paths: dict[tuple[int, int], _LivePath] = {}
        self._blocked: dict[tuple[int, int], bool] = {}
        self._refusing = False
        self._cut = False
        """Some pair cannot reach each other: look before sending."""

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self._seed}/network/{purpose}")

    def record(self, text: str) -> None:
        """Write a line of the event log, if there is one."""
        if self.log is not None:
            self.log.write(text)

    # --- hosts ----------------------------------------------------------------------------------------

    def add(self, name: Name) -> Host:
        """Add a host on which nothing runs yet, so that it is silent."""
        assert name not in self.hosts
        number = len(self.hosts)
        self.hosts[name] = host = Host(name, number, self._rng(f"late/{number}"))
        return host

    def run(self, host: Host, process: Process) -> None:
        """Start a process on a host where none runs."""
        assert host.process is None
        host.life += 1
        host.process = process
        host.kernel = "listening"
        host.refusing_until_s = math.inf
        host.reads_at_once = host.starved_s is None
        self.record(f"{host.name} started")

    def crash(self, host: Host, kind: CrashKind = "process") -> None:
        """End a process without a goodbye; what its kernel and its network do then depends on `kind`."""
        self.record(f"{host.name} crashed {kind}")
        host.kernel = "silent" if kind == "silent" else "refusing"
        if kind == "container":
            lasts_s = self._refusal_rng.uniform(REFUSAL_LEAST_S, REFUSAL_MOST_S)
            host.refusing_until_s = self.scheduler.now_s + lasts_s
        self._end(host, goodbye=False, retries=kind == "process")
        host.boot += kind != "process"

    def stop(self, host: Host) -> None:
        """End a process that takes its leave: its peers read a goodbye, its port refuses."""
        self.record(f"{host.name} stopped")
        host.kernel = "refusing"
        self._end(host, goodbye=True, retries=True)

    def _end(self, host: Host, *, goodbye: bool, retries: bool) -> None:
        """Take the process away, and let every other side read the end, unless the kernel went as well."""
        assert host.process is not None
        host.process = None
        host.reads_at_once = False
        host.paused_since_s = None
        host.inbox.clear()
        host.inbox_bytes = 0
        host.overdue.clear()
        host.timer_s = math.inf
        silent = host.kernel == "silent"
        connections, served, streams = list(host.connections.values()), list(host.served), list(host.streams)
        host.connections.clear()
        host.served.clear()
        host.streams.clear()
        for connection in connections:
            self._close_line(connection.forth, self._forget, (connection,), silent=silent, retries=retries)
        for connection in served:
            self._close_line(connection.back, self._read_end, (connection, goodbye), silent=silent, retries=retries)
            if silent:
                self._watch_keepalive(connection)
        for stream in streams:
            if stream.source is host:
                self._finish_stream(stream)
            else:
                self._close_line(stream.back, self._read_stream_end, (stream,), silent=silent, retries=retries)

    # --- what a process asks for ----------------------------------------------------------------------

    def send(self, source: Host, target: Name, data: bytes) -> None:
        """Send a datagram. An address where no host is swallows it."""
        source.packets_sent += 1
        source.bytes_sent += len(data)
        host = self.hosts.get(target)
        if host is None:
            return
        path = self._path
        if self._paths:
            path = self._paths.get((source.number, host.number), path)
        if (self._cut and not self._reaches(source, host)) or (
            path.datagram_loss and self._loss_draw() < path.datagram_loss
        ):
            self.packets_lost += 1
            return
        delay_s = path.delay_s()
        if path.reorder and self._reorder_draw() < path.reorder:
            delay_s += path.reorder_least_s + path.reorder_span_s * self._reorder_draw()
        scheduler = self.scheduler
        scheduler.at(scheduler.now_s + delay_s, self._arrive, host, source.name, data)
        if path.duplicate and self._duplicate_draw() < path.duplicate:
            scheduler.at(scheduler.now_s + path.delay_s(), self._arrive, host, source.name, data)

    def open_stream(self, source: Host, target: Name, stream_id: int, data: bytes, timeout_s: float) -> None:
        """Connect, send this, and wait for the answer: `stream_replied` or `stream_failed`."""
        scheduler = self.scheduler
        host = self.hosts.get(target)
        if host is None:
            host = self.add(target)  # nobody there: silent
        stream = Stream(source, host, stream_id)
        source.streams[stream] = None
        self.call_at(source, scheduler.now_s + timeout_s, self._fail_stream, stream, "timed out")
        if self._refuses_between(source, host):
            self._carry_past(stream.source, host, self._read_stream_refusal, stream)
        else:
            self._carry(stream.forth, self._stream_knocks, (stream, data), SYN_RETRY_S)

    def reply(self, stream: Stream, data: bytes) -> None:
        """Answer a stream, if its other side still waits."""
        if not stream.over:
            self._carry(stream.back, self._stream_answered, (stream, data))

    def connect(self, source: Host, target: Name) -> None:
        """Make a connection that is kept: `connected` or `connect_failed`, and after that `disconnected`."""
        host, now_s = self.hosts.get(target), self.scheduler.now_s
        if host is None:
            host = self.add(target)  # nobody there: silent
        assert host not in source.connections
        source.connections[host] = connection = Connection(source, host)
        self.call_at(source, now_s + CONNECT_TIMEOUT_S, self._give_up_connecting, connection)
        if self._refuses_between(source, host):
            self._carry_past(source, host, self._refuse, connection)
        else:
            self._carry(connection.forth, self._knock, (connection,), SYN_RETRY_S)

    def connect_at_once(self, source: Host, target: Host) -> None:
        """Make a connection without a packet or an event: for runs that start in the middle of a cluster's life."""
        assert target not in source.connections
        assert target.running
        source.connections[target] = connection = Connection(source, target)
        connection.accepted = connection.up = True
        target.served[connection] = None

    def send_frame(self, source: Host, target: Name, data: bytes) -> bool:
        """Send over the own connection to a peer. Returns False, and sends nothing, when it is not up."""
        connection = source.connections.get(self.hosts[target]) if target in self.hosts else None
        if connection is None or not connection.up:
            return False
        source.packets_sent += 1
        source.bytes_sent += len(data)
        self._carry(connection.forth, self._frame_arrives, (connection, data))
        return True

    def hang_up(self, source: Host, target: Name) -> None:
        """End the own connection to a peer with a goodbye, or the attempt to make it. Not reported here."""
        connection = source.connections.pop(self.hosts[target], None) if target in self.hosts else None
        if connection is not None:
            connection.back.closed = True
            self._carry(connection.forth, self._forget, (connection,))

    def arm(self, host: Host, at_s: float) -> None:
        """Call `timer_fired` at that time, unless an earlier one is asked for already: then at that."""
        if at_s < host.timer_s:
            now_s = self.scheduler.now_s
            host.timer_s = at_s if at_s > now_s else now_s + TIMER_STEP_S
            self.scheduler.at(host.timer_s, self._fire, host, host.timer_s)

    def call_at(self, host: Host, at_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Set a timer of the process, which ends with it, and waits while it is paused."""
        self.scheduler.at(at_s, self._timer_comes, host, host.life, action, arguments)

    # --- faults ---------------------------------------------------------------------------------------

    def set_path(self, path: Path, source: Host | None = None, target: Host | None = None) -> None:
        """Set the quality of the way from one host to another, or of all ways that have none of their own."""
        live = _LivePath(path, self._latency_rng)
        self.record(f"path {source.name if source else '*'} {target.name if target else '*'} {path}")
        if source is None or target is None:
            assert source is target
            self._path = live
        else:
            self._paths[source.number, target.number] = live

    @property
    def path(self) -> Path:
        """The quality of all ways that have none of their own."""
        return self._path.path

    def block(self, source: Host, target: Host) -> None:
        """Let nothing pass from one host to another."""
        self.record(f"blocked {source.name} {target.name}")
        self._blocked[source.number, target.number] = True
        self._note_cut()

    def unblock(self, source: Host, target: Host) -> None:
        """End a block."""
        self.record(f"unblocked {source.name} {target.name}")
        self._blocked.pop((source.number, target.number), None)
        self._cut = bool(self._blocked) or any(host.group for host in self.hosts.values())

    def partition(self, groups: Iterable[Iterable[Host]], *, refusing: bool = False) -> None:
        """Cut the network between groups, and from each to the hosts that none names. Replaces an earlier partition.

        Silent, unless refusing: then connects across are refused, and connections across end at once.
        """
        for host in self.hosts.values():
            host.group = 0
        for number, group in enumerate(groups, 1):
            members = list(group)
            self.record(f"partition{' refusing' if refusing else ''} {','.join(host.name for host in members)}")
            for host in members:
                host.group = number
        self._refusing = refusing
        self._note_cut()

    def heal(self) -> None:
        """End every block and partition; qualities of paths stay as they are."""
        self.record("healed")
        self._blocked.clear()
        for host in self.hosts.values():
            host.group = 0
        self._refusing = self._cut = False

    def _note_cut(self) -> None:
        self._cut = True
        for host in self.hosts.values():
            for connection in list(host.connections.values()):
                if not (self._reaches(host, connection.target) and self._reaches(connection.target, host)):
                    if self._refuses_between(host, connection.target):
                        connection.target.served.pop(connection, None)
                        self._carry_past(host, connection.target, self._read_end, connection, False)
                    else:
                        self._watch_keepalive(connection)

    def starve(self, host: Host, late_s: tuple[float, float] | None = STARVED_LATE_S) -> None:
        """Let a process read everything so much late, in order, with its timers on time. None ends that."""
        self.record(f"{host.name} starved {late_s}")
        host.starved_s = late_s
        host.reads_at_once = host.running and late_s is None and host.paused_since_s is None
        if late_s is None and host.paused_since_s is None:
            self._drain(host, all_of_it=True)

    def refuse_peers(self, host: Host, *, refuses: bool) -> None:
        """Let a host end the connections that others made to it, and refuse new ones, while everything else works."""
        self.record(f"{host.name} {'refuses' if refuses else 'accepts'} peers")
        host.refuses_peers = refuses
        if refuses:
            for connection in list(host.served):
                self._carry(connection.back, self._read_end, (connection, False))
            host.served.clear()

    def pause(self, host: Host, duration_s: float) -> None:
        """Stop a process as SIGSTOP does; it runs again after that time, unless it ended meanwhile."""
        assert host.running
        if host.paused_since_s is None:
            self.record(f"{host.name} paused {duration_s:.3f}")
            host.paused_since_s = self.scheduler.now_s
            host.reads_at_once = False
            self.scheduler.at(self.scheduler.now_s + duration_s, self._resume, host, host.paused_since_s, host.life)

    def _resume(self, host: Host, since_s: float, life: int) -> None:
        if host.paused_since_s != since_s or host.life != life:
            return
        self.record(f"{host.name} resumed")
        host.paused_since_s = None
        host.reads_at_once = host.starved_s is None
        self._drain(host, all_of_it=host.starved_s is None)
        if host.process is not None:
            host.process.resumed(self.scheduler.now_s - since_s)
        while host.overdue:  # empty, once the process ended
            action, arguments = host.overdue.pop(0)
            action(*arguments)
        self._fire(host, host.timer_s)

    def is_open(self, source: Host, target: Host) -> bool:
        """Whether packets can pass between two hosts, both ways, but for loss."""
        return not self._cut or (self._reaches(source, target) and self._reaches(target, source))

    # --- reading --------------------------------------------------------------------------------------

    def _arrive(self, host: Host, source: Name, data: bytes) -> None:
        if host.reads_at_once:
            host.packets_received += 1
            host.bytes_received += len(data)
            if self.log is not None:
                self.log.write(f"{source} > {host.name} {len(data)} {zlib.crc32(data):08x}")
            host.process.datagram_received(source, data)  # type: ignore[union-attr]
        elif host.process is not None:
            charged = len(data) + PACKET_OVERHEAD_BYTES
            if host.inbox_bytes + charged > self.receive_buffer_bytes:
                host.dropped_full += 1
                return
            self._keep(host, charged, self._read_datagram, (host, source, data))

    def _read_datagram(self, host: Host, source: Name, data: bytes) -> None:
        host.packets_received += 1
        host.bytes_received += len(data)
        if self.log is not None:
            self.log.write(f"{source} > {host.name} {len(data)} {zlib.crc32(data):08x}")
        host.process.datagram_received(source, data)  # type: ignore[union-attr]

    def _deliver(self, host: Host, action: Callable[..., None], *arguments: Any) -> None:
        """Let the process read something that came by TCP, when it does."""
        if host.reads_at_once:
            action(*arguments)
        elif host.process is not None:
            self._keep(host, 0, action, arguments)

    def _keep(self, host: Host, charged: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        now_s = self.scheduler.now_s
        read_s = now_s if host.starved_s is None else now_s + host.late_s()
        if host.inbox:
            read_s = max(read_s, host.inbox[-1][0])
        host.inbox.append((read_s, charged, action, arguments))
        host.inbox_bytes += charged
        if len(host.inbox) == 1 and host.paused_since_s is None:
            self._plan_reading(host)

    def _plan_reading(self, host: Host) -> None:
        host.wake_serial += 1
        self.scheduler.at(host.inbox[0][0], self._wake, host, host.wake_serial)

    def _wake(self, host: Host, wake_serial: int) -> None:
        if host.wake_serial == wake_serial and host.paused_since_s is None:
            self._drain(host, all_of_it=False)

    def _drain(self, host: Host, *, all_of_it: bool) -> None:
        """Read what waits: what is due, or everything."""
        now_s, inbox, life = self.scheduler.now_s, host.inbox, host.life
        while inbox and host.paused_since_s is None and (all_of_it or inbox[0][0] <= now_s):
            _, charged, action, arguments = inbox.popleft()
            host.inbox_bytes -= charged
            action(*arguments)
            if host.life != life:
                return
        if inbox and host.paused_since_s is None:
            self._plan_reading(host)

    def _timer_comes(self, host: Host, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if host.life != life or host.process is None:
            return
        if host.paused_since_s is not None:
            host.overdue.append((action, arguments))
        else:
            action(*arguments)

    def _fire(self, host: Host, at_s: float) -> None:
        if host.timer_s != at_s or at_s > self.scheduler.now_s or host.paused_since_s is not None:
            return
        host.timer_s = math.inf
        if host.process is not None:
            host.process.timer_fired()

    # --- TCP ------------------------------------------------------------------------------------------

    def _reaches(self, source: Host, target: Host) -> bool:
        return source.group == target.group and (source.number, target.number) not in self._blocked

    def _refuses_between(self, source: Host, target: Host) -> bool:
        return self._refusing and source.group != target.group

    def _carry_past(self, source: Host, target: Host, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen after the time of a packet, whatever the network lets pass: it says so itself."""
        self.scheduler.at(self.scheduler.now_s + self._live_path(source, target).delay_s(), action, *arguments)

    def _reset(self, source: Host, target: Host, action: Callable[..., None], *arguments: Any) -> None:
        """Send what no kernel sends twice."""
        path = self._live_path(source, target)
        if (not self._cut or self._reaches(source, target)) and not (path.loss and self._loss_draw() < path.loss):
            self._carry_past(source, target, action, *arguments)

    def _live_path(self, source: Host, target: Host) -> _LivePath:
        return self._paths.get((source.number, target.number), self._path) if self._paths else self._path

    def _carry(
        self, line: _Line, action: Callable[..., None], arguments: tuple[Any, ...], retry_s: float = SEGMENT_RETRY_S
    ) -> None:
        """Send one segment: `action` happens at the other side's kernel, after all that was sent before."""
        line.waiting.append((action, arguments))
        if len(line.waiting) == 1:
            self._push(line, retry_s)

    def _push(self, line: _Line, retry_s: float) -> None:
        """Send what waits, up to a segment that does not pass: that one is tried again later."""
        scheduler = self.scheduler
        path = self._live_path(line.sender, line.receiver)
        while line.waiting:
            if line.closed or line.boot != line.sender.boot:
                line.waiting.clear()
                return
            if (self._cut and not self._reaches(line.sender, line.receiver)) or (
                path.loss and self._loss_draw() < path.loss
            ):
                scheduler.at(scheduler.now_s + retry_s, self._push, line, min(2 * retry_s, SEGMENT_RETRY_MAX_S))
                return
            action, arguments = line.waiting.popleft()
            retry_s = SEGMENT_RETRY_S
            line.last_s = max(line.last_s, scheduler.now_s + path.delay_s())
            scheduler.at(line.last_s, action, *arguments)

    def _close_line(
        self, line: _Line, action: Callable[..., None], arguments: tuple[Any, ...], *, silent: bool, retries: bool
    ) -> None:
        """Send the last of a line: never, once (by a machine that is about to go), or until it arrives."""
        if not silent and (retries or not line.waiting):
            self._carry(line, action, arguments)
        if not retries:
            line.waiting.clear()

    def _meets(self, target: Host) -> Literal["listening", "refusing", "silent"]:
        """Return what a connect meets that arrived there."""
        if target.kernel == "refusing" and self.scheduler.now_s >= target.refusing_until_s:
            target.kernel = "silent"
        return target.kernel

    # A kept connection: knock (SYN), accepted by the kernel, greeted by the process.

    def _knock(self, connection: Connection) -> None:
        meets = self._meets(connection.target)
        if meets == "refusing" or (connection.target.refuses_peers and meets == "listening"):
            self._reset(connection.target, connection.source, self._refuse, connection)
        elif meets == "listening":
            connection.accepted = True
            connection.back.boot = connection.target.boot
            connection.target.served[connection] = None
            self._deliver(connection.target, self._greet, connection)

    def _greet(self, connection: Connection) -> None:
        if connection in connection.target.served:
            self._carry(connection.back, self._greeted, (connection,))

    def _greeted(self, connection: Connection) -> None:
        self._deliver(connection.source, self._read_greeting, connection)

    def _read_greeting(self, connection: Connection) -> None:
        source = connection.source
        if source.connections.get(connection.target) is connection and not connection.up:
            connection.up = True
            self.record(f"{source.name} connected {connection.target.name}")
            source.process.connected(connection.target.name)  # type: ignore[union-attr]

    def _refuse(self, connection: Connection) -> None:
        self._deliver(connection.source, self._fail_connect, connection, "refused")

    def _give_up_connecting(self, connection: Connection) -> None:
        if connection.accepted:
            later_s = self.scheduler.now_s + HELLO_TIMEOUT_S
            self.call_at(connection.source, later_s, self._fail_connect, connection, "timed out")
        else:
            self._fail_connect(connection, "timed out")

    def _fail_connect(self, connection: Connection, reason: str) -> None:
        source, target = connection.source, connection.target
        if source.connections.get(target) is not connection or connection.up:
            return
        del source.connections[target]
        self._forget(connection)
        self.record(f"{source.name} connect {target.name} {reason}")
        source.process.connect_failed(target.name, reason)  # type: ignore[union-attr]

    def _forget(self, connection: Connection) -> None:
        """Both sides are done with a connection; its source first, if it is the one that hung up."""
        connection.target.served.pop(connection, None)
        connection.forth.closed = connection.back.closed = True

    def _frame_arrives(self, connection: Connection, data: bytes) -> None:
        target = connection.target
        if connection in target.served:
            self._deliver(target, self._read_frame, connection, data)
        elif self._meets(target) != "silent":
            self._reset(target, connection.source, self._read_end, connection, False)  # nobody knows that connection

    def _read_frame(self, connection: Connection, data: bytes) -> None:
        target = connection.target
        target.packets_received += 1
        target.bytes_received += len(data)
        if self.log is not None:
            self.log.write(f"{connection.source.name} >> {target.name} {len(data)} {zlib.crc32(data):08x}")
        target.process.frame_received(connection.source.name, data)  # type: ignore[union-attr]

    def _read_end(self, connection: Connection, goodbye: bool) -> None:  # noqa: FBT001  # called by the scheduler
        self._deliver(connection.source, self._end_connection, connection, goodbye, "ended")

    def _end_connection(self, connection: Connection, goodbye: bool, reason: str) -> None:  # noqa: FBT001
        source, target = connection.source, connection.target
        if source.connections.get(target) is not connection:
            return
        if not connection.up:
            self._fail_connect(connection, reason)
            return
        del source.connections[target]
        self._forget(connection)
        self.record(f"{source.name} disconnected {target.name} {'goodbye' if goodbye else reason}")
        source.process.disconnected(target.name, goodbye=goodbye, reason=reason)  # type: ignore[union-attr]

    def _watch_keepalive(self, connection: Connection) -> None:
        """The other side may have gone silent: look again when the kernel's patience is over."""
        self.scheduler.at(self.scheduler.now_s + KEEPALIVE_S, self._check_keepalive, connection)

    def _check_keepalive(self, connection: Connection) -> None:
        source, target = connection.source, connection.target
        answered = target.kernel != "silent" and self._reaches(source, target) and self._reaches(target, source)
        if not answered and source.connections.get(target) is connection and connection.up:
            self._deliver(source, self._end_connection, connection, False, "timed out")

    # A stream: knock (SYN), accepted by the kernel, question, answer.

    def _stream_knocks(self, stream: Stream, data: bytes) -> None:
        meets = self._meets(stream.target)
        if meets == "refusing":
            self._reset(stream.target, stream.source, self._read_stream_refusal, stream)
        elif meets == "listening":
            stream.back.boot = stream.target.boot
            stream.target.streams[stream] = None
            self._carry(stream.back, self._stream_accepted, (stream, data))

    def _stream_accepted(self, stream: Stream, data: bytes) -> None:
        self._carry(stream.forth, self._stream_asks, (stream, data))

    def _stream_asks(self, stream: Stream, data: bytes) -> None:
        if stream in stream.target.streams:
            self._deliver(stream.target, self._read_question, stream, data)

    def _read_question(self, stream: Stream, data: bytes) -> None:
        if stream.over:
            return
        target = stream.target
        target.packets_received += 1
        target.bytes_received += len(data)
        if self.log is not None:
            self.log.write(f"{stream.source.name} ? {target.name} {len(data)} {zlib.crc32(data):08x}")
        target.process.stream_received(stream, data)  # type: ignore[union-attr]

    def _stream_answered(self, stream: Stream, data: bytes) -> None:
        self._deliver(stream.source, self._read_answer, stream, data)

    def _read_answer(self, stream: Stream, data: bytes) -> None:
        if stream.over:
            return
        self._finish_stream(stream)
        source = stream.source
        source.packets_received += 1
        source.bytes_received += len(data)
        if self.log is not None:
            self.log.write(f"{stream.target.name} ! {source.name} {len(data)} {zlib.crc32(data):08x}")
        source.process.stream_replied(stream.stream_id, data)  # type: ignore[union-attr]

    def _read_stream_refusal(self, stream: Stream) -> None:
        self._deliver(stream.source, self._fail_stream, stream, "refused")

    def _read_stream_end(self, stream: Stream) -> None:
        self._deliver(stream.source, self._fail_stream, stream, "ended")

    def _fail_stream(self, stream: Stream, reason: str) -> None:
        if stream.over:
            return
        self._finish_stream(stream)
        self.record(f"{stream.source.name} stream {stream.target.name} {reason}")
        stream.source.process.stream_failed(stream.stream_id, reason)  # type: ignore[union-attr]

    def _finish_stream(self, stream: Stream) -> None:
        stream.over = stream.forth.closed = stream.back.closed = True
        stream.source.streams.pop(stream, None)
        stream.target.streams.pop(stream, None)


def shares(hosts: Sequence[Host], share: float, rng: random.Random) -> list[Host]:
    """Choose a share of hosts at random, in their order; at least one when the share is not 0."""
    if share <= 0:
        return []
    count = max(1, round(share * len(hosts)))
    return [hosts[index] for index in sorted(rng.sample(range(len(hosts)), count))]
