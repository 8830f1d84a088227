"""The files of `/debug`: what is served, how it is kept by browsers, and that none of it reaches beyond the node."""

from __future__ import annotations

import configparser
import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin

import pytest
from test_http import a_lonely_node, on_both_loops, serving

from zephyr.api.assets import FILES_PATH, PAGE_PATH, assets

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "zephyr/api/page"
LIT_HTML_3_3_3_SHA256 = "b878e7f95dec8a9b6e9b217faca6b6a11bad82ebc44c0caa77419ed83edd81f2"
"""Of `lit-html.js` as npm has it."""
SERVED = sorted(assets())
OURS = [path for path in SERVED if b"vendor" not in path]


def text_of(path: bytes) -> str:
    return assets()[path].content.decode()


def references(path: bytes) -> set[str]:
    """What a file makes a browser load, as paths."""
    text = text_of(path)
    found = re.findall(r'(?:href|src)="(/debug/page/[^"]+)"', text)
    found += re.findall(r'^import \{[^}]+\} from "([^"]+)";$', text, re.MULTILINE)
    assert len(found) == text.count("\nimport ") + text.count('="/debug/page/'), "no import is written otherwise"
    return {urljoin(path.decode(), name) for name in found}


def test_every_file_that_a_file_names_is_served_and_every_file_is_named():
    named = {name for path in SERVED for name in references(path)}
    assert named == {path.decode() for path in SERVED if path.rstrip(b"/") != PAGE_PATH}


def test_nothing_but_what_a_browser_needs_is_served():
    assert {PurePosixPath(path.decode()).suffix for path in SERVED} == {"", ".js", ".css", ".svg"}
    assert (FOLDER / "vendor/LICENSE").is_file(), "it is kept, and lies beside what it is about"


def test_the_vendored_file_is_what_was_published():
    content = assets()[f"{FILES_PATH}vendor/lit-html.js".encode()].content
    assert hashlib.sha256(content).hexdigest() == LIT_HTML_3_3_3_SHA256


@pytest.mark.parametrize("path", OURS)
def test_no_file_names_another_origin_or_needs_a_looser_policy(path):
    text = text_of(path)
    urls = set(re.findall(r"""https?://[^\s"'`<)]+|["'`(]//[^\s"'`<)]+""", text))
    assert urls <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"""<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+\s*=\s*["']|javascript:|\beval\(""", text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|unsafeHTML", text), "text from outside is text"


def test_an_installed_package_has_every_file():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["zephyr.api"].split()
    packed = {file for pattern in patterns for file in (ROOT / "zephyr/api").glob(pattern) if file.is_file()}
    assert packed == {file for file in FOLDER.rglob("*") if file.is_file()}


@on_both_loops
async def test_the_page_and_its_files_are_locked_down_and_asked_for_again():
    async with serving(real_node=a_lonely_node()) as served:
        client = await served.connect()
        for path in SERVED:
            answer = await client.ask("GET", path.decode())
            assert answer.status == 200, path
            assert answer.body == assets()[path].content
            policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
            assert policy["require-trusted-types-for"] == "'script'"
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-cache"
            assert re.fullmatch(r'"[0-9a-f]{32}"', answer.headers["etag"])
        assert (await client.ask("GET", "/debug")).headers["content-type"] == "text/html; charset=utf-8"
        script = await client.ask("GET", "/debug/page/main.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"


@on_both_loops
async def test_what_a_browser_has_is_not_sent_again():
    async with serving(real_node=a_lonely_node()) as served:
        client = await served.connect()
        first = await client.ask("GET", "/debug")
        tag = first.headers["etag"]
        for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await client.ask("GET", "/debug", If_None_Match=condition)
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag), condition
            assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
            assert "content-type" not in again.headers
        assert (await client.ask("GET", "/debug", If_None_Match='"other"')).status == 200
        assert len({(await client.ask("GET", path.decode())).headers["etag"] for path in SERVED}) == len(SERVED) - 1, (
            "each file has its own, and the page stands at two paths"
        )
        head = await client.ask("HEAD", "/debug")
        assert {**head.headers, "date": ""} == {**first.headers, "date": ""}
        assert (await client.ask("GET", "/debug/?from=a-bookmark")).body == first.body
        assert (await client.ask("POST", "/debug", b"")).headers["allow"] == "GET, HEAD"


@on_both_loops
async def test_no_other_path_leads_to_a_file():
    async with serving(real_node=a_lonely_node()) as served:
        client = await served.connect()
        for target in (
            "/debug/nothing", "/debug/page", "/debug/page/", "/debug/page/nothing.js", "/debug/page/index.html",
            "/debug/page/vendor/LICENSE", "/debug/page/../assets.py", "/debug/page/%2e%2e/assets.py",
            "/debug/page//main.js", "/debug/page/vendor/../main.js", "/debug/page/MAIN.JS",
        ):  # fmt: skip
            answer = await client.ask("GET", target)
            assert (answer.status, answer.problem) == (404, "unknown-page"), target


@on_both_loops
async def test_the_page_is_there_before_the_node_is():
    async with serving() as served:
        served.api._node = None
        client = await served.connect()
        assert (await client.ask("GET", "/debug")).status == 200
        assert (await client.ask("GET", "/debug/page/main.js")).status == 200
        for target in ("/debug/cluster", "/debug/cluster/certificate/n2"):
            assert (await client.ask("GET", target)).problem == "not-ready"
