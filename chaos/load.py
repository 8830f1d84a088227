"""A load on real nodes, over HTTP, that writes down what it asked and was told: the history of a real run.

Open loop: requests begin at their times, at a set rate, whether or not earlier ones are answered; latency counts from
those times. Clients go to a random node that said that it is ready, as behind a load balancer; one that refuses the
connection has done nothing, and the next is asked. A connection that ends, or a time-out, leaves the outcome open:
nothing is sent twice.

Beside the load, every node is looked at five times a second: its ring, its hints, whom it called dead. Afterwards,
`take_stock` asks where each key is, and `read_back` reads each key through every node.

    python -m chaos.load --node n1=127.0.0.1:8080 --node n2=127.0.0.1:8081 --rate 100 --seconds 30 --history run.jsonl

What is done to the nodes meanwhile its user records, with `killed`, `restarted` and `fault`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from chaos.checkers import check
from chaos.history import (
    HINT_COUNTS,
    STATES,
    Death,
    Fault,
    History,
    Holding,
    HoldingState,
    Level,
    Operation,
    OperationKind,
    OutcomeWord,
    Run,
    Sample,
    write_history,
)
from chaos.report import percentile
from zephyr.api.contract import key_text
from zephyr.model import Address, NodeId

SAMPLE_S = 0.2
TIMELINE_S = 1.0
"""How often nodes are asked whom they called dead."""
REQUEST_MAX_S = 5.0
"""A client waits no longer: more than a node's own deadline of 2 s."""
LOOK_MAX_S = 1.0
"""Longest wait for a page."""
IN_FLIGHT_MAX = 1000
"""Requests that wait; what would be one more is left out, and counted."""
AT_ONCE = 32
"""Requests at a time that are not part of the load."""
VANISHING_EVERY = 4
"""One key of so many is deleted now and then, and written with a deadline: what the others hold must never be gone."""
SKEW_MAX_MS = 50
"""Of clocks on one machine."""
SETTLE_S = 4.0
PADDING = b"."


class LoadPlan(NamedTuple):
    """What is asked for, and how often. The same seed asks for the same."""

    rate_per_s: float = 100.0
    keys: int = 300
    value_bytes: int = 1024
    """Of each value; at least 32."""
    put_share: float = 0.45
    delete_share: float = 0.05
    fleeting_share: float = 0.1
    """Of puts: with a deadline of `fleeting_ms`. They and deletes go to one key of `VANISHING_EVERY`."""
    fleeting_ms: int = 3000
    processes: int = 16
    seed: int = 1


class _Asked(NamedTuple):
    """What a client wants."""

    process: str
    kind: OperationKind
    key: bytes
    value: str | None = None
    ttl_ms: int = 0


_METHODS = {"put": "PUT", "delete": "DELETE", "get": "GET"}


class Latency(NamedTuple):
    """How long one request of the load took, from when it was due."""

    due_s: float
    took_s: float
    outcome: OutcomeWord


class ConnectionEndedError(aiohttp.ClientError):
    """A connection ended before its answer came: whoever was asked may have done it, or may not."""


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send a request once.

    When its connection ends, aiohttp would send a GET, PUT or DELETE anew and tell of the second time alone: of a write
    that a killed node had sent on, that nobody took it.
    """
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionEndedError(str(error)) from error


class Load:
    """One run against nodes that are there already."""

    def __init__(self, session: aiohttp.ClientSession, nodes: dict[NodeId, Address], plan: LoadPlan, run: Run) -> None:
        """`nodes`: id -> where it serves HTTP; taken for ready until they are looked at. Second 0 is now."""
        self.nodes = nodes
        self.plan = plan
        self.history = History(run._replace(nodes=tuple(nodes), unix_ms_at_zero=time.time_ns() // 1_000_000))
        self.latencies: list[Latency] = []
        self.failures: Counter[str] = Counter()
        """How requests of the load failed -> how many."""
        self.left_out = 0
        """Requests that were due while `IN_FLIGHT_MAX` waited."""
        self._session = session
        self._begun_s = time.monotonic()
        self._ready = dict.fromkeys(nodes, True)
        self._digests: dict[NodeId, str] = {}
        self._down: dict[NodeId, Fault] = {}
        """Nodes that were killed and are not restarted."""
        self._seen: dict[NodeId, tuple[int, int]] = {}
        """Node -> (epoch of its life, number of its last event that was read)."""
        self._written = 0
        self._routes = random.Random(plan.seed)
        """Which node is asked: apart from what is asked for, since it depends on who is ready."""

    # --- time and faults ----------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Seconds since the load was made."""
        return time.monotonic() - self._begun_s

    def killed(self, node_id: NodeId) -> None:
        """Write down that a node was killed just now."""
        self._down[node_id] = Fault("kill", (node_id,), self.now_s, inf)
        self.history.add(self._down[node_id])

    def restarted(self, node_id: NodeId) -> None:
        """Write down that it starts again."""
        kill = self._down.pop(node_id)
        self.history.faults.remove(kill)
        self.history.add(kill._replace(until_s=self.now_s))

    def fault(self, fault: str, nodes: Iterable[NodeId], at_s: float, detail: str = "") -> None:
        """Write down something else that was done, and is over now."""
        self.history.add(Fault(fault, tuple(nodes), at_s, self.now_s, detail))

    # --- the load -----------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Ask at the plan's rate, until told to stop and all is answered."""
        rng = random.Random(self.plan.seed)
        waiting: set[asyncio.Task[None]] = set()
        due_s = self.now_s
        async with asyncio.TaskGroup() as group:  # What an operation did not expect ends the run.
            while not stop.is_set():
                due_s += rng.expovariate(self.plan.rate_per_s)
                asked = self._next(rng)
                await asyncio.sleep(max(0.0, due_s - self.now_s))
                if len(waiting) >= IN_FLIGHT_MAX:
                    self.left_out += 1
                    continue
                task = group.create_task(self._operate(asked, due_s))
                waiting.add(task)
                task.add_done_callback(waiting.discard)

    def _next(self, rng: random.Random) -> _Asked:
        """Return the plan's next operation."""
        plan, number = self.plan, rng.randrange(self.plan.keys)
        process, share = f"c{rng.randrange(plan.processes)}", rng.random()
        vanishing = self._key(number - number % VANISHING_EVERY)
        if share < plan.put_share:
            self._written += 1
            value = f"v{self._written}"
            if rng.random() < plan.fleeting_share:
                return _Asked(process, "put", vanishing, value, plan.fleeting_ms)
            return _Asked(process, "put", self._key(number), value)
        if share < plan.put_share + plan.delete_share:
            return _Asked(process, "delete", vanishing)
        return _Asked(process, "get", self._key(number))

    async def _operate(self, asked: _Asked, due_s: float) -> None:
        """Do one operation of the plan."""
        outcome = await self._ask(asked, [node_id for node_id in self.nodes if self._ready.get(node_id)])
        self.latencies.append(Latency(due_s, self.now_s - due_s, outcome))

    def _key(self, number: int) -> bytes:
        return b"load-%d" % number

    async def _ask(self, asked: _Asked, left: list[NodeId]) -> OutcomeWord:
        """Do one operation through one of some nodes, and write it down."""
        invoked_s, value, version = self.now_s, asked.value, b""
        outcome: OutcomeWord = "fail"
        completed_s, node_id, ring, how = inf, next(iter(self.nodes)), "", "nobody is ready"
        while left:
            node_id = left.pop(self._routes.randrange(len(left)))
            ring = self._digests.get(node_id, "")
            try:
                status, tag, body = await self._request(node_id, asked)
            except aiohttp.ClientConnectorError:
                self._ready[node_id] = False  # Nothing was sent; somebody else may serve it.
                continue
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome, how = "info", type(error).__name__
                break
            outcome, completed_s, how = _outcome_of(status), self.now_s, f"status {status}"
            if outcome == "ok":
                version = bytes.fromhex(tag.strip('"'))
                value = self._value(body) if asked.kind == "get" and status == 200 else value
            break
        completed_s = self.now_s if outcome == "fail" else completed_s
        if outcome != "ok":
            self.failures[f"{asked.kind}: {how}"] += 1
        self.history.add(
            Operation(
                asked.process, asked.kind, key_text(asked.key), value, version, invoked_s, completed_s, outcome,
                node_id, ttl_ms=asked.ttl_ms, ring=ring,
            )
        )  # fmt: skip
        return outcome

    async def _request(self, node_id: NodeId, asked: _Asked) -> tuple[int, str, bytes]:
        """Send one request. Return status, ETag and body."""
        path = f"/kv/{key_text(asked.key)}" + (f"?ttl={asked.ttl_ms}ms" if asked.ttl_ms else "")
        url = URL(f"http://{self.nodes[node_id]}{path}", encoded=True)
        body = None if asked.value is None else self._body(asked.value)
        timeout = aiohttp.ClientTimeout(total=REQUEST_MAX_S)
        method = _METHODS[asked.kind]
        async with self._session.request(method, url, data=body, timeout=timeout, middlewares=(_once,)) as response:
            return response.status, response.headers.get("ETag", ""), await response.read()

    def _body(self, value: str) -> bytes:
        return value.encode().ljust(self.plan.value_bytes, PADDING)

    def _value(self, body: bytes) -> str:
        """Return the value of a body; of one that nobody wrote, something that nobody wrote either."""
        value = body.rstrip(PADDING).decode(errors="replace")
        return value if self._body(value) == body else f"corrupt: {value[:100]}"

    # --- beside the load ----------------------------------------------------------------------------------

    async def watch(self, stop: asyncio.Event) -> None:
        """Look at every node, again and again, until told to stop."""
        timeline_s = 0.0
        while not stop.is_set():
            begun_s = self.now_s
            await asyncio.gather(*(self._look(node_id) for node_id in self.nodes))
            if begun_s >= timeline_s:
                timeline_s = begun_s + TIMELINE_S
                await asyncio.gather(*(self._read_timeline(node_id) for node_id in self.nodes))
            await asyncio.sleep(max(0.0, begun_s + SAMPLE_S - self.now_s))

    async def _look(self, node_id: NodeId) -> None:
        """Take note of a node's ring and hints, and of whether it is ready."""
        views, info = await self._page(node_id, "/debug/views"), await self._page(node_id, "/info")
        if views is None or info is None:
            self._ready[node_id] = False
            return
        counts = info.get("hints")
        hints = tuple(int(counts[name]) for name in HINT_COUNTS) if counts else ()
        digest, owners = views["ring"]["digest"], tuple(views["ring"]["owners"])
        self.history.add(Sample(node_id, self.now_s, digest, owners, hints))
        self._digests[node_id], self._ready[node_id] = digest, bool(info["ready"])

    async def _read_timeline(self, node_id: NodeId) -> None:
        """Take note of whom a node called dead since it was asked last; its next life begins anew."""
        info = await self._page(node_id, "/info")
        if info is None:
            return
        epoch, last = self._seen.get(node_id, (0, -1))
        last = last if epoch == info["epoch"] else -1
        page = await self._page(node_id, "/debug/timeline")
        for event in page["events"] if page is not None else ():
            if event["kind"] == "member-dead" and event["sequence"] > last:
                at_s = (event["at_unix_ms"] - self.history.run.unix_ms_at_zero) / 1000
                if at_s >= 0.0:  # What was before the load is no part of its run.
                    self.history.add(Death(node_id, event["member"], at_s))
            last = max(last, event["sequence"])
        self._seen[node_id] = (info["epoch"], last)

    async def _page(self, node_id: NodeId, path: str) -> Any:
        """Return a page's document; None when there is none."""
        timeout = aiohttp.ClientTimeout(total=LOOK_MAX_S)
        try:
            async with self._session.get(f"http://{self.nodes[node_id]}{path}", timeout=timeout) as response:
                return await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _is_ready(self, node_id: NodeId) -> bool:
        """Ask a node what a load balancer would."""
        timeout = aiohttp.ClientTimeout(total=LOOK_MAX_S)
        try:
            async with self._session.get(f"http://{self.nodes[node_id]}/readyz", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def is_level(self, *node_ids: NodeId) -> bool:
        """Whether these nodes are ready and make up the one ring; all, and it is written down, when none is named."""
        named = node_ids or tuple(self.nodes)
        views = await asyncio.gather(*(self._page(node_id, "/debug/views") for node_id in named))
        ready = await asyncio.gather(*(self._is_ready(node_id) for node_id in named))
        if not all(ready) or any(page is None for page in views):
            return False
        is_one = len({view["ring"]["digest"] for view in views}) == 1 and views[0]["ring"]["owners"] == sorted(named)
        if is_one and not node_ids:
            self.history.add(Level(self.now_s))
        return is_one

    # --- afterwards ---------------------------------------------------------------------------------------

    async def take_stock(self) -> None:
        """Write down what every node keeps of every key, where they can tell (`/cluster/explain`)."""
        at_s = self.now_s
        await _each(self.plan.keys, lambda number: self._explain(number, at_s))

    async def _explain(self, number: int, at_s: float) -> None:
        text = key_text(self._key(number))
        page = await self._page(next(iter(self.nodes)), f"/cluster/explain/{text}")
        for replica in page["replicas"] if page is not None else ():
            state: HoldingState | None = _STATES.get(replica["state"])
            if state is not None:
                version = bytes.fromhex(replica["version"] or "")
                is_owner, is_level = bool(replica["owner"]), bool(replica["level"])
                self.history.add(
                    Holding(replica["node"], text, state, version, is_owner=is_owner, is_level=is_level, at_s=at_s)
                )

    async def read_back(self) -> None:
        """Read every key through every node."""
        for node_id in self.nodes:
            await _each(
                self.plan.keys,
                lambda number, node_id=node_id: self._ask(  # type: ignore[misc]
                    _Asked(f"last-{node_id}", "get", self._key(number)), [node_id]
                ),
            )


_STATES: dict[str, HoldingState] = {state: state for state in STATES}  # type: ignore[misc]


async def _each(count: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Do something for each number below `count`, `AT_ONCE` at a time."""
    numbers = iter(range(count))

    async def take() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(take())


def _outcome_of(status: int) -> OutcomeWord:
    """Tell what an answer means (http.md): nothing was done, or nobody knows, or it was done."""
    if status in (200, 201, 204, 404):
        return "ok"
    return "fail" if status in (409, 412, 413, 429, 503, 507, 508) else "info"


def run_of(scenario: str, plan: LoadPlan) -> Run:
    """Describe a run on one machine, for a `Load` to fill in the rest."""
    return Run(
        scenario=scenario,
        nodes=(),
        replicas=3,
        unix_ms_at_zero=0,
        clock_skew_max_ms=SKEW_MAX_MS,
        request_timeout_s=REQUEST_MAX_S,
        settle_s=SETTLE_S,
        seed=plan.seed,
    )


class Figures(NamedTuple):
    """What the load met."""

    operations: int
    failed_share: float
    """Of refused requests and of those whose outcome is not known."""
    p50_s: float
    p99_s: float
    failed_late_s: float
    """Of all requests that failed, the longest time from the last kill to when one was due; -inf: none failed."""


def figures_of(load: Load) -> Figures:
    """Sum up a load."""
    failed = [item for item in load.latencies if item.outcome != "ok"]
    kills_s = sorted(fault.at_s for fault in load.history.faults if fault.fault == "kill")
    late_s = -inf
    for item in failed:
        since = [item.due_s - at_s for at_s in kills_s if at_s <= item.due_s + item.took_s]
        late_s = max(late_s, min(since, default=inf))
    took = [item.took_s for item in load.latencies]
    share = len(failed) / max(1, len(load.latencies))
    return Figures(len(load.latencies), share, percentile(took, 0.5), percentile(took, 0.99), late_s)


async def _play(nodes: dict[NodeId, Address], plan: LoadPlan, seconds: float) -> Load:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        load, stop = Load(session, nodes, plan, run_of("load", plan)), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.watch(stop))
            group.create_task(load.run(stop))
            await asyncio.sleep(seconds)
            stop.set()
        await load.is_level()
        await load.take_stock()
        await load.read_back()
        return load


def main() -> int:
    """Run the command line. Return 0 when nothing was red."""
    parser = argparse.ArgumentParser(description="A load on running nodes, recorded and judged.")
    parser.add_argument(
        "--node", action="append", required=True, metavar="ID=HOST:PORT", help="where a node serves HTTP"
    )
    parser.add_argument("--rate", type=float, default=LoadPlan().rate_per_s, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--keys", type=int, default=LoadPlan().keys)
    parser.add_argument("--seed", type=int, default=LoadPlan().seed)
    parser.add_argument("--history", type=Path, help="write the history to a file")
    arguments = parser.parse_args()
    nodes = dict(text.partition("=")[::2] for text in arguments.node)
    plan = LoadPlan(rate_per_s=arguments.rate, keys=arguments.keys, seed=arguments.seed)
    load = asyncio.run(_play(nodes, plan, arguments.seconds))
    load.history.sort()
    if arguments.history is not None:
        write_history(arguments.history, load.history)
    print(figures_of(load))
    report = check(load.history)
    for verdict in report.verdicts:
        print(f"{verdict.name}: {verdict.colour} {verdict.note}".rstrip())
    return 1 if report.red else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
