"""`zephyr chaos run --driver docker` and the scripts of chaos/ on real containers: and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

CHAOS = Path(__file__).parents[2] / "chaos"
NODES = 3
STAGE_MAX_S = 60.0
"""Until a run is where a test wants to interrupt it."""
RUN = (sys.executable, "-m", "zephyr", "chaos", "run")


def ctrl_c_by_default() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.asynccontextmanager
async def started(*command: str | Path, project: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program in a process group of its own, and with Ctrl-C as it is by default: as a terminal does.

    What runs in the background ignores it, and so does all that it starts; a shell cannot even trap it then.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if project:
        environment["COMPOSE_PROJECT_NAME"] = project
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment,
        start_new_session=True, preexec_fn=ctrl_c_by_default,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def interrupted(process: asyncio.subprocess.Process, text: str) -> str:
    """Press Ctrl-C, twice, when a program has said so; return all that it said."""
    said = ""
    async with asyncio.timeout(STAGE_MAX_S):
        while text not in said:
            line = await process.stdout.readline()
            assert line, f"it ended before: {said}"
            said += line.decode()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
    said += (await process.stdout.read()).decode()
    await process.wait()
    assert process.returncode == 130, said
    return said


async def assert_is_as(cluster, before, said: str) -> None:
    after = await cluster.nodes()
    assert [(node.id, node.networks) for node in after] == [(node.id, node.networks) for node in before], said


async def test_a_cluster_that_runs_is_broken_measured_and_left_as_it_was(start_cluster, docker, figure):
    cluster = await start_cluster(NODES)
    before = await cluster.nodes()

    async with started(*RUN, "wipe-etcd", "--driver", "docker", "-o", "json", project=cluster.project) as process:
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    document = json.loads(said[said.index("\n{\n") :])
    assert document["nodes"] == NODES
    assert document["repetitions"][0]["failed"] == 0, document
    figure("zephyr chaos run wipe-etcd on containers: back and level", document["repetitions"][0]["back_s"])
    await assert_is_as(cluster, before, said)

    async with started(CHAOS / "kill_node.sh", before[0].name, project=cluster.project) as process:
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    happened = [
        f"docker kill {before[0].name}", "first to know: ", "all know", "out of the ring everywhere", "digests equal",
        f"undoing it: {before[0].name}", "back in every ring, and all ready",
    ]  # fmt: skip
    places = [re.search(rf"^ *\d+\.\d\d s  {re.escape(text)}", said, re.MULTILINE) for text in happened]
    assert all(places), said
    assert [match.start() for match in places] == sorted(match.start() for match in places), said
    assert re.search(rf"\d s      {before[1].name}: gossip dead, etcd registered, ring \w{{8}} of {NODES}, ", said), (
        said
    )
    await assert_is_as(cluster, before, said)


async def test_ctrl_c_in_the_middle_mends_what_was_done(start_cluster, docker):
    cluster = await start_cluster(NODES)
    before = await cluster.nodes()
    async with started(*RUN, "disconnect-one", "--driver", "docker", project=cluster.project) as process:
        said = await interrupted(process, "gossip suspect")
    await assert_is_as(cluster, before, said)
    async with started(CHAOS / "pause_node.sh", project=cluster.project) as process:
        await interrupted(process, "gossip suspect")
    assert "Paused" not in await docker("ps", "--format", "{{.Status}}")


async def test_ctrl_c_takes_a_cluster_down_that_was_brought_up_for_the_run(docker):
    async with started(*RUN, "kill-one", "--driver", "docker", "--fresh", "-n", str(NODES)) as process:
        said = await interrupted(process, "gossip dead")
    found = re.search(r"3 containers of the Compose project (zephyrchaos\w+), brought up for this", said)
    assert found, said
    ours = f"label=com.docker.compose.project={found[1]}"
    assert await docker("ps", "--all", "--quiet", "--filter", ours) == ""
    assert await docker("network", "ls", "--quiet", "--filter", ours) == ""
    assert await docker("volume", "ls", "--quiet", "--filter", ours) == ""
