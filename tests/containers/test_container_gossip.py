"""How soon the others know of a container that was killed, by gossip."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import statistics

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

KILLS = int(os.environ.get("ZEPHYRCACHE_KILLS", "3"))
"""How often. `ZEPHYRCACHE_KILLS=20 make containers` measures it; a few show that it works."""
NODES = 5
KNOWN_MAX_S = 3.0
"""From the end of the process until all others call it dead: ten times what it takes, and less than silence needs."""
LOGGED = re.compile(r"\S*node[_-](?P<number>\d+)\S*\s+\| (?P<entry>\{.*\})")
"""A line of `docker-compose logs`: the container's name ends with its number, in both versions of Compose."""


def unix_s(text: str) -> float:
    """Read Docker's and the logs' times: RFC 3339, with up to nine digits of a second."""
    date, _, fraction = text.rstrip("Z").partition(".")
    return dt.datetime.fromisoformat(f"{date}+00:00").timestamp() + float(f"0.{fraction or 0}")


async def deaths(cluster) -> list[tuple[int, str, float]]:
    """Return (number of the observer, who was called dead, when), from all logs."""
    found = []
    for line in (await cluster.compose("logs", "--no-color")).splitlines():
        match = LOGGED.fullmatch(line)
        entry = json.loads(match["entry"]) if match else {}
        if match and entry.get("event") == "member-dead":
            found.append((int(match["number"]), entry["member"], unix_s(entry["timestamp"])))
    return found


async def test_all_others_know_of_a_killed_container_at_once(start_cluster, docker, figure):
    cluster = await start_cluster(NODES)
    killed = set()
    took_s = []
    for number in range(KILLS):
        nodes = await cluster.nodes()
        victim = nodes[number % NODES]
        others = {node.number for node in nodes if node is not victim}
        await docker("kill", victim.name)
        killed.add(victim.id)
        (state,) = json.loads(await docker("inspect", victim.name))
        ended_s = unix_s(state["State"]["FinishedAt"])

        async def known_s(victim=victim, ended_s=ended_s) -> dict[int, float]:
            called = [item for item in await deaths(cluster) if item[1] == victim.id and item[2] > ended_s]
            return {observer: at_s - ended_s for observer, _, at_s in called}

        async def all_know(known_s=known_s, others=others) -> bool:
            return set(await known_s()) == others

        await cluster.wait_for(all_know, f"all others call {victim.name} dead")
        took_s.append(max((await known_s()).values()))
        await docker("start", victim.name)
        await cluster.wait_ring(NODES)
    figure(f"killed container dead for all {NODES - 1} others, p50 of {KILLS}", statistics.median(took_s))
    figure(f"killed container dead for all {NODES - 1} others, longest of {KILLS}", max(took_s))
    assert {member for _, member, _ in await deaths(cluster)} <= killed
    assert statistics.median(took_s) < KNOWN_MAX_S
