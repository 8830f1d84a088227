"""Peer transports on loopback, joined with each other and with peers that misbehave."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from zephyr.config import Settings, parse_address
from zephyr.errors import ConfigError
from zephyr.events import SendPeer
from zephyr.model import Address, Member, NodeId
from zephyr.peer.connection import WRITE_CHUNK_BYTES, WRITE_HIGH_BYTES, Connection, ServedConnection
from zephyr.peer.link import LINK_IDLE_S, LINK_STABLE_S, RECONNECT_DELAYS_S, _LinkConnection, reconnect_delay_s
from zephyr.peer.tcp import LINKS_KEPT, PeerHost, PeerTransport
from zephyr.peer.wire import (
    ALLOWANCE_MS_MAX,
    Frame,
    FrameDecoder,
    Goodbye,
    Hello,
    Operation,
    Reply,
    Request,
    Status,
    encode_hello,
    encode_reply,
    encode_request,
    frame_bytes_max,
)

WAIT_S = 10.0
"""Deadline of every wait: far above what any of them takes, so that only a hang reaches it."""
VALUE_MAX = 1 << 20
DIGEST = b"ringring"
ANY_PORT = "127.0.0.1:0"


class Changes:
    """Wakes whoever waits for a condition whenever something happened."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def happened(self) -> None:
        for event in self._waiting:
            event.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    await event.wait()
                    event.clear()
        finally:
            self._waiting.discard(event)


async def polled(condition: Callable[[], Any]) -> None:
    """Wait for a condition that no callback announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.001)


class Node:
    """A transport and everything it told its host."""

    def __init__(self, node_id: NodeId, changes: Changes, cluster: str = "dev", value_max: int = VALUE_MAX) -> None:
        self.changes = changes
        self.member = Member(node_id, "127.0.0.1:1", "127.0.0.1:1", ANY_PORT, epoch=1)
        self.settings = Settings(id=node_id, cluster=cluster, peer=ANY_PORT, value_max=value_max)
        self.records: dict[bytes, bytes] = {}
        self.served: list[tuple[int, tuple[Any, ...], bytes]] = []
        self.replies: dict[int, tuple[int, tuple[Any, ...]]] = {}
        self.failures: dict[int, tuple[str, bool]] = {}
        self.connections: list[Member | tuple[NodeId, str]] = []
        self.refusals: list[tuple[NodeId, int]] = []
        self.probes: list[tuple[Address, Member | None, str]] = []
        self.call_id = 0
        self.in_call = False
        self.transport = self._transport()

    def _transport(self) -> PeerTransport:
        host = PeerHost(
            identity=lambda: self.member,
            ring_digest=lambda: DIGEST,
            serve=self._serve,
            replied=self._replied,
            failed=self._failed,
            connected=lambda member: self._heard(self.connections, member),
            disconnected=lambda node_id, reason, _goodbye: self._heard(self.connections, (node_id, reason)),
            refused=lambda node_id, epoch: self._heard(self.refusals, (node_id, epoch)),
            probed=lambda *answer: self._heard(self.probes, answer),
        )
        return PeerTransport(self.settings, host, random.Random(7))

    async def start(self, address: Address = ANY_PORT) -> Node:
        self.settings = replace(self.settings, peer=address)
        self.transport = self._transport()
        await self.transport.start()
        self.member = replace(self.member, peer=self.transport.address)
        return self

    def _heard(self, into: list[Any], what: Any) -> None:
        assert not self.in_call
        into.append(what)
        self.changes.happened()

    def _serve(self, operation: int, arguments: tuple[Any, ...], digest: bytes) -> tuple[int, tuple[Any, ...]]:
        self.served.append((operation, arguments, digest))
        self.changes.happened()
        if operation == Operation.READ:
            return Status.OK, (self.records.get(arguments[0]),)
        if operation == Operation.WRITE:
            existed = arguments[0] in self.records
            self.records[arguments[0]] = arguments[1]
            return Status.OK, (True, existed, bytes(16))
        return Status.BAD_REQUEST, (f"unknown operation {operation}",)

    def _replied(self, call_id: int, status: int, payload: tuple[Any, ...]) -> None:
        assert not self.in_call
        assert call_id not in self.replies
        assert call_id not in self.failures
        self.replies[call_id] = (status, payload)
        self.changes.happened()

    def _failed(self, call_id: int, reason: str, sent: bool) -> None:  # noqa: FBT001  # as PeerHost has it
        assert not self.in_call
        assert call_id not in self.replies
        assert call_id not in self.failures
        self.failures[call_id] = (reason, sent)
        self.changes.happened()

    def send(self, to: NodeId, operation: int, *arguments: Any, timeout_s: float = WAIT_S) -> int:
        self.call_id += 1
        self.in_call = True
        self.transport.send(SendPeer(to, self.call_id, operation, arguments, time.monotonic() + timeout_s))
        self.in_call = False
        return self.call_id

    def set_peers(self, *members: Member) -> None:
        self.in_call = True
        self.transport.set_peers(members)
        self.in_call = False

    async def call(self, to: NodeId, operation: int, *arguments: Any) -> tuple[int, tuple[Any, ...]]:
        call_id = self.send(to, operation, *arguments)
        await self.changes.until(lambda: call_id in self.replies or call_id in self.failures)
        assert call_id in self.replies, self.failures.get(call_id)
        return self.replies[call_id]

    async def failure(self, call_id: int) -> tuple[str, bool]:
        await self.changes.until(lambda: call_id in self.replies or call_id in self.failures)
        return self.failures[call_id]

    async def join(self, *others: Node | Stranger) -> None:
        self.set_peers(*(other.member for other in others))
        ids = {other.member.id for other in others}
        await self.changes.until(lambda: ids <= self.connected_ids())

    def connected_ids(self) -> set[NodeId]:
        return {event.id for event in self.connections if isinstance(event, Member)}

    def disconnections(self) -> list[str]:
        return [event[1] for event in self.connections if not isinstance(event, Member)]


class Stranger:
    """The other side as a test wants it: a socket that listens, greets or not, and answers by hand."""

    def __init__(self, changes: Changes, node_id: NodeId = "s1") -> None:
        self.changes = changes
        self.member = Member(node_id, "127.0.0.1:1", "127.0.0.1:1", ANY_PORT, epoch=1)
        self.greets = True
        self.hangs_up_after_hello = False
        self.frame_bytes_max = frame_bytes_max(VALUE_MAX)
        self.accepted: list[asyncio.Transport] = []
        self.frames: list[Frame] = []
        self.ended = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> Stranger:
        self._server = await asyncio.get_running_loop().create_server(lambda: _StrangerConnection(self), "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.member = replace(self.member, peer=f"127.0.0.1:{port}")
        return self

    def hello(self) -> bytes:
        return encode_hello(Hello(1, 1, "dev", False, self.frame_bytes_max, self.member))

    @property
    def requests(self) -> list[Request]:
        return [frame for frame in self.frames if type(frame) is Request]

    def answer(self, request: Request, *payload: Any) -> None:
        self.accepted[-1].write(encode_reply(request.call_id, Status.OK, payload))

    def stop_listening(self) -> None:
        self._server.close()

    def close(self) -> None:
        self.stop_listening()
        for transport in self.accepted:
            transport.abort()


class _StrangerConnection(asyncio.Protocol):
    def __init__(self, stranger: Stranger) -> None:
        self._stranger = stranger
        self._decoder = FrameDecoder(Request, 64 << 20)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._stranger.accepted.append(transport)
        self._stranger.changes.happened()

    def data_received(self, data: bytes) -> None:
        frames = self._decoder.feed(data)
        self._stranger.frames += frames
        if self._stranger.greets and any(type(frame) is Hello for frame in frames):
            self._transport.write(self._stranger.hello())
            if self._stranger.hangs_up_after_hello:
                self._transport.close()
        self._stranger.changes.happened()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stranger.ended += 1
        self._stranger.changes.happened()


class Raw:
    """A bare connection to a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._decoder = FrameDecoder(Reply, 64 << 20)

    async def rest(self) -> list[Frame]:
        """Read until the node closes the connection."""
        frames: list[Frame] = []
        async with asyncio.timeout(WAIT_S):
            try:
                while data := await self._reader.read(1 << 16):
                    frames += self._decoder.feed(data)
            except ConnectionResetError:
                pass
        return frames

    async def frames(self, count: int) -> list[Frame]:
        frames: list[Frame] = []
        async with asyncio.timeout(WAIT_S):
            while len(frames) < count:
                data = await self._reader.read(1 << 16)
                assert data, "the node closed the connection"
                frames += self._decoder.feed(data)
        return frames


class World:
    """Builds nodes and strangers, and closes them all."""

    def __init__(self) -> None:
        self.changes = Changes()
        self._nodes: list[Node] = []
        self._strangers: list[Stranger] = []
        self._raws: list[Raw] = []

    async def node(self, node_id: NodeId, **options: Any) -> Node:
        node = Node(node_id, self.changes, **options)
        self._nodes.append(node)
        return await node.start()

    async def stranger(self, node_id: NodeId = "s1") -> Stranger:
        stranger = Stranger(self.changes, node_id)
        self._strangers.append(stranger)
        return await stranger.start()

    async def raw(self, node: Node, *, receive_buffer: int = 0) -> Raw:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, parse_address(node.member.peer))
        raw = Raw(*await asyncio.open_connection(sock=sock, limit=1 << 12))
        self._raws.append(raw)
        return raw

    async def close(self) -> None:
        for raw in self._raws:
            raw.writer.transport.abort()
        for stranger in self._strangers:
            stranger.close()
        for node in self._nodes:
            await node.transport.close()
        for node in self._nodes:
            assert not node.transport._shared.connections
            assert not node.transport._shared.tasks
        await self.changes.until(lambda: all(item.ended == len(item.accepted) for item in self._strangers))
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def world():
    world = World()
    yield world
    await world.close()


def request(call_id: int, key: bytes, *, allowance_ms: int = 60_000) -> bytes:
    return encode_request(call_id, Operation.READ, DIGEST, allowance_ms, (key,))


# --- requests and replies ---------------------------------------------------------------------------


async def test_a_request_is_answered_by_the_peer_it_was_sent_to(world):
    n1, n2, n3 = [await world.node(node_id) for node_id in ("n1", "n2", "n3")]
    await n1.join(n2, n3)
    assert await n1.call("n2", Operation.WRITE, b"k", b"v") == (Status.OK, (True, False, bytes(16)))
    assert await n1.call("n2", Operation.READ, b"k") == (Status.OK, (b"v",))
    assert await n1.call("n3", Operation.READ, b"k") == (Status.OK, (None,))
    assert n2.served == [(Operation.WRITE, (b"k", b"v"), DIGEST), (Operation.READ, (b"k",), DIGEST)]


async def test_both_sides_learn_who_the_other_is(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    n2.member = replace(n2.member, epoch=77, zone="east", weight=2.5)
    await n1.join(n2)
    assert n1.connections == [n2.member]
    await n2.join(n1)
    assert n2.connections == [n1.member]


async def test_many_requests_in_flight_each_get_their_own_answer(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    await n2.join(n1)
    for number in range(2000):
        n2.records[b"%d" % number] = b"v%d" % number
        n1.records[b"%d" % number] = b"w%d" % number
    n2.records[b"big"] = bytes(VALUE_MAX)
    big = n1.send("n2", Operation.READ, b"big")
    asked = {n1.send("n2", Operation.READ, b"%d" % number): number for number in range(2000)}
    asked_back = {n2.send("n1", Operation.READ, b"%d" % number): number for number in range(2000)}
    await world.changes.until(lambda: len(n1.replies) == 2001 and len(n2.replies) == 2000)
    assert n1.replies[big] == (Status.OK, (bytes(VALUE_MAX),))
    assert all(n1.replies[call_id][1] == (b"v%d" % number,) for call_id, number in asked.items())
    assert all(n2.replies[call_id][1] == (b"w%d" % number,) for call_id, number in asked_back.items())
    assert n1.transport.counters.requests_sent == n1.transport.counters.replies == 2001


async def test_answers_may_come_in_any_order(world):
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    calls = [n1.send("s1", Operation.READ, b"%d" % number) for number in range(5)]
    await world.changes.until(lambda: len(peer.requests) == 5)
    for asked in reversed(peer.requests):
        peer.answer(asked, asked.arguments[0])
    await world.changes.until(lambda: len(n1.replies) == 5)
    assert list(n1.replies) == calls[::-1]
    assert all(n1.replies[call_id][1] == (b"%d" % number,) for number, call_id in enumerate(calls))


async def test_the_time_that_is_left_travels_with_the_request(world):
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    n1.send("s1", Operation.READ, b"k", timeout_s=5)
    n1.send("s1", Operation.READ, b"k", timeout_s=float("inf"))
    await world.changes.until(lambda: len(peer.requests) == 2)
    assert 4000 < peer.requests[0].allowance_ms <= 5000
    assert peer.requests[1].allowance_ms == ALLOWANCE_MS_MAX


async def test_an_unknown_operation_costs_that_call_only(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    status, _ = await n1.call("n2", 99, b"whatever", None, (1, 2))
    assert status == Status.BAD_REQUEST
    assert await n1.call("n2", Operation.READ, b"k") == (Status.OK, (None,))
    assert len(n1.connections) == 1


async def test_requests_of_one_turn_are_one_write_and_so_are_their_answers(world, monkeypatch):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    writes: list[type] = []
    write = Connection.write
    monkeypatch.setattr(Connection, "write", lambda self, data: (writes.append(type(self)), write(self, data)))
    for number in range(100):
        n1.send("n2", Operation.READ, b"%d" % number)
    await world.changes.until(lambda: len(n1.replies) == 100)
    assert writes.count(_LinkConnection) == 1
    assert writes.count(ServedConnection) <= 3  # one for each piece in which the requests arrived


async def test_a_reply_to_a_call_that_is_over_is_dropped_and_counted(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.tcp.SWEEP_INTERVAL_S", 0.01)
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    n1.send("s1", Operation.READ, b"late", timeout_s=0.05)
    await world.changes.until(lambda: peer.requests)
    link = n1.transport._links["s1"]
    await polled(lambda: not link._in_flight)
    peer.answer(peer.requests[0], None)
    n1.send("s1", Operation.READ, b"next")
    await world.changes.until(lambda: len(peer.requests) == 2)
    peer.answer(peer.requests[1], None)
    await world.changes.until(lambda: n1.replies)
    assert list(n1.replies) == [2]
    assert n1.transport.counters.replies_late == 1
    assert not n1.failures  # the core has its own timer


async def test_a_queued_request_is_dropped_when_its_time_is_over(world):
    n1, peer = await world.node("n1"), await world.stranger()
    peer.greets = False
    n1.set_peers(peer.member)
    n1.send("s1", Operation.READ, b"impatient", timeout_s=1)
    n1.send("s1", Operation.READ, b"patient", timeout_s=60)
    await world.changes.until(lambda: peer.frames)
    link = n1.transport._links["s1"]
    link.sweep(time.monotonic() + 2)
    assert link._unsent_bytes == sum(map(len, link._unsent.values()))
    peer.accepted[0].write(peer.hello())
    await world.changes.until(lambda: peer.requests)
    assert [asked.arguments for asked in peer.requests] == [(b"patient",)]


async def test_a_request_whose_time_is_over_is_not_sent(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    assert await n1.failure(n1.send("n2", Operation.READ, b"k", timeout_s=-1)) == (
        "its time was over before it was sent",
        False,
    )
    assert not n2.served


async def test_a_request_to_nobody_fails_in_a_later_turn(world):
    n1 = await world.node("n1")
    call_id = n1.send("n9", Operation.READ, b"k")
    assert not n1.failures
    assert await n1.failure(call_id) == ("n9 is no peer of this node", False)


async def test_a_name_is_resolved(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    n1.set_peers(replace(n2.member, peer=n2.member.peer.replace("127.0.0.1", "localhost")))
    assert await n1.call("n2", Operation.READ, b"k") == (Status.OK, (None,))


# --- who may talk to whom ---------------------------------------------------------------------------


async def test_clusters_of_other_names_refuse_each_other_and_both_say_why(world):
    n1, n2 = await world.node("n1", cluster="red"), await world.node("n2", cluster="blue")
    n1.set_peers(n2.member)
    call_id = n1.send("n2", Operation.READ, b"k")
    reason = "turned away: cluster blue here, cluster red there"
    assert await n1.failure(call_id) == (reason, False)
    await world.changes.until(n1.disconnections)
    assert n1.disconnections() == [reason]
    assert n1.transport._links["n2"]._failures >= len(RECONNECT_DELAYS_S)  # no quick retries after a refusal
    assert n2.transport.counters.connections_refused >= 1
    assert not n2.served


async def test_the_caller_checks_the_cluster_too(world):
    n1, peer = await world.node("n1", cluster="red"), await world.stranger()
    n1.set_peers(peer.member)
    await world.changes.until(n1.disconnections)
    assert n1.disconnections() == ["cluster red here, cluster dev there"]
    await world.changes.until(lambda: any(type(frame) is Goodbye for frame in peer.frames))
    assert peer.frames[1] == Goodbye("cluster red here, cluster dev there")


async def test_protocols_without_overlap_refuse_each_other(world):
    n1 = await world.node("n1")
    raw = await world.raw(n1)
    stranger = Member("s1", "h:1", "h:1", "h:1", 1)
    raw.writer.write(encode_hello(Hello(7, 9, "dev", False, 1 << 20, stranger)))
    assert await raw.rest() == [Goodbye("protocol 1 to 1 here, 7 to 9 there")]


async def test_another_id_at_a_members_address_is_refused(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    n1.set_peers(replace(n2.member, id="n3"))
    await world.changes.until(n1.disconnections)
    assert n1.disconnections() == [f"{n2.member.peer} answers as n2, not as n3"]
    assert not n1.connected_ids()


async def test_a_node_does_not_link_to_its_own_id(world):
    n1 = await world.node("n1")
    n1.set_peers(n1.member)
    await world.changes.until(n1.disconnections)
    assert n1.disconnections() == ["turned away: n1 is the id of the node that answers here"]


# --- ends and new beginnings ------------------------------------------------------------------------


async def test_calls_in_flight_fail_as_sent_when_the_peer_dies_and_the_link_comes_back_at_once(world):
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    n1.transport._links["s1"]._up_since_s -= LINK_STABLE_S
    calls = [n1.send("s1", Operation.READ, b"%d" % number) for number in range(3)]
    await world.changes.until(lambda: len(peer.requests) == 3)
    peer.accepted[0].abort()
    await world.changes.until(lambda: len(n1.failures) == 3)
    assert [n1.failures[call_id][1] for call_id in calls] == [True, True, True]
    queued = n1.send("s1", Operation.READ, b"queued while the link dials again")
    await world.changes.until(lambda: len(peer.requests) == 4)
    peer.answer(peer.requests[3], b"there")
    await world.changes.until(lambda: queued in n1.replies)
    assert [type(event) for event in n1.connections] == [Member, tuple, Member]


async def test_a_peer_that_is_gone_refuses_and_its_calls_fail_at_once(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    await n2.transport.close()
    refused = f"{n2.member.peer} refused the connection"
    await world.changes.until(lambda: refused in n1.disconnections())
    assert n1.disconnections() == ["said goodbye: stopping", refused]
    assert await n1.failure(n1.send("n2", Operation.READ, b"k")) == (refused, False)


async def test_a_link_comes_back_when_the_peer_is_back(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    address = n2.member.peer
    await n2.transport.close()
    await world.changes.until(lambda: len(n1.disconnections()) == 2)
    await n2.start(address)
    await world.changes.until(lambda: isinstance(n1.connections[-1], Member))
    assert await n1.call("n2", Operation.READ, b"k") == (Status.OK, (None,))


async def test_requests_queue_for_the_first_attempt_and_fail_unsent_when_it_fails(world):
    n1, peer = await world.node("n1"), await world.stranger()
    peer.stop_listening()
    n1.set_peers(peer.member)
    calls = [n1.send("s1", Operation.READ, b"k") for _ in range(3)]
    assert not n1.failures
    await world.changes.until(lambda: len(n1.failures) == 3)
    assert [n1.failures[call_id] for call_id in calls] == [(f"{peer.member.peer} refused the connection", False)] * 3


async def test_the_same_failure_is_reported_once(world):
    n1, peer = await world.node("n1"), await world.stranger()
    peer.stop_listening()
    n1.set_peers(peer.member)
    link = n1.transport._links["s1"]
    await polled(lambda: link._failures >= 4)
    assert n1.disconnections() == [f"{peer.member.peer} refused the connection"]


async def test_a_peer_that_accepts_and_says_nothing_is_given_up(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.HELLO_TIMEOUT_S", 0.05)
    n1, peer = await world.node("n1"), await world.stranger()
    peer.greets = False
    n1.set_peers(peer.member)
    assert await n1.failure(n1.send("s1", Operation.READ, b"k")) == ("no hello within 0.05 s", False)
    peer.greets = True
    await world.changes.until(n1.connected_ids)


async def test_a_link_that_is_lost_as_soon_as_it_is_up_backs_off(world):
    n1, peer = await world.node("n1"), await world.stranger()
    peer.hangs_up_after_hello = True
    n1.set_peers(peer.member)
    link = n1.transport._links["s1"]
    await world.changes.until(lambda: link._failures >= 3)
    assert not link._queueing


def test_the_delays_between_attempts_grow_to_a_second_and_no_further():
    rng = random.Random(1)
    assert [reconnect_delay_s(failures, rng) for failures in range(4)] == [0, 0.010, 0.050, 0.150]
    for failures in (4, 5, 6, 7, 20, 100_000):
        delays = [reconnect_delay_s(failures, rng) for _ in range(50)]
        assert 0.15 <= min(delays) < max(delays) <= 1.0


async def test_a_new_address_is_connected_to_anew(world):
    n1, n2, other = [await world.node(node_id) for node_id in ("n1", "n2", "n2")]
    await n1.join(n2)
    n1.set_peers(other.member)
    await world.changes.until(lambda: n1.connections[2:] == [other.member])
    assert n1.connections[1] == ("n2", f"n2 is at {other.member.peer} now")
    n1.send("n2", Operation.READ, b"k")
    await world.changes.until(lambda: other.served)


async def test_a_member_that_registers_anew_keeps_its_links_and_its_calls(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n1.join(n2)
    call_id = n1.send("n2", Operation.READ, b"k")
    n2.member = replace(n2.member, epoch=2)
    n1.set_peers(n2.member)
    n1.set_peers(replace(n2.member, state="leaving", weight=3.0))
    await world.changes.until(lambda: call_id in n1.replies)
    assert n1.transport.counters.connections_up == 1
    assert len(n1.connections) == 1


async def test_a_new_life_is_dialled_at_once_though_the_old_one_is_in_back_off(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.link.RECONNECT_DELAYS_S", (1000.0,))
    monkeypatch.setattr("zephyr.peer.link.RECONNECT_DELAY_MAX_S", 1000.0)
    n1, n2 = await world.node("n1"), await world.node("n2")
    address = n2.member.peer
    await n2.transport.close()
    n1.set_peers(n2.member)
    await world.changes.until(lambda: n1.disconnections() == [f"{address} refused the connection"])
    await n2.start(address)
    n1.set_peers(replace(n2.member, epoch=2))
    await world.changes.until(n1.connected_ids)


@pytest.mark.parametrize("seed", range(5))
async def test_every_call_ends_once_and_unsent_means_unserved_whatever_breaks(world, seed):
    rng = random.Random(seed)
    nodes = [await world.node(node_id) for node_id in ("n1", "n2", "n3")]
    keys: dict[tuple[NodeId, int], bytes] = {}

    def send(node: Node, peer: Node) -> None:
        key = f"{node.member.id} {node.call_id + 1}".encode()
        value = bytes(rng.choice([10, 300_000]))
        keys[node.member.id, node.send(peer.member.id, Operation.WRITE, key, value)] = key

    def break_something(node: Node, peer: Node) -> None:
        connections = sorted(node.transport._shared.connections, key=id)
        match rng.randrange(4):
            case 0 if connections:
                rng.choice(connections).transport.abort()
            case 1 if connections:
                rng.choice(connections).leave("a test wants it")
            case 2:
                node.set_peers(peer.member)
            case 3:
                peer.member = replace(peer.member, epoch=peer.member.epoch + 1)

    for _ in range(300):
        node, peer = rng.sample(nodes, 2)
        if rng.randrange(8):
            send(node, peer)
        else:
            break_something(node, peer)
            node.set_peers(*(other.member for other in nodes if other is not node))
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
    await world.changes.until(lambda: all(len(node.replies) + len(node.failures) == node.call_id for node in nodes))

    served = {arguments[0] for node in nodes for _, arguments, _ in node.served}
    for node in nodes:
        assert all(keys[node.member.id, call_id] in served for call_id in node.replies)
        unsent = [call_id for call_id, (_, sent) in node.failures.items() if not sent]
        assert not [call_id for call_id in unsent if keys[node.member.id, call_id] in served]
    assert sum(len(node.replies) for node in nodes) > 0
    assert sum(len(node.failures) for node in nodes) > 0


async def test_a_peer_that_is_left_out_is_told_goodbye_and_its_calls_fail(world):
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    written = n1.send("s1", Operation.READ, b"k")
    await world.changes.until(lambda: peer.requests)
    unwritten = n1.send("s1", Operation.READ, b"k")
    n1.set_peers()
    assert await n1.failure(written) == ("s1 is no peer any more", True)
    assert await n1.failure(unwritten) == ("s1 is no peer any more", False)
    await world.changes.until(lambda: peer.ended == 1)
    assert peer.frames[-1] == Goodbye("s1 is no peer any more")
    assert len(peer.requests) == 1
    assert len(n1.connections) == 1


async def test_closing_fails_what_is_open_and_says_goodbye(world):
    n1, peer, n2 = await world.node("n1"), await world.stranger(), await world.node("n2")
    await n1.join(peer)
    await n2.join(n1)
    call_id = n1.send("s1", Operation.READ, b"k")
    await world.changes.until(lambda: peer.requests)
    await n1.transport.close()
    assert n1.failures == {call_id: ("this node is stopping", True)}
    await world.changes.until(lambda: peer.ended == 1)
    assert peer.frames[-1] == Goodbye("this node is stopping")
    await world.changes.until(n2.disconnections)
    assert n2.disconnections()[0] == "said goodbye: stopping"
    assert await n1.failure(n1.send("s1", Operation.READ, b"k")) == ("this node is stopping", False)
    await n1.transport.close()


async def test_a_taken_port_is_one_clear_line(world):
    n1 = await world.node("n1")
    n2 = Node("n2", world.changes)
    with pytest.raises(ConfigError, match=f"--peer: {n1.member.peer} is taken by another program"):
        await n2.start(n1.member.peer)
    with pytest.raises(ConfigError, match=r"--peer: cannot listen at 192\.0\.2\.1:1: "):
        await n2.start("192.0.2.1:1")


# --- large clusters ---------------------------------------------------------------------------------


async def test_in_a_large_cluster_few_links_are_kept_and_others_open_at_first_use(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.tcp.LINKS_ALL_KEPT_MAX", 2)
    monkeypatch.setattr("zephyr.peer.tcp.LINKS_KEPT", 1)
    n1, *others = [await world.node(f"n{number}") for number in range(1, 6)]
    n1.set_peers(*(other.member for other in others))
    await world.changes.until(n1.connected_ids)
    links = n1.transport._links
    (kept,) = [node_id for node_id, link in links.items() if link._kept]
    assert n1.connected_ids() == {kept}
    resting = next(other for other in others if other.member.id != kept)
    assert await n1.call(resting.member.id, Operation.READ, b"k") == (Status.OK, (None,))
    assert n1.connected_ids() == {kept, resting.member.id}

    links[resting.member.id].sweep(time.monotonic() + LINK_IDLE_S + 1)
    links[kept].sweep(time.monotonic() + LINK_IDLE_S + 1)
    assert links[resting.member.id]._is_resting()
    assert not links[kept]._is_resting()
    assert await n1.call(resting.member.id, Operation.READ, b"k") == (Status.OK, (None,))
    assert not n1.disconnections()  # an idle connection that is let go is no news of the member


async def test_a_link_that_is_not_kept_rests_after_it_was_lost(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.tcp.LINKS_ALL_KEPT_MAX", 0)
    monkeypatch.setattr("zephyr.peer.tcp.LINKS_KEPT", 0)
    n1, peer = await world.node("n1"), await world.stranger()
    n1.set_peers(peer.member)
    link = n1.transport._links["s1"]
    n1.send("s1", Operation.READ, b"k")
    await world.changes.until(lambda: peer.requests)
    link._up_since_s -= LINK_STABLE_S
    peer.accepted[0].abort()
    await world.changes.until(n1.disconnections)
    assert link._is_resting()
    peer.stop_listening()
    assert not (await n1.failure(n1.send("s1", Operation.READ, b"k")))[1]
    await polled(link._is_resting)
    assert len(peer.accepted) == 1


def test_the_kept_links_hardly_change_when_a_member_comes():
    transport = PeerTransport(Settings(id="n0"), None, random.Random(1))
    ids = [f"n{number}" for number in range(1, 101)]
    before = transport._kept(dict.fromkeys(ids))
    after = transport._kept(dict.fromkeys([*ids, "n101"]))
    assert len(before) == len(after) == LINKS_KEPT
    assert len(before - after) <= 1
    other = PeerTransport(Settings(id="n101"), None, random.Random(1))
    assert other._kept(dict.fromkeys(ids)) != before
    assert transport._kept(dict.fromkeys(ids[:64])) == set(ids[:64])


# --- bounds and slow peers --------------------------------------------------------------------------


async def test_requests_in_flight_are_bounded(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.link.REQUESTS_IN_FLIGHT_MAX", 3)
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    calls = [n1.send("s1", Operation.READ, b"%d" % number) for number in range(5)]
    await world.changes.until(lambda: len(n1.failures) == 2 and len(peer.requests) == 3)
    assert n1.failures[calls[3]] == n1.failures[calls[4]] == ("overloaded: 3 requests are in flight", False)
    peer.answer(peer.requests[0], None)
    await world.changes.until(lambda: n1.replies)
    n1.send("s1", Operation.READ, b"fits again")
    await world.changes.until(lambda: len(peer.requests) == 4)
    assert n1.transport.counters.results() == {"ok": 1, "overloaded": 2}


async def test_requests_queued_for_an_attempt_are_bounded(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.link.PENDING_BYTES_MAX", 10_000)
    n1, peer = await world.node("n1"), await world.stranger()
    n1.set_peers(peer.member)
    calls = [n1.send("s1", Operation.WRITE, b"k", bytes(3000)) for _ in range(5)]
    await world.changes.until(lambda: len(n1.failures) == 2 and len(peer.requests) == 3)
    assert list(n1.failures) == calls[3:]


async def test_a_peer_that_reads_no_more_costs_only_its_own_requests_and_is_cut(world, monkeypatch):
    pending_bytes_max = 4 << 20
    monkeypatch.setattr("zephyr.peer.link.PENDING_BYTES_MAX", pending_bytes_max)
    monkeypatch.setattr("zephyr.peer.connection.DRAIN_TIMEOUT_S", 0.3)
    n1, n2, peer = await world.node("n1"), await world.node("n2"), await world.stranger()
    await n1.join(n2, peer)
    peer.accepted[0].pause_reading()
    link = n1.transport._links["s1"]
    while "overloaded" not in n1.transport.counters.failed:
        n1.send("s1", Operation.WRITE, b"k", bytes(VALUE_MAX))
        assert link._unsent_bytes <= pending_bytes_max
        assert await n1.call("n2", Operation.READ, b"k") == (Status.OK, (None,))
    assert link.connection.transport.get_write_buffer_size() < WRITE_HIGH_BYTES + WRITE_CHUNK_BYTES + 2 * VALUE_MAX
    overloaded = len(n1.failures)
    await world.changes.until(n1.disconnections)
    assert n1.disconnections()[0] == "it read nothing for 0.3 s"
    assert n1.transport.counters.connections_stalled == 1
    sent = [sent for _, sent in list(n1.failures.values())[overloaded:]]
    assert sent.count(True) >= 1
    assert sent.count(False) >= 1
    assert sent == sorted(sent, reverse=True)
    assert await n1.call("n2", Operation.READ, b"k") == (Status.OK, (None,))


async def test_a_slow_peer_gets_everything_in_the_end(world):
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    peer.accepted[0].pause_reading()
    for number in range(12):
        n1.send("s1", Operation.WRITE, b"%d" % number, bytes(VALUE_MAX))
    link = n1.transport._links["s1"]
    await polled(lambda: not link.connection.writable)
    peer.accepted[0].resume_reading()
    await world.changes.until(lambda: len(peer.requests) == 12)
    assert [asked.arguments[0] for asked in peer.requests] == [b"%d" % number for number in range(12)]
    assert link._unsent_bytes == 0


async def test_a_caller_that_does_not_read_its_answers_is_not_read_from(world):
    n1 = await world.node("n1")
    n1.records[b"big"] = bytes(VALUE_MAX)
    raw = await world.raw(n1, receive_buffer=1 << 14)
    caller = Member("s1", "h:1", "h:1", "h:1", 1)
    raw.writer.write(encode_hello(Hello(1, 1, "dev", False, frame_bytes_max(VALUE_MAX), caller)))
    raw.writer.write(b"".join(request(number, b"big") for number in range(60)))
    await world.changes.until(lambda: n1.served)
    (served,) = n1.transport._shared.connections
    await polled(lambda: not served.writable)
    assert len(n1.served) < 20
    assert not served.transport.is_reading()
    assert served.transport.get_write_buffer_size() < WRITE_HIGH_BYTES + WRITE_CHUNK_BYTES + 2 * VALUE_MAX
    frames = await raw.frames(61)
    assert [frame.call_id for frame in frames[1:]] == list(range(60))
    assert n1.transport.counters.requests_served == 60


async def test_requests_that_waited_too_long_behind_unread_answers_are_dropped(world):
    n1 = await world.node("n1")
    n1.records[b"big"] = bytes(VALUE_MAX)
    raw = await world.raw(n1, receive_buffer=1 << 14)
    caller = Member("s1", "h:1", "h:1", "h:1", 1)
    raw.writer.write(encode_hello(Hello(1, 1, "dev", False, frame_bytes_max(VALUE_MAX), caller)))
    last = request(200, b"last")
    raw.writer.write(b"".join(request(number, b"big", allowance_ms=1) for number in range(200)) + last)
    await world.changes.until(lambda: n1.served)
    (served,) = n1.transport._shared.connections
    await polled(lambda: not (served.writable or time.monotonic() < served._arrived_s + 0.01))
    answered = len(n1.served)
    frames = await raw.frames(1 + answered + 1)
    assert frames[-1] == Reply(200, Status.OK, (None,))
    assert n1.transport.counters.requests_expired == 200 - answered


async def test_many_requests_of_one_caller_are_served_in_slices(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.SERVED_SLICE", 10)
    n1, n2, n3 = [await world.node(node_id) for node_id in ("n1", "n2", "n3")]
    await n1.join(n2)
    await n3.join(n2)
    calls = [n1.send("n2", Operation.READ, b"%d" % number) for number in range(1000)]
    n3.send("n2", Operation.READ, b"other")
    await world.changes.until(lambda: len(n1.replies) == 1000 and n3.replies)
    assert list(n1.replies) == calls
    assert [arguments for _, arguments, _ in n2.served].index((b"other",)) < 500


async def test_a_frame_that_is_too_long_cuts_the_connection(world):
    n1 = await world.node("n1")
    raw = await world.raw(n1)
    caller = Member("s1", "h:1", "h:1", "h:1", 1)
    raw.writer.write(encode_hello(Hello(1, 1, "dev", False, 1 << 20, caller)))
    await raw.frames(1)
    bound = frame_bytes_max(VALUE_MAX)
    raw.writer.write(request(1, b"k") + struct.pack(">I", bound + 1))
    assert await raw.rest() == [Goodbye(f"broken frame, length: a frame of {bound + 1} bytes, at most {bound}")]
    assert n1.transport.counters.wire_errors == {"length": 1}
    assert not n1.served  # what came with it went with it


async def test_a_request_longer_than_the_peer_reads_costs_that_request_only(world):
    n1, n2 = await world.node("n1"), await world.node("n2", value_max=1000)
    n1.set_peers(n2.member)
    queued = n1.send("n2", Operation.WRITE, b"k", bytes(100_000))
    reason = f"too large: it reads {frame_bytes_max(1000)} bytes"
    assert await n1.failure(queued) == (reason, False)
    direct = n1.send("n2", Operation.WRITE, b"k", bytes(100_000))
    assert (await n1.failure(direct))[1] is False
    assert await n1.call("n2", Operation.WRITE, b"k", bytes(1000)) == (Status.OK, (True, False, bytes(16)))
    assert n1.transport.counters.failed == {"too-large": 2}
    assert len(n1.connections) == 1


async def test_an_answer_longer_than_the_caller_reads_becomes_too_large(world):
    n1, n2 = await world.node("n1", value_max=1000), await world.node("n2")
    n2.records[b"big"] = bytes(100_000)
    await n1.join(n2)
    status, _ = await n1.call("n2", Operation.READ, b"big")
    assert status == Status.TOO_LARGE
    assert await n1.call("n2", Operation.READ, b"small") == (Status.OK, (None,))


async def test_served_connections_are_bounded(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.SERVED_CONNECTIONS_MAX", 2)
    n1 = await world.node("n1")
    first, _second, third = [await world.raw(n1) for _ in range(3)]
    assert await third.rest() == [Goodbye("2 connections are open here, no more")]
    first.writer.transport.abort()
    await first.rest()
    await polled(lambda: n1.transport._shared.served_count < 2)
    fourth = await world.raw(n1)
    fourth.writer.write(encode_hello(Hello(1, 1, "dev", False, 1 << 20, Member("s1", "h:1", "h:1", "h:1", 1))))
    assert type((await fourth.frames(1))[0]) is Hello


async def test_closing_is_bounded_though_a_peer_reads_nothing(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.LINGER_S", 0.1)
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    peer.accepted[0].pause_reading()
    for _ in range(20):
        n1.send("s1", Operation.WRITE, b"k", bytes(VALUE_MAX))
    await polled(lambda: not n1.transport._links["s1"].connection.writable)
    async with asyncio.timeout(WAIT_S):
        await n1.transport.close()
    assert len(n1.failures) == 20


async def test_a_goodbye_that_is_not_read_does_not_keep_the_connection(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.LINGER_S", 0.05)
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    peer.accepted[0].pause_reading()
    connection = n1.transport._links["s1"].connection
    while not connection.transport.get_write_buffer_size():
        n1.send("s1", Operation.WRITE, b"k", bytes(100_000))
        await asyncio.sleep(0)
    assert connection.writable
    n1.set_peers()
    await polled(lambda: not n1.transport._shared.connections)


# --- strangers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("garbage", "cause"),
    [
        (b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n", "length"),
        (bytes(1000), "msgpack"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "length"),
        (b"\x00\x00\x00\x02\x91\x07", "kind"),
        (request(1, b"k"), "order"),
    ],
)
async def test_garbage_is_counted_and_dropped_and_others_are_served(world, garbage, cause):
    n1, n2 = await world.node("n1"), await world.node("n2")
    await n2.join(n1)
    raw = await world.raw(n1)
    raw.writer.write(garbage)
    await raw.rest()
    assert n1.transport.counters.wire_errors == {cause: 1}
    assert not n1.served
    assert await n2.call("n1", Operation.READ, b"k") == (Status.OK, (None,))


async def test_garbage_instead_of_an_answer_ends_the_link_and_fails_its_calls(world):
    n1, peer = await world.node("n1"), await world.stranger()
    await n1.join(peer)
    call_id = n1.send("s1", Operation.READ, b"k")
    await world.changes.until(lambda: peer.requests)
    peer.accepted[0].write(encode_reply(call_id, Status.OK, ()) + b"\x00\x00\x00\x01\xc1")
    assert (await n1.failure(call_id)) == ("broken frame, msgpack: FormatError", True)
    assert n1.transport.counters.wire_errors == {"msgpack": 1}
    assert not n1.replies


async def test_a_caller_that_says_nothing_is_cut(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.HELLO_TIMEOUT_S", 0.05)
    n1 = await world.node("n1")
    raw = await world.raw(n1)
    assert await raw.rest() == [Goodbye("no hello within 0.05 s")]


# --- probes -----------------------------------------------------------------------------------------


async def probed(node: Node, address: Address) -> tuple[Member | None, str]:
    count = len(node.probes)
    node.in_call = True
    node.transport.probe(address)
    node.in_call = False
    await node.changes.until(lambda: len(node.probes) > count)
    assert node.probes[-1][0] == address
    return node.probes[-1][1:]


async def test_a_probe_tells_who_answers_even_when_it_is_the_node_itself(world):
    n1, n2 = await world.node("n1"), await world.node("n2")
    assert await probed(n1, n2.member.peer) == (n2.member, "")
    assert await probed(n1, n1.member.peer) == (n1.member, "")
    assert not n1.connections
    await polled(lambda: not (n1.transport._shared.connections or n2.transport._shared.connections))


async def test_a_probe_tells_why_nobody_answers(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.connection.HELLO_TIMEOUT_S", 0.05)
    n1, n2, peer = await world.node("n1"), await world.node("n2", cluster="blue"), await world.stranger()
    peer.greets = False
    assert await probed(n1, peer.member.peer) == (None, "no hello within 0.05 s")
    assert await probed(n1, n2.member.peer) == (None, "turned away: cluster blue here, cluster dev there")
    gone = n2.member.peer
    await n2.transport.close()
    assert await probed(n1, gone) == (None, f"{gone} refused the connection")
    assert await probed(n1, "nonsense") == (None, "nonsense cannot be reached: it is no HOST:PORT")


async def test_probes_are_bounded_and_answered_when_the_node_stops(world, monkeypatch):
    monkeypatch.setattr("zephyr.peer.tcp.PROBES_MAX", 2)
    n1, peer = await world.node("n1"), await world.stranger()
    peer.greets = False
    for _ in range(3):
        n1.transport.probe(peer.member.peer)
    await world.changes.until(lambda: len(n1.probes) == 1 and len(peer.accepted) == 2)
    assert n1.probes[0] == (peer.member.peer, None, "2 probes are under way")
    await n1.transport.close()
    assert n1.probes[1:] == [(peer.member.peer, None, "this node is stopping")] * 2
    assert await probed(n1, peer.member.peer) == (None, "this node is stopping")
