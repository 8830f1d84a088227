"""Real clusters for tests: node processes and a real etcd on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
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


SUBNETS = 256
NAMESPACED_HTTP, NAMESPACED_PEER, NAMESPACED_GOSSIP = 8080, 7846, 7946


class Network:
    """A network namespace for each node, and a router between them, etcd and the test, in one of its own.

    The router drops what is to be lost: where the sender dropped it, its `sendto` would fail, and it would know. Each
    network has one of the blocks 10.214.x.0/24; the host's end of it is where etcd listens besides.
    """

    def __init__(self, count: int) -> None:
        self._name = f"zephyr-test-{os.getpid()}"
        self._link = f"zt{os.getpid()}"
        self._router = f"{self._name}-r"
        self.namespaces = [f"{self._name}-{number + 1}" for number in range(count)]
        self._prefix = ""

    @property
    def here(self) -> str:
        """The address of the test's own end, where nodes reach etcd."""
        return f"{self._prefix}.1"

    def host(self, number: int) -> str:
        """Return a node's address; nodes are counted from 0."""
        return f"{self._prefix}.{4 * number + 6}"

    def make(self) -> None:
        run("ip", "netns", "add", self._router)
        self.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("ip", "link", "add", self._link, "type", "veth", "peer", "up0", "netns", self._router)
        run("ip", "link", "set", self._link, "up")
        self._prefix = self._claim_prefix()
        run("ip", "address", "add", f"{self.here}/30", "dev", self._link)
        self.inside("ip", "address", "add", f"{self._prefix}.2/30", "dev", "up0")
        self.inside("ip", "link", "set", "up0", "up")
        for number, node in enumerate(self.namespaces):
            gateway = f"{self._prefix}.{4 * number + 5}"
            run("ip", "netns", "add", node)
            run("ip", "link", "add", "eth0", "netns", node, "type", "veth", "peer", f"v{number}", "netns", self._router)
            self.inside("ip", "address", "add", f"{gateway}/30", "dev", f"v{number}")
            self.inside("ip", "link", "set", f"v{number}", "up")
            run("ip", "-n", node, "address", "add", f"{self.host(number)}/30", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", node, "link", "set", link, "up")
            run("ip", "-n", node, "route", "add", "default", "via", gateway)

    def _claim_prefix(self) -> str:
        """Take a block that no other test has: the route to it is the claim, and goes with the link."""
        for number in range(SUBNETS):
            prefix = f"10.214.{(os.getpid() + number) % SUBNETS}"
            route = ["ip", "route", "add", f"{prefix}.0/24", "via", f"{prefix}.2", "dev", self._link, "onlink"]
            if subprocess.run(route, check=False, capture_output=True).returncode == 0:
                return prefix
        pytest.fail(f"all {SUBNETS} blocks of addresses are taken")

    def inside(self, *command: str) -> None:
        """Run a command at the router."""
        run("ip", "netns", "exec", self._router, *command)

    def drop(self, *match: str) -> None:
        """Lose what iptables matches so, on the way."""
        self.inside("iptables", "-A", "FORWARD", *match, "-j", "DROP")

    def drop_udp(self, number: int | None = None) -> None:
        """Lose the datagrams from and to a node; of all nodes when none is named."""
        sides = ((),) if number is None else (("-s", self.host(number)), ("-d", self.host(number)))
        for side in sides:
            self.drop("-p", "udp", *side)

    def part(self, ones: Sequence[int], others: Sequence[int]) -> None:
        """Lose everything between these nodes and those."""
        for one in ones:
            for other in others:
                self.drop("-s", self.host(one), "-d", self.host(other))
                self.drop("-s", self.host(other), "-d", self.host(one))

    def cut_from_here(self, number: int, port: int) -> None:
        """Lose everything between a node and a port of the test's own end."""
        self.drop("-p", "tcp", "-s", self.host(number), "--dport", str(port))
        self.drop("-p", "tcp", "-d", self.host(number), "--sport", str(port))

    def heal(self) -> None:
        self.inside("iptables", "-F", "FORWARD")

    def close(self) -> None:
        """Remove the namespaces and the link; what is inside them goes with them."""
        for command in (
            ["ip", "link", "delete", self._link],
            *(["ip", "netns", "delete", namespace] for namespace in [*self.namespaces, self._router]),
        ):
            subprocess.run(command, check=False, capture_output=True)  # It may not have come to be.


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class ReachableEtcd(EmbeddedEtcd):
    """An etcd that is reached from a network's namespaces, too."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.port = int(self.endpoint.rpartition(":")[2])
        self.network_endpoint = f"{network.here}:{self.port}"
        self._arguments = ("--listen-client-urls", f"http://{self.endpoint},http://{self.network_endpoint}")


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
def make_network() -> Iterator[Callable[[int], Network]]:
    """Return a function that makes a network for so many nodes; skips the test where that is not allowed."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "iptables", "sysctl")):
        pytest.skip("NETWORK NAMESPACES NEED root, iproute2, iptables and sysctl: this row was not tried")
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


def on_loopback(number: int, logs: Path) -> NodeProcess:
    """Return a node with ports of its own; nodes are counted from 0."""
    addresses = (f"127.0.0.1:{free_port()}" for _ in range(3))
    return NodeProcess(f"n{number + 1}", *addresses, log=logs / f"n{number + 1}.log")


def namespaced(network: Network, number: int, logs: Path) -> NodeProcess:
    """Return a node in a namespace of its own."""
    addresses = (f"{network.host(number)}:{port}" for port in (NAMESPACED_HTTP, NAMESPACED_PEER, NAMESPACED_GOSSIP))
    program = ("ip", "netns", "exec", network.namespaces[number], sys.executable, "-m", "zephyr")
    return NodeProcess(f"n{number + 1}", *addresses, log=logs / f"n{number + 1}.log", program=program)


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
