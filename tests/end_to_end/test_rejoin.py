"""New owners fetch what they missed, on real processes."""

import time

import pytest

from chaos.drivers.processes import until
from zephyr.replication.leftovers import KEPT_S

KEYS = 2000


@pytest.mark.timeout(240)
@pytest.mark.parametrize("etcd", [True, pytest.param(False, marks=pytest.mark.chaos)])
async def test_one_node_after_the_other_is_killed_and_started_again_and_no_key_is_lost(start_cluster, figure, etcd):
    cluster = await start_cluster(5, "--evict-after" if etcd else "--gossip-evict-after", "500ms", etcd=etcd)
    values = {f"key-{number}": b"%d" % number * 50 for number in range(KEYS)}
    for number, (key, value) in enumerate(values.items()):
        status, _ = await cluster.request(cluster.nodes[number % 5], "PUT", f"/kv/{key}", value)
        assert status == 201
    everybody = sorted(node.id for node in cluster.nodes)
    took_s = []
    for victim in cluster.nodes[:4]:
        victim.kill()
        rest = [node for node in cluster.nodes if node is not victim]
        await cluster.wait_rings([node.id for node in rest], 20)
        for node in rest:
            await until(lambda node=node: cluster.is_ready(node), 20, f"{node.id} is level")
        cluster.start(victim)
        await cluster.wait_rings(everybody, 60)
        began_s = time.monotonic()
        await cluster.wait_ready()
        took_s.append(time.monotonic() - began_s)
    figure(f"level after it began anew, of {KEYS} keys, longest of 4", max(took_s))
    for number, (key, value) in enumerate(values.items()):
        assert await cluster.request(cluster.nodes[number % 5], "GET", f"/kv/{key}") == (200, value)

    async def are_three_copies() -> bool:
        info = [await cluster.json(node, "/info") for node in cluster.nodes]
        return sum(item["items"] for item in info) == 3 * KEYS

    await until(are_three_copies, KEPT_S + 5, "three copies of each: what is owned no more is dropped")
