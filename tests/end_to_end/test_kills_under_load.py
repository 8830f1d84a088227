"""What is claimed of the data plane, on real processes under load: kill -9, again and again, and nothing is lost.

Each kill waits until all nodes are level again, since one lost replica at a time is what a write survives (W = 2 of 3).
"""

import asyncio
import random
import time

import aiohttp
import pytest

from chaos.checkers import check
from chaos.history import write_history
from chaos.load import AT_ONCE, Load, LoadPlan, figures_of, run_of

LOAD_S = 60.0
KILLS_LEAST = 4
LEVEL_MAX_S = 90.0
"""Longest wait until all are level again; the figure is what counts."""
EVICTED_MAX_S = 30.0
FAILED_SHARE_GOAL, FAILED_LATE_GOAL_S = 0.005, 1.0
KEYS, VALUE_BYTES = 50_000, 1024


async def level(load: Load, *node_ids: str) -> float:
    """Wait until these nodes, or all, are level in one ring; return the seconds it took."""
    began_s = time.monotonic()
    while not await load.is_level(*node_ids):
        assert time.monotonic() - began_s < LEVEL_MAX_S, "not level in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - began_s


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_nodes_are_killed_under_load_and_no_claim_is_broken(start_cluster, figure, tmp_path):
    cluster = await start_cluster(5)
    rng, plan = random.Random(7), LoadPlan(rate_per_s=120.0)
    nodes = {node.id: node for node in cluster.nodes}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        load = Load(session, {node.id: node.http for node in cluster.nodes}, plan, run_of("kills", plan))
        stop, level_s = asyncio.Event(), []

        async def kill_again_and_again() -> None:
            await asyncio.sleep(3)  # So that there is something to lose.
            while load.now_s < LOAD_S or len(level_s) < KILLS_LEAST:
                await level(load)
                victim = nodes[rng.choice(list(nodes))]
                victim.kill()
                load.killed(victim.id)
                load.restarted(victim.id)
                cluster.start(victim)
                level_s.append(await level(load))
                await asyncio.sleep(rng.uniform(0.0, 2.0))
            stop.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(load.watch(stop))
            group.create_task(load.run(stop))
            group.create_task(kill_again_and_again())
        await level(load)
        await load.take_stock()
        await load.read_back()
    load.history.sort()
    write_history(tmp_path / "history.jsonl", load.history)
    report, found = check(load.history), figures_of(load)
    figure("nodes killed", len(level_s), "")
    figure("requests", found.operations, "")
    figure(f"requests that failed (goal {FAILED_SHARE_GOAL:.1%})", round(100 * found.failed_share, 3), "%")
    if load.failures:
        figure(f"longest from a kill until a request failed (goal {FAILED_LATE_GOAL_S} s)", found.failed_late_s)
    for how, count in load.failures.items():
        figure(f"failed: {how}", count, "")
    figure("p50 of requests", found.p50_s)
    figure("p99 of requests", found.p99_s)
    figure("killed node back and all level, longest", max(level_s))
    for verdict in report.verdicts:
        figure(f"{verdict.name}: {verdict.colour}, judged", verdict.judged, f"and {verdict.unknown} unknown")
    assert len(level_s) >= KILLS_LEAST
    assert load.left_out == 0, "the load was not open"
    assert report.is_served
    broken = {item.name: [violation.text for violation in item.violations] for item in report.red}
    assert broken == {}, f"see {tmp_path / 'history.jsonl'}"
    judged = {verdict.name: verdict.judged for verdict in report.verdicts}
    for name in ("phantom", "acknowledged-lost", "stale-reads", "read-your-writes", "resurrection", "atomic"):
        assert judged[name] > 200, f"{name} shows little: {judged[name]}"


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_three_level_replicas_of_fifty_thousand_keys_are_there_again_after_a_kill(start_cluster, figure):
    cluster = await start_cluster(5)
    plan = LoadPlan(keys=KEYS, value_bytes=VALUE_BYTES)
    load = Load(cluster.session, {node.id: node.http for node in cluster.nodes}, plan, run_of("replicas", plan))
    numbers, value = iter(range(KEYS)), b"v" * VALUE_BYTES

    async def write() -> None:
        for number in numbers:
            node = cluster.nodes[number % len(cluster.nodes)]
            status, _ = await cluster.request(node, "PUT", f"/kv/load-{number}", value)
            assert status in (201, 204)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(write())
    await level(load)
    items = sum([(await cluster.json(node, "/info"))["items"] for node in cluster.nodes])
    assert items >= 3 * KEYS - 100, f"{items} copies before the kill"  # A laggard may still be on its way.
    killed_s = time.monotonic()
    cluster.nodes[1].kill()
    survivors = [node for node in cluster.nodes if node.process]
    evicted_s = await cluster.wait_rings([node.id for node in survivors], EVICTED_MAX_S)
    await level(load, *(node.id for node in survivors))
    figure("kill until it is out of every ring", evicted_s)
    figure(f"kill until three level replicas of {KEYS} keys of {VALUE_BYTES} bytes", time.monotonic() - killed_s)
    items = sum([(await cluster.json(node, "/info"))["items"] for node in survivors])
    assert items == 3 * KEYS
