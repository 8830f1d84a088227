"""The processes that the HTTP rows load: a node of the product, and bare aiohttp handlers over a dict.

    python -m bench.servers node --port 8080 --gossip 7946 --id a [--join ... --members 3 --replicas 3] --fill 10000 \
        --state DIRECTORY
    python -m bench.servers low-level|application --port 8080 --fill 10000 --state DIRECTORY

All run on uvloop, hold the first `--fill` keys before they write `ready` into their state directory, and
measure how late their event loop wakes a timer. SIGUSR1 writes the lags since the last one to `lag.json`.

The nodes of a cluster fill themselves with the same records, to the version: no read has anything to repair.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
import uvloop
from aiohttp import web

from bench.keys import VALUE_BYTES, key_of, value_of
from zephyr.config import Settings
from zephyr.ring.ring import key_slot
from zephyr.runtime import Runtime, configure_logging, now, tune_collector
from zephyr.store.record import HybridLogicalClock, pack_record

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]

LAG_PERIOD_S = 0.005
FILL_SLICE = 2000
FILL_UNIX_MS = 1_700_000_000_000
"""When what a node holds at first was written: the same on all, and below what any client writes."""
HEADERS = {
    "Content-Type": "application/octet-stream",
    "ETag": '"019a00000000000000000123456789ab"',
    "Last-Modified": "Sun, 23 Nov 2025 05:06:00 GMT",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Zephyr-Coordinator": "a",
    "X-Zephyr-Replicas": "1/1",
}
"""What a node sends with a value, ready made; Date and Content-Length are aiohttp's."""
PUT_HEADERS = {name: HEADERS[name] for name in HEADERS if name.startswith(("ETag", "X-"))}


class Lags:
    """How late timers fire, in this process."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._lags_ms: list[float] = []
        self._parent = os.getppid()

    def start(self) -> None:
        """Measure from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._write)
        loop.call_later(LAG_PERIOD_S, self._fired, time.monotonic() + LAG_PERIOD_S)

    def _fired(self, due_s: float) -> None:
        if os.getppid() != self._parent:
            os._exit(1)  # Whoever measured is gone.
        now_s = time.monotonic()
        self._lags_ms.append(max(0.0, now_s - due_s) * 1000)
        asyncio.get_running_loop().call_later(LAG_PERIOD_S, self._fired, now_s + LAG_PERIOD_S)

    def _write(self) -> None:
        lags_ms, self._lags_ms = self._lags_ms, []
        whole = self._state / "lag.new"
        whole.write_text(json.dumps(lags_ms), encoding="utf-8")
        whole.rename(self._state / "lag.json")


def _is_ready(runtime: Runtime, members: int) -> bool:
    """Whether a node serves, and all members are in its ring."""
    return hasattr(runtime, "node") and len(runtime.node.ring.members) == members and not runtime.node.readiness()


async def _serve_node(settings: Settings, members: int, fill: int, state: Path) -> int:
    tune_collector()
    runtime = Runtime(settings)
    running = asyncio.create_task(runtime.run())
    Lags(state).start()
    while not running.done() and not _is_ready(runtime, members):  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.02)
    node = runtime.node
    clock = HybridLogicalClock("fill")
    for first in range(0, fill, FILL_SLICE):
        unix_ms = now().unix_ms
        for number in range(first, min(first + FILL_SLICE, fill)):
            key, version = key_of(number), clock.stamp(FILL_UNIX_MS)
            slot = key_slot(key)
            if settings.id in node.ring.owners(slot):
                node.store.apply(slot, key, pack_record(version, value_of(number, VALUE_BYTES)), unix_ms)
        await asyncio.sleep(0)
    (state / "ready").touch()
    return await running


def bare_handlers(fill: int) -> tuple[Handler, Handler]:
    """Return what reads and what writes a dict of so many keys, over bare aiohttp."""
    values = {f"/kv/{key_of(number).decode()}": value_of(number, VALUE_BYTES) for number in range(fill)}

    async def get(request: web.BaseRequest) -> web.Response:
        value = values.get(request.path)
        if value is None:
            return web.Response(status=404)
        return web.Response(body=value, headers=HEADERS)

    async def put(request: web.BaseRequest) -> web.Response:
        status = 204 if request.path in values else 201
        values[request.path] = await request.read()
        return web.Response(status=status, headers=PUT_HEADERS)

    return get, put


def bare_handler(fill: int) -> Handler:
    """Return one handler for both, which needs no router."""
    get, put = bare_handlers(fill)

    async def either(request: web.BaseRequest) -> web.Response:
        return await (get(request) if request.method == "GET" else put(request))

    return either


async def _serve_dict(kind: str, port: int, fill: int, state: Path) -> None:
    if kind == "application":
        get, put = bare_handlers(fill)
        application = web.Application()
        application.add_routes([web.get("/kv/{key}", get), web.put("/kv/{key}", put)])
        runner: web.AppRunner | web.ServerRunner = web.AppRunner(application, access_log=None)
    else:
        runner = web.ServerRunner(web.Server(bare_handler(fill), access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    Lags(state).start()
    (state / "ready").touch()
    await asyncio.Event().wait()


@click.command()
@click.argument("kind", type=click.Choice(["node", "low-level", "application"]))
@click.option("--port", type=int, required=True)
@click.option("--peer", type=int, default=0)
@click.option("--gossip", type=int, default=0)
@click.option("--id", "node_id", default="a")
@click.option("--join", default="")
@click.option("--members", type=int, default=1, help="How many are to be in its ring before it fills itself.")
@click.option("--replicas", type=int, default=1)
@click.option("--fill", type=int, default=0)
@click.option("--memory-mib", type=int, default=256)
@click.option("--state", type=click.Path(path_type=Path), required=True)
def main(
    kind: str,
    port: int,
    *,
    peer: int,
    gossip: int,
    node_id: str,
    join: str,
    members: int,
    replicas: int,
    fill: int,
    memory_mib: int,
    state: Path,
) -> None:
    """Run one server until it is killed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if kind != "node":
            runner.run(_serve_dict(kind, port, fill, state))
            return
        settings = Settings(
            id=node_id, http=f"127.0.0.1:{port}", peer=f"127.0.0.1:{peer}", gossip=f"127.0.0.1:{gossip}",
            etcd=(), replicas=replicas, join=tuple(join.split(",")) if join else (), memory=memory_mib << 20,
        )  # fmt: skip
        configure_logging(settings)
        sys.exit(runner.run(_serve_node(settings, members, fill, state)))


if __name__ == "__main__":
    main()
