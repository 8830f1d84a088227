"""Histories as files: what was written is read, and what has another form is refused with its line."""

import io
import json
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos import history as histories
from chaos.history import (
    Death,
    Fault,
    History,
    HistoryError,
    Holding,
    Level,
    Operation,
    Run,
    Sample,
    history_of,
    read_history,
    read_records,
    record_line,
    write_history,
)

RUN = Run("claims", ("n1", "n2", "n3"), 3, 1_700_000_000_000, 200, 2.0, 10.0, seed=4, replay="make")
VERSION = bytes(range(16))
RECORDS = [
    Operation(
        "c1", "put", "key%20one", "v1", VERSION, 1.0, 1.5, "ok", "n1", ttl_ms=500, ring="ab", epoch="1-2", line=2
    ),
    Operation("c1", "put", "k", "v2", b"", 1.25, inf, "info", "n1", "all", is_sloppy=True, line=3),
    Operation("c2", "get", "k", None, b"", 2.0, 2.5, "ok", "n2", "1", line=4),
    Operation("c2", "delete", "k", None, b"", 3.0, 3.5, "fail", "n2", line=5),
    Fault("kill", ("n1",), 4.0, inf, "for good"),
    Sample("n1", 1.0, "ab", ("n1", "n2"), (5, 1, 1, 1, 1, 1)),
    Sample("n2", 1.5, "", ()),
    Death("n1", "n2", 5.0),
    Level(6.0),
    Holding("n1", "k", "tombstone", VERSION, is_owner=True, is_level=False, at_s=7.0),
    Holding("n2", "k", "absent", b"", is_owner=True, is_level=True, at_s=8.0),
]


def lines_of(*documents: object) -> io.BytesIO:
    texts = [item if isinstance(item, str) else json.dumps(item) for item in documents]
    return io.BytesIO("".join(f"{text}\n" for text in texts).encode())


def test_a_history_is_read_back_as_it_was_written(tmp_path):
    history = History(RUN)
    for record in RECORDS:
        history.add(record)
    path = tmp_path / "history.jsonl"
    write_history(path, history)
    assert read_history(path) == history
    assert path.read_text().count("\n") == len(RECORDS) + 1


@given(
    process=st.text(min_size=1, max_size=5),
    value=st.text(max_size=5),
    invoked_s=st.floats(0, 1e6),
    took_s=st.floats(0, 9),
)
def test_any_operation_is_read_back(process, value, invoked_s, took_s):
    operation = Operation(process, "put", "k", value, VERSION, invoked_s, invoked_s + took_s, "ok", "n1", line=2)
    text = record_line(RUN) + record_line(operation)
    assert list(read_records(io.BytesIO(text.encode())))[1] == operation


def test_operations_are_in_the_order_of_their_beginning():
    late, early = (RECORDS[number]._replace(invoked_s=at_s) for number, at_s in ((0, 1.4), (1, 0.5)))
    history = history_of(iter([RUN, late, early]))
    assert history.operations == [early, late]


GOOD = json.loads(record_line(RECORDS[0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"op": "post"}, "op: 'post' is none of put, delete, get"),
        ({"op": ["put"]}, "op: ['put'] is none of"),
        ({"outcome": "maybe"}, "outcome: 'maybe' is none of"),
        ({"key": ""}, "key: not a text"),
        ({"key": None}, "key: not a text"),
        ({"value": None}, "value: a put has one"),
        ({"value": 3}, "value: not a text"),
        ({"version": "zz"}, "version: not hexadecimal"),
        ({"version": "abcd"}, "version: not 16 bytes"),
        ({"version": ""}, "version: an acknowledged put has one"),
        ({"op": "delete"}, "value: a put has one, and a delete has none"),
        ({"op": "get", "value": None}, "version: what was read has one, and nothing has none"),
        ({"invoked_s": -1}, "invoked_s: not a number of seconds"),
        ({"invoked_s": "1"}, "invoked_s: not a number of seconds"),
        ({"invoked_s": True}, "invoked_s: not a number of seconds"),
        ({"invoked_s": 10**400}, "line 2"),
        ({"completed_s": 0.5}, "completed_s is before invoked_s"),
        ({"completed_s": None}, "only what nobody knows the outcome of is never over"),
        ({"quorum": "most"}, "quorum: not 1, quorum, all or a number"),
        ({"ttl_ms": 1.5}, "ttl_ms: not a count"),
        ({"sloppy": "yes"}, "sloppy: not true or false"),
        ({"record": "rumour"}, "record: 'rumour' is none of operation, run,"),
        ({"record": "run"}, "the record of the run is the first"),
    ],
)
def test_a_line_that_has_another_form_is_refused_by_its_number(change, said):
    with pytest.raises(HistoryError) as caught:
        list(read_records(lines_of(json.loads(record_line(RUN)), GOOD | change), "h.jsonl"))
    assert str(caught.value).startswith("h.jsonl, line 2: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "no object"),
        ('{"record": "level", "at_s": NaN}', "at_s: not a number of seconds"),
        ('{"record": "level"}', "at_s is missing"),
        ('{"record": "fault", "fault": "kill", "nodes": "n1", "at_s": 1}', "nodes: not a list of texts"),
        ('{"record": "fault", "fault": "kill", "nodes": [], "at_s": 2, "until_s": 1}', "until_s is before at_s"),
        ('{"record": "sample", "node": "n1", "digest": "", "owners": [], "at_s": 1, "hints": 4}', "hints: no object"),
        (
            '{"record": "sample", "node": "n1", "digest": "", "owners": [], "at_s": 1, "hints": {"queued": 1}}',
            "delivered is missing",
        ),
        (
            '{"record": "holding", "node": "n1", "key": "k", "state": "value", "version": "", "at_s": 1}',
            "version: an absent key",
        ),
        ("[" * 5000 + "]" * 5000, "line 2"),
        ('"' + "x" * (70 << 10) + '"', "longer than 65536 bytes"),
        ("", "no JSON"),
    ],
)
def test_a_line_that_is_no_record_is_refused(line, said):
    with pytest.raises(HistoryError, match="line 2") as caught:
        list(read_records(lines_of(json.loads(record_line(RUN)), line)))
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(HistoryError, match="line 2: no JSON"):
        list(read_records(io.BytesIO(record_line(RUN).encode() + b"\xff\xfe\n")))


@pytest.mark.parametrize("content", [b"", record_line(RECORDS[0]).encode()])
def test_a_history_begins_with_its_run(tmp_path, content):
    path = tmp_path / "h"
    path.write_bytes(content)
    with pytest.raises(HistoryError, match="run"):
        read_history(path)


def test_another_format_is_refused():
    document = json.loads(record_line(RUN)) | {"format": 9}
    with pytest.raises(HistoryError, match="line 1: format: this program reads 1, not 9"):
        list(read_records(lines_of(document)))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(HistoryError, match="No such file"):
        read_history(tmp_path / "absent")
    with pytest.raises(HistoryError, match="Is a directory"):
        read_history(tmp_path)


def test_more_than_the_bound_is_refused(monkeypatch):
    monkeypatch.setattr(histories, "OPERATIONS_MAX", 2)
    text = record_line(RUN) + 3 * record_line(RECORDS[0])
    with pytest.raises(HistoryError, match="line 4: more than 2 operations"):
        list(read_records(io.BytesIO(text.encode())))
