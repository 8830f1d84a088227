"""Gossip transports on loopback, joined with each other and with senders that misbehave."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from zephyr.config import Settings, parse_address
from zephyr.errors import ConfigError, WireError
from zephyr.events import (
    DatagramReceived,
    Event,
    OpenStream,
    ReplyStream,
    ResolveSeeds,
    SeedsResolved,
    SendDatagram,
    StreamFailed,
    StreamReceived,
    StreamReplied,
)
from zephyr.gossip import udp
from zephyr.gossip.dns import Resolver
from zephyr.gossip.messages import Ack, GossipMessage, Ping, Sync, SyncEntry
from zephyr.gossip.udp import GossipHost, GossipTransport
from zephyr.gossip.wire import PACKET_BYTES_MAX, STREAM_BYTES_MAX, Envelope, Keyring, encode_message
from zephyr.model import Address, Member, NodeId

WAIT_S = 10.0
"""Deadline of every wait: far above what any of them takes, so that only a hang reaches it."""
ANY_PORT = "127.0.0.1:0"
PING = Ping(7, "n2")
ACK = Ack(7, b"ringring", 3)


async def polled(condition: Callable[[], Any]) -> None:
    """Wait for a condition that no callback announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.001)


class Node:
    """A transport and everything it told its host."""

    def __init__(
        self,
        node_id: NodeId,
        gossip: Address = ANY_PORT,
        cluster: str = "dev",
        resolver: Resolver | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.answer: Callable[[StreamReceived], tuple[bytes, ...] | None] = lambda _event: None
        self.envelope = Envelope(cluster, node_id, keyring, random.Random(node_id).randbytes)
        settings = Settings(id=node_id, cluster=cluster, gossip=gossip)
        self.transport = GossipTransport(settings, self.envelope, GossipHost(self._dispatch, lambda: 41), resolver)

    def _dispatch(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StreamReceived):
            messages = self.answer(event)
            if messages is not None:
                self.transport.execute(ReplyStream(event.stream_id, messages))

    @property
    def counters(self) -> udp.GossipCounters:
        return self.transport.counters

    @property
    def address(self) -> Address:
        return self.transport.address

    def send(self, address: Address, *messages: GossipMessage) -> None:
        self.transport.execute(SendDatagram(address, tuple(map(encode_message, messages))))

    def ask(self, address: Address, *messages: GossipMessage, timeout_s: float = WAIT_S, stream_id: int = 1) -> None:
        self.transport.execute(OpenStream(stream_id, address, tuple(map(encode_message, messages)), timeout_s))

    async def failure(self) -> str:
        await polled(lambda: self.events)
        (event,) = self.events
        assert isinstance(event, StreamFailed)
        return event.reason


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    try:
        for node in nodes:
            await node.transport.bind()
            node.transport.start()
        yield
    finally:
        for node in nodes:
            await node.transport.close()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    one, two = Node("n1"), Node("n2")
    async with running(one, two):
        yield one, two


def send_raw(address: Address, *packets: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for packet in packets:
            sock.sendto(packet, parse_address(address))


async def connect_raw(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*parse_address(address))


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Read until the other side closes."""
    async with asyncio.timeout(WAIT_S):
        with suppress(ConnectionResetError):
            return await reader.read()
        return b""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(4, "big") + packet


def member(number: int) -> Member:
    return Member(f"member-{number}", "192.0.2.1:8080", "192.0.2.1:7946", "192.0.2.1:7846", epoch=1)


def large_sync(count: int = 50) -> Sync:
    return Sync(tuple(SyncEntry(member(number), 0, "alive") for number in range(count)), is_join=False)


def padding(count: int) -> bytes:
    """Return a message that nobody can read, and nothing can compress."""
    return encode_message(PING)[:2] + os.urandom(count)


class Listener:
    """Something that is no node, on a TCP port."""

    def __init__(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.serve = serve
        self.address = ""
        self.serving: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.server.close()
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            self.serving.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Read, and answer nothing."""
    while await reader.read(1000):
        pass


async def dripping(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write the frame of 256 bytes that never ends."""
    writer.write(b"\0\0\1\0")
    for _ in range(250):
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.01)


# --- datagrams ----------------------------------------------------------------------------------------


async def test_datagrams_arrive_with_their_source_and_are_counted_on_both_sides():
    async with pair() as (one, two):
        one.send(two.address, PING, ACK)
        await polled(lambda: two.events)
        (event,) = two.events
        assert isinstance(event, DatagramReceived)
        assert event.source == one.address
        assert event.packet.sender == "n1"
        assert event.packet.epoch == 41
        assert event.packet.messages == (PING, ACK)
        two.send(event.source, ACK)
        await polled(lambda: one.events)
        assert one.counters.packets == {("udp", "sent"): 1, ("udp", "received"): 1}
        assert one.counters.bytes["udp", "sent"] == two.counters.bytes["udp", "received"] > 0
        assert one.counters.messages == {("ping", "sent"): 1, ("ack", "sent"): 1, ("ack", "received"): 1}
        assert two.counters.messages == {("ping", "received"): 1, ("ack", "received"): 1, ("ack", "sent"): 1}
        assert not one.counters.drops
        assert not one.counters.send_errors


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_datagrams_and_streams_work_over_ipv6():
    one, two = Node("n1", "[::1]:0"), Node("n2", "[::1]:0")
    two.answer = lambda _event: (encode_message(ACK),)
    async with running(one, two):
        assert one.address.startswith("[::1]:")
        one.send(two.address, PING)
        await polled(lambda: two.events)
        assert two.events[0].source == one.address
        one.ask(two.address, PING)
        await polled(lambda: one.events)
        assert isinstance(one.events[0], StreamReplied)


async def test_whatever_is_no_packet_of_this_cluster_is_counted_by_cause_and_dispatched_to_nobody():
    async with pair() as (one, two):
        stranger = Envelope("other", "n3", None, random.Random(1).randbytes)
        good = one.envelope.seal([encode_message(PING)], 1)
        send_raw(
            two.address,
            b"",
            os.urandom(100),
            good[:-1],
            good[:-1] + bytes([good[-1] ^ 1]),
            stranger.seal([encode_message(PING)], 1),
            two.envelope.seal([encode_message(PING)], 1),
            good + bytes(PACKET_BYTES_MAX),
            bytes(60_000),
        )
        await polled(lambda: two.counters.packets["udp", "received"] == 8)
        assert two.events == []
        assert two.counters.drops["foreign-cluster"] == 1
        assert two.counters.drops["own"] == 1
        assert two.counters.drops["oversized"] == 2
        assert two.counters.drops["checksum"] >= 1
        assert two.counters.drops.total() == 8
        assert not two.counters.messages


async def test_a_replayed_datagram_is_counted_and_not_dispatched_again():
    keys = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
    two = Node("n2", keyring=Keyring.parse(keys))
    one = Envelope("dev", "n1", Keyring.parse(keys), random.Random(1).randbytes)
    async with running(two):
        packet = one.seal([encode_message(PING)], 1)
        send_raw(two.address, packet, packet)
        await polled(two.counters.drops.total)
        assert two.counters.drops == {"replayed": 1}
        assert len(two.events) == 1


async def test_draining_delivers_what_waits_without_a_turn_of_the_event_loop():
    async with pair() as (one, two):
        packets = [one.envelope.seal([encode_message(Ping(number, "n2"))], 1) for number in range(100)]
        send_raw(two.address, *packets)
        assert two.events == []
        two.transport.drain()
        assert [event.packet.messages[0].sequence for event in two.events] == list(range(100))
        two.transport.drain()
        assert len(two.events) == 100


async def test_draining_is_bounded(monkeypatch):
    monkeypatch.setattr(udp, "DRAIN_MAX", 10)
    async with pair() as (one, two):
        send_raw(two.address, *(one.envelope.seal([encode_message(PING)], 1) for _ in range(25)))
        two.transport.drain()
        assert len(two.events) == 10
        await polled(lambda: len(two.events) == 25)


async def test_one_turn_of_the_event_loop_reads_a_bounded_number(monkeypatch):
    monkeypatch.setattr(udp, "READ_MAX", 10)
    async with pair() as (one, two):
        send_raw(two.address, *(one.envelope.seal([encode_message(PING)], 1) for _ in range(25)))
        counts = []
        while len(two.events) < 25:
            await asyncio.sleep(0)
            counts.append(len(two.events))
        assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= 10


async def test_draining_before_the_start_and_after_the_end_does_nothing():
    node = Node("n1")
    node.transport.drain()
    await node.transport.bind()
    node.transport.drain()
    await node.transport.close()
    node.transport.drain()
    assert node.events == []


async def test_closing_from_within_an_event_ends_the_reading():
    async with pair() as (one, two):
        closing: list[asyncio.Task[None]] = []
        two.transport._host = GossipHost(
            lambda event: (two.events.append(event), closing.append(asyncio.ensure_future(two.transport.close()))),
            lambda: 1,
        )
        send_raw(two.address, *(one.envelope.seal([encode_message(PING)], 1) for _ in range(3)))
        await polled(lambda: closing)
        await closing[0]
        assert len(two.events) <= 3


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("127.0.0.1:0", "EINVAL"),
        ("[::1]:7946", "EAFNOSUPPORT"),
        ("nonsense", "no-address"),
        ("[not-closed:7946", "no-address"),
    ],
)
async def test_what_cannot_be_sent_is_counted_and_raises_nothing(address, cause):
    node = Node("n1")
    async with running(node):
        node.send(address, PING)
        await polled(node.counters.send_errors.total)
        assert node.counters.send_errors == {cause: 1}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENETUNREACH, errno.ECONNREFUSED, errno.EAGAIN, errno.ENOBUFS])
async def test_errors_of_the_system_on_sending_are_counted_by_name(number, monkeypatch):
    class Refusing:
        def sendto(self, _packet: bytes, _address: object) -> None:
            raise OSError(number, "no")

    node = Node("n1")
    async with running(node):
        with monkeypatch.context() as patch:
            patch.setattr(node.transport, "_datagrams", Refusing())
            node.send("192.0.2.1:7946", PING)
        assert node.counters.send_errors == {errno.errorcode[number]: 1}


async def test_an_error_on_reading_is_counted_and_reading_goes_on(monkeypatch):
    class Refusing:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.errors = [errno.ECONNREFUSED, errno.EHOSTUNREACH]

        def recvfrom(self, size: int) -> Any:
            if self.errors:
                raise OSError(self.errors.pop(), "an ICMP message")
            return self.sock.recvfrom(size)

    async with pair() as (one, two):
        send_raw(two.address, one.envelope.seal([encode_message(PING)], 1))
        with monkeypatch.context() as patch:
            patch.setattr(two.transport, "_datagrams", Refusing(two.transport._datagrams))
            two.transport.drain()
        assert two.counters.send_errors == {"ECONNREFUSED": 1, "EHOSTUNREACH": 1}
        assert len(two.events) == 1


async def test_messages_that_do_not_fit_are_counted_and_not_sent():
    async with pair() as (one, two):
        one.transport.execute(SendDatagram(two.address, (encode_message(ACK),) * 100))
        assert one.counters.send_errors == {"oversized": 1}
        assert not one.counters.packets


async def test_what_is_remembered_of_addresses_is_bounded(monkeypatch):
    monkeypatch.setattr(udp, "TARGETS_MAX", 3)
    async with pair() as (one, two):
        for number in range(1, 6):
            one.send(f"127.0.0.{number}:9", PING)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"garbage", parse_address(two.address))
        two.transport.drain()
        assert list(one.transport._targets) == ["127.0.0.3:9", "127.0.0.4:9", "127.0.0.5:9"]
        assert len(two.transport._sources) <= 3


# --- names --------------------------------------------------------------------------------------------


class Names(Resolver):
    """Answers when the test says so."""

    def __init__(self, **hosts: list[str]) -> None:
        super().__init__()
        self.hosts = hosts
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def addresses(self, host: str) -> list[str]:
        if host[0].isdigit():
            return [host]
        self.asked.append(host)
        await self.open.wait()
        if host not in self.hosts:
            raise OSError(None, f"no address of {host}")
        return self.hosts[host]


async def test_a_datagram_to_a_name_of_this_machine_arrives():
    async with pair() as (one, two):
        port = parse_address(two.address)[1]
        one.send(f"localhost:{port}", PING)
        await polled(lambda: two.events)
        assert two.events[0].packet.messages == (PING,)


async def test_datagrams_wait_for_a_name_and_are_sent_in_order_once_it_is_known():
    names = Names(there=["::1", "127.0.0.1"])
    names.open.clear()
    one, two = Node("n1", resolver=names), Node("n2")
    async with running(one, two):
        port = parse_address(two.address)[1]
        for number in range(3):
            one.send(f"there:{port}", Ping(number, "n2"))
        names.open.set()
        await polled(lambda: len(two.events) == 3)
        assert [event.packet.messages[0].sequence for event in two.events] == [0, 1, 2]
        one.send(f"there:{port}", PING)
        await polled(lambda: len(two.events) == 4)
        assert names.asked == ["there"]


async def test_datagrams_to_a_name_without_address_are_dropped_and_counted_and_it_is_not_asked_for_at_once_again():
    names = Names(six=["::1"])
    node = Node("n1", resolver=names)
    async with running(node):
        node.send("nowhere:1", PING)
        await polled(node.counters.send_errors.total)
        node.send("nowhere:1", PING)
        assert node.counters.send_errors == {"no-address": 2}
        node.send("six:1", PING)
        await polled(lambda: node.counters.send_errors["EAFNOSUPPORT"])
        assert names.asked == ["nowhere", "six"]


async def test_datagrams_that_wait_for_a_name_are_bounded():
    names = Names(there=["127.0.0.1"])
    names.open.clear()
    node = Node("n1", resolver=names)
    async with running(node):
        for _ in range(udp.NAME_WAITING_MAX + 5):
            node.send("there:9", PING)
        assert node.counters.send_errors == {"waiting": 5}


async def test_lookups_and_names_are_bounded(monkeypatch):
    monkeypatch.setattr(udp, "LOOKUPS_MAX", 2)
    monkeypatch.setattr(udp, "NAMES_MAX", 3)
    names = Names()
    names.open.clear()
    node = Node("n1", resolver=names)
    async with running(node):
        for number in range(5):
            node.send(f"name{number}:9", PING)
        await polled(lambda: len(names.asked) == 2)
        assert node.counters.send_errors == {"no-address": 3}
        assert len(node.transport._names) == 3
        names.open.set()
        await polled(lambda: node.transport._lookups == 0)
        assert node.counters.send_errors == {"no-address": 5}


async def test_a_name_is_looked_up_again_in_time_and_keeps_its_address_while_dns_is_down(monkeypatch):
    monkeypatch.setattr(udp, "NAME_TTL_S", 0.0)
    monkeypatch.setattr(udp, "NAME_RETRY_S", 0.0)
    names = Names(there=["127.0.0.1"])
    one, two = Node("n1", resolver=names), Node("n2")
    async with running(one, two):
        port = parse_address(two.address)[1]
        one.send(f"there:{port}", PING)
        await polled(lambda: len(two.events) == 1)
        names.hosts.clear()
        one.send(f"there:{port}", PING)
        await polled(lambda: len(names.asked) == 2)
        one.send(f"there:{port}", PING)
        await polled(lambda: len(two.events) == 3)
        names.hosts["there"] = ["127.0.0.2"]
        await polled(lambda: one.send(f"there:{port}", PING) or one.transport._names["there"].hosts == ["127.0.0.2"])
        assert not one.counters.send_errors


async def test_seeds_are_resolved():
    node = Node("n1", resolver=Names(there=["192.0.2.1"]))
    async with running(node):
        node.transport.execute(ResolveSeeds(("there:1", "nowhere:2")))
        await polled(lambda: node.events)
        assert node.events == [SeedsResolved(("192.0.2.1:1",), ("seed nowhere:2: no address of nowhere",))]


# --- streams ------------------------------------------------------------------------------------------


async def test_a_stream_carries_a_request_and_its_reply():
    async with pair() as (one, two):
        two.answer = lambda _event: (encode_message(large_sync()),)
        one.ask(two.address, large_sync(2), stream_id=77)
        await polled(lambda: one.events)
        (asked,), (answered,) = two.events, one.events
        assert asked.packet.sender == "n1"
        assert asked.packet.messages == (large_sync(2),)
        assert isinstance(answered, StreamReplied)
        assert answered.stream_id == 77
        assert answered.packet.sender == "n2"
        assert answered.packet.messages == (large_sync(),)
        assert one.counters.messages == {("sync", "sent"): 1, ("sync", "received"): 1}
        assert one.counters.packets == {("tcp", "sent"): 1, ("tcp", "received"): 1}
        assert one.counters.streams == {"opened": 1, "answered": 1}
        assert two.counters.streams == {"served": 1}
        await polled(lambda: not one.transport._tasks and not two.transport._tasks)


async def test_a_reply_may_come_later_and_once():
    async with pair() as (one, two):
        one.ask(two.address, PING)
        await polled(lambda: two.events)
        reply = ReplyStream(two.events[0].stream_id, (encode_message(ACK),))
        two.transport.execute(reply)
        two.transport.execute(reply)
        await polled(lambda: one.events)
        assert one.events[0].packet.messages == (ACK,)
        await polled(lambda: not two.transport._served)
        two.transport.execute(reply)
        assert two.counters.packets["tcp", "sent"] == 1


async def test_a_port_where_nobody_listens_refuses():
    node = Node("n1")
    async with running(node):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            node.ask(f"127.0.0.1:{port}", PING)
            assert await node.failure() == f"127.0.0.1:{port} refused the connection"


async def test_whoever_accepts_and_never_answers_is_silent():
    node = Node("n1")
    async with Listener(never) as other, running(node):
        node.ask(other.address, PING, timeout_s=0.05)
        assert await node.failure() == f"{other.address} is silent: no answer within 0.05 s"
        assert node.counters.streams["late"] == 1


async def test_whoever_drips_its_answer_is_silent_as_well():
    node = Node("n1")
    async with Listener(dripping) as other, running(node):
        node.ask(other.address, PING, timeout_s=0.05)
        assert await node.failure() == f"{other.address} is silent: no answer within 0.05 s"


async def test_whoever_closes_without_an_answer_is_told_apart():
    async def close(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)

    node = Node("n1")
    async with Listener(close) as other, running(node):
        node.ask(other.address, PING)
        assert await node.failure() == f"{other.address} closed without an answer"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (framed(b"garbage that is no packet at all"), "malformed"),
        (framed(b""), "truncated"),
        (b"\0\0\1\0abc", "truncated"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "oversized"),
        (framed(b"twice") * 2, "malformed"),
    ],
)
async def test_an_answer_that_is_none_is_not_authentic(answer, cause):
    async def garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(answer)

    node = Node("n1")
    async with Listener(garble) as other, running(node):
        node.ask(other.address, PING)
        reason = await node.failure()
        assert reason.startswith(f"the answer of {other.address} is not authentic: {cause}")
        assert node.counters.drops == {cause: 1}


async def test_an_answer_of_another_cluster_is_not_authentic():
    one, two = Node("n1"), Node("n2")
    stranger = Envelope("other", "n2", None, random.Random(1).randbytes)
    async with running(one, two):
        own = two.transport._envelope
        two.transport._envelope = SimpleNamespace(open_stream=own.open_stream, seal_stream=stranger.seal_stream)
        two.answer = lambda _event: (encode_message(ACK),)
        one.ask(two.address, PING)
        assert "is not authentic: foreign-cluster" in await one.failure()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nonsense", "nonsense cannot be reached: it is no HOST:PORT"),
        ("nowhere:1", "nowhere:1 cannot be reached: no address of nowhere"),
    ],
)
async def test_an_address_that_leads_nowhere_is_a_failure(address, reason):
    node = Node("n1", resolver=Names())
    async with running(node):
        node.ask(address, PING)
        assert await node.failure() == reason


async def test_a_stream_tries_all_addresses_of_a_name():
    one, two = Node("n1", resolver=Names(there=["::1", "127.0.0.9", "127.0.0.1"])), Node("n2")
    two.answer = lambda _event: (encode_message(ACK),)
    async with running(one, two):
        one.ask(f"there:{parse_address(two.address)[1]}", PING)
        await polled(lambda: one.events)
        assert isinstance(one.events[0], StreamReplied)


async def test_own_streams_are_bounded(monkeypatch):
    monkeypatch.setattr(udp, "STREAMS_OPEN_MAX", 2)
    async with pair() as (one, two):
        for number in range(3):
            one.ask(two.address, PING, stream_id=number)
        assert one.events == []
        await polled(lambda: one.events)
        assert one.events == [StreamFailed(2, "2 streams are open, no more")]
        await polled(lambda: len(two.events) == 2)
        for event in two.events:
            two.transport.execute(ReplyStream(event.stream_id, (encode_message(ACK),)))
        await polled(lambda: len(one.events) == 3)
        assert {event.stream_id for event in one.events[1:]} == {0, 1}


async def test_the_end_of_a_stream_makes_room_for_the_next_before_it_is_told(monkeypatch):
    monkeypatch.setattr(udp, "STREAMS_OPEN_MAX", 1)
    async with pair() as (one, two):
        two.answer = lambda _event: (encode_message(ACK),)

        def dispatch(event: Event) -> None:
            one.events.append(event)
            if len(one.events) < 5:
                one.ask(two.address, PING)

        one.transport._host = GossipHost(dispatch, lambda: 1)
        one.ask(two.address, PING)
        await polled(lambda: len(one.events) == 5)
        assert all(isinstance(event, StreamReplied) for event in one.events)


async def test_a_request_that_is_too_long_is_a_failure_and_counted():
    async with pair() as (one, two):
        one.transport.execute(OpenStream(1, two.address, (padding(STREAM_BYTES_MAX),), WAIT_S))
        assert "longer than a stream may carry" in await one.failure()
        assert one.counters.send_errors == {"oversized": 1}


async def test_a_reply_that_is_too_long_is_counted_and_the_stream_closed():
    async with pair() as (one, two):
        two.answer = lambda _event: (padding(STREAM_BYTES_MAX),)
        one.ask(two.address, PING)
        assert await one.failure() == f"{two.address} closed without an answer"
        assert two.counters.send_errors == {"oversized": 1}


@pytest.mark.parametrize(
    ("request_", "cause"),
    [
        (framed(b"garbage that is no packet at all"), "malformed"),
        (framed(b""), "truncated"),
        (b"\0\0\0\x09abc", "truncated"),
        (b"\0", "truncated"),
        ((STREAM_BYTES_MAX + 1).to_bytes(4, "big"), "oversized"),
        (b"GET / HTTP/1.1\r\n\r\n", "oversized"),
        (framed(b"twice") * 2, "malformed"),
    ],
)
async def test_whoever_sends_no_authentic_frame_gets_no_reply(request_, cause):
    node = Node("n2")
    async with running(node):
        reader, writer = await connect_raw(node.address)
        writer.write(request_)
        writer.write_eof()
        assert await rest(reader) == b""
        writer.close()
        assert node.counters.drops == {cause: 1}
        assert node.events == []
        assert not node.counters.packets["tcp", "sent"]


async def test_a_connection_that_says_nothing_and_ends_is_no_bad_frame():
    node = Node("n2")
    async with running(node):
        reader, writer = await connect_raw(node.address)
        writer.close()
        assert await rest(reader) == b""
        await polled(lambda: node.transport._served_id and not node.transport._served)
        assert not node.counters.drops


async def test_a_request_that_drips_is_cut_in_time(monkeypatch):
    monkeypatch.setattr(udp, "REQUEST_TIMEOUT_S", 0.05)
    node = Node("n2")
    async with running(node):
        reader, writer = await connect_raw(node.address)
        drip = asyncio.create_task(dripping(reader, writer))
        assert await rest(reader) == b""
        drip.cancel()
        await asyncio.gather(drip, return_exceptions=True)
        writer.close()
        assert node.counters.streams["late"] == 1
        await polled(lambda: not node.transport._served)


async def test_a_request_without_a_reply_is_closed_in_time(monkeypatch):
    monkeypatch.setattr(udp, "REPLY_TIMEOUT_S", 0.05)
    async with pair() as (one, two):
        one.ask(two.address, PING)
        assert await one.failure() == f"{two.address} closed without an answer"
        assert two.counters.streams == {"served": 1, "late": 1}


async def test_a_reply_that_is_not_read_is_cut_in_time(monkeypatch):
    monkeypatch.setattr(udp, "REPLY_TIMEOUT_S", 0.05)
    one, two = Node("n1"), Node("n2")
    two.answer = lambda _event: (padding(STREAM_BYTES_MAX - 1000),)
    async with running(one, two):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            two.transport._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock.connect(parse_address(two.address))
            sock.sendall(framed(one.envelope.seal_stream([encode_message(PING)], 1)))
            await polled(lambda: two.counters.streams["late"] and not two.transport._served)


async def test_when_too_many_streams_are_served_the_one_that_owes_its_request_longest_makes_room(monkeypatch):
    monkeypatch.setattr(udp, "STREAMS_SERVED_MAX", 2)
    async with pair() as (one, two):
        idle = [await connect_raw(two.address) for _ in range(2)]
        await polled(lambda: len(two.transport._served) == 2)
        two.answer = lambda _event: (encode_message(ACK),)
        one.ask(two.address, PING)
        await polled(lambda: one.events)
        assert isinstance(one.events[0], StreamReplied)
        assert await rest(idle[0][0]) == b""
        assert not idle[1][0].at_eof()
        assert two.counters.streams == {"refused": 1, "served": 1}
        for _reader, writer in idle:
            writer.close()


async def test_streams_that_wait_for_their_reply_make_room_for_nobody(monkeypatch):
    monkeypatch.setattr(udp, "STREAMS_SERVED_MAX", 2)
    async with pair() as (one, two):
        for number in range(2):
            one.ask(two.address, PING, stream_id=number)
        await polled(lambda: len(two.events) == 2)
        reader, writer = await connect_raw(two.address)
        assert await rest(reader) == b""
        writer.close()
        assert two.counters.streams == {"refused": 1, "served": 2}
        for event in two.events:
            two.transport.execute(ReplyStream(event.stream_id, (encode_message(ACK),)))
        await polled(lambda: len(one.events) == 2)
        assert all(isinstance(event, StreamReplied) for event in one.events)


async def test_a_flood_of_connections_is_bounded_at_every_moment(monkeypatch):
    monkeypatch.setattr(udp, "STREAMS_SERVED_MAX", 4)
    node = Node("n2")
    async with running(node):
        flood = [await connect_raw(node.address) for _ in range(40)]
        await polled(lambda: node.transport._served_id == 40)
        assert len(node.transport._served) == 4
        await polled(lambda: len(node.transport._tasks) == 4)
        for _reader, writer in flood:
            writer.close()
        await polled(lambda: not node.transport._served)


async def test_without_file_descriptors_accepting_rests_and_goes_on(monkeypatch):
    class Exhausted:
        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener
            self.errors = [errno.EMFILE, errno.ECONNABORTED]

        def accept(self) -> Any:
            if self.errors:
                raise OSError(self.errors.pop(), "no")
            return self.listener.accept()

        def fileno(self) -> int:
            return self.listener.fileno()

        def close(self) -> None:
            self.listener.close()

    monkeypatch.setattr(udp, "ACCEPT_PAUSE_S", 0.01)
    async with pair() as (one, two):
        exhausted = Exhausted(two.transport._listener)
        two.transport._listener = exhausted
        two.answer = lambda _event: (encode_message(ACK),)
        one.ask(two.address, PING)
        await polled(lambda: one.events)
        assert isinstance(one.events[0], StreamReplied)
        assert exhausted.errors == []


# --- news ---------------------------------------------------------------------------------------------


async def test_news_over_peer_connections_is_sealed_opened_and_counted_here():
    async with pair() as (one, two):
        packet = one.transport.seal_news((encode_message(PING),))
        two.transport.receive_news(packet)
        (event,) = two.events
        assert event.source == ""
        assert event.packet.messages == (PING,)
        assert one.counters.packets == {("peer", "sent"): 1}
        assert two.counters.packets == {("peer", "received"): 1}
        two.transport.receive_news(b"garbage")
        assert len(two.events) == 1
        assert two.counters.drops.total() == 1
        with pytest.raises(WireError):
            one.transport.seal_news((encode_message(ACK),) * 100)


# --- opening and closing ------------------------------------------------------------------------------


def open_files() -> set[str]:
    """Everything this process has open, but what is open for listing it.

    Resolvers of earlier tests may still be closing, so what is open later need only be among what was open before.
    """
    names = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            names.add(f"{path.name} {path.readlink()}")
    return {name for name in names if "/proc/" not in name}


async def test_a_port_left_open_is_one_for_both():
    node = Node("n1")
    async with running(node):
        port = parse_address(node.address)[1]
        assert port != 0
        assert node.transport._datagrams.getsockname() == ("127.0.0.1", port)
        assert node.transport._listener.getsockname() == ("127.0.0.1", port)


async def test_a_port_left_open_is_looked_for_until_it_is_free_in_both(monkeypatch):
    tries = []
    bind_once = udp._bind_once

    def bind(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) < 4:
            raise OSError(errno.EADDRINUSE, "in use")
        return bind_once(*arguments)

    monkeypatch.setattr(udp, "_bind_once", bind)
    node = Node("n1")
    async with running(node):
        assert len(tries) == 4


async def test_looking_for_a_port_ends(monkeypatch):
    def bind(*_arguments: Any) -> Any:
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(udp, "_bind_once", bind)
    with pytest.raises(ConfigError, match=r"^--gossip: 127\.0\.0\.1:0 is taken by another program$"):
        await Node("n1").transport.bind()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_a_port_that_is_taken_for_either_gives_one_clear_line_and_leaves_nothing_open(kind):
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        before = open_files()
        node = Node("n1", f"127.0.0.1:{port}")
        with pytest.raises(ConfigError) as caught:
            await node.transport.bind()
        assert str(caught.value) == f"--gossip: 127.0.0.1:{port} is taken by another program"
        assert open_files() <= before
        await node.transport.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nowhere.invalid:7946", "no address of nowhere.invalid"),
        ("192.0.2.1:7946", os.strerror(errno.EADDRNOTAVAIL)),
    ],
)
async def test_an_address_that_is_not_here_gives_one_clear_line(address, reason):
    with pytest.raises(ConfigError) as caught:
        await Node("n1", address, resolver=Names()).transport.bind()
    assert str(caught.value) == f"--gossip: cannot listen at {address}: {reason}"


async def test_a_bound_name_gives_an_address():
    node = Node("n1", "localhost:0")
    async with running(node):
        assert node.address.startswith("127.0.0.1:")


async def test_two_nodes_do_not_share_a_port():
    one = Node("n1")
    async with running(one):
        with pytest.raises(ConfigError, match="is taken by another program"):
            await Node("n2", one.address).transport.bind()


async def test_closing_leaves_nothing_and_frees_the_port_at_once():
    names = Names()
    names.open.clear()
    async with Listener(never) as silent:
        before, tasks_before = open_files(), asyncio.all_tasks()
        one, two = Node("n1", resolver=names), Node("n2")
        async with running(one, two):
            address = one.address
            one.ask(silent.address, PING, stream_id=1)  # waits for an answer
            one.ask("nowhere:1", PING, stream_id=2)  # waits for a name
            one.send("elsewhere:1", PING)
            one.transport.execute(ResolveSeeds(("somewhere:1",)))
            two.ask(address, PING)  # waits for a reply
            with socket.create_connection(parse_address(address)) as idle:
                await polled(lambda: len(one.transport._served) == 2 and len(names.asked) == 3 and one.events)
                async with asyncio.timeout(WAIT_S):
                    await one.transport.close()
                assert idle.recv(1) == b""
            assert await two.failure() == f"{address} closed without an answer"
            assert len(one.events) == 1
            one.send(two.address, PING)
            one.ask(two.address, PING)
            assert not one.transport._tasks
            again = Node("n1", address)
            async with running(again):
                pass
        await polled(lambda: open_files() <= before and asyncio.all_tasks() == tasks_before)


async def test_closing_what_was_never_started_or_bound_is_harmless():
    before = open_files()
    node = Node("n1")
    await node.transport.close()
    await node.transport.close()
    bound = Node("n1")
    await bound.transport.bind()
    await bound.transport.close()
    assert open_files() <= before


async def test_streams_that_are_accepted_at_the_last_moment_are_closed():
    before = open_files()
    node = Node("n1")
    await node.transport.bind()
    node.transport.start()
    with socket.create_connection(parse_address(node.address)) as sock:
        node.transport._accept()
        assert len(node.transport._served) == 1
        await node.transport.close()
        assert sock.recv(1) == b""
    await polled(lambda: open_files() <= before)
