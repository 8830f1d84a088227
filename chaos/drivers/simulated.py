"""The simulator behind the seam: a cluster in virtual time, in which a minute takes a second.

What scenarios and watchers do is asyncio, here as elsewhere; what is virtual is the event loop's clock. Instead of
waiting for sockets until a timer is due, the loop has the simulation run until then. So one seed is one run, to the
byte, for whoever asks no other clock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from chaos.drivers import REQUEST_MAX_S, Driver, DriverError, Fault
from chaos.simulator import EPOCH_UNIX_MS, SimulatedNode, Simulation
from zephyr.api.debug import views_page
from zephyr.config import Settings
from zephyr.model import Instant, NodeId, Outcome, ReadRequest, WriteRequest

NODES_MAX = 50
VIRTUAL_NODES = 16
"""Few: balance is not what is looked at, and tables are built all the time."""
ETCD_TICK_S = 0.5
"""How often leases are looked through for those that are over, as etcd does."""
ETCD_START_S = 0.5
"""Until an etcd that was started serves."""
NODE_START_S = 1.0
"""Until a process that was started is a node: the interpreter's time."""
POLL_S = 0.002
OPEN_MAX_S = 60.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is a simulation's, and which lets it run where others wait."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        super().__init__(VirtualSelector(simulation))

    def time(self) -> float:
        """Return the virtual second."""
        return self._simulation.now_s


class VirtualSelector(selectors.DefaultSelector):
    """Spends the time until the next timer in the simulation. What is ready for real (a signal) is seen in between."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let virtual time pass, then look without waiting."""
        if timeout is not None and timeout > 0:
            self._simulation.run_until(self._simulation.now_s + timeout)
        # Without any timer nothing more can come to pass in virtual time: then wait for what is real.
        return super().select(None if timeout is None else 0)


class SimulatedDriver(Driver):
    """A cluster of simulated nodes. It has every fault."""

    name = "simulator"
    faults = frozenset(Fault)

    def __init__(self, count: int, seed: int = 0) -> None:
        """`count`: nodes to begin with. `seed`: of everything random."""
        self.node_ids = [f"n{number}" for number in range(1, count + 1)]
        seeds = tuple(f"{node_id}:79" for node_id in self.node_ids)
        settings = replace(Settings(id="unnamed"), virtual_nodes=VIRTUAL_NODES, join=seeds)
        self.simulation = Simulation(seed, settings=settings)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return a loop in this simulation's time."""
        return VirtualLoop(self.simulation)

    async def open(self) -> str:
        """Start all nodes, and wait until they are ready."""
        self.simulation.tick_etcd(ETCD_TICK_S, float("inf"))
        for node_id in self.node_ids:
            self.simulation.start(node_id)
        deadline_s = self.simulation.now_s + OPEN_MAX_S
        while not all([await self.is_ready(node_id) for node_id in self.node_ids]):
            if self.simulation.now_s > deadline_s:
                raise DriverError(f"the simulated nodes were not ready within {OPEN_MAX_S:.0f} s")
            await asyncio.sleep(POLL_S * 10)
        return f"{len(self.node_ids)} simulated nodes, seed {self.simulation.seed}"

    async def close(self, *, is_failed: bool) -> str:
        """Nothing is left of virtual things."""
        return f"the same again: --seed {self.simulation.seed}" if is_failed else ""

    # --- what is done -------------------------------------------------------------------------------------

    async def kill(self, node_id: NodeId) -> None:
        """End a node as kill -9 would."""
        self.simulation.crash(node_id)

    async def restart(self, node_id: NodeId) -> None:
        """Start a node again: empty, with a new epoch."""
        await asyncio.sleep(NODE_START_S)
        self.simulation.start(node_id)

    async def stop(self, node_id: NodeId) -> None:
        """Stop a node; what comes meanwhile waits."""
        self.simulation.stop(node_id)

    async def resume(self, node_id: NodeId) -> None:
        """Let it go on, with all that came."""
        self.simulation.resume(node_id)

    async def disconnect(self, node_id: NodeId) -> None:
        """Cut a node from all others, and from etcd."""
        await self.cut([node_id], [other for other in self.node_ids if other != node_id])
        await self.cut_from_etcd([node_id])

    async def cut(self, ones: Collection[NodeId], others: Collection[NodeId]) -> None:
        """Lose all messages between these and those."""
        await self.cut_one_way(ones, others)
        await self.cut_one_way(others, ones)

    async def cut_one_way(self, senders: Collection[NodeId], receivers: Collection[NodeId]) -> None:
        """Lose all messages from these to those."""
        for sender in senders:
            for receiver in receivers:
                self.simulation.cuts[sender, receiver] = True

    async def block_udp(self, node_ids: Collection[NodeId]) -> None:
        """Lose the datagrams from and to these nodes."""
        self.simulation.udp_blocked.update(dict.fromkeys(node_ids, True))

    async def cut_from_etcd(self, node_ids: Collection[NodeId]) -> None:
        """Have these nodes' calls of etcd go nowhere, and their watches end."""
        self.simulation.cut_from_etcd.update(dict.fromkeys(node_ids, True))
        self.simulation.break_watches()

    async def heal(self) -> None:
        """Lose nothing any more."""
        self.simulation.cuts.clear()
        self.simulation.udp_blocked.clear()
        self.simulation.cut_from_etcd.clear()

    async def kill_etcd(self) -> None:
        """Have etcd away, with all that it knows."""
        self.simulation.etcd_up = False
        self.simulation.break_watches()

    async def wipe_etcd(self) -> None:
        """Have etcd away, and know nothing."""
        await self.kill_etcd()
        self.simulation.etcd.wipe()

    async def restart_etcd(self) -> None:
        """Have etcd back; each lease has its full time again."""
        await asyncio.sleep(ETCD_START_S)
        self.simulation.etcd_up = True
        self.simulation.etcd.restart(self.simulation.now_s)

    async def add(self) -> NodeId:
        """Start one more node."""
        if len(self.node_ids) >= NODES_MAX:
            raise DriverError(f"a simulated cluster has at most {NODES_MAX} nodes")
        node_id = f"n{len(self.node_ids) + 1}"
        self.node_ids.append(node_id)
        self.simulation.start(node_id)
        return node_id

    # --- what is seen -------------------------------------------------------------------------------------

    async def page(self, node_id: NodeId) -> Any | None:
        """Return what the node's own page would show."""
        simulated = self._running(node_id)
        if simulated is None:
            return None
        return views_page(simulated.node, 0.0, Instant(0.0, EPOCH_UNIX_MS), self.simulation.instant(node_id))

    async def is_ready(self, node_id: NodeId) -> bool:
        """Whether the node itself says so."""
        simulated = self._running(node_id)
        return simulated is not None and not simulated.node.readiness()

    async def write(self, node_id: NodeId, key: str, value: bytes) -> str:
        """Write through a node."""
        return await self._ask(node_id, WriteRequest(key.encode(), value))

    async def read(self, node_id: NodeId, key: str) -> str:
        """Read through a node."""
        return await self._ask(node_id, ReadRequest(key.encode()))

    async def _ask(self, node_id: NodeId, request: ReadRequest | WriteRequest) -> str:
        if self._running(node_id) is None:
            return "no answer"
        result = self.simulation.submit(node_id, request)
        deadline_s = self.simulation.now_s + REQUEST_MAX_S
        while not isinstance(result, Outcome):
            if result in self.simulation.outcomes:
                result = self.simulation.outcomes.pop(result)
            elif self.simulation.now_s >= deadline_s:
                return f"no answer within {REQUEST_MAX_S:g} s"
            else:
                await asyncio.sleep(POLL_S)
        return "" if result.failure is None else f"{result.failure.name.lower()}: {result.detail}"

    def _running(self, node_id: NodeId) -> SimulatedNode | None:
        """Return a node that answers; None when it has ended or stands still."""
        simulated = self.simulation.nodes.get(node_id)
        if simulated is None or simulated.stopped or self.simulation.now_s < simulated.resumes_s:
            return None
        return simulated
