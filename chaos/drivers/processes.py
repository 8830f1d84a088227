"""Real nodes and a real etcd as processes of this machine, on loopback or in a network of their own.

`Cluster` is the processes and a client of them, for whoever needs no more: the end-to-end tests. `ProcessDriver` puts
them behind the seam. A process that this one starts dies with it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from chaos.drivers import REQUEST_MAX_S, Driver, DriverError, Fault
from chaos.drivers.http import ask, is_ready, page_of
from chaos.drivers.namespaces import NODES_MAX, Network, ReachableEtcd, can_make_networks
from chaos.watch import NotReachedError
from zephyr.etcd.embedded import EmbeddedEtcd, free_port
from zephyr.model import NodeId
from zephyr.process import NodeProcess

START_MAX_S = 60.0
"""Longest wait for processes to be ready: importing takes a second, and 20 where disk and cores are shared."""
POLL_S = 0.05
LOG_TAIL_CHARS = 3000
NAMESPACED_HTTP, NAMESPACED_PEER, NAMESPACED_GOSSIP = 8080, 7846, 7946
LOOPBACK_FAULTS = frozenset({Fault.KILL, Fault.STOP, Fault.KILL_ETCD, Fault.WIPE_ETCD, Fault.ADD})
"""What needs no network of one's own."""
LOOPBACK_NODES_MAX = 32
"""Three ports each, and two for etcd: this process has a block of a hundred."""
ADDED_MAX = 8
"""Nodes that can be added to a cluster in a network of its own: their namespaces are made with the others."""
NETWORK_FAULTS = frozenset({Fault.DISCONNECT, Fault.CUT, Fault.CUT_ONE_WAY, Fault.BLOCK_UDP, Fault.CUT_FROM_ETCD})


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float, what: str) -> float:
    """Wait for a condition; return the seconds it took. Raises NotReachedError."""
    began_s = time.monotonic()
    while not await condition():
        if time.monotonic() - began_s >= timeout_s:
            raise NotReachedError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - began_s


def on_loopback(number: int, logs: Path) -> NodeProcess:
    """Return a node with ports of its own; nodes are counted from 0."""
    http, peer, gossip = (f"127.0.0.1:{free_port()}" for _ in range(3))
    return NodeProcess(f"n{number + 1}", http, peer, gossip, log=logs / f"n{number + 1}.log")


def namespaced(network: Network, number: int, logs: Path) -> NodeProcess:
    """Return a node in a namespace of its own; nodes are counted from 0."""
    ports = (NAMESPACED_HTTP, NAMESPACED_PEER, NAMESPACED_GOSSIP)
    http, peer, gossip = (f"{network.host(number)}:{port}" for port in ports)
    program = ("ip", "netns", "exec", network.namespaces[number], sys.executable, "-m", "zephyr")
    return NodeProcess(f"n{number + 1}", http, peer, gossip, log=logs / f"n{number + 1}.log", program=program)


@dataclass
class Cluster:
    """Node processes, their etcd, and a client."""

    session: aiohttp.ClientSession
    nodes: list[NodeProcess]
    etcd: EmbeddedEtcd | None
    arguments: list[str] = field(default_factory=list)
    """Of every node's command line, after its id and addresses."""

    def start(self, node: NodeProcess) -> None:
        """Start one of the nodes."""
        node.start(*self.arguments)

    async def request(self, node: NodeProcess, method: str, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        """Return (status, body); an aiohttp.ClientError when there is no answer."""
        url = URL(f"http://{node.http}{path}", encoded=True)
        async with self.session.request(method, url, data=data) as response:
            return response.status, await response.read()

    async def json(self, node: NodeProcess, path: str) -> Any:
        """Return a JSON page; an aiohttp.ClientError when there is no answer."""
        async with self.session.get(f"http://{node.http}{path}") as response:
            return await response.json()

    async def is_ready(self, node: NodeProcess) -> bool:
        """Whether a node answers that it is."""
        try:
            return (await self.request(node, "GET", "/readyz"))[0] == 200
        except aiohttp.ClientError:
            return False

    async def wait_ready(self, *nodes: NodeProcess) -> None:
        """Wait for these nodes, or for all."""
        for node in nodes or self.nodes:
            await until(lambda node=node: self.is_ready(node), START_MAX_S, f"{node.id} is ready")  # type: ignore[misc]

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
        """Return the ends of all logs."""
        return "\n".join(f"--- {node.id}\n{node.log.read_text()[-LOG_TAIL_CHARS:]}" for node in self.nodes)


class ProcessDriver(Driver):
    """A cluster of processes of this machine, made for the purpose and gone with it."""

    name = "process"
    faults_possible = LOOPBACK_FAULTS | NETWORK_FAULTS
    """Of one that may make networks; `faults` are those of this process."""

    def __init__(self, count: int, needs: Collection[Fault]) -> None:
        """`count`: nodes to begin with. `needs`: a network of its own is made only where these need one."""
        self.faults = self.faults_possible if can_make_networks() else LOOPBACK_FAULTS
        self.node_ids = [f"n{number}" for number in range(1, count + 1)]
        self._has_network = not NETWORK_FAULTS.isdisjoint(needs)
        self._adds = Fault.ADD in needs
        self._network: Network | None = None
        self._directory: Path | None = None
        self._cluster: Cluster | None = None

    async def open(self) -> str:
        """Start etcd, then all nodes, and wait until they are ready and agree."""
        if self._has_network:
            spare = ADDED_MAX if self._adds else 0
            if len(self.node_ids) + spare > NODES_MAX:
                raise DriverError(f"a network has at most {NODES_MAX} nodes, {spare} of them to be added")
            self._network = Network(len(self.node_ids) + spare)
            self._network.make()
        self._directory = Path(tempfile.mkdtemp(prefix="zephyr-chaos-"))
        timeout = aiohttp.ClientTimeout(total=REQUEST_MAX_S)
        self._cluster = Cluster(aiohttp.ClientSession(timeout=timeout), [], None)
        cluster = self._cluster
        cluster.etcd = EmbeddedEtcd() if self._network is None else ReachableEtcd(self._network)
        await cluster.etcd.start()
        etcd = cluster.etcd
        endpoint = etcd.network_endpoint if isinstance(etcd, ReachableEtcd) else etcd.endpoint
        # Other clusters run on this machine, and ports are used again: gossip must not mix them up.
        cluster.arguments = ["--etcd", endpoint, "--cluster", f"chaos-{os.getpid()}"]
        for number in range(len(self.node_ids)):
            cluster.nodes.append(self._node(number))
            cluster.start(cluster.nodes[number])
        await cluster.wait_ready()
        await cluster.wait_rings(sorted(self.node_ids), START_MAX_S)
        where = "on loopback" if self._network is None else "each in a network namespace"
        return f"{len(self.node_ids)} node processes {where}, and etcd"

    def _node(self, number: int) -> NodeProcess:
        assert self._directory is not None
        if self._network is None:
            if number >= LOOPBACK_NODES_MAX:
                raise DriverError(f"there are ports for {LOOPBACK_NODES_MAX} nodes on loopback")
            return on_loopback(number, self._directory)
        return namespaced(self._network, number, self._directory)

    async def close(self, *, is_failed: bool) -> str:
        """Kill all processes and remove the network; keep the logs only of what failed."""
        if self._cluster is not None:
            for node in self._cluster.nodes:
                if node.process is not None:
                    node.kill()
            if self._cluster.etcd is not None:
                await self._cluster.etcd.close()
            await self._cluster.session.close()
        if self._network is not None:
            self._network.close()
        if self._directory is None:
            return ""
        if is_failed and self._cluster is not None and self._cluster.nodes:
            return f"the nodes' logs: {self._directory}"
        shutil.rmtree(self._directory, ignore_errors=True)
        return ""

    # --- what is done -------------------------------------------------------------------------------------

    async def kill(self, node_id: NodeId) -> None:
        """End it by SIGKILL."""
        self._process(node_id).kill()

    async def restart(self, node_id: NodeId) -> None:
        """Start its process again."""
        self._running.start(self._process(node_id))

    async def stop(self, node_id: NodeId) -> None:
        """SIGSTOP."""
        self._process(node_id).signal(signal.SIGSTOP)

    async def resume(self, node_id: NodeId) -> None:
        """SIGCONT."""
        self._process(node_id).signal(signal.SIGCONT)

    async def disconnect(self, node_id: NodeId) -> None:
        """Lose everything from and to a node at the router, but for what we ask it ourselves."""
        await self.cut([node_id], [other for other in self.node_ids if other != node_id])
        await self.cut_from_etcd([node_id])

    async def cut(self, ones: Collection[NodeId], others: Collection[NodeId]) -> None:
        """Lose everything between these and those at the router."""
        self._router(Fault.CUT).part(self._numbers(ones), self._numbers(others))

    async def cut_one_way(self, senders: Collection[NodeId], receivers: Collection[NodeId]) -> None:
        """Lose everything from these to those at the router."""
        self._router(Fault.CUT_ONE_WAY).part_one_way(self._numbers(senders), self._numbers(receivers))

    async def block_udp(self, node_ids: Collection[NodeId]) -> None:
        """Lose their datagrams at the router."""
        for number in self._numbers(node_ids):
            self._router(Fault.BLOCK_UDP).drop_udp(number)

    async def cut_from_etcd(self, node_ids: Collection[NodeId]) -> None:
        """Lose everything between them and etcd at the router."""
        etcd = self._running_etcd
        assert isinstance(etcd, ReachableEtcd)
        for number in self._numbers(node_ids):
            self._router(Fault.CUT_FROM_ETCD).cut_from_here(number, etcd.port)

    async def heal(self) -> None:
        """Lose nothing any more."""
        if self._network is not None:
            self._network.heal()

    async def kill_etcd(self) -> None:
        """End it by SIGKILL."""
        await self._running_etcd.kill()

    async def wipe_etcd(self) -> None:
        """End it by SIGKILL, and remove its data."""
        await self._running_etcd.wipe()

    async def restart_etcd(self) -> None:
        """Start its process again; returns when it serves."""
        await self._running_etcd.start()

    async def add(self) -> NodeId:
        """Start one more process."""
        number = len(self.node_ids)
        if self._network is not None and number >= len(self._network.namespaces):
            raise DriverError(f"{len(self._network.namespaces)} nodes have been started: the network has no more")
        node = self._node(number)
        self._running.nodes.append(node)
        self.node_ids.append(node.id)
        self._running.start(node)
        return node.id

    # --- what is seen -------------------------------------------------------------------------------------

    async def page(self, node_id: NodeId) -> Any | None:
        """Return what it shows."""
        url = f"http://{self._process(node_id).http}"
        return await page_of(self._running.session, url)

    async def is_ready(self, node_id: NodeId) -> bool:
        """Whether it answers that it is."""
        return await is_ready(self._running.session, f"http://{self._process(node_id).http}")

    async def write(self, node_id: NodeId, key: str, value: bytes) -> str:
        """PUT."""
        return await ask(self._running.session, f"http://{self._process(node_id).http}", "PUT", key, value)

    async def read(self, node_id: NodeId, key: str) -> str:
        """GET."""
        return await ask(self._running.session, f"http://{self._process(node_id).http}", "GET", key)

    @property
    def _running(self) -> Cluster:
        assert self._cluster is not None, "it is not open"
        return self._cluster

    @property
    def _running_etcd(self) -> EmbeddedEtcd:
        assert self._running.etcd is not None, "it is not open"
        return self._running.etcd

    def _process(self, node_id: NodeId) -> NodeProcess:
        return self._running.nodes[self.node_ids.index(node_id)]

    def _numbers(self, node_ids: Collection[NodeId]) -> list[int]:
        return [self.node_ids.index(node_id) for node_id in node_ids]

    def _router(self, fault: Fault) -> Network:
        if self._network is None:
            raise self._lacks(fault)
        return self._network
