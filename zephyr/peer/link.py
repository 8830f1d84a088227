"""The way to one member: at most one connection, the calls under way, and when to try again.

Decides when to connect to a member, when to try again and when to hang up. Never decides which members
there are, whom to ask or whether a member lives.

A link is in one of four states:

    resting   no connection, none wanted: the next request opens it (large clusters only)
    dialling  resolving, connecting, or waiting for the other side's hello
    up        the other side said who it is, and it is the expected member
    waiting   an attempt failed; the next one comes when the back-off is over

Requests go out at once on a link that is up. While a link dials for the first time, or for the first
time after it was up, they queue. After a failed attempt they fail at once until the link is up again.

Invariants:
- Each call ends in exactly one `replied` or `failed`, or in silence after its own deadline.
- `failed(..., sent=False)` means that no byte of the request was handed to the socket.
- Requests in flight and unsent bytes are bounded, so a slow or dead peer costs its own requests only.
- Only the link's present connection is heard; one that it gave up reports in vain.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from zephyr.events import SendPeer
from zephyr.model import Member
from zephyr.peer.connection import WRITE_CHUNK_BYTES, Connection, Shared, describe_failure, is_connected_to_itself
from zephyr.peer.wire import ALLOWANCE_MS_MAX, LENGTH_BYTES, TOLD_CALL_ID, Frame, Goodbye, Hello, Reply, encode_request

LINK_STABLE_S = 1.0
"""A link lost sooner than this after it came up counts as a failed attempt, so that it cannot flap without pause."""
LINK_IDLE_S = 60.0
"""A link beyond the kept ones is closed when it is not used for this long."""

RECONNECT_DELAYS_S = (0.0, 0.010, 0.050, 0.150)
"""Delay before the next attempt after 0, 1, 2, 3 failures: an ended process is known within 210 ms."""
RECONNECT_DELAY_MAX_S = 1.0
"""A member that comes back waits this long at most for its peers; an absent one costs a SYN a second."""

REQUESTS_IN_FLIGHT_MAX = 4096
"""For each link: what a peer answers in about 50 ms. Beyond it, waiting longer helps nobody."""
PENDING_BYTES_MAX = 32 << 20
"""For each link: requests that the socket has not taken yet."""


class _LinkConnection(Connection):
    """The connection of a link, from the dialling on."""

    def __init__(self, shared: Shared, link: Link) -> None:
        super().__init__(shared, Reply)
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._link.connection is not self:
            self.cut("not wanted any more")
        elif is_connected_to_itself(self.transport):
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


class Link:
    """The link to one member, kept open or opened for requests only."""

    __slots__ = (
        "_dialling",
        "_ended_epoch",
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

    def __init__(self, shared: Shared, member: Member) -> None:
        self.connection: _LinkConnection | None = None
        """The connection that is up or being made; any other reports in vain."""
        self._shared = shared
        self._member = member
        self._kept = False
        self._dialling: asyncio.Task[None] | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._failures = 0
        """Failed attempts in a row."""
        self._ended_epoch: int | None = None
        """Boot epoch of the life to which this link was up, since it ended without a goodbye."""
        self._reason = ""
        """Of the last failure; empty when the link is or was up."""
        self._up = False
        self._up_since_s = 0.0
        self._used_s = 0.0
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
        """Follow a member to its new address; dial a new life at once.

        A link that is up is left alone whatever the epoch: a process takes its connections with it when it
        ends, and one that registers anew with etcd is the same process under a new epoch.
        """
        before, self._member = self._member, member
        if member.peer == before.peer and (self._up or member.epoch == before.epoch):
            return
        was_up = self._up
        reason = f"{member.id} is at {member.peer} now" if member.peer != before.peer else f"{member.id} began anew"
        self.close(reason)
        self._failures = 0
        self._reason = ""
        self._ended_epoch = None
        if was_up:
            self._shared.loop.call_soon(self._shared.host.disconnected, member.id, reason, True)

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
            shared.flush_soon(self.flush)

    def tell(self, operation: int, arguments: tuple[Any, ...]) -> bool:
        """Send a request that wants no answer, if the link is up and its socket takes it. Return whether it went."""
        connection = self.connection
        if connection is None or not self._up or not connection.writable:
            return False
        digest = self._shared.host.ring_digest()
        connection.write(encode_request(TOLD_CALL_ID, operation, digest, ALLOWANCE_MS_MAX, arguments))
        return True

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
        self._ended_epoch = None
        self._used_s = self._up_since_s = time.monotonic()
        self._queueing = False
        self._reason = ""
        self._frame_bytes_max = hello.frame_bytes_max
        self._drop_too_large()
        self.flush()
        shared.host.connected(hello.member)

    def replied(self, reply: Reply) -> None:
        """Hand an answer on, unless its call is over."""
        if reply.call_id == TOLD_CALL_ID:
            return
        if self._in_flight.pop(reply.call_id, None) is None:
            self._shared.counters.replies_late += 1
            return
        self._shared.counters.replies += 1
        self._shared.host.replied(reply.call_id, reply.status, reply.payload)

    def lost(self, connection: _LinkConnection, reason: str, *, refused: bool = False) -> None:
        """The connection ended, or could not be made: fail its calls, report, and try again."""
        if self.connection is not connection:
            return
        shared = self._shared
        was_up = self._up
        self.connection = None
        self._up = self._queueing = False
        if was_up and not connection.deliberate:
            self._ended_epoch = self._member.epoch
        if refused and self._ended_epoch is not None:
            shared.loop.call_soon(shared.host.refused, self._member.id, self._ended_epoch)
        if connection.deliberate:
            self._failures = max(self._failures + 1, len(RECONNECT_DELAYS_S))
        elif was_up and time.monotonic() - self._up_since_s >= LINK_STABLE_S:
            self._failures = 0
        else:
            self._failures += 1
        self._fail_all("lost" if was_up else "unreachable", reason)
        if was_up or reason != self._reason:
            shared.loop.call_soon(shared.host.disconnected, self._member.id, reason, connection.deliberate)
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
            self.lost(connection, describe_failure(error, address), refused=isinstance(error, ConnectionRefusedError))

    def _try_again(self) -> None:
        if self._kept and not self._failures:
            self._dial(queueing=True)
        elif self._failures:
            delay_s = reconnect_delay_s(self._failures, self._shared.rng)
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


def reconnect_delay_s(failures: int, rng: random.Random) -> float:
    """Return how long to wait after so many failures in a row."""
    if failures < len(RECONNECT_DELAYS_S):
        return RECONNECT_DELAYS_S[failures]
    doublings = min(failures - len(RECONNECT_DELAYS_S) + 1, 10)
    ceiling_s = min(RECONNECT_DELAYS_S[-1] * 2**doublings, RECONNECT_DELAY_MAX_S)
    return rng.uniform(ceiling_s / 2, ceiling_s)
