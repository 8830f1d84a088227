"""How soon the views of containers are one again: one killed, one paused, one cut from its network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

REPETITIONS = int(os.environ.get("ZEPHYRCACHE_REPETITIONS", "1"))
"""How often one is killed. `make convergence` measures it with more; one shows that it works."""
NODES = 5
PAUSE_S = 30.0
LOOK_S = 0.03
GONE_MAX_S = 40.0
"""Until the others have one ring without it: silence takes up to ten seconds to be a death, eviction five more."""
BACK_MAX_S = 60.0
"""Until all have one ring with it: a container is started within seconds on a quiet machine."""


async def pages(cluster, nodes) -> list[dict]:
    """Return what the nodes show; nothing at all while one of them does not answer."""
    with contextlib.suppress(aiohttp.ClientError):
        return await asyncio.gather(*(cluster.json(node, "/debug/views") for node in nodes))
    return []


async def seconds_until(cluster, nodes, condition: Callable[[list[dict]], bool], since_s: float, max_s: float) -> float:
    """Look at the nodes until what they show fulfils a condition; return the seconds since a moment."""
    while True:
        found = await pages(cluster, nodes)
        at_s = time.monotonic()
        if found and condition(found):
            return at_s - since_s
        assert at_s < since_s + max_s, [(page["node"], page["authority"], page["ring"]) for page in found]
        await asyncio.sleep(LOOK_S)


def is_one_ring(found: list[dict], owners: list[str]) -> bool:
    return len({page["ring"]["digest"] for page in found}) == 1 and all(
        page["ring"]["owners"] == owners for page in found
    )


async def see_it_go(cluster, nodes, victim, command: Awaitable[str]) -> tuple[float, float]:
    """Do something to a node; return the seconds from then on until it is unroutable, and out of the ring, at all."""
    others = [node for node in nodes if node.id != victim.id]
    expected = sorted(node.id for node in others)

    def is_unroutable(found: list[dict]) -> bool:
        rows = [row for page in found for row in page["members"] if row["id"] == victim.id]
        return not any(row["routable"] for row in rows)

    began_s = time.monotonic()
    doing = asyncio.ensure_future(command)
    unroutable_s = await seconds_until(cluster, others, is_unroutable, began_s, GONE_MAX_S)
    out_s = await seconds_until(cluster, others, lambda found: is_one_ring(found, expected), began_s, GONE_MAX_S)
    await doing
    return unroutable_s, out_s


async def see_it_back(cluster, command: Awaitable[str]) -> float:
    """Undo it; return the seconds from then on until all have one ring of all."""
    began_s = time.monotonic()
    await command
    nodes = await cluster.nodes()  # One that was started again has another port.
    expected = sorted(node.id for node in nodes)
    assert len(expected) == NODES
    return await seconds_until(cluster, nodes, lambda found: is_one_ring(found, expected), began_s, BACK_MAX_S)


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
