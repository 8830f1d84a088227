"""Changes that depend on what stands: conditional writes, counters, new deadlines.

Decides what such a change makes of a record, and how it travels to the node that makes it. Never decides who that is,
or when: `zephyr.replication.coordinator` sends it to the key's first live owner, which reads by quorum, decides here,
and writes by quorum, one change of a key after the other.

    UPDATE request   (key, kind, conditions, value, content type, ttl ms or None, step, quorum or None, ms left)
    conditions       pairs of (is_match, versions); no versions: any
    reply            (failure or "", detail, record or None, version, existed, answered, asked, hinted)
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Container
from typing import Any, NamedTuple, cast

from zephyr.config import KEY_BYTES_MAX
from zephyr.model import Condition, Failure, NodeId, Outcome, UpdateRequest
from zephyr.store.record import (
    CONTENT_TYPE_BYTES_MAX,
    DEFAULT_CONTENT_TYPE,
    VERSION_BYTES,
    record_content_type,
    record_expires_unix_ms,
    record_value,
    record_version,
)

COUNTER_MIN = -(1 << 63)
COUNTER_MAX = (1 << 63) - 1
"""Counters are integers of 64 bits, as those of Redis are."""
UPDATES_IN_LINE_MAX = 1000
"""Updates of one key that wait for each other."""
CONDITIONS_MAX = 8
VERSIONS_MAX = 256
"""Versions named by one condition: a header block holds fewer."""
TIMEOUT_MS_MAX = 600_000
_COUNTER = re.compile(rb"-?[0-9]{1,20}")
_KINDS = ("put", "delete", "increment", "expire")
_FAILURES = {failure.value: failure for failure in Failure}


class Change(NamedTuple):
    """What is to be written."""

    value: bytes | None
    """None: a tombstone."""
    content_type: bytes
    expires_unix_ms: int
    """0: never."""


class Lines:
    """Which update of a key is made now, and which wait for it: in the order of asking."""

    def __init__(self) -> None:
        self._lines: dict[bytes, deque[int]] = {}
        self._freed: deque[bytes] = deque()
        """Keys whose first update has ended."""

    def check_invariants(self, request_ids: Container[int]) -> None:
        """Assert what must hold between any two calls, with these requests in flight; for tests and the simulator."""
        assert not self._freed, "an update waits for nothing"
        assert all(self._lines.values())
        assert all(request_id in request_ids for line in self._lines.values() for request_id in line)

    def has(self, key: bytes, request_id: int) -> bool:
        """Whether an update stands in its key's line."""
        return request_id in self._lines.get(key, ())

    def join(self, key: bytes, request_id: int) -> bool:
        """Put an update into its key's line, if it is not there yet. False: the line is full."""
        if self.has(key, request_id):
            return True
        line = self._lines.setdefault(key, deque())
        if len(line) >= UPDATES_IN_LINE_MAX:
            return False
        line.append(request_id)
        return True

    def is_first(self, key: bytes, request_id: int) -> bool:
        """Whether an update that has joined is the one to be made."""
        return self._lines[key][0] == request_id

    def leave(self, key: bytes, request_id: int) -> None:
        """Take an update out; where it was the first, the next may begin."""
        if not self.has(key, request_id):
            return
        line = self._lines[key]
        was_first = line[0] == request_id
        line.remove(request_id)
        if not line:
            del self._lines[key]
        elif was_first:
            self._freed.append(key)

    @property
    def is_any_freed(self) -> bool:
        """Whether `next_freed` has something to name."""
        return bool(self._freed)

    def next_freed(self) -> int | None:
        """Return an update that is the first of its line since another left; None: there is none."""
        while self._freed:
            line = self._lines.get(self._freed.popleft())
            if line:
                return line[0]
        return None


class Forwarded:
    """An update that another node makes."""

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.end: Outcome | None = None

    def outcome(self) -> Outcome | None:
        """Return its end, or None while it is open."""
        return self.end

    def timed_out(self) -> Outcome:
        """Return the end of an update whose deadline passed."""
        return Outcome(Failure.UNKNOWN, "the key's first owner did not answer in time", answered=0)


def decide(request: UpdateRequest, record: bytes | None, now_unix_ms: int) -> Change | Outcome:
    """Return what to write over a live record (None: there is none), or why nothing is to be written."""
    for condition in request.conditions:
        if not _is_met(condition, record):
            found = "something else stands there" if record is not None else "nothing stands there"
            return Outcome(Failure.PRECONDITION, f"the condition is not met: {found}")
    expires_unix_ms = now_unix_ms + request.ttl_ms if request.ttl_ms is not None else 0
    match request.kind:
        case "put":
            return Change(request.value, request.content_type or DEFAULT_CONTENT_TYPE, expires_unix_ms)
        case "delete":
            return Change(None, b"", 0)
        case "expire":
            if record is None:
                return Outcome(Failure.ABSENT, "no value is stored under this key")
            return Change(record_value(record), record_content_type(record), expires_unix_ms)
        case "increment":
            return _incremented(request, record, expires_unix_ms)


def _is_met(condition: Condition, record: bytes | None) -> bool:
    is_named = record is not None and (not condition.versions or record_version(record) in condition.versions)
    return is_named == condition.is_match


def _incremented(request: UpdateRequest, record: bytes | None, expires_unix_ms: int) -> Change | Outcome:
    if record is None:
        return Change(b"%d" % request.step, request.content_type or DEFAULT_CONTENT_TYPE, expires_unix_ms)
    value = record_value(record)
    standing = int(value) if _COUNTER.fullmatch(value) else COUNTER_MAX + 1
    if not COUNTER_MIN <= standing <= COUNTER_MAX:
        return Outcome(Failure.NOT_A_NUMBER, "the value is no integer of 64 bits")
    number = standing + request.step
    if not COUNTER_MIN <= number <= COUNTER_MAX:
        return Outcome(Failure.NOT_A_NUMBER, "the sum would be no integer of 64 bits")
    return Change(b"%d" % number, record_content_type(record), record_expires_unix_ms(record))


# --- on the wire ------------------------------------------------------------------------------------


def encode_update(request: UpdateRequest, left_ms: int) -> tuple[Any, ...]:
    """Return the arguments of an UPDATE call."""
    return (
        request.key,
        request.kind,
        tuple((condition.is_match, condition.versions) for condition in request.conditions),
        request.value,
        request.content_type,
        request.ttl_ms,
        request.step,
        request.quorum,
        left_ms,
    )


def decode_update(arguments: tuple[Any, ...]) -> UpdateRequest | None:
    """Read what `encode_update` made; None for another form."""
    match arguments:
        case (
            bytes(key), str(kind), tuple(conditions), bytes(value), bytes(content_type),
            None | int() as ttl_ms, int(step), None | str() as quorum, int(left_ms),
        ):  # fmt: skip
            pass
        case _:
            return None
    is_sound = 0 < len(key) <= KEY_BYTES_MAX and kind in _KINDS and len(content_type) <= CONTENT_TYPE_BYTES_MAX
    is_in_range = (ttl_ms is None or ttl_ms > 0) and COUNTER_MIN <= step <= COUNTER_MAX
    if not (is_sound and is_in_range and 0 < left_ms <= TIMEOUT_MS_MAX and len(conditions) <= CONDITIONS_MAX):
        return None
    if quorum is not None and quorum not in ("quorum", "all") and not (quorum.isdecimal() and len(quorum) < 4):
        return None
    read = [_decode_condition(item) for item in conditions]
    if None in read:
        return None
    return UpdateRequest(
        key,
        kind,  # type: ignore[arg-type]  # one of _KINDS
        tuple(cast("list[Condition]", read)),
        value,
        content_type,
        ttl_ms,
        step,
        quorum,
        left_ms / 1000,
    )


def _decode_condition(item: Any) -> Condition | None:
    match item:
        case (bool(is_match), tuple(versions)) if len(versions) <= VERSIONS_MAX:
            if all(type(version) is bytes and len(version) <= VERSION_BYTES for version in versions):
                return Condition(is_match, versions)
    return None


def encode_outcome(outcome: Outcome) -> tuple[Any, ...]:
    """Return the payload of an UPDATE reply."""
    return (
        outcome.failure.value if outcome.failure is not None else "",
        outcome.detail,
        outcome.record,
        outcome.version,
        outcome.existed,
        outcome.answered,
        outcome.asked,
        outcome.hinted,
    )


def decode_outcome(payload: tuple[Any, ...]) -> Outcome | None:
    """Read what `encode_outcome` made; None for another form."""
    match payload:
        case (
            str(failure), str(detail), None | bytes() as record, bytes(version), bool(existed),
            int(answered), int(asked), tuple(hinted),
        ) if failure == "" or failure in _FAILURES:  # fmt: skip
            ids = tuple(cast("list[NodeId]", [item for item in hinted if type(item) is str]))
            return Outcome(_FAILURES.get(failure), detail, record, version, existed, answered, asked, hinted=ids)
        case _:
            return None
