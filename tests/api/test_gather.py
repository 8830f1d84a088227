"""`/debug/cluster`: what the other members say, from nodes that answer and from peers that would rather do harm."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_http import DEADLINE_S, a_member, now, on_both_loops, serving, until

from zephyr.api import gather
from zephyr.config import Settings
from zephyr.gossip.certificate import Stub
from zephyr.model import MemberView
from zephyr.node import Node

VIEWS = {"node": "n2", "authority": "both", "ring": {"digest": "00", "owners": ["n2"]}, "members": []}
SHORT_S = 0.4


def a_row(node_id: str, http: str, **values: Any) -> MemberView:
    row = MemberView(
        replace(a_member(), id=node_id, http=http), "alive", 0.0, 0, "registered", 1, 0.0,
        in_ring=True, routable=True, verdict="agree", reason="registered and serving",
    )  # fmt: skip
    return replace(row, **values)


def a_node(*rows: MemberView) -> Node:
    """A node n1 whose member list has these rows besides its own."""
    node = Node(Settings(id="n1", etcd=()), a_member(), random.Random(1), now())
    mine = a_row("n1", "127.0.0.1:1")
    node.view = replace(node.view, members=(mine, *rows), owners=tuple(row.member.id for row in (mine, *rows)))
    return node


class Peer:
    """A server that answers each request with the bytes it was given, and keeps what it was asked."""

    def __init__(self, *answers: bytes, silent_s: float = 0.0) -> None:
        self.answers = answers
        self.silent_s = silent_s
        """For which it says nothing more, before it closes."""
        self.asked: list[str] = []
        self.headers: list[str] = []
        self.address = ""
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.talk(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in self.answers:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head.split()[1])
            self.headers.append(head)
            for piece in range(0, len(answer), 65536):
                writer.write(answer[piece : piece + 65536])
                await writer.drain()
        await asyncio.sleep(self.silent_s)


@contextlib.asynccontextmanager
async def listening(*peers: Peer) -> AsyncIterator[None]:
    servers = [await asyncio.start_server(peer.serve, "127.0.0.1", 0) for peer in peers]
    for peer, server in zip(peers, servers, strict=True):
        peer.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        for peer, server in zip(peers, servers, strict=True):
            server.close()
            for task in peer.tasks:
                task.cancel()
            await asyncio.gather(*peer.tasks, return_exceptions=True)


def answered(document: Any, *headers: str, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def strict(body: bytes) -> Any:
    """Read JSON as a browser does, which knows neither NaN nor Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(body, parse_constant=refuse)


async def gathered(served: Any) -> dict[str, Any]:
    answer = await (await served.connect()).ask("GET", "/debug/cluster")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = strict(answer.body)
    return document


async def what_is_said_of(peer: Peer) -> dict[str, Any]:
    """Return what a node says of one peer."""
    async with listening(peer), serving(real_node=a_node(a_row("n2", peer.address))) as served:
        document = await gathered(served)
        assert [node["id"] for node in document["nodes"]] == ["n1", "n2"]
        assert document["nodes"][0]["answered"] is True
        found: dict[str, Any] = document["nodes"][1]
        return found


# --- peers that answer ------------------------------------------------------------------------------------


@on_both_loops
async def test_every_member_says_what_it_believes_and_holds():
    async with serving(id="n2") as second, serving(id="n3") as third:
        node = a_node(a_row("n2", second.api.bound_address), a_row("n3", third.api.bound_address))
        async with serving(real_node=node) as served:
            document = await gathered(served)
            own = json.loads((await (await served.connect()).ask("GET", "/debug/views")).body)
            other = json.loads((await (await second.connect()).ask("GET", "/debug/views")).body)
            info = json.loads((await (await second.connect()).ask("GET", "/info")).body)
    assert (document["node"], document["not_asked"]) == ("n1", [])
    first, said, third_said = document["nodes"]
    assert first["views"].keys() == own.keys()
    assert first["views"]["members"][1]["id"] == "n2"
    assert (said["id"], said["http"], said["answered"], said["reason"]) == (
        "n2", second.api.bound_address, True, "",
    )  # fmt: skip
    for name in ("node", "cluster", "authority", "ring", "disagreements"):
        assert said["views"][name] == other[name], name
    for member, passed_on in zip(other["members"], said["views"]["members"], strict=True):
        for name in ("id", "in_ring", "routable", "verdict", "reason", "state", "epoch"):
            assert passed_on[name] == member[name], name
        assert passed_on["gossip"]["state"] == member["gossip"]["state"]
        assert passed_on["etcd"]["state"] == member["etcd"]["state"]
    for name in ("id", "version", "items", "bytes", "bytes_max", "slots_pending"):
        assert said["info"][name] == info[name], name
    assert said["info"]["requests"].keys() == info["requests"].keys()
    assert third_said["views"]["node"] == "n3"


@on_both_loops
async def test_members_that_are_gone_are_not_asked_and_those_that_are_dead_in_the_ring_are():
    peers = [Peer(answered(VIEWS), answered({})) for _ in range(5)]
    async with listening(*peers):
        dead, removed, gone, left, met_late = (
            a_row("n2", peers[0].address, gossip="dead"),
            a_row("n3", peers[1].address, gossip="dead", in_ring=False),
            a_row("n4", peers[2].address, gossip="dead", in_ring=False, etcd="absent"),
            a_row("n5", peers[3].address, gossip="left", in_ring=False, etcd="absent"),
            a_row("n6", peers[4].address, gossip="alive", in_ring=False, etcd="absent"),
        )
        async with serving(real_node=a_node(dead, removed, gone, left, met_late)) as served:
            document = await gathered(served)
    assert [node["id"] for node in document["nodes"]] == ["n1", "n2", "n3", "n6"]
    assert [bool(peer.asked) for peer in peers] == [True, True, False, False, True]


@on_both_loops
async def test_of_too_many_members_some_are_left_out_and_named():
    peers = [Peer(answered(VIEWS), answered({})) for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "PEERS_MAX", 2)
        async with listening(*peers):
            rows = [
                a_row("n2", peers[0].address, in_ring=False),
                a_row("n3", peers[1].address, gossip="suspect"),
                a_row("n4", peers[2].address),
            ]
            async with serving(real_node=a_node(*rows)) as served:
                document = await gathered(served)
    assert [node["id"] for node in document["nodes"]] == ["n1", "n3", "n4"]
    assert document["not_asked"] == ["n2"]


@on_both_loops
async def test_many_pages_cost_the_peers_no_more_than_one():
    peer = Peer(*[answered(VIEWS), answered({})] * 50, silent_s=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "KEPT_S", DEADLINE_S)
        async with listening(peer), serving(real_node=a_node(a_row("n2", peer.address))) as served:
            documents = await asyncio.gather(*(gathered(served) for _ in range(20)))
            documents.append(await gathered(served))
            assert all(document == documents[0] for document in documents)
            assert peer.asked == ["/debug/views", "/info"]
            patch.setattr(gather, "KEPT_S", 0.0)
            patch.setattr(gather, "KEPT_PER_PEER_S", 0.0)
            served.api._gatherer._fresh_until_s = 0.0
            await gathered(served)
            await gathered(served)
            assert peer.asked == ["/debug/views", "/info"] * 3


async def test_who_gives_up_takes_the_answer_from_nobody():
    held = asyncio.Event()

    class Waiting(Peer):
        async def talk(self, reader, writer):
            await held.wait()
            await super().talk(reader, writer)

    peer = Waiting(answered(VIEWS), answered({}))
    gatherer = gather.Gatherer("n1")
    async with listening(peer):
        view = a_node(a_row("n2", peer.address)).view
        asking = [
            asyncio.create_task(gatherer.cluster(lambda: view, lambda: ({"now_unix_ms": 1}, {}))) for _ in range(2)
        ]
        async with asyncio.timeout(DEADLINE_S):
            while not peer.tasks:  # noqa: ASYNC110  # it has no event for that
                await asyncio.sleep(0.005)
        asking[0].cancel()
        held.set()
        document = strict(await asking[1])
        await gatherer.close()
    assert asking[0].cancelled()
    assert document["nodes"][1]["answered"] is True


@on_both_loops
async def test_a_node_that_stops_waits_for_no_peer():
    peer = Peer(silent_s=60)
    async with listening(peer), serving(real_node=a_node(a_row("n2", peer.address))) as served:
        client = await served.connect()
        client.send(b"GET /debug/cluster HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: served.api._gatherer._running is not None, "the peers are being asked")
        running = served.api._gatherer._running
        await asyncio.wait_for(served.api.close(), DEADLINE_S)
        assert running.done()


# --- peers that do not, or worse --------------------------------------------------------------------------


async def test_why_a_member_did_not_answer_is_told():
    found = await what_is_said_of(Peer(answered({}, status="503 Service Unavailable")))
    assert (found["answered"], found["reason"], found["views"], found["info"]) == (False, "answers 503", None, None)
    found = await what_is_said_of(Peer(answered({**VIEWS, "node": "n7"})))
    assert (found["answered"], found["reason"]) == (False, "answers as n7")
    for garbage in (b"", b"\xff", b"{", b"[" * 100_000, b"9" * 10_000, b"[]", b"null", b'"text"'):
        found = await what_is_said_of(Peer(answered(garbage)))
        assert (found["answered"], found["reason"]) == (False, "its answer cannot be read"), garbage[:10]
    found = await what_is_said_of(Peer(b"what?\r\n\r\n"))
    assert (found["answered"], found["reason"]) == (False, "its answer cannot be read")
    found = await what_is_said_of(Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"))
    assert (found["answered"], found["reason"]) == (False, "the connection ended")
    found = await what_is_said_of(Peer())
    assert (found["answered"], found["reason"]) == (False, "the connection ended")


async def test_who_cannot_be_reached_is_told():
    for address, reason in (
        ("127.0.0.1:1", "connection refused"),
        ("no-such-host.invalid:80", "its name leads nowhere"),
        ("", "its address is not known"),
        ("user@127.0.0.1", "its address is not known"),
    ):
        async with serving(real_node=a_node(a_row("n2", address))) as served:
            found = (await gathered(served))["nodes"][1]
            assert (found["answered"], found["reason"]) == (False, reason)


async def test_silent_and_dripping_peers_are_waited_for_once_and_not_for_long(monkeypatch):
    monkeypatch.setattr(gather, "ANSWER_MAX_S", SHORT_S)

    class Dripping(Peer):
        async def talk(self, reader, writer):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)

    half = Peer(answered(VIEWS), silent_s=60)
    peers = [Peer(silent_s=60), Dripping(), half, *(Peer(silent_s=60) for _ in range(20))]
    async with listening(*peers):
        rows = [a_row(f"m{number}", peer.address) for number, peer in enumerate(peers)]
        rows[2] = a_row("n2", half.address)
        async with serving(real_node=a_node(*rows)) as served:
            began_s = asyncio.get_running_loop().time()
            document = await gathered(served)
            took_s = asyncio.get_running_loop().time() - began_s
    assert took_s < SHORT_S * len(peers) / 2, "all of them at once"
    nodes = {node["id"]: node for node in document["nodes"]}
    assert nodes["m0"]["reason"] == nodes["m1"]["reason"] == f"nothing came within {SHORT_S:g} s"
    assert (nodes["n2"]["answered"], nodes["n2"]["info"]) == (True, None), "half an answer is one"


@pytest.mark.parametrize("length", ["declared", "chunked", "unknown"])
async def test_an_answer_that_is_too_large_is_not_read_to_its_end(length):
    size = gather.ANSWER_BYTES_MAX * 8
    head = {"declared": f"Content-Length: {size}", "chunked": "Transfer-Encoding: chunked", "unknown": "X: y"}[length]
    body = b"%x\r\n" % size + b" " * size if length == "chunked" else b" " * size
    found = await what_is_said_of(Peer(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body))
    assert found["reason"] == f"its answer has more than {gather.ANSWER_BYTES_MAX} bytes"


async def test_a_packed_answer_is_not_unpacked():
    packed = gzip.compress(b" " * 50_000_000)
    peer = Peer(answered(packed, "Content-Encoding: gzip"))
    found = await what_is_said_of(peer)
    assert found["reason"] == "its answer cannot be read"
    assert "Accept-Encoding: identity" in peer.headers[0]


async def test_a_redirect_leads_nowhere_and_no_cookie_is_kept():
    target = Peer(answered(VIEWS))
    peer = Peer(*[answered(VIEWS, "Set-Cookie: a=b"), answered({}, "Set-Cookie: a=b")] * 2)
    async with listening(target, peer):
        redirecting = Peer(answered({}, f"Location: http://{target.address}/debug/views", status="302 Found"))
        found = await what_is_said_of(redirecting)
        assert (found["answered"], found["reason"]) == (False, "answers 302")
        assert target.asked == []
        async with serving(real_node=a_node(a_row("n2", peer.address))) as served:
            await gathered(served)
            served.api._gatherer._fresh_until_s = 0.0
            await gathered(served)
    assert len(peer.headers) == 4
    assert not any("cookie" in head.lower() for head in peer.headers)


async def test_only_what_is_known_and_of_the_right_kind_is_passed_on():
    member = {
        "id": "n3", "in_ring": True, "reason": "x" * 10_000, "secret": 1,
        "gossip": {"state": "alive", "phi": float("nan"), "since_s": 10**400},
        "etcd": "registered", "routable": "yes", "verdict": 7,
    }  # fmt: skip
    rows = [member, {"id": "<script>"}, None, 5, *({"id": f"m{number}"} for number in range(gather.ROWS_MAX * 2))]
    views = {**VIEWS, "members": rows, "extra": [1], "authority": ["both"], "ring": {"owners": ["n2", "<b>", 3]}}
    info = {"items": 5, "bytes": "many", "requests": {"get": 3, "put": "x", "scan": 1}, "version": None}
    found = await what_is_said_of(Peer(answered(views), answered(info)))
    assert found["answered"] is True
    taken = found["views"]
    assert "extra" not in taken
    assert taken["authority"] is None
    assert taken["ring"] == {"epoch": None, "digest": None, "owners": ["n2"]}
    assert len(taken["members"]) < gather.ROWS_MAX
    first = taken["members"][0]
    assert first["id"] == "n3"
    assert "secret" not in first
    assert len(first["reason"]) == gather.TEXT_CHARACTERS_MAX
    assert first["gossip"] == {"state": "alive", "since_s": None, "phi": None, "rtt_ms": None}
    assert first["etcd"] == {"state": None, "revision": None, "since_s": None}
    assert (first["in_ring"], first["routable"], first["verdict"]) == (True, None, None)
    assert all(re.fullmatch(r"[a-z0-9]+", row["id"]) for row in taken["members"])
    assert (found["info"]["items"], found["info"]["bytes"], found["info"]["version"]) == (5, None, None)
    assert found["info"]["requests"] == {"get": 3, "scan": 1}


NAMES = st.sampled_from([*gather._VIEWS, *gather._MEMBER, "unknown"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner),
    max_leaves=30,
)


@given(ANYTHING)
def test_whatever_a_peer_sends_the_result_has_its_shape_and_is_json(value):
    for shape in (gather._VIEWS, gather._INFO, gather._CERTIFICATE):
        taken = gather._taken(value, shape)
        assert taken.keys() == shape.keys()
        strict(json.dumps(taken, allow_nan=False).encode())
    views = gather._taken(value, gather._VIEWS)
    assert all(row["gossip"].keys() == gather._MEMBER["gossip"].keys() for row in views["members"])


# --- certificates -----------------------------------------------------------------------------------------

CERTIFICATE = {
    "member": "n3", "accuser": "n2", "cause": "exit", "declared_at_unix_ms": 5, "suspected_at_unix_ms": 1,
    "accusers": ["n2"], "probes": [], "phi": 1.5,
    "exit": {"refused": True, "udp_silent": True, "observers": ["n2"], "timeout_s": 0.25},
    "suspicion": {"min_s": 4.0, "timeouts": [{"at_unix_ms": 1, "accuser": "n2", "timeout_s": 24.0}]},
    "more": "than is known",
}  # fmt: skip


def a_bystander(*rows: MemberView) -> Node:
    """A node that was told by n2 of the death of n3."""
    node = a_node(*rows)
    stub = Stub(replace(a_member(), id="n3"), "n2", "192.0.2.1:1", 77)
    node.swim.certificates._held["n3"] = stub
    return node


async def test_a_certificate_is_fetched_from_the_accuser_at_the_address_that_the_list_has():
    peer = Peer(answered(CERTIFICATE))
    async with listening(peer), serving(real_node=a_bystander(a_row("n2", peer.address))) as served:
        document = strict((await (await served.connect()).ask("GET", "/debug/cluster/certificate/n3")).body)
    assert peer.asked == ["/debug/certificate/n3"]
    assert (document["cause"], document["exit"]["timeout_s"], document["phi"]) == ("exit", 0.25, 1.5)
    assert document["suspicion"]["timeouts"] == [{"at_unix_ms": 1, "accuser": "n2", "timeout_s": 24.0}]
    assert "more" not in document


@pytest.mark.parametrize(
    "answer",
    [
        answered({}, status="404 Not Found"),
        answered({**CERTIFICATE, "member": "n4"}),
        answered({**CERTIFICATE, "accuser": "n4"}),
        answered({"member": "n3", "accuser": "n2"}),
        answered(b"?"),
    ],
    ids=["none", "of another", "by another", "a stub", "garbage"],
)
async def test_where_the_accuser_cannot_tell_its_name_is_told(answer):
    peer = Peer(answer)
    async with listening(peer), serving(real_node=a_bystander(a_row("n2", peer.address))) as served:
        document = strict((await (await served.connect()).ask("GET", "/debug/cluster/certificate/n3")).body)
    assert len(peer.asked) == 1
    assert document == {
        "member": "n3", "accuser": "n2", "accuser_url": "http://192.0.2.1:1/debug/certificate/n3",
        "declared_at_unix_ms": 77,
    }  # fmt: skip


async def test_an_accuser_that_is_no_member_is_not_asked_and_no_death_is_404():
    async with serving(real_node=a_bystander()) as served:
        client = await served.connect()
        document = strict((await client.ask("GET", "/debug/cluster/certificate/n3")).body)
        assert document["accuser"] == "n2"
        assert served.api._gatherer._session is None, "the address in the stub is hearsay"
        assert (await client.ask("GET", "/debug/cluster/certificate/n4")).problem == "no-certificate"
        assert (await client.ask("GET", "/debug/cluster/certificate/%00")).problem == "unknown-member"
