"""What all connections between nodes share: bytes to frames, back-pressure, and an end that has a reason.

Decides how an address is reached, when a connection is broken, stalled or over, and in what order the
requests that peers send on the connections they made are answered. Never decides when to connect, which is
for links and probes, nor what a request or an answer means: that is the core's, asked through `PeerHost`.

Invariants:
- A connection reports its end exactly once, by `lost`, and only after it was made.
- A connection that the other side does not greet, read or let go ends within a bounded time.
- At most one batch of requests waits for each connection, and nothing is read while any wait.
- Requests of one connection are answered in order, a slice in each turn of the event loop.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

from zephyr.config import Settings, parse_address
from zephyr.errors import WireError
from zephyr.gossip.dns import Resolver
from zephyr.model import PROTOCOL_MAX, PROTOCOL_MIN, Address, Member, NodeId
from zephyr.peer.wire import (
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
    frame_bytes_max,
)

Answer: TypeAlias = tuple[int, tuple[Any, ...]]
"""(status, payload) of a reply."""

CONNECT_TIMEOUT_S = 1.0
"""Resolving a name and connecting. Within a cluster both take milliseconds; a second covers one lost SYN."""
HELLO_TIMEOUT_S = 2.0
"""From connected to greeted. Longer than the connect: it needs the other program's event loop, not its kernel only."""
DRAIN_TIMEOUT_S = 5.0
"""A connection whose full write buffer does not shrink for this long is cut: its other side reads no more."""
LINGER_S = 1.0
"""Time for a goodbye and what stands before it to reach the socket, before the connection is cut."""

SERVED_CONNECTIONS_MAX = 1024
"""Five for each member of the largest ring: its link, one that is about to end, and probes."""
SERVED_SLICE = 512
"""Requests of one connection that are answered in one turn of the event loop: about 3 ms."""
RESOLVED_ADDRESSES_MAX = 4
"""Addresses of one name that are tried."""

WRITE_HIGH_BYTES = 1 << 20
"""A socket buffer above this stops writing, and reading of further requests."""
WRITE_LOW_BYTES = 256 << 10
WRITE_CHUNK_BYTES = 256 << 10
"""Frames are joined up to about this size; more at once would only be copied once more."""

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
    serve: Callable[[int, tuple[Any, ...], bytes], Answer | asyncio.Future[Answer]]
    """(operation, arguments, ring_digest) -> the answer, or a future of one that needs other nodes."""
    replied: Callable[[int, int, tuple[Any, ...]], None]
    """(call_id, status, payload)."""
    failed: Callable[[int, str, bool], None]
    """(call_id, reason, sent): there will be no answer. `sent`: the peer may have received the request."""
    connected: Callable[[Member], None]
    """A link is up; this is what the other side says of itself."""
    disconnected: Callable[[NodeId, str, bool], None]
    """(node_id, reason, is_goodbye): a link that was up ended, or an attempt failed. A failure for the same reason as
    the one before is not repeated, and a link that `set_peers` or idleness closed is not reported."""
    refused: Callable[[NodeId, int], None]
    """(node_id, epoch): after a link ended without a goodbye, an attempt to make it again was refused. `epoch`: of the
    life that the link led to. Repeated with each such attempt."""
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

    def totals(self) -> dict[str, dict[str, int]]:
        """Return what else was counted: by kind of count, then by what it tells apart."""
        return {
            "served": {"ok": self.requests_served, "expired": self.requests_expired},
            "connections": {
                "up": self.connections_up,
                "served": self.connections_served,
                "refused": self.connections_refused,
                "stalled": self.connections_stalled,
            },
            "bytes": {"sent": self.bytes_sent, "received": self.bytes_received},
            "wire_errors": dict(self.wire_errors),
        }


class Shared:
    """What all connections of one transport have in common."""

    loop: asyncio.AbstractEventLoop
    """Set by `PeerTransport.bind`; nothing here runs before."""

    def __init__(self, settings: Settings, host: PeerHost, rng: random.Random) -> None:
        self.settings = settings
        self.host = host
        self.rng = rng
        self.counters = PeerCounters()
        self.frame_bytes_max = frame_bytes_max(settings.value_max)
        self.connections: set[Connection] = set()
        self.served_count = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.resolver = Resolver()
        self.stopping = False
        self._unflushed: list[Callable[[], None]] = []
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

    def flush_soon(self, flush: Callable[[], None]) -> None:
        """Call this when the turn of the loop is over, so that what the turn sends is written in one go."""
        if not self._unflushed:
            self.loop.call_soon(self._flush)
        self._unflushed.append(flush)

    def _flush(self) -> None:
        flushes, self._unflushed = self._unflushed, []
        for flush in flushes:
            flush()

    def forget(self, connection: Connection) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        if self._gone is not None and not self.connections and not self._gone.done():
            self._gone.set_result(None)

    async def all_gone(self) -> None:
        """Wait until no connection is left, `LINGER_S` at most."""
        if self.connections:
            self._gone = self.loop.create_future()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone, LINGER_S)

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

    async def dial(self, address: Address, connection: Connection) -> None:
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

    async def _connect(self, host: str, port: int, connection: Connection) -> None:
        hosts = await self.resolver.addresses(host)
        refusal = OSError(None, f"{host} has no address")
        for resolved in hosts[:RESOLVED_ADDRESSES_MAX]:
            try:
                await self.loop.create_connection(lambda: connection, resolved, port)
            except OSError as error:
                refusal = error
            else:
                return
        raise refusal


class Connection(asyncio.Protocol):
    """One TCP connection, either side: frames in, back-pressure, and an end that has a reason."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared, expected: type[Request | Reply]) -> None:
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
        """Set the limits, and wait for the other side's hello."""
        self.transport = cast("asyncio.Transport", transport)
        self.shared.connections.add(self)
        self.alive = self.open = True
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        _tune(self.transport.get_extra_info("socket"))
        self._arm(HELLO_TIMEOUT_S, self._hello_missed)
        if self.shared.stopping:
            self.cut("this node is stopping")

    def data_received(self, data: bytes) -> None:
        """Read frames; bytes that are none end the connection."""
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
        """End a connection whose other side writes no more."""
        # Peers never close one direction only, so nothing that is still to be written will be read.
        self.cut(self.reason or "the connection ended")

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, once."""
        if not self.alive:
            return
        self.alive = self.open = False
        self._disarm()
        self.shared.forget(self)
        self.lost(self.reason or ("the connection ended" if exc is None else error_name(exc)))

    def pause_writing(self) -> None:
        """Hold back what is to be written, and watch whether the other side still reads."""
        self.writable = False
        if self.open:
            self._watch_stall()

    def resume_writing(self) -> None:
        """Go on writing."""
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


class ServedConnection(Connection):
    """A connection that a peer made: its requests are answered here.

    Requests are answered as they arrive, in order, but for those that need other nodes. When the peer does not read its
    answers, reading stops and the requests that were already read wait; one whose time allowance runs out while it
    waits is dropped without an answer, since its caller is gone.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared, Request)
        self._reply_bytes_max = 0
        self._waiting: deque[Request] = deque()
        """At most one batch: nothing is read while any wait."""
        self._arrived_s = 0.0
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn a peer away when too many are served."""
        super().connection_made(transport)
        shared = self.shared
        shared.served_count += 1
        shared.counters.connections_served += 1
        if shared.served_count > SERVED_CONNECTIONS_MAX:
            self._turn_away(f"{SERVED_CONNECTIONS_MAX} connections are open here, no more")

    def lost(self, reason: str) -> None:  # noqa: ARG002  # the peer's link reports it, on its side
        """Drop what waits: nobody would read the answers."""
        self.shared.served_count -= 1
        self._waiting.clear()

    def take(self, frames: list[Frame]) -> None:
        """Greet the peer, and answer its requests."""
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
        """Answer the requests that waited for the socket."""
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
        """Return the frame of an answer; nothing where it comes later, out of order."""
        answer = self.shared.host.serve(request.operation, request.arguments, request.ring_digest)
        self.shared.counters.requests_served += 1
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(partial(self._answer_late, request.call_id))
            return b""
        return self._frame(request.call_id, answer)

    def _answer_late(self, call_id: int, answer: asyncio.Future[Answer]) -> None:
        if self.open:
            self.write(self._frame(call_id, answer.result()))

    def _frame(self, call_id: int, answer: Answer) -> bytes:
        frame = encode_reply(call_id, *answer)
        if len(frame) - LENGTH_BYTES > self._reply_bytes_max:  # the peer would drop the connection over it
            return encode_reply(call_id, Status.TOO_LARGE, ("the answer is longer than you read",))
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


class ProbeConnection(Connection):
    """A connection that only asks who is there."""

    def __init__(self, shared: Shared, answer: asyncio.Future[tuple[Member | None, str]]) -> None:
        super().__init__(shared, Reply)
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        super().connection_made(transport)
        if is_connected_to_itself(self.transport):
            self.cut("nobody listens there")
        self.write(self.shared.hello(probe=True))

    def take(self, frames: list[Frame]) -> None:
        """Settle the answer with the other side's hello, and hang up."""
        for frame in frames:
            if type(frame) is Hello:
                objection = self.shared.objection(frame)
                self._settle(None if objection else frame.member, objection)
                self.leave(objection or "that was all")
            elif type(frame) is Goodbye:
                self.ended_by(frame)

    def lost(self, reason: str) -> None:
        """Settle the answer: nobody said who is there."""
        self._settle(None, reason)

    def _settle(self, member: Member | None, reason: str) -> None:
        if not self._answer.done():
            self._answer.set_result((member, reason))


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


def is_connected_to_itself(transport: asyncio.Transport) -> bool:
    """Tell whether a socket met itself: TCP allows it when the free port dialled is also the one dialled from."""
    return bool(transport.get_extra_info("sockname") == transport.get_extra_info("peername"))


def error_name(error: Exception) -> str:
    """Say what went wrong in the words of the operating system, where it has some."""
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return str(error.args[-1]) if error.args else type(error).__name__


def describe_failure(error: OSError, address: Address) -> str:
    """Say why `Shared.dial` did not reach an address."""
    if isinstance(error, TimeoutError):
        return f"{address} is silent: no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"{address} refused the connection"
    return f"{address} cannot be reached: {error_name(error)}"
