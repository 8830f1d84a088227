"""Listings of keys: cursors, the query, and when a page is full enough."""

import json
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.api import scan
from zephyr.api.contract import Contract, RefusedError, Target, key_text
from zephyr.api.scan import Scan, cursor_text, parse_cursor
from zephyr.config import SLOTS, Settings
from zephyr.model import Failure, ScanCursor, ScanPage, ScanRequest
from zephyr.ring.ring import key_slot

CONTRACT = Contract(Settings(id="n1"))
TIMEOUT_S = 2.0


def listing(query: bytes = b"") -> Scan:
    return Scan(CONTRACT, Target(b"/scan", query), TIMEOUT_S)


def after(key: bytes) -> ScanCursor:
    return ScanCursor(key_slot(key), key)


def base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def document(answered: Scan) -> dict:
    response = answered.response()
    assert response.status == 200
    assert dict(response.headers)[b"Content-Type"] == b"application/json"
    assert dict(response.headers)[b"Cache-Control"] == b"no-store"
    return json.loads(response.body)


# --- cursors --------------------------------------------------------------------------------------------


@given(
    st.one_of(
        st.binary(min_size=1, max_size=1024).map(after), st.integers(0, SLOTS - 1).map(lambda n: ScanCursor(n, b""))
    )
)
def test_every_cursor_is_read_back(cursor):
    text = cursor_text(cursor)
    assert parse_cursor(text) == cursor
    assert len(text) <= scan.CURSOR_CHARACTERS_MAX


@given(st.text(max_size=40))
def test_no_text_makes_anything_but_a_cursor_that_is_written_so_or_a_refusal(text):
    try:
        cursor = parse_cursor(text)
    except RefusedError as refused:
        assert refused.problem.status == 400  # noqa: PT017  # refusing is one of the right answers
    else:
        assert cursor_text(cursor) == text


KEY = b"a key"
RAW = b"\x01" + key_slot(KEY).to_bytes(2, "big") + KEY


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "AQ",
        "AQA",
        "AAAA",
        base64url(b"\x00" + RAW[1:]),
        base64url(b"\x02" + RAW[1:]),
        base64url(b"\x01\x40\x00"),
        base64url(b"\x01\xff\xff"),
        base64url(RAW + b"!"),
        base64url(RAW[:-1]),
        base64url(b"\x01\x00\x00" + KEY),
        base64url(RAW) + "=",
        base64url(RAW) + "\n",
        base64url(RAW).replace("A", "!", 1),
        base64url(b"\x01" + key_slot(b"k" * 1025).to_bytes(2, "big") + b"k" * 1025),
        "A" * 100_000,
        "é",
    ],
)
def test_a_cursor_that_no_node_gave_is_refused(text):
    with pytest.raises(RefusedError) as refused:
        parse_cursor(text)
    assert (refused.value.problem.status, refused.value.problem.name) == (400, "bad-parameter")
    assert len(refused.value.detail) < 200


def test_a_cursor_stands_for_one_place_in_every_program():
    assert cursor_text(ScanCursor(258, b"")) == "AQEC"
    assert cursor_text(ScanCursor(key_slot(KEY), KEY)) == base64url(RAW)


# --- the query ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", ScanRequest(b"", 100, ScanCursor(0, b""), 2.0)),
        (b"prefix=&cursor=", ScanRequest(b"", 100, ScanCursor(0, b""), 2.0)),
        (b"prefix=a%2Fb+%ff&limit=1", ScanRequest(b"a/b+\xff", 1, ScanCursor(0, b""), 2.0)),
        (b"limit=1000&timeout=500ms", ScanRequest(b"", 1000, ScanCursor(0, b""), 0.5)),
        (b"cursor=" + cursor_text(after(KEY)).encode(), ScanRequest(b"", 100, after(KEY), 2.0)),
        (b"prefix=" + b"k" * 1024, ScanRequest(b"k" * 1024, 100, ScanCursor(0, b""), 2.0)),
    ],
)
def test_a_query_asks_for_a_page(query, expected):
    assert listing(query).due(0) == expected


@pytest.mark.parametrize(
    "query",
    [
        b"limit=0", b"limit=1001", b"limit=-1", b"limit=1.0", b"limit=", b"limit=all", b"limit=%C2%B2",
        b"limit=" + b"9" * 5000, b"limit=1&limit=1", b"prefix=a&prefix=a",
        b"cursor=x", b"timeout=", b"timeout=0", b"timeout=61", b"prefix=%",
        b"prefix=" + b"k" * 1025, b"match=a", b"r=1", b"&",
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_obeyed_is_refused(query):
    with pytest.raises(RefusedError) as refused:
        listing(query)
    assert refused.value.problem.status == 400


# --- pages ----------------------------------------------------------------------------------------------


def test_the_cluster_is_asked_until_the_page_is_full():
    listed = listing(b"limit=3&prefix=k")
    listed.take(ScanPage(keys=(b"k1",), cursor=after(b"k1")))
    assert listed.due(0.5) == ScanRequest(b"k", 2, after(b"k1"), 1.5)
    listed.take(ScanPage(keys=(), cursor=ScanCursor(9000, b"")))
    assert listed.due(1.5) == ScanRequest(b"k", 2, ScanCursor(9000, b""), 0.5)
    listed.take(ScanPage(keys=(b"k/2", b"k\xff"), cursor=after(b"k\xff")))
    assert listed.due(1.6) is None
    assert document(listed) == {"keys": ["k1", "k%2F2", "k%FF"], "cursor": cursor_text(after(b"k\xff"))}


def test_the_end_is_a_page_without_a_cursor():
    listed = listing()
    listed.take(ScanPage(keys=(KEY,), cursor=None))
    assert listed.due(0) is None
    assert document(listed) == {"keys": [key_text(KEY)], "cursor": None}


def test_a_rare_prefix_is_looked_for_a_bounded_while():
    listed = listing(b"prefix=rare")
    rounds = 0
    while listed.due(0) is not None:
        rounds += 1
        listed.take(ScanPage(cursor=ScanCursor(rounds, b"")))
    assert rounds == scan.ROUNDS_MAX
    assert document(listed) == {"keys": [], "cursor": cursor_text(ScanCursor(rounds, b""))}


def test_time_that_is_over_ends_a_page_and_not_the_listing():
    listed = listing(b"timeout=1")
    listed.take(ScanPage(keys=(KEY,), cursor=after(KEY)))
    assert listed.due(1.0) is None
    assert document(listed) == {"keys": [key_text(KEY)], "cursor": cursor_text(after(KEY))}


def test_a_failure_tells_only_where_nothing_was_listed_before_it():
    failed = ScanPage(Failure.UNAVAILABLE, "nobody is there")
    listed = listing()
    listed.take(failed)
    assert listed.due(0) is None
    response = listed.response()
    assert (response.status, json.loads(response.body)["detail"]) == (503, "nobody is there")
    listed = listing()
    listed.take(ScanPage(keys=(KEY,), cursor=after(KEY)))
    listed.take(failed)
    assert listed.due(0) is None
    assert document(listed) == {"keys": [key_text(KEY)], "cursor": cursor_text(after(KEY))}
