"""The gossip codec alone: every message survives the round trip, nothing else gets through."""

from __future__ import annotations

import base64
import gc
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from zephyr.errors import ConfigError, WireError
from zephyr.gossip import wire
from zephyr.gossip.messages import (
    Ack,
    Alive,
    Dead,
    Exit,
    GossipMessage,
    Left,
    Nack,
    Packet,
    Ping,
    PingRequest,
    Suspect,
    Sync,
    SyncEntry,
    UserEvent,
)
from zephyr.gossip.wire import (
    COUNT_MAX,
    EVENT_NAME_CHARACTERS_MAX,
    EVENT_PAYLOAD_BYTES_MAX,
    KEYS_MAX,
    LAG_MS_MAX,
    MAGIC,
    MESSAGES_MAX,
    METADATA_BYTES_MAX,
    PACKET_BYTES_MAX,
    REPLAY_SENDERS_MAX,
    REPLAY_WINDOW,
    SCHEMA_VERSION,
    STREAM_BYTES_MAX,
    STREAM_MESSAGES_MAX,
    SYNC_ENTRIES_MAX,
    Envelope,
    Keyring,
    ReplayWindow,
    encode_message,
    plain_overhead_bytes,
)
from zephyr.model import Member

EPOCH = 1_700_000_000_000
MEMBER = Member("n1", "10.0.0.1:8080", "10.0.0.1:7946", "[fd00::1]:7846", EPOCH, 2.5, "east", "joining")
MEMBER_FIELDS = ["n1", "10.0.0.1:8080", "10.0.0.1:7946", "[fd00::1]:7846", EPOCH, 2.5, "east", 0, 1, 1]
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
KEYRING = Keyring((OLD,))
KEYRINGS = pytest.mark.parametrize("keyring", [None, KEYRING], ids=["plain", "encrypted"])
MIB = 1 << 20

names = st.text("abcXYZ019._-", min_size=1, max_size=64)
hosts = st.text("abc019.-", min_size=1, max_size=40) | st.just("[fd00::1]")
addresses = st.builds("{}:{}".format, hosts, st.integers(0, 65535))
counts = st.integers(0, COUNT_MAX)
protocols = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1]))
members = st.builds(
    Member,
    id=names,
    http=addresses,
    gossip=addresses,
    peer=addresses,
    epoch=counts,
    weight=st.floats(0.1, 10),
    zone=st.just("") | names,
    state=st.sampled_from(["joining", "serving", "leaving"]),
    protocol=protocols,
)
event_names = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=EVENT_NAME_CHARACTERS_MAX
)
messages = st.one_of(
    st.builds(Ping, counts, names),
    st.builds(Ack, counts, st.just(b"") | st.binary(min_size=8, max_size=8), st.integers(0, LAG_MS_MAX)),
    st.builds(PingRequest, counts, members),
    st.builds(Nack, counts),
    st.builds(Alive, members, counts),
    st.builds(Suspect, names, counts, counts, names),
    st.builds(Exit, names, counts, names),
    st.builds(Dead, names, counts, counts, names),
    st.builds(Left, names, counts, counts),
    st.builds(UserEvent, names, counts, st.integers(1, COUNT_MAX), event_names, st.binary(max_size=512)),
)
entries = st.builds(SyncEntry, members, counts, st.sampled_from(["alive", "suspect", "dead", "left"]))
syncs = st.builds(Sync, st.lists(entries, max_size=5).map(tuple), st.booleans())

ONE_OF_EACH: tuple[GossipMessage, ...] = (
    Ping(1, "n2"),
    Ack(2, b"12345678", 3),
    Ack(2, b"", 0),
    PingRequest(3, MEMBER),
    Nack(4),
    Alive(MEMBER, 5),
    Suspect("n2", EPOCH, 6, "n3"),
    Exit("n2", EPOCH, "n3"),
    Dead("n2", EPOCH, 7, "n3"),
    Left("n2", EPOCH, 8),
    UserEvent("n2", EPOCH, 9, "deploy 12", b"\x00payload"),
)


def envelope(sender: str = "n1", keyring: Keyring | None = None, cluster: str = "dev") -> Envelope:
    return Envelope(cluster, sender, keyring, random.Random(sender).randbytes)


def pair(keyring: Keyring | None = None) -> tuple[Envelope, Envelope]:
    return envelope("n1", keyring), envelope("n2", keyring)


def cause_of(call: Callable[[bytes], Any], data: bytes) -> str:
    with pytest.raises(WireError) as raised:
        call(data)
    return raised.value.cause


def plain(body: bytes, kind: int = 0, version: int = SCHEMA_VERSION, magic: int = MAGIC) -> bytes:
    """A packet with a right checksum around any body."""
    unchecked = bytes((magic, version, kind)) + body
    return unchecked + zlib.crc32(unchecked).to_bytes(4, "big")


def plain_with(*items: Any, head: tuple[Any, ...] = ("dev", "n1", EPOCH, 1), kind: int = 0) -> bytes:
    return plain(msgpack.packb([*head, *items]), kind)


def member_bytes(index: int | None = None, value: Any = None) -> bytes:
    fields = list(MEMBER_FIELDS)
    if index is not None:
        fields[index] = value
    return msgpack.packb(fields)


def long_member(metadata_bytes: int) -> Member:
    """A member whose metadata has exactly this many bytes."""
    short = Member("n1", "h:1", "h" * 200 + ":1", "h" * 150 + ":1", EPOCH)
    # One byte is there already, and one more tells the length of a long text.
    missing = metadata_bytes - len(packed(short))
    member = Member("n1", "h" * missing + ":1", "h" * 200 + ":1", "h" * 150 + ":1", EPOCH)
    assert len(packed(member)) == metadata_bytes
    return member


def packed(member: Member) -> bytes:
    state = ("joining", "serving", "leaving").index(member.state)
    fields = (member.id, member.http, member.gossip, member.peer, member.epoch, member.weight, member.zone, state)
    return msgpack.packb((*fields, *member.protocol))


# --- round trip -------------------------------------------------------------------------------------


@KEYRINGS
def test_one_of_each_message_survives_the_round_trip_in_one_packet(keyring):
    sender, receiver = pair(keyring)
    packet = sender.seal([encode_message(message) for message in ONE_OF_EACH], EPOCH)
    assert receiver.open(packet) == Packet("n1", EPOCH, ONE_OF_EACH, len(packet))


@given(message=messages, epoch=counts)
def test_any_message_survives_the_round_trip(message, epoch):
    for keyring in (None, KEYRING):
        sender, receiver = pair(keyring)
        packet = sender.seal([encode_message(message)], epoch)
        opened = receiver.open(packet)
        assert opened == Packet("n1", epoch, (message,), len(packet))
        assert type(opened.messages[0]) is type(message), "tuples of two types may be equal"


@given(several=st.lists(messages, min_size=1, max_size=8))
def test_any_compound_packet_survives_the_round_trip(several):
    encoded = [encode_message(message) for message in several]
    sender, receiver = pair()
    assume(sum(map(len, encoded)) + sender.overhead_bytes <= PACKET_BYTES_MAX)
    opened = receiver.open(sender.seal(encoded, EPOCH))
    assert opened.messages == tuple(several)


@given(sync=syncs, message=messages, epoch=counts)
def test_any_stream_survives_the_round_trip(sync, message, epoch):
    for keyring in (None, KEYRING):
        sender, receiver = pair(keyring)
        data = sender.seal_stream([encode_message(sync), encode_message(message)], epoch)
        assert receiver.open_stream(data) == Packet("n1", epoch, (sync, message), len(data))


def test_a_member_of_whole_weight_comes_back_with_a_float():
    sender, receiver = pair()
    alive = Alive(Member("n1", "h:1", "h:2", "h:3", 1, 2), 0)
    (opened,) = receiver.open(sender.seal([encode_message(alive)], EPOCH)).messages
    assert opened == alive
    assert type(opened.member.weight) is float


def test_a_lag_above_its_bound_is_sent_as_the_bound():
    sender, receiver = pair()
    packet = sender.seal([encode_message(Ack(1, b"", LAG_MS_MAX * 9))], EPOCH)
    assert receiver.open(packet).messages == (Ack(1, b"", LAG_MS_MAX),)


@KEYRINGS
def test_a_stream_is_compressed_only_when_that_pays(keyring):
    sender, receiver = pair(keyring)
    alike = Sync(tuple(SyncEntry(Member(f"n{i}", "h:1", "h:2", "h:3", i), i, "alive") for i in range(200)), True)
    randomness = random.Random(5)
    unlike = tuple(
        UserEvent("n1", EPOCH, number, "noise", randomness.randbytes(EVENT_PAYLOAD_BYTES_MAX)) for number in (1, 2)
    )
    for several, kind, pays in (((alike,), 6, True), (unlike, 2, False), ((Ping(1, "n2"),), 2, False)):
        encoded = [encode_message(message) for message in several]
        data = sender.seal_stream(encoded, EPOCH)
        assert data[2] == kind | (keyring is not None)
        assert (len(data) < len(b"".join(encoded)) / 2) is pays
        assert receiver.open_stream(data).messages == several


# --- sizes ------------------------------------------------------------------------------------------


def test_the_overhead_is_an_upper_bound_that_the_longest_names_and_counts_reach():
    sender = Envelope("c" * 64, "s" * 64, KEYRING, random.Random(1).randbytes)
    sender._sequence = COUNT_MAX - 1
    encoded = [encode_message(Nack(i)) for i in range(20)]
    assert len(sender.seal(encoded, COUNT_MAX)) == len(b"".join(encoded)) + sender.overhead_bytes


@given(
    asker=names, asked=names, sequence=st.integers(1, COUNT_MAX), sent=st.tuples(*[st.integers(0, (1 << 32) - 2)] * 2)
)
def test_an_answer_without_digest_is_never_longer_than_its_ping(asker, asked, sequence, sent):
    one, two = (Envelope("dev", name, None, bytes) for name in (asker, asked))
    one._sequence, two._sequence = sent
    ping = one.seal([encode_message(Ping(sequence, asked))], EPOCH)
    ack = encode_message(Ack(sequence, b"", 0))
    assert len(two.seal([ack], EPOCH)) == plain_overhead_bytes("dev", asked) + len(ack) <= len(ping)


@given(several=st.lists(messages, min_size=1, max_size=60), cluster=names, sender_id=names)
def test_a_packet_that_is_filled_by_the_overhead_is_never_above_its_bound(several, cluster, sender_id):
    sender = Envelope(cluster, sender_id, None, random.Random(1).randbytes)
    room = PACKET_BYTES_MAX - sender.overhead_bytes
    chosen: list[bytes] = []
    for message in several * 8:
        encoded = encode_message(message)
        if len(encoded) <= room and len(chosen) < MESSAGES_MAX:
            room -= len(encoded)
            chosen.append(encoded)
    for keyring in (None, KEYRING):
        sender.keyring = keyring
        packet = sender.seal(chosen, COUNT_MAX)
        assert len(packet) <= PACKET_BYTES_MAX
        receiver = Envelope(cluster, sender_id, keyring, random.Random(2).randbytes)  # An older life: not its own.
        assert len(receiver.open(packet).messages) == len(chosen)


def test_two_of_the_longest_members_or_the_longest_event_fit_into_one_packet_of_the_longest_names():
    sender = Envelope("c" * 64, "s" * 64, KEYRING, random.Random(1).randbytes)
    longest = encode_message(Alive(long_member(METADATA_BYTES_MAX), COUNT_MAX))
    assert len(sender.seal([longest, longest], COUNT_MAX)) <= PACKET_BYTES_MAX
    name = "\U0001f9ea" * EVENT_NAME_CHARACTERS_MAX
    event = UserEvent("o" * 64, COUNT_MAX, COUNT_MAX, name, bytes(EVENT_PAYLOAD_BYTES_MAX))
    assert len(sender.seal([encode_message(event)], COUNT_MAX)) <= PACKET_BYTES_MAX


@KEYRINGS
def test_too_much_for_one_packet_or_stream_is_refused_before_it_is_sent(keyring):
    sender = envelope(keyring=keyring)
    nack, event = encode_message(Nack(1)), encode_message(UserEvent("n1", 1, 1, "big", bytes(512)))
    assert sender.seal([nack] * MESSAGES_MAX, EPOCH)
    assert cause_of(lambda _: sender.seal([nack] * (MESSAGES_MAX + 1), EPOCH), b"") == "oversized"
    assert cause_of(lambda _: sender.seal([event] * 3, EPOCH), b"") == "oversized"
    assert sender.seal_stream([nack] * STREAM_MESSAGES_MAX, EPOCH)
    assert cause_of(lambda _: sender.seal_stream([nack] * (STREAM_MESSAGES_MAX + 1), EPOCH), b"") == "oversized"
    longest = long_member(METADATA_BYTES_MAX)
    sync = Sync((SyncEntry(longest, 1, "alive"),) * SYNC_ENTRIES_MAX, False)
    assert cause_of(lambda _: sender.seal_stream([encode_message(sync)], EPOCH), b"") == "oversized"


@KEYRINGS
def test_a_sync_of_as_many_entries_as_allowed_survives_and_one_more_is_refused(keyring):
    sender, receiver = pair(keyring)
    most = tuple(SyncEntry(Member(f"n{i}", "h:1", "h:2", "h:3", i), i, "dead") for i in range(SYNC_ENTRIES_MAX))
    assert receiver.open_stream(sender.seal_stream([encode_message(Sync(most, False))], EPOCH)).messages == (
        Sync(most, False),
    )
    more = Sync((*most, most[0]), False)
    assert cause_of(lambda _: encode_message(more), b"") == "oversized"
    flat = [field for member, _, _ in more.entries for field in (packed(member), 1, 0)]
    assert cause_of(receiver.open_stream, sender.seal_stream([msgpack.packb([11, False, *flat])], EPOCH)) == "oversized"


@pytest.mark.parametrize("excess", [0, 1])
def test_metadata_above_its_bound_is_refused_on_encode_and_on_decode(excess):
    member = long_member(METADATA_BYTES_MAX + excess)
    sender, receiver = pair()
    sync = Sync((SyncEntry(member, 1, "alive"),), False)
    if not excess:
        assert receiver.open(sender.seal([encode_message(Alive(member, 1))], EPOCH)).messages == (Alive(member, 1),)
        assert receiver.open(sender.seal([encode_message(PingRequest(1, member))], EPOCH)).messages
        assert receiver.open_stream(sender.seal_stream([encode_message(sync)], EPOCH)).messages == (sync,)
        return
    for message in (Alive(member, 1), PingRequest(1, member), sync):
        assert cause_of(lambda _, message=message: encode_message(message), b"") == "oversized"
    metadata = packed(member)
    assert cause_of(receiver.open, plain_with([5, metadata, 1])) == "oversized"
    assert cause_of(receiver.open, plain_with([3, 1, metadata])) == "oversized"
    assert cause_of(receiver.open_stream, plain_with([11, False, metadata, 1, 0], kind=2)) == "oversized"


@pytest.mark.parametrize(
    ("name", "payload", "cause"),
    [
        ("n" * (EVENT_NAME_CHARACTERS_MAX + 1), b"", "oversized"),
        ("name", bytes(EVENT_PAYLOAD_BYTES_MAX + 1), "oversized"),
        ("", b"", "malformed"),
        ("two\nlines", b"", "malformed"),
    ],
)
def test_an_event_beyond_its_bounds_is_refused_on_encode_and_on_decode(name, payload, cause):
    event = UserEvent("n1", 1, 1, name, payload)
    assert cause_of(lambda _: encode_message(event), b"") == cause
    assert cause_of(envelope("n2").open, plain_with([10, *event])) == "malformed"


# --- refusals ---------------------------------------------------------------------------------------


@KEYRINGS
def test_an_oversized_packet_is_refused_whatever_it_holds(keyring):
    receiver = envelope("n2", keyring)
    assert cause_of(receiver.open, bytes(PACKET_BYTES_MAX + 1)) == "oversized"
    assert cause_of(receiver.open_stream, bytes(STREAM_BYTES_MAX + 1)) == "oversized"


@KEYRINGS
def test_no_prefix_of_a_packet_is_accepted(keyring):
    sender, receiver = pair(keyring)
    packet = sender.seal([encode_message(Nack(1))], EPOCH)
    stream = sender.seal_stream([encode_message(Nack(1))], EPOCH)
    shortest = 3 + 7 + 4 if keyring is None else 3 + 12 + 7 + 16
    for length in range(len(packet)):
        cause = "truncated" if length < shortest else "checksum" if keyring is None else "authentication"
        assert cause_of(receiver.open, packet[:length]) == cause
        assert cause_of(receiver.open_stream, stream[:length]) == cause
    assert receiver.open(packet)


@KEYRINGS
def test_any_flipped_bit_is_noticed(keyring):
    sender, receiver = pair(keyring)
    packet = sender.seal([encode_message(Suspect("n3", EPOCH, 1, "n1"))], EPOCH)
    for bit in range(24, len(packet) * 8):
        forged = bytearray(packet)
        forged[bit // 8] ^= 1 << bit % 8
        assert cause_of(receiver.open, bytes(forged)) == ("checksum" if keyring is None else "authentication")
    assert receiver.open(packet)


def test_a_packet_under_another_key_is_refused():
    sender, receiver = envelope("n1", Keyring((NEW,))), envelope("n2", KEYRING)
    assert cause_of(receiver.open, sender.seal([encode_message(Nack(1))], EPOCH)) == "authentication"
    assert cause_of(receiver.open_stream, sender.seal_stream([encode_message(Nack(1))], EPOCH)) == "authentication"


def test_a_cluster_without_keys_refuses_encrypted_packets_and_one_with_keys_refuses_plain_ones():
    without, with_keys = pair()
    with_keys.keyring = KEYRING
    nack = [encode_message(Nack(1))]
    assert cause_of(without.open, with_keys.seal(nack, EPOCH)) == "encrypted"
    assert cause_of(without.open_stream, with_keys.seal_stream(nack, EPOCH)) == "encrypted"
    assert cause_of(with_keys.open, without.seal(nack, EPOCH)) == "plaintext"
    assert cause_of(with_keys.open_stream, without.seal_stream(nack, EPOCH)) == "plaintext"


@KEYRINGS
def test_clusters_of_different_names_refuse_each_other_on_both_sides(keyring):
    ours, theirs = envelope("n1", keyring, "dev"), envelope("n2", keyring, "staging")
    # The name is a part of what the tag covers: under the same key, a foreign packet is not authentic.
    cause = "foreign-cluster" if keyring is None else "authentication"
    nack = [encode_message(Nack(1))]
    for here, there in ((ours, theirs), (theirs, ours)):
        assert cause_of(here.open, there.seal(nack, EPOCH)) == cause
        assert cause_of(here.open_stream, there.seal_stream(nack, EPOCH)) == cause


def test_an_authentic_body_that_names_another_cluster_is_foreign():
    sender, receiver = envelope("n1", KEYRING, "dev"), envelope("n2", KEYRING, "dev")
    sender._names = msgpack.packb("staging") + msgpack.packb("n1")
    assert cause_of(receiver.open, sender.seal([encode_message(Nack(1))], EPOCH)) == "foreign-cluster"


@KEYRINGS
def test_a_node_refuses_what_this_life_of_itself_sent(keyring):
    node = envelope("n1", keyring)
    nack = [encode_message(Nack(1))]
    assert cause_of(node.open, node.seal(nack, EPOCH)) == "own"
    assert cause_of(node.open_stream, node.seal_stream(nack, EPOCH)) == "own"


@KEYRINGS
def test_a_node_hears_another_life_of_its_own_id_so_that_a_name_conflict_is_seen(keyring):
    node, namesake = envelope("n1", keyring), envelope("n1", keyring)
    nack = [encode_message(Nack(1))]
    node.seal(nack, EPOCH)
    packet = namesake.seal(nack, EPOCH + 1)
    assert node.open(packet) == Packet("n1", EPOCH + 1, (Nack(1),), len(packet))


@KEYRINGS
def test_another_schema_version_is_refused_before_anything_else_is_read(keyring):
    receiver = envelope("n2", keyring)
    packet = plain_with([4, 1])
    for version in (0, SCHEMA_VERSION - 1, SCHEMA_VERSION + 1, 255):
        assert cause_of(receiver.open, packet[:1] + bytes((version,)) + packet[2:]) == "version"
        assert cause_of(receiver.open_stream, packet[:1] + bytes((version,)) + packet[2:]) == "version"


def test_another_magic_or_kind_is_malformed():
    receiver = envelope("n2")
    body = msgpack.packb(["dev", "n1", EPOCH, 1, [4, 1]])
    assert cause_of(receiver.open, plain(body, magic=0x5B)) == "malformed"
    for kind in range(256):
        if kind > 1:
            assert cause_of(receiver.open, plain(body, kind)) == "malformed"
        if kind not in {2, 3, 6, 7}:
            assert cause_of(receiver.open_stream, plain(body, kind)) == "malformed"


@pytest.mark.parametrize(
    "head",
    [
        (1, "n1", EPOCH, 1), ("", "n1", EPOCH, 1), ("a b", "n1", EPOCH, 1), ([], "n1", EPOCH, 1), ({}, "n1", EPOCH, 1),
        ("dev", 1, EPOCH, 1), ("dev", "", EPOCH, 1), ("dev", "n" * 65, EPOCH, 1), ("dev", "n\n", EPOCH, 1),
        ("dev", b"n1", EPOCH, 1), ("dev", {}, EPOCH, 1), ("dev", True, EPOCH, 1),
        ("dev", "n1", -1, 1), ("dev", "n1", COUNT_MAX + 1, 1), ("dev", "n1", True, 1), ("dev", "n1", 1.0, 1),
        ("dev", "n1", EPOCH, -1), ("dev", "n1", EPOCH, COUNT_MAX + 1), ("dev", "n1", EPOCH, False),
        ("dev", "n1", EPOCH, None), ("dev", "n1", EPOCH), ("dev",), (),
    ],
)  # fmt: skip
def test_a_packet_with_a_bad_head_is_malformed(head):
    receiver = envelope("n2")
    assert cause_of(receiver.open, plain_with([4, 1], head=head)) in {"malformed", "truncated"}
    assert cause_of(receiver.open_stream, plain_with([4, 1], head=head, kind=2)) in {"malformed", "truncated"}


@pytest.mark.parametrize(
    "message",
    [
        [], None, 4, "Nack", b"", {}, [True, 1], ["4", 1], [4.0, 1], [0, 1], [12, 1], [255], [-1], [[4], 1], [{}, 1],
        [4], [4, 1, 1], [4, -1], [4, COUNT_MAX + 1], [4, 1.0], [4, True], [4, None], [4, []], [4, {}],
        [1, 1], [1, 1, "n1", 1], [1, "n1", 1], [1, 1, ""], [1, 1, "a b"], [1, 1, b"n1"], [1, 1, "n" * 65],
        [1, True, "n1"], [1, 1, ["n1"]], [1, 1, {}],
        [2, 1, None], [2, 1, b"1234567", 0], [2, 1, "12345678", 0], [2, 1, b"", 0], [2, 1, 0, 0], [2, 1, None, -1],
        [2, 1, None, LAG_MS_MAX + 1], [2, 1, None, 0.5], [2, 1, None, True], [2, False, None, 0],
        [3, 1, MEMBER_FIELDS], [3, 1, "n1"], [3, True, member_bytes()],
        [5, member_bytes(), 1, 1], [5, member_bytes()], [5, member_bytes(), -1], [5, member_bytes(), True],
        [5, MEMBER_FIELDS, 1], [5, b"", 1], [5, None, 1], [5, {}, 1], [5, member_bytes().decode("latin-1"), 1],
        [6, "n1", 1, 1], [6, "n1", 1, 1, "n2", 1], [6, "", 1, 1, "n2"], [6, "n1", True, 1, "n2"],
        [6, "n1", 1, -1, "n2"], [6, "n1", 1, 1, 2],
        [7, "n1", 1], [7, "n1", 1, 1, "n2"], [7, "n1", 1, None], [7, "n1", "1", "n2"], [7, 1, 1, "n2"],
        [8, "n1", 1, 1], [8, "n1", 1, 1, ""], [8, "n1", 1, 1.0, "n2"], [8, "n1", COUNT_MAX + 1, 1, "n2"],
        [9, "n1", 1], [9, "n1", 1, 1, "n2"], [9, None, 1, 1], [9, "n1", 1, False],
        [10, "n1", 1, 1, "name"], [10, "n1", 1, 0, "name", b""], [10, "n1", 1, 1, b"name", b""],
        [10, "n1", 1, 1, "name", "payload"], [10, "n1", True, 1, "name", b""], [10, "n1", 1, True, "name", b""],
        [10, "", 1, 1, "name", b""], [10, "n1", 1, 1, "\x7f", b""],
        [11], [11, 1], [11, False, member_bytes()], [11, False, member_bytes(), 1], [11, False, member_bytes(), 1, 4],
        [11, False, member_bytes(), 1, -1], [11, False, member_bytes(), 1, True],
        [11, False, member_bytes(), 1, "dead"], [11, False, member_bytes(), True, 1], [11, False, b"", 1, 1],
        [11, False, [member_bytes(), 1, 1]],
        msgpack.ExtType(1, b""), [4, msgpack.ExtType(1, b"")], [4, msgpack.ExtType(1, b"1")], [4, msgpack.Timestamp(1)],
    ],
)  # fmt: skip
def test_a_malformed_message_is_refused_with_all_beside_it(message):
    receiver = envelope("n2")
    assert cause_of(receiver.open, plain_with([4, 1], message)) == "malformed"
    assert cause_of(receiver.open_stream, plain_with([4, 1], message, kind=2)) == "malformed"


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, ""), (0, "a b"), (0, "n" * 65), (0, 1), (0, b"n1"), (0, None), (0, []),
        (1, ""), (1, "host"), (1, "host:"), (1, ":1"), (1, "host:65536"), (1, "a b:1"), (1, "h\x00:1"), (1, "hé:1"),
        (1, b"h:1"), (2, "h" * 261 + ":1"), (2, "::1:80"), (3, None), (3, 1),
        (4, -1), (4, COUNT_MAX + 1), (4, 1.0), (4, True), (4, "1"),
        (5, 0.09), (5, 10.1), (5, float("nan")), (5, float("inf")), (5, True), (5, "1"), (5, None),
        (6, "a b"), (6, "z" * 65), (6, None), (6, 0), (6, b""),
        (7, -1), (7, 3), (7, True), (7, "serving"), (7, 1.0),
        (8, 0), (8, 2), (8, True), (8, 1.0), (9, 0), (9, 65536), (9, True), (9, None),
    ],
)  # fmt: skip
def test_a_member_with_a_bad_field_is_malformed_even_when_an_equal_good_one_is_known(index, value):
    receiver = envelope("n2")
    assert receiver.open(plain_with([5, member_bytes(), 1])).messages == (Alive(MEMBER, 1),)
    assert cause_of(receiver.open, plain_with([5, member_bytes(index, value), 1])) == "malformed"
    assert cause_of(receiver.open, plain_with([3, 1, member_bytes(index, value)])) == "malformed"
    stream = plain_with([11, False, member_bytes(index, value), 1, 0], kind=2)
    assert cause_of(receiver.open_stream, stream) == "malformed"


@pytest.mark.parametrize(
    "encoded",
    [
        msgpack.packb(MEMBER_FIELDS[:9]), msgpack.packb([*MEMBER_FIELDS, 1]), msgpack.packb(1), msgpack.packb({}),
        msgpack.packb("n1"), member_bytes() + b"\x01", member_bytes()[:-1], b"", b"\xc1", b"\xdc\x00\xff",
    ],
)  # fmt: skip
def test_a_member_that_is_no_array_of_ten_is_malformed(encoded):
    assert cause_of(envelope("n2").open, plain_with([5, encoded, 1])) == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1" * 9,
        msgpack.packb(["dev", "n1", EPOCH, 1, [4, 1]]) + b"\x00",
        msgpack.packb(["dev", "n1", EPOCH, 1, [4, 1]])[:-1],
        msgpack.packb(["dev", "n1", EPOCH, 1]),
        msgpack.packb({"dev": 1, "n1": 2, "message": 3}),
        msgpack.packb("devn1 and more"),
        msgpack.packb(["dev", "n1", EPOCH, 1, [4, 1], *([[4, 1]] * MESSAGES_MAX)]),
        msgpack.packb(["dev", "n1", EPOCH, 1, {1: 2}]),
        msgpack.packb(["dev", "n1", EPOCH, 1, [10, "n1", 1, 1, "s" * 513, b""]]),
        msgpack.packb(["dev", "n1", EPOCH, 1, [10, "n1", 1, 1, b"\xff", b""]]).replace(b"\xc4\x01\xff", b"\xa1\xff"),
    ],
    ids=range(10),
)
def test_a_body_that_is_not_one_exact_array_is_malformed(body):
    receiver = envelope("n2")
    assert cause_of(receiver.open, plain(body)) == "malformed"
    assert cause_of(receiver.open_stream, plain(body, 2)) == "malformed"
    assert cause_of(receiver.open_stream, plain(zlib.compress(body), 6)) == "malformed"


def test_a_sync_belongs_in_a_stream_only():
    sender, receiver = pair()
    sync = Sync((SyncEntry(MEMBER, 1, "alive"),), True)
    assert cause_of(receiver.open, sender.seal([encode_message(sync)], EPOCH)) == "malformed"


# --- compression ------------------------------------------------------------------------------------


def allocated_peak(call: Callable[[], object]) -> int:
    """Bytes that a call had allocated at most at once; a WireError is a fine end of it."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
    except WireError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("inflated_mib", [1, 2, 64])
def test_a_decompression_bomb_is_refused_before_it_is_large(inflated_mib):
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(inflated_mib)) + packer.compress(b"\x00")
    data = plain(bomb + packer.flush(), 6)
    receiver = envelope("n2")
    assert cause_of(receiver.open_stream, data) == "oversized"
    assert allocated_peak(lambda: receiver.open_stream(data)) < MIB / 2


def test_a_broken_compressed_body_is_malformed():
    receiver = envelope("n2")
    whole = zlib.compress(msgpack.packb(["dev", "n1", EPOCH, 1, [4, 1]]))
    assert receiver.open_stream(plain(whole, 6)).messages == (Nack(1),)
    for broken in (whole[:-1], whole + b"\x00", b"\x00" + whole, whole[:10], zlib.compress(b""), whole[:-4] + bytes(4)):
        assert cause_of(receiver.open_stream, plain(broken, 6)) == "malformed"


# --- arbitrary bytes --------------------------------------------------------------------------------


def open_quietly(receiver: Envelope, data: bytes) -> None:
    for call in (receiver.open, receiver.open_stream):
        try:
            call(data)
        except WireError as error:
            assert error.cause in CAUSES  # noqa: PT017 - both ends are fine, but nothing else is


CAUSES = {
    "oversized", "truncated", "version", "checksum", "plaintext", "encrypted", "authentication", "foreign-cluster",
    "replayed", "malformed", "own",
}  # fmt: skip

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=40)
    | st.sampled_from(["n1", member_bytes()]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(data=st.binary(max_size=PACKET_BYTES_MAX), kind=st.sampled_from([0, 2, 6]))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(data, kind):
    for keyring in (None, KEYRING):
        open_quietly(envelope("n2", keyring), data)
        open_quietly(envelope("n2", keyring), bytes((MAGIC, SCHEMA_VERSION, kind)) + data)
    open_quietly(envelope("n2"), plain(data, kind))


@given(kind=st.integers(0, 12), fields=st.lists(values, max_size=6), several=st.lists(values, max_size=3))
def test_arbitrary_fields_raise_nothing_but_wire_errors(kind, fields, several):
    for packet_kind in (0, 2):
        open_quietly(envelope("n2"), plain_with([kind, *fields], kind=packet_kind))
        open_quietly(envelope("n2"), plain_with(*several, kind=packet_kind))
        open_quietly(envelope("n2"), plain_with([4, 1], head=(*fields[:4],), kind=packet_kind))


@given(
    several=st.lists(messages, min_size=1, max_size=3),
    sync=syncs,
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)), min_size=1
    ),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_mutated_packets_raise_nothing_but_wire_errors_and_allocate_little(several, sync, changes):
    for keyring in (None, KEYRING):
        sender, receiver = pair(keyring)
        body = sender._body([encode_message(message) for message in several], EPOCH)
        stream = sender._body([encode_message(sync)], EPOCH)
        for kind, content in ((0, body), (2, stream), (6, zlib.compress(stream))):
            mutated = bytearray(content)
            for place, inserted, removed in changes:
                at = int(place * len(mutated))
                mutated[at : at + removed] = inserted
            # As a whole with a right checksum or tag, so that the decoders see it; and then as it would arrive.
            authentic = sender._protected(kind, bytes(mutated))
            at = int(changes[0][0] * len(authentic))
            for data in (authentic, authentic[:at] + changes[0][1] + authentic[at + changes[0][2] :]):
                open_quietly(receiver, data)


def worst_bodies() -> dict[str, bytes]:
    deep = b"\xdc\x01\x00"
    return {
        "nested arrays of the longest claim": deep * 460,
        "nested arrays in the place of a message": msgpack.packb(["dev", "n1", 1, 1])[1:].join((b"\x95", deep * 450)),
        "arrays of one": b"\xdc\x01\x00" + b"\x9f" + b"\x91\x00" * 690,
        "strings of two": b"\xdc\x01\x00" + b"\xa2ab" * 255,
        "a claim without content": b"\xdd\xff\xff\xff\xff" + bytes(20),
        "a text without content": b"\xdb\xff\xff\xff\xff" + bytes(20),
        "a binary without content": b"\xc6\xff\xff\xff\xff" + bytes(20),
        "a map without content": b"\xdf\xff\xff\xff\xff" + bytes(20),
        "an extension without content": b"\xc9\xff\xff\xff\xff\x01" + bytes(20),
    }


@pytest.mark.parametrize("name", worst_bodies())
@KEYRINGS
def test_no_packet_allocates_more_than_a_mebibyte(name, keyring):
    sender, receiver = pair(keyring)
    packet = sender._protected(0, worst_bodies()[name][: PACKET_BYTES_MAX - 31])
    assert len(packet) <= PACKET_BYTES_MAX
    assert allocated_peak(lambda: receiver.open(packet)) < MIB
    assert cause_of(receiver.open, packet) in {"malformed", "replayed"}


@given(data=st.binary(min_size=1, max_size=PACKET_BYTES_MAX))
@settings(max_examples=50)
def test_arbitrary_bytes_allocate_no_more_than_a_mebibyte(data):
    receiver = envelope("n2")
    packet = plain(data[: PACKET_BYTES_MAX - 7])
    assert allocated_peak(lambda: receiver.open(packet)) < MIB


@pytest.mark.parametrize(
    "filling",
    [
        b"\xdd\x00\x00\x08\x00", b"\x9f" + b"\x91\x00" * 15, b"\xa2ab", b"\xd9\x28" + b"a" * 40, b"\xcd\x01\x01",
        b"\xc4\x01a", b"\xc4\x28" + bytes(40), b"\x80",
    ],
    ids=["claims", "small arrays", "texts", "longer texts", "numbers", "binaries", "longer binaries", "maps"],
)  # fmt: skip
def test_no_malformed_stream_allocates_more_than_a_mebibyte(filling):
    # A sync of as many fields as there may be, in the longest stream; then the same compressed to a few KiB.
    head = b"\x95" + msgpack.packb(["dev", "n1", EPOCH, 1])[1:] + b"\xdc\x18\x02\x0b\xc2"
    body = (head + filling * (STREAM_BYTES_MAX // len(filling)))[: STREAM_BYTES_MAX - 7]
    receiver = envelope("n2")
    for data in (plain(body, 2), plain(zlib.compress(body), 6)):
        assert cause_of(receiver.open_stream, data) == "malformed"
        assert allocated_peak(lambda data=data: receiver.open_stream(data)) < MIB


def test_what_is_remembered_of_checked_members_and_ids_is_bounded(monkeypatch):
    monkeypatch.setattr(wire, "_members", {})
    monkeypatch.setattr(wire, "_ids", {})
    receiver = envelope("n2")
    for number in range(wire._REMEMBERED_MAX + 10):
        member = packed(Member(f"n{number}", "h:1", "h:2", "h:3", 1))
        receiver.open(plain_with([5, member, 1], [1, 1, f"n{number}"]))
        assert len(wire._members) <= wire._REMEMBERED_MAX
        assert len(wire._ids) <= wire._REMEMBERED_MAX
    assert len(wire._members) < 100, "cleared when full"


def test_a_member_that_is_named_twice_is_checked_once():
    receiver = envelope("n2")
    packet = plain_with([5, member_bytes(), 1])
    (first,), (second,) = (receiver.open(packet).messages for _ in range(2))
    assert first.member is second.member


# --- replay -----------------------------------------------------------------------------------------


def test_a_packet_or_stream_that_comes_twice_is_replayed_in_a_cluster_with_keys():
    sender, receiver = pair(KEYRING)
    nack = [encode_message(Nack(1))]
    for seal, opening in ((sender.seal, receiver.open), (sender.seal_stream, receiver.open_stream)):
        packet = seal(nack, EPOCH)
        assert opening(packet)
        assert cause_of(opening, packet) == "replayed"


def test_without_keys_a_packet_that_the_network_doubles_is_accepted_twice():
    sender, receiver = pair()
    packet = sender.seal([encode_message(Nack(1))], EPOCH)
    assert receiver.open(packet) == receiver.open(packet)


def test_packets_may_come_late_within_the_window_and_not_beyond_it():
    sender, receiver = pair(KEYRING)
    packets = [sender.seal([encode_message(Nack(1))], EPOCH) for _ in range(REPLAY_WINDOW + 1)]
    assert receiver.open(packets[-1])
    assert cause_of(receiver.open, packets[0]) == "replayed"
    for packet in packets[1:-1]:
        assert receiver.open(packet)
    for packet in packets:
        assert cause_of(receiver.open, packet) == "replayed"


def test_a_packet_of_an_older_life_is_replayed():
    sender, receiver = pair(KEYRING)
    nack = [encode_message(Nack(1))]
    older, newer = sender.seal(nack, EPOCH), sender.seal(nack, EPOCH + 1)
    assert receiver.open(newer).epoch == EPOCH + 1
    assert cause_of(receiver.open, older) == "replayed"


def test_a_newer_life_may_begin_again_at_any_sequence():
    receiver = envelope("n2", KEYRING)
    nack = [encode_message(Nack(1))]
    first_life, second_life = envelope("n1", KEYRING), envelope("n1", KEYRING)
    for _ in range(5):
        receiver.open(first_life.seal(nack, EPOCH))
    assert receiver.open(second_life.seal(nack, EPOCH + 1))


def test_a_forged_packet_does_not_move_the_window():
    sender, receiver = pair(KEYRING)
    nack = [encode_message(Nack(1))]
    packet = sender.seal(nack, EPOCH)
    sender._sequence = COUNT_MAX - 1
    forged = bytearray(sender.seal(nack, EPOCH + 9))
    forged[-1] ^= 1
    assert cause_of(receiver.open, bytes(forged)) == "authentication"
    assert receiver.open(packet)


@given(sequences=st.lists(st.integers(0, 3000) | st.integers(COUNT_MAX - 1100, COUNT_MAX), max_size=60))
def test_the_window_admits_what_a_set_of_all_sequences_would(sequences):
    window = ReplayWindow()
    seen: set[int] = set()
    for sequence in sequences:
        new = sequence not in seen and sequence > max(seen, default=-1) - REPLAY_WINDOW
        assert window.admit("n1", 1, sequence) is new
        seen |= {sequence} if new else set()


def test_the_sender_heard_least_recently_is_forgotten_first():
    window = ReplayWindow()
    for number in range(REPLAY_SENDERS_MAX):
        assert window.admit(f"n{number}", 1, 1)
    assert window.admit("n0", 1, 2)
    assert not window.admit("n1", 1, 1), "a replay is not a sign of life"
    assert window.admit("one more", 1, 1)
    assert len(window._senders) == REPLAY_SENDERS_MAX
    assert not window.admit("n0", 1, 1)
    assert window.admit("n1", 1, 1), "forgotten"


# --- keys -------------------------------------------------------------------------------------------


def line(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_a_keyring_is_read_line_by_line():
    text = f"# gossip keys\r\n\n  {line(NEW)}  \r\n# the old one\n{line(OLD)}\n{line(NEW)}"
    assert Keyring.parse(text) == Keyring((NEW, OLD))
    assert Keyring.parse("\n".join(map(line, (bytes((i,)) * 32 for i in range(KEYS_MAX)))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "gossip keyring: no key in it; one base64 key of 32 bytes a line is expected"),
        ("# nothing\n\n", "gossip keyring: no key in it; one base64 key of 32 bytes a line is expected"),
        (f"{line(OLD)}\n\n!!!", "gossip keyring, line 3: not base64"),
        (f"# comment\n{line(OLD)[:-1]}", "gossip keyring, line 2: not base64"),
        (f"{line(OLD)} # inline", "gossip keyring, line 1: not base64"),
        ("schlüssel", "gossip keyring, line 1: not base64"),
        (line(bytes(16)), "gossip keyring, line 1: a key of 16 bytes, 32 expected"),
        (f"{line(OLD)}\n{line(bytes(33))}", "gossip keyring, line 2: a key of 33 bytes, 32 expected"),
        ("\n".join(line(bytes((i,)) * 32) for i in range(17)), "gossip keyring, line 17: more than 16 keys"),
    ],
)
def test_a_bad_keyring_gives_one_clear_line(text, expected):
    with pytest.raises(ConfigError) as raised:
        Keyring.parse(text)
    assert str(raised.value) == expected


@given(text=st.text() | st.lists(st.binary(max_size=40).map(line)).map("\n".join))
def test_any_text_is_a_keyring_or_one_line_of_error(text):
    try:
        assert Keyring.parse(text).keys
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are fine


def test_a_keyring_does_not_show_its_keys():
    assert repr(KEYRING) == "Keyring()"


def test_rotation_of_a_live_cluster_refuses_no_packet_in_flight():
    nodes = [envelope(f"n{i}", Keyring((OLD,))) for i in range(2)]
    nack = [encode_message(Nack(1))]
    steps = [Keyring((OLD,)), Keyring((OLD, NEW)), Keyring((NEW, OLD)), Keyring((NEW,))]
    for step in steps[1:]:
        for changing in nodes:  # One node after the other, so that they differ in between.
            # What flies while a node changes its keys comes both before and after.
            in_flight = [
                (node.seal(nack, EPOCH), node.seal_stream(nack, EPOCH), node.seal(nack, EPOCH)) for node in nodes
            ]
            for node, (first, _, _) in zip(reversed(nodes), in_flight, strict=True):
                assert node.open(first)
            changing.keyring = step
            for node, (_, stream, last) in zip(reversed(nodes), in_flight, strict=True):
                assert node.open_stream(stream)
                assert node.open(last)
    assert cause_of(nodes[0].open, envelope("n9", Keyring((OLD,))).seal(nack, EPOCH)) == "authentication"


def test_each_packet_takes_fresh_random_bytes_for_its_nonce():
    taken: list[int] = []

    def random_bytes(count: int) -> bytes:
        taken.append(count)
        return bytes((len(taken),)) * count

    sender = Envelope("dev", "n1", KEYRING, random_bytes)
    packets = [sender.seal([encode_message(Nack(1))], EPOCH) for _ in range(3)]
    assert taken == [12, 12, 12]
    assert [packet[3:15] for packet in packets] == [bytes((i,)) * 12 for i in (1, 2, 3)]
