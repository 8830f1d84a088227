"""The peer codec alone: every frame survives the round trip, nothing else gets through."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.errors import WireError
from zephyr.model import Member
from zephyr.peer.wire import (
    ALLOWANCE_MS_MAX,
    ARRAY_ITEMS_MAX,
    CALL_ID_MAX,
    FRAME_BYTES_MAX_HIGH,
    HELLO_BYTES_MAX,
    LENGTH_BYTES,
    OPERATION_MAX,
    REASON_BYTES_MAX,
    STATUS_MAX,
    Frame,
    FrameDecoder,
    Goodbye,
    Hello,
    Kind,
    Operation,
    Reply,
    Request,
    Status,
    agreed_protocol,
    decode_frame,
    decode_member,
    encode_goodbye,
    encode_hello,
    encode_member,
    encode_reply,
    encode_request,
    frame_bytes_max,
)
from zephyr.wire import EPOCH_MAX

BOUND = frame_bytes_max(1 << 20)
MEMBER = Member("n1", "10.0.0.1:8080", "10.0.0.1:7946", "[fd00::1]:7846", 1_700_000_000_000, 2.5, "east", "joining")
HELLO = Hello(1, 2, "dev", False, BOUND, MEMBER)

names = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
addresses = st.builds(
    "{}:{}".format,
    st.from_regex(r"[a-z0-9.-]{1,40}|\[[0-9a-f:]{2,20}\]", fullmatch=True),
    st.integers(0, 65535),
)
protocols = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1]))
members = st.builds(
    Member,
    id=names,
    http=addresses,
    gossip=addresses,
    peer=addresses,
    epoch=st.integers(0, EPOCH_MAX),
    weight=st.floats(0.1, 10),
    zone=st.just("") | names,
    state=st.sampled_from(["joining", "serving", "leaving"]),
    protocol=protocols,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), CALL_ID_MAX) | st.binary(max_size=60) | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)
arrays = st.lists(values, max_size=4).map(tuple)
requests = st.builds(
    Request,
    call_id=st.integers(0, CALL_ID_MAX),
    operation=st.integers(0, OPERATION_MAX) | st.sampled_from(Operation),
    ring_digest=st.binary(min_size=8, max_size=8),
    allowance_ms=st.integers(0, ALLOWANCE_MS_MAX),
    arguments=arrays,
)
replies = st.builds(
    Reply,
    call_id=st.integers(0, CALL_ID_MAX),
    status=st.integers(0, STATUS_MAX) | st.sampled_from(Status),
    payload=arrays,
)
goodbyes = st.builds(Goodbye, reason=st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=60)).filter(
    lambda goodbye: goodbye.reason.isprintable()
)
hellos = st.builds(
    lambda protocol, **rest: Hello(*protocol, **rest),
    protocol=protocols,
    cluster=names,
    probe=st.booleans(),
    frame_bytes_max=st.integers(HELLO_BYTES_MAX, FRAME_BYTES_MAX_HIGH),
    member=members,
)


def encode(frame: Frame) -> bytes:
    match frame:
        case Hello():
            return encode_hello(frame)
        case Request():
            return encode_request(
                frame.call_id, frame.operation, frame.ring_digest, frame.allowance_ms, frame.arguments
            )
        case Reply():
            return encode_reply(frame.call_id, frame.status, frame.payload)
        case Goodbye():
            return encode_goodbye(frame.reason)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def packed(*fields: Any) -> bytes:
    return msgpack.packb(fields)


def greeted(expected: type[Request | Reply] = Request, bound: int = BOUND) -> FrameDecoder:
    decoder = FrameDecoder(expected, bound)
    assert decoder.feed(encode_hello(HELLO)) == [HELLO]
    return decoder


# --- round trips ------------------------------------------------------------------------------------


@given(requests | replies | goodbyes | hellos)
def test_every_frame_survives_the_round_trip(frame):
    data = encode(frame)
    assert int.from_bytes(data[:LENGTH_BYTES], "big") == len(data) - LENGTH_BYTES
    assert decode_frame(data[LENGTH_BYTES:]) == frame


@given(members)
def test_every_member_survives_the_round_trip(member):
    assert decode_member(msgpack.unpackb(msgpack.packb(encode_member(member)), use_list=False)) == member


@given(st.lists(requests | replies, max_size=6), st.data())
def test_pieces_of_any_size_give_the_same_frames(frames, data):
    expected = type(frames[0]) if frames else Request
    frames = [frame for frame in frames if type(frame) is expected]
    stream = b"".join([encode_hello(HELLO), *map(encode, frames), encode_goodbye("enough")])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    decoder = FrameDecoder(expected, BOUND)
    seen: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += decoder.feed(stream[start:end])
    assert seen == [HELLO, *frames, Goodbye("enough")]
    assert decoder.held_bytes == 0


def test_a_stream_cut_into_single_bytes_gives_the_same_frames():
    request = Request(7, Operation.READ, b"12345678", 100, (b"k",))
    decoder = FrameDecoder(Request, BOUND)
    stream = encode_hello(HELLO) + encode(request) * 2
    seen = [frame for index in range(len(stream)) for frame in decoder.feed(stream[index : index + 1])]
    assert seen == [HELLO, request, request]


def test_a_large_frame_in_many_pieces_is_gathered_without_being_looked_at_again(monkeypatch):
    decoder = greeted(Reply)
    looks = 0
    cut = FrameDecoder._cut

    def counting(self, source, frames):
        nonlocal looks
        looks += 1
        return cut(self, source, frames)

    monkeypatch.setattr(FrameDecoder, "_cut", counting)
    stream = encode_reply(1, Status.OK, (bytes(1 << 20),)) + encode_reply(2, Status.OK, ())
    seen = [frame for start in range(0, len(stream), 1448) for frame in decoder.feed(stream[start : start + 1448])]
    assert [frame.call_id for frame in seen] == [1, 2]
    assert looks == 2  # at its length, and when it is complete


def test_binary_values_come_out_as_bytes_of_their_own():
    decoder = greeted(Reply)
    stream = encode_reply(1, Status.OK, (b"record",))
    decoder.feed(stream[:5])
    (reply,) = decoder.feed(stream[5:])
    assert reply == Reply(1, Status.OK, (b"record",))
    assert type(reply.payload[0]) is bytes


# --- what must not get through ----------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_random_bytes_are_frames_or_wire_errors(data):
    try:
        frames = FrameDecoder(Request, BOUND).feed(data)
    except WireError:
        return
    assert all(type(frame) in (Hello, Goodbye) for frame in frames)


@given(requests | replies | goodbyes | hellos, st.data())
def test_mutated_frames_are_frames_or_wire_errors(frame, data):
    body = bytearray(encode(frame)[LENGTH_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        body[where] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        decoded = decode_frame(bytes(body))
    except WireError:
        return
    # What is let through is a frame like any other: it can be said again in the same words.
    assert decode_frame(encode(decoded)[LENGTH_BYTES:]) == decoded or "nan" in repr(decoded)


@given(st.integers(0, 4) | st.integers(), arrays)
def test_arrays_of_any_kind_and_content_are_frames_or_wire_errors(kind, fields):
    if not -(1 << 63) <= kind <= CALL_ID_MAX:
        kind = 9
    try:
        frame = decode_frame(packed(kind, *fields))
    except WireError:
        return
    assert type(frame) in (Hello, Request, Reply, Goodbye)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (packed(4, "x") + b"\x00", "msgpack"),
        (packed(4, "x")[:-1], "msgpack"),
        (b"\x92\x04\xa1\xff", "msgpack"),
        (b"\x92\x04\xc7\x00\x05", "msgpack"),
        (b"\x92\x04\xd6\xff\x00\x00\x00\x01", "msgpack"),
        (b"\x92\x04\x81\x01\x01", "msgpack"),
        (b"\x91" * 5000 + b"\x01", "msgpack"),
        (b"\xdd" + (ARRAY_ITEMS_MAX + 1).to_bytes(4, "big"), "msgpack"),
        (packed(4, "x" * (REASON_BYTES_MAX + 1)), "msgpack"),
        (msgpack.packb({"a": 1}), "shape"),
        (msgpack.packb(7), "shape"),
        (packed(), "shape"),
        (packed("hello"), "shape"),
        (packed(True), "shape"),
        (packed(2.0, 1, 1, b"12345678", 1, ()), "shape"),
        (packed(0), "kind"),
        (packed(5, 1), "kind"),
        (packed(2, 1, 1, b"12345678", 1), "shape"),
        (packed(2, 1, 1, b"12345678", 1, (), 1), "shape"),
        (packed(2, -1, 1, b"12345678", 1, ()), "field"),
        (packed(2, True, 1, b"12345678", 1, ()), "field"),
        (packed(2, 1, -1, b"12345678", 1, ()), "field"),
        (packed(2, 1, OPERATION_MAX + 1, b"12345678", 1, ()), "field"),
        (packed(2, 1, 1.0, b"12345678", 1, ()), "field"),
        (packed(2, 1, 1, b"1234567", 1, ()), "field"),
        (packed(2, 1, 1, "12345678", 1, ()), "field"),
        (packed(2, 1, 1, b"12345678", -1, ()), "field"),
        (packed(2, 1, 1, b"12345678", ALLOWANCE_MS_MAX + 1, ()), "field"),
        (packed(2, 1, 1, b"12345678", 1, b"key"), "field"),
        (packed(2, 1, 1, b"12345678", 1, None), "field"),
        (packed(3, 1, 0), "shape"),
        (packed(3, 1, 0, (), ()), "shape"),
        (packed(3, -1, 0, ()), "field"),
        (packed(3, 1, STATUS_MAX + 1, ()), "field"),
        (packed(3, 1, False, ()), "field"),
        (packed(3, 1, 0, {"a": 1}), "field"),
        (packed(4), "shape"),
        (packed(4, b"reason"), "field"),
        (packed(4, "two\nlines"), "field"),
        (packed(1, 1, 1, "dev", False, BOUND), "shape"),
    ],
)
def test_a_broken_frame_is_refused_with_its_cause(body, cause):
    with pytest.raises(WireError) as caught:
        decode_frame(body)
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (1, 0), (1, 3), (1, "1"), (1, True), (2, 1 << 16), (2, 0), (3, ""), (3, "x" * 65), (3, "a b"), (3, b"dev"),
        (4, 0), (4, None), (5, HELLO_BYTES_MAX - 1), (5, FRAME_BYTES_MAX_HIGH + 1), (5, 1e6),
    ],
)  # fmt: skip
def test_a_hello_with_one_bad_field_is_refused(index, value):
    fields = [1, 1, 2, "dev", False, BOUND, encode_member(MEMBER)]
    assert decode_frame(packed(*fields)) == HELLO
    fields[index] = value
    with pytest.raises(WireError) as caught:
        decode_frame(packed(*fields))
    assert caught.value.cause == "field"


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, ""), (0, "x" * 65), (0, "a/b"), (0, "n1\n"), (0, 1), (0, b"n1"),
        (1, "10.0.0.1"), (1, "10.0.0.1:65536"), (1, ":1"), (1, "h:" + "9" * 300), (1, "a b:1"), (1, "a\n:1"),
        (1, "ü:1"), (1, None), (2, "::1:1"), (2, "host:-1"), (3, "host:"), (3, "host:1x"),
        (4, -1), (4, EPOCH_MAX + 1), (4, 1.0), (4, True),
        (5, 0.09), (5, 10.01), (5, float("nan")), (5, float("inf")), (5, "1"), (5, True),
        (6, "a b"), (6, "x" * 65), (6, None),
        (7, "dead"), (7, 1), (7, ()),
        (8, (1,)), (8, (2, 1)), (8, (0, 1)), (8, (1, 1 << 16)), (8, (True, True)), (8, "11"),
    ],
)  # fmt: skip
def test_a_member_with_one_bad_field_is_refused(index, value):
    fields = list(encode_member(MEMBER))
    fields[index] = value
    with pytest.raises(WireError) as caught:
        decode_member(tuple(fields))
    assert caught.value.cause == "member"


@pytest.mark.parametrize(
    "value", [None, (), encode_member(MEMBER)[:-1], {"id": "n1"}, "n1", list(encode_member(MEMBER))]
)
def test_what_is_no_array_of_a_member_is_refused(value):
    with pytest.raises(WireError) as caught:
        decode_member(value)
    assert caught.value.cause == "member"


def test_a_member_of_whole_weight_is_read_as_a_number_with_a_fraction():
    fields = list(encode_member(MEMBER))
    fields[5] = 2
    assert decode_member(tuple(fields)) == dataclasses.replace(MEMBER, weight=2.0)


# --- bounds -----------------------------------------------------------------------------------------


def test_a_frame_of_exactly_the_bound_is_read_and_one_byte_more_is_not():
    bound = 10_000
    empty = len(encode_reply(1, Status.OK, (b"x" * 5000,))) - LENGTH_BYTES - 5000
    fits = encode_reply(1, Status.OK, (b"x" * (bound - empty),))
    assert len(fits) == bound + LENGTH_BYTES
    assert len(greeted(Reply, bound).feed(fits)) == 1
    with pytest.raises(WireError) as caught:
        greeted(Reply, bound).feed(encode_reply(1, Status.OK, (b"x" * (bound - empty + 1),)))
    assert caught.value.cause == "length"


def test_a_long_frame_is_refused_by_its_length_alone():
    decoder = greeted()
    with pytest.raises(WireError) as caught:
        decoder.feed((BOUND + 1).to_bytes(LENGTH_BYTES, "big"))
    assert caught.value.cause == "length"


def test_before_the_hello_only_short_frames_are_read():
    with pytest.raises(WireError) as caught:
        FrameDecoder(Request, BOUND).feed((HELLO_BYTES_MAX + 1).to_bytes(LENGTH_BYTES, "big"))
    assert caught.value.cause == "length"


def test_the_longest_hello_is_short_enough():
    longest = "h" * 253 + ":65535"
    member = Member("i" * 64, longest, longest, longest, EPOCH_MAX, 0.1, "z" * 64, "serving", (1, 65535))
    hello = Hello(1, 65535, "c" * 64, True, FRAME_BYTES_MAX_HIGH, member)
    assert FrameDecoder(Request, BOUND).feed(encode_hello(hello)) == [hello]


def test_a_decoder_keeps_no_more_than_one_frame():
    decoder = greeted(Reply)
    frame = encode_reply(1, Status.OK, (bytes(1 << 20),))
    for start in range(0, len(frame) - 1, 1000):
        decoder.feed(frame[start : min(start + 1000, len(frame) - 1)])
    assert decoder.held_bytes == len(frame) - 1
    assert len(decoder.feed(frame[-1:])) == 1
    assert decoder.held_bytes == 0


def test_a_broken_frame_among_gathered_pieces_is_a_wire_error_too():
    decoder = greeted()
    stream = framed(b"\xc1" * 3000)
    decoder.feed(stream[:1500])
    with pytest.raises(WireError) as caught:
        decoder.feed(stream[1500:])
    assert caught.value.cause == "msgpack"


# --- order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [Request, Reply])
def test_nothing_but_a_hello_or_a_goodbye_comes_first(expected):
    for frame in (Request(1, 1, b"12345678", 1, ()), Reply(1, 0, ())):
        with pytest.raises(WireError) as caught:
            FrameDecoder(expected, BOUND).feed(encode(frame))
        assert caught.value.cause == "order"
    assert FrameDecoder(expected, BOUND).feed(encode_goodbye("no")) == [Goodbye("no")]


def test_a_second_hello_is_refused():
    with pytest.raises(WireError) as caught:
        greeted().feed(encode_hello(HELLO))
    assert caught.value.cause == "order"


def test_each_side_reads_only_what_the_other_may_send():
    for expected, wrong in ((Request, Reply(1, 0, ())), (Reply, Request(1, 1, b"12345678", 1, ()))):
        with pytest.raises(WireError) as caught:
            greeted(expected).feed(encode(wrong))
        assert caught.value.cause == "order"


def test_a_broken_frame_takes_the_frames_of_its_batch_with_it():
    decoder = greeted()
    with pytest.raises(WireError):
        decoder.feed(encode_request(1, 1, b"12345678", 1, ()) + framed(b"\xc1"))


# --- versions ---------------------------------------------------------------------------------------


def test_what_a_newer_program_appends_to_hello_member_and_goodbye_is_skipped():
    member = (*encode_member(MEMBER), "rack 7")
    assert decode_frame(packed(1, 1, 2, "dev", False, BOUND, member, {"new": True})) == HELLO
    assert decode_frame(packed(4, "bye", 99)) == Goodbye("bye")


def test_unknown_operations_and_statuses_pass_the_codec():
    assert decode_frame(packed(2, 1, 77, b"12345678", 1, ("new",))) == Request(1, 77, b"12345678", 1, ("new",))
    assert decode_frame(packed(3, 1, 77, (1, None))) == Reply(1, 77, (1, None))


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((2, 5), (1, 3), 3), ((1, 1), (2, 2), None), ((3, 4), (1, 2), None)],
)
def test_the_newest_protocol_of_both_sides_is_agreed(ours, theirs, agreed):
    assert agreed_protocol(ours, theirs) == agreed


# --- goodbye ----------------------------------------------------------------------------------------


@given(st.text(max_size=1000))
def test_any_reason_becomes_one_printable_line_within_the_bound(reason):
    goodbye = decode_frame(encode_goodbye(reason)[LENGTH_BYTES:])
    assert goodbye.reason.isprintable()
    assert len(goodbye.reason.encode()) <= REASON_BYTES_MAX
    if reason.isprintable() and len(reason.encode()) <= REASON_BYTES_MAX:
        assert goodbye.reason == reason


def test_numbers_of_the_protocol_do_not_change():
    assert [(item.name, item.value) for item in Kind] == [("HELLO", 1), ("REQUEST", 2), ("REPLY", 3), ("GOODBYE", 4)]
    assert [(item.name, item.value) for item in Operation][:2] == [("READ", 1), ("WRITE", 2)]
    assert [(item.name, item.value) for item in Status][:6] == [
        ("OK", 0), ("NOT_OWNER", 1), ("CLOCK_SKEW", 2), ("TOO_LARGE", 3), ("OVERLOADED", 4), ("BAD_REQUEST", 5),
    ]  # fmt: skip
