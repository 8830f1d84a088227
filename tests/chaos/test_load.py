"""The load driver: what it asks and when, what it makes of an answer or of none, and what it writes down.

What answers is no node but a stand-in: an aiohttp server on loopback that says what a test tells it to say.
"""

import asyncio
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from math import inf

import aiohttp
import pytest
from aiohttp import test_utils, web

from chaos import load as driver
from chaos.history import HINT_COUNTS, Death, Fault, Holding, read_history
from chaos.load import Figures, Latency, Load, LoadPlan, figures_of, run_of

VERSION = bytes(range(16))
WAIT_MAX_S = 5.0
PUTS, GETS = {"put_share": 1.0}, {"put_share": 0.0, "delete_share": 0.0}
HINTS = dict(zip(HINT_COUNTS, range(6), strict=True))
KEYS = {f"load-{number}" for number in range(8)}


class StandIn:
    """Says what it is told to, and remembers what it was asked under `/kv/`: (method, target, body)."""

    def __init__(self):
        self.asked = []
        self.status, self.tag, self.body = 201, f'"{VERSION.hex()}"', b""
        """Status 0: it ends the connection instead."""
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.waiting = self.waiting_most = 0
        self.pages = {"/readyz": {}, "/info": {"epoch": 1, "ready": True}, "/debug/timeline": {"events": []}}
        self.show_ring("d1")

    async def answer(self, request):
        if not request.path.startswith("/kv/"):
            page = self.pages.get(request.path)
            return web.Response(status=404) if page is None else web.json_response(page)
        self.asked.append((request.method, request.raw_path.removeprefix("/kv/"), await request.read()))
        self.waiting += 1
        self.waiting_most = max(self.waiting, self.waiting_most)
        await self.go_on.wait()
        self.waiting -= 1
        if not self.status:
            request.transport.abort()
        return web.Response(status=self.status or 500, headers={"ETag": self.tag}, body=self.body)

    def show_ring(self, digest):
        self.pages["/debug/views"] = {"ring": {"digest": digest, "owners": ["n1", "n2"]}}

    def show_timeline(self, *events):
        names = ("sequence", "kind", "member", "at_unix_ms")
        self.pages["/debug/timeline"] = {"events": [dict(zip(names, event, strict=True)) for event in events]}


@pytest.fixture
async def start():
    """Return a function that makes a load on so many stand-ins (n1, n2, ...), and on nodes that are gone."""
    async with AsyncExitStack() as stack:

        async def make(count=1, *gone, **plan):
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            nodes = {f"n{number}": StandIn() for number in range(1, count + 1)}
            addresses = {node_id: f"127.0.0.1:{test_utils.unused_port()}" for node_id in gone}
            for node_id, node in nodes.items():
                app = web.Application()
                app.router.add_route("*", "/{path:.*}", node.answer)
                server = await stack.enter_async_context(test_utils.TestServer(app))
                addresses[node_id] = f"127.0.0.1:{server.port}"
            plan = LoadPlan(**({"rate_per_s": 1000.0, "keys": 8, "value_bytes": 32} | plan))
            return Load(session, addresses, plan, run_of("stand-in", plan)), *nodes.values()

        yield make


async def until(is_met):
    async with asyncio.timeout(WAIT_MAX_S):
        while not is_met():  # noqa: ASYNC110  # what is waited for is a load's or a stand-in's, which tell nobody
            await asyncio.sleep(0.002)


async def play(work, is_enough):
    """Let a load run or watch until there is enough, and stop it."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(work(stop))
        await until(is_enough)
        stop.set()


async def operations_of(load, count):
    await play(load.run, lambda: len(load.history.operations) >= count)
    return load.history.operations


def idle_load(**plan):
    return Load(None, {"n1": "", "n2": ""}, LoadPlan(**plan), run_of("idle", LoadPlan(**plan)))


# --- when it asks -------------------------------------------------------------------------------------


async def test_requests_begin_whether_or_not_earlier_ones_are_answered(start):
    load, node = await start()
    node.go_on.clear()
    stop = asyncio.Event()
    running = asyncio.create_task(load.run(stop))
    await until(lambda: len(node.asked) >= 50)
    assert load.history.operations == [], "none is answered"
    stop.set()
    done, _ = await asyncio.wait([running], timeout=0.05)
    assert not done, "it ends when all is answered"
    node.go_on.set()
    await running
    assert len(load.history.operations) == len(load.latencies) == len(node.asked)


async def test_what_would_be_one_more_than_may_wait_is_left_out_and_counted(start, monkeypatch):
    monkeypatch.setattr(driver, "IN_FLIGHT_MAX", 3)
    load, node = await start()
    node.go_on.clear()
    await play(load.run, lambda: load.left_out >= 20 and not node.go_on.set())
    assert node.waiting_most == 3
    assert len(load.history.operations) == len(node.asked), "what was left out was not asked"


async def test_late_requests_are_made_up_for_and_their_latency_counts_from_when_they_were_due(start):
    load, _ = await start(rate_per_s=50.0)
    behind_s = []

    def is_made_up_for():
        if load.latencies and not behind_s:
            behind_s.append(load.now_s)
            load._begun_s -= 2.0
        return len(load.latencies) > 90

    await play(load.run, is_made_up_for)
    took_s = [item.took_s for item in load.latencies if behind_s[0] < item.due_s < behind_s[0] + 1.9]
    assert len(took_s) > 50, "2 s at 50 a second"
    assert min(took_s) > 0.1
    assert max(took_s) > 1.5


# --- what it asks -------------------------------------------------------------------------------------


async def test_no_two_puts_write_the_same_value_and_what_is_sent_is_written_down(start):
    load, node = await start(put_share=0.5, delete_share=0.5, fleeting_share=0.4, fleeting_ms=700)
    operations = await operations_of(load, 100)
    kinds = Counter(item.kind if not item.ttl_ms else "fleeting" for item in operations)
    assert 35 < kinds["delete"] < 65, "the share that was asked for"
    assert 10 < kinds["fleeting"] < 30
    values = [item.value for item in operations if item.kind == "put"]
    assert len(set(values)) == len(values) > 20
    bodies = [item.value.encode().ljust(32, b".") if item.value else b"" for item in operations]
    targets = [item.key + "?ttl=700ms" * (item.ttl_ms == 700) for item in operations]
    methods = [item.kind.upper() for item in operations]
    assert Counter(node.asked) == Counter(zip(methods, targets, bodies, strict=True))
    assert {item.key for item in operations} == KEYS
    assert {item.key for item in operations if item.kind == "delete"} == {"load-0", "load-4"}, "a quarter"
    assert {item.key for item in operations if item.ttl_ms} == {"load-0", "load-4"}


async def test_the_same_seed_asks_for_the_same_whoever_is_ready(start):
    asked = []
    for seed, nodes in ((1, (1,)), (1, (3, "n9")), (2, (1,))):
        load, *_ = await start(*nodes, seed=seed)
        operations = sorted(await operations_of(load, 60), key=lambda item: item.invoked_s)
        asked.append([(item.process, item.kind, item.key, item.value) for item in operations[:40]])
    assert asked[0] == asked[1] != asked[2]


# --- what an answer means -----------------------------------------------------------------------------

ANSWERS = {"ok": (201, 204), "fail": (409, 412, 413, 429, 503, 507, 508), "info": (400, 408, 500, 502, 504)}
"""docs/http.md: done, refused, or nobody knows."""


@pytest.mark.parametrize(("outcome", "status"), [(word, code) for word, codes in ANSWERS.items() for code in codes])
async def test_the_status_of_an_answer_tells_what_became_of_a_put(start, outcome, status):
    load, node = await start(**PUTS)
    node.status = status
    operations = await operations_of(load, 2)
    assert {(item.outcome, item.version) for item in operations} == {(outcome, VERSION if outcome == "ok" else b"")}
    assert all(item.completed_s <= load.now_s for item in operations), "an answer is an end, whatever it says"
    assert {item.outcome for item in load.latencies} == {outcome}
    assert load.failures == ({} if outcome == "ok" else {f"put: status {status}": len(operations)})


FOUND = [
    (200, b"v7".ljust(32, b"."), "v7"), (200, b"v7", "corrupt: v7"), (200, b"v7".ljust(33, b"."), "corrupt: v7"),
    (200, b"\xff".ljust(32, b"."), "corrupt: \ufffd"), (200, b"", "corrupt: "), (404, b"problem", None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "value"), FOUND)
async def test_a_read_finds_the_value_or_nothing_or_what_nobody_wrote(start, status, body, value):
    load, node = await start(**GETS)
    node.status, node.body, node.tag = status, body, node.tag if status == 200 else ""
    first = (await operations_of(load, 1))[0]
    version = VERSION if status == 200 else b""
    assert (first.kind, first.value, first.version, first.outcome) == ("get", value, version, "ok")


async def test_who_refuses_the_connection_has_done_nothing_and_the_next_is_asked(start):
    load, node = await start(1, "n8", "n9", **PUTS)
    operations = await operations_of(load, 20)
    assert {(item.outcome, item.coordinator) for item in operations} == {("ok", "n1")}
    assert len(node.asked) == len(operations)
    assert [node_id for node_id, is_ready in load._ready.items() if is_ready] == ["n1"], "nor are they asked again"


async def test_a_request_that_nobody_takes_failed(start):
    load = (await start(0, "n8", "n9", **PUTS))[0]
    operations = await operations_of(load, 5)
    assert {(item.outcome, item.completed_s < inf) for item in operations} == {("fail", True)}
    assert load.failures == {"put: nobody is ready": len(operations)}


@pytest.mark.parametrize("is_late", [False, True], ids=["ends", "waits"])
@pytest.mark.parametrize("kind", ["put", "delete", "get"])
async def test_a_connection_that_ends_or_a_time_out_leaves_the_outcome_open_and_nothing_is_sent_twice(
    start, monkeypatch, kind, is_late
):
    monkeypatch.setattr(driver, "REQUEST_MAX_S", 0.05 if is_late else WAIT_MAX_S)
    load, one, two = await start(2, keys=1, put_share=kind == "put", delete_share=kind == "delete")
    one.status = two.status = 0
    one.go_on = two.go_on = asyncio.Event() if is_late else one.go_on
    operations = await operations_of(load, 5)
    assert {(item.kind, item.outcome, item.completed_s) for item in operations} == {(kind, "info", inf)}
    assert len(one.asked) + len(two.asked) <= len(operations)
    assert all(how.endswith("TimeoutError" if is_late else "ConnectionEndedError") for how in load.failures)


async def test_an_answer_that_cannot_be_read_ends_the_run(start):
    load, node = await start(**PUTS)
    node.tag = '"no version"'
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(load.run(asyncio.Event()), WAIT_MAX_S)
    assert caught.group_contains(ValueError, match="non-hexadecimal")


# --- beside the load ----------------------------------------------------------------------------------


async def test_rings_and_hints_are_sampled_and_who_is_not_ready_gets_no_load(start, monkeypatch):
    monkeypatch.setattr(driver, "SAMPLE_S", 0.01)
    load, one, two, three = await start(3)
    one.pages["/info"]["hints"] = HINTS
    two.pages["/info"]["ready"] = False
    del three.pages["/info"]
    await play(load.watch, lambda: len(load.history.samples) >= 4)
    seen = {(item.node, item.digest, item.owners, item.hints) for item in load.history.samples}
    assert seen == {("n1", "d1", ("n1", "n2"), tuple(HINTS.values())), ("n2", "d1", ("n1", "n2"), ())}
    assert {item.coordinator for item in await operations_of(load, 20)} == {"n1"}


async def test_an_operation_tells_the_ring_that_its_node_had_when_it_was_asked(start):
    load, node = await start()
    await load._look("n1")
    node.go_on.clear()
    node.show_ring("d2")
    asking = asyncio.create_task(load.read_back())
    await until(lambda: len(node.asked) == 8)
    await load._look("n1")
    node.go_on.set()
    await asking
    assert {item.ring for item in load.history.operations} == {"d1"}


async def test_each_death_of_the_run_is_written_down_once_and_those_of_a_nodes_next_life_too(start):
    load, node = await start()
    at_ms = load.history.run.unix_ms_at_zero
    dead = [(4, "member-dead", "n3", at_ms - 9000), (5, "member-dead", "n2", at_ms + 1000)]
    node.show_timeline(*dead, (6, "member-alive", "n2", at_ms + 1500), (7, "member-dead", "n2", at_ms + 2000))
    await load._read_timeline("n1")
    await load._read_timeline("n1")
    assert load.history.deaths == [Death("n1", "n2", 1.0), Death("n1", "n2", 2.0)], "n3's was before it"
    node.pages["/info"]["epoch"] = 2
    node.show_timeline((0, "member-dead", "n3", at_ms + 3000))
    await load._read_timeline("n1")
    assert load.history.deaths[2:] == [Death("n1", "n3", 3.0)]


LEVEL = {
    "all": (lambda _: None, (), True),
    "all by name": (lambda _: None, ("n2", "n1"), True),
    "some of the ring": (lambda _: None, ("n1",), False),
    "two rings": (lambda node: node.show_ring("d2"), (), False),
    "not ready": (lambda node: node.pages.pop("/readyz"), (), False),
    "no answer": (lambda node: node.pages.pop("/debug/views"), (), False),
}


@pytest.mark.parametrize(("spoil", "named", "is_level"), LEVEL.values(), ids=LEVEL)
async def test_nodes_are_level_when_they_are_ready_and_make_up_the_one_ring(start, spoil, named, is_level):
    load, _, two = await start(2)
    spoil(two)
    assert await load.is_level(*named) is is_level
    assert len(load.history.levels) == (is_level and not named), "of all alone it is written down"


def test_a_kill_is_written_down_at_once_and_ends_with_the_restart():
    load = idle_load()
    load.fault("pause", ["n2"], 0.0, "5 s")
    load.killed("n1")
    pause, kill = load.history.faults
    assert pause == Fault("pause", ("n2",), 0.0, pause.until_s, "5 s")
    assert kill == Fault("kill", ("n1",), kill.at_s, inf), "nobody has started it again"
    load.restarted("n1")
    again = load.history.faults[-1]
    assert load.history.faults == [pause, kill._replace(until_s=again.until_s)]
    assert 0.0 < pause.until_s <= kill.at_s <= again.until_s <= load.now_s


# --- afterwards ---------------------------------------------------------------------------------------


async def test_stock_is_taken_of_every_key_where_nodes_can_tell(start):
    load, node = await start(keys=2)
    names = ("node", "owner", "level", "state", "version")
    told = [
        ("n1", True, False, "value", VERSION.hex()), ("n2", False, True, "absent", None),
        ("n3", True, False, "unreachable", None),
    ]  # fmt: skip
    node.pages["/cluster/explain/load-1"] = {"replicas": [dict(zip(names, item, strict=True)) for item in told]}
    await load.take_stock()
    assert [item._replace(at_s=0.0) for item in load.history.holdings] == [
        Holding("n1", "load-1", "value", VERSION, is_owner=True, is_level=False),
        Holding("n2", "load-1", "absent", b"", is_owner=False, is_level=True),
    ]
    assert {0.0 < item.at_s < load.now_s for item in load.history.holdings} == {True}


async def test_every_key_is_read_back_through_every_node_so_many_at_once(start, monkeypatch):
    monkeypatch.setattr(driver, "AT_ONCE", 3)
    load, one, two = await start(2)
    one.go_on.clear()
    reading = asyncio.create_task(load.read_back())
    await until(lambda: one.waiting == 3)
    one.go_on.set()
    await reading
    assert max(one.waiting_most, two.waiting_most) == 3
    for node_id, node in (("n1", one), ("n2", two)):
        read = [item.key for item in load.history.operations if item.process == f"last-{node_id}"]
        assert sorted(read) == sorted(target for _, target, _ in node.asked) == sorted(KEYS)
    assert load.latencies == [], "it is no part of the load"


MET = {
    "nothing": ([], [], (0, 0.0, inf, inf, -inf)),
    "all served": ([(1, 0.1, "ok"), (2, 0.3, "ok"), (3, 0.2, "ok")], [], (3, 0.0, 0.2, 0.3, -inf)),
    "a failure without a kill": ([(1, 0.5, "fail"), (2, 0.1, "ok")], [], (2, 0.5, 0.1, 0.5, inf)),
    "the last kill counts": ([(3, 0.5, "fail"), (9, 0.5, "info")], [7, 2, 5, 10], (2, 1.0, 0.5, 0.5, 2.0)),
    "killed while it waited": ([(1, 0.5, "fail")], [1.25], (1, 1.0, 0.5, 0.5, -0.25)),
}


@pytest.mark.parametrize(("latencies", "kills_s", "figures"), MET.values(), ids=MET)
def test_figures_sum_up_what_the_load_met(latencies, kills_s, figures):
    load = idle_load()
    load.latencies = [Latency(*item) for item in latencies]
    load.history.faults = [Fault("kill", ("n1",), at_s, at_s) for at_s in kills_s] + [Fault("pause", (), 0.9, 9)]
    assert figures_of(load) == Figures(*figures)


def test_a_run_is_described_by_its_plan_its_nodes_and_the_clock():
    before_ms = time.time_ns() // 1_000_000
    run = idle_load(seed=5).history.run
    assert before_ms <= run.unix_ms_at_zero <= time.time_ns() // 1_000_000
    assert (run.scenario, run.nodes, run.seed) == ("idle", ("n1", "n2"), 5)
    assert run.request_timeout_s == driver.REQUEST_MAX_S


@pytest.mark.parametrize(("status", "verdict"), [(200, "phantom: red"), (503, "phantom: unknown")])
async def test_the_command_records_a_history_and_judges_it(start, monkeypatch, capsys, tmp_path, *, status, verdict):
    load, node = await start()
    node.status, node.body = status, b"of nobody"
    path = tmp_path / "history.jsonl"
    options = ["--rate", "200", "--seconds", "0.1", "--keys", "4", "--history", str(path)]
    monkeypatch.setattr(sys, "argv", ["load", "--node", f"n1={load.nodes['n1']}", *options])
    assert await asyncio.to_thread(driver.main) == verdict.endswith("red")
    assert verdict in capsys.readouterr().out
    history = read_history(path)
    assert len(history.operations) == len(node.asked) > 4
    assert {item.key for item in history.operations if item.process == "last-n1"} == set(sorted(KEYS)[:4])
    assert history.samples
