"""Where the CPU time of a request goes, part by part: `python -m bench.path`.

The request path in one process, without sockets: bytes go into a connection's `data_received`, the answer comes
out of a transport that keeps nothing. So what the kernel and the load generator cost is left out, and CPU time
hardly moves when the machine is busy. Each part is timed by itself, in interleaved rounds of which the lowest
counts; what connects them is what is left of the whole. The bare handler is that of `bench.servers`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import uvloop
from aiohttp import web

from bench.keys import VALUE_BYTES, key_of, value_of
from bench.servers import bare_handler
from zephyr.api.http import HttpApi
from zephyr.config import Settings
from zephyr.model import ReadRequest, WriteRequest
from zephyr.ring.ring import key_slot
from zephyr.runtime import Runtime, now
from zephyr.store.record import pack_record

KEYS = 10_000
REQUESTS = 10_000
CONNECTIONS = 50
BATCH = 100
ROUNDS = 15
PARTS = ("parse", "connection", "request read", "node", "store", "answer written", "whole", "bare handler")


class Transport(asyncio.Transport):
    """Takes answers and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take an answer, or a part of one."""
        self.answers += 1
        self.last = bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        """Take an answer in parts."""
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002  # asyncio's signature
        """Know nothing."""
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Have no buffer."""

    def close(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""


def _request(method: str, key: bytes) -> bytes:
    """Write a request as wrk does."""
    if method == "GET":
        return b"GET /kv/%b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n" % key
    head = b"PUT /kv/%b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: %d\r\n\r\n" % (key, VALUE_BYTES)
    return head + b"v" * VALUE_BYTES


class Driver:
    """A node and a bare handler, driven without sockets."""

    def __init__(self) -> None:
        """Build both, filled alike. A loop is running."""
        self.runtime = Runtime(Settings(id="a", http="127.0.0.1:0", etcd=(), replicas=1))
        self.keys = [key_of(number) for number in range(KEYS)]
        self.texts = {method: [_request(method, key) for key in self.keys] for method in ("GET", "PUT")}

    async def start(self) -> None:
        """Run the node, and make connections to it and to the bare handler."""
        self._running = asyncio.create_task(self.runtime.run())
        while not hasattr(self.runtime, "node") or self.runtime.node.readiness():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.02)
        self.node = self.runtime.node
        self.api: HttpApi = self.runtime.api
        instant = now()
        for number, key in enumerate(self.keys):
            record = pack_record(self.node.clock.stamp(instant.unix_ms), value_of(number, VALUE_BYTES))
            self.node.store.apply(key_slot(key), key, record, instant.unix_ms)
        server = self.api._server  # noqa: SLF001  # the parts are timed by themselves
        assert server is not None
        bare = web.Server(bare_handler(KEYS), access_log=None)
        self.ours = self._connect(server)
        self.bare = self._connect(bare)
        self.parser = self.ours[0][0]._parser  # noqa: SLF001
        await asyncio.sleep(0.05)

    def _connect(self, server: Callable[[], Any]) -> list[tuple[Any, Transport]]:
        connections = []
        for _ in range(CONNECTIONS):
            protocol, transport = server(), Transport()
            protocol.connection_made(transport)
            connections.append((protocol, transport))
        return connections

    async def whole(self, method: str, connections: list[tuple[Any, Transport]]) -> float:
        """Send a request on each connection, turn the loop until all are answered, and again."""
        texts = self.texts[method]
        answered = sum(transport.answers for _, transport in connections)
        began_ns = time.thread_time_ns()
        for first in range(0, REQUESTS, CONNECTIONS):
            batch = texts[first : first + CONNECTIONS]
            wanted = [transport.answers + 1 for _, transport in connections]
            for text, (protocol, _) in zip(batch, connections, strict=True):
                protocol.data_received(text)
            while any(pair[1].answers < count for pair, count in zip(connections, wanted, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0)
        spent_ns = time.thread_time_ns() - began_ns
        assert sum(transport.answers for _, transport in connections) - answered == REQUESTS
        assert connections[0][1].last.startswith(b"HTTP/1.1 20"), connections[0][1].last
        return spent_ns / REQUESTS / 1000

    def parse(self, method: str, texts: list[bytes]) -> None:
        """Let a connection's parser read requests."""
        del method
        parser = self.parser
        for text in texts:
            parser.feed_data(text)
            parser.message_consumed()

    def handle(self, method: str, requests: list[Any]) -> None:
        """From a parsed request to the bytes of its answer."""
        del method
        handle, connection = self.api._handle, self.ours[0][0]  # noqa: SLF001
        for message, payload in requests:
            try:
                handle(message, payload, connection).send(None)
            except StopIteration:  # It never waits: the key is local and the value is here.
                continue

    def submit(self, method: str, keys: list[bytes]) -> None:
        """From an understood request to its outcome."""
        submit, value = self.runtime.submit, b"v" * VALUE_BYTES
        for key in keys:
            submit(ReadRequest(key) if method == "GET" else WriteRequest(key, value))

    def store(self, method: str, entries: list[tuple[int, bytes, bytes]]) -> None:
        """Store alone: slots known, records packed."""
        store, unix_ms = self.node.store, now().unix_ms
        if method == "GET":
            for slot, key, _ in entries:
                store.get(slot, key, unix_ms)
        else:
            for slot, key, record in entries:
                store.apply(slot, key, record, unix_ms)

    def answer(self, method: str, answered: list[Any]) -> None:
        """From an outcome to the bytes of its answer."""
        api, contract, unix_ms = self.api, self.api._contract, now().unix_ms  # noqa: SLF001
        connection = self.ours[0][0]
        for (message, payload), outcome in answered:
            if method == "GET":
                response = contract.outcome_of_read(outcome, unix_ms)
            else:
                response = contract.outcome_of_write(method, outcome)
            api._head(response, message, api._ending(message, payload, connection))  # noqa: SLF001

    def _requests(self, method: str, first: int) -> list[Any]:
        requests = []
        for text in self.texts[method][first : first + BATCH]:
            requests.append(self.parser.feed_data(text)[0][0])
            self.parser.message_consumed()
        return requests

    def _inputs(self, part: str, method: str, first: int) -> list[Any]:
        """Prepare what a part works on: few at a time, so that they are as near as they are in life."""
        keys = self.keys[first : first + BATCH]
        if part == "parse":
            return self.texts[method][first : first + BATCH]
        if part == "submit":
            return keys
        if part == "handle":
            return self._requests(method, first)
        if part == "store":
            stamp, unix_ms, value = self.node.clock.stamp, now().unix_ms, b"v" * VALUE_BYTES
            return [(key_slot(key), key, pack_record(stamp(unix_ms), value)) for key in keys]
        submit, value = self.runtime.submit, b"v" * VALUE_BYTES
        outcomes = [submit(ReadRequest(key) if method == "GET" else WriteRequest(key, value)) for key in keys]
        return list(zip(self._requests(method, first), outcomes, strict=True))

    def part(self, part: str, method: str) -> float:
        """Time a part by itself."""
        work: Callable[[str, list[Any]], None] = getattr(self, part)
        spent_ns = 0
        for first in range(0, REQUESTS, BATCH):
            inputs = self._inputs(part, method, first)
            began_ns = time.thread_time_ns()
            work(method, inputs)
            spent_ns += time.thread_time_ns() - began_ns
        return spent_ns / REQUESTS / 1000

    async def figures(self, method: str) -> dict[str, float]:
        """Time every part once."""
        return {
            "whole": await self.whole(method, self.ours),
            "bare handler": await self.whole(method, self.bare),
            **{part: self.part(part, method) for part in ("parse", "handle", "submit", "store", "answer")},
        }


async def _measure(rounds: int) -> dict[str, dict[str, float]]:
    driver = Driver()
    await driver.start()
    found: dict[str, list[dict[str, float]]] = {"GET": [], "PUT": []}
    for _ in range(rounds):
        for method, figures in found.items():
            figures.append(await driver.figures(method))
    parts = {}
    for method, figures in found.items():
        least = {name: min(item[name] for item in figures) for name in figures[0]}
        parts[method] = {
            "parse": least["parse"],
            "connection": least["whole"] - least["parse"] - least["handle"],
            "request read": least["handle"] - least["submit"] - least["answer"],
            "node": least["submit"] - least["store"],
            "store": least["store"],
            "answer written": least["answer"],
            "whole": least["whole"],
            "bare handler": least["bare handler"],
        }
    return parts


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Keep the figures here too.")
def main(rounds: int, json_path: Path | None) -> None:
    """Show CPU microseconds a request, by part."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        parts = runner.run(_measure(rounds))
    for name in PARTS:
        print(f"{name:16}{parts['GET'][name]:8.2f}{parts['PUT'][name]:8.2f}")
    if json_path is not None:
        json_path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
