"""`/debug` in a real browser, on real clusters: what a person sees while nodes and etcd are killed.

Run by `make browser`, one test at a time.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

NAMED_MAX_S = 1.5
"""From the end of a process until the page names it: the promise."""
DEADLINE_S = 60.0
"""For whatever else is awaited here: far above what it takes."""
PICTURES_FOLDER = os.environ.get("ZEPHYRCACHE_PICTURES")
"""Where the pictures of docs/images go, when they are to be taken; the cluster has run for a while then."""
PICTURES = ((390, 844), (1280, 1000))
"""Sizes of a screen."""
PICTURES_AFTER_S = 32.0
TAB_STOPS_MAX = 60
"""More than there are."""


def expect(target: Any) -> Any:
    from playwright.async_api import expect as expect_of_playwright  # noqa: PLC0415  # only these tests need it

    expect_of_playwright.set_options(timeout=DEADLINE_S * 1000)
    return expect_of_playwright(target)


async def show(new_page, node, **options: Any) -> tuple[Any, Any]:
    page, seen = await new_page(**options)
    await page.goto(f"http://{node.http}/debug")
    await expect(page.locator(".banner.calm")).to_be_visible()
    await expect(page.locator("header")).to_contain_text("live")
    return page, seen


def verdict(page: Any) -> Any:
    return page.locator(".banner .lines")


def cell(page: Any, observer: str, subject: int) -> Any:
    """A cell of the matrix; subjects are counted from 1."""
    row = page.locator(".matrix tbody tr").filter(has=page.locator("th", has_text=re.compile(rf"^{observer}\b")))
    return row.locator("td").nth(subject - 1)


async def happened(page: Any) -> list[str]:
    """What the list of events tells, the oldest first, without times and details."""
    rows = await page.locator(".events tbody tr td:nth-child(3)").all_inner_texts()
    return [text.replace(" why?", "").split("\n")[0] for text in reversed(rows)]


def is_of(node, seen) -> bool:
    """Whether nothing but this node was asked."""
    return bool(seen.urls) and all(url.startswith(f"http://{node.http}/") for url in seen.urls)


async def focused(page: Any) -> str:
    """What has the focus, in a few words."""
    return await page.evaluate(
        "() => { const it = document.activeElement;"
        " return `${it.tagName.toLowerCase()} ${it.getAttribute('aria-label') ?? it.id ?? ''} ${it.innerText ?? ''}` }"
    )


async def has_visible_focus(page: Any) -> bool:
    """A mark of the timeline has a thicker edge, everything else an outline."""
    return await page.evaluate(
        "() => { const it = document.activeElement;"
        " return it.matches('g') ? getComputedStyle(it.querySelector('rect')).strokeWidth === '3px'"
        " : getComputedStyle(it).outlineStyle !== 'none' }"
    )


async def take_pictures(page: Any, name: str) -> None:
    """Take those of docs/images, where that is asked for."""
    if PICTURES_FOLDER is None:
        return
    for width, height in PICTURES:
        await page.set_viewport_size({"width": width, "height": height})
        for scheme in ("dark", "light"):
            await page.emulate_media(color_scheme=scheme)
            await asyncio.sleep(0.2)  # The timeline is drawn anew at its new width.
            await page.screenshot(path=f"{PICTURES_FOLDER}/{name}-{width}-{scheme}.png")
    await page.set_viewport_size({"width": 1280, "height": 900})


async def test_a_killed_node_is_named_known_to_all_evicted_and_then_all_agree(
    start_cluster, new_page, figure, under_load
):
    cluster = await start_cluster(5, *(("--cluster", "demo") if PICTURES_FOLDER else ()))
    survivors = [node for node in cluster.nodes if node.id != "n4"]
    await under_load(cluster, survivors, lambda: see_it_die(cluster, new_page, figure))


async def see_it_die(cluster, new_page, figure) -> None:
    page, seen = await show(new_page, cluster.nodes[0])
    small, seen_small = await show(new_page, cluster.nodes[1], width=390, height=844, is_dark=True)
    await expect(verdict(page)).to_contain_text("All is well: 5 members, one ring.")
    await expect(page.locator(".facts")).to_contain_text("5 of 5")
    for subject in range(1, 6):
        for observer in ("n1", "n2", "n3", "n4", "n5"):
            await expect(cell(page, observer, subject)).to_have_text(re.compile("alive"))
        await expect(cell(page, "etcd", subject)).to_have_text(re.compile("registered"))

    if PICTURES_FOLDER:
        await asyncio.sleep(PICTURES_AFTER_S)
    began_s = time.monotonic()
    cluster.nodes[3].kill()
    await verdict(page).get_by_text("n4", exact=True).first.wait_for(timeout=DEADLINE_S * 1000)
    named_s = time.monotonic() - began_s
    figure("the banner names a killed node", named_s)
    assert named_s < NAMED_MAX_S

    for observer in ("n1", "n2", "n3", "n5"):
        await expect(cell(page, observer, 4)).to_have_text(re.compile("dead"))
    figure("the matrix shows that all know", time.monotonic() - began_s)
    await expect(cell(page, "n4", 1)).to_have_text("did not answer: connection refused")
    await expect(cell(page, "etcd", 4)).to_have_text(re.compile("^R"))
    await expect(verdict(page)).to_contain_text("n4: gossip says dead")
    await expect(verdict(page)).to_contain_text("etcd still holds its lease; leaves the ring when its eviction commits")
    await expect(verdict(page)).to_contain_text("All 4 who answer say so.")
    await expect(page.locator("#spoken")).to_contain_text("n4: gossip says dead, etcd still holds its lease")
    await expect(page.locator(".facts")).to_contain_text("4 of 5 not n4")
    assert "!!" in await page.title()
    await take_pictures(page, "debug-kill")

    await expect(verdict(page)).to_contain_text("All is well: 4 members, one ring.")
    figure("all agree again", time.monotonic() - began_s)
    await expect(verdict(small)).to_contain_text("All is well: 4 members, one ring.")
    await expect(cell(page, "etcd", 4)).to_have_text(re.compile("not registered"))
    await expect(cell(page, "ring", 4)).to_have_text(re.compile("not in the ring"))
    await expect(page.locator(".ring .shares tbody tr")).to_have_count(4)
    told = await happened(page)
    order = [told.index(what) for what in ("n4 declared dead", "n4 registration gone", "ring changed: \u2212n4")]
    assert order == sorted(order), told
    death = await page.locator(".event.opens .moment").bounding_box()
    change = await page.locator(".ring-change line").last.bounding_box()
    assert death["x"] < change["x"], "detection stands before eviction"

    await page.locator(".event.opens").click()
    dialog = page.get_by_role("dialog", name="Death certificate of n4")
    await expect(dialog).to_contain_text("Its process ended.")
    await expect(dialog).to_contain_text("Its end was seen by")
    await take_pictures(page, "debug-certificate")
    await dialog.get_by_role("button", name="Close").click()
    await expect(dialog).to_be_hidden()
    await take_pictures(page, "debug-after")
    await walk(page)

    assert is_of(cluster.nodes[0], seen)
    assert is_of(cluster.nodes[1], seen_small)
    assert seen.complaints == seen_small.complaints == []


async def walk(page: Any) -> None:
    """Go through the page by keyboard alone: everything is reached, in the order in which it stands."""
    await page.locator("header button").focus()
    stops = [await focused(page)]
    for _ in range(TAB_STOPS_MAX):
        await page.keyboard.press("Tab")
        stops.append(await focused(page))
        if stops[-1].startswith("body"):
            break
        assert await has_visible_focus(page), f"the focus is seen on {stops[-1]}"
    wanted = (
        "button  Pause", "div", "button  30 s", "button  2 min", "g D n4: declared dead", "div Events", "button  why?",
        "input", "input key", "button  Ask", "a  views", "a  metrics",
    )  # fmt: skip
    found = [next((index for index, stop in enumerate(stops) if stop.startswith(item)), -1) for item in wanted]
    assert -1 not in found, stops
    key = wanted.index("input key")
    assert found[:key] == sorted(found[:key]), stops
    assert found[key:] == sorted(found[key:]), stops

    await page.get_by_role("button", name=re.compile("^D n4: declared dead")).focus()
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Death certificate of n4")
    await expect(dialog).to_be_visible()
    await expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    assert (await focused(page)).startswith("g D n4"), "the focus is back where it was"

    pause = page.locator("header button")
    await pause.focus()
    await page.keyboard.press("Space")
    await expect(pause).to_have_attribute("aria-pressed", "true")
    still = await page.locator("main").inner_text()
    await asyncio.sleep(2.5)
    assert await page.locator("main").inner_text() == still, "nothing moves while it is paused"
    await page.keyboard.press("Space")
    await expect(pause).to_have_attribute("aria-pressed", "false")


async def test_who_leads_is_told_while_etcd_is_away_and_the_hold_when_it_comes_back_empty(start_cluster, new_page):
    cluster = await start_cluster(5)
    page, seen = await show(new_page, cluster.nodes[0])
    await cluster.etcd.kill()
    await expect(verdict(page)).to_contain_text("Gossip leads for")
    await expect(verdict(page)).to_contain_text("connection refused")
    await expect(page.locator(".facts .leads dd")).to_have_text(re.compile("^gossip for .* gossip keeps the last ring"))
    await expect(cell(page, "etcd", 1)).to_have_text(re.compile("etcd cannot be reached"))
    await expect(cell(page, "ring", 5)).to_have_text(re.compile("in the ring"))
    await page.fill("#key", "user:{42}:name")
    await page.press("#key", "Enter")
    owners = (await cluster.json(cluster.nodes[0], "/debug/ring?key=user%3A%7B42%7D%3Aname"))["owners"]
    await expect(page.locator(".key .owners li .id").first).to_have_text(owners[0])
    assert await page.locator(".key ol.owners li .id").all_inner_texts() == owners
    await cluster.etcd.start()
    await expect(page.locator(".banner.calm")).to_be_visible()
    await expect(page.locator(".facts .leads dd")).to_have_text(re.compile("^both"))

    # The hold ends when all who live have registered again, within a second: one that stands still makes it last,
    # until gossip calls that one dead.
    await cluster.etcd.wipe()
    os.kill(cluster.nodes[4].process.pid, signal.SIGSTOP)
    try:
        await cluster.etcd.start()
        await expect(verdict(page)).to_contain_text("The last ring is held for")
        await expect(page.locator(".facts .leads dd")).to_have_text(re.compile("^held for"))
        await expect(page.locator(".facts")).to_contain_text("5 owners")
    finally:
        os.kill(cluster.nodes[4].process.pid, signal.SIGCONT)
    await expect(page.locator(".banner.calm")).to_be_visible()
    await expect(verdict(page)).to_contain_text("All is well: 5 members")
    assert "the last ring is held" in await happened(page)
    assert "the hold ended" in await happened(page)
    assert is_of(cluster.nodes[0], seen)
    assert seen.complaints == []


async def test_a_page_outlives_the_node_that_serves_it(start_cluster, new_page):
    cluster = await start_cluster(3)
    first = cluster.nodes[0]
    page, seen = await show(new_page, first)
    before = await happened(page)
    first.kill()
    await expect(verdict(page)).to_contain_text("n1 has not answered for")
    await expect(page.locator("header")).to_contain_text("no answer")
    await expect(page.locator(".matrix tbody tr")).to_have_count(5)
    cluster.start(first)
    await expect(page.locator(".banner.calm")).to_be_visible()
    await expect(page.locator("header")).to_contain_text("live")
    after = await happened(page)
    assert after[: len(before)] == before
    assert "n1 registered itself" in after[len(before) :], "it follows the new life"
    assert is_of(first, seen)
    assert seen.complaints, "the browser itself tells of connections that are refused"
    assert seen.complaints_but("net::ERR_") == []


async def test_who_does_not_answer_is_named_and_keeps_nobody_waiting(start_cluster, new_page):
    cluster = await start_cluster(3)
    page, seen = await show(new_page, cluster.nodes[0])
    stopped = cluster.nodes[2]
    os.kill(stopped.process.pid, signal.SIGSTOP)
    try:
        await expect(verdict(page)).to_contain_text("n3 did not answer n1: nothing came within 1 s.")
        await expect(verdict(page)).to_contain_text("n3: gossip suspects it for")
        await expect(cell(page, "n2", 1)).to_have_text(re.compile("alive"))
    finally:
        os.kill(stopped.process.pid, signal.SIGCONT)
    await expect(page.locator(".banner.calm")).to_be_visible()
    await expect(verdict(page)).to_contain_text("3 members")
    assert is_of(cluster.nodes[0], seen)
    assert seen.complaints == []
