"""`/debug/events`, certificates and what operators ask for, over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from test_http import DEADLINE_S, QUICK, Client, a_lonely_node, a_member, now, on_both_loops, serving, until

from zephyr.api.events import ENTRIES_MAX, Follower
from zephyr.config import GOSSIP_PACES, Settings
from zephyr.events import DatagramReceived, EvictionRequested, HoldReleaseRequested, Started
from zephyr.gossip.messages import Dead, Packet, Suspect
from zephyr.model import Instant, Member, Registration, TimelineEntry
from zephyr.node import TIMELINE_MAX, Node


@dataclass
class Event:
    kind: str
    data: Any
    id: int | None


def parsed(text: bytes) -> list[Event]:
    """Read whole events as a browser does; comments are skipped."""
    events = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            number = int(fields["id"]) if "id" in fields else None
            events.append(Event(fields["event"], json.loads(fields["data"]), number))
    return events


def noted(node: Node, *details: str) -> None:
    """Let something happen."""
    for detail in details:
        node.timeline.append(TimelineEntry(now().unix_ms, "user-event", "n1", "gossip", detail))
        node.timeline_end += 1


async def follow(client: Client, **headers: str) -> dict[str, str]:
    """Ask for the stream; return the headers of its beginning."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    client.send(f"GET /debug/events HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
    async with asyncio.timeout(DEADLINE_S):
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    first, *rest = head[:-4].split("\r\n")
    assert first == "HTTP/1.1 200 OK"
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}


async def next_events(client: Client, count: int) -> list[Event]:
    async with asyncio.timeout(DEADLINE_S):
        return parsed(b"".join([await client.reader.readuntil(b"\n\n") for _ in range(count)]))


# --- what a follower is told --------------------------------------------------------------------------


def test_a_new_follower_is_told_the_view_and_then_what_happens():
    node = a_lonely_node()
    follower = Follower(node, None)
    view = {"authority": "gossip", "digest": node.view.digest.hex(), "disagreements": 0}
    assert parsed(follower.take()) == [Event("view", view, None)]
    assert follower.take() == b""
    first = node.timeline_end
    noted(node, "one", "two\nlines")
    events = parsed(follower.take())
    assert [(event.kind, event.data["detail"], event.id) for event in events] == [
        ("user-event", "one", first),
        ("user-event", "two\nlines", first + 1),
    ]
    assert events[0].data.keys() == {"at_unix_ms", "kind", "member", "source", "detail", "sequence"}


def test_a_follower_goes_on_after_the_last_event_that_it_has_seen():
    node = a_lonely_node()
    noted(node, "one", "two", "three")
    events = parsed(Follower(node, node.timeline_end - 3).take())
    assert [event.data.get("detail") for event in events] == ["two", "three", None]
    assert [event.kind for event in parsed(Follower(node, node.timeline_end - 1).take())] == ["view"]


@pytest.mark.parametrize("shift", [-1, -(10**6), 10**6])
def test_a_number_of_another_life_brings_all_that_is_kept(shift):
    node = a_lonely_node()
    last_id = (node.timeline_first if shift < 0 else node.timeline_end) + shift
    events = parsed(Follower(node, last_id).take())
    assert [event.kind for event in events] == [*(entry.kind for entry in node.timeline), "view"]


def test_who_falls_behind_is_told_how_much_was_lost_and_goes_on():
    node = a_lonely_node()
    follower = Follower(node, None)
    follower.take()
    noted(node, *map(str, range(TIMELINE_MAX + 7)))
    events = parsed(follower.take())
    assert events[0] == Event("overflow", {"lost": 7}, None)
    while piece := follower.take():
        assert len(parsed(piece)) <= ENTRIES_MAX + 1
        events += parsed(piece)
    assert [event.data["detail"] for event in events[1:]] == [str(number) for number in range(7, TIMELINE_MAX + 7)]


def test_a_view_that_changed_twice_meanwhile_is_told_once():
    node = a_lonely_node()
    follower = Follower(node, None)
    follower.take()
    node.view = replace(node.view, authority="both")
    node.view = replace(node.view, authority="held")
    assert [event.data["authority"] for event in parsed(follower.take())] == ["held"]
    assert follower.take() == b""


# --- the stream ---------------------------------------------------------------------------------------


@on_both_loops
async def test_events_arrive_as_they_happen():
    node = a_lonely_node()
    async with serving(real_node=node) as served:
        client = await served.connect()
        headers = await follow(client)
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["connection"] == "close"
        assert "content-length" not in headers
        assert [event.kind for event in await next_events(client, 1)] == ["view"]
        for detail in ("one", "two"):
            noted(node, detail)
            served.api.happened()
            [event] = await next_events(client, 1)
            assert (event.data["detail"], event.id) == (detail, node.timeline_end - 1)
        timeline = json.loads((await (await served.connect()).ask("GET", "/debug/timeline")).body)["events"]
        assert event.data == timeline[-1], "the same object on both pages"


@on_both_loops
async def test_last_event_id_resumes_the_stream_and_nonsense_begins_it_anew():
    node = a_lonely_node()
    noted(node, "one", "two")
    async with serving(real_node=node) as served:
        client = await served.connect()
        await follow(client, Last_Event_ID=str(node.timeline_end - 2))
        assert [event.data.get("detail") for event in await next_events(client, 2)] == ["two", None]
        for nonsense in ("", "-1", "x", "9" * 99, "1.5"):
            client = await served.connect()
            await follow(client, Last_Event_ID=nonsense)
            assert [event.kind for event in await next_events(client, 1)] == ["view"]


@on_both_loops
async def test_a_silent_stream_gives_signs_of_life():
    async with serving(replace(QUICK, stream_idle_s=0.02), real_node=a_lonely_node()) as served:
        client = await served.connect()
        await follow(client)
        await next_events(client, 1)
        for _ in range(3):
            async with asyncio.timeout(DEADLINE_S):
                assert (await client.reader.readuntil(b"\n\n")).startswith(b":")


@on_both_loops
async def test_a_stream_outlives_every_limit_of_an_ordinary_answer():
    limits = replace(QUICK, idle_s=0.1, answer_s=0.1, header_s=0.1, stall_s=0.1, stream_idle_s=0.05)
    async with serving(limits, real_node=a_lonely_node()) as served:
        client = await served.connect()
        await follow(client)
        for _ in range(12):
            async with asyncio.timeout(DEADLINE_S):
                await client.reader.readuntil(b"\n\n")
        assert served.open() == 1


@on_both_loops
async def test_streams_are_bounded_and_one_that_ends_makes_room():
    async with serving(replace(QUICK, streams_max=2, idle_s=60), real_node=a_lonely_node()) as served:
        first, second, third = [await served.connect() for _ in range(3)]
        await follow(first)
        await follow(second)
        answer = await third.ask("GET", "/debug/events")
        assert (answer.status, answer.problem, answer.headers["retry-after"]) == (503, "too-many-streams", "1")
        assert await third.is_usable()
        first.writer.transport.abort()
        await until(lambda: served.open() == 2, "the node has seen it go")
        await follow(third)


@on_both_loops
async def test_a_client_that_hangs_up_is_noticed_though_nothing_happens():
    async with serving(real_node=a_lonely_node()) as served:
        client = await served.connect()
        await follow(client)
        client.close()
        await until(lambda: served.open() == 0, "it is gone")
        assert all(stream.is_over for stream in served.api._streams)


@on_both_loops
async def test_who_ended_its_direction_gets_what_there_is_and_the_end():
    node = a_lonely_node()
    noted(node, "one")
    async with serving(real_node=node) as served:
        client = await served.connect()
        client.send(b"GET /debug/events HTTP/1.1\r\nHost: h\r\nLast-Event-ID: 0\r\n\r\n")
        client.writer.write_eof()
        body = (await client.ended()).split(b"\r\n\r\n", 1)[1]
        assert [event.kind for event in parsed(body)][-2:] == ["user-event", "view"]


@on_both_loops
async def test_a_client_that_does_not_read_its_events_is_cut():
    node = a_lonely_node()
    async with serving(replace(QUICK, idle_s=60), real_node=node) as served:
        client = await served.connect(receive_buffer_bytes=4096)
        await follow(client)

        async def is_cut() -> bool:
            noted(node, *["x" * 10_000] * 100)
            served.api.happened()
            await asyncio.sleep(0)
            return served.closed("slow-reader") == 1

        async with asyncio.timeout(DEADLINE_S):
            while not await is_cut():  # noqa: ASYNC110  # it makes things happen meanwhile
                await asyncio.sleep(0.01)
        await until(lambda: served.open() == 0, "it is gone")


@on_both_loops
async def test_streams_end_at_once_when_the_node_stops_also_those_that_nobody_reads():
    node = a_lonely_node()
    async with serving(replace(QUICK, stall_s=60, answer_s=60, close_s=60), real_node=node) as served:
        reading, deaf = await served.connect(), await served.connect(receive_buffer_bytes=4096)
        await follow(reading)
        await next_events(reading, 1)
        await follow(deaf)

        def is_stuck() -> bool:
            noted(node, *["x" * 10_000] * 100)
            served.api.happened()
            return bool(served.api._guard.unread)

        await until(is_stuck, "its buffers are full")
        before_s = asyncio.get_running_loop().time()
        await asyncio.gather(reading.ended(), asyncio.wait_for(served.api.drain(DEADLINE_S), DEADLINE_S))
        assert served.open() == 0
        assert asyncio.get_running_loop().time() - before_s < DEADLINE_S / 2


@on_both_loops
async def test_head_asks_for_no_events():
    async with serving(real_node=a_lonely_node()) as served:
        client = await served.connect()
        answer = await client.ask("HEAD", "/debug/events")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        assert await client.is_usable()
        assert not served.api._streams


# --- certificates -------------------------------------------------------------------------------------


def a_witness() -> tuple[Node, float]:
    """Return a node without etcd that knows n2, n3 and n4, and the second it lives in."""
    node = Node(Settings(id="n1", etcd=()), a_member(), random.Random(1), Instant(0.0, 1_000_000))
    others = [Member(f"n{number}", f"h{number}:1", f"h{number}:2", f"h{number}:3", 1) for number in (2, 3, 4)]
    node.swim.assume(others, Instant(0.0, 1_000_000))
    node.handle(Started(), Instant(0.0, 1_000_000))
    return node, 0.0


def heard(node: Node, sender: str, *messages: Any) -> None:
    node.handle(DatagramReceived(f"h{sender[1:]}:2", Packet(sender, 1, messages)), Instant(0.0, 1_000_000))


@on_both_loops
async def test_the_certificate_of_a_death_is_a_page_at_its_accuser():
    node, _ = a_witness()
    heard(node, "n2", Suspect("n3", 1, 0, "n2"))
    heard(node, "n4", Suspect("n3", 1, 0, "n4"))
    pace = GOSSIP_PACES["lan"]
    end_s = 6.0 * pace.suspicion_multiplier * pace.probe_interval_s + 1
    while (deadline_s := node.swim.deadline()) <= end_s:
        node.swim.poll(Instant(deadline_s, 1_000_000 + round(deadline_s * 1000)))
    async with serving(real_node=node) as served:
        client = await served.connect()
        answer = await client.ask("GET", "/debug/certificate/n3")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        page = json.loads(answer.body)
    assert (page["member"], page["accuser"], page["cause"]) == ("n3", "n1", "silence")
    assert page["accuser_url"] == "http://127.0.0.1:1/debug/certificate/n3"
    assert page["accusers"][:2] == ["n2", "n4"]
    assert page["suspected_at_unix_ms"] == 1_000_000
    lasted_s = (page["declared_at_unix_ms"] - page["suspected_at_unix_ms"]) / 1000
    assert lasted_s == pytest.approx(page["suspicion"]["timeout_s"], abs=0.002)
    steps = page["suspicion"]["timeouts"]
    assert [step["accuser"] for step in steps][:2] == ["n2", "n4"]
    assert page["suspicion"]["max_s"] == steps[0]["timeout_s"] > steps[-1]["timeout_s"] >= page["suspicion"]["min_s"]
    for probe in page["probes"]:
        assert probe.keys() == {"at_unix_ms", "direct_timeout_s", "helpers", "nacks", "tcp_tried"}
    assert page["exit"] == {"refused": False, "udp_silent": False, "observers": [], "timeout_s": None}
    assert {"phi", "rtt_ms", "local_health", "event_loop_lag_s", "members_live"} <= page.keys()


@on_both_loops
async def test_who_only_heard_of_a_death_links_to_the_accuser():
    node, _ = a_witness()
    heard(node, "n2", Dead("n3", 1, 0, "n2"))
    heard(node, "n2", Dead("n4", 1, 0, "stranger"))
    async with serving(real_node=node) as served:
        client = await served.connect()
        assert json.loads((await client.ask("GET", "/debug/certificate/n3")).body) == {
            "member": "n3",
            "accuser": "n2",
            "accuser_url": "http://h2:1/debug/certificate/n3",
            "declared_at_unix_ms": 1_000_000,
        }
        assert json.loads((await client.ask("GET", "/debug/certificate/n4")).body)["accuser_url"] is None


STRANGE_IDS = [
    "",
    "%",
    "%2",
    "%zz",
    "%00",
    "%FF",
    "..",
    "a%2Fb",
    "a%0D%0AX:%20y",
    "%E2%82%AC",
    "x" * 65,
    "n2%20",
    "%25",
]


@on_both_loops
async def test_no_death_and_no_id_are_404():
    node, _ = a_witness()
    async with serving(real_node=node) as served:
        client = await served.connect()
        assert (await client.ask("GET", "/debug/certificate/n3")).problem == "no-certificate"
        for strange in STRANGE_IDS:
            answer = await client.ask("GET", f"/debug/certificate/{strange}")
            assert (answer.status, answer.problem) in {(404, "unknown-member"), (404, "no-certificate")}, strange
        assert (await client.ask("GET", "/debug/certificate/n3/more")).problem == "unknown-page"
        assert (await client.ask("GET", "/debug/certificate")).problem == "unknown-page"
        answer = await client.ask("POST", "/debug/certificate/n3", b"")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


# --- operators ----------------------------------------------------------------------------------------


def a_registered_node() -> Node:
    """A node that knows a registration, and has no objection to its eviction."""
    node = Node(Settings(id="n1"), a_member(), random.Random(1), now())
    node.etcd.registrations["n2"] = Registration(replace(a_member(), id="n2"), 5, 7)
    node.eviction_objection = lambda node_id: "" if node_id == "n2" else f"{node_id} is not registered"
    return node


@on_both_loops
async def test_an_eviction_is_proposed_for_who_is_registered():
    node = a_registered_node()
    async with serving(real_node=node) as served:
        client = await served.connect()
        answer = await client.ask("POST", "/cluster/evict/n2", b"")
        assert (answer.status, json.loads(answer.body)) == (202, {"member": "n2", "proposed": True})
        assert served.node.dispatched == [EvictionRequested("n2")]
        assert (await client.ask("POST", "/cluster/evict/n%32")).status == 202, "the same id, spelled otherwise"
        for unknown in ("n3", *STRANGE_IDS):
            assert (await client.ask("POST", f"/cluster/evict/{unknown}", b"")).problem == "unknown-member", unknown
        assert len(served.node.dispatched) == 2


@on_both_loops
async def test_who_cannot_propose_an_eviction_says_why():
    node = a_registered_node()
    async with serving(real_node=node) as served:
        client = await served.connect()
        node.eviction_objection = lambda _node_id: "etcd is out of reach"
        answer = await client.ask("POST", "/cluster/evict/n2", b"some body")
        assert (answer.status, answer.problem) == (409, "cannot-evict")
        assert json.loads(answer.body)["detail"] == "etcd is out of reach"
        assert await client.is_usable()
        assert served.node.dispatched == []
    async with serving(real_node=a_lonely_node()) as served:
        answer = await (await served.connect()).ask("POST", "/cluster/evict/n2", b"")
        assert answer.problem == "cannot-evict"


@on_both_loops
async def test_a_held_ring_is_let_go_and_one_that_is_not_held_is_a_conflict():
    node = a_registered_node()
    async with serving(real_node=node) as served:
        client = await served.connect()
        answer = await client.ask("POST", "/cluster/release", b"")
        assert (answer.status, answer.problem) == (409, "nothing-held")
        node.view = replace(node.view, authority="held")
        answer = await client.ask("POST", "/cluster/release", b"")
        assert (answer.status, json.loads(answer.body)) == (202, {"released": True})
        assert served.node.dispatched == [HoldReleaseRequested()]


@pytest.mark.parametrize("target", ["/cluster/evict/n2", "/cluster/release"])
def test_what_operators_ask_for_is_posted(target):
    async def run() -> None:
        async with serving(real_node=a_registered_node()) as served:
            client = await served.connect()
            for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
                answer = await client.ask(method, target, b"" if method in ("PUT", "PATCH") else None)
                assert (answer.status, answer.headers["allow"]) == (405, "POST")
            assert served.node.dispatched == []

    asyncio.run(run())


def test_before_the_node_is_there_nothing_is_asked_of_it():
    async def run() -> None:
        async with serving() as served:
            served.api._node = None
            client = await served.connect()
            for method, target in (
                ("GET", "/debug/events"),
                ("GET", "/debug/certificate/n2"),
                ("POST", "/cluster/evict/n2"),
                ("POST", "/cluster/release"),
            ):
                answer = await client.ask(method, target, b"" if method == "POST" else None)
                assert (answer.status, answer.problem) == (503, "not-ready")

    asyncio.run(run())
