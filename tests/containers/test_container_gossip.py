"""How soon the others know of a container that was killed, by gossip."""

from __future__ import annotations

import datetime
import json
import os
import statistics

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

KILLS = int(os.environ.get("ZEPHYRCACHE_KILLS", "3"))
"""How often. `ZEPHYRCACHE_KILLS=20 make containers ONLY=gossip` measures it; a few show that it works."""
NODES = 5
KNOWN_MAX_S = 3.0
"""From the end of the process until all others call it dead: ten times what it takes, and less than silence needs."""


def unix_s(text: str) -> float:
    """Read Docker's and the logs' times: RFC 3339, with up to nine digits of a second."""
    date, _, fraction = text.rstrip("Z").partition(".")
    whole = datetime.datetime.fromisoformat(f"{date}+00:00").timestamp()
    return whole + float(f"0.{fraction or 0}")


async def test_all_others_know_of_a_killed_container_at_once(start_cluster, docker, figure):
    cluster = await start_cluster(NODES)
    took_s = []
    for number in range(KILLS):
        nodes = await cluster.nodes()
        victim, others = nodes[number % NODES], [node for node in nodes if node.number != number % NODES + 1]
        await docker("kill", victim.name)

        async def deaths(killed=victim, survivors=others) -> dict[str, float]:
            """When each of the others called it dead after its end, by their logs."""
            (found,) = json.loads(await docker("inspect", killed.name))
            ended_s = unix_s(found["State"]["FinishedAt"])
            seen: dict[str, float] = {}
            for other in survivors:
                for line in (await docker("logs", other.name)).splitlines():
                    entry = json.loads(line) if line.startswith("{") else {}
                    assert entry.get("event") != "member-dead" or entry["member"] in killed_ids, line
                    if entry.get("event") == "member-dead" and entry["member"] == killed.id:
                        after_s = unix_s(entry["timestamp"]) - ended_s
                        if after_s > 0:
                            seen.setdefault(other.id, after_s)
            return seen

        killed_ids = {node.id for node in nodes[: number + 1]} | {victim.id}

        async def all_know(deaths=deaths) -> bool:
            return len(await deaths()) == NODES - 1

        await cluster.wait_for(all_know, f"all others call {victim.name} dead")
        took_s.append(max((await deaths()).values()))
        await docker("start", victim.name)
        await cluster.wait_ring(NODES)
    figure(f"killed container dead for all {NODES - 1} others, p50 of {KILLS}", statistics.median(took_s))
    figure(f"killed container dead for all {NODES - 1} others, longest of {KILLS}", max(took_s))
    assert statistics.median(took_s) < KNOWN_MAX_S
