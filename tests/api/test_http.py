"""The HTTP adapter on real sockets, on asyncio's loop and on uvloop.

A dict of packed records stands for the node: what a read or a write does is tested elsewhere. Clients are
raw sockets, since a polite library cannot misbehave. Time-outs are shortened; none is waited for by sleeping.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import random
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
import structlog
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyr.api import openapi
from zephyr.api.conditions import is_met
from zephyr.api.http import HttpApi, HttpLimits
from zephyr.config import Settings, parse_address
from zephyr.errors import ConfigError
from zephyr.events import OperatorEvent, Started, TimerFired
from zephyr.metrics import Metrics
from zephyr.model import (
    Explanation,
    Failure,
    Instant,
    Member,
    Outcome,
    ReadRequest,
    ReplicaState,
    Request,
    ScanCursor,
    ScanPage,
    ScanRequest,
    UpdateRequest,
    WriteRequest,
)
from zephyr.node import Node
from zephyr.ring.ring import key_slot
from zephyr.store.record import (
    HybridLogicalClock,
    pack_record,
    record_content_type,
    record_expires_unix_ms,
    record_value,
    record_version,
)

DEADLINE_S = 10.0
"""For whatever is awaited here: far above what it takes."""
QUICK = HttpLimits(
    header_s=0.3, body_progress_s=0.3, body_s=0.9, idle_s=0.5, stall_s=0.5, answer_s=2.0, linger_s=0.5, close_s=0.3
)


def on_both_loops(test: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Run a test once on asyncio's own loop and once on uvloop."""

    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(loop_factory):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(asyncio.wait_for(test(), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> Instant:
    return Instant(time.monotonic(), time.time_ns() // 1_000_000)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_s, f"not in time: {what}"
        await asyncio.sleep(0.005)


class FakeNode:
    """Stands for a node: keeps records in a dict, and remembers what it was asked."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.asked: list[Request] = []
        self.waves: list[list[Request]] = []
        """What was asked together."""
        self.scanned: list[ScanRequest] = []
        self.dispatched: list[OperatorEvent] = []
        self.clock = HybridLogicalClock("n1")
        self.failing: Exception | None = None
        self.gate: asyncio.Event | None = None
        """Closed: requests wait for it."""

    def submit(self, request: Request) -> Outcome | Awaitable[Outcome]:
        self.asked.append(request)
        if self.failing is not None:
            raise self.failing
        return self.decide(request) if self.gate is None else self.decide_later(request, self.gate)

    def submit_all(self, requests: Sequence[ReadRequest | WriteRequest]) -> list[Outcome] | Awaitable[list[Outcome]]:
        self.waves.append(list(requests))
        outcomes = [self.submit(request) for request in requests]
        return outcomes if self.gate is None else asyncio.gather(*outcomes)

    async def decide_later(self, request: Request, gate: asyncio.Event) -> Outcome:
        await gate.wait()
        return self.decide(request)

    def decide(self, request: Request) -> Outcome:
        if isinstance(request, ReadRequest):
            return Outcome(record=self.records.get(request.key), answered=2, asked=3)
        if isinstance(request, UpdateRequest):
            return self.update(request)
        existed = request.key in self.records
        if request.value is None:
            self.records.pop(request.key, None)
            return Outcome(version=self.clock.stamp(now().unix_ms), existed=existed)
        return self.put(request.key, request.value, request.content_type, self.deadline(request.ttl_ms))

    def deadline(self, ttl_ms: int | None) -> int:
        return now().unix_ms + ttl_ms if ttl_ms else 0

    def put(self, key: bytes, value: bytes, content_type: bytes, expires_unix_ms: int) -> Outcome:
        existed = key in self.records
        version = self.clock.stamp(now().unix_ms)
        self.records[key] = pack_record(
            version,
            value,
            expires_unix_ms=expires_unix_ms,
            content_type=content_type or b"application/octet-stream",
        )
        return Outcome(record=self.records[key], version=version, existed=existed)

    def update(self, request: UpdateRequest) -> Outcome:
        stands = self.records.get(request.key)
        for condition in request.conditions:
            is_so = not condition.is_match if stands is None else is_met(condition, record_version(stands))
            if not is_so:
                return Outcome(Failure.PRECONDITION)
        if request.kind == "put":
            return self.put(request.key, request.value, request.content_type, self.deadline(request.ttl_ms))
        if request.kind == "delete":
            return self.decide(WriteRequest(request.key, None))
        if request.kind == "expire":
            if stands is None:
                return Outcome(Failure.ABSENT, "no value is stored under this key")
            expires_unix_ms = self.deadline(request.ttl_ms)
            return self.put(request.key, record_value(stands), record_content_type(stands), expires_unix_ms)
        if stands is None:
            return self.put(request.key, b"%d" % request.step, request.content_type, self.deadline(request.ttl_ms))
        try:
            number = int(record_value(stands)) + request.step
        except ValueError:
            return Outcome(Failure.NOT_A_NUMBER)
        return self.put(request.key, b"%d" % number, record_content_type(stands), record_expires_unix_ms(stands))

    async def scan(self, request: ScanRequest) -> ScanPage:
        """List at most two keys at a time, as a cluster does that goes from slot to slot."""
        self.scanned.append(request)
        places = sorted((key_slot(key), key) for key in self.records)
        left = [place for place in places if place > request.cursor and place[1].startswith(request.prefix)]
        keys = tuple(key for _, key in left[: min(2, request.limit)])
        more = len(left) > len(keys)
        return ScanPage(keys=keys, cursor=ScanCursor(key_slot(keys[-1]), keys[-1]) if more else None)

    async def explain(self, key: bytes) -> Explanation:
        version = record_version(self.records[key]) if key in self.records else b""
        state = "value" if version else "absent"
        replicas = (
            ReplicaState("n2", state, version, 1234 if version else 0, is_level=True, is_owner=True, hinted=()),
            ReplicaState("n1", "unreachable", b"", 0, is_level=False, is_owner=False, hinted=("n3", "n4")),
        )
        return Explanation(key, key_slot(key), ("n2", "n3"), replicas)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    line: str = ""

    @property
    def problem(self) -> str:
        """The last part of the problem's type."""
        assert self.headers["content-type"] == "application/problem+json"
        document = json.loads(self.body)
        assert document["status"] == self.status
        return document["type"].removeprefix("urn:zephyr:problem:")

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


@dataclass
class Client:
    """One raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, method: str = "GET") -> Answer:
        """Read one answer to a request with this method."""
        async with asyncio.timeout(DEADLINE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head[:-4].split("\r\n")
            headers: dict[str, str] = {}
            for item in lines:
                name, _, value = item.partition(": ")
                assert name.lower() not in headers, f"{name} twice"
                headers[name.lower()] = value
            status = int(line.split()[1])
            bodiless = method == "HEAD" or status in {100, 204, 304}
            body = b"" if bodiless else await self.reader.readexactly(int(headers["content-length"]))
            return Answer(status, headers, body, line)

    async def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: h"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + (body or b""))
        return await self.answer(method)

    async def ended(self) -> bytes:
        """Return what comes until the node closes, which it must; a reset is an error."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read()

    async def is_usable(self) -> bool:
        return (await self.ask("GET", "/livez")).status == 200

    def close(self) -> None:
        self.writer.close()


@dataclass
class Served:
    api: HttpApi
    node: FakeNode
    metrics: Metrics
    clients: list[Client] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return parse_address(self.api.bound_address)

    async def connect(self, receive_buffer_bytes: int = 0) -> Client:
        sock = socket.socket()
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        # A small limit: else the stream would read ahead for a client that does not want to read.
        client = Client(*await asyncio.open_connection(sock=sock, limit=receive_buffer_bytes or 1 << 20))
        self.clients.append(client)
        return client

    def closed(self, cause: str) -> int:
        """How many connections the node ended for this cause."""
        return self.metrics.connections_closed[cause]

    def is_reading_a_body(self) -> bool:
        assert self.api._guard is not None
        return bool(self.api._guard.body)

    def open(self) -> int:
        assert self.metrics.connections is not None
        return self.metrics.connections()


@contextlib.asynccontextmanager
async def serving(
    limits: HttpLimits | None = None, real_node: Node | None = None, **values: Any
) -> AsyncIterator[Served]:
    node, metrics = FakeNode(), Metrics()
    config = replace(Settings(id="n1", http="127.0.0.1:0"), **values)
    api = HttpApi(config, backend=node, dispatch=node.dispatched.append, now=now, metrics=metrics, limits=limits)
    await api.bind()
    api.serve(real_node or Node(replace(config, etcd=()), a_member(), random.Random(1), now()))
    served = Served(api, node, metrics)
    try:
        yield served
    finally:
        if node.gate is not None:
            node.gate.set()
        for client in served.clients:
            client.close()
        await api.close()


def a_member() -> Member:
    return Member("n1", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", epoch=1)


# --- keys and values ------------------------------------------------------------------------------------


@on_both_loops
async def test_a_value_is_written_read_replaced_and_deleted():
    async with serving() as served:
        client = await served.connect()
        assert (await client.ask("GET", "/kv/a")).problem == "not-found"
        created = await client.ask("PUT", "/kv/a", b"one", Content_Type="text/plain")
        assert (created.status, created.body) == (201, b"")
        found = await client.ask("GET", "/kv/a")
        assert (found.status, found.body) == (200, b"one")
        assert found.headers["etag"] == created.headers["etag"]
        assert found.headers["content-type"] == "text/plain"
        assert found.headers["cache-control"] == "no-cache"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["x-zephyr-coordinator"] == "n1"
        assert found.headers["x-zephyr-replicas"] == "2/3"
        assert found.headers["date"].endswith(" GMT")
        assert "server" not in found.headers
        replaced = await client.ask("POST", "/kv/a?ttl=90", b"two")
        assert replaced.status == 204
        assert replaced.headers["etag"] != created.headers["etag"]
        assert (await client.ask("GET", "/kv/a")).headers["cache-control"] in {"max-age=89", "max-age=90"}
        assert (await client.ask("DELETE", "/kv/a")).status == 204
        assert (await client.ask("DELETE", "/kv/a")).status == 204
        assert (await client.ask("GET", "/kv/a")).status == 404


@on_both_loops
async def test_head_says_what_get_says_without_the_value():
    async with serving() as served:
        client = await served.connect()
        await client.ask("PUT", "/kv/a", b"value")
        head, get = await client.ask("HEAD", "/kv/a"), await client.ask("GET", "/kv/a")
        assert head.status == get.status == 200
        assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
        missing = await client.ask("HEAD", "/kv/b")
        assert missing.status == 404
        assert int(missing.headers["content-length"]) > 0
        assert (await client.ask("HEAD", "/livez")).status == 200
        assert await client.is_usable()


@on_both_loops
async def test_the_path_is_never_normalised():
    spellings = {
        b"/": ["/kv//", "/kv/%2F", "/kv/%2f", "http://other/kv//", "http://other/kv/%2f"],
        b"..": ["/kv/..", "/kv/%2E%2e", "/kv/.%2E"],
        b"a/../b": ["/kv/a/../b", "/kv/a%2F..%2fb"],
        b"a//b/": ["/kv/a//b/"],
        b"\x00": ["/kv/%00"],
        b"a+b c": ["/kv/a+b%20c", "/kv/%61%2b%62%20%63"],
        b"livez": ["/kv/livez"],
        b"%41": ["/kv/%2541"],
        b"A": ["/kv/A", "/kv/%41"],
        b"http://h/x": ["/kv/http://h/x"],
    }
    async with serving() as served:
        client = await served.connect()
        for key, paths in spellings.items():
            await client.ask("PUT", paths[0], key)
            for path in paths:
                assert (await client.ask("GET", path)).body == key, path
        assert set(served.node.records) == set(spellings)


@on_both_loops
async def test_raw_bytes_beyond_ascii_are_the_key_or_refused():
    async with serving() as served:
        for raw in (b"\xc3\xa9", b"\xff\xfe", b"a\x80"):
            client = await served.connect()
            client.send(b"PUT /kv/" + raw + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
            answer = await client.answer()
            assert answer.status in {201, 400}
            assert list(served.node.records) == ([raw] if answer.status == 201 else [])
            served.node.records.clear()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_random_keys_and_values_are_read_back(loop_factory):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        stack = contextlib.AsyncExitStack()
        served = runner.run(stack.enter_async_context(serving()))
        client = runner.run(served.connect())

        @settings(max_examples=40, deadline=None)
        @given(st.binary(min_size=1, max_size=60), st.binary(max_size=3000))
        def check(key, value):
            path = "/kv/" + quote_from_bytes(key, safe="")
            assert runner.run(client.ask("PUT", path, value)).status in {201, 204}
            assert runner.run(client.ask("GET", path)).body == value

        try:
            check()
        finally:
            runner.run(stack.aclose())


@on_both_loops
async def test_a_refused_request_leaves_the_connection_usable():
    cases = [
        ("GET", "/kv/", 404, "unknown-page"),
        ("GET", "/kv", 404, "unknown-page"),
        ("GET", "/", 404, "unknown-page"),
        ("GET", "/scan/", 404, "unknown-page"),
        ("POST", "/batch/", 404, "unknown-page"),
        ("GET", "/cluster/explain", 404, "unknown-page"),
        ("GET", "/cluster/explain/", 404, "unknown-page"),
        ("OPTIONS", "*", 404, "unknown-page"),
        ("GET", "/readyz/", 404, "unknown-page"),
        ("GET", "/%6civez", 404, "unknown-page"),
        ("GET", "/kv/%", 400, "malformed-key"),
        ("GET", "/kv/%4", 400, "malformed-key"),
        ("GET", "/kv/a#b", 400, "malformed-request"),
        ("GET", "/kv/" + "k" * 1025, 414, "key-too-long"),
        ("GET", "/kv/" + "k" * 20_000, 414, "key-too-long"),
        ("GET", "/kv/a?ttl=1", 400, "bad-parameter"),
        ("GET", "/kv/a?r=0", 400, "bad-parameter"),
        ("GET", "/kv/a?r=4", 400, "bad-parameter"),
        ("GET", "/kv/a?timeout=61", 400, "bad-parameter"),
        ("PUT", "/kv/a?ttl=0", 400, "bad-parameter"),
        ("PUT", "/kv/a?ttl=1&ttl=1", 400, "bad-parameter"),
        ("PUT", "/kv/a?incr=1", 400, "bad-parameter"),
        ("POST", "/kv/a?incr=1.5", 400, "bad-parameter"),
        ("GET", "/kv/a?sloppy=true", 400, "bad-parameter"),
        ("PUT", "/kv/a?sloppy=yes", 400, "bad-parameter"),
        ("PATCH", "/kv/a", 400, "bad-parameter"),
        ("PATCH", "/kv/a?ttl=never", 400, "bad-parameter"),
        ("GET", "/scan?limit=0", 400, "bad-parameter"),
        ("GET", "/scan?cursor=abc", 400, "bad-parameter"),
        ("GET", "/scan?x=1", 400, "bad-parameter"),
        ("POST", "/batch?r=4", 400, "bad-parameter"),
        ("GET", "/cluster/explain/%", 400, "malformed-key"),
        ("GET", "/cluster/explain/" + "k" * 1025, 414, "key-too-long"),
        ("OPTIONS", "/kv/a", 405, "method-not-allowed"),
        ("QUERY", "/kv/a", 405, "method-not-allowed"),
        ("POST", "/scan", 405, "method-not-allowed"),
        ("POST", "/cluster/explain/a", 405, "method-not-allowed"),
        ("POST", "/livez", 405, "method-not-allowed"),
        ("PUT", "/metrics", 405, "method-not-allowed"),
    ]
    async with serving() as served:
        client = await served.connect()
        for method, target, status, name in cases:
            for body in (None, b"x" * 100):
                answer = await client.ask(method, target, body)
                assert (answer.status, answer.problem, answer.closes) == (status, name, False), (method, target)
                if status == 405:
                    assert answer.headers["allow"].startswith("GET, HEAD")
        assert await client.is_usable()
        assert served.node.asked == []
        assert served.open() == 1


@on_both_loops
async def test_a_key_of_1024_bytes_fits_in_its_longest_spelling():
    async with serving() as served:
        client = await served.connect()
        assert (await client.ask("PUT", "/kv/" + "%6b" * 1024, b"x")).status == 201
        assert list(served.node.records) == [b"k" * 1024]


@on_both_loops
async def test_a_read_with_the_tag_it_knows_is_answered_304():
    async with serving() as served:
        client = await served.connect()
        tag = (await client.ask("PUT", "/kv/a", b"value")).headers["etag"]
        for method in ("GET", "HEAD"):
            for condition in (tag, f'"x", W/{tag}', "*"):
                answer = await client.ask(method, "/kv/a", If_None_Match=condition)
                assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
                assert "content-length" not in answer.headers
            assert (await client.ask(method, "/kv/a", If_None_Match='"x"')).status == 200
        client.send(f'GET /kv/a HTTP/1.1\r\nHost: h\r\nIf-None-Match: "x"\r\nIf-None-Match: {tag}\r\n\r\n'.encode())
        assert (await client.answer()).status == 304


@on_both_loops
async def test_a_read_of_another_value_than_expected_is_answered_412():
    async with serving() as served:
        client = await served.connect()
        tag = (await client.ask("PUT", "/kv/a", b"value")).headers["etag"]
        for condition, status in ((tag, 200), (f'"x", {tag}', 200), ("*", 200), ('"x"', 412), (f"W/{tag}", 412)):
            answer = await client.ask("GET", "/kv/a", If_Match=condition)
            assert answer.status == status, condition
        assert answer.problem == "precondition-failed"
        assert (await client.ask("HEAD", "/kv/a", If_Match='"x"')).status == 412
        assert (await client.ask("GET", "/kv/a", If_Match='"x"', If_None_Match=tag)).status == 412
        assert (await client.ask("GET", "/kv/a", If_Match=tag, If_None_Match=tag)).status == 304
        assert (await client.ask("GET", "/kv/b", If_Match="*")).problem == "not-found"


@on_both_loops
async def test_a_conditional_write_is_made_where_its_condition_is_met():
    async with serving() as served:
        client = await served.connect()

        async def write(method: str, target: str, **headers: str) -> int:
            return (await client.ask(method, target, b"" if "?" in target else b"value", **headers)).status

        tag = (await client.ask("PUT", "/kv/a", b"1", If_None_Match="*")).headers["etag"]
        for method, target in (("PUT", "/kv/a"), ("POST", "/kv/a"), ("DELETE", "/kv/a"), ("PATCH", "/kv/a?ttl=1"),
                               ("POST", "/kv/a?incr=1")):  # fmt: skip
            assert await write(method, target, If_None_Match="*") == 412
            assert await write(method, target, If_None_Match=f'"x", W/{tag}') == 412
            assert await write(method, target, If_Match='"x"') == 412
            assert await write(method, target, If_Match=f"W/{tag}") == 412
            assert await write(method, target, If_Match=tag, If_None_Match=tag) == 412
            assert await write(method, target, If_Match='"x') == 400
        assert (await client.ask("GET", "/kv/a")).headers["etag"] == tag
        assert await write("PUT", "/kv/b", If_Match="*") == 412
        assert await write("DELETE", "/kv/b", If_Match="*") == 412
        assert set(served.node.records) == {b"a"}
        for method, target, status in (("PUT", "/kv/a", 204), ("PATCH", "/kv/a?ttl=9", 204), ("DELETE", "/kv/a", 204)):
            tag = (await client.ask("GET", "/kv/a")).headers["etag"]
            assert await write(method, target, If_Match=f'"x", {tag}', If_None_Match='"y"') == status
        assert served.node.records == {}


@on_both_loops
async def test_foreign_tags_alone_are_no_condition_where_none_is_to_match():
    async with serving() as served:
        client = await served.connect()
        assert (await client.ask("PUT", "/kv/a", b"1", If_None_Match='"x", W/"y"')).status == 201
        assert served.node.asked == [WriteRequest(b"a", b"1")]


@on_both_loops
async def test_a_header_that_is_not_obeyed_changes_nothing():
    async with serving() as served:
        client = await served.connect()
        tag = (await client.ask("PUT", "/kv/a", b"value")).headers["etag"]
        date = "Tue, 14 Nov 2023 22:13:10 GMT"
        for method in ("PUT", "POST", "DELETE", "PATCH", "GET", "HEAD"):
            answer = await client.ask(method, "/kv/a", b"other", If_Unmodified_Since=date)
            assert (answer.status, method == "HEAD" or answer.problem) == (501, method == "HEAD" or "not-supported")
        assert (await client.ask("GET", "/kv/a", If_Match=tag, If_Unmodified_Since=date)).status == 200
        assert (await client.ask("PUT", "/kv/a", b"other", Content_Range="bytes 0-1/5")).status == 400
        assert (await client.ask("GET", "/kv/a")).body == b"value"


@on_both_loops
async def test_a_number_is_counted_up_and_down():
    async with serving() as served:
        client = await served.connect()
        answer = await client.ask("POST", "/kv/n?incr=5&ttl=60")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"5", "text/plain")
        again = await client.ask("POST", "/kv/n?incr=-7", b"", Content_Type="x/y")
        assert (again.body, again.headers["etag"] != answer.headers["etag"]) == (b"-2", True)
        read = await client.ask("GET", "/kv/n")
        assert (read.body, read.headers["etag"]) == (b"-2", again.headers["etag"])
        assert read.headers["content-type"] == "text/plain"
        assert read.headers["cache-control"] in {"max-age=59", "max-age=60"}
        await client.ask("PUT", "/kv/n", b"many")
        assert (await client.ask("POST", "/kv/n?incr=1")).problem == "not-a-number"
        answer = await client.ask("POST", "/kv/n?incr=1", b"1")
        assert (answer.status, answer.problem) == (400, "malformed-request")
        assert served.node.asked[0] == UpdateRequest(
            b"n", "increment", content_type=b"text/plain", ttl_ms=60_000, step=5
        )


@on_both_loops
async def test_a_deadline_is_set_and_removed():
    async with serving() as served:
        client = await served.connect()
        first = await client.ask("PUT", "/kv/a", b"value", Content_Type="x/y")
        answer = await client.ask("PATCH", "/kv/a?ttl=90")
        assert (answer.status, answer.body) == (204, b"")
        read = await client.ask("GET", "/kv/a")
        assert (read.body, read.headers["content-type"], read.headers["etag"]) == (
            b"value",
            "x/y",
            answer.headers["etag"],
        )
        assert read.headers["etag"] != first.headers["etag"]
        assert read.headers["cache-control"] in {"max-age=89", "max-age=90"}
        assert (await client.ask("PATCH", "/kv/a?ttl=none", b"")).status == 204
        assert (await client.ask("GET", "/kv/a")).headers["cache-control"] == "no-cache"
        assert (await client.ask("PATCH", "/kv/b?ttl=90")).problem == "not-found"
        for body in (b"x", b"x" * 100_000):
            answer = await client.ask("PATCH", "/kv/a?ttl=90", body)
            assert (answer.status, answer.problem, answer.closes) == (400, "malformed-request", False)
        client.send(b"PATCH /kv/a?ttl=90 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert (await client.answer()).status == 204
        client.send(b"PATCH /kv/a?ttl=90 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
        assert (await client.answer()).status == 400


@on_both_loops
async def test_content_type_is_stored_and_content_encoding_is_not_undone():
    async with serving() as served:
        client = await served.connect()
        packed = b"\x1f\x8b no gzip at all"
        assert (
            await client.ask("PUT", "/kv/a", packed, Content_Type="a/b; c=d", Content_Encoding="gzip")
        ).status == 201
        answer = await client.ask("GET", "/kv/a")
        assert (answer.body, answer.headers["content-type"]) == (packed, "a/b; c=d")
        assert "content-encoding" not in answer.headers
        await client.ask("PUT", "/kv/a", b"")
        assert (await client.ask("GET", "/kv/a")).headers["content-type"] == "application/octet-stream"
        await client.ask("PUT", "/kv/a", b"", Content_Type="caf\udce9")
        assert (await client.ask("GET", "/kv/a")).headers["content-type"] == "caf\xe9"
        assert (await client.ask("PUT", "/kv/a", b"", Content_Type="x" * 256)).problem == "bad-header"
        assert (await client.ask("PUT", "/kv/a", b"", Content_Type="a\tb")).problem == "bad-header"
        assert await client.is_usable()


@on_both_loops
async def test_parameters_reach_the_node():
    async with serving() as served:
        client = await served.connect()
        await client.ask("PUT", "/kv/a?ttl=1.5&w=all&timeout=500ms", b"v", Content_Type="t")
        await client.ask("GET", "/kv/a?r=1&timeout=60")
        await client.ask("DELETE", "/kv/a?w=quorum&sloppy=true")
        assert served.node.asked == [
            WriteRequest(b"a", b"v", content_type=b"t", ttl_ms=1500, quorum="all", timeout_s=0.5),
            ReadRequest(b"a", quorum="1", timeout_s=60.0),
            WriteRequest(b"a", None, quorum="quorum", is_sloppy=True),
        ]


@on_both_loops
async def test_owners_for_which_another_node_keeps_a_write_are_named():
    async with serving() as served:
        client = await served.connect()
        served.node.decide = lambda _request: Outcome(version=bytes(16), hinted=("n2", "n3"))
        for method, body in (("PUT", b"v"), ("DELETE", None), ("PATCH", None)):
            answer = await client.ask(method, "/kv/a?ttl=1" if method == "PATCH" else "/kv/a", body)
            assert answer.headers["x-zephyr-hinted"] == "n2, n3"


# --- many keys ------------------------------------------------------------------------------------------


def batch_of(*operations: dict[str, Any]) -> bytes:
    return json.dumps(operations).encode()


@on_both_loops
async def test_a_batch_is_answered_row_by_row():
    async with serving() as served:
        client = await served.connect()
        body = batch_of(
            {"op": "put", "key": "a%2F", "value": "AP8=", "ttl": "60"},
            {"op": "get", "key": "a%2F"},
            {"op": "get", "key": "b"},
            {"op": "frobnicate", "key": "b"},
        )
        answer = await client.ask("POST", "/batch?w=all", body)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        rows = json.loads(answer.body)
        assert answer.headers["x-zephyr-coordinator"] == "n1"
        assert [(row["key"], row["status"], row["value"]) for row in rows] == [
            ("a%2F", 201, None), ("a%2F", 200, "AP8="), ("b", 404, None), ("b", 400, None),
        ]  # fmt: skip
        read = await client.ask("GET", "/kv/a%2F")
        assert read.headers["etag"] == rows[0]["etag"] == rows[1]["etag"]
        assert [len(wave) for wave in served.node.waves] == [2, 1]
        assert (served.metrics.hits, served.metrics.misses) == (2, 1)
        client.send(b"POST /batch HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)) == (200, [])


@on_both_loops
async def test_what_is_no_batch_is_refused_and_the_connection_goes_on():
    large = {"Transfer_Encoding": "gzip, chunked"}
    async with serving() as served:
        client = await served.connect()
        for body, query, status, name in (
            (b"", "", 400, "malformed-request"),
            (b"{}", "", 400, "malformed-request"),
            (batch_of(*[{"op": "get", "key": "a"}] * 1001), "", 413, "batch-too-large"),
            (b"[]", "?w=0", 400, "bad-parameter"),
            (b"[]", "?ttl=1", 400, "bad-parameter"),
        ):
            answer = await client.ask("POST", f"/batch{query}", body)
            assert (answer.status, answer.problem, answer.closes) == (status, name, False)
        for condition in ({"If_Match": "*"}, {"If_None_Match": "*"}, {"If_Unmodified_Since": "x"}):
            assert (await client.ask("POST", "/batch", b"[]", **condition)).problem == "not-supported"
        assert (await client.ask("PUT", "/batch", b"[]")).headers["allow"] == "POST"
        client.send(b"POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: 8388609\r\nExpect: 100-continue\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.problem, answer.closes) == (413, "batch-too-large", True)
        assert (await (await served.connect()).ask("POST", "/batch", **large)).status in {400, 501}
        assert served.node.asked == []


@on_both_loops
async def test_a_batch_waits_for_what_takes_its_time():
    async with serving() as served:
        client = await served.connect()
        served.node.gate = asyncio.Event()
        body = batch_of({"op": "put", "key": "a", "value": ""}, {"op": "get", "key": "a"}, {"op": "get", "key": "b"})
        asking = asyncio.create_task(client.ask("POST", "/batch", body))
        await until(lambda: len(served.node.asked) == 2, "two are begun")
        served.node.gate.set()
        assert [row["status"] for row in json.loads((await asking).body)] == [201, 200, 404]


@on_both_loops
async def test_a_batch_of_the_largest_size_is_taken():
    value = base64.b64encode(bytes(1_000_000)).decode()
    body = batch_of(*[{"op": "put", "key": str(number), "value": value} for number in range(6)])
    body += b" " * ((8 << 20) - len(body))
    async with serving() as served:
        client = await served.connect()
        answer = await client.ask("POST", "/batch", body)
        assert [row["status"] for row in json.loads(answer.body)] == [201] * 6
        assert served.api._bodies_bytes == 0
        assert (await client.ask("POST", "/batch", body + b" ")).status == 413


@on_both_loops
async def test_a_listing_goes_on_from_its_cursor_at_every_node():
    async with serving() as served, serving() as other:
        keys = {b"k/%d" % number for number in range(10)} | {b"k\xff\x00", b"other"}
        for key in keys:
            stored(served, key, 1)
        other.node.records = served.node.records
        clients = [await served.connect(), await other.connect()]
        seen: list[str] = []
        target = "/scan?prefix=k&limit=3"
        for number in range(10):
            answer = await clients[number % 2].ask("GET", target)
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert (answer.headers["cache-control"], answer.headers["x-zephyr-coordinator"]) == ("no-store", "n1")
            page = json.loads(answer.body)
            assert page.keys() == {"keys", "cursor"}
            assert len(page["keys"]) <= 3
            seen += page["keys"]
            if page["cursor"] is None:
                break
            target = f"/scan?prefix=k&limit=3&cursor={page['cursor']}"
        assert sorted(seen) == sorted(quote_from_bytes(key, safe="") for key in keys - {b"other"})
        assert (await clients[0].ask("HEAD", "/scan?prefix=&cursor=")).status == 200
        assert served.node.scanned[-1] == ScanRequest(
            b"", 90, served.node.scanned[-1].cursor, served.node.scanned[-1].timeout_s
        )


@on_both_loops
async def test_a_key_is_explained():
    async with serving() as served:
        client = await served.connect()
        tag = (await client.ask("PUT", "/kv/a/b%00", b"value")).headers["etag"]
        answer = await client.ask("GET", "/cluster/explain/a/b%00?whatever")
        assert answer.headers["cache-control"] == "no-store"
        assert json.loads(answer.body) == {
            "key": "a%2Fb%00",
            "slot": key_slot(b"a/b\x00"),
            "owners": ["n2", "n3"],
            "replicas": [
                {"node": "n2", "owner": True, "level": True, "state": "value", "version": tag.strip('"'),
                 "expires_unix_ms": 1234, "hinted": []},
                {"node": "n1", "owner": False, "level": False, "state": "unreachable", "version": None,
                 "expires_unix_ms": None, "hinted": ["n3", "n4"]},
            ],
        }  # fmt: skip
        assert (await client.ask("HEAD", "/cluster/explain/x")).status == 200


@on_both_loops
async def test_a_failure_is_answered_as_the_contract_says():
    async with serving() as served:
        client = await served.connect()
        served.node.decide = lambda _request: Outcome(Failure.UNAVAILABLE, "nobody is there", answered=0, asked=3)
        for method, body in (("GET", None), ("PUT", b"v"), ("DELETE", None)):
            answer = await client.ask(method, "/kv/a", body)
            assert (answer.status, answer.problem) == (503, "unavailable")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-zephyr-replicas"] == "0/3"
        assert (served.metrics.hits, served.metrics.misses) == (0, 0)
        assert await client.is_usable()


@on_both_loops
async def test_a_node_that_raises_is_answered_500_and_logged_once():
    async with serving() as served:
        client = await served.connect()
        served.node.failing = ValueError("broken")
        with structlog.testing.capture_logs() as logs:
            answer = await client.ask("PUT", "/kv/a", b"v")
        assert (answer.status, answer.problem) == (500, "internal-error")
        assert b"broken" not in answer.body
        assert [entry["event"] for entry in logs] == ["request-failed"]
        assert await client.is_usable()


# --- bodies ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_value_may_come_in_chunks_and_in_pieces():
    async with serving(value_max=1000) as served:
        client = await served.connect()
        client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab")
        await until(served.is_reading_a_body, "the first piece has arrived")
        client.send(b"c\r\n2\r\nde\r\n0\r\n\r\n")
        assert (await client.answer()).status == 201
        for byte in b"PUT /kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz":
            client.send(bytes([byte]))
            await client.writer.drain()
        assert (await client.answer()).status == 201
        assert (await client.ask("GET", "/kv/a")).body == b"abcde"
        assert (await client.ask("GET", "/kv/b")).body == b"xyz"


@on_both_loops
async def test_the_largest_value_fits_and_one_byte_more_does_not():
    async with serving(value_max=100_000) as served:
        client = await served.connect()
        assert (await client.ask("PUT", "/kv/a", b"x" * 100_000)).status == 201
        assert len((await client.ask("GET", "/kv/a")).body) == 100_000
        answer = await client.ask("PUT", "/kv/a", b"y" * 100_001)
        assert (answer.status, answer.problem, answer.closes) == (413, "value-too-large", False)
        assert (await client.ask("GET", "/kv/a")).body == b"x" * 100_000


@on_both_loops
async def test_a_value_too_large_by_its_length_is_refused_before_its_body():
    async with serving(value_max=1000) as served:
        client = await served.connect()
        client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.closes) == (413, False)
        client.send(b"x" * 5000)  # The small rest is read, and the connection goes on.
        assert await client.is_usable()


@on_both_loops
async def test_chunks_are_counted_while_they_are_read():
    async with serving(value_max=1000) as served:
        client = await served.connect()
        client.send(
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n"
        )
        client.send(b"1\r\nx\r\n")
        answer = await client.answer()
        assert (answer.status, answer.closes) == (413, True)
        client.send(b"0\r\n\r\n")
        assert await client.ended() == b""
        assert served.node.asked == []


def upload(address: tuple[str, int], head: bytes, size: int) -> bytes:
    """Send all of a large body, as a blocking client does, and only then read to the end. A reset raises."""
    with socket.create_connection(address, timeout=DEADLINE_S) as sock:
        sock.sendall(head)
        for _ in range(size // 65_536):
            sock.sendall(b"x" * 65_536)
        received = b""
        while piece := sock.recv(65_536):
            received += piece
        return received


@on_both_loops
async def test_a_client_that_sends_ten_mebibytes_before_it_reads_gets_its_answer_without_a_reset():
    heads = [
        (b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10485760\r\n\r\n", b"HTTP/1.1 413 "),
        (b"PUT /kv/%zz HTTP/1.1\r\nHost: h\r\nContent-Length: 10485760\r\n\r\n", b"HTTP/1.1 400 "),
        (b"no http\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /kv/a HTTP/1.1\r\nHost: h\r\nX: ", b"HTTP/1.1 431 "),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 404 "),
    ]
    async with serving() as served:
        for head, expected in heads:
            received = await asyncio.to_thread(upload, served.address, head, 10 << 20)
            assert received.startswith(expected)
            assert b"\r\nConnection: close\r\n" in received
            assert received.count(b"HTTP/1.1") == 1
        await until(lambda: served.open() == 0, "all are closed")
        assert served.closed("slow-body") == 0


@on_both_loops
async def test_a_body_that_filled_every_buffer_meanwhile_is_no_reason_for_a_reset():
    head = b"DELETE /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10485760\r\n\r\n"
    async with serving() as served:
        served.node.gate = asyncio.Event()
        uploading = asyncio.create_task(asyncio.to_thread(upload, served.address, head, 10 << 20))
        await until(lambda: any(item._reading_paused for item in served.api._guard.open), "reading is paused")
        served.node.gate.set()
        assert (await uploading).startswith(b"HTTP/1.1 204 ")


@on_both_loops
async def test_a_client_that_never_stops_sending_is_cut():
    async with serving(replace(QUICK, linger_s=0.3)) as served:

        def pour() -> None:
            with socket.create_connection(served.address, timeout=DEADLINE_S) as sock:
                sock.sendall(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999\r\n\r\n")
                give_up_s = time.monotonic() + DEADLINE_S
                while time.monotonic() < give_up_s:
                    sock.sendall(b"x" * 65_536)

        with pytest.raises(ConnectionError):
            await asyncio.to_thread(pour)


@on_both_loops
async def test_100_continue_is_sent_only_when_the_body_is_wanted():
    async with serving(value_max=1000) as served:
        client = await served.connect()
        head = "PUT {} HTTP/{}\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: {}\r\nExpect: {}\r\n\r\n"
        client.send(head.format("/kv/a", "1.1", 5, "100-Continue").encode())
        assert (await client.answer()).line == "HTTP/1.1 100 Continue"
        client.send(b"hello")
        assert (await client.answer()).status == 201
        client.send(head.format("/kv/b", "1.0", 5, "100-continue").encode())
        await until(served.is_reading_a_body, "the body is waited for")
        client.send(b"hello")
        answer = await client.answer()  # HTTP/1.0 knows no 100.
        assert (answer.status, answer.headers["connection"]) == (201, "keep-alive")
        # The body came with its headers: nothing is to be waited for.
        client.send(head.format("/kv/c", "1.1", 5, "100-continue").encode() + b"hello")
        assert (await client.answer()).status == 201
        for path, size, expectation, status in (
            ("/kv/a", 1001, "100-continue", 413),
            ("/kv/a?ttl=0", 5, "100-continue", 400),
            ("/kv/a", 5, "200-maybe", 417),
        ):
            refused = await served.connect()
            refused.send(head.format("/kv/d", "1.1", 5, "100-continue").encode())
            assert (await refused.answer()).status == 100
            refused.send(b"hello")
            assert (await refused.answer()).status in {201, 204}
            refused.send(head.format(path, "1.1", size, expectation).encode())
            answer = await refused.answer()
            assert (answer.status, answer.closes) == (status, True)
            assert await refused.ended() == b""


@on_both_loops
async def test_a_body_that_breaks_its_coding_is_refused_and_nothing_is_written():
    async with serving() as served:
        for broken in (b"5\r\nhello\r\nxx\r\n", b"zz\r\n", b"-1\r\n"):
            client = await served.connect()
            client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
            await until(served.is_reading_a_body, "its beginning is taken for good")
            client.send(broken)
            answer = await client.answer()
            assert (answer.status, answer.problem, answer.closes) == (400, "malformed-request", True)
            assert "\n" not in json.loads(answer.body)["detail"]
            assert await client.ended() == b""
        assert served.node.asked == []


@on_both_loops
async def test_a_body_in_a_transfer_coding_that_is_not_undone_is_refused():
    async with serving() as served:
        client = await served.connect()
        client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        assert (await client.answer()).problem == "not-supported"
        assert served.node.asked == []


@on_both_loops
async def test_clients_that_vanish_within_their_bodies_leave_no_memory_behind():
    async with serving() as served:
        gc.collect()
        gc.disable()  # Nobody knows when it runs: in a large heap, hardly ever.
        tracemalloc.start()
        try:
            clients = [await served.connect() for _ in range(20)]
            piece, before_bytes = bytes(900_000), tracemalloc.get_traced_memory()[0]
            for client in clients:
                client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + piece)
                await client.writer.drain()
            await until(lambda: tracemalloc.get_traced_memory()[0] > before_bytes + 15_000_000, "it has the bodies")
            for client in clients:
                client.close()
            await until(lambda: served.open() == 0, "they are gone")
            await until(lambda: tracemalloc.get_traced_memory()[0] < before_bytes + 3_000_000, "so are the bodies")
        finally:
            tracemalloc.stop()
            gc.enable()
        assert served.node.asked == []


@on_both_loops
async def test_a_client_that_goes_away_within_its_body_writes_nothing():
    async with serving() as served:
        for ending in ("close", "reset", "half-close"):
            client = await served.connect()
            client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello")
            await client.writer.drain()
            with structlog.testing.capture_logs() as logs:
                if ending == "half-close":
                    client.writer.write_eof()
                    assert await client.ended() == b""
                elif ending == "reset":
                    linger = struct.pack("ii", 1, 0)
                    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.close()
                await until(lambda: served.open() == 0, ending)
            assert logs == []
        assert served.node.asked == []


# --- connections ----------------------------------------------------------------------------------------


@on_both_loops
async def test_pipelined_requests_are_answered_in_order():
    async with serving() as served:
        client = await served.connect()
        client.send(
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none"
            b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n"
            b"HEAD /kv/a HTTP/1.1\r\nHost: h\r\n\r\n"
            b"GET /kv/b HTTP/1.1\r\nHost: h\r\n\r\n" * 20
        )
        for _ in range(20):
            statuses = [(await client.answer(method)).status for method in ("PUT", "GET", "HEAD", "GET")]
            assert statuses in ([201, 200, 200, 404], [204, 200, 200, 404])


@on_both_loops
async def test_connection_close_and_http_1_0_are_honoured():
    async with serving() as served:
        for request, connection in (
            (b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "close"),
            (b"GET /livez HTTP/1.0\r\n\r\n", "close"),
        ):
            client = await served.connect()
            client.send(request)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, connection)
            assert await client.ended() == b""
        client = await served.connect()
        for _ in range(2):
            client.send(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer()).headers["connection"] == "keep-alive"


@on_both_loops
async def test_a_client_that_ends_its_direction_still_gets_its_answers():
    async with serving(HttpLimits(linger_s=60)) as served:
        served.node.gate = asyncio.Event()
        client = await served.connect()
        client.send(
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\noneGET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n"
        )
        client.writer.write_eof()
        await until(lambda: served.node.asked, "the first request arrived")
        served.node.gate.set()
        assert [(await client.answer()).status for _ in range(2)] == [201, 200]
        assert await client.ended() == b""
        for garbage in (b"garbage\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
            client = await served.connect()
            client.send(garbage)
            client.writer.write_eof()
            assert (await client.answer()).problem == "malformed-request"
        await until(lambda: not served.api._server.connections, "nothing lingers: no more can come")


@on_both_loops
async def test_what_is_no_http_is_answered_400_and_closed():
    async with serving() as served:
        for garbage in (
            b"garbage\r\n\r\n",
            b"GET /kv/a HTTP/1.1\r\n\r\n",  # no Host
            b"GET /kv/a b HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /kv/a HTTP/1.1\r\nHost: h\r\nbroken\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Type: a\r\nContent-Type: b\r\nContent-Length: 0\r\n\r\n",
            b"\x00" * 100,
        ):
            client = await served.connect()
            client.send(garbage)
            answer = await client.answer()
            assert (answer.status, answer.problem, answer.closes) == (400, "malformed-request", True), garbage
            assert await client.ended() == b""
        assert served.node.asked == []


@on_both_loops
async def test_an_offer_to_change_the_protocol_is_declined():
    async with serving() as served:
        for protocol in (b"websocket", b"h2c"):
            client = await served.connect()
            client.send(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
            client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n")
            client.send(b"bytes of that protocol, or a request")
            assert (await client.answer()).closes is False
            answer = await client.answer()
            assert (answer.status, answer.closes) == (404, True)
            assert await client.ended() == b""


@on_both_loops
async def test_a_header_block_over_its_limit_is_answered_431():
    line = b"X-Filler: " + b"x" * 989 + b"\r\n"  # 1,001 bytes
    start = b"GET /livez HTTP/1.1\r\nHost: h\r\n"
    async with serving() as served:
        for block, status in (
            (start + line * 32 + b"\r\n", 200),
            (start + line * 33 + b"\r\n", 431),
            (start + b"X: " + b"x" * 33_000 + b"\r\n\r\n", 431),
            (start + b"X-" + b"x" * 33_000 + b": 1\r\n\r\n", 431),
            (start + b"X: 1\r\n" * 127 + b"\r\n", 200),
            (start + b"X: 1\r\n" * 128 + b"\r\n", 431),
            (b"GET /kv/" + b"k" * 33_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
            (b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n" + start + line * 33 + b"\r\n", 431),
        ):
            for piece_bytes in (len(block), 10_000):
                client = await served.connect()
                for offset in range(0, len(block), piece_bytes):
                    client.send(block[offset : offset + piece_bytes])
                    await client.writer.drain()
                answer = await client.answer()
                if block.startswith(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"):
                    assert answer.status == 200
                    answer = await client.answer()
                assert answer.status == status, (len(block), piece_bytes)
                assert not answer.closes or await client.ended() == b""
                client.close()


@on_both_loops
async def test_a_header_block_that_begins_behind_a_body_is_measured_whole():
    block = b"GET /livez HTTP/1.1\r\nHost: h\r\n" + (b"X-Filler: " + b"x" * 989 + b"\r\n") * 33 + b"\r\n"
    async with serving() as served:
        client = await served.connect()
        client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
        await until(served.is_reading_a_body, "the body is waited for")
        client.send(b"llo" + block[:20_000])
        assert (await client.answer()).status == 201
        client.send(block[20_000:])
        assert (await client.answer()).status == 431


@on_both_loops
async def test_headers_that_began_behind_a_busy_request_are_cut_too():
    async with serving(replace(QUICK, idle_s=60)) as served:
        served.node.gate = asyncio.Event()
        client = await served.connect()
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: served.node.asked, "it waits for the node")
        client.send(b"GET /kv/b HT")
        await until(lambda: any(item.is_in_headers for item in served.api._guard.open), "the next one has begun")
        served.node.gate.set()
        assert (await client.answer()).status == 404
        assert (await client.answer()).status == 408
        assert served.closed("slow-headers") == 1


@on_both_loops
async def test_headers_that_never_end_are_bounded_behind_a_busy_request_too():
    async with serving() as served:
        served.node.gate = asyncio.Event()
        client = await served.connect()
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\nGET /kv/b HTTP/1.1\r\n")
        await until(lambda: served.node.asked, "the first request arrived")
        for _ in range(60):
            client.send(b"X: " + b"x" * 1000 + b"\r\n")
        await client.writer.drain()
        served.node.gate.set()
        assert (await client.answer()).status == 404
        assert (await client.answer()).status == 431
        assert await client.ended() == b""


@on_both_loops
async def test_slow_headers_are_answered_408_and_closed():
    async with serving(QUICK) as served:
        client = await served.connect()
        client.send(b"GET /kv/a HT")
        answer = await client.answer()
        assert (answer.status, answer.problem, answer.closes) == (408, "too-slow", True)
        assert await client.ended() == b""
        assert served.closed("slow-headers") == 1


@on_both_loops
async def test_a_connection_that_says_nothing_is_closed_without_a_word():
    async with serving(replace(QUICK, idle_s=60)) as served:
        assert await (await served.connect()).ended() == b""
        assert served.closed("slow-headers") == 1


@on_both_loops
async def test_headers_that_drip_are_cut_though_bytes_keep_coming():
    async with serving(replace(QUICK, idle_s=60)) as served:
        client = await served.connect()
        assert await client.is_usable()
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\nX: ")

        async def drip() -> None:
            while True:
                client.send(b"x")
                await asyncio.sleep(0.02)  # the pace of a client that means harm

        dripping = asyncio.create_task(drip())
        try:
            assert (await client.answer()).status == 408
        finally:
            dripping.cancel()
        assert served.closed("slow-headers") == 1


@on_both_loops
async def test_a_body_without_progress_is_answered_408_and_closed():
    async with serving(replace(QUICK, body_s=60)) as served:
        client = await served.connect()
        client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello")
        answer = await client.answer()
        assert (answer.status, answer.problem, answer.closes) == (408, "too-slow", True)
        assert await client.ended() == b""
        assert served.closed("slow-body") == 1
        assert served.node.asked == []


@on_both_loops
async def test_a_body_that_drips_is_cut_by_the_limit_of_the_whole():
    async with serving(QUICK) as served:
        client = await served.connect()
        client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
        began_s = time.monotonic()

        async def drip() -> None:
            while True:
                client.send(b"x")
                await asyncio.sleep(0.02)  # the pace of a client that means harm

        dripping = asyncio.create_task(drip())
        try:
            assert (await client.answer()).status == 408
        finally:
            dripping.cancel()
        assert time.monotonic() - began_s > QUICK.body_progress_s, "progress alone does not end it"
        assert served.closed("slow-body") == 1


@on_both_loops
async def test_unfinished_bodies_share_one_bound_and_release_it():
    async with serving(HttpLimits(bodies_bytes_max=3000)) as served:
        slow = [await served.connect() for _ in range(2)]
        for client in slow:
            client.send(b"PUT /kv/slow HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n" + bytes(1400))
        await until(lambda: served.api._bodies_bytes == 2800, "both are being received")
        other = await served.connect()
        other.send(b"PUT /kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        refused = await other.answer("PUT")
        assert (refused.status, refused.problem, refused.headers["retry-after"]) == (429, "too-many-bodies", "1")
        slow[1].close()
        await until(lambda: served.api._bodies_bytes == 1400, "what the others hold is released")
        slow[0].send(bytes(600))
        assert (await slow[0].answer("PUT")).status == 201
        await until(lambda: served.api._bodies_bytes == 0, "everything is released")
        again = await served.connect()
        assert (await again.ask("PUT", "/kv/b", bytes(1000))).status == 201


@on_both_loops
async def test_a_refused_body_whose_small_rest_never_comes_is_let_go():
    async with serving(QUICK) as served:
        client = await served.connect()
        client.send(b"PUT /kv/a?ttl=0 HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello")
        assert (await client.answer()).status == 400
        assert await client.ended() == b""
        assert served.closed("unfinished-body") == 1


@on_both_loops
async def test_an_idle_connection_is_closed_and_a_busy_one_is_not():
    async with serving(QUICK) as served:
        idle, busy = await served.connect(), await served.connect()
        assert await idle.is_usable()
        served.node.gate = asyncio.Event()
        busy.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: served.node.asked, "it waits for the node")
        assert await idle.ended() == b""
        assert served.closed("idle") == 1
        served.node.gate.set()
        assert (await busy.answer()).status == 404


def stored(served: Served, key: bytes, size: int) -> None:
    served.node.records[key] = pack_record(served.node.clock.stamp(now().unix_ms), bytes(size))


@on_both_loops
async def test_a_client_that_does_not_read_its_answer_is_cut():
    async with serving(replace(QUICK, idle_s=60, answer_s=60)) as served:
        stored(served, b"a", 16 << 20)
        client = await served.connect(receive_buffer_bytes=4096)
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: served.closed("slow-reader") == 1, "it was cut")
        await until(lambda: served.open() == 0, "it is gone")


@on_both_loops
async def test_clients_that_vanish_within_their_answers_leave_no_memory_behind():
    async with serving() as served:
        stored(served, b"a", 16 << 20)  # far more than sockets buffer
        gc.collect()
        gc.disable()  # Nobody knows when it runs: in a large heap, hardly ever.
        tracemalloc.start()
        try:
            clients = [await served.connect(receive_buffer_bytes=4096) for _ in range(4)]
            before_bytes = tracemalloc.get_traced_memory()[0]
            for client in clients:
                client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: len(served.node.asked) == 4, "all have asked")
            await until(lambda: tracemalloc.get_traced_memory()[0] > before_bytes + (30 << 20), "the answers wait")
            for client in clients:
                client.writer.transport.abort()
            await until(lambda: served.open() == 0, "they are gone")
            await until(lambda: tracemalloc.get_traced_memory()[0] < before_bytes + (4 << 20), "so are the answers")
        finally:
            tracemalloc.stop()
            gc.enable()


@on_both_loops
async def test_a_client_that_asks_on_and_on_without_reading_is_cut():
    async with serving(replace(QUICK, idle_s=60, answer_s=60)) as served:
        stored(served, b"a", 50_000)
        client = await served.connect(receive_buffer_bytes=4096)
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n" * 500)
        await until(lambda: served.closed("slow-reader") == 1, "it was cut")
        assert len(served.node.asked) < 500, "an answer that is not taken holds up the next request"


@on_both_loops
async def test_a_client_that_reads_slowly_but_steadily_gets_all_of_its_answer():
    async with serving(replace(QUICK, answer_s=60)) as served:
        stored(served, b"a", 16 << 20)
        client = await served.connect(receive_buffer_bytes=65_536)
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        received, unread_since_s, unread_s = 0, None, 0.0
        while piece := await client.reader.read(131_072):
            received += len(piece)
            if served.api._guard.unread:
                unread_since_s = unread_since_s or time.monotonic()
                unread_s = time.monotonic() - unread_since_s
            await asyncio.sleep(len(piece) / 14e6)  # the pace of a slow client
        assert received > 16 << 20
        assert unread_s > QUICK.stall_s, "slow enough to tell"
        assert served.closed("slow-reader") == 0


@on_both_loops
async def test_a_client_that_takes_its_answer_crumb_by_crumb_is_cut_by_the_limit_of_the_whole():
    async with serving(replace(QUICK, answer_s=0.6)) as served:
        stored(served, b"a", 64 << 20)
        client = await served.connect(receive_buffer_bytes=65_536)
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while piece := await client.reader.read(131_072):  # noqa: ASYNC110  # there is no event: it is about pace
                await asyncio.sleep(len(piece) / 5e6)  # the pace of a client that means harm
        assert served.closed("slow-reader") == 1


@on_both_loops
async def test_at_the_bound_the_connection_idle_longest_goes_first():
    async with serving(connections_max=3) as served:
        clients = [await served.connect() for _ in range(3)]
        for number in (1, 0, 2):  # Number 1 is idle longest.
            assert await clients[number].is_usable()
        newcomer = await served.connect()
        assert await newcomer.is_usable()
        assert await clients[1].ended() == b""
        assert await clients[0].is_usable()
        assert await clients[2].is_usable()
        assert (served.open(), served.closed("crowded")) == (3, 1)


@on_both_loops
async def test_at_the_bound_one_that_has_not_asked_yet_goes_before_a_busy_one():
    async with serving(connections_max=2) as served:
        busy, silent = await served.connect(), await served.connect()
        served.node.gate = asyncio.Event()
        busy.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: served.node.asked, "it waits for the node")
        newcomer = await served.connect()
        assert await silent.ended() == b""
        assert await newcomer.is_usable()
        served.node.gate.set()
        assert (await busy.answer()).status == 404


@on_both_loops
async def test_a_connection_too_many_among_busy_ones_is_told_so():
    async with serving(connections_max=2) as served:
        served.node.gate = asyncio.Event()
        busy = [await served.connect() for _ in range(2)]
        for client in busy:
            client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(served.node.asked) == 2, "both wait for the node")
        newcomer = await served.connect()
        answer = await newcomer.answer()
        assert (answer.status, answer.problem, answer.closes) == (503, "too-many-connections", True)
        assert await newcomer.ended() == b""
        served.node.gate.set()
        for client in busy:
            assert (await client.answer()).status == 404


@on_both_loops
async def test_a_client_that_vanishes_while_its_rest_is_drained_leaves_nothing_behind():
    async with serving() as served:
        client = await served.connect()
        client.send(b"PUT /kv/a?ttl=0 HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello")
        assert (await client.answer()).status == 400
        await until(served.is_reading_a_body, "the rest is waited for")
        client.close()
        await until(lambda: not served.api._server.connections, "its handler has ended")


MISBEHAVIOUR = (
    b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /kv/large HTTP/1.1\r\nHost: h\r\n\r\n" * 3,
    b"GET /kv/a HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
    b"GET /kv/a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /livez HTTP/1.0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"PATCH /kv/a?ttl=60 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"PATCH /kv/a?ttl=60 HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
    b"POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + b'[{"op": "get", "key": "a"}]\n',
    b"POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n" + b"[" * 100_000,
    b"GET /scan?limit=1 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    b"PUT /kv/a?ttl=0 HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
    b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000,
    b"hello",
    b"\r\n\r\n",
    b"garbage\r\n\r\n",
)


async def misbehave(address: tuple[str, int], rng: random.Random) -> None:
    """Send whole, cut and torn requests, read some of the answers or none, and go in one way or another."""
    reader, writer = await asyncio.open_connection(*address, limit=4096)
    with contextlib.suppress(OSError, RuntimeError, TimeoutError):
        for _ in range(rng.randint(1, 5)):
            data = rng.choice(MISBEHAVIOUR)
            data = data[: rng.randrange(len(data))] if rng.random() < 0.3 else data
            piece_bytes = rng.choice([len(data) + 1, 1000, 100_000])
            for offset in range(0, len(data), piece_bytes):
                writer.write(data[offset : offset + piece_bytes])
                await asyncio.wait_for(writer.drain(), 1)
            match rng.choice(["read", "go on", "go on", "half-close", "abort"]):
                case "read":
                    await asyncio.wait_for(reader.read(100_000), 0.05)
                case "half-close":
                    writer.write_eof()
                case "abort":
                    writer.transport.abort()
        while rng.random() < 0.9 and await asyncio.wait_for(reader.read(1 << 20), 1):
            pass
    writer.close()


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_random_misbehaviour_leaves_nothing_behind(seed, loop_factory, caplog):
    async def run() -> None:
        rng = random.Random(seed)
        async with serving(replace(QUICK, linger_s=0.3), connections_max=40) as served:
            stored(served, b"large", 900_000)
            for _ in range(4):
                await asyncio.gather(*[misbehave(served.address, random.Random(rng.random())) for _ in range(60)])
            guard = served.api._guard
            queues = (guard.headers, guard.idle, guard.body, guard.body_whole, guard.unread, guard.closing)

            def is_over() -> bool:  # A connection that its client gave up may be accepted late.
                return not (served.api._server.connections or guard.open or any(queues))

            await until(is_over, "every handler has ended, and no line waits for any")
            assert await (await served.connect()).is_usable()

    with structlog.testing.capture_logs() as logs, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
    assert logs == []
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []


# --- life -----------------------------------------------------------------------------------------------


@on_both_loops
async def test_before_the_node_is_there_only_the_process_answers():
    node, metrics = FakeNode(), Metrics()
    config = Settings(id="n1", http="127.0.0.1:0")
    api = HttpApi(config, backend=node, dispatch=node.dispatched.append, now=now, metrics=metrics)
    await api.bind()
    served = Served(api, node, metrics)
    try:
        client = await served.connect()
        assert (await client.ask("GET", "/livez")).status == 200
        assert (await client.ask("GET", "/metrics")).status == 200
        targets = (
            "/readyz",
            "/kv/a",
            "/info",
            "/debug/views",
            "/debug/ring",
            "/debug/timeline",
            "/scan",
            "/cluster/explain/a",
        )
        for target in targets:
            answer = await client.ask("GET", target)
            assert (answer.status, answer.problem, answer.headers["retry-after"]) == (503, "not-ready", "1")
        for method, target in (
            ("PUT", "/kv/a"),
            ("PATCH", "/kv/a?ttl=1"),
            ("POST", "/kv/a?incr=1"),
            ("POST", "/batch"),
        ):
            assert (await client.ask(method, target, b"")).status == 503
        assert node.asked == []
        client.close()
    finally:
        await api.close()


@on_both_loops
async def test_a_taken_port_is_one_line():
    async with serving() as served:
        config = Settings(id="n2", http=served.api.bound_address)
        second = HttpApi(config, backend=served.node, dispatch=print, now=now, metrics=Metrics())
        with pytest.raises(ConfigError) as caught:
            await second.bind()
        assert str(caught.value).startswith(f"--http: cannot listen on {served.api.bound_address}: ")
        assert "\n" not in str(caught.value)
        await second.close()


@on_both_loops
async def test_draining_finishes_what_is_in_flight_and_takes_nothing_new():
    async with serving() as served:
        served.node.gate = asyncio.Event()
        idle, busy, kept = [await served.connect() for _ in range(3)]
        assert await idle.is_usable()
        assert await kept.is_usable()
        busy.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none")
        await until(lambda: served.node.asked, "it waits for the node")
        address = served.address
        served.api.stop_accepting()
        answer = await kept.ask("GET", "/readyz")
        assert (answer.status, answer.closes) == (503, True)
        assert b"draining" in answer.body
        assert await kept.ended() == b""
        draining = asyncio.create_task(served.api.drain(DEADLINE_S))
        assert await idle.ended() == b""
        with pytest.raises(OSError):  # noqa: PT011  # refused on one system, reset on another
            await asyncio.open_connection(*address)
        assert not draining.done()
        served.node.gate.set()
        answer = await busy.answer()
        assert (answer.status, answer.closes) == (201, True)
        await asyncio.wait_for(draining, DEADLINE_S)
        assert served.open() == 0


@on_both_loops
async def test_closing_waits_for_nobody_for_long():
    async with serving(QUICK) as served:
        served.node.gate = asyncio.Event()
        client = await served.connect()
        client.send(b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: served.node.asked, "it waits for the node")
        await asyncio.wait_for(served.api.close(), DEADLINE_S)
        with contextlib.suppress(ConnectionError):
            assert await client.ended() == b""
        assert served.open() == 0
        assert served.closed("stopping") == 1


# --- pages ----------------------------------------------------------------------------------------------


def a_lonely_node() -> Node:
    """A real node without etcd or peers: it owns everything."""
    node = Node(Settings(id="n1", etcd=(), memory=1 << 24), a_member(), random.Random(1), now())
    node.handle(Started(), now())
    for _ in range(1000):
        if not node.readiness():
            break
        node.handle(TimerFired(), now())
    return node


@on_both_loops
async def test_the_pages_show_the_node():
    node = a_lonely_node()
    async with serving(real_node=node) as served:
        client = await served.connect()

        async def page(target: str) -> Any:
            answer = await client.ask("GET", target)
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), target
            assert answer.headers["cache-control"] == "no-store"
            return json.loads(answer.body)

        assert (await client.ask("GET", "/readyz")).status == 200
        assert (await client.ask("GET", "/healthz?whatever")).status == 200
        info = await page("/info")
        assert (info["id"], info["items"], info["bytes"], info["bytes_max"]) == ("n1", 0, 0, 1 << 24)
        assert info["pid"] > 0
        assert info["uptime_s"] >= 0
        assert info["requests"].keys() >= {"get", "put", "delete", "page"}
        assert info["requests"]["page"] >= 2
        views = await page("/debug/views")
        assert (views["node"], views["cluster"], views["authority"]) == ("n1", "dev", "gossip")
        assert views["etcd"] == {"state": "off", "revision": 0, "lease_ttl_s": None, "reason": ""}
        assert views["gossip"] == {"health": 0, "probe_interval_s": 1.0, "event_loop_lag_s": None}
        assert views["ring"] == {"epoch": "0-0", "digest": node.view.digest.hex(), "owners": ["n1"]}
        assert views["disagreements"] == 0
        (member,) = views["members"]
        assert member["id"] == "n1"
        assert member["http"] == "127.0.0.1:1"
        assert member["gossip"]["state"] == "alive"
        assert member["etcd"]["state"] == "off"
        assert member["etcd"]["since_s"] < 60
        assert (member["in_ring"], member["routable"], member["verdict"]) == (True, True, "agree")
        ring = await page("/debug/ring")
        assert ring["owners"] == [{"id": "n1", "share": 1.0, "replica_share": 1.0, "tokens": 1024}]
        assert ring["pending"] == []
        explanation = "/cluster/explain/%7Ba%7D%2F" if b"/cluster/explain/" in served.api._pages else None
        assert await page("/debug/ring?key=%7Ba%7D%2F") == {
            "key": "%7Ba%7D%2F", "slot": 15495, "owners": ["n1"], "explain": explanation,
        }  # fmt: skip
        assert (await client.ask("GET", "/debug/ring?key=%")).status == 400
        assert (await client.ask("GET", "/debug/ring?key=")).status == 404
        events = (await page("/debug/timeline"))["events"]
        assert [event["kind"] for event in events] == [entry.kind for entry in node.timeline]
        assert events[0].keys() == {"at_unix_ms", "kind", "member", "source", "detail", "sequence"}
        last_ms = events[-1]["at_unix_ms"]
        assert (await page(f"/debug/timeline?since={last_ms}"))["events"][-1] == events[-1]
        assert (await page(f"/debug/timeline?since={last_ms + 1}"))["events"] == []
        assert (await client.ask("GET", "/debug/timeline?since=yesterday")).problem == "bad-parameter"


@on_both_loops
async def test_the_api_describes_itself():
    async with serving(replicas=2) as served:
        client = await served.connect()
        for _ in range(2):
            answer = await client.ask("GET", "/openapi.json")
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert json.loads(answer.body) == openapi.document(Settings(id="n1", replicas=2))
        assert (await client.ask("HEAD", "/openapi.json")).headers["content-length"] == str(len(answer.body))


@on_both_loops
async def test_a_node_that_is_not_ready_says_what_is_missing():
    node = Node(Settings(id="n1"), a_member(), random.Random(1), now())
    async with serving(real_node=node) as served:
        client = await served.connect()
        answer = await client.ask("GET", "/readyz")
        assert (answer.status, answer.problem, answer.headers["retry-after"]) == (503, "not-ready", "1")
        assert json.loads(answer.body)["detail"] == "; ".join(node.readiness())
        assert node.readiness()


@on_both_loops
async def test_metrics_count_what_was_answered():
    async with serving() as served:
        client = await served.connect()
        await client.ask("PUT", "/kv/a", b"v")
        await client.ask("GET", "/kv/a")
        await client.ask("GET", "/kv/a?r=0")
        await client.ask("HEAD", "/kv/b")
        await client.ask("OPTIONS", "/kv/a")
        await client.ask("PATCH", "/kv/a?ttl=1")
        await client.ask("POST", "/kv/n?incr=1")
        await client.ask("POST", "/batch", b"[]")
        await client.ask("GET", "/scan")
        await client.ask("GET", "/nowhere")
        answer = await client.ask("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        lines = answer.body.decode().splitlines()
        for line in (
            'zephyr_requests_total{code="201",op="put"} 1.0',
            'zephyr_requests_total{code="200",op="get"} 1.0',
            'zephyr_requests_total{code="400",op="get"} 1.0',
            'zephyr_requests_total{code="404",op="head"} 1.0',
            'zephyr_requests_total{code="204",op="patch"} 1.0',
            'zephyr_requests_total{code="200",op="incr"} 1.0',
            'zephyr_requests_total{code="200",op="batch"} 1.0',
            'zephyr_requests_total{code="200",op="scan"} 1.0',
            'zephyr_requests_total{code="405",op="other"} 1.0',
            'zephyr_requests_total{code="404",op="other"} 1.0',
            'zephyr_request_duration_seconds_count{op="get"} 2.0',
            "zephyr_hits_total 1.0",
            "zephyr_misses_total 1.0",
            "zephyr_connections 1.0",
        ):
            assert line in lines, answer.body.decode()


def test_a_stored_version_is_the_tag_that_clients_see():
    node = FakeNode()
    outcome = node.decide(WriteRequest(b"a", b"v"))
    assert record_version(node.records[b"a"]) == outcome.version
