"""Asking a node that listens somewhere, as any client does: for the drivers that have such.

A node that does not answer is nothing unusual here, so nothing is raised for it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from chaos.drivers import LOOK_MAX_S

SERVED = frozenset({200, 201, 204, 404})
"""A key that is not there is an answer, too."""
DETAIL_CHARS = 200
_LOOK_TIMEOUT = aiohttp.ClientTimeout(total=LOOK_MAX_S)


async def page_of(session: aiohttp.ClientSession, url: str) -> Any | None:
    """Return what a node shows at `/debug/views`; None when it does not answer in time."""
    try:
        async with session.get(f"{url}/debug/views", timeout=_LOOK_TIMEOUT) as response:
            return await response.json() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        return None


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a node answers `/readyz` with yes, in time."""
    try:
        async with session.get(f"{url}/readyz", timeout=_LOOK_TIMEOUT) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def ask(session: aiohttp.ClientSession, url: str, method: str, key: str, value: bytes | None = None) -> str:
    """Send a request for one key. Return what went wrong, in a few words, or an empty text."""
    # As it is: a client that tidied the path would change the key.
    address = URL(f"{url}/kv/{quote(key, safe='')}", encoded=True)
    try:
        async with session.request(method, address, data=value) as response:
            body = await response.read()
    except TimeoutError:
        return "no answer in time"
    except aiohttp.ClientError as error:
        return str(error) or type(error).__name__
    return "" if response.status in SERVED else f"{response.status} {body[:DETAIL_CHARS].decode(errors='replace')}"
