"""What a request means and what an outcome says, in the terms of HTTP (RFC 9110, 9111, 9457).

Decides keys, parameters, limits, status codes, headers and problems. Never decides how bytes arrive or
leave, and never what a read or a write does: a request becomes a `ReadRequest`, a `WriteRequest` or, where the change
depends on what stands, an `UpdateRequest`; an `Outcome` becomes a `Response`. Pure.

- Nothing is normalised: the raw path after `/kv/`, percent-decoded once, is the key. `//`, `..`, `%2F` and
  `%00` are bytes of it, `+` is a plus; two spellings of the same bytes are the same key.
- Nothing is ignored that a client could rely on: a parameter or a condition that cannot be obeyed is refused.
- Every error is one `Problem`, whose type never changes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote_from_bytes, unquote_to_bytes

from zephyr.api.conditions import is_met, parse_condition
from zephyr.config import KEY_BYTES_MAX, NODE_ID_PATTERN, Settings, parse_duration_s
from zephyr.errors import RequestError
from zephyr.model import Condition, Failure, NodeId, Outcome, ReadRequest, UpdateRequest, Version, WriteRequest
from zephyr.store.record import (
    CONTENT_TYPE_BYTES_MAX,
    record_content_type,
    record_expires_unix_ms,
    record_value,
    record_version,
    version_unix_ms,
)

TTL_MS_MAX = 10 * 365 * 86_400_000
"""Ten years of 365 days: far longer than a cache lives, and far below what 48 bits of unix ms hold."""
TIMEOUT_S_MAX = 60.0
"""Longest deadline that a client may ask for, since each request in flight takes up a place."""
STEP_MIN, STEP_MAX = -(1 << 63), (1 << 63) - 1
"""Of `incr`: 64 bits, as the number that it is added to."""
RETRY_AFTER_S = 1
"""Hint of 429 and 503: about the time in which a queue empties or a connection is made again."""
SHOWN_CHARACTERS_MAX = 64
"""Most of what a client sent is quoted in an error."""
KV_PREFIX = b"/kv/"
KV_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH")
PAGE_METHODS = ("GET", "HEAD")
ACTION_METHODS = ("POST",)
"""Of what an operator asks for."""
COUNTER_CONTENT_TYPE = b"text/plain"
"""Of a number that `incr` created, and of its answer."""
PROBLEM_TYPE_PREFIX = "urn:zephyr:problem:"

Header: TypeAlias = tuple[bytes, bytes]

PARAMETERS: dict[str, tuple[str, ...]] = {
    "GET": ("r", "timeout"),
    "HEAD": ("r", "timeout"),
    "PUT": ("ttl", "w", "sloppy", "timeout"),
    "POST": ("ttl", "w", "sloppy", "timeout", "incr"),
    "DELETE": ("w", "sloppy", "timeout"),
    "PATCH": ("ttl", "w", "timeout"),
}
"""What may stand in the query of a request under `/kv/`."""

_PERCENT_MALFORMED = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
_EVENT_ID = re.compile(r"[0-9]{1,15}")
_UNIX_MS = re.compile(rb"[0-9]{1,15}")
_QUORUM_NUMBER = re.compile(r"[0-9]{1,9}")
_STEP = re.compile(r"[+-]?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of error. `name` is the stable last part of its type."""

    name: str
    status: int
    title: str
    retryable: bool = False
    """The same request may be sent again, and may then succeed: nothing was applied, or applying it twice is the
    same as once."""


MALFORMED = Problem("malformed-request", 400, "The request cannot be read")
BAD_KEY = Problem("malformed-key", 400, "The key cannot be read")
BAD_PARAMETER = Problem("bad-parameter", 400, "A parameter is wrong")
BAD_HEADER = Problem("bad-header", 400, "A header is wrong")
UNKNOWN_PAGE = Problem("unknown-page", 404, "There is no such page")
UNKNOWN_MEMBER = Problem("unknown-member", 404, "There is no such member")
NO_CERTIFICATE = Problem("no-certificate", 404, "Nothing is known here of a death of that member")
NOT_FOUND = Problem("not-found", 404, "The key is not here")
METHOD_NOT_ALLOWED = Problem("method-not-allowed", 405, "The method is not allowed here")
TOO_SLOW = Problem("too-slow", 408, "The request arrived too slowly", retryable=True)
CANNOT_EVICT = Problem("cannot-evict", 409, "This node cannot propose that")
NOTHING_HELD = Problem("nothing-held", 409, "No ring is held here")
PRECONDITION_FAILED = Problem(Failure.PRECONDITION.value, 412, "What stands does not meet the condition")
VALUE_TOO_LARGE = Problem("value-too-large", 413, "The value is too large")
KEY_TOO_LONG = Problem("key-too-long", 414, "The key is too long")
EXPECTATION_FAILED = Problem("expectation-failed", 417, "The expectation cannot be met")
TOO_MANY_BODIES = Problem(
    "too-many-bodies", 429, "The node is receiving too much at once; nothing was done", retryable=True
)
HEADERS_TOO_LARGE = Problem("headers-too-large", 431, "The header block is too large")
INTERNAL_ERROR = Problem("internal-error", 500, "The node failed to answer")
NOT_SUPPORTED = Problem("not-supported", 501, "This is not supported yet")
NOT_READY = Problem("not-ready", 503, "The node is not ready", retryable=True)
TOO_MANY_STREAMS = Problem("too-many-streams", 503, "Too many clients watch this node", retryable=True)
TOO_MANY_CONNECTIONS = Problem("too-many-connections", 503, "Too many connections are busy", retryable=True)

FAILURES: dict[Failure, Problem] = {
    Failure.UNAVAILABLE: Problem(
        Failure.UNAVAILABLE.value, 503, "Too few replicas can be reached; nothing was applied", retryable=True
    ),
    Failure.UNKNOWN: Problem(
        Failure.UNKNOWN.value, 504, "Too few replicas answered in time; the outcome is unknown", retryable=True
    ),
    Failure.TOO_LARGE: Problem(Failure.TOO_LARGE.value, 507, "The item is larger than the memory bound"),
    Failure.OVERLOADED: Problem(Failure.OVERLOADED.value, 429, "The node is overloaded", retryable=True),
    Failure.CLOCK_SKEW: Problem(
        Failure.CLOCK_SKEW.value, 503, "The clocks of the nodes differ too much; nothing was applied", retryable=True
    ),
    Failure.PRECONDITION: PRECONDITION_FAILED,
    Failure.CONFLICT: Problem(Failure.CONFLICT.value, 409, "Another write won the race", retryable=True),
    Failure.NOT_A_NUMBER: Problem(
        Failure.NOT_A_NUMBER.value, 409, "The value is no integer of 64 bits, or would not stay one"
    ),
    Failure.ABSENT: NOT_FOUND,
}
WAIT_STATUSES = (429, 503)
"""Answers that tell when to come back."""


class RefusedError(RequestError):
    """The request was understood well enough to be refused. Nothing was applied."""

    def __init__(self, problem: Problem, detail: str, *headers: Header) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.headers = headers


@dataclass(slots=True)
class Response:
    """A whole answer. To HEAD it is sent without its body, and with the same headers."""

    status: int
    headers: tuple[Header, ...]
    body: bytes = b""


class Target(NamedTuple):
    """A request target, cut in two and otherwise as it came."""

    path: bytes
    query: bytes
    """What follows the first `?`; empty without one."""


def parse_target(raw: bytes | str) -> Target:
    """Split a request target; text stands for its bytes in UTF-8 with surrogate escapes.

    An absolute form (`http://host/kv/x`) loses its host; other forms (`*`, `host:port`) stay, and are no page.
    Raises `RefusedError` (400) for a `#`, which no target may hold.
    """
    target = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
    if b"#" in target:
        raise RefusedError(MALFORMED, "a request target holds no '#'; in a key it is written %23")
    if not target.startswith(b"/") and (authority := _AUTHORITY.match(target)):
        target = target[authority.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    path, _, query = target.partition(b"?")
    return Target(path, query)


def parse_key(path: bytes, prefix: bytes = KV_PREFIX) -> bytes:
    """Return the key that a path under this prefix names.

    Raises `RefusedError`: 404 for an empty one, 400 for a malformed `%`, 414 for more than `KEY_BYTES_MAX` bytes.
    """
    key = path[len(prefix) :]
    return checked_key(percent_decoded(key, BAD_KEY, "the key") if b"%" in key else key)


def checked_key(key: bytes) -> bytes:
    """Return a key that has the right length. Raises `RefusedError`: 404 for an empty one, 414 for a long one."""
    if not key:
        raise RefusedError(UNKNOWN_PAGE, "a key has at least one byte")
    if len(key) > KEY_BYTES_MAX:
        raise RefusedError(KEY_TOO_LONG, f"the key has {len(key)} bytes, the most is {KEY_BYTES_MAX}")
    return key


def key_text(key: bytes) -> str:
    """Write a key as it stands in JSON and in paths: percent-encoded but for letters, digits and `_.-~`."""
    return quote_from_bytes(key, safe="")


def parse_parameters(query: bytes, known: tuple[str, ...], may_be_empty: tuple[str, ...] = ()) -> dict[str, str]:
    """Read a query strictly; each character of a value stands for one byte.

    Raises `RefusedError` (400) for a parameter that is unknown, empty, given twice or malformed.
    """
    parameters: dict[str, str] = {}
    for part in query.split(b"&") if query else ():
        raw_name, _, raw_value = part.partition(b"=")
        name, value = (
            percent_decoded(text, BAD_PARAMETER, "a parameter").decode("latin-1") for text in (raw_name, raw_value)
        )
        if name not in known:
            raise RefusedError(BAD_PARAMETER, f"{shown(name)} is unknown here; known are {', '.join(known)}")
        if name in parameters:
            raise RefusedError(BAD_PARAMETER, f"{name} is given twice")
        if not value and name not in may_be_empty:
            raise RefusedError(BAD_PARAMETER, f"{name} is empty")
        parameters[name] = value
    return parameters


def check_no_body(body_bytes: int) -> None:
    """Refuse (400) a body where there is nothing for it to say."""
    if body_bytes:
        raise RefusedError(MALFORMED, "this request takes no body")


def check_batch_headers(headers: Mapping[str, str]) -> None:
    """Refuse (501) what would have to hold for each key of a batch, and is not looked at."""
    for name in ("If-Match", "If-None-Match", "If-Unmodified-Since"):
        if name in headers:
            raise RefusedError(NOT_SUPPORTED, f"a batch has no conditions: {name}")
    check_transfer_coding(headers)


def check_transfer_coding(headers: Mapping[str, str]) -> None:
    """Refuse (501) a body that comes in another transfer coding than chunks.

    Unlike a content coding it is no part of the body (RFC 9112, section 6.1).
    """
    if headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
        raise RefusedError(NOT_SUPPORTED, "the only transfer coding understood is chunked")


def lenient_parameter(query: bytes, name: str) -> bytes | None:
    """Return the first parameter of this name, decoded; None without one. Pages ignore what they do not know.

    Raises `RefusedError` (400) for a malformed `%` in it.
    """
    for part in query.split(b"&"):
        raw_name, _, raw_value = part.partition(b"=")
        if raw_name == name.encode():
            return percent_decoded(raw_value, BAD_PARAMETER, name)
    return None


def parse_unix_ms(text: bytes) -> int:
    """Read a moment in unix ms. Raises `RefusedError` (400)."""
    if not _UNIX_MS.fullmatch(text):
        raise RefusedError(BAD_PARAMETER, "a moment is a whole number of ms since 1970")
    return int(text)


def parse_event_id(text: str | None) -> int | None:
    """Read `Last-Event-ID`; None without one, or for one that this program never gave."""
    return int(text) if text is not None and _EVENT_ID.fullmatch(text) else None


def parse_node_id(name: bytes) -> NodeId:
    """Read the id that ends a path. Raises `RefusedError` (404) for what cannot be any node's."""
    text = unquote_to_bytes(name).decode("latin-1")
    if not NODE_ID_PATTERN.fullmatch(text):
        raise RefusedError(UNKNOWN_MEMBER, "an id is 1 to 64 letters, digits, dots, underscores or dashes")
    return text


def parse_ttl_ms(text: str) -> int:
    """Read a TTL in whole ms, at least 1. Raises `RefusedError` (400) unless it is above 0 and at most `TTL_MS_MAX`."""
    return checked_ttl_ms(_duration_s("ttl", text), text)


def checked_ttl_ms(seconds: float, text: str) -> int:
    """Return a TTL in whole ms, at least 1; `text` is how the client wrote it. Raises `RefusedError` (400)."""
    if seconds <= 0:
        raise RefusedError(BAD_PARAMETER, f"ttl: {shown(text)} is not above 0")
    if seconds * 1000 > TTL_MS_MAX:
        raise RefusedError(BAD_PARAMETER, f"ttl: {shown(text)} is more than ten years")
    return max(1, round(seconds * 1000))


def parse_timeout_s(text: str) -> float:
    """Read a deadline in seconds. Raises `RefusedError` (400) unless it is above 0 and at most `TIMEOUT_S_MAX`."""
    seconds = _duration_s("timeout", text)
    if seconds > TIMEOUT_S_MAX:
        raise RefusedError(BAD_PARAMETER, f"timeout: {shown(text)} is more than {TIMEOUT_S_MAX:.0f} s")
    return seconds


def parse_step(text: str) -> int:
    """Read the step of `incr`. Raises `RefusedError` (400) unless it is an integer of 64 bits."""
    if not _STEP.fullmatch(text) or not STEP_MIN <= int(text) <= STEP_MAX:
        raise RefusedError(BAD_PARAMETER, f"incr: {shown(text)} is not an integer of 64 bits")
    return int(text)


def parse_sloppy(text: str) -> bool:
    """Read `sloppy`. Raises `RefusedError` (400) unless it is true or false."""
    if text not in {"true", "false"}:
        raise RefusedError(BAD_PARAMETER, f"sloppy: {shown(text)} is neither true nor false")
    return text == "true"


def parse_conditions(if_match: bytes | None, if_none_match: bytes | None) -> tuple[Condition, ...]:
    """Read the conditions of a request, in the order in which they are to be evaluated; None: there is no such header.

    Raises `RefusedError` (400) for a list that cannot be read.
    """
    conditions: list[Condition] = []
    for name, raw, is_match in (("If-Match", if_match, True), ("If-None-Match", if_none_match, False)):
        if raw is None:
            continue
        try:
            condition = parse_condition(raw, is_match=is_match)
        except ValueError as error:
            raise RefusedError(BAD_HEADER, f"{name}: {error}") from None
        if condition is not None:
            conditions.append(condition)
    return tuple(conditions)


def parse_content_type(raw: bytes) -> bytes:
    """Return a Content-Type that may be stored and sent again as it came; empty is the default one.

    Raises `RefusedError` (400) for more than 255 bytes or for control characters.
    """
    if len(raw) > CONTENT_TYPE_BYTES_MAX:
        raise RefusedError(BAD_HEADER, f"Content-Type has {len(raw)} bytes, the most is {CONTENT_TYPE_BYTES_MAX}")
    if _CONTROL_CHARACTER.search(raw):
        raise RefusedError(BAD_HEADER, "Content-Type holds a control character")
    return raw


@functools.lru_cache(maxsize=4096)  # A working set is read far more often than it is written: an hour of seconds.
def http_date(unix_s: int) -> bytes:
    """Write a moment as HTTP does (IMF-fixdate, RFC 9110, section 5.6.7)."""
    days, second = divmod(unix_s, 86_400)
    return b"%b %02d:%02d:%02d GMT" % (_date(days), second // 3600, second // 60 % 60, second % 60)


@functools.lru_cache(maxsize=32)  # A working set is written on few days.
def _date(days: int) -> bytes:
    """Write the date so many days after 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms")."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)  # from 1 March
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    year = year_of_era + era * 400 + (month >= 10)
    weekday = ("Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed")[days % 7]
    name = ("Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb")[month]
    return f"{weekday}, {day:02} {name} {year:04}".encode()


def entity_tag(version: Version) -> bytes:
    """Return the ETag of a version: the same on every replica."""
    return b'"%b"' % version.hex().encode()


class Contract:
    """The part of the contract that depends on the node's settings and name."""

    def __init__(self, settings: Settings) -> None:
        self._replicas = settings.replicas
        self._value_bytes_max = settings.value_max
        self._coordinator: Header = (b"X-Zephyr-Coordinator", settings.id.encode())

    # --- requests -----------------------------------------------------------------------------------

    def read_request(self, method: str, target: Target) -> ReadRequest:
        """Understand a GET or HEAD under `/kv/`. Raises `RefusedError`."""
        request = ReadRequest(parse_key(target.path))
        if target.query:
            parameters = parse_parameters(target.query, PARAMETERS[method])
            request.quorum = self.quorum(parameters, "r")
            request.timeout_s = timeout_of(parameters)
        return request

    def write_request(
        self, method: str, target: Target, content_type: bytes = b"", conditions: tuple[Condition, ...] = ()
    ) -> WriteRequest | UpdateRequest:
        """Understand a PUT, POST, DELETE or PATCH under `/kv/`; a value is still to come. Raises `RefusedError`."""
        request = WriteRequest(parse_key(target.path), None)
        if method in {"PUT", "POST"}:
            request.content_type = parse_content_type(content_type)
        parameters = _NO_PARAMETERS
        if target.query:
            parameters = parse_parameters(target.query, PARAMETERS[method])
            request.quorum = self.quorum(parameters, "w")
            request.timeout_s = timeout_of(parameters)
            if "ttl" in parameters and not (method == "PATCH" and parameters["ttl"] == "none"):
                request.ttl_ms = parse_ttl_ms(parameters["ttl"])
            if "sloppy" in parameters:
                request.is_sloppy = parse_sloppy(parameters["sloppy"])
        if conditions or method == "PATCH" or "incr" in parameters:
            return _update_request(method, request, parameters, conditions)
        return request

    def check_headers(self, method: str, headers: Mapping[str, str]) -> bool:
        """Refuse headers that change what a request under `/kv/` means, in a way that is not carried out.

        Return whether there are conditions to read (`parse_conditions`). `If-Modified-Since` is none of them: answering
        such a read in full is always right, and a date in whole seconds cannot tell two writes apart.
        """
        is_conditional = "If-Match" in headers
        if "If-Unmodified-Since" in headers and not is_conditional:  # Beside If-Match it is ignored: RFC 9110, 13.1.4.
            raise RefusedError(NOT_SUPPORTED, "a date cannot tell two writes apart: use If-Match")
        if method in {"PUT", "POST"}:
            if "Content-Range" in headers:
                raise RefusedError(BAD_HEADER, "a part of a value cannot be written: Content-Range")
            if "Transfer-Encoding" in headers:
                check_transfer_coding(headers)
        return is_conditional or "If-None-Match" in headers

    def check_length(self, value_bytes: int) -> None:
        """Refuse a value that is too large (413), before or while it is read."""
        if value_bytes > self._value_bytes_max:
            raise RefusedError(VALUE_TOO_LARGE, f"the most is {self._value_bytes_max} bytes")

    def quorum(self, parameters: Mapping[str, str], name: str) -> str | None:
        """Read `r` or `w`; None: it is not given. Raises `RefusedError` (400) for what no such cluster can meet."""
        text = parameters.get(name)
        if text is None or text in {"quorum", "all"}:
            return text
        if not _QUORUM_NUMBER.fullmatch(text):
            raise RefusedError(BAD_PARAMETER, f"{name}: {shown(text)} is not 1, quorum, all or a whole number")
        if not 1 <= int(text) <= self._replicas:
            raise RefusedError(
                BAD_PARAMETER, f"{name}: {shown(text)} is not between 1 and the {self._replicas} replicas kept"
            )
        return str(int(text))

    # --- responses ----------------------------------------------------------------------------------

    def outcome_of_read(self, outcome: Outcome, now_unix_ms: int, conditions: tuple[Condition, ...] = ()) -> Response:
        """Answer a GET or HEAD: 200, 304, 404, 412 or a failure. A key that is absent meets and fails no condition."""
        record = outcome.record
        if outcome.failure is not None:
            return self._failed(outcome.failure, outcome)
        if record is None:
            marks = (_UNCONFIRMED,) if outcome.is_unconfirmed else ()
            return self.problem(NOT_FOUND, "no value is stored under this key", _replicas(outcome), *marks)
        version = record_version(record)
        tag = entity_tag(version)
        expires_unix_ms = record_expires_unix_ms(record)
        freshness = b"max-age=%d" % max(0, (expires_unix_ms - now_unix_ms) // 1000) if expires_unix_ms else b"no-cache"
        # A stamp may run a little ahead of the wall clock, but nothing is modified later than it is served.
        modified_s = min(version_unix_ms(version), now_unix_ms) // 1000
        validators: tuple[Header, ...] = (
            (b"ETag", tag),
            (b"Last-Modified", http_date(modified_s)),
            (b"Cache-Control", freshness),
            _NOSNIFF,
            self._coordinator,
            _replicas(outcome),
        )
        if outcome.is_unconfirmed:
            validators += (_UNCONFIRMED,)
        for condition in conditions:
            if not is_met(condition, version):
                if condition.is_match:
                    return self.problem(PRECONDITION_FAILED, "another version stands", _replicas(outcome))
                return Response(304, validators)
        value = record_value(record)
        content: tuple[Header, ...] = (
            (b"Content-Type", record_content_type(record)),
            (b"Content-Length", b"%d" % len(value)),
            _SANDBOXED,
        )
        return Response(200, content + validators, value)

    def outcome_of_write(self, method: str, outcome: Outcome) -> Response:
        """Answer a PUT, POST or DELETE: 201, 204 or a failure."""
        if outcome.failure is not None:
            return self._failed(outcome.failure, outcome)
        origin: tuple[Header, ...] = (_NOSNIFF, self._coordinator, _replicas(outcome))
        if outcome.hinted:
            origin += (_hinted(outcome),)
        if method == "DELETE":
            return Response(204, origin)
        tag = (b"ETag", entity_tag(outcome.version))
        return Response(204, (tag, *origin)) if outcome.existed else Response(201, (_EMPTY, tag, *origin))

    def outcome_of_update(self, method: str, update: UpdateRequest, outcome: Outcome) -> Response:
        """Answer a change that depended on what stood: like a write, or with the new number."""
        if outcome.failure is not None or update.kind in {"put", "delete"}:
            return self.outcome_of_write(method, outcome)
        headers: tuple[Header, ...] = (
            (b"ETag", entity_tag(outcome.version)), _NOSNIFF, self._coordinator, _replicas(outcome),
        )  # fmt: skip
        if outcome.hinted:
            headers += (_hinted(outcome),)
        if update.kind == "expire":
            return Response(204, headers)
        assert outcome.record is not None, "the record of an increment is its answer"
        number = record_value(outcome.record)
        content = ((b"Content-Type", COUNTER_CONTENT_TYPE), (b"Content-Length", b"%d" % len(number)))
        return Response(200, content + headers, number)

    def problem(self, problem: Problem, detail: str, *headers: Header) -> Response:
        """Build an error's answer. `detail` is one sentence for a person."""
        body = json.dumps(problem_members(problem, detail)).encode()
        if problem.status in WAIT_STATUSES:
            headers += (_RETRY_AFTER,)
        described = self._content(b"application/problem+json", body)
        return Response(problem.status, (*described, self._coordinator, *headers), body)

    def refusal(self, refused: RefusedError) -> Response:
        """Build the answer to a refused request."""
        return self.problem(refused.problem, refused.detail, *refused.headers)

    def page(self, body: bytes, content_type: bytes, status: int = 200) -> Response:
        """Build the answer of a page, which is never to be kept."""
        return Response(status, self._content(content_type, body), body)

    def listing(self, body: bytes) -> Response:
        """Build the answer to a request for many keys: JSON, and which node made it."""
        return Response(200, (*self._content(b"application/json", body), self._coordinator), body)

    def event_stream(self) -> Response:
        """Build the beginning of Server-Sent Events, which end when the connection does."""
        unbuffered = (b"X-Accel-Buffering", b"no")  # nginx would hold events back until its buffer is full.
        return Response(
            200, ((b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store"), _NOSNIFF, unbuffered)
        )

    def _content(self, content_type: bytes, body: bytes) -> tuple[Header, ...]:
        return (
            (b"Content-Type", content_type),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
            _NOSNIFF,
        )

    def _failed(self, failure: Failure, outcome: Outcome) -> Response:
        problem = FAILURES[failure]
        marks = (_hinted(outcome),) if outcome.hinted else ()
        return self.problem(problem, outcome.detail or problem.title, _replicas(outcome), *marks)


STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
"""The first line of each answer."""
_NOSNIFF: Header = (b"X-Content-Type-Options", b"nosniff")
_SANDBOXED: Header = (b"Content-Security-Policy", b"sandbox")
"""A value that says of itself that it is a page runs nothing in the origin of /debug and of operators' requests."""
_UNCONFIRMED: Header = (b"X-Zephyr-Authority", b"unconfirmed")
_ONE_OF_ONE: Header = (b"X-Zephyr-Replicas", b"1/1")
_EMPTY: Header = (b"Content-Length", b"0")
_RETRY_AFTER: Header = (b"Retry-After", b"%d" % RETRY_AFTER_S)
_NO_PARAMETERS: Mapping[str, str] = {}


def method_not_allowed(allowed: tuple[str, ...]) -> RefusedError:
    """Build the refusal of a method, which names those that would do."""
    text = ", ".join(allowed)
    return RefusedError(METHOD_NOT_ALLOWED, f"allowed here: {text}", (b"Allow", text.encode()))


def problem_members(problem: Problem, detail: str) -> dict[str, Any]:
    """Return the members of a problem's document (RFC 9457), and `retryable`."""
    return {
        "type": PROBLEM_TYPE_PREFIX + problem.name,
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "retryable": problem.retryable,
    }


def _update_request(
    method: str, write: WriteRequest, parameters: Mapping[str, str], conditions: tuple[Condition, ...]
) -> UpdateRequest:
    """Make an update of what was understood as a write. Raises `RefusedError` (400)."""
    if write.is_sloppy:
        raise RefusedError(BAD_PARAMETER, "sloppy: a change that depends on what stands is made by an owner")
    update = UpdateRequest(
        write.key, "put", conditions, content_type=write.content_type, ttl_ms=write.ttl_ms, quorum=write.quorum,
        timeout_s=write.timeout_s,
    )  # fmt: skip
    if method == "DELETE":
        update.kind = "delete"
    elif method == "PATCH":
        update.kind = "expire"
        if "ttl" not in parameters:
            raise RefusedError(BAD_PARAMETER, "ttl is missing: how long the value is to be kept from now on, or none")
    elif "incr" in parameters:
        update.kind = "increment"
        update.step = parse_step(parameters["incr"])
        update.content_type = COUNTER_CONTENT_TYPE
    return update


def shown(text: str) -> str:
    """Quote what a client sent, shortened: a detail is one sentence."""
    return repr(text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "...")


def _replicas(outcome: Outcome) -> Header:
    if outcome.asked == 1 == outcome.answered:
        return _ONE_OF_ONE
    return (b"X-Zephyr-Replicas", b"%d/%d" % (outcome.answered, outcome.asked))


def _hinted(outcome: Outcome) -> Header:
    return (b"X-Zephyr-Hinted", ", ".join(outcome.hinted).encode())


def percent_decoded(text: bytes, problem: Problem, what: str) -> bytes:
    """Decode once. Raises `RefusedError` (400, as this problem) for a `%` that stands alone."""
    if b"%" not in text:
        return text
    if _PERCENT_MALFORMED.search(text):
        raise RefusedError(problem, f"{what} holds a % that two hexadecimal digits do not follow")
    return unquote_to_bytes(text)


def _duration_s(name: str, text: str) -> float:
    try:
        seconds = parse_duration_s(text) if text.isascii() else 0.0
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise RefusedError(
            BAD_PARAMETER, f"{name}: {shown(text)} is not a duration above 0 such as 30, 1.5, 500ms, 5m, 2h or 7d"
        )
    return seconds


def timeout_of(parameters: Mapping[str, str]) -> float | None:
    """Read `timeout`; None: it is not given. Raises `RefusedError` (400)."""
    text = parameters.get("timeout")
    return None if text is None else parse_timeout_s(text)
