"""The seam between what is done to a cluster and how it is done: one interface, three drivers behind it.

    simulated     the simulator: virtual time, every fault
    processes     real nodes and a real etcd on this machine; what needs a network of its own needs root
    containers    the Compose cluster, by plain Docker commands

A scenario (`chaos.fault_scenarios`) is written once, against `Driver`, and runs on each driver that has the faults it
names. A driver decides nothing about a scenario: it does what it is told, shows what nodes show, and undoes all of it
when it is closed, however the scenario ended. Time is that of the event loop, which may be virtual: scenarios
and whatever watches them ask `asyncio` for it, and for nothing else.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import signal
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from typing import Any, ClassVar

from zephyr.errors import ZephyrError
from zephyr.model import NodeId

REQUEST_MAX_S = 5.0
"""Longest wait for an answer to a client's request: more than a node's own deadline of 2 s."""
LOOK_MAX_S = 1.0
"""Longest wait for a node's page: one that stands still gives none."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a run, which then undoes what it did."""


class Fault(StrEnum):
    """What can be done to a cluster. Not every driver can do everything."""

    KILL = "kill"
    STOP = "stop"
    DISCONNECT = "disconnect"
    CUT = "cut"
    CUT_ONE_WAY = "cut-one-way"
    BLOCK_UDP = "block-udp"
    CUT_FROM_ETCD = "cut-from-etcd"
    KILL_ETCD = "kill-etcd"
    WIPE_ETCD = "wipe-etcd"
    ADD = "add"


class DriverError(ZephyrError):
    """A cluster cannot be had, or does not do what it is told. Its text is one line."""


class ClusterUnavailableError(DriverError):
    """There is no cluster to do anything to: it does not start, or cannot be reached."""


class FaultUnavailableError(ZephyrError):
    """A driver does not have a fault. Nothing was done."""


@contextlib.contextmanager
def commands_spared() -> Iterator[None]:
    """Start commands within it that no Ctrl-C for us ends.

    A terminal sends it to the whole process group, and a command is in it until it has a session of its own: who is
    impatient and presses twice would kill the very command that undoes something. So it inherits signals that are held.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)


class Driver(abc.ABC):
    """A cluster of nodes with one etcd.

    Each fault stands until its counterpart ends it: `kill` and `restart`, `stop` and `resume`, `kill_etcd` or
    `wipe_etcd` and `restart_etcd`; `heal` ends whatever was done to the network. They return when it is done, not when
    anybody has noticed. They raise DriverError when it could not be done, FaultUnavailableError where this driver never
    can.
    """

    name: ClassVar[str]
    faults: frozenset[Fault]
    """What this driver can do, here and now."""
    node_ids: list[NodeId]
    """All nodes, whether they run or not, in the order in which they came. Known once it is open."""

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that this cluster's time is that of."""
        return asyncio.new_event_loop()

    @abc.abstractmethod
    async def open(self) -> str:
        """Have a cluster; return in a few words which. Raises DriverError. `close` is called however this ends."""

    @abc.abstractmethod
    async def close(self, *, is_failed: bool) -> str:
        """Undo everything. What was there before is as it was; what this driver made is gone.

        `is_failed`: somebody will ask why. Return where to look, or an empty text.
        """

    # --- what is done -------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def kill(self, node_id: NodeId) -> None:
        """End a node as `kill -9` does."""

    @abc.abstractmethod
    async def restart(self, node_id: NodeId) -> None:
        """Start a node again that was killed: the same id, a new life."""

    @abc.abstractmethod
    async def stop(self, node_id: NodeId) -> None:
        """Have a node stand still, as SIGSTOP does: it keeps its connections and says nothing."""

    @abc.abstractmethod
    async def resume(self, node_id: NodeId) -> None:
        """Let a node go on that was stopped."""

    @abc.abstractmethod
    async def disconnect(self, node_id: NodeId) -> None:
        """Lose everything from and to a node: other nodes, and etcd."""

    async def cut(self, ones: Collection[NodeId], others: Collection[NodeId]) -> None:
        """Lose everything between these nodes and those, both ways."""
        raise self._lacks(Fault.CUT, ones, others)

    async def cut_one_way(self, senders: Collection[NodeId], receivers: Collection[NodeId]) -> None:
        """Lose everything that these nodes send to those."""
        raise self._lacks(Fault.CUT_ONE_WAY, senders, receivers)

    async def block_udp(self, node_ids: Collection[NodeId]) -> None:
        """Lose the datagrams from and to these nodes; TCP passes."""
        raise self._lacks(Fault.BLOCK_UDP, node_ids)

    async def cut_from_etcd(self, node_ids: Collection[NodeId]) -> None:
        """Lose everything between these nodes and etcd."""
        raise self._lacks(Fault.CUT_FROM_ETCD, node_ids)

    @abc.abstractmethod
    async def heal(self) -> None:
        """End all that was done to the network."""

    @abc.abstractmethod
    async def kill_etcd(self) -> None:
        """End etcd as `kill -9` does; its data stay."""

    @abc.abstractmethod
    async def wipe_etcd(self) -> None:
        """End etcd and lose all that it knew: it begins at revision 1 when it is started again."""

    @abc.abstractmethod
    async def restart_etcd(self) -> None:
        """Start etcd again."""

    async def add(self) -> NodeId:
        """Start one more node; return its id."""
        raise self._lacks(Fault.ADD)

    # --- what is seen -------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def page(self, node_id: NodeId) -> Any | None:
        """Return what a node shows at `/debug/views`, or None when it does not answer."""

    @abc.abstractmethod
    async def is_ready(self, node_id: NodeId) -> bool:
        """Whether a node answers `/readyz` with yes: it is in the ring and has all that it should hold."""

    @abc.abstractmethod
    async def write(self, node_id: NodeId, key: str, value: bytes) -> str:
        """Write through a node. Return what went wrong, or an empty text."""

    @abc.abstractmethod
    async def read(self, node_id: NodeId, key: str) -> str:
        """Read through a node; a missing key is an answer, too. Return what went wrong, or an empty text."""

    def _lacks(self, fault: Fault, *nodes: Sequence[NodeId] | Collection[NodeId]) -> FaultUnavailableError:
        whom = " and ".join(",".join(some) for some in nodes)
        return FaultUnavailableError(f"the driver {self.name} has no {fault}" + (f" (for {whom})" if whom else ""))
