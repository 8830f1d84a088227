"""One time that something is done to a cluster: the fault, the load beside it, and the eyes on every node.

An episode is what a scenario is given: it injects a fault, waits until the views are what they should be, ends it, and
waits until all is as it was; what was seen meanwhile becomes times. It reaches a cluster through its driver alone, and
knows no time but the event loop's. Which faults, and in which order, is the scenario's; what the looks mean is
`chaos.convergence`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from typing import NamedTuple

from chaos.convergence import (
    FAILURES_KEPT_MAX,
    Condition,
    Repetition,
    Times,
    is_whole,
    is_without,
    knows_etcd_gone,
    measure_etcd,
    measure_node,
)
from chaos.drivers import ClusterUnavailableError, Driver
from chaos.watch import LOOK_S, Look, NotReachedError, Watch, watching
from zephyr.model import NodeId

LOAD_PAUSE_S = 0.1
"""Between two requests: ten a second show what fails and are no weight."""
LOAD_KEYS = 200
WRITE_SHARE = 0.5
BEFORE_S = 1.0
"""All nodes are looked at and asked for so long before anything is done to them."""
DIGEST_SHOWN = 8
"""Digits of a ring's digest that a person compares."""


class State(NamedTuple):
    """What one node shows just now, for people: a line."""

    node: NodeId
    gossip: str
    """What its gossip says of the victim; where etcd is the victim, how many members it calls alive; or `no answer`."""
    etcd: str
    """What it knows of the victim's registration; where etcd is the victim or cannot be asked, whether it has etcd."""
    ring: str
    """Its digest, shortened, and how many own it; empty: no answer."""
    authority: str


class Episode:
    """One time. A scenario calls `inject`, waits for what it promises, and calls `undo`."""

    def __init__(self, driver: Driver, victim: NodeId, *, hold_s: float, limit_s: float) -> None:
        """`victim`: the node that something is done to; empty: it is etcd.

        `hold_s`: the fault lasts for at least so long. `limit_s`: bound of each wait.
        """
        self.driver = driver
        self.victim = victim
        self.everybody = sorted(driver.node_ids)
        self.survivors = [node_id for node_id in self.everybody if node_id != victim]
        self.watch = Watch(self.everybody, driver.page)
        self.result = Repetition(victim)
        self.hold_s = hold_s
        self.limit_s = limit_s
        self.injected_s = math.inf
        """Moment at which the fault was told to begin."""
        self.undone_s = math.inf
        """Moment at which it was told to end."""
        self._generations: set[str] = set()
        self._clock = asyncio.get_running_loop().time

    # --- what a scenario does -----------------------------------------------------------------------------

    async def inject(self, doing: Awaitable[None]) -> None:
        """Do something to the cluster. Times count from here."""
        self._generations = {look.generation for look in self.watch.latest.values()}
        self.injected_s = self._clock()
        await doing

    async def until_gone(self) -> None:
        """Wait until no survivor counts with the victim any more, and as long as the fault is to last."""
        await self._wait("gone for all others", is_without(self.victim, self.survivors), self.survivors)
        await self._hold()

    async def until_known(self) -> None:
        """Wait until each node's page shows that etcd is not as it was, and as long as the fault is to last."""

        def is_known(latest: Mapping[NodeId, Look]) -> bool:
            return all(knows_etcd_gone(look, self.everybody) for look in latest.values())

        await self._wait("known to all", is_known, self.everybody)
        await self._hold()

    async def undo(self, doing: Awaitable[None], *, is_new_etcd: bool = False) -> None:
        """End the fault, and wait until the cluster is whole.

        `is_new_etcd`: etcd has lost its data. Whoever has not noticed yet looks as if all were well, so only those
        who show its new data count.
        """
        self.undone_s = self._clock()
        await doing
        try:
            await self._until_whole(self._generations if is_new_etcd else set(), self.undone_s)
        except NotReachedError:
            self.result.missed.append("back and level")
        else:
            self.result.times.back_s = self._clock() - self.undone_s

    async def _hold(self) -> None:
        await asyncio.sleep(max(0.0, self.injected_s + self.hold_s - self._clock()))

    async def _wait(self, what: str, condition: Condition, of: Collection[NodeId]) -> None:
        try:
            await self.watch.until_all(condition, of, self.limit_s, self.injected_s)
        except NotReachedError:
            self.result.missed.append(what)

    async def _until_whole(self, past_generations: Collection[str], since_s: float) -> None:
        """Wait until all are in one ring and registered, both witnesses lead, and each is ready, all of it at once."""
        condition, deadline_s = is_whole(self.everybody, past_generations), since_s + self.limit_s
        while True:
            now_s = self._clock()
            await self.watch.until_all(condition, self.everybody, max(0.0, deadline_s - now_s), now_s)
            ready = await asyncio.gather(*map(self.driver.is_ready, self.everybody))
            latest = self.watch.latest
            if all(ready) and len(latest) == len(self.everybody) and condition(latest):
                return
            if self._clock() >= deadline_s:
                raise NotReachedError(f"not ready within {self.limit_s:g} s")
            await asyncio.sleep(LOOK_S)

    # --- around it ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def observed(self, rng: random.Random) -> AsyncIterator[None]:
        """Look at all nodes, and ask the survivors, while the block runs; then make times of it.

        Raises ClusterUnavailableError when the cluster is not whole to begin with.
        """
        asking: list[asyncio.Task[None]] = []
        async with watching(self.watch):
            try:
                await self._until_whole((), self._clock())
            except NotReachedError:
                raise ClusterUnavailableError(f"the views did not agree before, within {self.limit_s:g} s") from None
            loading = asyncio.create_task(self._load(asking, rng))
            try:
                await asyncio.sleep(BEFORE_S)
                yield
                loading.cancel()
                await asyncio.gather(*asking)  # What was asked is answered, or given up.
            finally:
                for task in (loading, *asking):
                    task.cancel()
                await asyncio.gather(loading, *asking, return_exceptions=True)
        self.result.times = self._measured()

    async def _load(self, asking: list[asyncio.Task[None]], rng: random.Random) -> None:
        """Write and read through random survivors, each request when it is due, whatever became of the one before."""
        while True:
            node_id, key = rng.choice(self.survivors), f"chaos-{rng.randrange(LOAD_KEYS)}"
            asking.append(asyncio.create_task(self._ask(node_id, key, is_write=rng.random() < WRITE_SHARE)))
            await asyncio.sleep(LOAD_PAUSE_S)

    async def _ask(self, node_id: NodeId, key: str, *, is_write: bool) -> None:
        asked_s = self._clock()
        self.result.requests += 1
        asking = self.driver.write(node_id, key, b"light") if is_write else self.driver.read(node_id, key)
        failure = await asking
        if failure:
            self.result.failed += 1
            if len(self.result.failures) < FAILURES_KEPT_MAX:
                after = "before it" if math.isinf(self.injected_s) else f"{asked_s - self.injected_s:.2f} s after it"
                self.result.failures.append(f"{'PUT' if is_write else 'GET'} through {node_id}, {after}: {failure}")

    def _measured(self) -> Times:
        looks = {node_id: self.watch.looks[node_id] for node_id in self.survivors}
        if self.victim:
            before = {node_id: [look for look in some if look.at_s <= self.undone_s] for node_id, some in looks.items()}
            times = measure_node(before, self.victim, self.injected_s)
        else:
            times = measure_etcd(looks, self.injected_s)
            if not self.result.missed:
                # It may be back before anybody has looked twice, and then there was nothing to know.
                times.first_knows_s, times.all_know_s = map(_seen, (times.first_knows_s, times.all_know_s))
        times.back_s = math.inf if self.result.times.back_s is None else self.result.times.back_s
        return times

    def states(self) -> list[State]:
        """Return what each node shows just now."""
        return [self._state(node_id) for node_id in self.everybody]

    def _state(self, node_id: NodeId) -> State:
        look = self.watch.latest.get(node_id)
        if look is None:
            return State(node_id, "no answer", "", "", "")
        ring = f"{look.digest[:DIGEST_SHOWN]} of {len(look.owners)}"
        if not self.victim:
            alive = sum(state == "alive" for state in look.gossip.values())
            return State(node_id, f"{alive} alive", look.etcd, ring, look.authority)
        registration = "registered" if self.victim in look.registered else "absent"
        etcd = registration if look.etcd in ("connected", "relayed") else look.etcd
        return State(node_id, look.gossip.get(self.victim, "forgotten"), etcd, ring, look.authority)


def _seen(value_s: float | None) -> float | None:
    return None if value_s is None or math.isinf(value_s) else value_s
