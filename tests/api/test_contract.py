"""What a request means and what an outcome says: tables, and properties for keys, queries and TTLs."""

import json
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.api import batch, contract
from zephyr.api.contract import Contract, RefusedError, Response, Target, parse_key, parse_target
from zephyr.config import Settings
from zephyr.model import Condition, Failure, Outcome, ReadRequest, UpdateRequest, WriteRequest
from zephyr.store.record import HybridLogicalClock, pack_record

CONTRACT = Contract(Settings(id="n1", replicas=3, value_max=1000))
NOW_MS = 1_700_000_000_500
VERSION = (NOW_MS - 10_000).to_bytes(6, "big") + b"\x00\x07" + b"writertg"

keys = st.binary(min_size=1, max_size=1024)


def path_of(key: bytes) -> bytes:
    return b"/kv/" + quote_from_bytes(key, safe="").encode()


def status_of(refused: pytest.ExceptionInfo) -> int:
    return refused.value.problem.status


def header(response: Response, name: bytes) -> bytes | None:
    found = [value for given_name, value in response.headers if given_name == name]
    assert len(found) <= 1, f"{name!r} stands twice"
    return found[0] if found else None


def problem(response: Response) -> dict:
    assert header(response, b"Content-Type") == b"application/problem+json"
    assert header(response, b"Content-Length") == b"%d" % len(response.body)
    assert header(response, b"Cache-Control") == b"no-store"
    document = json.loads(response.body)
    assert document.keys() == {"type", "title", "status", "detail", "retryable"}
    assert document["status"] == response.status
    assert re.fullmatch(r"urn:zephyr:problem:[a-z-]+", document["type"])
    return document


# --- targets and keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path", "query"),
    [
        ("/kv/a", b"/kv/a", b""),
        ("/kv/a?ttl=1", b"/kv/a", b"ttl=1"),
        ("/kv/a?x?y", b"/kv/a", b"x?y"),
        ("/kv/a?", b"/kv/a", b""),
        ("/kv//../.%2E/", b"/kv//../.%2E/", b""),
        ("//kv/a", b"//kv/a", b""),
        ("/kv/http://h/x", b"/kv/http://h/x", b""),
        ("http://host:1/kv/x?r=1", b"/kv/x", b"r=1"),
        ("HTTPS://user@host/kv//", b"/kv//", b""),
        ("http://host", b"/", b""),
        ("http://host?q", b"/", b"q"),
        ("*", b"*", b""),
        ("host:443", b"host:443", b""),
        ("", b"", b""),
        (b"/kv/\xff", b"/kv/\xff", b""),
        ("/kv/\udcff\u00e9", b"/kv/\xff\xc3\xa9", b""),
    ],
)
def test_a_target_is_cut_in_two_and_left_as_it_came(raw, path, query):
    assert parse_target(raw) == Target(path, query)


@pytest.mark.parametrize("raw", ["/kv/a#b", "/kv/a?ttl=1#", "#", "http://h/kv/#"])
def test_a_number_sign_in_a_target_is_refused(raw):
    with pytest.raises(RefusedError) as refused:
        parse_target(raw)
    assert status_of(refused) == 400


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"/kv/a", b"a"),
        (b"/kv//", b"/"),
        (b"/kv/..", b".."),
        (b"/kv/a/../b", b"a/../b"),
        (b"/kv/%2F", b"/"),
        (b"/kv/%2f%00%25", b"/\x00%"),
        (b"/kv/a+b%2B", b"a+b+"),
        (b"/kv/%C3%A9", "é".encode()),
        (b"/kv/\xff", b"\xff"),
        (b"/kv/%2525", b"%25"),
    ],
)
def test_the_raw_path_percent_decoded_once_is_the_key(path, key):
    assert parse_key(path) == key


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/kv/", 404),
        (b"/kv/%", 400),
        (b"/kv/a%4", 400),
        (b"/kv/%zz", 400),
        (b"/kv/%+1", 400),
        (b"/kv/%%41", 400),
        (b"/kv/" + b"k" * 1025, 414),
        (b"/kv/" + b"%6B" * 1025, 414),
    ],
)
def test_a_key_that_is_none_is_refused(path, status):
    with pytest.raises(RefusedError) as refused:
        parse_key(path)
    assert status_of(refused) == status


def test_a_key_of_1024_bytes_is_taken_however_it_is_spelled():
    assert parse_key(b"/kv/" + b"k" * 1024) == parse_key(b"/kv/" + b"%6b" * 1024) == b"k" * 1024


@given(keys)
def test_every_key_survives_its_spellings(key):
    everything_encoded = b"/kv/" + b"".join(b"%%%02x" % byte for byte in key)
    assert parse_key(path_of(key)) == parse_key(everything_encoded) == key
    assert parse_key(b"/kv/" + contract.key_text(key).encode()) == key
    json.dumps(contract.key_text(key))


@given(st.binary(max_size=200))
def test_no_path_makes_anything_but_a_key_or_a_refusal(path):
    try:
        key = parse_key(b"/kv/" + path)
    except RefusedError as refused:
        assert refused.problem.status in {400, 404}  # noqa: PT017  # refusing is one of the right answers
    else:
        assert 1 <= len(key) <= len(path)


# --- parameters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ttl_ms"),
    [
        ("30", 30_000),
        ("1.5", 1500),
        (".5", 500),
        ("500ms", 500),
        ("1.5s", 1500),
        ("5m", 300_000),
        ("2h", 7_200_000),
        ("7d", 604_800_000),
        ("0.0001", 1),
        ("0.1ms", 1),
        ("0.0014", 1),
        ("3650d", contract.TTL_MS_MAX),
        ("315360000", contract.TTL_MS_MAX),
        ("%33%30", 30_000),
    ],
)
def test_a_ttl_is_read_in_whole_milliseconds(text, ttl_ms):
    request = CONTRACT.write_request("PUT", Target(b"/kv/a", b"ttl=" + text.encode()))
    assert request.ttl_ms == ttl_ms


@pytest.mark.parametrize(
    "text",
    [
        "0", "0s", "0.0", "-1", "+1", "1e3", "nan", "inf", "1 s", "s", "ms", "1.", "1,5", "1w", "1S", "0x1", "none",
        "3651d", "315360001", "9" * 400, "%D9%A3", "%B2", "1%00", "true",
    ],
)  # fmt: skip
def test_a_ttl_that_is_none_is_refused(text):
    with pytest.raises(RefusedError) as refused:
        CONTRACT.write_request("PUT", Target(b"/kv/a", b"ttl=" + text.encode()))
    assert status_of(refused) == 400


@given(st.integers(min_value=1, max_value=contract.TTL_MS_MAX))
def test_every_ttl_in_milliseconds_is_read_back(ttl_ms):
    assert contract.parse_ttl_ms(f"{ttl_ms}ms") == ttl_ms
    assert contract.parse_ttl_ms(f"{ttl_ms / 1000:.3f}") == ttl_ms


@given(st.text(max_size=20))
def test_no_text_makes_anything_but_a_ttl_within_bounds_or_a_refusal(text):
    try:
        ttl_ms = contract.parse_ttl_ms(text)
    except RefusedError as refused:
        assert refused.problem.status == 400  # noqa: PT017  # refusing is one of the right answers
    else:
        assert 1 <= ttl_ms <= contract.TTL_MS_MAX


@pytest.mark.parametrize(("text", "timeout_s"), [("2", 2.0), ("60", 60.0), ("1m", 60.0), ("250ms", 0.25)])
def test_a_timeout_is_read_like_a_ttl(text, timeout_s):
    assert CONTRACT.read_request("GET", Target(b"/kv/a", b"timeout=" + text.encode())).timeout_s == timeout_s


@pytest.mark.parametrize("text", ["0", "60.001", "61", "2m", "x", "-1", "9" * 400])
def test_a_timeout_out_of_bounds_is_refused(text):
    with pytest.raises(RefusedError) as refused:
        CONTRACT.read_request("GET", Target(b"/kv/a", b"timeout=" + text.encode()))
    assert status_of(refused) == 400


@pytest.mark.parametrize(
    ("text", "quorum"), [("1", "1"), ("3", "3"), ("quorum", "quorum"), ("all", "all"), ("02", "2")]
)
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("GET", "r"),
        ("HEAD", "r"),
        ("PUT", "w"),
        ("POST", "w"),
        ("DELETE", "w"),
        ("PATCH", "ttl=1&w"),
        ("POST", "incr=1&w"),
    ],
)
def test_a_quorum_is_one_two_all_or_a_number_up_to_the_replicas(method, name, text, quorum):
    target = Target(b"/kv/a", f"{name}={text}".encode())
    understand = CONTRACT.read_request if name == "r" else CONTRACT.write_request
    assert understand(method, target).quorum == quorum


@pytest.mark.parametrize("text", ["0", "4", "99", "-1", "1.0", "Quorum", "ALL", "one", "9" * 5000, "%C2%B2", "+1"])
def test_a_quorum_that_no_cluster_of_this_setting_can_meet_is_refused(text):
    with pytest.raises(RefusedError) as refused:
        CONTRACT.read_request("GET", Target(b"/kv/a", b"r=" + text.encode()))
    assert status_of(refused) == 400
    assert len(refused.value.detail) < 200, "a client's text is quoted shortened"


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("PUT", b"ttl=1&ttl=1"),
        ("PUT", b"ttl=1&%74tl=2"),
        ("PUT", b"ttl="),
        ("PUT", b"ttl"),
        ("PUT", b"ttl=1&"),
        ("PUT", b"&ttl=1"),
        ("PUT", b"&"),
        ("PUT", b"=1"),
        ("PUT", b"TTL=1"),
        ("PUT", b"incr=1"),
        ("PUT", b"ttl=none"),
        ("POST", b"incr="),
        ("POST", b"incr=1&incr=1"),
        ("POST", b"incr=1&sloppy=true"),
        ("POST", b"ttl=none&incr=1"),
        ("DELETE", b"incr=1"),
        ("PATCH", b""),
        ("PATCH", b"ttl="),
        ("PATCH", b"ttl=0"),
        ("PATCH", b"ttl=None"),
        ("PATCH", b"ttl=60&ttl=none"),
        ("PATCH", b"ttl=60&sloppy=true"),
        ("PATCH", b"ttl=60&r=1"),
        ("PATCH", b"ttl=60&incr=1"),
        ("PUT", b"sloppy=1"),
        ("PUT", b"sloppy=TRUE"),
        ("PUT", b"sloppy"),
        ("PUT", b"nx=1"),
        ("PUT", b"r=1"),
        ("PUT", b"ttl=%"),
        ("PUT", b"%zz=1"),
        ("GET", b"w=1"),
        ("GET", b"ttl=1"),
        ("GET", b"sloppy=true"),
        ("DELETE", b"ttl=1"),
        ("DELETE", b"r=1"),
        ("PUT", b"ttl=1;w=1"),
    ],
)
def test_a_parameter_that_is_unknown_empty_or_twice_is_refused(method, query):
    understand = CONTRACT.read_request if method == "GET" else CONTRACT.write_request
    with pytest.raises(RefusedError) as refused:
        understand(method, Target(b"/kv/a", query))
    assert status_of(refused) == 400


def test_all_parameters_together_make_one_request():
    target = Target(b"/kv/a%20b", b"w=all&timeout=1.5s&ttl=7d")
    expected = WriteRequest(b"a b", None, content_type=b"text/plain", ttl_ms=604_800_000, quorum="all", timeout_s=1.5)
    assert CONTRACT.write_request("PUT", target, b"text/plain") == expected
    assert CONTRACT.read_request("GET", Target(b"/kv/a", b"")) == ReadRequest(b"a")


@pytest.mark.parametrize("text", ["true", "false"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_a_write_is_sloppy_when_it_says_so(method, text):
    request = CONTRACT.write_request(method, Target(b"/kv/a", b"sloppy=" + text.encode()))
    assert isinstance(request, WriteRequest)
    assert request.is_sloppy == (text == "true")


MET = Condition(True, ())


@pytest.mark.parametrize(
    ("method", "query", "conditions", "expected"),
    [
        ("PUT", b"", (MET,), UpdateRequest(b"a", "put", (MET,), content_type=b"t")),
        ("POST", b"ttl=1&w=all&timeout=2", (MET,),
         UpdateRequest(b"a", "put", (MET,), content_type=b"t", ttl_ms=1000, quorum="all", timeout_s=2.0)),
        ("DELETE", b"w=1", (MET,), UpdateRequest(b"a", "delete", (MET,), quorum="1")),
        ("POST", b"incr=5", (), UpdateRequest(b"a", "increment", content_type=b"text/plain", step=5)),
        ("POST", b"incr=-5&ttl=1.5&w=2", (MET,),
         UpdateRequest(b"a", "increment", (MET,), content_type=b"text/plain", ttl_ms=1500, step=-5, quorum="2")),
        ("PATCH", b"ttl=60", (), UpdateRequest(b"a", "expire", ttl_ms=60_000)),
        ("PATCH", b"ttl=none&timeout=1", (MET,), UpdateRequest(b"a", "expire", (MET,), timeout_s=1.0)),
    ],
)  # fmt: skip
def test_a_change_that_depends_on_what_stands_is_an_update(method, query, conditions, expected):
    assert CONTRACT.write_request(method, Target(b"/kv/a", query), b"t", conditions) == expected


def test_a_change_that_depends_on_what_stands_is_never_sloppy():
    with pytest.raises(RefusedError) as refused:
        CONTRACT.write_request("PUT", Target(b"/kv/a", b"sloppy=true"), b"", (MET,))
    assert status_of(refused) == 400


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("0", 0), ("-0", 0), ("+7", 7), ("007", 7), ("-1", -1), ("9223372036854775807", (1 << 63) - 1),
        ("-9223372036854775808", -(1 << 63)),
    ],
)  # fmt: skip
def test_a_step_is_an_integer_of_64_bits(text, step):
    request = CONTRACT.write_request("POST", Target(b"/kv/a", b"incr=" + text.encode()))
    assert isinstance(request, UpdateRequest)
    assert request.step == step


@pytest.mark.parametrize(
    "text",
    [
        "9223372036854775808", "-9223372036854775809", "1.0", "1e3", "0x1", "one", "--1", "+-1", "+", "-", "1 ", " 1",
        "1_0", "%D9%A3", "%B2", "9" * 5000,
    ],
)  # fmt: skip
def test_a_step_that_is_none_is_refused(text):
    with pytest.raises(RefusedError) as refused:
        CONTRACT.write_request("POST", Target(b"/kv/a", b"incr=" + text.encode()))
    assert status_of(refused) == 400
    assert len(refused.value.detail) < 200


def test_a_deletion_takes_no_content_type():
    assert CONTRACT.write_request("DELETE", Target(b"/kv/a", b""), b"x" * 300) == WriteRequest(b"a", None)


def test_pages_take_the_first_parameter_of_a_name_and_ignore_the_others():
    assert contract.lenient_parameter(b"a=1&key=%2F+&key=2", "key") == b"/+"
    assert contract.lenient_parameter(b"key", "key") == b""
    assert contract.lenient_parameter(b"", "key") is None
    with pytest.raises(RefusedError):
        contract.lenient_parameter(b"key=%", "key")


def test_a_moment_is_a_number_of_milliseconds():
    assert contract.parse_unix_ms(b"1700000000000") == 1_700_000_000_000
    for text in (b"", b"-1", b"1.5", b"now", b"9" * 16):
        with pytest.raises(RefusedError):
            contract.parse_unix_ms(text)


# --- headers of a request -------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"text/plain; charset=utf-8", b"x" * 255, b"caf\xe9", "é".encode()])
def test_a_content_type_is_kept_as_it_came(raw):
    assert contract.parse_content_type(raw) == raw


@pytest.mark.parametrize("raw", [b"x" * 256, b"a\x00b", b"a\r\nX: y", b"a\tb", b"\x7f"])
def test_a_content_type_that_could_not_be_sent_again_is_refused(raw):
    with pytest.raises(RefusedError) as refused:
        contract.parse_content_type(raw)
    assert status_of(refused) == 400


@pytest.mark.parametrize(
    ("method", "name", "status"),
    [
        *[(method, "If-Unmodified-Since", 501) for method in contract.KV_METHODS],
        ("PUT", "Content-Range", 400),
        ("POST", "Content-Range", 400),
        ("PUT", "Transfer-Encoding", 501),
        ("POST", "Transfer-Encoding", 501),
    ],
)
def test_a_header_that_is_not_obeyed_is_never_ignored(method, name, status):
    with pytest.raises(RefusedError) as refused:
        CONTRACT.check_headers(method, {name: '"x"'})
    assert status_of(refused) == status


@pytest.mark.parametrize("method", contract.KV_METHODS)
def test_conditions_are_noticed_and_other_headers_are_no_obstacle(method):
    others = {"Host": "h", "If-Modified-Since": "x", "If-Range": "x", "Range": "bytes=0-1", "Content-Encoding": "gzip"}
    assert not CONTRACT.check_headers(method, others)
    assert not CONTRACT.check_headers(method, {"Transfer-Encoding": "Chunked"})
    assert CONTRACT.check_headers(method, {"If-None-Match": "*"})
    assert CONTRACT.check_headers(method, {"If-Match": "*"})
    assert CONTRACT.check_headers(method, {"If-Match": "*", "If-Unmodified-Since": "x"})


def test_conditions_are_read_in_the_order_in_which_they_count():
    both = contract.parse_conditions(TAG, b"*")
    assert both == (Condition(True, (VERSION,)), Condition(False, ()))
    assert contract.parse_conditions(None, None) == ()
    assert contract.parse_conditions(None, b'"other"') == ()
    for lists in ((b"x", None), (None, b"x"), (TAG, b"")):
        with pytest.raises(RefusedError) as refused:
            contract.parse_conditions(*lists)
        assert (status_of(refused), refused.value.problem.name) == (400, "bad-header")


def test_a_value_may_be_as_large_as_the_setting_says_and_no_larger():
    CONTRACT.check_length(1000)
    with pytest.raises(RefusedError) as refused:
        CONTRACT.check_length(1001)
    assert status_of(refused) == 413


# --- answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_found", [True, False])
def test_a_read_by_a_replica_that_is_not_sure_to_be_one_says_so(is_found):
    record = pack_record(HybridLogicalClock("n1").stamp(1000), b"value") if is_found else None
    response = CONTRACT.outcome_of_read(Outcome(record=record, is_unconfirmed=True), 2000)
    assert response.status == (200 if is_found else 404)
    assert header(response, b"X-Zephyr-Authority") == b"unconfirmed"
    sure = CONTRACT.outcome_of_read(Outcome(record=record), 2000)
    assert b"X-Zephyr-Authority" not in dict(sure.headers)


def test_a_found_value_is_answered_with_all_that_a_cache_wants_to_know():
    record = pack_record(VERSION, b"value", content_type=b"text/plain")
    response = CONTRACT.outcome_of_read(Outcome(record=record, answered=2, asked=3), NOW_MS)
    assert response == Response(
        200,
        (
            (b"Content-Type", b"text/plain"),
            (b"Content-Length", b"5"),
            (b"Content-Security-Policy", b"sandbox"),
            (b"ETag", b'"' + VERSION.hex().encode() + b'"'),
            (b"Last-Modified", b"Tue, 14 Nov 2023 22:13:10 GMT"),
            (b"Cache-Control", b"no-cache"),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"X-Zephyr-Coordinator", b"n1"),
            (b"X-Zephyr-Replicas", b"2/3"),
        ),
        b"value",
    )


@given(st.binary(max_size=2000), st.binary(max_size=255).filter(lambda raw: not re.search(rb"[\x00-\x1f\x7f]", raw)))
def test_every_value_and_content_type_come_out_as_they_went_in(value, content_type):
    record = pack_record(VERSION, value, content_type=contract.parse_content_type(content_type))
    response = CONTRACT.outcome_of_read(Outcome(record=record), NOW_MS)
    assert response.body == value
    assert header(response, b"Content-Type") == (content_type or b"application/octet-stream")


@pytest.mark.parametrize(
    ("left_ms", "expected"),
    [(1, b"max-age=0"), (999, b"max-age=0"), (1000, b"max-age=1"), (59_999, b"max-age=59"), (-5, b"max-age=0")],
)
def test_max_age_is_the_time_left_rounded_down(left_ms, expected):
    record = pack_record(VERSION, b"", expires_unix_ms=NOW_MS + left_ms)
    response = CONTRACT.outcome_of_read(Outcome(record=record), NOW_MS)
    assert header(response, b"Cache-Control") == expected
    assert header(response, b"Age") is None


def test_nothing_was_modified_later_than_now():
    ahead = (NOW_MS + 400).to_bytes(6, "big") + bytes(10)
    response = CONTRACT.outcome_of_read(Outcome(record=pack_record(ahead, b"")), NOW_MS + 200)
    assert header(response, b"Last-Modified") == contract.http_date(NOW_MS // 1000)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31)))  # noqa: DTZ001  # UTC below
def test_dates_are_those_of_the_standard_library(moment):
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    assert contract.http_date(round(moment.timestamp())).decode() == format_datetime(moment, usegmt=True)


TAG = contract.entity_tag(VERSION)


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "status"),
    [
        (None, TAG, 304),
        (None, b"W/" + TAG, 304),
        (None, b"*", 304),
        (None, b' "other", ' + TAG + b' , "x"', 304),
        (None, b'"a,b",' + TAG, 304),
        (None, b'"other"', 200),
        (None, b'"*"', 200),
        (TAG, None, 200),
        (b"*", None, 200),
        (b'"other", ' + TAG, None, 200),
        (b'"other"', None, 412),
        (b"W/" + TAG, None, 412),
        (b'"other"', TAG, 412),
        (TAG, TAG, 304),
        (b"*", b'"other"', 200),
    ],
)
def test_conditions_of_a_read_decide_between_200_304_and_412(if_match, if_none_match, status):
    outcome = Outcome(record=pack_record(VERSION, b"value", expires_unix_ms=NOW_MS + 5000))
    response = CONTRACT.outcome_of_read(outcome, NOW_MS, contract.parse_conditions(if_match, if_none_match))
    assert response.status == status
    if status == 412:
        assert problem(response)["type"] == "urn:zephyr:problem:precondition-failed"
        return
    assert header(response, b"ETag") == TAG
    assert header(response, b"Cache-Control") == b"max-age=5"
    if status == 304:
        assert response.body == b""
        assert header(response, b"Content-Length") is None


def test_a_missing_key_is_a_problem_whatever_the_condition():
    for lists in ((None, None), (None, b"*"), (None, TAG), (b"*", None), (TAG, TAG)):
        response = CONTRACT.outcome_of_read(Outcome(answered=2, asked=2), NOW_MS, contract.parse_conditions(*lists))
        assert problem(response)["type"] == "urn:zephyr:problem:not-found"
        assert response.status == 404
        assert header(response, b"X-Zephyr-Replicas") == b"2/2"


@pytest.mark.parametrize(
    ("method", "existed", "status", "tagged"),
    [
        ("PUT", False, 201, True),
        ("PUT", True, 204, True),
        ("POST", False, 201, True),
        ("POST", True, 204, True),
        ("DELETE", False, 204, False),
        ("DELETE", True, 204, False),
    ],
)
def test_a_write_is_answered_by_what_stood_there(method, existed, status, tagged):
    response = CONTRACT.outcome_of_write(method, Outcome(version=VERSION, existed=existed, answered=2, asked=3))
    assert response.status == status
    assert response.body == b""
    assert header(response, b"ETag") == (TAG if tagged else None)
    assert header(response, b"Content-Length") == (b"0" if status == 201 else None)
    assert header(response, b"X-Zephyr-Coordinator") == b"n1"
    assert header(response, b"X-Zephyr-Replicas") == b"2/3"


@pytest.mark.parametrize(
    ("failure", "status", "retry_after", "retryable"),
    [
        (Failure.UNAVAILABLE, 503, b"1", True),
        (Failure.UNKNOWN, 504, None, True),
        (Failure.TOO_LARGE, 507, None, False),
        (Failure.OVERLOADED, 429, b"1", True),
        (Failure.CLOCK_SKEW, 503, b"1", True),
        (Failure.PRECONDITION, 412, None, False),
        (Failure.CONFLICT, 409, None, True),
        (Failure.NOT_A_NUMBER, 409, None, False),
        (Failure.ABSENT, 404, None, False),
    ],
)
def test_a_failure_is_a_problem_with_its_own_type(failure, status, retry_after, retryable):
    outcome = Outcome(failure, "one of two answered", answered=1, asked=2)
    for response in (
        CONTRACT.outcome_of_read(outcome, NOW_MS, (Condition(False, ()),)),
        CONTRACT.outcome_of_write("PUT", outcome),
        CONTRACT.outcome_of_update("POST", UpdateRequest(b"a", "increment"), outcome),
        CONTRACT.outcome_of_update("PATCH", UpdateRequest(b"a", "expire"), outcome),
    ):
        document = problem(response)
        assert response.status == status
        assert document["type"] == f"urn:zephyr:problem:{failure.value}"
        assert document["detail"] == "one of two answered"
        assert document["retryable"] is retryable
        assert header(response, b"Retry-After") == retry_after
        assert header(response, b"X-Zephyr-Replicas") == b"1/2"


def test_an_increment_is_answered_with_the_new_number():
    outcome = Outcome(record=pack_record(VERSION, b"-42"), version=VERSION, answered=2, asked=3, hinted=("n2",))
    response = CONTRACT.outcome_of_update("POST", UpdateRequest(b"a", "increment"), outcome)
    assert response == Response(
        200,
        (
            (b"Content-Type", b"text/plain"),
            (b"Content-Length", b"3"),
            (b"ETag", TAG),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"X-Zephyr-Coordinator", b"n1"),
            (b"X-Zephyr-Replicas", b"2/3"),
            (b"X-Zephyr-Hinted", b"n2"),
        ),
        b"-42",
    )


def test_a_new_deadline_is_a_new_version_without_a_body():
    response = CONTRACT.outcome_of_update("PATCH", UpdateRequest(b"a", "expire"), Outcome(version=VERSION))
    assert (response.status, response.body, header(response, b"ETag")) == (204, b"", TAG)
    assert header(response, b"Content-Length") is None


@pytest.mark.parametrize(
    ("kind", "method", "existed", "status"),
    [("put", "PUT", False, 201), ("put", "POST", True, 204), ("delete", "DELETE", True, 204)],
)
def test_a_conditional_write_is_answered_like_any_other(kind, method, existed, status):
    outcome = Outcome(version=VERSION, existed=existed)
    response = CONTRACT.outcome_of_update(method, UpdateRequest(b"a", kind), outcome)
    assert response == CONTRACT.outcome_of_write(method, outcome)
    assert response.status == status


@pytest.mark.parametrize("failure", [None, Failure.UNKNOWN])
def test_owners_for_which_another_node_keeps_a_write_are_named(failure):
    response = CONTRACT.outcome_of_write("PUT", Outcome(failure, hinted=("n2", "n4")))
    assert header(response, b"X-Zephyr-Hinted") == b"n2, n4"
    assert header(CONTRACT.outcome_of_write("PUT", Outcome(failure)), b"X-Zephyr-Hinted") is None


def test_every_failure_has_an_answer():
    for failure in Failure:
        response = CONTRACT.outcome_of_write("PUT", Outcome(failure))
        assert response.status >= 400
        assert problem(response)["detail"], "it says something, even where the cluster did not"


def test_a_refused_method_names_those_that_would_do():
    response = CONTRACT.refusal(contract.method_not_allowed(contract.KV_METHODS))
    assert problem(response)["retryable"] is False
    assert response.status == 405
    assert header(response, b"Allow") == b"GET, HEAD, PUT, POST, DELETE, PATCH"


def test_the_names_of_problems_are_unique():
    modules = (contract, batch)
    problems = {value for module in modules for value in vars(module).values() if isinstance(value, contract.Problem)}
    problems |= set(contract.FAILURES.values())
    assert len({item.name for item in problems}) == len(problems) > 15
