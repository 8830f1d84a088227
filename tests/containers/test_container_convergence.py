"""How soon the views of containers are one again: one killed, one paused, one cut from its network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable

import pytest

from chaos.drivers.http import page_of
from chaos.watch import Watch
from chaos.watch import watching as watched

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

REPETITIONS = int(os.environ.get("ZEPHYRCACHE_REPETITIONS", "1"))
"""How often one is killed. `make convergence` measures it with more; one shows that it works."""
NODES = 5
PAUSE_S = 30.0
GONE_MAX_S = 40.0
"""Until the others have one ring without it: silence takes up to ten seconds to be a death, eviction five more."""
BACK_MAX_S = 60.0
"""Until all have one ring with it: a container is started within seconds on a quiet machine."""


@contextlib.asynccontextmanager
async def watching(cluster, nodes) -> AsyncIterator[Watch]:
    """Look at these containers while the block runs."""
    urls = {node.id: node.url for node in nodes}
    async with watched(Watch(urls, lambda node_id: page_of(cluster.session, urls[node_id]))) as watch:
        yield watch


async def see_it_go(cluster, nodes, victim, command: Awaitable[str]) -> tuple[float, float]:
    """Do something to a node; return the seconds from then on until it is unroutable, and out of the ring, at all."""
    others = sorted(node.id for node in nodes if node.id != victim.id)
    async with watching(cluster, [node for node in nodes if node.id != victim.id]) as watch:
        began_s = time.monotonic()
        doing = asyncio.ensure_future(command)
        unroutable_s = await watch.until(lambda look: victim.id not in look.routable, others, GONE_MAX_S, began_s)
        out_s = await watch.until_one_ring(others, others, GONE_MAX_S, began_s)
        await doing
    return unroutable_s, out_s


async def see_it_back(cluster, command: Awaitable[str]) -> float:
    """Undo it; return the seconds from then on until all have one ring of all."""
    began_s = time.monotonic()
    await command
    nodes = await cluster.nodes()  # One that was started again has another port.
    everybody = sorted(node.id for node in nodes)
    assert len(everybody) == NODES
    async with watching(cluster, nodes) as watch:
        return await watch.until_one_ring(everybody, everybody, BACK_MAX_S, began_s)


async def test_containers_that_are_killed_paused_or_cut_off_leave_every_ring_and_are_back(
    start_cluster, docker, figure
):
    cluster = await start_cluster(NODES)

    def note(what: str, took_s: list[float]) -> None:
        if len(took_s) == 1:
            figure(what, took_s[0])
            return
        figure(f"{what}, p50 of {len(took_s)}", statistics.median(took_s))
        figure(f"{what}, p99 of {len(took_s)}", max(took_s))

    gone, back_s = [], []
    for number in range(REPETITIONS):
        nodes = await cluster.nodes()
        victim = nodes[number % NODES]
        gone.append(await see_it_go(cluster, nodes, victim, docker("kill", victim.name)))
        back_s.append(await see_it_back(cluster, docker("start", victim.name)))
    note("docker kill: unroutable at all others", [item[0] for item in gone])
    note("docker kill: out of every ring, all digests equal", [item[1] for item in gone])
    note("docker start: back in every ring", back_s)

    nodes = await cluster.nodes()
    victim = nodes[1]
    began_s = time.monotonic()
    try:
        unroutable_s, out_s = await see_it_go(cluster, nodes, victim, docker("pause", victim.name))
        await asyncio.sleep(max(0, began_s + PAUSE_S - time.monotonic()))  # The pause is that long.
    finally:
        back = docker("unpause", victim.name)
        paused_back_s = await see_it_back(cluster, back)
    figure("docker pause: unroutable at all others", unroutable_s)
    figure("docker pause: out of every ring of the others, all digests equal", out_s)
    figure(f"docker unpause after {PAUSE_S:.0f} s: back in every ring", paused_back_s)

    victim = nodes[2]
    network = f"{cluster.project}_default"
    unroutable_s, out_s = await see_it_go(cluster, nodes, victim, docker("network", "disconnect", network, victim.name))
    figure("docker network disconnect: unroutable at all others", unroutable_s)
    figure("docker network disconnect: out of every ring of the others, all digests equal", out_s)
    connected_s = await see_it_back(cluster, docker("network", "connect", "--alias", "node", network, victim.name))
    figure("docker network connect: back in every ring", connected_s)
