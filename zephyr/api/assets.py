"""The files of the `/debug` page, and how they are served: from memory, for the browser to keep, and locked down.

Decides the headers: every file has a strong ETag of its content and is to be asked for again each time (`no-cache`),
which costs an answer without a body, so that no page is ever made of files of two versions. The policy lets the page
load and ask nothing but this node, run no script but these files, and be framed by nobody.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from zephyr.api.contract import Header, Response

PAGE_PATH = b"/debug"
FILES_PATH = "/debug/page/"
CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
"""Files of any other kind lie beside them for people, and are not served."""
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html"
)
"""Content Security Policy, level 3. The one trusted type is that of the templates, which hold no text from outside."""
_TAG = re.compile(rb'"[^"]*"')
"""In a list of entity tags, compared weakly (RFC 9110, section 13.1.2): whether a `W/` stands before it is all one."""
_LOCKS: tuple[Header, ...] = (
    (b"Cache-Control", b"no-cache"),
    (b"Content-Security-Policy", POLICY),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"X-Content-Type-Options", b"nosniff"),
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    content: bytes
    content_type: bytes
    tag: bytes
    """Its ETag."""

    def response(self, if_none_match: bytes = b"") -> Response:
        """Answer 200; or 304 where `If-None-Match` names what stands here."""
        validators = ((b"ETag", self.tag), *_LOCKS)
        if if_none_match.strip() == b"*" or self.tag in _TAG.findall(if_none_match):
            return Response(304, validators)
        content = ((b"Content-Type", self.content_type), (b"Content-Length", b"%d" % len(self.content)))
        return Response(200, content + validators, self.content)


@functools.cache
def assets() -> Mapping[bytes, Asset]:
    """Return the files by the paths at which they are served; the page itself stands at `PAGE_PATH`, too."""
    found: dict[bytes, Asset] = {}
    for name, source in _walk(files("zephyr.api") / "page", ""):
        content_type = CONTENT_TYPES.get(PurePosixPath(name).suffix)
        if content_type is None:
            continue
        content = source.read_bytes()
        tag = b'"%b"' % hashlib.sha256(content).hexdigest()[:32].encode()
        found[(FILES_PATH + name).encode()] = Asset(content, content_type, tag)
    page = found.pop((FILES_PATH + "index.html").encode())
    return {**found, PAGE_PATH: page, PAGE_PATH + b"/": page}


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    """Yield the files of a folder and those below it, with their paths in it."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry
