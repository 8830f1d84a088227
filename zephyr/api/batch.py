"""Many operations in one request: the JSON that asks for them, their order, and the JSON that answers them.

Decides which operations may be begun together, and what a malformed one costs: its own status, nobody else's. Never
decides what an operation does, nor waits: ask `due` for what to begin next, and hand over the outcomes. Pure.

- Operations on one key are done one after the other, as they stand; others at the same time.
- An answer has as many rows as the batch has operations, in the same order.
- One bad operation is a row; what cannot be read as a list of operations is an error of the whole.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

from zephyr.api import contract
from zephyr.api.contract import Contract, Problem, RefusedError, Response, Target
from zephyr.config import KEY_BYTES_MAX
from zephyr.model import Failure, Outcome, ReadRequest, WriteRequest
from zephyr.store.record import record_content_type, record_value, record_version

OPERATIONS_MAX = 1000
BODY_BYTES_MAX = 8 << 20
"""Of a batch as it is sent."""
VALUES_BYTES_MAX = 16 << 20
"""Of values in one answer, before they are written as base64: what does not fit is to be read by itself."""
AT_ONCE_MAX = 128
"""Operations that are begun together, in one frame to each peer: about two milliseconds of the loop's time, and with
the largest values of the default size 128 MiB on their way."""
DURATION_MAX_S = contract.TIMEOUT_S_MAX
"""For a whole batch without `timeout`, in which each operation has the cluster's deadline."""
PARAMETERS = ("r", "w", "sloppy", "timeout")
FIELDS = {"get": {"op", "key"}, "delete": {"op", "key"}, "put": {"op", "key", "value", "ttl", "content_type"}}
"""What an operation may hold."""
SHORT_BODY_BYTES_MAX = 128 << 10
"""Whatever JSON this is, it is read in a few ms; a longer body is looked at before."""
TOKENS_MAX = 64 * OPERATIONS_MAX
"""Strings and punctuation in a long body; an operation with all of its fields has 21. A million nested lists would
stall the loop for a tenth of a second and take a hundred times their room."""

BATCH_TOO_LARGE = Problem("batch-too-large", 413, "The batch is too large")
ANSWER_TOO_LARGE = Problem("answer-too-large", 413, "The values of this batch are too large for one answer")
BAD_OPERATION = Problem("bad-operation", 400, "The operation cannot be read")

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},:]', re.DOTALL)
_NAMES_OF_METHODS = {"get": "GET", "put": "PUT", "delete": "DELETE"}


def check_length(body_bytes: int) -> None:
    """Refuse a body that is too large (413), before or while it is read."""
    if body_bytes > BODY_BYTES_MAX:
        raise RefusedError(BATCH_TOO_LARGE, f"the most is {BODY_BYTES_MAX} bytes")


class _Operation(NamedTuple):
    """One row of a batch that was understood."""

    row: int
    method: str
    request: ReadRequest | WriteRequest


class _Repeated(NamedTuple):
    """Stands for a JSON object in which a name stands twice."""

    name: str


class Batch:
    """One client's batch."""

    def __init__(self, answers: Contract, target: Target, timeout_s: float) -> None:
        """`timeout_s`: the cluster's deadline of one operation. Raises `RefusedError` (400) over the query."""
        parameters = contract.parse_parameters(target.query, PARAMETERS)
        self._answers = answers
        self._read_quorum = answers.quorum(parameters, "r")
        self._write_quorum = answers.quorum(parameters, "w")
        self._is_sloppy = contract.parse_sloppy(parameters.get("sloppy", "false"))
        self._operation_s = timeout_s
        self._given_s = contract.timeout_of(parameters)
        self._rows: list[bytes] = []
        self._ready: deque[_Operation] = deque()
        """What may be begun: nothing before it is to be done with its key."""
        self._later: dict[bytes, deque[_Operation]] = {}
        """Operations behind another one with their key."""
        self._running: list[_Operation] = []
        self._values_bytes = 0
        self.hits = 0
        """Gets that found a value."""
        self.misses = 0

    # --- what is asked ------------------------------------------------------------------------------

    def read(self, body: bytes) -> None:
        """Read the operations. Raises `RefusedError`: 400 for what is no JSON list, 413 for one that is too long."""
        items = _items(body)
        if len(items) > OPERATIONS_MAX:
            raise RefusedError(BATCH_TOO_LARGE, f"the most is {OPERATIONS_MAX} operations")
        self._rows = [b""] * len(items)
        keys: set[bytes] = set()
        for row, item in enumerate(items):
            try:
                operation = self._operation(row, item)
            except RefusedError as refused:
                problem = refused.problem if refused.problem is contract.VALUE_TOO_LARGE else BAD_OPERATION
                self._rows[row] = _row(_shown_key(item), problem.status, {}, (problem, refused.detail))
                continue
            key = operation.request.key
            if key in keys:
                self._later.setdefault(key, deque()).append(operation)
            else:
                keys.add(key)
                self._ready.append(operation)

    def _operation(self, row: int, item: Any) -> _Operation:
        """Understand one operation. Raises `RefusedError`."""
        if isinstance(item, _Repeated):
            raise RefusedError(BAD_OPERATION, f"{contract.shown(item.name)} is given twice")
        if not isinstance(item, dict):
            raise RefusedError(BAD_OPERATION, "an operation is a JSON object")
        name = item.get("op")
        if not isinstance(name, str) or name not in FIELDS:
            raise RefusedError(BAD_OPERATION, f"op is one of {', '.join(FIELDS)}")
        if not item.keys() <= FIELDS[name]:
            unknown = min(item.keys() - FIELDS[name])
            raise RefusedError(BAD_OPERATION, f"{name} takes no {contract.shown(unknown)}")
        key = _key(item.get("key"))
        if name == "get":
            return _Operation(row, "GET", ReadRequest(key, self._read_quorum))
        write = WriteRequest(key, None, quorum=self._write_quorum, is_sloppy=self._is_sloppy)
        if name == "put":
            write.value = _value(item.get("value"))
            self._answers.check_length(len(write.value))
            if "content_type" in item:
                write.content_type = contract.parse_content_type(_encoded("content_type", item["content_type"]))
            if "ttl" in item:
                write.ttl_ms = _ttl_ms(item["ttl"])
        return _Operation(row, _NAMES_OF_METHODS[name], write)

    # --- what is done -------------------------------------------------------------------------------

    def due(self, elapsed_s: float) -> list[ReadRequest | WriteRequest]:
        """Return what to begin together, so long after the beginning; nothing: every row is answered.

        No two of them have one key, and the outcomes of all are to be taken before it is asked again.
        """
        assert not self._running
        remaining_s = (self._given_s or DURATION_MAX_S) - elapsed_s
        is_usual = self._given_s is None and remaining_s >= self._operation_s
        while self._ready and len(self._running) < AT_ONCE_MAX:
            operation = self._ready.popleft()
            if remaining_s <= 0:
                self._refuse(operation, contract.FAILURES[Failure.UNAVAILABLE], "the time of the batch was over")
            elif operation.method == "GET" and self._values_bytes >= VALUES_BYTES_MAX:
                self._refuse(operation, ANSWER_TOO_LARGE, "read it by itself")
            else:
                operation.request.timeout_s = None if is_usual else remaining_s
                self._running.append(operation)
        return [operation.request for operation in self._running]

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of what was begun, in the same order."""
        running, self._running = self._running, []
        for operation, outcome in zip(running, outcomes, strict=True):
            self._answer(operation, outcome)

    def _answer(self, operation: _Operation, outcome: Outcome) -> None:
        extras = _extras(outcome)
        if outcome.failure is not None:
            problem = contract.FAILURES[outcome.failure]
            self._refuse(operation, problem, outcome.detail or problem.title, extras)
        elif operation.method == "GET":
            self._answer_get(operation, outcome.record, extras)
        else:
            self._answer_write(operation, outcome, extras)

    def _answer_get(self, operation: _Operation, record: bytes | None, extras: dict[str, Any]) -> None:
        if record is None:
            self.misses += 1
            self._refuse(operation, contract.NOT_FOUND, "no value is stored under this key", extras)
            return
        self.hits += 1
        value = record_value(record)
        self._values_bytes += len(value)
        if self._values_bytes > VALUES_BYTES_MAX:
            self._refuse(operation, ANSWER_TOO_LARGE, "read it by itself", extras)
            return
        extras["value"] = b64encode(value).decode()
        extras["etag"] = contract.entity_tag(record_version(record)).decode()
        extras["content_type"] = record_content_type(record).decode(errors="replace")
        self._finish(operation, 200, extras)

    def _answer_write(self, operation: _Operation, outcome: Outcome, extras: dict[str, Any]) -> None:
        is_put = operation.method == "PUT"
        status = 201 if is_put and not outcome.existed else 204
        if is_put:
            extras["etag"] = contract.entity_tag(outcome.version).decode()
        if len(extras) > 1 or not is_put:
            self._finish(operation, status, extras)
            return
        # What nearly every row of many writes is: nothing in it but the quotes of the tag has to be escaped.
        key, tag = contract.key_text(operation.request.key), outcome.version.hex()
        row = f'{{"key": "{key}", "status": {status}, "value": null, "etag": "\\"{tag}\\""}}'
        self._end(operation, row.encode())

    def _refuse(
        self, operation: _Operation, problem: Problem, detail: str, extras: dict[str, Any] | None = None
    ) -> None:
        key = contract.key_text(operation.request.key)
        self._end(operation, _row(key, problem.status, extras or {}, (problem, detail)))

    def _finish(self, operation: _Operation, status: int, extras: dict[str, Any]) -> None:
        self._end(operation, _row(contract.key_text(operation.request.key), status, extras))

    def _end(self, operation: _Operation, row: bytes) -> None:
        """Answer an operation, and let the next one with its key begin."""
        self._rows[operation.row] = row
        later = self._later.get(operation.request.key)
        if later:
            self._ready.append(later.popleft())

    # --- what is answered ---------------------------------------------------------------------------

    def response(self) -> Response:
        """Answer the batch, of which every operation has its row."""
        assert all(self._rows)
        return self._answers.listing(b"[%b]\n" % b",\n".join(self._rows))


def _items(body: bytes) -> list[Any]:
    """Read a JSON list. Raises `RefusedError` (400)."""
    if len(body) > SHORT_BODY_BYTES_MAX and next(islice(_TOKEN.finditer(body), TOKENS_MAX, None), None) is not None:
        raise RefusedError(contract.MALFORMED, f"a batch of this length has at most {TOKENS_MAX} JSON tokens")
    try:
        items = json.loads(body.decode(), object_pairs_hook=_object, parse_int=float, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is no JSON in UTF-8"
        raise RefusedError(contract.MALFORMED, f"a batch is a JSON list of operations: {reason}") from None
    if not isinstance(items, list):
        raise RefusedError(contract.MALFORMED, "a batch is a JSON list of operations")
    return items


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    names = dict(pairs)
    if len(names) == len(pairs):
        return names
    counts = Counter(name for name, _ in pairs)
    return _Repeated(counts.most_common(1)[0][0])


def _refuse_constant(name: str) -> Any:
    """NaN and Infinity are Python's JSON, and nobody else's."""
    raise ValueError(name)


def _encoded(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise RefusedError(BAD_OPERATION, f"{name} is a string")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RefusedError(BAD_OPERATION, f"{name} holds half a character") from None


def _key(text: Any) -> bytes:
    """Read a key, which is percent-encoded in JSON as in a path."""
    key = contract.percent_decoded(_encoded("key", text), BAD_OPERATION, "key")
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise RefusedError(BAD_OPERATION, f"key has {len(key)} bytes; a key has 1 to {KEY_BYTES_MAX}")
    return key


def _value(text: Any) -> bytes:
    try:
        return b64decode(_encoded("value", text), validate=True)
    except binascii.Error:
        raise RefusedError(BAD_OPERATION, "value is no base64") from None


def _ttl_ms(ttl: Any) -> int:
    """Read a TTL: a text as in a query, or a number of seconds."""
    if isinstance(ttl, str):
        return contract.parse_ttl_ms(ttl)
    if not isinstance(ttl, float) or not isfinite(ttl):
        raise RefusedError(BAD_OPERATION, "ttl is a text such as 500ms, or a number of seconds")
    return contract.checked_ttl_ms(ttl, f"{ttl:g}")


def _row(key: str | None, status: int, extras: dict[str, Any], problem: tuple[Problem, str] | None = None) -> bytes:
    """Write a row at once: JSON in small pieces stalls nobody, and takes less room than what it is made of."""
    document: dict[str, Any] = {"key": key, "status": status, "value": None, "etag": None, **extras}
    if problem is not None:
        document |= contract.problem_members(*problem)
    return json.dumps(document).encode()


def _extras(outcome: Outcome) -> dict[str, Any]:
    """Return what else is told of an outcome, in the words of the headers under `/kv/`."""
    extras: dict[str, Any] = {}
    if outcome.hinted:
        extras["hinted"] = list(outcome.hinted)
    if outcome.is_unconfirmed:
        extras["authority"] = "unconfirmed"
    return extras


def _shown_key(item: Any) -> str | None:
    """Return the key of an operation that was not understood, as it stands there; None without one of any use."""
    key = item.get("key") if isinstance(item, dict) else None
    return key if isinstance(key, str) and len(key) <= 3 * KEY_BYTES_MAX else None
