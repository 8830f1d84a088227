"""Conditions, counters, batches, listings and explanations on a cluster of real nodes, asked at all of them."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import cycle
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from yarl import URL

RACERS = 50
NODES = 3


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


async def send(cluster, node, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Ask one node."""
    url = URL(f"http://{node.http}{path}", encoded=True)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with cluster.session.request(method, url, data=body, headers=named) as response:
        return Answer(response.status, response.headers, await response.read())


async def of_clients(cluster, method: str, path: str, bodies: list[bytes | None], **headers: str):
    """Send these at once, to all nodes in turn."""
    pairs = zip(cycle(cluster.nodes), bodies, strict=False)
    return await asyncio.gather(*[send(cluster, node, method, path, body, **headers) for node, body in pairs])


@pytest.fixture
async def cluster(start_cluster):
    return await start_cluster(NODES, etcd=False)


async def test_of_fifty_that_create_one_does(cluster):
    for number in range(10):
        path = f"/kv/created-{number}"
        bodies = [b"%d" % racer for racer in range(RACERS)]
        answers = await of_clients(cluster, "PUT", path, bodies, If_None_Match="*")
        counts = Counter(answer.status for answer in answers)
        assert counts[201] == 1, counts
        assert set(counts) <= {201, 409, 412}, counts
        winner = next(number for number, answer in enumerate(answers) if answer.status == 201)
        for node in cluster.nodes:
            read = await send(cluster, node, "GET", path)
            assert read.body == bodies[winner]
            assert read.headers["ETag"] == answers[winner].headers["ETag"], "a version is the same on every replica"


async def test_fifty_that_count_are_all_counted(cluster):
    answers = await of_clients(cluster, "POST", "/kv/counter?incr=1", [None] * RACERS)
    assert Counter(answer.status for answer in answers) == {200: RACERS}
    assert sorted([int(answer.body) for answer in answers]) == list(range(1, RACERS + 1))
    assert len({answer.headers["ETag"] for answer in answers}) == RACERS
    for node in cluster.nodes:
        assert (await send(cluster, node, "GET", "/kv/counter")).body == b"%d" % RACERS


async def test_changes_by_version_lose_none(cluster):
    await send(cluster, cluster.nodes[0], "PUT", "/kv/log", b"")

    async def append(node, name: bytes) -> int:
        """Read, add a line, and write where nobody else has; return how often that took."""
        for attempt in range(1, 200):
            read = await send(cluster, node, "GET", "/kv/log")
            body = read.body + name + b"\n"
            written = await send(cluster, node, "PUT", "/kv/log", body, If_Match=read.headers["ETag"])
            if written.status == 204:
                return attempt
            assert written.status in {409, 412}
        raise AssertionError("never written")

    names = [b"client-%d" % number for number in range(12)]
    attempts = await asyncio.gather(
        *[append(node, name) for node, name in zip(cycle(cluster.nodes), names, strict=False)]
    )
    assert max(attempts) > 1, "they were in each other's way"
    lines = (await send(cluster, cluster.nodes[1], "GET", "/kv/log")).body.splitlines()
    assert sorted(lines) == sorted(names)


async def test_a_deadline_is_changed_at_any_node(cluster):
    first, second, third = cluster.nodes
    created = await send(cluster, first, "PUT", "/kv/session?ttl=600", b"value", Content_Type="a/b")
    changed = await send(cluster, second, "PATCH", "/kv/session?ttl=60")
    assert (changed.status, changed.headers["ETag"] != created.headers["ETag"]) == (204, True)
    read = await send(cluster, third, "GET", "/kv/session")
    assert (read.body, read.headers["Content-Type"], read.headers["ETag"]) == (
        b"value",
        "a/b",
        changed.headers["ETag"],
    )
    assert read.headers["Cache-Control"] in {"max-age=59", "max-age=58"}
    removed = await send(cluster, first, "PATCH", "/kv/session?ttl=none", If_Match=changed.headers["ETag"])
    assert removed.status == 204
    assert (await send(cluster, second, "GET", "/kv/session")).headers["Cache-Control"] == "no-cache"
    short = await send(cluster, third, "PATCH", "/kv/session?ttl=50ms")
    assert short.status == 204
    async with asyncio.timeout(10):
        while (await send(cluster, first, "GET", "/kv/session")).status != 404:  # noqa: ASYNC110  # time is the event
            await asyncio.sleep(0.02)
    assert (await send(cluster, second, "PATCH", "/kv/session?ttl=60")).status == 404


async def test_a_batch_of_a_thousand_is_written_and_read_through_every_node(cluster):
    rng = random.Random(3)
    keys = [quote(rng.randbytes(12), safe="") for _ in range(1000)]
    put = json.dumps([{"op": "put", "key": key, "value": "dg=="} for key in keys]).encode()
    get = json.dumps([{"op": "get", "key": key} for key in keys]).encode()
    rows = json.loads((await send(cluster, cluster.nodes[0], "POST", "/batch", put)).body)
    assert Counter(row["status"] for row in rows) == {201: 1000}
    tags = [row["etag"] for row in rows]
    for node in cluster.nodes:
        rows = json.loads((await send(cluster, node, "POST", "/batch?r=all", get)).body)
        assert Counter((row["status"], row["value"]) for row in rows) == {(200, "dg=="): 1000}
        assert [row["etag"] for row in rows] == tags
        assert [row["key"] for row in rows] == keys


async def test_a_listing_through_changing_nodes_has_every_key_that_stays(cluster):
    """Keys that stay are listed while others come and go, page after page at another node."""
    staying = {f"stay-{number}" for number in range(1500)}
    body = [{"op": "put", "key": key, "value": ""} for key in sorted(staying)]
    for part in (body[:1000], body[1000:]):
        assert (await send(cluster, cluster.nodes[0], "POST", "/batch", json.dumps(part).encode())).status == 200
    stop = asyncio.Event()

    async def disturb() -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            node = cluster.nodes[number % NODES]
            await send(cluster, node, "PUT", f"/kv/stay-or-go-{number % 50}", b"x")
            await send(cluster, node, "DELETE", f"/kv/stay-or-go-{(number + 25) % 50}")

    disturbing = asyncio.create_task(disturb())
    try:
        listed: Counter[str] = Counter()
        cursor: str | None = ""
        nodes = cycle(cluster.nodes)
        while cursor is not None:
            path = f"/scan?prefix=stay-&limit=90&cursor={cursor}"
            answer = await send(cluster, next(nodes), "GET", path)
            page = json.loads(answer.body)
            listed.update(page["keys"])
            cursor = page["cursor"]
    finally:
        stop.set()
        await disturbing
    assert staying <= set(listed)
    assert all(key.startswith("stay-") for key in listed)


async def test_a_key_is_explained_by_every_node(cluster):
    created = await send(cluster, cluster.nodes[0], "PUT", "/kv/why?w=all", b"value")
    owners = (await cluster.json(cluster.nodes[0], "/debug/ring?key=why"))["owners"]
    for node in cluster.nodes:
        explained = await cluster.json(node, "/cluster/explain/why")
        assert explained["owners"] == owners
        assert {row["node"] for row in explained["replicas"]} == {"n1", "n2", "n3"}
        for row in explained["replicas"]:
            assert (row["state"], f'"{row["version"]}"') == ("value", created.headers["ETag"]), row
            assert (row["owner"], row["level"], row["hinted"]) == (True, True, [])
    victim = cluster.nodes[2]
    victim.kill()
    written = await send(cluster, cluster.nodes[0], "PUT", "/kv/why", b"other")
    assert written.status == 204
    explained = await cluster.json(cluster.nodes[1], "/cluster/explain/why")
    states = {row["node"]: row["state"] for row in explained["replicas"]}
    assert states.pop(victim.id, "unreachable") == "unreachable"
    assert states == {"n1": "value", "n2": "value"}


async def test_a_sloppy_write_names_the_owner_for_which_another_node_keeps_it(start_cluster):
    cluster = await start_cluster(NODES + 1, etcd=False)
    owners = (await cluster.json(cluster.nodes[0], "/debug/ring?key=kept"))["owners"]
    victim = next(node for node in cluster.nodes if node.id == owners[1])
    coordinator = next(node for node in cluster.nodes if node.id == owners[0])
    victim.kill()
    async with asyncio.timeout(20):
        while (strict := await send(cluster, coordinator, "PUT", "/kv/kept?w=all", b"1")).status != 503:
            assert strict.status == 504, "sent to an owner that nobody knows to be dead yet"
    kept = await send(cluster, coordinator, "PUT", "/kv/kept?w=all&sloppy=true", b"2")
    assert (kept.status in {201, 204}, kept.headers["X-Zephyr-Hinted"]) == (True, victim.id)
    explained = await cluster.json(coordinator, "/cluster/explain/kept")
    assert any(victim.id in row["hinted"] for row in explained["replicas"])
    body = json.dumps([{"op": "put", "key": "kept", "value": ""}]).encode()
    (row,) = json.loads((await send(cluster, coordinator, "POST", "/batch?w=all&sloppy=true", body)).body)
    assert (row["status"], row["hinted"]) == (204, [victim.id])
    (row,) = json.loads((await send(cluster, coordinator, "POST", "/batch?w=all", body)).body)
    assert (row["status"], row["type"]) == (503, "urn:zephyr:problem:unavailable")


async def test_the_commands_ask_a_real_cluster(cluster):
    urls = ",".join(f"http://{node.http}" for node in cluster.nodes)

    async def zephyr(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "zephyr", *arguments, "--url", urls, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def document(*arguments: str) -> Any:
        code, out, err = await zephyr(*arguments, "-o", "json")
        assert code == 0, err
        return json.loads(out)

    assert await zephyr("incr", "n", "5", "--ttl", "1h") == (0, "5\n", "")
    assert await zephyr("incr", "n", "-7") == (0, "-2\n", "")
    assert 3590 <= (await document("ttl", "n"))["expires_s"] <= 3600
    assert await zephyr("ttl", "n", "none") == (0, "", "")
    assert await zephyr("ttl", "n") == (0, "none\n", "")
    tag = (await document("get", "n"))["etag"]
    assert (await zephyr("put", "n", "x", "--if-match", tag.strip('"')))[0] == 0
    code, _, err = await zephyr("put", "n", "y", "--if-match", tag)
    assert (code, err.count("\n"), "condition" in err) == (1, 1, True)
    assert (await zephyr("incr", "n"))[0] == 1, "x is no number"
    assert (await zephyr("get", "absent"))[0] == (await zephyr("ttl", "absent"))[0] == 3
    assert (await zephyr("put", "a/b", "v"))[0] == 0
    assert await zephyr("scan", "--prefix", "a/") == (0, "a%2Fb\n", "")
    explained = await document("explain", "a/b")
    assert [row["state"] for row in explained["replicas"]] == ["value"] * NODES
    members = await document("members")
    assert [row["slots_pending"] for row in members["members"]] == [0] * NODES
    assert (await zephyr("del", "a/b", "--if-match", "*"))[0] == 0
    assert (await zephyr("del", "a/b", "--if-match", "*"))[0] == 1
