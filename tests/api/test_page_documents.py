"""The `/debug` page on documents alone: what it says of each of them, in a real browser without a node.

Every request of the browser is answered from here; the files are those that a node serves, with the same headers.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from zephyr.api import gather
from zephyr.api.assets import assets

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

ORIGIN = "http://zephyr.test"
SHOWN_MAX_S = 20.0
"""For what is awaited here: far above what it takes."""


def expect(target: Any) -> Any:
    from playwright.async_api import expect as expect_of_playwright  # noqa: PLC0415  # only these tests need it

    expect_of_playwright.set_options(timeout=SHOWN_MAX_S * 1000)
    return expect_of_playwright(target)


def member(node_id: str, **values: Any) -> dict[str, Any]:
    return {
        "id": node_id, "http": f"{node_id}:8080", "state": "serving", "epoch": 1,
        "gossip": {"state": "alive", "incarnation": [1, 0], "since_s": 60.0, "phi": 0.1, "rtt_ms": 0.3},
        "etcd": {"state": "registered", "revision": 7, "since_s": 60.0},
        "in_ring": True, "routable": True, "verdict": "agree", "reason": "registered and serving", **values,
    }  # fmt: skip


def dead(node_id: str, **values: Any) -> dict[str, Any]:
    reason = "gossip says dead for 4.2 s, etcd still holds its lease; leaves the ring when its eviction commits"
    gossip = {"state": "dead", "incarnation": [1, 0], "since_s": 4.2, "phi": 9.0, "rtt_ms": None}
    return member(
        node_id, **{"gossip": gossip, "routable": False, "verdict": "gossip-first", "reason": reason, **values}
    )


def views(node_id: str, *members: dict[str, Any], **values: Any) -> dict[str, Any]:
    owners = [row["id"] for row in members if row["in_ring"]]
    return {
        "node": node_id, "cluster": "dev", "now_unix_ms": time.time_ns() // 1_000_000,
        "authority": "both", "authority_since_s": 100.0,
        "etcd": {"state": "connected", "revision": 7, "lease_ttl_s": 9.1, "reason": ""},
        "gossip": {"health": 0, "probe_interval_s": 1.0, "event_loop_lag_s": 0.001},
        "ring": {"epoch": "1-7", "digest": "aa11bb22cc33dd44", "owners": owners},
        "disagreements": 0, "members": list(members), **values,
    }  # fmt: skip


def info(node_id: str, **values: Any) -> dict[str, Any]:
    return {
        "id": node_id, "version": "0.1.0", "uptime_s": time.monotonic(), "epoch": 1, "items": 1000, "bytes": 1 << 20,
        "bytes_max": 1 << 28, "slots_pending": 0, "requests": {"get": 5, "put": 7, "page": 1000}, **values,
    }  # fmt: skip


def answer(said: dict[str, Any], figures: dict[str, Any] | None = None) -> dict[str, Any]:
    node_id = said["node"]
    return {
        "id": node_id, "http": f"{node_id}:8080", "answered": True, "reason": "", "took_ms": 1.0, "views": said,
        "info": figures or info(node_id),
    }  # fmt: skip


def silence(node_id: str, reason: str) -> dict[str, Any]:
    return {
        "id": node_id, "http": f"{node_id}:8080", "answered": False, "reason": reason, "took_ms": 1.0, "views": None,
        "info": None,
    }  # fmt: skip


def cluster(*nodes: dict[str, Any], not_asked: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "node": nodes[0]["id"], "now_unix_ms": nodes[0]["views"]["now_unix_ms"], "took_ms": 2.0,
        "nodes": list(nodes), "not_asked": list(not_asked),
    }  # fmt: skip


class Backend:
    """Stands for a node: answers what the page asks."""

    def __init__(self, gathered: dict[str, Any], events: tuple[dict[str, Any], ...] = ()) -> None:
        own = gathered["nodes"][0]["views"]
        share = 1 / max(1, len(own["ring"]["owners"]))
        self.pages: dict[str, Any] = {
            "/debug/views": own,
            "/debug/cluster": gathered,
            "/debug/ring": {
                "epoch": "1-7", "digest": own["ring"]["digest"], "virtual_nodes": 1024, "pending": [],
                "owners": [
                    {"id": owner, "share": share, "replica_share": min(1.0, 3 * share), "tokens": 1024}
                    for owner in own["ring"]["owners"]
                ],
            },
        }  # fmt: skip
        self.events = events
        self.is_away = False

    async def serve(self, route: Any) -> None:
        url = urlsplit(route.request.url)
        found = assets().get(url.path.encode())
        if self.is_away and found is None:
            await route.abort()
        elif found is not None:
            response = found.response()
            headers = {name.decode(): value.decode() for name, value in response.headers}
            await route.fulfill(status=200, headers=headers, body=response.body)
        elif url.path == "/debug/events":
            numbered = enumerate(self.events, 1)
            text = "".join(
                f"id: {number}\nevent: {event['kind']}\ndata: {json.dumps({**event, 'sequence': number})}\n\n"
                for number, event in numbered
            )
            await route.fulfill(status=200, content_type="text/event-stream", body=text)
        else:
            target = f"{url.path}?{url.query}" if url.query else url.path
            document = self.pages.get(target)
            if document is None:
                await route.fulfill(status=404, json={"detail": "nothing is known of that"})
            else:
                await route.fulfill(json=document)


@pytest.fixture
def show(new_page):
    async def show(backend: Backend, width: int = 1280, **options: Any) -> tuple[Any, Any]:
        page, seen = await new_page(width=width, **options)
        await page.route("**/*", backend.serve)
        await page.goto(f"{ORIGIN}/debug")
        await expect(page.locator(".banner")).to_be_visible()
        return page, seen

    return show


THREE = (member("n1"), member("n2"), member("n3"))
KILLED = (member("n1"), member("n2"), dead("n3"))
AWAY = {"state": "unreachable", "revision": 7, "lease_ttl_s": 2.0, "reason": "etcd:2379: connection refused"}
OFF = {"state": "off", "revision": 0, "lease_ttl_s": None, "reason": ""}
UNCONFIRMED = "gossip says alive, etcd cannot be reached by anyone heard; the last committed ring stands"
LED_BY_GOSSIP = tuple(
    member(name, verdict="unconfirmed", reason=UNCONFIRMED, etcd={"state": "unreachable", "revision": 7, "since_s": 5})
    for name in ("n1", "n2", "n3")
)


def three(*members: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return a cluster of three of which all say the same."""
    return cluster(*(answer(views(name, *members, **values)) for name in ("n1", "n2", "n3")))


VERDICTS = {
    "calm": (three(*THREE), "calm", ["All is well: 3 members, one ring. Etcd and gossip agree on every member."]),
    "alone": (
        cluster(answer(views("n1", member("n1", etcd={"state": "off", "revision": 0, "since_s": 1}),
                             authority="gossip", etcd=OFF))),
        "calm",
        ["All is well: 1 member owns all data. Gossip hears everybody."],
    ),
    "killed": (
        cluster(answer(views("n1", *KILLED)), answer(views("n2", *KILLED)), silence("n3", "connection refused")),
        "alarm",
        [("n3: gossip says dead for 4.2 s, etcd still holds its lease; leaves the ring when its eviction commits. "
         "All 2 who answer say so.")],
    ),
    "not known to all": (
        cluster(answer(views("n1", *KILLED)), answer(views("n2", *THREE)), silence("n3", "connection refused")),
        "alarm",
        [("n3: gossip says dead for 4.2 s, etcd still holds its lease; leaves the ring when its eviction commits. "
         "n1 says dead; n2 says alive.")],
    ),
    "known to others alone": (
        cluster(answer(views("n1", *THREE)), answer(views("n2", *KILLED)), silence("n3", "nothing came within 1 s")),
        "watch",
        ["n3: the members do not agree. n1 says alive; n2 says dead.",
         "n3 did not answer n1: nothing came within 1 s."],
    ),
    "another ring": (
        cluster(answer(views("n1", *THREE)), answer(views("n2", *THREE)),
                answer(views("n3", *THREE, ring={"epoch": "1-6", "digest": "ff00ff00", "owners": ["n1"]}))),
        "watch",
        ["n3 has another ring (ff00ff00) than n1 (aa11bb22)."],
    ),
    "gossip leads": (
        three(*LED_BY_GOSSIP, authority="gossip", authority_since_s=3.0, etcd=AWAY),
        "watch",
        [("Gossip leads for 3.0 s: etcd cannot be reached by anyone heard, and the last ring stands "
         "(etcd:2379: connection refused).")],
    ),
    "held": (
        three(*THREE, authority="held", authority_since_s=2.0),
        "watch",
        ["The last ring is held for 2.0 s: etcd lost most registrations at once, and gossip hears those members."],
    ),
    "relayed at one": (
        cluster(answer(views("n1", *THREE)), answer(views("n2", *THREE, authority="relayed"))),
        "watch",
        ["n2 says that etcd leads, by way of a peer; n1 says that etcd and gossip lead."],
    ),
    "nobody": (
        cluster(answer(views("n1", *THREE, authority="none", authority_since_s=7.0)), silence("n2", "host unreachable"),
                silence("n3", "host unreachable")),
        "alarm",
        ["Nobody leads for 7.0 s: n1 is alone, in a minority, or knows no ring yet.",
         "n2 and n3 did not answer n1: host unreachable."],
    ),
    "an authority of a later version": (
        three(*THREE, authority="oracle", authority_since_s=7.0), "watch", ["oracle leads for 7.0 s."],
    ),
}  # fmt: skip


async def test_the_verdict_says_what_there_is_to_be_said(show):
    backend = Backend(VERDICTS["calm"][0])
    page, seen = await show(backend)
    for document, level, lines in VERDICTS.values():
        backend.pages["/debug/cluster"] = document
        newest = {**document["nodes"][0]["views"], "now_unix_ms": time.time_ns() // 1_000_000}
        backend.pages["/debug/views"] = newest
        shown = page.locator(f".banner.{level} .lines p")
        await expect(shown).to_have_text(
            [re.compile(rf"^\s*{re.escape(line)}( So say all \d nodes.)?\s*$") for line in lines]
        )
        await expect(page.locator("#spoken")).not_to_have_text(re.compile(r"for [\d.]+ s"))
    assert seen.complaints == []
    assert all(url.startswith(f"{ORIGIN}/") for url in seen.urls)


async def test_nothing_is_spoken_again_because_time_has_passed(show):
    backend = Backend(VERDICTS["killed"][0])
    page, _ = await show(backend)
    await expect(page.locator("#spoken")).to_contain_text("n3: gossip says dead, etcd still holds its lease")
    await page.evaluate(
        "() => { window.spokenTimes = 0; new MutationObserver(() => { window.spokenTimes += 1; })"
        ".observe(document.getElementById('spoken'), {childList: true, characterData: true, subtree: true}); }"
    )
    later = json.loads(json.dumps(backend.pages["/debug/views"]).replace("4.2 s", "7.9 s"))
    backend.pages["/debug/views"] = {**later, "now_unix_ms": later["now_unix_ms"] + 3700}
    await expect(page.locator(".banner .lines")).to_contain_text("dead for 7.9 s")
    assert await page.evaluate("() => window.spokenTimes") == 0


@pytest.mark.parametrize(
    ("count", "width", "is_dark"),
    [(1, 390, False), (5, 390, True), (70, 390, True), (16, 1280, True), (70, 1280, False)],
)
async def test_a_cluster_of_any_size_fits_the_screen(show, count, width, is_dark):
    names = [f"node-{number}" for number in range(1, count + 1)]
    members = [member(name) if number % 7 != 3 else dead(name) for number, name in enumerate(names)]
    asked = names[: gather.PEERS_MAX]
    nodes = [answer(views(name, *members)) if number % 7 != 3 else silence(name, "nothing came within 1 s")
             for number, name in enumerate(asked)]  # fmt: skip
    page, seen = await show(
        Backend(cluster(*nodes, not_asked=tuple(names[len(asked) :]))), width=width, height=844, is_dark=is_dark
    )
    await expect(page.locator(".matrix tbody tr")).to_have_count(len(asked) + 2)
    await expect(page.locator(".matrix thead th .id")).to_have_count(count)
    await expect(page.locator(".ring .shares tbody tr")).to_have_count(count)
    await expect(page.locator(".figures tbody tr")).to_have_count(len(asked))
    assert await page.locator(".banner .lines li").count() <= 6
    assert await page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "it scrolls to no side"
    if count > len(asked):
        await expect(page.locator(".facts")).to_contain_text(f"{count - len(asked)} were not asked")
    background = await page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == is_dark
    assert seen.complaints == []


async def test_whatever_a_peer_leaves_out_the_page_stands(show):
    hollow = gather._taken({"node": "n2", "members": [{"id": "n1"}, {"id": "n3"}]}, gather._VIEWS)
    nothing = gather._taken({}, gather._INFO)
    page, seen = await show(
        Backend(cluster(answer(views("n1", *THREE)), answer(hollow, nothing), answer(views("n3", *THREE))))
    )
    await expect(page.locator(".banner .lines")).to_contain_text("n2 has another ring")
    await expect(page.locator(".figures tbody tr")).to_have_count(3)
    assert seen.complaints == []


async def test_text_from_outside_stays_text(show):
    bad = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
    kinds = {"member-dead": "gossip", bad: "etcd", "ring-changed": "ring", "authority": "authority"}
    at_unix_ms = time.time_ns() // 1_000_000
    events = tuple(
        {"at_unix_ms": at_unix_ms, "kind": kind, "member": bad, "source": source, "detail": bad}
        for kind, source in kinds.items()
    )
    own = views("n1", member("n1", verdict=bad, reason=bad), *THREE[1:], cluster=bad)
    document = cluster(answer(own), silence("n2", bad), answer(views("n3", *THREE, authority=bad)))
    backend = Backend(document, events)
    backend.pages["/debug/ring?key=k"] = {"key": "k", "slot": 5, "owners": [bad], "explain": None}
    page, seen = await show(backend)
    await page.fill("#key", "k")
    await page.press("#key", "Enter")
    await expect(page.locator(".key .owners li")).to_contain_text(bad)
    await expect(page.locator(".banner .lines")).to_contain_text(bad)
    await expect(page.locator(".events tbody tr")).to_have_count(4)
    assert await page.locator("img, script").count() == 2, "the page's own icon and script"
    refused = "() => { try { document.body.innerHTML = '<b>x</b>'; return '' } catch (error) { return error.name } }"
    assert await page.evaluate(refused) == "TypeError", "the browser takes no text for markup"
    assert [text for text in seen.complaints if "TrustedHTML" not in text] == []


async def test_a_key_is_explained_where_the_node_can(show):
    backend = Backend(three(*THREE))
    backend.pages["/debug/ring?key=a%2Fb%20%C3%A9"] = {
        "key": "a%2Fb%20%C3%A9", "slot": 77, "owners": ["n2", "n3", "n1"], "explain": "/cluster/explain/a%2Fb%20%C3%A9",
    }  # fmt: skip
    replicas = [
        {"node": "n2", "state": "value", "version": "00ff", "expires_unix_ms": 0, "hinted": ["n3"]},
        {"node": "n3", "state": "unreachable", "version": "", "expires_unix_ms": 0, "hinted": []},
        {"node": "n1", "state": "tombstone", "version": "00fe", "expires_unix_ms": 0, "hinted": [], "level": False},
        {"node": "n9", "state": "ghost", "version": "", "expires_unix_ms": 0, "hinted": []},
    ]
    backend.pages["/cluster/explain/a%2Fb%20%C3%A9"] = {"key": "a%2Fb%20%C3%A9", "replicas": replicas}
    page, seen = await show(backend)
    await page.fill("#key", "a/b é")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator(".key .answer")).to_contain_text("a/b é is in slot 77, which belongs to")
    shown = await page.locator(".key ol.owners li").all_inner_texts()
    assert [re.sub(r"\s+", " ", text).strip() for text in shown] == [
        "n2 has a value; keeps it for n3 00ff", "n3 cannot be asked",
        "n1 has a deletion, older; it still fetches what it missed 00fe",
    ]  # fmt: skip
    await expect(page.locator(".key ul.owners li")).to_contain_text("n9 had a value that expired or was evicted")
    assert seen.complaints == []
    await page.fill("#key", "unknown")
    await page.press("#key", "Enter")
    await expect(page.locator(".key .answer")).to_contain_text("nothing is known of that")


async def test_figures_are_rates_and_sums(show):
    first, second = (info(name, uptime_s=100.0) for name in ("n1", "n2"))
    backend = Backend(cluster(answer(views("n1", *THREE[:2]), first), answer(views("n2", *THREE[:2]), second)))
    page, _ = await show(backend)
    await expect(page.locator(".figures tbody tr").first).to_contain_text("…")
    first["uptime_s"] += 4.0
    first["requests"] = {"get": 405, "put": 7, "page": 9000}
    first["slots_pending"] = 1234
    await expect(page.locator(".figures tbody tr").first).to_contain_text("100/s")
    await expect(page.locator(".figures tfoot")).to_contain_text("2\u2009000")
    await expect(page.locator(".figures tfoot")).to_contain_text("2.0 MiB")
    await expect(page.locator(".ring")).to_contain_text("n1 still fetches 1\u2009234 slots from the other owners.")
    assert await page.locator(".ring .fetching").count() == 1


async def test_a_certificate_that_cannot_be_had_is_said_to_be_elsewhere(show):
    event = {
        "at_unix_ms": time.time_ns() // 1_000_000, "kind": "member-dead", "member": "n3", "source": "gossip",
        "detail": "declared by n2",
    }  # fmt: skip
    backend = Backend(three(*KILLED), (event,))
    page, _ = await show(backend)
    await page.get_by_role("button", name="why?").click()
    dialog = page.get_by_role("dialog", name="Death certificate of n3")
    await expect(dialog).to_contain_text("nothing is known of that")
    await page.keyboard.press("Escape")
    backend.pages["/debug/cluster/certificate/n3"] = {
        "member": "n3", "accuser": "n2", "accuser_url": None, "declared_at_unix_ms": event["at_unix_ms"],
    }  # fmt: skip
    await page.get_by_role("button", name="why?").click()
    await expect(dialog).to_contain_text("The certificate is kept by n2, which cannot be asked just now.")


async def test_a_page_that_nobody_looks_at_asks_nothing(show):
    page, seen = await show(Backend(three(*THREE)))
    hide = "(isHidden) => { Object.defineProperty(document, 'hidden', {value: isHidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    await page.evaluate(hide, True)
    await asyncio.sleep(1.5)  # What was being asked is answered.
    asked = len(seen.urls)
    await asyncio.sleep(2.5)
    assert len(seen.urls) == asked
    await page.evaluate(hide, False)
    async with asyncio.timeout(SHOWN_MAX_S):
        while len(seen.urls) < asked + 3:  # noqa: ASYNC110  # the browser asks when it does
            await asyncio.sleep(0.05)


async def test_what_was_said_last_stays_while_the_node_is_away(show):
    backend = Backend(three(*THREE))
    page, seen = await show(backend)
    backend.is_away = True
    await expect(page.locator(".banner.lost .lines")).to_contain_text("n1 has not answered for")
    await expect(page.locator(".matrix tbody tr")).to_have_count(5)
    backend.is_away = False
    await expect(page.locator(".banner.calm")).to_be_visible()
    assert seen.complaints_but("net::ERR_FAILED") == []
