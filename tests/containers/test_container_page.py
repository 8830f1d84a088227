"""`/debug` in a real browser while a container is killed: the page knows what the nodes know."""

from __future__ import annotations

import re
import time

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

NODES = 5
NAMED_MAX_S = 1.5
"""From the return of `docker kill` until the page names the node: the promise."""
DEADLINE_S = 60.0
"""For whatever else is awaited here: far above what it takes."""


async def test_a_killed_container_is_named_known_to_all_evicted_and_then_all_agree(
    start_cluster, docker, new_page, figure
):
    cluster = await start_cluster(NODES)
    serving, *others = await cluster.nodes()
    victim, *survivors = others
    page, seen = await new_page()
    from playwright.async_api import expect  # noqa: PLC0415  # `new_page` has made sure that it is there

    expect.set_options(timeout=DEADLINE_S * 1000)
    verdict = page.locator(".banner .lines")
    await page.goto(f"{serving.url}/debug")
    await expect(verdict).to_contain_text(f"All is well: {NODES} members, one ring.")
    await expect(page.locator(".facts")).to_contain_text(f"{NODES} of {NODES}")

    await docker("kill", victim.name)
    killed_s = time.monotonic()
    # It may be named twice: gossip calls it dead, and it did not answer.
    await verdict.get_by_text(victim.id, exact=True).first.wait_for(timeout=DEADLINE_S * 1000)
    named_s = time.monotonic() - killed_s
    figure("the banner names a killed container", named_s)
    assert named_s < NAMED_MAX_S
    await expect(verdict).to_contain_text(f"{victim.id}: gossip says dead")
    column = (await page.locator(".matrix thead th .id").all_inner_texts()).index(victim.id)
    for node in (serving, *survivors):
        row = page.locator(".matrix tbody tr").filter(has=page.locator("th", has_text=re.compile(f"^{node.id}")))
        await expect(row.locator("td").nth(column)).to_have_text(re.compile("dead"))
    await expect(verdict).to_contain_text(f"All is well: {NODES - 1} members, one ring.")
    figure("all agree again", time.monotonic() - killed_s)
    told = await page.locator(".events tbody tr td:nth-child(3)").all_inner_texts()
    told = [text.split(" why?")[0] for text in reversed(told)]
    death, gone = (told.index(f"{victim.id} {what}") for what in ("declared dead", "registration gone"))
    assert death < gone

    await page.get_by_role("button", name="why?").first.click()
    await expect(page.get_by_role("dialog")).to_contain_text("Its process ended.")
    assert all(url.startswith(f"{serving.url}/") for url in seen.urls)
    assert seen.complaints == []
