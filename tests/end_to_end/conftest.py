"""Real clusters for tests: node processes and a real etcd on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from zephyr.etcd.embedded import EmbeddedEtcd, free_port

START_MAX_S = 60.0
"""Longest wait for processes to be ready: importing takes a second, and 20 where disk and cores are shared."""


async def until(condition: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Wait for a condition (a coroutine function); return the seconds it took."""
    began_s = time.monotonic()
    while True:
        if await condition():
            return time.monotonic() - began_s
        assert time.monotonic() - began_s < timeout_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.05)


CLUSTER = f"test-{os.getpid()}"
"""Clusters of other test processes run on this machine, and ports are used again: gossip must not mix them up."""


@dataclass
class NodeProcess:
    """One node: `zephyr node` with its ports and its log."""

    id: str
    http: str
    peer: str
    gossip: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    program: tuple[str, ...] = (sys.executable, "-m", "zephyr")

    def start(self, *arguments: str) -> None:
        command = [*self.program, "node", "--id", self.id, "--http", self.http, "--peer", self.peer]
        command += ["--gossip", self.gossip, *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ZEPHYR_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """End it as `docker kill` would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def terminate(self, timeout_s: float = 15) -> int:
        """Ask it to leave; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self.process = None
        return code


@dataclass
class Cluster:
    """Node processes, their etcd, and a client."""

    session: aiohttp.ClientSession
    nodes: list[NodeProcess]
    etcd: EmbeddedEtcd | None
    arguments: list[str] = field(default_factory=list)

    def start(self, node: NodeProcess) -> None:
        node.start(*self.arguments)

    async def request(self, node: NodeProcess, method: str, path: str, data: bytes | None = None):
        """Return (status, body); an aiohttp.ClientError when there is no answer."""
        url = URL(f"http://{node.http}{path}", encoded=True)
        async with self.session.request(method, url, data=data) as response:
            return response.status, await response.read()

    async def json(self, node: NodeProcess, path: str) -> Any:
        async with self.session.get(f"http://{node.http}{path}") as response:
            return await response.json()

    async def is_ready(self, node: NodeProcess) -> bool:
        try:
            return (await self.request(node, "GET", "/readyz"))[0] == 200
        except aiohttp.ClientError:
            return False

    async def wait_ready(self, *nodes: NodeProcess) -> None:
        for node in nodes or self.nodes:
            await until(lambda node=node: self.is_ready(node), START_MAX_S, f"{node.id} is ready")

    async def rings(self) -> dict[str, tuple[str, ...]]:
        """Owners as each running node sees them."""
        views = {node.id: await self.json(node, "/debug/views") for node in self.nodes if node.process}
        return {node_id: tuple(view["ring"]["owners"]) for node_id, view in views.items()}

    async def wait_rings(self, expected: list[str], timeout_s: float) -> float:
        """Wait until every running node has exactly these owners, and equal digests."""

        async def equal() -> bool:
            try:
                views = [await self.json(node, "/debug/views") for node in self.nodes if node.process]
            except aiohttp.ClientError:  # One that has just been started does not listen yet.
                return False
            digests = {view["ring"]["digest"] for view in views}
            return len(digests) == 1 and all(view["ring"]["owners"] == expected for view in views)

        return await until(equal, timeout_s, f"owners {expected} on all nodes")

    def logs(self) -> str:
        return "\n".join(f"--- {node.id}\n{node.log.read_text()[-3000:]}" for node in self.nodes)


@pytest.fixture
async def start_cluster(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a cluster; all of it is gone after the test."""
    clusters: list[Cluster] = []
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            count: int, *arguments: str, etcd: bool | EmbeddedEtcd = True, wait: bool = True, endpoints: str = ""
        ) -> Cluster:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            embedded = etcd if isinstance(etcd, EmbeddedEtcd) else None
            if etcd is True:
                embedded = EmbeddedEtcd()
                await embedded.start()
                stack.push_async_callback(embedded.close)
            ports = [free_port() for _ in range(3 * count)]
            nodes = [
                NodeProcess(
                    f"n{number + 1}",
                    *(f"127.0.0.1:{port}" for port in ports[3 * number : 3 * number + 3]),
                    log=tmp_path / f"n{number + 1}.log",
                )
                for number in range(count)
            ]
            where = ["--etcd", endpoints or embedded.endpoint] if embedded else ["--etcd", "none"]
            if not embedded:
                where += ["--join", ",".join(node.gossip for node in nodes)]
            where += ["--cluster", CLUSTER]
            cluster = Cluster(session, nodes, embedded, [*where, *arguments])
            clusters.append(cluster)
            for node in nodes:
                cluster.start(node)
            if wait:
                await cluster.wait_ready()
                await cluster.wait_rings(sorted(node.id for node in nodes), START_MAX_S)
            return cluster

        try:
            yield start
        finally:
            for cluster in clusters:
                print(cluster.logs())  # noqa: T201  # shown when the test fails
                for node in cluster.nodes:
                    if node.process:
                        node.kill()
