"""What the Compose cluster promises, tried on real containers."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

KEYS = 60
"""Enough that each of five nodes holds a copy of several."""
EVICTED_WITHIN_S = 20.0
"""A lease of 10 s and the clock's grain: 12 s on a quiet machine, the rest for one that is not."""


async def write_keys(cluster, nodes) -> dict[str, str]:
    known = {f"key-{number}": f"value-{number}" for number in range(KEYS)}
    for number, (key, value) in enumerate(known.items()):
        assert await cluster.put(nodes[number % len(nodes)], key, value) == 201
    return known


async def assert_all_readable(cluster, nodes, known: dict[str, str]) -> None:
    for node in nodes:
        answers = {key: await cluster.get(node, key) for key in known}
        assert answers == {key: (200, value) for key, value in known.items()}, node.name


async def test_docker_kill_of_one_of_five_fails_no_request_and_closes_the_ring(start_cluster, docker):
    cluster = await start_cluster(5)
    victim, *others = await cluster.nodes()
    known = await write_keys(cluster, [victim, *others])
    async with cluster.traffic(others, known) as traffic:
        await docker("kill", victim.name)
        await cluster.wait_ring(4, EVICTED_WITHIN_S)
        await assert_all_readable(cluster, others, known)
    assert traffic.requests > 0
    assert traffic.failures == []


async def test_docker_stop_of_one_of_five_fails_no_request(start_cluster, docker):
    cluster = await start_cluster(5)
    victim, *others = await cluster.nodes()
    known = await write_keys(cluster, [victim, *others])
    async with cluster.traffic(others, known) as traffic:
        await docker("stop", victim.name)
        await cluster.wait_ring(4)
        await assert_all_readable(cluster, others, known)
    assert traffic.requests > 0
    assert traffic.failures == []
    (found,) = json.loads(await docker("inspect", victim.name))
    assert found["State"]["ExitCode"] == 0  # It left by itself: 137 would say that Docker lost its patience.


async def test_scaling_to_seven_and_back_fails_no_request(start_cluster):
    cluster = await start_cluster(5)
    nodes = await cluster.nodes()
    known = await write_keys(cluster, nodes)
    # Two owners of three may be new at once, and a new owner does not fetch what it missed: such a key may be absent.
    async with cluster.traffic(nodes, known, may_miss=True) as traffic:
        await cluster.scale(7)
        grown = await cluster.nodes()
        known_to_seven = await write_again(cluster, grown)
        await assert_all_readable(cluster, grown, known_to_seven)
        await cluster.scale(5)
    assert await cluster.nodes() == nodes  # The two that came last went first.
    assert traffic.requests > 0
    assert traffic.failures == []
    await assert_all_readable(cluster, nodes, await write_again(cluster, nodes))


async def write_again(cluster, nodes) -> dict[str, str]:
    known = {f"again-{number}": f"value-of-{len(nodes)}-{number}" for number in range(KEYS)}
    for number, (key, value) in enumerate(known.items()):
        assert await cluster.put(nodes[number % len(nodes)], key, value) in (201, 204)
    return known


async def test_a_killed_node_that_is_started_again_joins_under_its_id(start_cluster, docker):
    cluster = await start_cluster(3)
    victim, other, _ = await cluster.nodes()
    life = await life_of(cluster, other, victim.id)
    await docker("kill", victim.name)
    await docker("start", victim.name)  # Within its lease: it takes its own registration over.

    async def has_a_new_life() -> bool:
        return await life_of(cluster, other, victim.id) not in (life, None)

    await cluster.wait_for(has_a_new_life, f"a new registration of {victim.id}")
    nodes = await cluster.wait_ring(3)
    assert victim.id in {node.id for node in nodes}
    known = await write_keys(cluster, nodes)
    await assert_all_readable(cluster, nodes, known)


async def life_of(cluster, asked, node_id: str) -> int | None:
    """The etcd revision at which the node registered, as another node knows it."""
    members = (await cluster.json(asked, "/debug/views"))["members"]
    return next((row["etcd"]["revision"] for row in members if row["id"] == node_id), None)


async def test_a_node_is_not_root_and_can_write_nowhere_but_to_tmp(start_cluster, docker):
    cluster = await start_cluster(1)
    (node,) = await cluster.nodes()
    attempt = """
import os, pathlib
print(os.getuid())
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")][0])
for directory in ("/opt/zephyr", "/etc", "/var", "/", "/tmp"):
    try:
        (pathlib.Path(directory) / "attempt").write_text("")
        print(directory)
    except OSError:
        pass
"""
    output = await docker("exec", node.name, "/opt/zephyr/bin/python", "-c", attempt)
    assert output.split() == ["65532", "0000000000000000", "/tmp"]  # noqa: S108  # the container's own
