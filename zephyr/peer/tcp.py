"""Connections between nodes, both sides: bytes to frames, frames to calls.

Decides when to connect, when to try again and when to hang up. Never decides whom to ask, what an
answer means or whether a member lives: that is the core's, which hears of connections and calls
through the callbacks of a `PeerHost`.

A node holds one *link* to each member it is told of, for its own requests; it answers those of the
others on the connections that they make. A link is in one of four states:

    resting   no connection, none wanted: the next request opens it (large clusters only)
    dialling  resolving, connecting, or waiting for the other side's hello
    up        the other side said who it is, and it is the expected member
    waiting   an attempt failed; the next one comes when the back-off is over

Requests go out at once on a link that is up. While a link dials for the first time, or for the first
time after it was up, they queue. After a failed attempt they fail at once until the link is up again.

Invariants:
- Each `send` ends in exactly one `replied` or `failed`, or in silence after its own deadline.
- No callback runs inside a call of a public method.
- `failed(..., sent=False)` means that no byte of the request was handed to the socket.
- Every queue is bounded for each connection, so a slow or dead peer costs its own requests only.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import random
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import aiodns
import mmh3

from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError, WireError
from zephyr.events import SendPeer
from zephyr.model import PROTOCOL_MAX, PROTOCOL_MIN, Address, Member, NodeId
from zephyr.peer.wire import (
    ALLOWANCE_MS_MAX,
    LENGTH_BYTES,
    Frame,
    FrameDecoder,
    Goodbye,
    Hello,
    Reply,
    Request,
    Status,
    agreed_protocol,
    encode_goodbye,
    encode_hello,
    encode_reply,
    encode_request,
    frame_bytes_max,
)

CONNECT_TIMEOUT_S = 1.0
"""Resolving a name and connecting. Within a cluster both take milliseconds; a second covers one lost SYN."""
HELLO_TIMEOUT_S = 2.0
"""From connected to greeted. Longer than the connect: it needs the other program's event loop, not its kernel only."""
PROBE_TIMEOUT_S = CONNECT_TIMEOUT_S + HELLO_TIMEOUT_S
DRAIN_TIMEOUT_S = 5.0
"""A connection whose full write buffer does not shrink for this long is cut: its other side reads no more."""
LINGER_S = 1.0
"""Time for a goodbye and what stands before it to reach the socket, before the connection is cut."""
ACCEPT_TURNS = 4
"""Turns of the event loop after which a connection that it accepted is known here: a task, a callback, and two spare.
Closing waits for them, else a connection accepted at the last moment would never be closed."""
LINK_STABLE_S = 1.0
"""A link lost sooner than this after it came up counts as a failed attempt, so that it cannot flap without pause."""
LINK_IDLE_S = 60.0
"""A link beyond the kept ones is closed when it is not used for this long."""
SWEEP_INTERVAL_S = 1.0
"""How often calls past their deadline are forgotten and idle links closed."""

RECONNECT_DELAYS_S = (0.0, 0.010, 0.050, 0.150)
"""Delay before the next attempt after 0, 1, 2, 3 failures: an ended process is known within 210 ms."""
RECONNECT_DELAY_MAX_S = 1.0
"""A member that comes back waits this long at most for its peers; an absent one costs a SYN a second."""

LINKS_ALL_KEPT_MAX = 64
"""Up to this many peers, a link to each is kept open."""
LINKS_KEPT = 16
"""Beyond that, links to this many peers, chosen by hash."""
SERVED_CONNECTIONS_MAX = 1024
"""Five for each member of the largest ring: its link, one that is about to end, and probes."""
PROBES_MAX = 64
"""Probes under way at once; start-up and an IP address that changed hands need one each."""

REQUESTS_IN_FLIGHT_MAX = 4096
"""For each link: what a peer answers in about 50 ms. Beyond it, waiting longer helps nobody."""
PENDING_BYTES_MAX = 32 << 20
"""For each link: requests that the socket has not taken yet."""
WRITE_HIGH_BYTES = 1 << 20
"""A socket buffer above this stops writing, and reading of further requests."""
WRITE_LOW_BYTES = 256 << 10
WRITE_CHUNK_BYTES = 256 << 10
"""Frames are joined up to about this size; more at once would only be copied once more."""
SERVED_SLICE = 512
"""Requests of one connection that are answered in one turn of the event loop: about 3 ms."""
RESOLVED_ADDRESSES_MAX = 4
"""Addresses of one name that are tried."""

KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_MAX_MS = 5_000
"""Data that the other kernel does not acknowledge for this long ends the connection. Else TCP would back off for
minutes, and a link would stay broken long after the network is whole again."""


@dataclass(frozen=True, slots=True)
class PeerHost:
    """What the transport asks of, and tells, the program around it. None of these may block or raise."""

    identity: Callable[[], Member]
    """This node as it is now."""
    ring_digest: Callable[[], bytes]
    """Digest of this node's ring, 8 bytes."""
    serve: Callable[[int, tuple[Any, ...], bytes], tuple[int, tuple[Any, ...]]]
    """(operation, arguments, ring_digest) -> (status, payload)."""
    replied: Callable[[int, int, tuple[Any, ...]], None]
    """(call_id, status, payload)."""
    failed: Callable[[int, str, bool], None]
    """(call_id, reason, sent): there will be no answer. `sent`: the peer may have received the request."""
    connected: Callable[[Member], None]
    """A link is up; this is what the other side says of itself."""
    disconnected: Callable[[NodeId, str], None]
    """A link that was up ended, or an attempt failed. A failure for the same reason as the one before is not repeated,
    and a link that `set_peers` or idleness closed is not reported."""
    probed: Callable[[Address, Member | None, str], None]
    """(address, who answered, or None and the reason)."""


@dataclass(slots=True)
class PeerCounters:
    """Running totals since the start, for metrics."""

    requests_sent: int = 0
    """Accepted for sending."""
    requests_served: int = 0
    requests_expired: int = 0
    """Arrived, but not answered: the connection was full for longer than the caller waits."""
    replies: int = 0
    replies_late: int = 0
    """Answers to calls that are over."""
    connections_up: int = 0
    """Links that came up."""
    connections_served: int = 0
    connections_refused: int = 0
    """Turned away by this node, on either side: another cluster, another protocol, another id, too many."""
    connections_stalled: int = 0
    """Cut because the other side read no more."""
    bytes_sent: int = 0
    bytes_received: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by cause: overloaded, unreachable, lost, late, too-large, no-peer, stopping."""
    wire_errors: Counter[str] = field(default_factory=Counter)
    """Connections dropped over bytes that break the protocol, by `WireError.cause`."""

    def results(self) -> dict[str, int]:
        """Return the requests that are over, by result: `ok` (answered), or the cause of having no answer."""
        return {"ok": self.replies, **self.failed}


class PeerTransport:
    """Every connection of this node to and from its peers."""

    def __init__(self, settings: Settings, host: PeerHost, rng: random.Random) -> None:
        """Bind and connect nothing yet. `rng` spreads reconnections in time."""
        self._shared = _Shared(settings, host, rng)
        self._links: dict[NodeId, _Link] = {}
        self._server: asyncio.Server | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._probing: dict[asyncio.Task[None], Address] = {}

    @property
    def counters(self) -> PeerCounters:
        """The live counters, not a copy."""
        return self._shared.counters

    @property
    def address(self) -> Address:
        """The bound address: differs from `settings.peer` where that leaves the port open (`:0`)."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return format_address(host, port)

    async def bind(self) -> None:
        """Bind `settings.peer`, and accept nobody yet: this node cannot say who it is before it knows its ports.

        Raises ConfigError, with nothing left open, when that is not possible.
        """
        shared = self._shared
        shared.loop = asyncio.get_running_loop()
        address = shared.settings.peer
        host, port = parse_address(address)
        try:
            self._server = await shared.loop.create_server(
                lambda: _ServedConnection(shared), host, port, backlog=SERVED_CONNECTIONS_MAX, start_serving=False
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"--peer: {address} is taken by another program") from None
            raise ConfigError(f"--peer: cannot listen at {address}: {_error_name(error)}") from None

    async def start(self) -> None:
        """Accept peers, and make links; binds first if that has not been done."""
        if self._server is None:
            await self.bind()
        assert self._server is not None
        await self._server.start_serving()
        self._sweep_timer = self._shared.loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def set_peers(self, members: Iterable[Member]) -> None:
        """Hold links to these members, and to no other. Replaces the earlier set.

        A member whose peer address changed, or whose epoch is not that of the process the link is up to,
        is connected to anew; its open calls fail.
        """
        shared = self._shared
        if shared.stopping:
            return
        by_id = {member.id: member for member in members}
        kept = self._kept(by_id)
        for node_id in [node_id for node_id in self._links if node_id not in by_id]:
            self._links.pop(node_id).close(f"{node_id} is no peer any more")
        for node_id, member in by_id.items():
            link = self._links.get(node_id)
            if link is None:
                link = self._links[node_id] = _Link(shared, member)
            else:
                link.retarget(member)
            link.set_kept(kept=node_id in kept)

    def _kept(self, by_id: dict[NodeId, Member]) -> frozenset[NodeId]:
        """Choose the peers whose links stay open: stable while members come and go, and another choice on each node."""
        if len(by_id) <= LINKS_ALL_KEPT_MAX:
            return frozenset(by_id)
        own = self._shared.settings.id

        def weight(node_id: NodeId) -> int:
            return mmh3.hash64(f"{own}\0{node_id}".encode(), 0, True, signed=False)[0]

        return frozenset(sorted(by_id, key=weight)[:LINKS_KEPT])

    def send(self, effect: SendPeer) -> None:
        """Send one request. Its end comes later: `replied`, `failed`, or nothing once `deadline_s` has passed."""
        link = self._links.get(effect.node_id)
        if link is not None:
            link.send(effect)
        elif self._shared.stopping:
            self._shared.refuse(effect.call_id, "stopping", "this node is stopping")
        else:
            self._shared.refuse(effect.call_id, "no-peer", f"{effect.node_id} is no peer of this node")

    def probe(self, address: Address) -> None:
        """Ask who is at a peer address, and hang up. `probed` tells, within `PROBE_TIMEOUT_S`."""
        shared = self._shared
        if shared.stopping or len(self._probing) >= PROBES_MAX:
            reason = "this node is stopping" if shared.stopping else f"{PROBES_MAX} probes are under way"
            shared.loop.call_soon(shared.host.probed, address, None, reason)
            return
        task = shared.spawn(self._probe(address))
        self._probing[task] = address

    async def _probe(self, address: Address) -> None:
        shared = self._shared
        answer: asyncio.Future[tuple[Member | None, str]] = shared.loop.create_future()
        connection = _ProbeConnection(shared, answer)
        try:
            await shared.dial(address, connection)
            member, reason = await answer  # the connection's own timer bounds this
        except OSError as error:
            member, reason = None, _describe(error, address)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        del self._probing[task]
        shared.host.probed(address, member, reason)

    async def close(self) -> None:
        """Say goodbye to everyone and close, within `LINGER_S` and a little.

        Open calls fail and open probes end; connections that end here are not reported.
        """
        shared = self._shared
        if shared.stopping or self._server is None:
            return
        shared.stopping = True
        self._server.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for link in self._links.values():
            link.close("this node is stopping")
        self._links.clear()
        for address in self._probing.values():
            shared.loop.call_soon(shared.host.probed, address, None, "this node is stopping")
        self._probing.clear()
        for task in shared.tasks:
            task.cancel()
        await asyncio.gather(*shared.tasks, return_exceptions=True)
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        for connection in list(shared.connections):
            connection.leave("stopping")
        await shared.all_gone(LINGER_S)
        for connection in list(shared.connections):
            connection.transport.abort()
        await shared.all_gone(LINGER_S)
        if shared.resolver is not None:
            await shared.resolver.close()

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for link in self._links.values():
            link.sweep(now_s)
        self._sweep_timer = self._shared.loop.call_later(SWEEP_INTERVAL_S, self._sweep)


class _Shared:
    """What all connections of one transport have in common."""

    loop: asyncio.AbstractEventLoop
    """Set by `PeerTransport.start`; nothing here runs before."""

    def __init__(self, settings: Settings, host: PeerHost, rng: random.Random) -> None:
        self.settings = settings
        self.host = host
        self.rng = rng
        self.counters = PeerCounters()
        self.frame_bytes_max = frame_bytes_max(settings.value_max)
        self.connections: set[_Connection] = set()
        self.served_count = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.resolver: aiodns.DNSResolver | None = None
        self.stopping = False
        self._unflushed: list[_Link] = []
        self._gone: asyncio.Future[None] | None = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that `PeerTransport.close` ends at the latest."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def refuse(self, call_id: int, cause: str, reason: str) -> None:
        """End a call that was not sent, in the next turn of the loop."""
        self.counters.failed[cause] += 1
        self.loop.call_soon(self.host.failed, call_id, reason, False)

    def flush_soon(self, link: _Link) -> None:
        """Write what this turn of the loop sends on a link, in one go, when the turn is over."""
        if not self._unflushed:
            self.loop.call_soon(self._flush)
        self._unflushed.append(link)

    def _flush(self) -> None:
        links, self._unflushed = self._unflushed, []
        for link in links:
            link.flush()

    def forget(self, connection: _Connection) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        if self._gone is not None and not self.connections and not self._gone.done():
            self._gone.set_result(None)

    async def all_gone(self, timeout_s: float) -> None:
        """Wait until no connection is left, at most so long."""
        if self.connections:
            self._gone = self.loop.create_future()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone, timeout_s)

    def hello(self, *, probe: bool = False) -> bytes:
        """Return the frame by which this node says who it is."""
        member = self.host.identity()
        hello = Hello(PROTOCOL_MIN, PROTOCOL_MAX, self.settings.cluster, probe, self.frame_bytes_max, member)
        return encode_hello(hello)

    def objection(self, hello: Hello) -> str:
        """Say why this node does not talk to the sender of a hello; empty when it does."""
        if hello.cluster != self.settings.cluster:
            return f"cluster {self.settings.cluster} here, cluster {hello.cluster} there"
        if agreed_protocol((PROTOCOL_MIN, PROTOCOL_MAX), (hello.protocol_min, hello.protocol_max)) is None:
            here, there = f"{PROTOCOL_MIN} to {PROTOCOL_MAX}", f"{hello.protocol_min} to {hello.protocol_max}"
            return f"protocol {here} here, {there} there"
        return ""

    def reconnect_delay_s(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row."""
        if failures < len(RECONNECT_DELAYS_S):
            return RECONNECT_DELAYS_S[failures]
        doublings = min(failures - len(RECONNECT_DELAYS_S) + 1, 10)
        ceiling_s = min(RECONNECT_DELAYS_S[-1] * 2**doublings, RECONNECT_DELAY_MAX_S)
        return self.rng.uniform(ceiling_s / 2, ceiling_s)

    async def dial(self, address: Address, connection: _Connection) -> None:
        """Connect within `CONNECT_TIMEOUT_S`, to the first address of the name that accepts. Raises OSError."""
        try:
            host, port = parse_address(address)
        except ValueError:
            raise OSError(None, "it is no HOST:PORT") from None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect(host, port, connection)
        except BaseException:
            connection.abandon()
            raise

    async def _connect(self, host: str, port: int, connection: _Connection) -> None:
        hosts = await self._resolve(host)
        refusal = OSError(None, f"{host} has no address")
        for resolved in hosts[:RESOLVED_ADDRESSES_MAX]:
            try:
                await self.loop.create_connection(lambda: connection, resolved, port)
            except OSError as error:
                refusal = error
            else:
                return
        raise refusal

    async def _resolve(self, host: str) -> list[str]:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return [host]
        if self.resolver is None:
            self.resolver = aiodns.DNSResolver(loop=self.loop)
        try:
            found = await self.resolver.getaddrinfo(host, type=socket.SOCK_STREAM)
        except (aiodns.error.DNSError, UnicodeError) as error:
            raise OSError(None, f"no address of {host}, {error.args[-1]}") from None
        return [node.addr[0].decode() for node in found.nodes]


class _Connection(asyncio.Protocol):
    """One TCP connection, either side: frames in, back-pressure, and an end that has a reason."""

    transport: asyncio.Transport

    def __init__(self, shared: _Shared, expected: type[Request | Reply]) -> None:
        self.shared = shared
        self.decoder = FrameDecoder(expected, shared.frame_bytes_max)
        self.open = False
        """Made, and neither side has ended it."""
        self.alive = False
        """Made, and not lost."""
        self.writable = True
        self.greeted = False
        self.deliberate = False
        """Ended on purpose, by either side: trying again at once would end the same way."""
        self.reason = ""
        """Why it ended, where that is known before the socket says so."""
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_bytes = 0

    # What the two sides do differently.

    def take(self, frames: list[Frame]) -> None:
        """Act on the frames of one batch."""
        raise NotImplementedError

    def drained(self) -> None:
        """Go on writing."""

    def lost(self, reason: str) -> None:
        """The connection is over."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.shared.connections.add(self)
        self.alive = self.open = True
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        _tune(self.transport.get_extra_info("socket"))
        self._arm(HELLO_TIMEOUT_S, self._hello_missed)
        if self.shared.stopping:
            self.cut("this node is stopping")

    def data_received(self, data: bytes) -> None:
        if not self.open:
            return
        counters = self.shared.counters
        counters.bytes_received += len(data)
        try:
            frames = self.decoder.feed(data)
        except WireError as error:
            counters.wire_errors[error.cause] += 1
            self.leave(f"broken frame, {error}")
            return
        self.take(frames)

    def eof_received(self) -> None:
        # Peers never close one direction only, so nothing that is still to be written will be read.
        self.cut(self.reason or "the connection ended")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.alive:
            return
        self.alive = self.open = False
        self._disarm()
        self.shared.forget(self)
        self.lost(self.reason or ("the connection ended" if exc is None else _error_name(exc)))

    def pause_writing(self) -> None:
        self.writable = False
        if self.open:
            self._watch_stall()

    def resume_writing(self) -> None:
        self.writable = True
        if self.open:
            self._disarm()
            self.drained()

    # What the subclasses and links use.

    def write(self, data: bytes) -> None:
        """Hand bytes to the socket, unless the connection is over."""
        if self.open:
            self.shared.counters.bytes_sent += len(data)
            self.transport.write(data)

    def greet(self) -> None:
        """The hellos are exchanged and agree: wait for frames as long as it takes."""
        self.greeted = True
        self._disarm()

    def leave(self, reason: str) -> None:
        """End the connection on purpose: goodbye, then close."""
        if not self.open:
            return
        self.deliberate = True
        if not self.writable:  # a goodbye would only stand behind what is not read
            self.cut(reason)
            return
        self.write(encode_goodbye(reason))
        self._close(reason)

    def cut(self, reason: str) -> None:
        """End the connection at once; what is not yet written is dropped."""
        if self.open:
            self.open = False
            self.reason = reason
            self._disarm()
            self.transport.abort()

    def abandon(self) -> None:
        """Finish a connection whose making was cancelled: uvloop may have made it, and closes it without a word."""
        if self.alive:
            self.transport.abort()
            self.connection_lost(None)

    def ended_by(self, goodbye: Goodbye) -> None:
        """The other side said goodbye."""
        if not self.open:
            return
        self.deliberate = True
        self._close(f"{'said goodbye' if self.greeted else 'turned away'}: {goodbye.reason}")

    def _close(self, reason: str) -> None:
        self.open = False
        self.reason = reason
        self.transport.close()
        self._arm(LINGER_S, self.transport.abort)

    def _hello_missed(self) -> None:
        self.leave(f"no hello within {HELLO_TIMEOUT_S:g} s")
        self.deliberate = False  # the other side may be busy; that is a failed attempt, no refusal

    def _watch_stall(self) -> None:
        self._stalled_bytes = self.transport.get_write_buffer_size()
        self._arm(DRAIN_TIMEOUT_S, self._check_stall)

    def _check_stall(self) -> None:
        if self.transport.get_write_buffer_size() < self._stalled_bytes:
            self._watch_stall()
            return
        self.shared.counters.connections_stalled += 1
        self.cut(f"it read nothing for {DRAIN_TIMEOUT_S:g} s")

    def _arm(self, delay_s: float, action: Callable[[], None]) -> None:
        """Set the only timer of a connection: for the hello, then for stalls, then for the end."""
        self._disarm()
        self._timer = self.shared.loop.call_later(delay_s, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ServedConnection(_Connection):
    """A connection that a peer made: its requests are answered here, in order.

    Requests are answered as they arrive. When the peer does not read its answers, reading stops and the
    requests that were already read wait; one whose time allowance runs out while it waits is dropped
    without an answer, since its caller is gone.
    """

    def __init__(self, shared: _Shared) -> None:
        super().__init__(shared, Request)
        self._reply_bytes_max = 0
        self._waiting: deque[Request] = deque()
        """At most one batch: nothing is read while any wait."""
        self._arrived_s = 0.0
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        shared = self.shared
        shared.served_count += 1
        shared.counters.connections_served += 1
        if shared.served_count > SERVED_CONNECTIONS_MAX:
            self._turn_away(f"{SERVED_CONNECTIONS_MAX} connections are open here, no more")

    def lost(self, reason: str) -> None:  # noqa: ARG002  # the peer's link reports it, on its side
        self.shared.served_count -= 1
        self._waiting.clear()

    def take(self, frames: list[Frame]) -> None:
        for frame in frames:
            if type(frame) is Request:
                self._waiting.append(frame)
            elif type(frame) is Hello:
                self._hello_received(frame)
            elif type(frame) is Goodbye:
                self.ended_by(frame)
        if self._waiting and self.open:
            self._arrived_s = time.monotonic()
            self._serve(0.0)

    def drained(self) -> None:
        self._serve_on()

    def _hello_received(self, hello: Hello) -> None:
        objection = self.shared.objection(hello)
        own_id = self.shared.host.identity().id
        if not objection and hello.member.id == own_id and not hello.probe:
            objection = f"{own_id} is the id of the node that answers here"
        if objection:
            self._turn_away(objection)
            return
        if not hello.probe:  # a probe ends within the time of a hello
            self.greet()
        self._reply_bytes_max = hello.frame_bytes_max
        self.write(self.shared.hello())

    def _turn_away(self, reason: str) -> None:
        self.shared.counters.connections_refused += 1
        self.leave(reason)

    def _serve_on(self) -> None:
        self._serve((time.monotonic() - self._arrived_s) * 1000)

    def _serve(self, waited_ms: float) -> None:
        """Answer what waits, up to a slice and while the socket takes it; read again once nothing waits."""
        if not self.open:
            return
        waiting = self._waiting
        frames: list[bytes] = []
        size = 0
        for _ in range(min(len(waiting), SERVED_SLICE)):
            request = waiting.popleft()
            if waited_ms > request.allowance_ms:
                self.shared.counters.requests_expired += 1
                continue
            frame = self._answer(request)
            frames.append(frame)
            size += len(frame)
            if size >= WRITE_CHUNK_BYTES:
                self.write(b"".join(frames))
                frames.clear()
                size = 0
                if not self.writable:
                    break
        if frames:
            self.write(b"".join(frames))
        self._read_on_or_stop()

    def _answer(self, request: Request) -> bytes:
        shared = self.shared
        status, payload = shared.host.serve(request.operation, request.arguments, request.ring_digest)
        shared.counters.requests_served += 1
        frame = encode_reply(request.call_id, status, payload)
        if len(frame) - LENGTH_BYTES > self._reply_bytes_max:  # the peer would drop the connection over it
            return encode_reply(request.call_id, Status.TOO_LARGE, ("the answer is longer than you read",))
        return frame

    def _read_on_or_stop(self) -> None:
        if not self.open:
            return
        reading = self.writable and not self._waiting
        if reading != self._reading:
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()
        if self._waiting and self.writable:
            self.shared.loop.call_soon(self._serve_on)


class _ProbeConnection(_Connection):
    """A connection that only asks who is there."""

    def __init__(self, shared: _Shared, answer: asyncio.Future[tuple[Member | None, str]]) -> None:
        super().__init__(shared, Reply)
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if _is_connected_to_itself(self.transport):
            self.cut("nobody listens there")
        self.write(self.shared.hello(probe=True))

    def take(self, frames: list[Frame]) -> None:
        for frame in frames:
            if type(frame) is Hello:
                objection = self.shared.objection(frame)
                self._settle(None if objection else frame.member, objection)
                self.leave(objection or "that was all")
            elif type(frame) is Goodbye:
                self.ended_by(frame)

    def lost(self, reason: str) -> None:
        self._settle(None, reason)

    def _settle(self, member: Member | None, reason: str) -> None:
        if not self._answer.done():
            self._answer.set_result((member, reason))


class _LinkConnection(_Connection):
    """The connection of a link, from the dialling on."""

    def __init__(self, shared: _Shared, link: _Link) -> None:
        super().__init__(shared, Reply)
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._link.connection is not self:
            self.cut("not wanted any more")
        elif _is_connected_to_itself(self.transport):
            self.cut("nobody listens there")
        self.write(self.shared.hello())

    def take(self, frames: list[Frame]) -> None:
        link = self._link
        for frame in frames:
            if type(frame) is Reply:
                link.replied(frame)
            elif type(frame) is Hello:
                link.hello_received(self, frame)
            elif type(frame) is Goodbye:
                self.ended_by(frame)

    def drained(self) -> None:
        self._link.flush()

    def lost(self, reason: str) -> None:
        self._link.lost(self, reason)


class _Link:
    """The way to one member: at most one connection, the calls under way, and when to try again."""

    __slots__ = (
        "_dialling",
        "_failures",
        "_frame_bytes_max",
        "_in_flight",
        "_kept",
        "_life",
        "_member",
        "_queueing",
        "_reason",
        "_retry_timer",
        "_shared",
        "_unflushed",
        "_unsent",
        "_unsent_bytes",
        "_up",
        "_up_since_s",
        "_used_s",
        "connection",
    )

    def __init__(self, shared: _Shared, member: Member) -> None:
        self.connection: _LinkConnection | None = None
        """The connection that is up or being made; any other reports in vain."""
        self._shared = shared
        self._member = member
        self._kept = False
        self._dialling: asyncio.Task[None] | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._failures = 0
        """Failed attempts in a row."""
        self._reason = ""
        """Of the last failure; empty when the link is or was up."""
        self._up = False
        self._up_since_s = 0.0
        self._used_s = 0.0
        self._life = 0
        """Boot epoch of the process that the link is up to."""
        self._queueing = False
        """Requests may wait for the attempt under way."""
        self._frame_bytes_max = shared.frame_bytes_max
        """What this side sends at most; once up, what the other side reads."""
        self._in_flight: dict[int, float] = {}
        """Call id -> deadline, monotonic s: every call that is not over."""
        self._unsent: dict[int, bytes] = {}
        """Call id -> frame, in order: those in flight that the socket did not take yet."""
        self._unsent_bytes = 0
        self._unflushed = False

    # --- from the core ------------------------------------------------------------------------------

    def set_kept(self, *, kept: bool) -> None:
        """Keep a connection from now on, or open it for requests only and let it go when idle."""
        self._kept = kept
        if kept and self._is_resting():
            self._dial(queueing=True)

    def retarget(self, member: Member) -> None:
        """Follow a member to its new address or its new life. Leaves a link alone that is up to that life already."""
        before, self._member = self._member, member
        if member.peer == before.peer and (member.epoch == before.epoch or (self._up and member.epoch == self._life)):
            return
        was_up = self._up
        reason = f"{member.id} is at {member.peer} now" if member.peer != before.peer else f"{member.id} began anew"
        self.close(reason)
        self._failures = 0
        self._reason = ""
        if was_up:
            self._shared.loop.call_soon(self._shared.host.disconnected, member.id, reason)

    def close(self, reason: str) -> None:
        """Hang up, and fail what is under way. Not reported; the link rests."""
        connection, self.connection = self.connection, None
        self._up = self._queueing = False
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if connection is not None:
            connection.leave(reason)
        self._fail_all("stopping" if self._shared.stopping else "lost", reason)

    def send(self, effect: SendPeer) -> None:
        """Send a request in this turn of the loop, queue it for the attempt under way, or fail it in the next turn."""
        shared = self._shared
        call_id = effect.call_id
        if not self._up and not self._queueing:
            if not self._is_resting():
                shared.refuse(call_id, "unreachable", self._reason)
                return
            self._dial(queueing=True)
        self._used_s = now_s = time.monotonic()
        allowance_ms = int(min((effect.deadline_s - now_s) * 1000, ALLOWANCE_MS_MAX))
        if allowance_ms <= 0:
            shared.refuse(call_id, "late", "its time was over before it was sent")
            return
        if len(self._in_flight) >= REQUESTS_IN_FLIGHT_MAX:
            shared.refuse(call_id, "overloaded", f"overloaded: {REQUESTS_IN_FLIGHT_MAX} requests are in flight")
            return
        digest = shared.host.ring_digest()
        frame = encode_request(call_id, effect.operation, digest, allowance_ms, effect.arguments)
        size = len(frame)
        if size - LENGTH_BYTES > self._frame_bytes_max:
            shared.refuse(call_id, "too-large", f"too large: {size} bytes, and it reads {self._frame_bytes_max}")
            return
        if self._unsent_bytes + size > PENDING_BYTES_MAX:
            shared.refuse(call_id, "overloaded", f"overloaded: {self._unsent_bytes} bytes wait to be sent")
            return
        assert call_id not in self._in_flight
        shared.counters.requests_sent += 1
        self._in_flight[call_id] = effect.deadline_s
        self._unsent[call_id] = frame
        self._unsent_bytes += size
        if self._up and not self._unflushed:
            self._unflushed = True
            shared.flush_soon(self)

    def sweep(self, now_s: float) -> None:
        """Forget the calls past their deadline: the core has given them up by itself. Let an idle connection go."""
        for call_id in [call_id for call_id, deadline_s in self._in_flight.items() if deadline_s < now_s]:
            del self._in_flight[call_id]
            self._unsent_bytes -= len(self._unsent.pop(call_id, b""))
        if self._up and not self._kept and not self._in_flight and now_s - self._used_s > LINK_IDLE_S:
            self.close("idle")

    # --- from the connection ------------------------------------------------------------------------

    def hello_received(self, connection: _LinkConnection, hello: Hello) -> None:
        """The other side says who it is: go up, or hang up on the wrong one."""
        shared = self._shared
        if self.connection is not connection:
            return
        objection = shared.objection(hello)
        if not objection and hello.member.id != self._member.id:
            objection = f"{self._member.peer} answers as {hello.member.id}, not as {self._member.id}"
        if objection:
            shared.counters.connections_refused += 1
            connection.leave(objection)
            return
        connection.greet()
        shared.counters.connections_up += 1
        self._up = True
        self._used_s = self._up_since_s = time.monotonic()
        self._life = hello.member.epoch
        self._queueing = False
        self._reason = ""
        self._frame_bytes_max = hello.frame_bytes_max
        self._drop_too_large()
        self.flush()
        shared.host.connected(hello.member)

    def replied(self, reply: Reply) -> None:
        """Hand an answer on, unless its call is over."""
        if self._in_flight.pop(reply.call_id, None) is None:
            self._shared.counters.replies_late += 1
            return
        self._shared.counters.replies += 1
        self._shared.host.replied(reply.call_id, reply.status, reply.payload)

    def lost(self, connection: _LinkConnection, reason: str) -> None:
        """The connection ended, or could not be made: fail its calls, report, and try again."""
        if self.connection is not connection:
            return
        shared = self._shared
        was_up = self._up
        self.connection = None
        self._up = self._queueing = False
        if connection.deliberate:
            self._failures = max(self._failures + 1, len(RECONNECT_DELAYS_S))
        elif was_up and time.monotonic() - self._up_since_s >= LINK_STABLE_S:
            self._failures = 0
        else:
            self._failures += 1
        self._fail_all("lost" if was_up else "unreachable", reason)
        if was_up or reason != self._reason:
            shared.loop.call_soon(shared.host.disconnected, self._member.id, reason)
        self._reason = reason
        self._try_again()

    def flush(self) -> None:
        """Write what is unsent: all of it in one go, or chunk by chunk as far as the socket takes it."""
        self._unflushed = False
        connection = self.connection
        unsent = self._unsent
        if connection is None or not self._up or not connection.open:
            return
        if unsent and connection.writable and self._unsent_bytes <= WRITE_CHUNK_BYTES:
            connection.write(b"".join(unsent.values()))
            unsent.clear()
            self._unsent_bytes = 0
            return
        while unsent and connection.writable:
            connection.write(self._next_chunk())

    # --- its own ------------------------------------------------------------------------------------

    def _is_resting(self) -> bool:
        return self.connection is None and self._retry_timer is None

    def _dial(self, *, queueing: bool) -> None:
        self._queueing = queueing
        self.connection = connection = _LinkConnection(self._shared, self)
        self._dialling = self._shared.spawn(self._connect(connection))

    async def _connect(self, connection: _LinkConnection) -> None:
        address = self._member.peer
        try:
            await self._shared.dial(address, connection)
        except OSError as error:
            self.lost(connection, _describe(error, address))

    def _try_again(self) -> None:
        if self._kept and not self._failures:
            self._dial(queueing=True)
        elif self._failures:
            delay_s = self._shared.reconnect_delay_s(self._failures)
            self._retry_timer = self._shared.loop.call_later(delay_s, self._wait_over)

    def _wait_over(self) -> None:
        self._retry_timer = None
        if self._kept:
            self._dial(queueing=False)

    def _next_chunk(self) -> bytes:
        call_ids: list[int] = []
        size = 0
        for call_id, frame in self._unsent.items():
            call_ids.append(call_id)
            size += len(frame)
            if size >= WRITE_CHUNK_BYTES:
                break
        self._unsent_bytes -= size
        return b"".join([self._unsent.pop(call_id) for call_id in call_ids])

    def _drop_too_large(self) -> None:
        """Fail the queued requests that this peer would not read: it drops a connection over one."""
        limit = self._frame_bytes_max + LENGTH_BYTES
        for call_id in [call_id for call_id, frame in self._unsent.items() if len(frame) > limit]:
            del self._in_flight[call_id]
            self._unsent_bytes -= len(self._unsent.pop(call_id))
            self._shared.refuse(call_id, "too-large", f"too large: it reads {self._frame_bytes_max} bytes")

    def _fail_all(self, cause: str, reason: str) -> None:
        """Fail every call that is not over, in the next turn of the loop."""
        if not self._in_flight:
            return
        shared = self._shared
        shared.counters.failed[cause] += len(self._in_flight)
        failures = [(call_id, call_id not in self._unsent) for call_id in self._in_flight]
        self._in_flight.clear()
        self._unsent.clear()
        self._unsent_bytes = 0

        def tell() -> None:
            for call_id, sent in failures:
                shared.host.failed(call_id, reason, sent)

        shared.loop.call_soon(tell)


def _tune(sock: socket.socket) -> None:
    """Send at once, and notice a silent network within seconds."""
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNACKNOWLEDGED_MAX_MS),
    ]
    for level, name, value in options:
        # Not every system has each of them, and a connection may be gone by now.
        with suppress(OSError, AttributeError):
            sock.setsockopt(level, getattr(socket, name), value)


def _is_connected_to_itself(transport: asyncio.Transport) -> bool:
    """Tell whether a socket met itself: TCP allows it when the free port dialled is also the one dialled from."""
    return bool(transport.get_extra_info("sockname") == transport.get_extra_info("peername"))


def _error_name(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return str(error.args[-1]) if error.args else type(error).__name__


def _describe(error: OSError, address: Address) -> str:
    if isinstance(error, TimeoutError):
        return f"{address} is silent: no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"{address} refused the connection"
    return f"{address} cannot be reached: {_error_name(error)}"
