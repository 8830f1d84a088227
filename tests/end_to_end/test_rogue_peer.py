"""A peer that is wrong about the time, the ring or the protocol: refused, counted, and nothing applied."""

import asyncio
import time

import pytest

from zephyr.model import Member
from zephyr.peer.wire import (
    FrameDecoder,
    Hello,
    Operation,
    Reply,
    Status,
    encode_hello,
    encode_request,
    frame_bytes_max,
)
from zephyr.store.record import HybridLogicalClock, pack_record

VALUE_MAX = 1 << 20


class Rogue:
    """A connection that speaks the peer protocol, up to a point."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = FrameDecoder(Reply, frame_bytes_max(VALUE_MAX))
        self.frames = []

    @classmethod
    async def connect(cls, node, cluster_name: str):
        host, _, port = node.peer.rpartition(":")
        rogue = cls(*await asyncio.open_connection(host, int(port)))
        member = Member("rogue", "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", 1)
        hello = Hello(1, 1, cluster_name, False, frame_bytes_max(VALUE_MAX), member)
        rogue.writer.write(encode_hello(hello))
        assert type(await rogue.next()) is Hello
        return rogue

    async def next(self):
        while not self.frames:
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            if not data:
                return None
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    async def ask(self, operation, arguments, digest=bytes(8)):
        self.writer.write(encode_request(1, operation, digest, 1000, arguments))
        return await self.next()


async def metric(cluster, node, name: str) -> float:
    _, body = await cluster.request(node, "GET", "/metrics")
    return sum(float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(name))


@pytest.fixture
async def nodes(start_cluster):
    return await start_cluster(3)


@pytest.fixture
async def rogue_at():
    """Connections that are closed when the test is over."""
    made = []

    async def connect(cluster, node) -> Rogue:
        made.append(await Rogue.connect(node, (await cluster.json(node, "/info"))["cluster"]))
        return made[-1]

    yield connect
    for rogue in made:
        rogue.writer.close()
        await rogue.writer.wait_closed()


async def test_a_stamp_from_the_future_is_refused_and_counted(nodes, rogue_at):
    node = nodes.nodes[0]
    rogue = await rogue_at(nodes, node)
    ahead = pack_record(HybridLogicalClock("rogue").stamp(time.time_ns() // 1_000_000 + 3_600_000), b"forged")
    for operation in (Operation.WRITE, Operation.REPAIR):
        reply = await rogue.ask(operation, (b"key", ahead))
        assert reply.status == Status.CLOCK_SKEW
    many = await rogue.ask(Operation.MANY, ((Operation.WRITE, (b"key", ahead)),))
    [(status, _)] = many.payload
    assert status == Status.CLOCK_SKEW
    assert await metric(nodes, node, "zephyr_refused_stamps_total") == 3
    status, _ = await nodes.request(nodes.nodes[1], "GET", "/kv/key")
    assert status == 404
    assert (await nodes.json(node, "/info"))["items"] == 0


async def test_a_wrong_digest_gets_no_answer_for_slots_of_others_and_does_no_harm(start_cluster, rogue_at):
    cluster = await start_cluster(3, "--replicas", "1")
    node = cluster.nodes[0]
    foreign = None
    for number in range(100):
        owners = (await cluster.json(node, f"/debug/ring?key=k{number}"))["owners"]
        if owners != [node.id]:
            foreign = b"k%d" % number
            break
    rogue = await rogue_at(cluster, node)
    record = pack_record(HybridLogicalClock("rogue").stamp(time.time_ns() // 1_000_000), b"stray")
    reply = await rogue.ask(Operation.WRITE, (foreign, record), b"\xff" * 8)
    assert reply.status == Status.NOT_OWNER
    assert (await cluster.json(node, "/info"))["items"] == 0
    assert await metric(cluster, node, "zephyr_not_owner_total") == 1
    assert len(set((await cluster.rings()).values())) == 1


@pytest.mark.parametrize("sent", [b"\xff\xff\xff\xff", (5).to_bytes(4, "big") + b"\xc1junk", b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_is_no_frame_closes_the_connection_and_is_counted(nodes, rogue_at, sent):
    node = nodes.nodes[0]
    rogue = await rogue_at(nodes, node)
    rogue.writer.write(sent)
    while await rogue.next() is not None:
        pass
    assert await metric(nodes, node, "zephyr_peer_wire_errors_total") == 1
    assert (await nodes.request(node, "PUT", "/kv/after", b"fine"))[0] == 201


async def test_calls_of_a_wrong_form_cost_that_call_only(nodes, rogue_at):
    node = nodes.nodes[0]
    rogue = await rogue_at(nodes, node)
    wrong = [
        (Operation.MANY, ()),
        (Operation.MANY, ((Operation.MANY, ()),) * 2),
        (Operation.KEEP, ("n2", b"key", b"no record")),
        (Operation.KEEP, ("nobody", b"key", bytes(20))),
        (Operation.UPDATE, (b"key", "append")),
        (Operation.LIST, (0, b"", 99999, b"", 10)),
        (Operation.EXPLAIN, (b"",)),
        (Operation.DROP, (b"key", b"short")),
        (Operation.DIGEST, (b"key", b"more")),
    ]
    for operation, arguments in wrong:
        reply = await rogue.ask(operation, arguments)
        inner = reply.payload[0][0] if reply.status == Status.OK else reply.status
        assert inner == Status.BAD_REQUEST, operation
    assert (await rogue.ask(Operation.EXPLAIN, (b"key",))).payload[0] == "absent"
    assert (await nodes.json(node, "/info"))["items"] == 0
