"""Batches: what is asked, in which order it is done, and what is answered."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.api import batch
from zephyr.api.batch import Batch
from zephyr.api.contract import Contract, RefusedError, Target, entity_tag, key_text
from zephyr.config import Settings
from zephyr.model import Failure, Outcome, ReadRequest, WriteRequest
from zephyr.store.record import HybridLogicalClock, pack_record, record_value

CONTRACT = Contract(Settings(id="n1", replicas=3, value_max=1000))
TIMEOUT_S = 2.0


def text_of(value: bytes) -> str:
    return b64encode(value).decode()


def put(key: str, value: bytes = b"v", **more: Any) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": text_of(value), **more}


def get(key: str) -> dict[str, Any]:
    return {"op": "get", "key": key}


def delete(key: str) -> dict[str, Any]:
    return {"op": "delete", "key": key}


def read(body: Any, query: bytes = b"", contract: Contract = CONTRACT) -> Batch:
    operations = Batch(contract, Target(b"/batch", query), TIMEOUT_S)
    operations.read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return operations


def rows_of(operations: Batch) -> list[dict[str, Any]]:
    response = operations.response()
    assert response.status == 200
    assert dict(response.headers)[b"Content-Type"] == b"application/json"
    rows = json.loads(response.body)
    for row in rows:
        assert row.keys() >= {"key", "status", "value", "etag"}
        assert ("type" in row) == (row["status"] >= 400)
    return rows


class Store:
    """Carries operations out, in the order in which they come."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.clock = HybridLogicalClock("n1")
        self.waves: list[list[bytes]] = []

    def carry_out(self, operations: Batch) -> list[dict[str, Any]]:
        while requests := operations.due(0):
            assert len({request.key for request in requests}) == len(requests) <= batch.AT_ONCE_MAX
            self.waves.append([request.key for request in requests])
            operations.take([self.outcome(request) for request in requests])
        return rows_of(operations)

    def outcome(self, request: ReadRequest | WriteRequest) -> Outcome:
        if isinstance(request, ReadRequest):
            return Outcome(record=self.records.get(request.key))
        version = self.clock.stamp(1000)
        existed = request.key in self.records
        if request.value is None:
            self.records.pop(request.key, None)
        else:
            self.records[request.key] = pack_record(
                version, request.value, content_type=request.content_type or b"application/octet-stream"
            )
        return Outcome(version=version, existed=existed)


# --- what is asked --------------------------------------------------------------------------------------


def test_operations_become_requests():
    body = [
        get("a%2Fb"),
        put("é+", b"\x00\xff", ttl=1.5, content_type="text/plain"),
        put("c", b"", ttl="7d"),
        put("d", ttl=30),
        delete("%00"),
    ]
    assert read(body, b"r=1&w=all&sloppy=true").due(0) == [
        ReadRequest(b"a/b", "1"),
        WriteRequest("é+".encode(), b"\x00\xff", b"text/plain", 1500, "all", is_sloppy=True),
        WriteRequest(b"c", b"", b"", 604_800_000, "all", is_sloppy=True),
        WriteRequest(b"d", b"v", b"", 30_000, "all", is_sloppy=True),
        WriteRequest(b"\x00", None, b"", None, "all", is_sloppy=True),
    ]


@pytest.mark.parametrize(
    ("item", "word"),
    [
        (None, "object"),
        (1, "object"),
        ("get", "object"),
        ([get("a")], "object"),
        ({}, "op"),
        ({"op": None, "key": "a"}, "op"),
        ({"op": ["get"], "key": "a"}, "op"),
        ({"op": "GET", "key": "a"}, "op"),
        ({"op": "incr", "key": "a"}, "op"),
        ({"op": "get"}, "key"),
        (get(""), "key"),
        ({"op": "get", "key": 1}, "key"),
        (get("%"), "key"),
        (get("%zz"), "key"),
        (get("k" * 1025), "key"),
        (get("\ud800"), "key"),
        ({**get("a"), "value": ""}, "value"),
        ({**get("a"), "KEY": "a"}, "KEY"),
        ({**delete("a"), "ttl": 1}, "ttl"),
        ({"op": "put", "key": "a"}, "value"),
        ({"op": "put", "key": "a", "value": None}, "value"),
        ({"op": "put", "key": "a", "value": "A"}, "base64"),
        ({"op": "put", "key": "a", "value": "AA=A"}, "base64"),
        ({"op": "put", "key": "a", "value": "-_-_"}, "base64"),
        ({"op": "put", "key": "a", "value": "é"}, "base64"),
        ({"op": "put", "key": "a", "value": {"a": [1]}}, "value"),
        (put("a", ttl=0), "ttl"),
        (put("a", ttl=-1), "ttl"),
        (put("a", ttl="none"), "ttl"),
        (put("a", ttl=""), "ttl"),
        (put("a", ttl=None), "ttl"),
        (put("a", ttl=True), "ttl"),
        (put("a", ttl=[1]), "ttl"),
        (put("a", ttl=315_360_001), "ttl"),
        (put("a", content_type=1), "content_type"),
        (put("a", content_type="x" * 256), "Content-Type"),
        (put("a", content_type="a\nb"), "Content-Type"),
        (put("a", quorum=1), "quorum"),
    ],
)
def test_a_malformed_operation_has_a_status_of_its_own(item, word):
    store = Store()
    rows = store.carry_out(read([put("x"), item, get("x")]))
    assert [row["status"] for row in rows] == [201, 400, 200]
    assert rows[1]["type"] == "urn:zephyr:problem:bad-operation"
    assert word in rows[1]["detail"]
    assert len(rows[1]["detail"]) < 300
    assert set(store.records) == {b"x"}


def test_a_name_given_twice_is_malformed_whatever_it_says():
    (row,) = rows_of(read(b'[{"op": "get", "key": "a", "key": "a"}]'))
    assert (row["status"], row["key"]) == (400, None)
    assert "'key' is given twice" in row["detail"]


def test_numbers_of_any_length_are_a_ttl_out_of_bounds_at_most():
    operations = read(
        b'[{"op": "put", "key": "a", "value": "", "ttl": 1%b}, {"op": "put", "key": "b", "value": "", "ttl": 1e9999}]'
        % (b"0" * 5000)
    )
    assert [row["status"] for row in rows_of(operations)] == [400, 400]


def test_a_value_that_is_too_large_is_told_so():
    rows = Store().carry_out(read([put("a", b"x" * 1000), put("b", b"x" * 1001)]))
    assert [row["status"] for row in rows] == [201, 413]
    assert rows[1]["type"] == "urn:zephyr:problem:value-too-large"


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{}", b'{"op": "get", "key": "a"}', b"null", b"1", b'"a"', b"[", b"[1,]", b"[}", b"[NaN]",
        b"[Infinity]", b"[-Infinity]", b"[01]", b"['a']", b'["\xff"]', b"\xef\xbb\xbf[]", "[]".encode("utf-16"), b"[]x",
        b'["a\x01"]',
        b"[" * 100_000, b"[" * 1_000_000 + b"]" * 1_000_000, b"[" + b"0," * 3_000_000 + b"0]",
        b'[{"a":"' + b"x" * 300_000 + b'"' + b',"a":1' * 100_000 + b"}]",
    ],
)  # fmt: skip
def test_what_is_no_list_of_operations_is_refused_as_a_whole(body):
    with pytest.raises(RefusedError) as refused:
        read(body)
    assert (refused.value.problem.status, refused.value.problem.name) == (400, "malformed-request")
    assert len(refused.value.detail) < 200


def test_a_long_batch_of_strings_is_read():
    large = Contract(Settings(id="n1"))
    strings = "\\u0041" * 1000 + '\\"' * 1000 + ",:{}[]" * 1000
    body = b"[" + b",".join(b'{"op": "put", "key": "%d", "value": "%b"}' % (n, b"QUFB" * 1500) for n in range(999))
    operations = read(body + b', "' + strings.encode() + b'"]', contract=large)
    assert len(body) > 6_000_000
    assert [len(request.value or b"") for request in operations.due(0)] == [4500] * batch.AT_ONCE_MAX


def test_a_batch_has_its_bounds():
    assert len(Store().carry_out(read([get("a")] * batch.OPERATIONS_MAX))) == 1000
    with pytest.raises(RefusedError) as refused:
        read([get("a")] * (batch.OPERATIONS_MAX + 1))
    assert (refused.value.problem.status, refused.value.problem.name) == (413, "batch-too-large")
    batch.check_length(8 << 20)
    with pytest.raises(RefusedError) as refused:
        batch.check_length((8 << 20) + 1)
    assert refused.value.problem.status == 413
    assert rows_of(read(b" [ ] ")) == []


@pytest.mark.parametrize(
    "query", [b"r=0", b"w=4", b"r=", b"r=1&r=1", b"ttl=1", b"sloppy=1", b"sloppy=", b"timeout=61", b"x=1", b"&"]
)
def test_a_query_that_cannot_be_obeyed_is_refused(query):
    with pytest.raises(RefusedError) as refused:
        Batch(CONTRACT, Target(b"/batch", query), TIMEOUT_S)
    assert refused.value.problem.status == 400


# --- the order ------------------------------------------------------------------------------------------


def test_operations_on_one_key_are_done_in_their_order_and_others_at_once():
    store = Store()
    rows = store.carry_out(
        read(
            [put("a", b"1"), get("a"), put("b"), put("a", b"2"), get("a"), delete("a"), get("a"), get("%61"), get("b")]
        )
    )
    assert [row["status"] for row in rows] == [201, 200, 201, 204, 200, 204, 404, 404, 200]
    assert [row["value"] for row in rows] == [None, "MQ==", None, None, "Mg==", None, None, None, "dg=="]
    assert [row["key"] for row in rows] == ["a", "a", "b", "a", "a", "a", "a", "a", "b"]
    assert store.waves == [[b"a", b"b"], [b"a", b"b"], *[[b"a"]] * 5]


def test_no_more_than_the_bound_is_begun_together():
    store = Store()
    store.carry_out(read([put(str(number)) for number in range(1000)]))
    assert [len(wave) for wave in store.waves] == [128] * 7 + [104]


operations_of_any_kind = st.one_of(
    st.builds(put, st.sampled_from("abcd"), st.binary(max_size=3)),
    st.builds(get, st.sampled_from("abcd")),
    st.builds(delete, st.sampled_from("abcd")),
)


@given(st.lists(operations_of_any_kind, max_size=30))
def test_a_batch_answers_what_its_operations_would_one_by_one(items):
    together, alone = Store(), Store()
    rows = together.carry_out(read(items))
    expected = [alone.carry_out(read([item]))[0] for item in items]
    for row in [*rows, *expected]:
        row["etag"] = row["etag"] is not None  # Versions tell when, and the order among different keys is free.
    assert rows == expected
    values = [{key: record_value(record) for key, record in store.records.items()} for store in (together, alone)]
    assert values[0] == values[1]


# --- time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "elapsed_s", "timeout_s"),
    [(b"", 0, None), (b"", 58.0, None), (b"", 59.0, 1.0), (b"timeout=5", 0, 5.0), (b"timeout=5", 4.5, 0.5)],
)
def test_an_operation_has_the_clusters_deadline_or_what_is_left_of_the_batchs(query, elapsed_s, timeout_s):
    (request,) = read([get("a")], query).due(elapsed_s)
    assert request.timeout_s == timeout_s


def test_what_was_not_begun_in_time_was_not_applied():
    operations = read([put("a"), get("a"), delete("a"), get("b")], b"timeout=1")
    first = operations.due(0)
    assert [request.key for request in first] == [b"a", b"b"]
    operations.take([Outcome(version=bytes(16)), Outcome()])
    assert operations.due(1.0) == []
    rows = rows_of(operations)
    assert [row["status"] for row in rows] == [201, 503, 503, 404]
    assert (rows[1]["type"], rows[1]["retryable"]) == ("urn:zephyr:problem:unavailable", True)


# --- what is answered -----------------------------------------------------------------------------------


def answered(items: Sequence[Any], *outcomes: Outcome) -> list[dict[str, Any]]:
    operations = read(list(items))
    assert len(operations.due(0)) == len(outcomes)
    operations.take(outcomes)
    assert operations.due(0) == []
    return rows_of(operations)


def test_each_row_says_what_the_same_request_would_have_been_answered():
    version = HybridLogicalClock("n1").stamp(1000)
    record = pack_record(version, b"\x00\xff", content_type=b"a/b")
    tag = entity_tag(version).decode()
    rows = answered(
        [get("a b"), get("c"), put("d"), put("e"), delete("f")],
        Outcome(record=record, is_unconfirmed=True), Outcome(), Outcome(version=version),
        Outcome(version=version, existed=True, hinted=("n2", "n3")), Outcome(version=version, existed=True),
    )  # fmt: skip
    assert rows == [
        {"key": "a%20b", "status": 200, "value": "AP8=", "etag": tag, "content_type": "a/b",
         "authority": "unconfirmed"},
        {"key": "c", "status": 404, "value": None, "etag": None, "type": "urn:zephyr:problem:not-found",
         "title": "The key is not here", "detail": "no value is stored under this key", "retryable": False},
        {"key": "d", "status": 201, "value": None, "etag": tag},
        {"key": "e", "status": 204, "value": None, "etag": tag, "hinted": ["n2", "n3"]},
        {"key": "f", "status": 204, "value": None, "etag": None},
    ]  # fmt: skip


@pytest.mark.parametrize("failure", list(Failure))
def test_a_failure_is_a_row_with_its_problem(failure):
    rows = answered([get("a"), put("b"), delete("c")], *[Outcome(failure, "why")] * 3)
    for row in rows:
        assert row["type"] == f"urn:zephyr:problem:{failure.value}"
        assert row["detail"] == "why"
        assert row["status"] >= 400
    assert answered([get("a")], Outcome(failure))[0]["detail"], "it says something, even where the cluster did not"


def test_the_key_of_a_malformed_operation_is_shown_where_it_has_one():
    items = [{"op": "x", "key": "a%"}, {"op": "x", "key": 1}, {"op": "x"}, 1, {"op": "x", "key": "k" * 4000}]
    assert [row["key"] for row in rows_of(read(items))] == ["a%", None, None, None, None]


def test_hits_and_misses_are_those_of_the_gets():
    operations = read([get("a"), put("a"), get("a"), delete("a"), get("a"), get("b")])
    Store().carry_out(operations)
    assert (operations.hits, operations.misses) == (1, 3)


def test_values_that_do_not_fit_into_one_answer_are_to_be_read_by_themselves(monkeypatch):
    monkeypatch.setattr(batch, "VALUES_BYTES_MAX", 2500)
    monkeypatch.setattr(batch, "AT_ONCE_MAX", 4)
    store = Store()
    store.carry_out(read([put(str(number), b"x" * 1000) for number in range(8)]))
    store.waves.clear()
    rows = store.carry_out(read([*[get(str(number)) for number in range(8)], put("8"), delete("0")]))
    assert [row["status"] for row in rows] == [200, 200, 413, 413, 413, 413, 413, 413, 201, 204]
    assert rows[2]["type"] == rows[7]["type"] == "urn:zephyr:problem:answer-too-large"
    assert store.waves == [[b"0", b"1", b"2", b"3"], [b"8", b"0"]], "what cannot be answered is not asked"


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=100))
def test_every_key_and_value_goes_in_and_comes_out(key, value):
    store = Store()
    rows = store.carry_out(read([put(key_text(key), value), get(key_text(key))]))
    assert rows[1]["value"] == text_of(value)
    assert rows[0]["key"] == rows[1]["key"] == key_text(key)
    assert set(store.records) == {key}
