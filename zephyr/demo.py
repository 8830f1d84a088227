"""A cluster on this machine, and a tour of what it survives: real processes, a real etcd, kill -9.

Decides what the tour does and what counts as failed. Knows nodes only from outside, by their HTTP API and
their process, as any client does. Whatever it starts is gone when it ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from zephyr.errors import ZephyrError
from zephyr.etcd.embedded import EmbeddedEtcd
from zephyr.process import NodeProcess

PEER_PORT_OFFSET = -234
"""From a node's HTTP port: 8080 and 7846."""
GOSSIP_PORT_OFFSET = -134
"""From a node's HTTP port: 8080 and 7946."""
START_MAX_S = 25.0
"""Longest wait until a node is ready: importing alone takes seconds when all start at once on a small machine."""
HEAL_MAX_S = 12.0
"""Longest wait until a killed node is out of every ring: the lease of 10 s, and 2 s to hear of it."""
GOSSIP_EVICT_AFTER_S = 5
"""Grace of a dead member in a cluster without etcd: the tour should not take the default of half a minute."""
STOP_MAX_S = 5.0
"""Longest wait for nodes told to leave; then they are killed."""
TOUR_MAX_S = 55.0
"""Longest tour; what takes longer has failed."""
POLL_S = 0.05
KEYS = 1000
VALUE_BYTES_MAX = 1024
IN_FLIGHT_MAX = 32
"""Requests at a time while writing and reading everything: enough to keep two cores busy."""
LOAD_TASKS = 4
LOAD_PAUSE_S = 0.01
"""Between two requests of one task: a light load, some hundred requests a second."""
REQUEST_MAX_S = 5.0
"""Longest wait for an answer: more than a node's own deadline of 2 s."""
LOG_TAIL_BYTES = 2000

Show = Callable[[Sequence[str], Sequence[Sequence[Any]]], None]
"""Shows a table: its columns, its rows."""
Say = Callable[[str], None]
"""Tells a person of progress."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    nodes: int
    base_port: int
    cluster: str
    with_etcd: bool
    run_for_s: float | None
    seed: int | None
    tour: bool


@dataclass(slots=True)
class Report:
    """What was measured, in the order in which it happened, and what failed."""

    measures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    """Whether it ended before it had done what it was to do."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON's values."""
        return {"nodes": self.nodes, "measures": self.measures, "failures": self.failures}


def run(plan: Plan, show: Show, say: Say) -> Report:
    """Start the cluster, play the tour or stay, stop everything.

    Raises ZephyrError when the cluster cannot start, KeyboardInterrupt when it was told to stop before the
    tour had ended; everything is stopped then, too.
    """
    check_ports(plan)
    report = asyncio.run(Demo(plan, show, say).run())
    if report.interrupted:
        raise KeyboardInterrupt
    return report


def addresses(plan: Plan, number: int) -> tuple[str, str, str]:
    """Return the HTTP, peer and gossip address of node `number`, from 1."""
    port = plan.base_port + number - 1
    return (f"127.0.0.1:{port}", f"127.0.0.1:{port + PEER_PORT_OFFSET}", f"127.0.0.1:{port + GOSSIP_PORT_OFFSET}")


def check_ports(plan: Plan) -> None:
    """Raise ZephyrError, with one line that names them all, when ports are taken."""
    taken = []
    for number in range(1, plan.nodes + 1):
        for address, kind in zip(
            addresses(plan, number), (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM), strict=True
        ):
            with socket.socket(socket.AF_INET, kind) as probe:
                if kind is socket.SOCK_STREAM:  # As servers do: connections that linger take no port.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                host, _, port = address.rpartition(":")
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise ZephyrError(f"{address} cannot be used: {error.strerror}") from None
                    taken.append(address)
    if taken:
        raise ZephyrError(f"taken: {', '.join(taken)}; choose another --base-port")


class Demo:
    """One run: the cluster, a client of it, what it measured."""

    def __init__(self, plan: Plan, show: Show, say: Say) -> None:
        self.plan = plan
        self.show = show
        self.say = say
        self.seed = secrets.randbits(32) if plan.seed is None else plan.seed
        self.random = random.Random(self.seed)  # noqa: S311  # keys, values and choices of a demonstration
        self.report = Report()
        self.etcd: EmbeddedEtcd | None = None
        self.directory = Path()
        self.nodes: list[NodeProcess] = []
        self.arguments: list[str] = []
        self.session: aiohttp.ClientSession
        self.written: dict[bytes, bytes] = {}

    async def run(self) -> Report:
        """Run from start to stop. Return the report; its failures say what went wrong."""
        self.directory = Path(tempfile.mkdtemp(prefix="zephyr-demo-"))
        kept = True
        interrupted = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, interrupted.set)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._until(interrupted, self._start(stack))
                if self.plan.tour:
                    await self._until(interrupted, self._play())
                self.report.interrupted = interrupted.is_set()
                if not self.report.failures:
                    await self._stay(interrupted)
                self.say("Stopping ...")
            kept = bool(self.report.failures)
        finally:
            if kept:
                shutil.rmtree(self.directory / "etcd" / "member", ignore_errors=True)
                self.say(f"Logs: {self.directory}")
            else:
                shutil.rmtree(self.directory, ignore_errors=True)
        return self.report

    async def _until(self, interrupted: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, or as much of it as there is time for until the person has enough."""
        working = asyncio.create_task(work)
        waiting = asyncio.create_task(interrupted.wait())
        try:
            await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not working.done():
                working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    # --- start and stop -----------------------------------------------------------------------------------

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start etcd, then all nodes; the stack stops them in reverse. Raises ZephyrError."""
        began_s = time.monotonic()
        plan = self.plan
        self.nodes = [
            NodeProcess(f"n{number}", *addresses(plan, number), log=self.directory / f"n{number}.log")
            for number in range(1, plan.nodes + 1)
        ]
        if plan.with_etcd:
            data = self.directory / "etcd"
            data.mkdir()
            self.etcd = EmbeddedEtcd(data=data)
            stack.push_async_callback(self.etcd.close)
            self.say("Starting etcd ...")
            await self.etcd.start()
            self.arguments = ["--etcd", self.etcd.endpoint]
        else:
            seeds = ",".join(node.gossip for node in self.nodes)
            self.arguments = ["--etcd", "none", "--join", seeds, "--gossip-evict-after", f"{GOSSIP_EVICT_AFTER_S}s"]
        self.arguments += ["--cluster", plan.cluster]
        stack.push_async_callback(self._stop)
        self.say(f"Starting {plan.nodes} nodes ...")
        for node in self.nodes:
            node.start(*self.arguments)
        self.session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_MAX_S))
        )
        await self._wait(self._level(self.nodes, self.nodes), START_MAX_S, "not all nodes were ready")
        self.report.nodes = [
            {"id": node.id, "url": f"http://{node.http}", "pid": node.process and node.process.pid}
            for node in self.nodes
        ]
        self.report.measures.update(
            nodes=plan.nodes, etcd="embedded" if plan.with_etcd else "none", seed=self.seed,
            ready_s=round(time.monotonic() - began_s, 2),
        )  # fmt: skip
        self.show(("id", "url", "pid"), [tuple(node.values()) for node in self.report.nodes])

    async def _stop(self) -> None:
        """Tell the nodes to leave; kill those that have not after a while."""
        running = [node for node in self.nodes if node.process is not None]
        for node in running:
            assert node.process is not None
            node.process.terminate()
        deadline_s = time.monotonic() + STOP_MAX_S
        for node in running:
            assert node.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(node.process.wait, max(0.0, deadline_s - time.monotonic()))
            node.kill()

    async def _stay(self, interrupted: asyncio.Event) -> None:
        """Stay until Ctrl-C or for as long as was asked; after a tour only when it was asked."""
        if self.plan.run_for_s is None:
            if self.plan.tour or interrupted.is_set():
                return
            self.say(f"Running until Ctrl-C. Open http://{self.nodes[0].http}/debug, kill another node, and watch.")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(interrupted.wait(), self.plan.run_for_s)

    # --- the tour -----------------------------------------------------------------------------------------

    async def _play(self) -> None:
        """Play the tour and show what it measured; the report has its failures."""
        try:
            async with asyncio.timeout(TOUR_MAX_S):
                await self._tour()
        except TimeoutError:
            self.report.failures.append(f"the tour took longer than {TOUR_MAX_S:.0f} s")
        except ZephyrError as error:
            self.report.failures.append(str(error))
        rows = list(self.report.measures.items())
        self.show(("measure", "value"), rows)
        for failure in self.report.failures:
            self.say(f"FAILED: {failure}")

    async def _tour(self) -> None:
        await self._write_and_read()
        if len(self.nodes) < 3:
            self.say("No node is killed: two of three replicas must answer, so that takes three nodes.")
            return
        victim = self.random.choice(self.nodes)
        survivors = [node for node in self.nodes if node is not victim]
        await self._kill_under_load(victim, survivors)
        await self._read_back("after_the_kill", survivors)
        await self._restart(victim)

    async def _write_and_read(self) -> None:
        """Write every key through some node, then read all of them through every node."""
        measures = self.report.measures
        while len(self.written) < KEYS:
            self.written[self._some_key(len(self.written))] = self.random.randbytes(
                self.random.randint(1, VALUE_BYTES_MAX)
            )
        self.say(f"Writing {KEYS} keys through random nodes ...")
        began_s = time.monotonic()
        writers = [self.random.choice(self.nodes) for _ in self.written]
        failed = await self._each(
            lambda pair: self._write(pair[0], *pair[1]), list(zip(writers, self.written.items(), strict=True))
        )
        measures.update(keys=KEYS, write_s=round(time.monotonic() - began_s, 2), writes_failed=failed)
        if failed:
            self.report.failures.append(f"{failed} of {KEYS} writes failed")
        self.say("Reading all of them through every node ...")
        await self._read_back("before_the_kill", self.nodes)

    def _some_key(self, number: int) -> bytes:
        """Half of the keys are readable, half any bytes at all."""
        return f"key {number}".encode() if number % 2 else self.random.randbytes(self.random.randint(8, 64))

    async def _read_back(self, when: str, nodes: Sequence[NodeProcess]) -> None:
        """Read every key through every one of these nodes; count what is lost and what failed."""
        lost: set[bytes] = set()

        async def read(pair: tuple[NodeProcess, bytes]) -> bool:
            node, key = pair
            status, value = await self._request(node, "GET", key)
            if status == 404 or (status == 200 and value != self.written[key]):
                lost.add(key)
            return status in (200, 404)

        began_s = time.monotonic()
        failed = await self._each(read, [(node, key) for node in nodes for key in self.written])
        reads = len(nodes) * len(self.written)
        self.report.measures.update(
            {
                f"reads_{when}": reads,
                f"reads_{when}_s": round(time.monotonic() - began_s, 2),
                f"reads_failed_{when}": failed,
                f"keys_lost_{when}": len(lost),
            }
        )
        if failed:
            self.report.failures.append(f"{failed} of {reads} reads {when.replace('_', ' ')} failed")
        if lost:
            self.report.failures.append(f"{len(lost)} of {KEYS} keys were lost {when.replace('_', ' ')}")

    async def _kill_under_load(self, victim: NodeProcess, survivors: Sequence[NodeProcess]) -> None:
        """Kill a node while the others serve, until it is out of their rings."""
        measures = self.report.measures
        owners = sorted(node.id for node in survivors)
        self.say(f"Killing {victim.id} (kill -9) while the others serve ...")
        async with self._load(survivors):
            victim.kill()
            measures["killed"] = victim.id
            began_s = time.monotonic()
            measures["out_of_every_ring_s"] = None
            await self._wait(self._rings_are(survivors, owners), HEAL_MAX_S, f"{victim.id} was not out of every ring")
            measures["out_of_every_ring_s"] = round(time.monotonic() - began_s, 2)

    @contextlib.asynccontextmanager
    async def _load(self, nodes: Sequence[NodeProcess]) -> AsyncIterator[None]:
        """Read and write a little all the while; report how many requests failed, and the slowest."""
        done = failed = 0
        slowest_s = 0.0
        keys = list(self.written)
        ended = asyncio.Event()

        async def serve() -> None:
            nonlocal done, failed, slowest_s
            while not ended.is_set():
                node, key = self.random.choice(nodes), self.random.choice(keys)
                began_s = time.monotonic()
                if self.random.randrange(2):
                    succeeded = await self._write(node, key, self.written[key])
                else:
                    succeeded = await self._request(node, "GET", key) == (200, self.written[key])
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                done += 1
                failed += not succeeded
                await asyncio.sleep(LOAD_PAUSE_S)

        tasks = [asyncio.create_task(serve()) for _ in range(LOAD_TASKS)]
        try:
            yield
        finally:
            ended.set()
            await asyncio.gather(*tasks)
            self.report.measures.update(
                requests_meanwhile=done,
                requests_failed_meanwhile=failed,
                slowest_request_ms=math.ceil(slowest_s * 1000),
            )
            if failed:
                self.report.failures.append(f"{failed} of {done} requests failed while a node was killed")

    async def _restart(self, victim: NodeProcess) -> None:
        """Start the killed node again, until it is ready and in every ring."""
        self.say(f"Starting {victim.id} again ...")
        began_s = time.monotonic()
        victim.start(*self.arguments)
        self.report.measures["back_in_every_ring_s"] = None
        await self._wait(self._level([victim], self.nodes), START_MAX_S, f"{victim.id} was not back in every ring")
        self.report.measures["back_in_every_ring_s"] = round(time.monotonic() - began_s, 2)

    # --- asking nodes -------------------------------------------------------------------------------------

    async def _wait(self, condition: Callable[[], Awaitable[bool]], longest_s: float, otherwise: str) -> None:
        """Wait for a condition. Raises ZephyrError when it takes too long, or when a node ended by itself."""
        deadline_s = time.monotonic() + longest_s
        while not await condition():
            for node in self.nodes:
                if node.process is not None and node.ended:
                    code = node.process.returncode
                    raise ZephyrError(f"{node.id} ended by itself with {code}, saying at last: {self._last_line(node)}")
            if time.monotonic() > deadline_s:
                raise ZephyrError(f"{otherwise} within {longest_s:.0f} s")
            await asyncio.sleep(POLL_S)

    def _last_line(self, node: NodeProcess) -> str:
        lines = node.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def _level(self, starting: Sequence[NodeProcess], everyone: Sequence[NodeProcess]) -> Callable[[], Awaitable[bool]]:
        """Return the condition that those starting are ready and everyone has everyone in the ring."""
        owners = sorted(node.id for node in everyone)

        async def level() -> bool:
            for node in starting:
                if (await self._get(node, "/readyz"))[0] != 200:
                    return False
            return await self._rings_are(everyone, owners)()

        return level

    def _rings_are(self, nodes: Sequence[NodeProcess], owners: list[str]) -> Callable[[], Awaitable[bool]]:
        """Return the condition that all these nodes see exactly these owners."""

        async def agree() -> bool:
            return all([await self._owners(node) == owners for node in nodes])

        return agree

    async def _owners(self, node: NodeProcess) -> list[str] | None:
        status, body = await self._get(node, "/debug/views")
        return sorted(json.loads(body)["ring"]["owners"]) if status == 200 else None

    async def _write(self, node: NodeProcess, key: bytes, value: bytes) -> bool:
        return (await self._request(node, "PUT", key, value))[0] in (201, 204)

    async def _request(
        self, node: NodeProcess, method: str, key: bytes, value: bytes | None = None
    ) -> tuple[int, bytes]:
        return await self._send(node, method, f"/kv/{quote(key, safe='')}", value)

    async def _get(self, node: NodeProcess, path: str) -> tuple[int, bytes]:
        return await self._send(node, "GET", path, None)

    async def _send(self, node: NodeProcess, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and body; status 0 when there is no answer."""
        # As it is: a client that tidied the path would change the key.
        url = URL(f"http://{node.http}{path}", encoded=True)
        try:
            async with self.session.request(method, url, data=body) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return 0, b""

    async def _each(self, do: Callable[[Any], Awaitable[bool]], items: Sequence[Any]) -> int:
        """Do something with every item, some at a time. Return how many failed."""
        remaining = iter(items)
        failed = 0

        async def work() -> None:
            nonlocal failed
            for item in remaining:
                failed += not await do(item)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT_MAX):
                tasks.create_task(work())
        return failed
