"""What operators see and ask for, in clusters of processes: events, certificates, evictions."""

from __future__ import annotations

import asyncio
import json

DEADLINE_S = 60.0
"""For whatever is awaited here: far above what it takes."""


async def events_of(cluster, node):
    """Follow a node's events; a view is the first."""
    kind = ""
    async with cluster.session.get(f"http://{node.http}/debug/events") as response:
        assert response.status == 200
        async for line in response.content:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


async def test_a_death_is_told_as_it_happens_and_certified_by_its_accuser(start_cluster):
    cluster = await start_cluster(4)
    events = events_of(cluster, cluster.nodes[0])
    async with asyncio.timeout(DEADLINE_S):
        kind, view = await anext(events)
        assert (kind, view["authority"]) == ("view", "both")
        cluster.nodes[3].kill()
        seen = []
        while ("ring-changed", "") not in seen:
            kind, data = await anext(events)
            seen.append((kind, data.get("member")))
    assert ("member-dead", "n4") in seen
    survivors = cluster.nodes[:3]
    pages = {node.id: await cluster.json(node, "/debug/certificate/n4") for node in survivors}
    accusers = {page["accuser"] for page in pages.values()}
    for node_id, page in pages.items():
        assert ("suspicion" in page) == (page["accuser"] == node_id), (
            "the accuser has the certificate, the others its name"
        )
        assert page["accuser_url"].endswith("/debug/certificate/n4")
        async with cluster.session.get(page["accuser_url"]) as response:
            certificate = await response.json()
        assert certificate["accuser"] == page["accuser"]
        assert certificate["cause"] == "exit"
        assert set(certificate["exit"]["observers"]) <= {"n1", "n2", "n3"}
        assert len(certificate["exit"]["observers"]) >= 2
    assert accusers <= {"n1", "n2", "n3"}


async def test_an_operator_evicts_a_living_member_which_registers_again(start_cluster):
    cluster = await start_cluster(3)
    first, second = cluster.nodes[:2]
    before = await cluster.json(first, "/debug/views")
    status, body = await cluster.request(first, "POST", "/cluster/evict/n2")
    assert (status, json.loads(body)) == (202, {"member": "n2", "proposed": True})

    async def is_told():
        timeline = (await cluster.json(first, "/debug/timeline"))["events"]
        return any(event["kind"] == "registration-gone" and event["member"] == "n2" for event in timeline)

    async with asyncio.timeout(DEADLINE_S):
        while not await is_told():  # noqa: ASYNC110  # another process tells no event
            await asyncio.sleep(0.05)
    await cluster.wait_rings(["n1", "n2", "n3"], DEADLINE_S)
    assert (await cluster.json(second, "/debug/views"))["ring"]["digest"] != before["ring"]["digest"], "a new life"
    assert (await cluster.request(first, "POST", "/cluster/evict/n9"))[0] == 404
    assert (await cluster.request(first, "POST", "/cluster/release"))[0] == 409


async def test_followed_events_end_at_once_with_the_node(start_cluster):
    cluster = await start_cluster(1)
    events = events_of(cluster, cluster.nodes[0])
    assert (await anext(events))[0] == "view"
    ending = asyncio.create_task(asyncio.to_thread(cluster.nodes[0].terminate))
    async with asyncio.timeout(DEADLINE_S):
        async for _ in events:
            pass
        assert await ending == 0
