"""The client commands, against a stand-in for a node: what they send, print and exit with."""

from __future__ import annotations

import base64
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque

import pytest

from zephyr import __version__
from zephyr.cli import main

VIEWS = {
    "node": "n1",
    "disagreements": 0,
    "members": [
        {"id": "n1", "state": "serving", "http": "h:1", "in_ring": True, "routable": True, "verdict": "agree",
         "reason": "registered\tand serving"},
        {"id": "n2", "state": "serving", "http": "h:2", "in_ring": True, "routable": False, "verdict": None,
         "reason": "its lease\nruns out"},
    ],
}  # fmt: skip
WITNESSED = {
    "node": "n1",
    "authority": "both",
    "authority_since_s": 12.5,
    "etcd": {"state": "connected", "reason": ""},
    "ring": {"digest": "00ff", "owners": ["n1", "n2"]},
    "disagreements": 0,
    "members": [
        {"id": "n1", "gossip": {"state": "alive"}, "etcd": {"state": "registered"}, "in_ring": True, "routable": True,
         "verdict": "agree", "reason": "registered and serving"},
        {"id": "n2", "gossip": {"state": "dead"}, "etcd": {"state": "registered"}, "in_ring": True, "routable": False,
         "verdict": "gossip-first", "reason": "gossip says dead"},
    ],
}  # fmt: skip
EVENT = {"at_unix_ms": 1_700_000_000_123, "kind": "member-dead", "member": "n2", "source": "gossip",
         "detail": "declared by n1", "sequence": 7}  # fmt: skip
EVENT_LINE = "2023-11-14T22:13:20.123Z\tmember-dead\tn2\tgossip\tdeclared by n1"
VIEW = {"authority": "both", "digest": "00ff", "disagreements": 1}
CERTIFICATE = {
    "member": "n3", "epoch": 9, "incarnation": 1, "accuser": "n1", "accuser_url": "http://h:1/debug/certificate/n3",
    "cause": "exit", "suspected_at_unix_ms": 1_700_000_000_000, "declared_at_unix_ms": 1_700_000_000_250,
    "accusers": ["n2", "n1"],
    "probes": [{"at_unix_ms": 1_700_000_000_000, "direct_timeout_s": 0.5, "helpers": ["n2", "n4"], "nacks": ["n4"],
                "tcp_tried": True}],
    "exit": {"refused": True, "udp_silent": True, "observers": ["n2", "n1"], "timeout_s": 0.25},
    "suspicion": {"min_s": 4.0, "max_s": 24.0, "confirmations_expected": 2,
                  "timeouts": [{"at_unix_ms": 0, "accuser": "n2", "timeout_s": 24.0},
                               {"at_unix_ms": 0, "accuser": "n1", "timeout_s": 11.4}],
                  "timeout_s": 0.25, "own_pause_s": 0.0},
    "phi": 1.5, "rtt_ms": 0.3, "local_health": 0, "event_loop_lag_s": 0.0, "members_live": 5,
}  # fmt: skip
CURVE_AND_EXIT = [
    "time to refute: 24 s (n2) -> 11.4 s (n1); at least 4 s, at most 24 s, 2 confirmations expected; over after 0.25 s",
    "exit seen by n2, n1; from n1: refused a connection and silent by UDP; time to refute cut to 0.25 s",
]
RING = {"owners": [{"id": "n1", "share": 0.25, "replica_share": 0.75, "tokens": 1024}], "pending": []}


class StandIn:
    """Answers as it was told to, in order, and remembers what it was asked."""

    def __init__(self):
        self.answers = deque()
        self.requests = []
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stand_in.requests.append((self.command, self.path, body, dict(self.headers)))
                status, headers, body = stand_in.answers.popleft()
                if status is None:  # Gone without an answer.
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815  # the names that http.server calls

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.address}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def will_answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.answers.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, body))

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def node(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setenv("ZEPHYR_URL", stand_in.url)
    yield stand_in
    stand_in.close()
    assert not stand_in.answers, "not every answer was asked for"


@pytest.fixture
def nobody():
    """Return a URL at which nothing listens: its port is bound, and stays ours."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def run(capfdbinary, *arguments):
    """Return exit code, stdout and stderr of a command."""
    code = main(arguments)
    captured = capfdbinary.readouterr()
    return code, captured.out, captured.err.decode()


def refused(result, code):
    """Check that a command failed in one line with this code; return the line."""
    assert result[0] == code
    line = result[2]
    assert line.startswith("zephyr: ")
    assert line.count("\n") == 1
    return line


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"text", bytes(range(256)), b"\r\n\x00" * 1000])
def test_get_writes_the_value_byte_for_byte(value, node, capfdbinary):
    node.will_answer(200, value)
    assert run(capfdbinary, "get", "key") == (0, value, "")


def test_binary_values_pass_through_pipes_in_both_directions(node):
    value = bytes(range(256)) * 100
    node.will_answer(201)
    node.will_answer(200, value)
    command = [sys.executable, "-m", "zephyr"]
    stored = subprocess.run([*command, "put", "key"], input=value, capture_output=True, timeout=30, check=False)
    assert (stored.returncode, stored.stdout, stored.stderr) == (0, b"", b"")
    assert node.requests[0][2] == value
    read = subprocess.run([*command, "get", "key"], capture_output=True, timeout=30, check=False)
    assert (read.returncode, read.stdout, read.stderr) == (0, value, b"")


def test_a_reader_that_goes_early_is_no_traceback(node):
    node.will_answer(200, b"x" * (1 << 20))
    command = [sys.executable, "-m", "zephyr", "get", "key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("plain-key_1.~", "/kv/plain-key_1.~"),
        ("a/b?c#d%e f", "/kv/a%2Fb%3Fc%23d%25e%20f"),
        ("ключ", "/kv/%D0%BA%D0%BB%D1%8E%D1%87"),
        ("..", "/kv/.."),
        ("a\nb", "/kv/a%0Ab"),
        ("no utf-8: \udcff", "/kv/no%20utf-8%3A%20%FF"),
    ],
)
def test_a_key_is_the_bytes_of_its_text(key, path, node, capfdbinary):
    node.will_answer(204)
    assert run(capfdbinary, "del", key) == (0, b"", "")
    assert node.requests[0][:2] == ("DELETE", path)


def test_get_as_json_has_the_value_in_base64_and_what_is_known_of_it(node, capfdbinary):
    node.will_answer(200, b"\xff", ETag='"1"', Content_Type="text/plain", Cache_Control="max-age=59")
    node.will_answer(200, b"", Cache_Control="no-cache")
    code, out, _ = run(capfdbinary, "get", "a b", "-o", "json")
    assert code == 0
    assert json.loads(out) == {
        "key": "a%20b",
        "value": base64.b64encode(b"\xff").decode(),
        "etag": '"1"',
        "content_type": "text/plain",
        "expires_s": 59,
    }
    assert json.loads(run(capfdbinary, "get", "a b", "-o", "json")[1])["expires_s"] is None


def test_put_sends_value_type_ttl_and_quorum(node, capfdbinary):
    node.will_answer(201, ETag='"1"')
    node.will_answer(204, ETag='"2"')
    code, out, _ = run(
        capfdbinary, "put", "key", "välue", "--ttl", "5m", "--w", "all", "--content-type", "text/plain", "-o", "json"
    )
    assert (code, json.loads(out)) == (0, {"key": "key", "result": "created", "etag": '"1"'})
    method, path, body, headers = node.requests[0]
    assert (method, path, body) == ("PUT", "/kv/key?ttl=5m&w=all", "välue".encode())
    assert headers["Content-Type"] == "text/plain"
    code, out, _ = run(capfdbinary, "put", "key", "", "-o", "json")
    assert json.loads(out)["result"] == "replaced"
    assert node.requests[1][1:3] == ("/kv/key", b"")


@pytest.mark.parametrize("arguments", [["put", "key"], ["put", "key", "-"]])
def test_put_reads_stdin_when_there_is_no_value(arguments, node):
    node.will_answer(201)
    command = [sys.executable, "-m", "zephyr", *arguments]
    subprocess.run(command, input=b"\x00\xff", capture_output=True, timeout=30, check=True)
    assert node.requests[0][2] == b"\x00\xff"


TAG = '"00112233445566778899aabbccddeeff"'


@pytest.mark.parametrize(
    ("arguments", "target", "headers"),
    [
        (["get", "k", "--r", "all"], "GET /kv/k?r=all", {}),
        (["put", "k", "v", "--sloppy"], "PUT /kv/k?sloppy=true", {}),
        (["put", "k", "v", "--if-none-match", "*"], "PUT /kv/k", {"If-None-Match": "*"}),
        (["put", "k", "v", "--if-match", TAG.strip('"')], "PUT /kv/k", {"If-Match": TAG}),
        (["put", "k", "v", "--if-match", f'{TAG}, "x"'], "PUT /kv/k", {"If-Match": f'{TAG}, "x"'}),
        (["del", "k", "--w", "1", "--sloppy", "--if-match", "*"], "DELETE /kv/k?w=1&sloppy=true", {"If-Match": "*"}),
        (["ttl", "k", "5m", "--w", "all", "--if-match", TAG], "PATCH /kv/k?ttl=5m&w=all", {"If-Match": TAG}),
        (["ttl", "k", "none"], "PATCH /kv/k?ttl=none", {}),
    ],
)
def test_options_are_what_the_api_calls_them(arguments, target, headers, node, capfdbinary):
    node.will_answer(204)
    assert run(capfdbinary, *arguments) == (0, b"", "")
    assert " ".join(node.requests[0][:2]) == target
    sent = {name: value for name, value in node.requests[0][3].items() if name.startswith("If-")}
    assert sent == headers


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["incr", "k"], "/kv/k?incr=1"),
        (["incr", "k", "-5"], "/kv/k?incr=-5"),
        (["incr", "k", "+7", "--ttl", "1h", "--w", "2"], "/kv/k?incr=%2B7&ttl=1h&w=2"),
    ],
)
def test_incr_prints_the_new_number(arguments, path, node, capfdbinary):
    node.will_answer(200, b"-42", ETag=TAG)
    node.will_answer(200, b"-42", ETag=TAG)
    assert run(capfdbinary, *arguments) == (0, b"-42\n", "")
    assert json.loads(run(capfdbinary, *arguments, "-o", "json")[1]) == {"key": "k", "value": -42, "etag": TAG}
    assert [request[:3] for request in node.requests] == [("POST", path, b"")] * 2


def test_what_is_no_number_is_no_answer_to_incr(node, capfdbinary):
    node.will_answer(200, b"<html>")
    assert "no node" in refused(run(capfdbinary, "incr", "k"), 1)
    node.will_answer(409, {"detail": "the value is no number"})
    assert "no number" in refused(run(capfdbinary, "incr", "k"), 1)
    node.will_answer(None)
    assert "unknown whether" in refused(run(capfdbinary, "incr", "k"), 4)


@pytest.mark.parametrize(("cache_control", "left"), [("max-age=59", 59), ("no-cache", None)])
def test_ttl_without_a_duration_tells_what_is_left(cache_control, left, node, capfdbinary):
    for _ in range(2):
        node.will_answer(200, Cache_Control=cache_control)
    assert run(capfdbinary, "ttl", "a b") == (0, b"none\n" if left is None else b"%d\n" % left, "")
    assert json.loads(run(capfdbinary, "ttl", "a b", "-o", "json")[1]) == {"key": "a%20b", "expires_s": left}
    assert node.requests[0][:2] == ("HEAD", "/kv/a%20b")


def test_ttl_of_a_key_that_is_absent_is_exit_code_3(node, capfdbinary):
    node.will_answer(404, {"detail": "in a body that HEAD has not"})
    assert "no value" in refused(run(capfdbinary, "ttl", "k"), 3)
    node.will_answer(404, {"detail": "no value is there"})
    assert "no value is there" in refused(run(capfdbinary, "ttl", "k", "5m"), 3)
    node.will_answer(204, ETag=TAG)
    assert json.loads(run(capfdbinary, "ttl", "k", "5m", "-o", "json")[1]) == {
        "key": "k", "result": "expires", "etag": TAG,
    }  # fmt: skip


def test_scan_goes_on_to_the_end_at_whichever_node_answers(node, nobody, capfdbinary):
    pages = [{"keys": ["a", "b%2F"], "cursor": "AQ_-"}, {"keys": [], "cursor": "Ag"}, {"keys": ["c"], "cursor": None}]
    for page in pages:
        node.will_answer(200, page)
    code, out, err = run(capfdbinary, "scan", "--prefix", "a/é", "--url", f"{nobody},{node.url}")
    assert (code, out, err) == (0, b"a\nb%2F\nc\n", "")
    assert [request[1] for request in node.requests] == [
        "/scan?prefix=a%2F%C3%A9&limit=1000",
        "/scan?prefix=a%2F%C3%A9&limit=1000&cursor=AQ_-",
        "/scan?prefix=a%2F%C3%A9&limit=1000&cursor=Ag",
    ]
    for page in pages:
        node.will_answer(200, page)
    out = run(capfdbinary, "scan", "-o", "json")[1]
    assert [json.loads(line) for line in out.splitlines()] == pages


def test_scan_ends_at_its_limit(node, capfdbinary):
    node.will_answer(200, {"keys": ["a", "b"], "cursor": "AQ"})
    node.will_answer(200, {"keys": ["c"], "cursor": "Ag"})
    assert run(capfdbinary, "scan", "--limit", "3")[1] == b"a\nb\nc\n"
    assert [request[1] for request in node.requests] == ["/scan?limit=3", "/scan?limit=1&cursor=AQ"]
    node.will_answer(503, {"detail": "nobody is there"})
    assert "nobody" in refused(run(capfdbinary, "scan"), 4)


EXPLAINED = {
    "key": "a%2Fb", "slot": 7, "owners": ["n2", "n1"],
    "replicas": [
        {"node": "n2", "owner": True, "level": True, "state": "value", "version": "00ff",
         "expires_unix_ms": 1_700_000_000_123, "hinted": []},
        {"node": "n3", "owner": False, "level": False, "state": "absent", "version": None, "expires_unix_ms": None,
         "hinted": ["n1", "n4"]},
    ],
}  # fmt: skip


def test_explain_shows_what_each_node_holds(node, capfdbinary):
    node.will_answer(200, EXPLAINED)
    code, out, err = run(capfdbinary, "explain", "a/b")
    assert (code, err) == (0, "a%2Fb: slot 7, owners n2, n1\n")
    assert out.decode().splitlines() == [
        "node\towner\tlevel\tstate\tversion\texpires\tkeeps it for",
        "n2\tyes\tyes\tvalue\t00ff\t2023-11-14T22:13:20.123Z\t",
        "n3\tno\tno\tabsent\t\t\tn1, n4",
    ]
    assert node.requests[0][:2] == ("GET", "/cluster/explain/a%2Fb")
    node.will_answer(200, EXPLAINED)
    assert json.loads(run(capfdbinary, "explain", "a/b", "-o", "json")[1]) == EXPLAINED
    node.will_answer(200, {"hello": "world"})
    assert "no node" in refused(run(capfdbinary, "explain", "k"), 1)


# --- exit codes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"), [(400, 1), (404, 3), (412, 1), (413, 1), (429, 1), (500, 1), (503, 4), (504, 4), (507, 1)]
)
def test_each_refusal_has_its_exit_code_and_the_nodes_own_words(status, code, node, capfdbinary):
    node.will_answer(status, {"title": "Refused", "detail": "in the\nnode's words", "status": status})
    result = run(capfdbinary, "get", "key")
    assert refused(result, code) == "zephyr: in the node's words\n"
    assert result[1] == b""


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"\xff"])
def test_a_refusal_without_words_says_its_status(body, node, capfdbinary):
    node.will_answer(502, body)
    assert refused(run(capfdbinary, "get", "key"), 1) == "zephyr: the node answered 502\n"


def test_a_node_that_cannot_be_reached_is_exit_code_2(nobody, capfdbinary):
    assert nobody in refused(run(capfdbinary, "get", "key", "--url", nobody), 2)
    assert refused(run(capfdbinary, "put", "key", "value", "--url", nobody), 2)
    assert refused(run(capfdbinary, "members", "--url", f"{nobody},{nobody}"), 2).count(nobody) == 2


def test_the_next_url_is_asked_when_one_cannot_be_reached(node, nobody, capfdbinary):
    node.will_answer(201)
    node.will_answer(200, b"value")
    urls = f"{nobody}, {node.url}"
    assert run(capfdbinary, "put", "key", "value", "--url", urls) == (0, b"", "")
    assert run(capfdbinary, "get", "key", "--url", urls) == (0, b"value", "")


def test_the_first_url_that_answers_is_the_only_one_asked(node, nobody, capfdbinary):
    node.will_answer(404, {"detail": "no value"})
    assert refused(run(capfdbinary, "get", "key", "--url", f"{node.url},{nobody}"), 3) == "zephyr: no value\n"


def test_a_read_without_an_answer_goes_to_the_next_and_a_write_does_not(node, nobody, capfdbinary):
    node.will_answer(None)
    node.will_answer(200, b"value")
    assert run(capfdbinary, "get", "key", "--url", f"{node.url},{node.url}") == (0, b"value", "")
    node.will_answer(None)
    assert "unknown whether" in refused(run(capfdbinary, "put", "key", "x", "--url", f"{node.url},{node.url}"), 4)
    assert len(node.requests) == 3


def test_a_node_that_says_nothing_is_a_time_out(capfdbinary):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "timed out" in refused(run(capfdbinary, "get", "key", "--url", url, "--timeout", "50ms"), 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["get"],
        ["get", ""],
        ["get", "a", "b"],
        ["get", "a", "--timeout", "soon"],
        ["get", "a", "--timeout", "0"],
        ["get", "a", "--url", "ftp://h"],
        ["get", "a", "--url", "http://h:port"],
        ["get", "a", "--url", ","],
        ["incr"],
        ["incr", "a", "1.5"],
        ["incr", "a", "--bogus"],
        ["incr", "a", "-5x"],
        ["ttl"],
        ["ttl", "a", "--w", "1"],
        ["ttl", "a", "--if-match", "*"],
        ["scan", "--limit", "0"],
        ["scan", "a"],
        ["explain"],
        ["explain", ""],
        ["ring"],
        ["views", "bogus"],
        ["views", "--url", "http://h:1", "release"],
        ["evict"],
        ["evict", ""],
        ["certificate"],
        ["certificate", ""],
        ["events", "--since", "yesterday"],
        ["events", "-f", "--url", ","],
        ["demo", "-n", "0"],
        ["demo", "--run-for", "soon"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_64(arguments, capfdbinary):
    assert refused(run(capfdbinary, *arguments), 64)


# --- views --------------------------------------------------------------------------------------------


def seen_by(*addresses):
    """Return a view of two members with these HTTP addresses."""
    members = [{**row, "http": http} for row, http in zip(VIEWS["members"], addresses, strict=True)]
    return {**VIEWS, "members": members}


@pytest.mark.parametrize(("slots_pending", "level"), [(0, "yes"), (120, "120 slots to fetch"), (None, "")])
def test_members_are_tab_separated_when_piped(slots_pending, level, node, capfdbinary):
    node.will_answer(200, seen_by(node.address, "h:2"))
    node.will_answer(200, {"slots_pending": slots_pending})
    code, out, err = run(capfdbinary, "members")
    assert (code, err) == (0, "")
    assert out.decode().splitlines() == [
        "id\tstate\tlevel\tin ring\troutable\thttp\tverdict\treason",
        f"n1\tserving\t{level}\tyes\tyes\t{node.address}\tagree\tregistered and serving",
        "n2\tserving\t\tyes\tno\th:2\t\tits lease runs out",
    ]
    assert [request[1] for request in node.requests] == ["/debug/views", "/info"], "who cannot be reached is not asked"


def test_a_member_that_does_not_say_how_level_it_is_is_a_member_all_the_same(node, nobody, capfdbinary):
    node.will_answer(200, seen_by(nobody.removeprefix("http://"), "h:2"))
    code, out, _ = run(capfdbinary, "members")
    assert (code, out.splitlines()[1].split(b"\t")[:4]) == (0, [b"n1", b"serving", b"", b"yes"])
    for status, body in ((503, {"detail": "it starts"}), (200, b"<html>"), (None, b"")):
        node.will_answer(200, seen_by(node.address, "h:2"))
        node.will_answer(status, body)
        document = json.loads(run(capfdbinary, "members", "-o", "json")[1])
        assert [row["slots_pending"] for row in document["members"]] == [None, None]


@pytest.mark.parametrize("output", ["table", "json"])
def test_views_that_disagree_are_printed_all_the_same_and_exit_code_5(output, node, capfdbinary):
    node.will_answer(200, {**seen_by(node.address, "h:2"), "disagreements": 1})
    node.will_answer(200, {"slots_pending": 0})
    result = run(capfdbinary, "members", "-o", output)
    refused(result, 5)
    assert b"n2" in result[1]


def test_members_as_json_is_the_nodes_own_document_and_what_each_has_still_to_fetch(node, capfdbinary):
    view = seen_by(node.address, "h:2")
    node.will_answer(200, view)
    node.will_answer(200, {"slots_pending": 3})
    document = json.loads(run(capfdbinary, "members", "-o", "json")[1])
    assert [row.pop("slots_pending") for row in document["members"]] == [3, None]
    assert document == view
    assert node.requests[0][:2] == ("GET", "/debug/views")


def test_what_is_no_node_is_an_error_in_one_line(node, capfdbinary):
    node.will_answer(200, b"<html>")
    node.will_answer(200, {"hello": "world"})
    assert "no node" in refused(run(capfdbinary, "members"), 1)
    assert "no node" in refused(run(capfdbinary, "ring", "show"), 1)


def test_the_ring_shows_its_owners_and_who_owns_a_key(node, capfdbinary):
    node.will_answer(200, RING)
    node.will_answer(200, RING)
    node.will_answer(200, {"key": "a%26b", "slot": 7, "owners": ["n2", "n1"]})
    assert run(capfdbinary, "ring", "show")[1].splitlines()[1] == b"n1\t0.2500\t0.7500\t1024"
    assert json.loads(run(capfdbinary, "ring", "show", "-o", "json")[1]) == RING
    assert run(capfdbinary, "ring", "owner", "a&b")[1].splitlines()[1] == b"a%26b\t7\tn2,n1"
    assert node.requests[2][1] == "/debug/ring?key=a%26b"


def test_a_path_in_front_of_the_api_is_kept(node, capfdbinary):
    node.will_answer(200, b"value")
    assert run(capfdbinary, "get", "key", "--url", node.url + "/cache/")[0] == 0
    assert node.requests[0][1] == "/cache/kv/key"


def test_the_version_is_printed(capfdbinary):
    assert run(capfdbinary, "--version") == (0, f"zephyr {__version__}\n".encode(), "")


def test_reading_a_value_imports_nothing_a_node_needs(node):
    node.will_answer(200, b"value")
    program = (
        "import sys; from zephyr.cli import main; main(['get', 'key'])\n"
        "slow = {'aiohttp', 'asyncio', 'rich', 'grpc', 'uvloop', 'zephyr.node', 'zephyr.runtime'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(slow)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "value", "")


# --- operators ----------------------------------------------------------------------------------------


def test_views_show_both_witnesses_below_a_line_on_who_leads(node, capfdbinary):
    node.will_answer(200, WITNESSED)
    code, out, err = run(capfdbinary, "views")
    assert (code, err) == (0, "n1: authority both for 12.5 s; ring 00ff of 2; etcd connected\n")
    assert out.decode().splitlines() == [
        "id\tgossip\tetcd\tin ring\troutable\tverdict\treason",
        "n1\talive\tregistered\tyes\tyes\tagree\tregistered and serving",
        "n2\tdead\tregistered\tyes\tno\tgossip-first\tgossip says dead",
    ]
    assert node.requests[0][:2] == ("GET", "/debug/views")


def test_views_that_disagree_are_exit_code_5_and_as_json_the_nodes_own_document(node, capfdbinary):
    document = {**WITNESSED, "disagreements": 1, "etcd": {"state": "unreachable", "reason": "refused"}}
    node.will_answer(200, document)
    node.will_answer(200, document)
    result = run(capfdbinary, "views", "-o", "json")
    assert refused(result, 5)
    assert json.loads(result[1]) == document
    code, out, err = run(capfdbinary, "views")
    assert (code, len(out.splitlines())) == (5, 3)
    assert "etcd unreachable (refused)" in err


def test_a_held_ring_is_let_go(node, capfdbinary):
    node.will_answer(202, {"released": True})
    node.will_answer(202, {"released": True})
    node.will_answer(409, {"detail": "the ring is not held: authority is both"})
    assert run(capfdbinary, "views", "release") == (0, b"", "the held ring is let go\n")
    assert json.loads(run(capfdbinary, "views", "release", "-o", "json")[1]) == {"released": True}
    assert "not held" in refused(run(capfdbinary, "views", "release"), 1)
    assert [request[:2] for request in node.requests] == [("POST", "/cluster/release")] * 3


def test_an_eviction_is_proposed(node, capfdbinary):
    node.will_answer(202, {"member": "n2", "proposed": True})
    node.will_answer(202, {"member": "n2", "proposed": True})
    node.will_answer(404, {"detail": "a/b is not registered"})
    node.will_answer(409, {"detail": "etcd cannot be reached from here"})
    assert run(capfdbinary, "evict", "n2") == (0, b"", "the eviction of n2 is proposed\n")
    assert json.loads(run(capfdbinary, "evict", "n2", "-o", "json")[1])["proposed"] is True
    assert refused(run(capfdbinary, "evict", "a/b"), 3) == "zephyr: a/b is not registered\n"
    assert "etcd cannot" in refused(run(capfdbinary, "evict", "n2"), 1)
    assert node.requests[0][:2] == ("POST", "/cluster/evict/n2")
    assert node.requests[2][1] == "/cluster/evict/a%2Fb"


def test_events_are_listed_with_their_times(node, capfdbinary):
    node.will_answer(200, {"events": [EVENT]})
    node.will_answer(200, {"events": [EVENT]})
    code, out, err = run(capfdbinary, "events")
    assert (code, err) == (0, "")
    assert out.decode().splitlines() == ["time\tkind\tmember\tsource\tdetail", EVENT_LINE]
    assert json.loads(run(capfdbinary, "events", "--since", "5m", "-o", "json")[1]) == {"events": [EVENT]}
    assert node.requests[0][1] == "/debug/timeline?since=0"
    since_unix_ms = int(node.requests[1][1].rpartition("=")[2])
    assert 0 < time.time() * 1000 - since_unix_ms - 300_000 < 60_000


def stream_of(*events):
    """Write (kind, data) as a node does; a comment stands between."""
    texts = [f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in events]
    return ": still here\n\n".join(["id: 5\n" + text for text in texts]).encode()


def test_followed_events_are_printed_until_the_node_is_gone(node, capfdbinary):
    stream = stream_of(("overflow", {"lost": 3}), ("member-dead", EVENT), ("view", VIEW))
    node.will_answer(200, stream, Content_Type="text/event-stream")
    node.will_answer(200, stream + b"event: view\ndata: {", Content_Type="text/event-stream")
    code, out, err = run(capfdbinary, "events", "-f")
    assert code == 2
    assert out.decode().splitlines() == [
        "time\tkind\tmember\tsource\tdetail",
        EVENT_LINE,
        "\tview\t\t\tauthority both, ring 00ff, disagreements 1",
    ]
    assert err.splitlines()[0] == "zephyr: 3 earlier events are no longer kept"
    assert err.splitlines()[1].endswith("the node ended its events")
    assert node.requests[0][3]["Last-Event-ID"] == "0"
    code, out, _ = run(capfdbinary, "events", "-f", "--since", "1h", "-o", "json")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (2, [{"kind": "view", **VIEW}]), "one was older"


def test_what_cannot_be_followed_has_its_exit_code(node, nobody, capfdbinary):
    node.will_answer(503, {"detail": "the most is 32"})
    node.will_answer(200, b"<html>", Content_Type="text/html")
    node.will_answer(200, b"event: view\ndata: nonsense\n\n", Content_Type="text/event-stream")
    node.will_answer(None)
    assert refused(run(capfdbinary, "events", "-f"), 4) == "zephyr: the most is 32\n"
    assert "no node" in refused(run(capfdbinary, "events", "-f"), 1)
    assert "no node" in refused(run(capfdbinary, "events", "-f"), 1)
    assert refused(run(capfdbinary, "events", "-f"), 2)
    assert nobody in refused(run(capfdbinary, "events", "-f", "--url", nobody), 2)
    assert len(node.requests) == 4
    node.will_answer(503, {"detail": "the most is 32"})
    assert refused(run(capfdbinary, "events", "-f", "--url", f"{nobody},{node.url}"), 4)


def test_a_node_that_is_silent_for_too_long_is_gone(monkeypatch, capfdbinary):
    monkeypatch.setattr("zephyr.cli.client.SILENCE_MAX_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n")
                connection.recv(1)  # Until the command has given up.

        thread = threading.Thread(target=serve)
        thread.start()
        line = refused(run(capfdbinary, "events", "-f", "--url", url, "--timeout", "1h"), 2)
        thread.join()
    assert "silent for 0.05 s" in line


def test_ctrl_c_ends_following_without_a_complaint():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        # As a terminal starts it: where these tests run in the background, Ctrl-C is ignored by all that they start.
        as_in_a_terminal = (
            "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "runpy.run_module('zephyr', run_name='__main__')"
        )
        command = [sys.executable, "-c", as_in_a_terminal, "events", "-f", "--url", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            server.settimeout(30)
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                connection.sendall(stream_of(("member-dead", EVENT)))
                assert process.stdout.readline().startswith(b"time")
                assert process.stdout.readline().decode() == EVENT_LINE + "\n", "at once, though more is to come"
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=30) == 0
                assert process.stderr.read() == b""


def test_a_certificate_is_told_in_a_few_lines(node, capfdbinary):
    node.will_answer(200, CERTIFICATE)
    node.will_answer(200, CERTIFICATE)
    code, out, err = run(capfdbinary, "certificate", "n3")
    assert (code, err) == (0, "")
    assert out.decode().splitlines() == [
        "n3 was declared dead by n1 at 2023-11-14T22:13:20.250Z: its process ended",
        "life: epoch 9, incarnation 1",
        "suspected 0.250 s before, at 2023-11-14T22:13:20.000Z, by n2, confirmed by n1",
        *CURVE_AND_EXIT,
        "pinged at 2023-11-14T22:13:20.000Z: no answer within 0.5 s; asked n2, n4 (n4 got no answer either); tried TCP",
        "at the verdict: phi 1.5, round trip 0.3 ms, n1's local health 0 and event-loop lag 0 s, 5 members live",
    ]
    assert json.loads(run(capfdbinary, "certificate", "n3", "-o", "json")[1]) == CERTIFICATE


def test_a_certificate_of_silence_without_confirmation_is_told_too(node, capfdbinary):
    suspicion = {**CERTIFICATE["suspicion"], "own_pause_s": 1.5}
    evidence = {"refused": False, "udp_silent": False, "observers": [], "timeout_s": None}
    probe = {**CERTIFICATE["probes"][0], "direct_timeout_s": None, "helpers": [], "nacks": [], "tcp_tried": False}
    certificate = {
        **CERTIFICATE, "cause": "silence", "accusers": ["n1"], "suspicion": suspicion, "exit": evidence,
        "probes": [probe], "rtt_ms": None,
    }  # fmt: skip
    node.will_answer(200, certificate)
    text = run(capfdbinary, "certificate", "n3")[1].decode()
    for part in (
        "it did not answer",
        "confirmed by nobody",
        "did not run for 1.5 s",
        "nobody else to ask",
        "not measured",
    ):
        assert part in text


def test_the_certificate_is_fetched_from_the_accuser(node, nobody, capfdbinary):
    def stub(url):
        return {"member": "n3", "accuser": "n1", "accuser_url": url, "declared_at_unix_ms": 1_700_000_000_250}

    there = f"{node.url}/debug/certificate/n3"
    node.will_answer(200, stub(there))
    node.will_answer(200, CERTIFICATE)
    assert run(capfdbinary, "certificate", "n3")[0] == 0
    assert [request[1] for request in node.requests] == ["/debug/certificate/n3"] * 2
    for url, answers, code in (
        (f"{nobody}/x", (), 2),
        (there, ((404, {"detail": "nothing is known"}),), 3),
        (there, ((200, stub(there)),), 3),
        (None, (), 3),
    ):
        node.will_answer(200, stub(url))
        for answer in answers:
            node.will_answer(*answer)
        result = run(capfdbinary, "certificate", "n3")
        assert "kept by n1" in refused(result, code)
        assert result[1].decode() == "n3 was declared dead by n1; this node heard of it at 2023-11-14T22:13:20.250Z\n"


def test_no_certificate_is_exit_code_3(node, capfdbinary):
    node.will_answer(404, {"detail": "nothing is known here of a death of n9"})
    assert refused(run(capfdbinary, "certificate", "n9"), 3)
    node.will_answer(404, {"detail": "no such id"})
    assert refused(run(capfdbinary, "certificate", "\udcff\n/"), 3)
    assert node.requests[1][1] == "/debug/certificate/%FF%0A%2F"
