"""What the other members say, gathered for one answer: a browser that shows a cluster asks a single node.

Asks each member for its `/debug/views` and `/info`, all at once, and decides whom to ask, how long to wait and
what of an answer is passed on. It believes nobody: an address is taken from the member list alone, a redirect is not
followed, an answer is measured before it is read, and only what has the expected name and kind goes into the
document; whatever else a peer sends is dropped. Many pages that are open cost no more than one: who asks while
others are being asked, or shortly after, gets the same answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import quote

import aiohttp
from yarl import URL

from zephyr.config import NODE_ID_PATTERN, parse_address
from zephyr.model import Address, ClusterView, MemberView, NodeId

PEERS_MAX = 64
"""Most members that are asked: a table of more is not read by anyone, and each answer grows with the members."""
ANSWER_MAX_S = 1.0
"""For both answers of one member: a node whose loop turns needs milliseconds, and a person waits for all of them."""
ANSWER_BYTES_MAX = 512 * 1024
"""Of one answer: three times that of a node in a full ring of 200 members."""
KEPT_S, KEPT_PER_PEER_S = 0.5, 0.03
"""How long an answer is given again, whoever asks; longer where many are asked, each of whom has work with it."""
ROWS_MAX = 256
"""Members passed on of one member's view: a full ring, and some that are gone."""
TEXT_CHARACTERS_MAX = 300
"""Of one text passed on; a reason is half of that."""
NUMBER_MAX = 2**53
"""Beyond it a browser cannot tell whole numbers apart."""
ITEMS_MAX = 64
"""Of a list in a certificate."""

Document: TypeAlias = dict[str, Any]


class Gatherer:
    """Asks the members on behalf of one node. `close` ends it."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._session: aiohttp.ClientSession | None = None
        self._running: asyncio.Task[bytes] | None = None
        self._fresh_until_s = 0.0
        """Monotonic seconds until which the last answer is given again."""

    async def cluster(self, view: Callable[[], ClusterView], own: Callable[[], tuple[Document, Document]]) -> bytes:
        """Return what every member says, as JSON.

        `view` names the members, `own` returns this node's own views and info, which are read when the others are
        asked, so that all of it is of one moment. Takes at most `ANSWER_MAX_S` and a little; a member that has not
        answered by then has a reason instead.
        """
        if self._running is None or (self._running.done() and time.monotonic() >= self._fresh_until_s):
            self._running = asyncio.create_task(self._ask_all(view(), own))
        return await asyncio.shield(self._running)  # Who asked first may go; the others still wait.

    async def certificate(self, view: ClusterView, accuser: NodeId, node_id: NodeId) -> Document | None:
        """Return why a member was declared dead, as its accuser tells it; None when that cannot be had now."""
        address = next((row.member.http for row in view.members if row.member.id == accuser), "")
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                document = await self._get(address, f"/debug/certificate/{quote(node_id, safe='')}", _CERTIFICATE)
        except (_NoAnswerError, TimeoutError):
            return None
        # Only the accuser's own account has a cause.
        is_told = document["member"] == node_id and document["accuser"] == accuser and document["cause"] is not None
        return document if is_told else None

    async def close(self) -> None:
        """Give up what is being asked."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _ask_all(self, view: ClusterView, own: Callable[[], tuple[Document, Document]]) -> bytes:
        began_s = time.monotonic()
        asked, left_out = _chosen(view, self._node_id)
        views, info = own()
        try:
            said = await asyncio.gather(*(self._ask(row.member.id, row.member.http) for row in asked))
            mine = {
                "id": self._node_id, "http": _http_of(view, self._node_id), "answered": True, "reason": "",
                "took_ms": 0.0, "views": views, "info": info,
            }  # fmt: skip
            # Each part was written when it came: all of it at once would hold up the loop where members are many.
            nodes = [text for _, text in sorted([(self._node_id, json.dumps(mine)), *said])]
            rest = {
                "node": self._node_id, "now_unix_ms": views["now_unix_ms"], "took_ms": _ms_since(began_s),
                "not_asked": left_out,
            }  # fmt: skip
            return f'{json.dumps(rest)[:-1]}, "nodes": [{", ".join(nodes)}]}}\n'.encode()
        finally:
            self._fresh_until_s = time.monotonic() + max(KEPT_S, KEPT_PER_PEER_S * len(asked))

    async def _ask(self, node_id: NodeId, address: Address) -> tuple[NodeId, str]:
        """Return what one member says, or why it says nothing, as JSON behind its id."""
        began_s = time.monotonic()
        views: Document | None = None
        info: Document | None = None
        reason = ""
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                found = await self._get(address, "/debug/views", _VIEWS)
                if found["node"] != node_id:
                    raise _NoAnswerError(f"answers as {found['node']}")  # noqa: TRY301  # as other reasons
                views = found
                info = await self._get(address, "/info", _INFO)
        except TimeoutError:
            reason = f"nothing came within {ANSWER_MAX_S:g} s"
        except _NoAnswerError as error:
            reason = str(error)
        said = {
            "id": node_id, "http": address, "answered": views is not None,
            "reason": "" if views is not None else reason, "took_ms": _ms_since(began_s), "views": views, "info": info,
        }  # fmt: skip
        return node_id, json.dumps(said)

    async def _get(self, address: Address, path: str, shape: dict[str, Any]) -> Document:
        """Return what a page says, as far as it has this shape. Raises `_NoAnswerError`, or TimeoutError."""
        try:
            host, port = parse_address(address)
            url = URL.build(scheme="http", host=host, port=port, path=path, encoded=True)
        except ValueError:
            raise _NoAnswerError("its address is not known") from None
        try:
            async with self._opened().get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise _NoAnswerError(f"answers {response.status}")
                body = await _read(response.content)
        except aiohttp.ClientError as error:
            raise _NoAnswerError(_told(error)) from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise _NoAnswerError("its answer cannot be read")
        return _taken(document, shape)  # type: ignore[no-any-return]  # an object's shape gives an object

    def _opened(self) -> aiohttp.ClientSession:
        """Return the session, which is made inside the running loop when it is first needed."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=PEERS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,  # A few bytes can be packed so that they unpack to gigabytes.
                timeout=aiohttp.ClientTimeout(total=None),  # Who asks keeps the time.
            )
        return self._session


class _NoAnswerError(Exception):
    """A member said nothing that can be used; the text says why, in a few words."""


def _chosen(view: ClusterView, node_id: NodeId) -> tuple[list[MemberView], list[NodeId]]:
    """Return the members to ask, and the ids of those left out because they are too many; who is gone is neither.

    Owners come first, and then those who are heard.
    """
    rows = [row for row in view.members if row.member.id != node_id and not _is_gone(row)]
    rows.sort(key=lambda row: (not row.in_ring, row.gossip != "alive", row.member.id))
    return rows[:PEERS_MAX], sorted(row.member.id for row in rows[PEERS_MAX:])


def _is_gone(row: MemberView) -> bool:
    return row.gossip in ("dead", "left") and not row.in_ring and row.etcd != "registered"


def _http_of(view: ClusterView, node_id: NodeId) -> Address:
    return next((row.member.http for row in view.members if row.member.id == node_id), "")


async def _read(content: aiohttp.StreamReader) -> bytes:
    """Read a whole answer. Raises `_NoAnswerError` for one that is too large."""
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_any():
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise _NoAnswerError(f"its answer has more than {ANSWER_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _told(error: aiohttp.ClientError) -> str:
    """Say in a few words why nothing was read."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name leads nowhere"
        case aiohttp.ClientConnectorError(os_error=OSError() as reason):
            return os.strerror(reason.errno).lower() if reason.errno else "cannot be reached"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return "the connection ended"
        case _:
            return "its answer cannot be read"


def _ms_since(began_s: float) -> float:
    return round((time.monotonic() - began_s) * 1000, 1)


# --- what is passed on ------------------------------------------------------------------------------------


def _text(value: Any) -> str | None:
    return value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= NUMBER_MAX else None  # NaN is not.


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _id(value: Any) -> NodeId | None:
    return value if isinstance(value, str) and NODE_ID_PATTERN.fullmatch(value) else None


def _counts(value: Any) -> dict[str, float]:
    """Return counts by name."""
    pairs = list(value.items())[:ITEMS_MAX] if isinstance(value, dict) else []
    return {name[:TEXT_CHARACTERS_MAX]: count for name, number in pairs if (count := _number(number)) is not None}


def _member(value: Any) -> Document | None:
    row: Document = _taken(value, _MEMBER)
    return row if row["id"] is not None else None


def _taken(value: Any, shape: Any) -> Any:
    """Return what of a decoded value has this shape: a kind, an object by its names, or a list of one shape.

    Every name is there: what is missing or of another kind is null, or an empty object or list. What has an unknown
    name is left out, and a list ends at its bound.
    """
    if isinstance(shape, dict):
        known = value if isinstance(value, dict) else {}
        return {name: _taken(known.get(name), inner) for name, inner in shape.items()}
    if isinstance(shape, tuple):
        inner, items_max = shape
        items = value[:items_max] if isinstance(value, list) else []
        return [taken for item in items if (taken := _taken(item, inner)) is not None]
    return shape(value)


_MEMBER = {
    "id": _id,
    "state": _text,
    "epoch": _number,
    "gossip": {"state": _text, "since_s": _number, "phi": _number, "rtt_ms": _number},
    "etcd": {"state": _text, "revision": _number, "since_s": _number},
    "in_ring": _flag,
    "routable": _flag,
    "verdict": _text,
    "reason": _text,
}
_VIEWS = {
    "node": _id,
    "cluster": _text,
    "now_unix_ms": _number,
    "authority": _text,
    "authority_since_s": _number,
    "etcd": {"state": _text, "revision": _number, "lease_ttl_s": _number, "reason": _text},
    "gossip": {"health": _number, "probe_interval_s": _number, "event_loop_lag_s": _number},
    "ring": {"epoch": _text, "digest": _text, "owners": (_id, ROWS_MAX)},
    "disagreements": _number,
    "members": (_member, ROWS_MAX),
}
_INFO = {
    "id": _id,
    "version": _text,
    "uptime_s": _number,
    "epoch": _number,
    "zone": _text,
    "weight": _number,
    "ready": _flag,
    "items": _number,
    "bytes": _number,
    "bytes_max": _number,
    "tombstones": _number,
    "slots_pending": _number,
    "requests_in_flight": _number,
    "requests": _counts,
    "hits": _number,
    "misses": _number,
}
_CERTIFICATE = {
    "member": _id,
    "epoch": _number,
    "incarnation": _number,
    "accuser": _id,
    "accuser_url": _text,
    "cause": _text,
    "suspected_at_unix_ms": _number,
    "declared_at_unix_ms": _number,
    "accusers": (_id, ITEMS_MAX),
    "probes": (
        {
            "at_unix_ms": _number,
            "direct_timeout_s": _number,
            "helpers": (_id, ITEMS_MAX),
            "nacks": (_id, ITEMS_MAX),
            "tcp_tried": _flag,
        },
        ITEMS_MAX,
    ),
    "exit": {"refused": _flag, "udp_silent": _flag, "observers": (_id, ITEMS_MAX), "timeout_s": _number},
    "suspicion": {
        "min_s": _number,
        "max_s": _number,
        "confirmations_expected": _number,
        "timeouts": ({"at_unix_ms": _number, "accuser": _id, "timeout_s": _number}, ITEMS_MAX),
        "timeout_s": _number,
        "own_pause_s": _number,
    },
    "phi": _number,
    "rtt_ms": _number,
    "local_health": _number,
    "event_loop_lag_s": _number,
    "members_live": _number,
}
