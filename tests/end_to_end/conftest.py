"""Real clusters for tests: node processes and a real etcd on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chaos.drivers.namespaces import Network, ReachableEtcd, can_make_networks
from chaos.drivers.processes import START_MAX_S, Cluster, NodeProcess, namespaced, on_loopback
from zephyr.etcd.embedded import EmbeddedEtcd

CLUSTER = f"test-{os.getpid()}"
"""Clusters of other test processes run on this machine, and ports are used again: gossip must not mix them up."""


@pytest.fixture
def new_node(tmp_path: Path) -> Callable[[int], NodeProcess]:
    """Return a function that makes one more node on loopback, which is not started; they are counted from 0."""
    return lambda number: on_loopback(number, tmp_path)


@pytest.fixture(scope="module")
def lone_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """Start a node without etcd or peers, ready to be asked, which serves all tests of a module."""
    node = on_loopback(0, tmp_path_factory.mktemp("lone"))
    node.start("--etcd", "none", "--cluster", CLUSTER)
    try:
        give_up_s = time.monotonic() + START_MAX_S
        while not is_ready_now(node):
            assert time.monotonic() < give_up_s, f"not ready in time: {node.log.read_text()}"
            time.sleep(0.05)
        yield node
    finally:
        print(node.log.read_text()[-3000:])  # noqa: T201  # shown when a test fails
        node.kill()


def is_ready_now(node: NodeProcess) -> bool:
    """Ask once, and wait for nothing else."""
    connection = http.client.HTTPConnection(node.http, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture
def skip_without_networks() -> Callable[[], None]:
    """Return a function that skips the test where network namespaces cannot be made."""

    def skip() -> None:
        if not can_make_networks():
            pytest.skip("NETWORK NAMESPACES NEED root, iproute2, iptables and sysctl: this row was not tried")

    return skip


@pytest.fixture
def make_network(skip_without_networks: Callable[[], None]) -> Iterator[Callable[[int], Network]]:
    """Return a function that makes a network for so many nodes; skips the test where that is not allowed."""
    skip_without_networks()
    with contextlib.ExitStack() as stack:

        def make(count: int) -> Network:
            network = Network(count)
            stack.callback(network.close)
            network.make()
            return network

        yield make


class Load:
    """A light load through some nodes, counting what fails."""

    def __init__(self, cluster: Cluster, nodes: Sequence[NodeProcess]) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.done = 0
        self.failed: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        rng = random.Random(2)
        while not stop.is_set():
            node, number = rng.choice(self.nodes), rng.randrange(200)
            method, data = ("PUT", b"%d" % number) if rng.random() < 0.5 else ("GET", None)
            try:
                status, body = await self.cluster.request(node, method, f"/kv/load-{number}", data)
                if status not in (200, 201, 204, 404):
                    self.failed.append(f"{method} through {node.id}: {status} {body[:200]!r}")
            except aiohttp.ClientError as error:
                self.failed.append(f"{method} through {node.id}: {error!r}")
            self.done += 1
            await asyncio.sleep(0.005)


@pytest.fixture
def under_load() -> Callable[..., Awaitable[tuple[Any, Load]]]:
    """Return a function that runs `work` beside a load, and returns what it returned and the load."""

    async def under_load(
        cluster: Cluster, nodes: Sequence[NodeProcess], work: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, Load]:
        load, stop = Load(cluster, nodes), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(stop))
            try:
                result = await work()
            finally:
                stop.set()
        return result, load

    return under_load


@pytest.fixture
async def start_cluster(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a cluster; all of it is gone after the test."""
    clusters: list[Cluster] = []
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            count: int,
            *arguments: str,
            etcd: bool | EmbeddedEtcd = True,
            wait: bool = True,
            endpoints: str = "",
            network: Network | None = None,
        ) -> Cluster:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            embedded = etcd if isinstance(etcd, EmbeddedEtcd) else None
            if etcd is True:
                embedded = EmbeddedEtcd() if network is None else ReachableEtcd(network)
                await embedded.start()
                stack.push_async_callback(embedded.close)
            if isinstance(embedded, ReachableEtcd):
                endpoints = embedded.network_endpoint
            nodes = [
                on_loopback(number, tmp_path) if network is None else namespaced(network, number, tmp_path)
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
