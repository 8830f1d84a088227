"""The HTTP contract, row by row, on a real node with a plain client.

Each row is a few requests to one key, in order, and what each is answered. `K` stands for a key that no other row uses;
`{0}`, `{1}` ... in a header for the ETag of the answer of that number. The node is alone, with three replicas to keep:
whatever wants a second member is 503.
"""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from itertools import count
from typing import Any, NamedTuple

import pytest

TIMEOUT_S = 20.0
MIB = 1 << 20
NUMBERS = count()
FOREIGN = '"somebody else\'s"'.replace(" ", "-")


class Step(NamedTuple):
    """A request and the status of its answer; further, its body, problem and headers where they matter."""

    request: str
    status: int
    body: bytes | None = None
    headers: dict[str, str] | None = None
    problem: str | None = None
    answer: bytes | None = None
    says: dict[str, str | None] | None = None


def put(status: int = 201, body: bytes = b"value", query: str = "", **headers: str) -> Step:
    return Step(f"PUT /kv/K{query}", status, body, named(headers))


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def ask(request: str, status: int, problem: str | None = None, answer: bytes | None = None, **headers: str) -> Step:
    return Step(request, status, None, named(headers), problem, answer)


def found(answer: bytes, **says: str | None) -> Step:
    return Step("GET /kv/K", 200, answer=answer, says=named(says))  # type: ignore[arg-type]  # None: is not there


ROWS: dict[str, list[Step]] = {
    "PUT creates and replaces": [put(201), put(204, b"other"), found(b"other", Cache_Control="no-cache")],
    "POST creates and replaces": [
        Step("POST /kv/K", 201, b"1"), Step("POST /kv/K", 204, b"2"), found(b"2"),
    ],
    "an empty value is a value": [put(201, b""), found(b""), put(204, b"")],
    "the type is kept": [put(Content_Type="a/b; c=d"), found(b"value", Content_Type="a/b; c=d")],
    "without a type it is bytes": [put(), found(b"value", Content_Type="application/octet-stream")],
    "a coding is not undone": [put(Content_Encoding="gzip"), found(b"value", Content_Encoding=None)],
    "a deadline is told in whole seconds": [put(query="?ttl=100.5"), found(b"value", Cache_Control="max-age=100")],
    "GET and HEAD of nothing": [ask("GET /kv/K", 404, "not-found"), ask("HEAD /kv/K", 404)],
    "DELETE, there or not": [
        put(), ask("DELETE /kv/K", 204), ask("DELETE /kv/K", 204), ask("GET /kv/K", 404, "not-found"),
    ],
    "the largest value": [put(201, bytes(MIB)), put(413, bytes(MIB + 1)), found(bytes(MIB))],
    "the longest key": [ask("PUT /kv/" + "%6b" * 1024, 201), ask("GET /kv/" + "k" * 1025, 414, "key-too-long")],
    "two spellings are one key": [
        Step("PUT /kv/K%2F..%2f%00+", 201, b"one"), ask("GET /kv/K/../%00%2B", 200, answer=b"one"),
        ask("GET /kv/K/../%00%20", 404, "not-found"),
    ],
    "what is no key": [
        ask("GET /kv/", 404, "unknown-page"), ask("GET /kv/%", 400, "malformed-key"),
        ask("GET /kv/%4g", 400, "malformed-key"),
    ],
    # conditions
    "If-None-Match: * creates once": [
        put(201, If_None_Match="*"), put(412, If_None_Match="*"), found(b"value"), ask("DELETE /kv/K", 204),
        put(201, If_None_Match="*"),
    ],
    "If-Match replaces what it names": [
        put(201), put(204, b"2", If_Match="{0}"), put(412, b"3", If_Match="{0}"),
        put(204, b"4", If_Match=f"{FOREIGN}, {{1}}"), found(b"4"),
    ],
    "If-Match: * replaces anything": [put(412, If_Match="*"), put(201), put(204, If_Match="*")],
    "If-Match compares strongly": [put(201), put(412, If_Match="W/{0}"), put(412, If_Match=FOREIGN)],
    "If-None-Match compares weakly": [put(201), put(412, If_None_Match="W/{0}"), put(204, If_None_Match=FOREIGN)],
    "both must be met": [
        put(201), put(412, If_Match="{0}", If_None_Match="{0}"), put(204, If_Match="{0}", If_None_Match=FOREIGN),
    ],
    "DELETE has conditions": [
        ask("DELETE /kv/K", 412, "precondition-failed", If_Match="*"), put(201),
        ask("DELETE /kv/K", 412, "precondition-failed", If_Match=FOREIGN), ask("DELETE /kv/K", 204, If_Match="{1}"),
        ask("GET /kv/K", 404, "not-found"),
    ],
    "PATCH and incr have conditions": [
        Step("PUT /kv/K", 201, b"1"), ask("PATCH /kv/K?ttl=60", 412, "precondition-failed", If_Match=FOREIGN),
        ask("POST /kv/K?incr=1", 412, "precondition-failed", If_None_Match="*"),
        ask("POST /kv/K?incr=1", 200, answer=b"2", If_Match="{0}"), ask("PATCH /kv/K?ttl=60", 204, If_Match="{3}"),
    ],
    "what is no list of tags": [
        put(400, If_Match="x"), put(400, If_Match='"x'), put(400, If_None_Match=""), put(400, If_None_Match='*, "x"'),
        ask("GET /kv/K", 400, "bad-header", If_None_Match="x"), ask("DELETE /kv/K", 400, "bad-header", If_Match="*, *"),
    ],
    "a date is no condition": [
        put(501, If_Unmodified_Since="Tue, 14 Nov 2023 22:13:10 GMT"),
        ask("GET /kv/K", 501, "not-supported", If_Unmodified_Since="x"),
    ],
    "reads have conditions": [
        put(), ask("GET /kv/K", 304, If_None_Match="{0}"), ask("HEAD /kv/K", 304, If_None_Match="W/{0}"),
        ask("GET /kv/K", 304, If_None_Match="*"), ask("GET /kv/K", 200, If_None_Match=FOREIGN),
        ask("GET /kv/K", 412, "precondition-failed", If_Match=FOREIGN), ask("GET /kv/K", 200, If_Match="{0}"),
        ask("GET /kv/K?r=1", 304, If_Match="{0}", If_None_Match="{0}"),
    ],
    # counters and deadlines
    "incr starts at 0 and goes both ways": [
        ask("POST /kv/K?incr=5", 200, answer=b"5"), ask("POST /kv/K?incr=-7", 200, answer=b"-2"),
        ask("POST /kv/K?incr=0", 200, answer=b"-2"), found(b"-2"),
    ],
    "ttl counts where incr creates": [
        ask("POST /kv/K?incr=1&ttl=100.5", 200), found(b"1", Cache_Control="max-age=100"),
        ask("POST /kv/K?incr=1&ttl=500", 200), found(b"2", Cache_Control="max-age=100"),
    ],
    "incr counts numbers of 64 bits": [
        put(201, b"9223372036854775807"), ask("POST /kv/K?incr=1", 409, "not-a-number"),
        ask("POST /kv/K?incr=-9223372036854775808", 200, answer=b"-1"), put(204, b"1.5"),
        ask("POST /kv/K?incr=1", 409, "not-a-number"), put(204, b""), ask("POST /kv/K?incr=1", 409, "not-a-number"),
        found(b""),
    ],
    "a step that is none": [
        *[ask(f"POST /kv/K?incr={step}", 400, "bad-parameter") for step in ("9223372036854775808", "1.5", "", "one")],
        ask("PUT /kv/K?incr=1", 400, "bad-parameter"),
        Step("POST /kv/K?incr=1", 400, b"1"), ask("GET /kv/K", 404, "not-found"),
    ],
    "PATCH sets and removes a deadline": [
        put(201, Content_Type="x/y"), ask("PATCH /kv/K?ttl=100.5", 204),
        found(b"value", Cache_Control="max-age=100", Content_Type="x/y"),
        ask("PATCH /kv/K?ttl=none", 204), found(b"value", Cache_Control="no-cache"),
    ],
    "PATCH of nothing": [ask("PATCH /kv/K?ttl=60", 404, "not-found"), ask("PATCH /kv/K?ttl=none", 404, "not-found")],
    "PATCH wants one thing": [
        put(), ask("PATCH /kv/K", 400, "bad-parameter"), ask("PATCH /kv/K?ttl=0", 400, "bad-parameter"),
        Step("PATCH /kv/K?ttl=60", 400, b"x"), put(400, query="?ttl=none"),
    ],
    # the query
    "durations": [
        *[put(201 if number == 0 else 204, query=f"?ttl={ttl}") for number, ttl in
          enumerate(("30", "1.5", "500ms", "1.5s", "5m", "2h", "7d", "3650d"))],
        *[put(400, query=f"?ttl={ttl}") for ttl in ("0", "-1", "1w", "3651d", "1e3", "", "x", "%32%30x")],
    ],
    "replicas of a read": [
        put(), *[ask(f"GET /kv/K?r={r}", 200) for r in ("1", "quorum", "all", "%31")],
        *[ask(f"GET /kv/K?r={r}", 400, "bad-parameter") for r in ("0", "4", "9" * 11, "-1", "1.0", "one", "", "ALL")],
        *[ask(f"GET /kv/K?r={r}", 503, "unavailable") for r in ("2", "3")],
    ],
    "replicas of a write": [
        *[put(503, query=f"?w={w}") for w in ("2", "3")], ask("GET /kv/K", 404, "not-found"),
        *[put(400, query=f"?w={w}") for w in ("0", "4", "-1", "x", "")],
        put(201, query="?w=1"), put(204, query="?w=quorum"), ask("DELETE /kv/K?w=3", 503, "unavailable"),
        ask("DELETE /kv/K?w=all", 204), ask("POST /kv/K?incr=1&w=3", 503, "unavailable"),
        ask("POST /kv/K?incr=1&w=1", 200), ask("PATCH /kv/K?ttl=1&w=4", 400, "bad-parameter"),
    ],
    "a deadline of the request": [
        put(201, query="?timeout=60"), put(204, query="?timeout=1m"), put(400, query="?timeout=60.001"),
        put(400, query="?timeout=0"), ask("GET /kv/K?timeout=61", 400, "bad-parameter"),
    ],
    "sloppy is for writes": [
        put(201, query="?sloppy=true"), put(204, query="?sloppy=false"), put(400, query="?sloppy=1"),
        ask("DELETE /kv/K?sloppy=true", 204), ask("GET /kv/K?sloppy=true", 400, "bad-parameter"),
        ask("POST /kv/K?incr=1&sloppy=true", 400, "bad-parameter"),
    ],
    "a query is read strictly": [
        put(400, query="?ttl=1&ttl=1"), put(400, query="?tll=1"), put(400, query="?ttl"), put(400, query="?&"),
        put(400, query="?r=1"), *[ask(f"GET /kv/K?{query}", 400, "bad-parameter") for query in ("w=1", "r=%zz", "r")],
        ask("GET /scan?prefix=a&prefix=a", 400, "bad-parameter"), ask("GET /scan?match=K", 400, "bad-parameter"),
        Step("POST /batch?ttl=1", 400, b"[]"), ask("GET /info?whatever=1&whatever=1", 200),
    ],
    # many keys
    "what is no batch": [
        Step("POST /batch", 400, b""), Step("POST /batch", 400, b"{}"), Step("POST /batch", 400, b"[1,]"),
        Step("POST /batch", 200, b"[]"), Step("POST /batch", 413, b'[{"op": "get", "key": "a"}' + b", 0" * 1000 + b"]"),
        Step("POST /batch", 413, b" " * (8 * MIB + 1)), ask("GET /batch", 405, "method-not-allowed"),
    ],
    "what is no page of keys": [
        *[ask(f"GET /scan?limit={limit}", 400, "bad-parameter") for limit in ("0", "1001", "-1", "x", "")],
        *[ask(f"GET /scan?cursor={cursor}", 400, "bad-parameter") for cursor in ("x", "AQ", "AP__YQ", "%00")],
        ask("GET /scan?prefix=&cursor=&limit=1000", 200), ask("POST /scan", 405, "method-not-allowed"),
    ],
    # everything else
    "other methods and pages": [
        Step("OPTIONS /kv/K", 405, says={"Allow": "GET, HEAD, PUT, POST, DELETE, PATCH"}),
        Step("TRACE /kv/K", 405), Step("POST /batch/", 404), ask("GET /nowhere", 404, "unknown-page"),
        Step("PATCH /info", 405, says={"Allow": "GET, HEAD"}), ask("GET /cluster/explain/", 404, "unknown-page"),
    ],
    "every answer says who made it": [
        Step("PUT /kv/K", 201, b"", says={"X-Zephyr-Coordinator": "n1", "X-Zephyr-Replicas": "1/1", "Age": None,
                                          "X-Content-Type-Options": "nosniff", "X-Zephyr-Hinted": None}),
        Step("GET /kv/K", 200, says={"X-Zephyr-Coordinator": "n1", "X-Zephyr-Replicas": "1/1", "Age": None,
                                     "X-Content-Type-Options": "nosniff", "X-Zephyr-Authority": None}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_contract_holds(row, lone_node):
    key = f"row-{next(NUMBERS)}"
    connection = http.client.HTTPConnection(lone_node.http, timeout=TIMEOUT_S)
    tags: list[str] = []
    try:
        for number, step in enumerate(ROWS[row]):
            method, target = step.request.split(" ", 1)
            target = target.replace("/K", f"/{key}")
            headers = {name: value.format(*tags) for name, value in (step.headers or {}).items()}
            connection.request(method, target, step.body, headers)
            response = connection.getresponse()
            body = response.read()
            where = f"step {number}: {step}: {response.status} {body[:300]!r}"
            assert response.status == step.status, where
            check_problem(response, body, step, where)
            assert step.answer is None or body == step.answer, where
            for name, value in (step.says or {}).items():
                assert response.getheader(name) == value, where
            tags.append(response.getheader("ETag", ""))
    finally:
        connection.close()


def check_problem(response: http.client.HTTPResponse, body: bytes, step: Step, where: str) -> None:
    """Check that an error, and nothing else, is a problem (RFC 9457)."""
    is_problem = response.getheader("Content-Type") == "application/problem+json"
    assert is_problem == (response.status >= 400), where
    if not is_problem or step.request.startswith("HEAD"):
        return
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == response.status, where
    assert document["detail"], where
    assert document.keys() == {"type", "title", "status", "detail", "retryable"}, where
    name = document["type"].removeprefix("urn:zephyr:problem:")
    assert step.problem in {None, name}, where
    assert (response.getheader("Retry-After") is not None) == (response.status in {429, 503}), where


# --- many keys on a real node ---------------------------------------------------------------------------


def exchange(node: Any, method: str, target: str, body: bytes | None = None) -> Any:
    """Ask once, and return the JSON of a 200."""
    connection = http.client.HTTPConnection(node.http, timeout=TIMEOUT_S)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        answered = response.read()
        assert response.status == 200, answered
        return json.loads(answered)
    finally:
        connection.close()


def test_a_batch_is_done_in_the_order_of_each_key(lone_node):
    def put_of(key: str, value: bytes, **more: Any) -> dict[str, Any]:
        return {"op": "put", "key": key, "value": b64encode(value).decode(), **more}

    operations = [
        put_of("batch%2Fa", b"1", ttl="60", content_type="x/y"),
        {"op": "get", "key": "batch/a"},
        put_of("batch/a", b"2"),
        {"op": "get", "key": "batch/a"},
        {"op": "delete", "key": "batch/a"},
        {"op": "get", "key": "batch/a"},
        {"op": "get", "key": "batch/a", "ttl": 1},
        put_of("batch/b", b"\x00\xff", ttl=0),
        put_of("batch/c", bytes(MIB + 1)),
    ]
    rows = exchange(lone_node, "POST", "/batch?r=all&w=all&timeout=5", json.dumps(operations).encode())
    assert [row["status"] for row in rows] == [201, 200, 204, 200, 204, 404, 400, 400, 413]
    assert [row["value"] for row in rows[:6]] == [None, "MQ==", None, "Mg==", None, None]
    assert rows[0]["etag"] == rows[1]["etag"] != rows[2]["etag"] == rows[3]["etag"]
    assert rows[1]["content_type"] == "x/y"
    assert {row["key"] for row in rows[:6]} == {"batch%2Fa"}


def test_a_thousand_operations_are_one_batch(lone_node):
    operations = [{"op": "put", "key": f"thousand-{number}", "value": "dg=="} for number in range(1000)]
    assert {row["status"] for row in exchange(lone_node, "POST", "/batch", json.dumps(operations).encode())} == {201}
    gets = [{"op": "get", "key": f"thousand-{number}"} for number in range(1000)]
    assert {row["value"] for row in exchange(lone_node, "POST", "/batch", json.dumps(gets).encode())} == {"dg=="}
    ones = [{"op": "get", "key": "thousand-1"}] * 1000
    assert {row["value"] for row in exchange(lone_node, "POST", "/batch", json.dumps(ones).encode())} == {"dg=="}


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_a_listing_has_every_key_of_a_prefix(limit, lone_node):
    wanted = {f"list%2F{limit}%2F{number}" for number in range(150)}
    operations = [{"op": "put", "key": key, "value": ""} for key in [*wanted, f"list-{limit}"]]
    exchange(lone_node, "POST", "/batch", json.dumps(operations).encode())
    listed: list[str] = []
    target = first = f"/scan?prefix=list/{limit}/&limit={limit}"
    while True:
        page = exchange(lone_node, "GET", target)
        assert len(page["keys"]) <= limit
        listed += page["keys"]
        if page["cursor"] is None:
            break
        target = f"{first}&cursor={page['cursor']}"
    assert sorted(listed) == sorted(wanted), "each exactly once, since none changed meanwhile"


def test_a_key_is_explained_by_what_stands_and_what_stood(lone_node):
    exchange(lone_node, "POST", "/batch", b'[{"op": "put", "key": "why/1", "value": "", "ttl": 60}]')
    there = exchange(lone_node, "GET", "/cluster/explain/why/1")
    assert (there["key"], there["owners"]) == ("why%2F1", ["n1"])
    (replica,) = there["replicas"]
    assert (replica["node"], replica["state"], replica["owner"], replica["level"]) == ("n1", "value", True, True)
    assert replica["expires_unix_ms"] > 0
    exchange(lone_node, "POST", "/batch", b'[{"op": "delete", "key": "why/1"}]')
    (replica,) = exchange(lone_node, "GET", "/cluster/explain/why/1")["replicas"]
    assert (replica["state"], replica["expires_unix_ms"]) == ("tombstone", None)
    (replica,) = exchange(lone_node, "GET", "/cluster/explain/never")["replicas"]
    assert (replica["state"], replica["version"]) == ("absent", None)
