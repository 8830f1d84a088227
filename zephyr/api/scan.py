"""A listing of keys: its query, its cursors and its answer.

Decides when a page is full enough to be sent. Never decides what is listed, nor waits: ask `due` for what to ask the
cluster next, and hand over the page that it answered. Pure.

A cursor is base64url, without padding, of

    0       1: the version of this layout
    1..3    the slot, big-endian
    3..     the key after which it goes on; nothing: at the beginning of the slot

It names a place among all keys and nothing of a node, so that every node takes it, today and tomorrow.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

from zephyr.api import contract
from zephyr.api.contract import Contract, RefusedError, Response, Target
from zephyr.config import KEY_BYTES_MAX, SLOTS
from zephyr.model import ScanCursor, ScanPage, ScanRequest
from zephyr.ring.ring import key_slot

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
ROUNDS_MAX = 64
"""Pages of the cluster in one answer: who looks for a rare prefix gets an empty one with a cursor now and then."""
CURSOR_VERSION = 1
CURSOR_CHARACTERS_MAX = (3 + KEY_BYTES_MAX) * 4 // 3 + 1
PARAMETERS = ("prefix", "limit", "cursor", "timeout")
MAY_BE_EMPTY = ("prefix", "cursor")
BEGINNING = ScanCursor(0, b"")

_LIMIT_DIGITS_MAX = 4


def cursor_text(cursor: ScanCursor) -> str:
    """Write a cursor for a client."""
    raw = b"%c%b%b" % (CURSOR_VERSION, cursor.slot.to_bytes(2, "big"), cursor.after_key)
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def parse_cursor(text: str) -> ScanCursor:
    """Read a cursor. Raises `RefusedError` (400) for what no node has written."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) <= CURSOR_CHARACTERS_MAX else b""
    except (ValueError, binascii.Error):
        raw = b""
    slot, after_key = int.from_bytes(raw[1:3], "big"), raw[3:]
    cursor = ScanCursor(slot, after_key)
    is_ours = len(raw) >= 3 and slot < SLOTS and (not after_key or key_slot(after_key) == slot)
    if not is_ours or cursor_text(cursor) != text:  # The latter: another version, and spellings that are not ours.
        raise RefusedError(contract.BAD_PARAMETER, "cursor: it is none that a node has given")
    return cursor


class Scan:
    """One client's listing."""

    def __init__(self, answers: Contract, target: Target, timeout_s: float) -> None:
        """`timeout_s`: where the client names none. Raises `RefusedError` (400)."""
        parameters = contract.parse_parameters(target.query, PARAMETERS, MAY_BE_EMPTY)
        limit_text = parameters.get("limit", str(LIMIT_DEFAULT))
        is_number = limit_text.isascii() and limit_text.isdigit() and len(limit_text) <= _LIMIT_DIGITS_MAX
        if not is_number or not 1 <= int(limit_text) <= LIMIT_MAX:
            raise RefusedError(contract.BAD_PARAMETER, f"limit: it is not a number from 1 to {LIMIT_MAX}")
        self._prefix = parameters.get("prefix", "").encode("latin-1")
        if len(self._prefix) > KEY_BYTES_MAX:
            raise RefusedError(contract.BAD_PARAMETER, f"prefix: no key has more than {KEY_BYTES_MAX} bytes")
        given = parameters.get("cursor")
        self._answers = answers
        self._limit = int(limit_text)
        self._timeout_s = contract.timeout_of(parameters) or timeout_s
        self._cursor: ScanCursor | None = parse_cursor(given) if given else BEGINNING
        self._keys: list[bytes] = []
        self._rounds = 0
        self._failed: ScanPage | None = None

    def due(self, elapsed_s: float) -> ScanRequest | None:
        """Return what to ask the cluster next, so long after the beginning; None: this is the page."""
        missing = self._limit - len(self._keys)
        remaining_s = self._timeout_s - elapsed_s
        is_enough = missing <= 0 or self._rounds == ROUNDS_MAX or (self._rounds and remaining_s <= 0)
        if is_enough or self._cursor is None or self._failed is not None:
            return None
        return ScanRequest(self._prefix, missing, self._cursor, remaining_s)

    def take(self, page: ScanPage) -> None:
        """Take what the cluster answered."""
        self._rounds += 1
        if page.failure is not None:
            self._failed = page
            return
        self._keys += page.keys
        self._cursor = page.cursor

    def response(self) -> Response:
        """Answer: the keys and where to go on. A failure tells only where nothing was listed before it."""
        if self._failed is not None and self._rounds == 1:
            assert self._failed.failure is not None
            problem = contract.FAILURES[self._failed.failure]
            return self._answers.problem(problem, self._failed.detail or problem.title)
        cursor = None if self._cursor is None else cursor_text(self._cursor)
        document = {"keys": [contract.key_text(key) for key in self._keys], "cursor": cursor}
        return self._answers.listing(json.dumps(document).encode() + b"\n")
