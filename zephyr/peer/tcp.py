"""Every connection of a node to and from its peers, behind one object.

Decides which links are kept open in a large cluster, and in what order everything opens and closes. Never
decides whom to ask, what an answer means or whether a member lives: that is the core's, which hears of
connections and calls through the callbacks of a `PeerHost`.

A node holds one link (`zephyr.peer.link`) to each member it is told of, for its own requests; it answers
those of the others on the connections that they make (`zephyr.peer.connection`).

Invariants:
- Each `send` ends in exactly one `replied` or `failed`, or in silence after its own deadline.
- No callback runs inside a call of a public method.
- Every queue is bounded for each connection, so a slow or dead peer costs its own requests only.
- Closing takes a bounded time, and leaves no connection, task or timer behind.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import Iterable
from typing import Any, cast

import mmh3

from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError
from zephyr.events import SendPeer
from zephyr.model import Address, Member, NodeId
from zephyr.peer.connection import (
    SERVED_CONNECTIONS_MAX,
    PeerCounters,
    PeerHost,
    ProbeConnection,
    ServedConnection,
    Shared,
    describe_failure,
    error_name,
)
from zephyr.peer.link import Link

__all__ = ["PeerCounters", "PeerHost", "PeerTransport"]

SWEEP_INTERVAL_S = 1.0
"""How often calls past their deadline are forgotten and idle links closed."""
ACCEPT_TURNS = 4
"""Turns of the event loop after which a connection that it accepted is known here: a task, a callback, and two spare.
Closing waits for them, else a connection accepted at the last moment would never be closed."""

LINKS_ALL_KEPT_MAX = 64
"""Up to this many peers, a link to each is kept open."""
LINKS_KEPT = 16
"""Beyond that, links to this many peers, chosen by hash."""
PROBES_MAX = 64
"""Probes under way at once; start-up and an IP address that changed hands need one each."""


class PeerTransport:
    """Every connection of this node to and from its peers."""

    def __init__(self, settings: Settings, host: PeerHost, rng: random.Random) -> None:
        """Bind and connect nothing yet. `rng` spreads reconnections in time."""
        self._shared = Shared(settings, host, rng)
        self._links: dict[NodeId, Link] = {}
        self._server: asyncio.Server | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._probing: dict[asyncio.Task[None], Address] = {}

    @property
    def counters(self) -> PeerCounters:
        """The live counters, not a copy."""
        return self._shared.counters

    @property
    def address(self) -> Address:
        """The bound address: differs from `settings.peer` where that leaves the port open (`:0`)."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return format_address(host, port)

    async def bind(self) -> None:
        """Bind `settings.peer`, and accept nobody yet: this node cannot say who it is before it knows its ports.

        Raises ConfigError, with nothing left open, when that is not possible.
        """
        shared = self._shared
        shared.loop = asyncio.get_running_loop()
        address = shared.settings.peer
        host, port = parse_address(address)
        try:
            self._server = await shared.loop.create_server(
                lambda: ServedConnection(shared), host, port, backlog=SERVED_CONNECTIONS_MAX, start_serving=False
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"--peer: {address} is taken by another program") from None
            raise ConfigError(f"--peer: cannot listen at {address}: {error_name(error)}") from None

    async def start(self) -> None:
        """Accept peers, and make links; binds first if that has not been done."""
        if self._server is None:
            await self.bind()
        assert self._server is not None
        await self._server.start_serving()
        self._sweep_timer = self._shared.loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def set_peers(self, members: Iterable[Member]) -> None:
        """Hold links to these members, and to no other. Replaces the earlier set.

        A member whose peer address changed is connected to anew; its open calls fail. One with a new epoch that
        is not connected is dialled at once.
        """
        shared = self._shared
        if shared.stopping:
            return
        by_id = {member.id: member for member in members}
        kept = self._kept(by_id)
        for node_id in [node_id for node_id in self._links if node_id not in by_id]:
            self._links.pop(node_id).close(f"{node_id} is no peer any more")
        for node_id, member in by_id.items():
            link = self._links.get(node_id)
            if link is None:
                link = self._links[node_id] = Link(shared, member)
            else:
                link.retarget(member)
            link.set_kept(kept=node_id in kept)

    def _kept(self, by_id: dict[NodeId, Member]) -> frozenset[NodeId]:
        """Choose the peers whose links stay open: stable while members come and go, and another choice on each node."""
        if len(by_id) <= LINKS_ALL_KEPT_MAX:
            return frozenset(by_id)
        own = self._shared.settings.id

        def weight(node_id: NodeId) -> int:
            return mmh3.hash64(f"{own}\0{node_id}".encode(), 0, True, signed=False)[0]

        return frozenset(sorted(by_id, key=weight)[:LINKS_KEPT])

    def send(self, effect: SendPeer) -> None:
        """Send one request. Its end comes later: `replied`, `failed`, or nothing once `deadline_s` has passed."""
        link = self._links.get(effect.node_id)
        if link is not None:
            link.send(effect)
        elif self._shared.stopping:
            self._shared.refuse(effect.call_id, "stopping", "this node is stopping")
        else:
            self._shared.refuse(effect.call_id, "no-peer", f"{effect.node_id} is no peer of this node")

    def tell(self, node_ids: Iterable[NodeId], operation: int, arguments: tuple[Any, ...]) -> None:
        """Send a request that wants no answer to those of these members whose links are up."""
        for node_id in node_ids:
            link = self._links.get(node_id)
            if link is not None:
                link.tell(operation, arguments)

    def probe(self, address: Address) -> None:
        """Ask who is at a peer address, and hang up. `probed` tells, after a connection's two time-outs at most."""
        shared = self._shared
        if shared.stopping or len(self._probing) >= PROBES_MAX:
            reason = "this node is stopping" if shared.stopping else f"{PROBES_MAX} probes are under way"
            shared.loop.call_soon(shared.host.probed, address, None, reason)
            return
        task = shared.spawn(self._probe(address))
        self._probing[task] = address

    async def _probe(self, address: Address) -> None:
        shared = self._shared
        answer: asyncio.Future[tuple[Member | None, str]] = shared.loop.create_future()
        connection = ProbeConnection(shared, answer)
        try:
            await shared.dial(address, connection)
            member, reason = await answer  # the connection's own timer bounds this
        except OSError as error:
            member, reason = None, describe_failure(error, address)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        del self._probing[task]
        shared.host.probed(address, member, reason)

    async def close(self) -> None:
        """Say goodbye to everyone and close, within `LINGER_S` and a little.

        Open calls fail and open probes end; connections that end here are not reported.
        """
        shared = self._shared
        if shared.stopping or self._server is None:
            return
        shared.stopping = True
        self._server.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for link in self._links.values():
            link.close("this node is stopping")
        self._links.clear()
        for address in self._probing.values():
            shared.loop.call_soon(shared.host.probed, address, None, "this node is stopping")
        self._probing.clear()
        for task in shared.tasks:
            task.cancel()
        await asyncio.gather(*shared.tasks, return_exceptions=True)
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        for connection in list(shared.connections):
            connection.leave("stopping")
        await shared.all_gone()
        for connection in list(shared.connections):
            connection.transport.abort()
        await shared.all_gone()
        await shared.resolver.close()

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for link in self._links.values():
            link.sweep(now_s)
        self._sweep_timer = self._shared.loop.call_later(SWEEP_INTERVAL_S, self._sweep)
