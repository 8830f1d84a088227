"""Looking at nodes many times a second: what each showed, and when.

Decides what a look keeps of a page and how often a node is looked at. How a page is had is the caller's; what the looks
mean is, too. Moments are seconds of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zephyr.errors import ZephyrError
from zephyr.model import NodeId

LOOK_S = 0.03
"""Between two looks at a node, so that each is looked at 20 times a second and more."""

See = Callable[[NodeId], Awaitable[Any | None]]
"""Returns what a node shows at `/debug/views`; None when it does not answer."""


class NotReachedError(ZephyrError):
    """What was waited for did not come in time. Its text tells what was seen instead."""


class Look(NamedTuple):
    """What a node's page showed."""

    at_s: float
    owners: tuple[NodeId, ...]
    digest: str
    generation: str
    """Of etcd's data: another one after a wipe."""
    authority: str
    etcd: str
    """Whether this node has etcd: `connected`, `relayed`, `unreachable` or `off`."""
    gossip: Mapping[NodeId, str]
    """What gossip says of each member that the page names."""
    routable: frozenset[NodeId]
    registered: frozenset[NodeId]
    lives: tuple[tuple[NodeId, int], ...]
    """(id, revision of its registration)."""


def look_of(page: Any, at_s: float) -> Look:
    """Keep of a `/debug/views` page what is compared."""
    members = page["members"]
    return Look(
        at_s,
        tuple(page["ring"]["owners"]),
        page["ring"]["digest"],
        page["ring"]["epoch"].partition("-")[0],
        page["authority"],
        page["etcd"]["state"],
        {row["id"]: row["gossip"]["state"] for row in members},
        frozenset(row["id"] for row in members if row["routable"]),
        frozenset(row["id"] for row in members if row["etcd"]["state"] == "registered"),
        tuple((row["id"], row["etcd"]["revision"]) for row in members),
    )


def is_one_ring(latest: Mapping[NodeId, Look], owners: Iterable[NodeId]) -> bool:
    """Whether these looks show exactly these owners, and one digest."""
    expected = tuple(sorted(owners))
    return len({look.digest for look in latest.values()}) == 1 and all(
        look.owners == expected for look in latest.values()
    )


class Watch:
    """Looks at nodes many times a second, and keeps what it saw."""

    def __init__(self, node_ids: Iterable[NodeId], see: See) -> None:
        """`node_ids`: whom to look at, whether they answer or not."""
        self._see = see
        self.looks: dict[NodeId, list[Look]] = {node_id: [] for node_id in node_ids}
        self.latest: dict[NodeId, Look] = {}
        """Of the nodes that answer."""

    async def follow(self, node_id: NodeId) -> None:
        """Look at a node for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            page = await self._see(node_id)
            if page is None:
                self.latest.pop(node_id, None)
            else:
                look = look_of(page, clock())
                self.looks[node_id].append(look)
                self.latest[node_id] = look
            await asyncio.sleep(LOOK_S)

    async def until_all(
        self, condition: Callable[[Mapping[NodeId, Look]], bool], of: Iterable[NodeId], timeout_s: float, since_s: float
    ) -> float:
        """Wait until the latest looks at these nodes together fulfil a condition; return the seconds since a moment.

        What counts is when the last of these looks was taken. Raises NotReachedError when `timeout_s` from that moment
        on are over.
        """
        clock, node_ids = asyncio.get_running_loop().time, list(of)
        while True:
            latest = {node_id: self.latest[node_id] for node_id in node_ids if node_id in self.latest}
            if len(latest) == len(node_ids) and condition(latest):
                return max(0.0, max(look.at_s for look in latest.values()) - since_s)
            if clock() >= since_s + timeout_s:
                raise NotReachedError(f"not within {timeout_s:g} s: {self.latest}")
            await asyncio.sleep(LOOK_S / 3)

    async def until(
        self, condition: Callable[[Look], bool], of: Iterable[NodeId], timeout_s: float, since_s: float
    ) -> float:
        """The same of a condition that each look fulfils by itself."""
        return await self.until_all(lambda latest: all(map(condition, latest.values())), of, timeout_s, since_s)

    async def until_one_ring(
        self, owners: Iterable[NodeId], of: Iterable[NodeId], timeout_s: float, since_s: float
    ) -> float:
        """Wait until these nodes have exactly these owners, and one digest."""
        expected = sorted(owners)
        return await self.until_all(lambda latest: is_one_ring(latest, expected), of, timeout_s, since_s)

    def since(self, since_s: float, of: Iterable[NodeId] | None = None) -> dict[NodeId, list[Look]]:
        """Return the looks at these nodes (at all) from a moment on."""
        node_ids: Sequence[NodeId] = list(self.looks if of is None else of)
        return {node_id: [look for look in self.looks[node_id] if look.at_s >= since_s] for node_id in node_ids}


@contextlib.asynccontextmanager
async def watching(watch: Watch) -> AsyncIterator[Watch]:
    """Look at all nodes of a watch while the block runs."""
    tasks = [asyncio.create_task(watch.follow(node_id)) for node_id in watch.looks]
    try:
        yield watch
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):  # A page of another form: nothing that was waited for would have come.
            raise end
