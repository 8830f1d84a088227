"""Real Compose clusters for tests: deploy/docker-compose.yml as it stands, under a project name of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from chaos.drivers.containers import ComposeProject, Container, run

PORTS = "18080-18179"
"""Host ports of the tests: not those of a cluster that somebody has running, and below the ephemeral ones."""
READY_MAX_S = 60.0
"""Longest wait for a ring of all nodes: the interpreters of seven nodes start on two cores."""
TRAFFIC_REQUESTS_MAX = 50_000
"""Bound of a background client's requests, so that a condition that never comes does not fill the memory."""


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float, what: Callable[[], object]) -> None:
    """Wait for a condition; `what` says what was seen last when it does not come."""
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what()}"
        await asyncio.sleep(0.1)


@dataclass
class Traffic:
    """What a client saw that went on writing and reading while something happened."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)


class ComposeCluster(ComposeProject):
    """The nodes and etcd of one Compose project, and a client of them."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        super().__init__(f"zephyrtest{uuid.uuid4().hex[:8]}", PORTS)
        self.session = session
        self._seen: dict[str, Any] = {}

    async def scale(self, count: int) -> None:
        """Start or stop nodes until there are `count`; wait until all of them have one ring and are healthy."""
        await self.compose("up", "-d", "--no-recreate", "--no-build", "--scale", f"node={count}")
        await self.wait_ring(count)

    async def wait_ring(self, count: int, timeout_s: float = READY_MAX_S) -> list[Container]:
        """Wait until `count` nodes run, Docker calls them healthy, and each has exactly them in the same ring."""

        async def one_ring() -> bool:
            found = await self.nodes()
            self._seen = {container.id: container.health for container in found}
            expected = sorted(self._seen)
            if len(found) != count or set(self._seen.values()) != {"healthy"}:
                return False
            try:
                rings = [(await self.json(container, "/debug/views"))["ring"] for container in found]
            except aiohttp.ClientError:
                return False
            self._seen = {ring["digest"]: ring["owners"] for ring in rings}
            return len(self._seen) == 1 and list(self._seen.values()) == [expected]

        await until(one_ring, timeout_s, lambda: self._seen)
        return await self.nodes()

    async def wait_for(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        await until(condition, READY_MAX_S, lambda: what)

    async def json(self, container: Container, path: str) -> Any:
        async with self.session.get(container.url + path) as response:
            return await response.json()

    async def put(self, container: Container, key: str, value: str) -> int:
        async with self.session.put(f"{container.url}/kv/{key}", data=value) as response:
            return response.status

    async def get(self, container: Container, key: str) -> tuple[int, str]:
        async with self.session.get(f"{container.url}/kv/{key}") as response:
            return response.status, await response.text()

    @contextlib.asynccontextmanager
    async def traffic(
        self, through: Sequence[Container], known: dict[str, str], *, may_miss: bool = False
    ) -> AsyncIterator[Traffic]:
        """Write new keys and read known ones through these nodes, one after the other, while the block runs.

        Each answer other than success, and each broken connection, is a failure; with `may_miss`, 404 is none.
        """
        seen = Traffic()
        stop = asyncio.Event()

        async def write_and_read() -> None:
            keys = itertools.cycle(known)
            for number, container in zip(range(TRAFFIC_REQUESTS_MAX // 2), itertools.cycle(through), strict=False):
                if stop.is_set():
                    return
                key = next(keys)
                seen.requests += 2
                try:
                    status = await self.put(container, f"{self.project}-{number}", "written meanwhile")
                    if status != 201:
                        seen.failures.append(f"PUT through {container.name}: {status}")
                    status, value = await self.get(container, key)
                    if (status, value) != (200, known[key]) and not (may_miss and status == 404):
                        seen.failures.append(f"GET {key} through {container.name}: {status} {value}")
                except aiohttp.ClientError as error:
                    seen.failures.append(f"through {container.name}: {error!r}")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write_and_read())
            try:
                yield seen
            finally:
                stop.set()

    async def close(self) -> None:
        """Print the logs, which pytest shows when the test failed, and remove all that the project made."""
        try:
            print(await self.compose("logs", "--no-color", "--tail", "40"))  # noqa: T201
        finally:
            await self.compose("down", "--volumes", "--timeout", "0")


@pytest.fixture
async def start_cluster() -> AsyncIterator[Callable[[int], Awaitable[ComposeCluster]]]:
    """Return a function that starts a Compose cluster of so many nodes; all of it is gone after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(count: int) -> ComposeCluster:
            timeout = aiohttp.ClientTimeout(total=10)
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
            cluster = ComposeCluster(session)
            stack.push_async_callback(cluster.close)
            await cluster.scale(count)
            return cluster

        yield start


@pytest.fixture
def docker() -> Callable[..., Awaitable[str]]:
    """Return a function that runs a Docker command and returns its output."""

    async def docker(*arguments: str) -> str:
        return await run("docker", *arguments)

    return docker
