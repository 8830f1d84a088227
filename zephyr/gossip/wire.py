"""Gossip as bytes: messages, the packets that carry them, and the keys that keep strangers out.

Decides whether bytes are gossip of this cluster, and what they say. Never decides what a message means for
anybody, and never holds a socket or a clock.

A packet is a datagram of at most `PACKET_BYTES_MAX`; a stream packet is longer and travels by TCP:

    byte 0   magic 0x5A
    byte 1   schema version
    byte 2   kind: 0 plain, 1 encrypted; of a stream 2 plain, 3 encrypted; of a stream with a zlib body 6 and 7
    plain    body, CRC-32 of all before (4 bytes, big-endian)
    else     nonce (12 bytes), AES-256-GCM of the body with its tag (16 bytes); additional data: bytes 0 to 2, cluster

    body     [cluster, sender, boot epoch, sequence, message, message, ...]
    message  [type, field, ...]
    member   binary: [id, http, gossip, peer, epoch, weight, zone, state, protocol_min, protocol_max]

All arrays are msgpack. A member stands inside its message as binary, so that reading a packet that names known
members costs one lookup for each, and so that its length is checked before it is read. Whoever changes any of this
raises `SCHEMA_VERSION`: within one version, everything is exact, and unknown types are refused.

Sequences take the same room whatever they count, and an ack without a digest has nothing in its place, so that a plain
ack is never longer than the ping that it answers: a forged address gains nothing by having this node answer it.

Invariants:
- Nothing is read before it is authentic: by its key, or by its checksum where the cluster has no keys (which keeps
  out accidents, not enemies).
- What an `Envelope` hands out has the types and ranges that `zephyr.gossip.messages` states, in packets of
  this cluster, that this life of this node did not send itself. Anything else raises WireError, and nothing of that
  packet is handed out. A packet cut on its way shows as a wrong checksum or tag, unless it is too short to have one.
- No packet makes `open`, and no stream that is refused makes `open_stream`, allocate more than 1 MiB.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zephyr.errors import ConfigError, WireError
from zephyr.gossip.messages import (
    Ack,
    Alive,
    Dead,
    Exit,
    GossipMessage,
    GossipState,
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
from zephyr.model import Member, NodeId
from zephyr.wire import MEMBER_STATES, checked_member, is_id

MAGIC = 0x5A
SCHEMA_VERSION = 2

PACKET_BYTES_MAX = 1400
"""Fits one Ethernet frame with room for IPv6 and a tunnel's headers: IP fragments are lost together."""
STREAM_BYTES_MAX = 1 << 18
"""Compressed and decompressed alike: `SYNC_ENTRIES_MAX` members of usual length."""
MESSAGES_MAX = 252
"""Messages in a packet. With the head's four fields, 256 array items: msgpack allocates an array when it reads its
header, and nested headers of 3 bytes that claim this many cost a packet's reader just under 1 MiB in all."""
STREAM_MESSAGES_MAX = 16
"""A stream carries one message; the rest is room."""
METADATA_BYTES_MAX = 512
"""Longest member: two of them still fit into one packet."""
SYNC_ENTRIES_MAX = 2048
"""Ten times the largest ring: members that died or left are remembered too."""
COUNT_MAX = (1 << 63) - 1
"""Of epochs, incarnations and sequences."""
RING_DIGEST_BYTES = 8
LAG_MS_MAX = 600_000
"""A longer lag is sent as this one: ten minutes late is as late as can be."""
EVENT_NAME_CHARACTERS_MAX = 64
EVENT_PAYLOAD_BYTES_MAX = 512

KEY_BYTES = 32
KEYS_MAX = 16
"""Rotation needs two. Each key makes refusing a stranger's packet dearer."""
NONCE_BYTES = 12
TAG_BYTES = 16
CHECKSUM_BYTES = 4
REPLAY_WINDOW = 1024
"""Sequences that a packet may be late by: seconds of a busy member's packets."""
REPLAY_SENDERS_MAX = 1024
"""Five times the largest ring."""

SYNC_BYTES_MAX = STREAM_BYTES_MAX - 256
"""Longest encoded sync: with the longest names and an encryption's tag it still is a stream packet."""

_HEADER_BYTES = 3
_BODY_BYTES_MIN = 7
"""Array header, two ids of one character, two counts."""
_HEAD_FIELDS = 4
_SYNC = 11
"""Number of its type: the one message that is read in parts, and in streams only."""
_MEMBER_FIELDS = 10
_MESSAGE_FIELDS_MAX = 6
"""But for a sync."""
_SYNC_FIELDS_MAX = 2 + 3 * SYNC_ENTRIES_MAX
_STRING_BYTES_MAX = 512
"""An address is the longest string."""
_BINARY_BYTES_MAX = 1200
_REMEMBERED_MAX = 4096
"""Members and ids whose check is not repeated: twice what a sync may name, under 6 MiB."""
_COMPRESSED_BYTES_MIN = 512
"""Shorter bodies fit one segment anyway."""
_PIECE_BYTES = 1 << 16
"""Of a stream that are decompressed or read at a time."""

_PLAIN, _ENCRYPTED = 0, 1
_STREAM = 2
_COMPRESSED = 4

_pack: Callable[[Any], bytes] = msgpack.Packer().pack

# --- messages to bytes ------------------------------------------------------------------------------

_MEMBER_STATE_NUMBERS = {state: number for number, state in enumerate(MEMBER_STATES)}
_GOSSIP_STATES: tuple[GossipState, ...] = ("alive", "suspect", "dead", "left")
_GOSSIP_STATE_NUMBERS: dict[GossipState, int] = {state: number for number, state in enumerate(_GOSSIP_STATES)}


def encode_message(message: GossipMessage) -> bytes:
    """Return a message's bytes, to stand in a packet; a `Sync` only in a stream.

    Raises WireError("oversized") when a member is longer than `METADATA_BYTES_MAX`, a sync has more than
    `SYNC_ENTRIES_MAX` entries, or an event more than its bounds; WireError("malformed") for an event's
    unprintable name.
    """
    return _ENCODERS[type(message)](message)


def _encode_member(member: Member) -> bytes:
    encoded = _pack(
        (
            member.id,
            member.http,
            member.gossip,
            member.peer,
            member.epoch,
            float(member.weight),
            member.zone,
            _MEMBER_STATE_NUMBERS[member.state],
            *member.protocol,
        )
    )
    if len(encoded) > METADATA_BYTES_MAX:
        raise WireError("oversized", f"{len(encoded)} bytes of metadata of {member.id}, at most {METADATA_BYTES_MAX}")
    return encoded


def _encode_plainly(number: int, message: tuple[Any, ...]) -> bytes:
    return _pack((number, *message))


def _encode_ack(message: Ack) -> bytes:
    assert len(message.ring_digest) in (0, RING_DIGEST_BYTES)
    return _pack((2, message.sequence, message.ring_digest or None, min(message.lag_ms, LAG_MS_MAX)))


def _encode_ping_request(message: PingRequest) -> bytes:
    return _pack((3, message.sequence, _encode_member(message.target)))


def _encode_alive(message: Alive) -> bytes:
    return _pack((5, _encode_member(message.member), message.incarnation))


def _encode_user_event(message: UserEvent) -> bytes:
    if len(message.name) > EVENT_NAME_CHARACTERS_MAX or len(message.payload) > EVENT_PAYLOAD_BYTES_MAX:
        raise WireError(
            "oversized",
            f"an event of {len(message.name)} characters and {len(message.payload)} bytes, at most "
            f"{EVENT_NAME_CHARACTERS_MAX} and {EVENT_PAYLOAD_BYTES_MAX}",
        )
    if not _is_event_name(message.name):
        raise WireError("malformed", f"name of an event: {message.name!r}")
    return _pack((10, *message))


def _encode_sync(message: Sync) -> bytes:
    if len(message.entries) > SYNC_ENTRIES_MAX:
        raise WireError("oversized", f"a sync of {len(message.entries)} entries, at most {SYNC_ENTRIES_MAX}")
    fields: list[Any] = [_SYNC, message.is_join]
    for member, incarnation, state in message.entries:
        fields += (_encode_member(member), incarnation, _GOSSIP_STATE_NUMBERS[state])
    return _pack(fields)


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    Ping: partial(_encode_plainly, 1),
    Ack: _encode_ack,
    PingRequest: _encode_ping_request,
    Nack: partial(_encode_plainly, 4),
    Alive: _encode_alive,
    Suspect: partial(_encode_plainly, 6),
    Exit: partial(_encode_plainly, 7),
    Dead: partial(_encode_plainly, 8),
    Left: partial(_encode_plainly, 9),
    UserEvent: _encode_user_event,
    Sync: _encode_sync,
}

# --- bytes to messages ------------------------------------------------------------------------------
# Decoders raise ValueError with what is wrong; `_message` makes it a WireError.


_SCALAR_BOUNDS: dict[str, Any] = {
    "raw": False,
    "use_list": False,
    "max_map_len": 0,
    "max_str_len": _STRING_BYTES_MAX,
    "max_bin_len": _BINARY_BYTES_MAX,
    # An extension may be empty still, as may a map: no check below lets one through.
    "max_ext_len": 0,
}
_unpack: Callable[[bytes], Any] = partial(msgpack.unpackb, max_array_len=_HEAD_FIELDS + MESSAGES_MAX, **_SCALAR_BOUNDS)
_unpack_member: Callable[[bytes], Any] = partial(msgpack.unpackb, max_array_len=_MEMBER_FIELDS, **_SCALAR_BOUNDS)
_UNPACK_ERRORS = (ValueError, TypeError, msgpack.UnpackException)

# What was checked once: a check depends on nothing but the bytes, so all envelopes of a process share these.
_members: dict[bytes, Member] = {}
_ids: dict[str, NodeId] = {}


def _member(encoded: Any) -> Member:
    if type(encoded) is not bytes:
        raise ValueError("a member that is not binary")
    return _members.get(encoded) or _read_member(encoded)


def _read_member(encoded: bytes) -> Member:
    if len(encoded) > METADATA_BYTES_MAX:
        raise WireError("oversized", f"{len(encoded)} bytes of metadata, at most {METADATA_BYTES_MAX}")
    try:
        fields = _unpack_member(encoded)
    except _UNPACK_ERRORS as error:
        raise ValueError(f"msgpack of a member: {error}") from None
    if type(fields) is not tuple or len(fields) != _MEMBER_FIELDS:
        raise ValueError("a member is an array of 10 elements")
    *names, state, protocol_min, protocol_max = fields
    if type(state) is not int or not 0 <= state < len(MEMBER_STATES):
        raise ValueError("state of a member")
    member = checked_member((*names, MEMBER_STATES[state], (protocol_min, protocol_max)))
    if len(_members) >= _REMEMBERED_MAX:
        _members.clear()
    _members[encoded] = member
    return member


def _id(value: Any) -> NodeId:
    if type(value) is not str:
        raise ValueError("an id that is no text")
    return _ids.get(value) or _read_id(value)


def _read_id(value: str) -> NodeId:
    if not is_id(value):
        raise ValueError("id")
    if len(_ids) >= _REMEMBERED_MAX:
        _ids.clear()
    _ids[value] = value
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise ValueError("a count out of range")
    return value


def _is_event_name(name: Any) -> bool:
    # It is logged and shown, so it must be one line.
    return type(name) is str and 0 < len(name) <= EVENT_NAME_CHARACTERS_MAX and name.isprintable()


def _decode_ping(fields: tuple[Any, ...]) -> Ping:
    _, sequence, target = fields
    return Ping(_count(sequence), _id(target))


def _decode_ack(fields: tuple[Any, ...]) -> Ack:
    _, sequence, ring_digest, lag_ms = fields
    if ring_digest is not None and (type(ring_digest) is not bytes or len(ring_digest) != RING_DIGEST_BYTES):
        raise ValueError("ring digest of an ack")
    if type(lag_ms) is not int or not 0 <= lag_ms <= LAG_MS_MAX:
        raise ValueError("lag of an ack")
    return Ack(_count(sequence), ring_digest or b"", lag_ms)


def _decode_ping_request(fields: tuple[Any, ...]) -> PingRequest:
    _, sequence, target = fields
    return PingRequest(_count(sequence), _member(target))


def _decode_nack(fields: tuple[Any, ...]) -> Nack:
    _, sequence = fields
    return Nack(_count(sequence))


def _decode_alive(fields: tuple[Any, ...]) -> Alive:
    _, member, incarnation = fields
    return Alive(_member(member), _count(incarnation))


def _decode_suspect(fields: tuple[Any, ...]) -> Suspect:
    _, node_id, epoch, incarnation, accuser = fields
    return Suspect(_id(node_id), _count(epoch), _count(incarnation), _id(accuser))


def _decode_exit(fields: tuple[Any, ...]) -> Exit:
    _, node_id, epoch, observer = fields
    return Exit(_id(node_id), _count(epoch), _id(observer))


def _decode_dead(fields: tuple[Any, ...]) -> Dead:
    _, node_id, epoch, incarnation, accuser = fields
    return Dead(_id(node_id), _count(epoch), _count(incarnation), _id(accuser))


def _decode_left(fields: tuple[Any, ...]) -> Left:
    _, node_id, epoch, incarnation = fields
    return Left(_id(node_id), _count(epoch), _count(incarnation))


def _decode_user_event(fields: tuple[Any, ...]) -> UserEvent:
    _, origin, epoch, number, name, payload = fields
    if _count(number) == 0:
        raise ValueError("number of an event")
    if not _is_event_name(name):
        raise ValueError("name of an event")
    if type(payload) is not bytes or len(payload) > EVENT_PAYLOAD_BYTES_MAX:
        raise ValueError("payload of an event")
    return UserEvent(_id(origin), _count(epoch), number, name, payload)


def _read_sync(unpacker: Any, size: int) -> Sync:
    """Read what follows the type, entry by entry: what is none must not pile up first."""
    (is_join,) = _taken(unpacker, 1)
    if type(is_join) is not bool or size % 3 != 2:
        raise ValueError("shape of a sync")
    return Sync(tuple([_decode_entry(*_taken(unpacker, 3)) for _ in range(size // 3)]), is_join)


def _decode_entry(member: Any, incarnation: Any, state: Any) -> SyncEntry:
    if type(state) is not int or not 0 <= state < len(_GOSSIP_STATES):
        raise ValueError("state of a sync's entry")
    return SyncEntry(_member(member), _count(incarnation), _GOSSIP_STATES[state])


_Decoders: TypeAlias = Mapping[int, Callable[[tuple[Any, ...]], GossipMessage]]

_DECODERS: _Decoders = {
    1: _decode_ping,
    2: _decode_ack,
    3: _decode_ping_request,
    4: _decode_nack,
    5: _decode_alive,
    6: _decode_suspect,
    7: _decode_exit,
    8: _decode_dead,
    9: _decode_left,
    10: _decode_user_event,
}


def _message(fields: Any) -> GossipMessage:
    """Check one message. Raises WireError."""
    if type(fields) is not tuple or not fields or type(fields[0]) is not int:
        raise WireError("malformed", "a message is an array that begins with its type")
    decode = _DECODERS.get(fields[0])
    if decode is None:
        raise WireError("malformed", f"no message here has type {fields[0]}")
    try:
        return decode(fields)
    except ValueError as error:
        raise WireError("malformed", f"message of type {fields[0]}: {error}") from None


def _read_message(unpacker: Any, size: int) -> GossipMessage:
    """Read one message of a stream, `size` fields long. Raises WireError, or what an unpacker raises."""
    head = _taken(unpacker, min(size, 1))
    if type(head[0] if head else None) is int and head[0] == _SYNC:
        return _read_sync(unpacker, size)
    if size > _MESSAGE_FIELDS_MAX:
        raise WireError("malformed", f"a message of {size} fields")
    return _message(head + _taken(unpacker, size - len(head)))


# --- keys -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of an encrypted cluster: the first encrypts, all decrypt. Their text form never shows them.

    A key may be rotated on a live cluster: append the new one everywhere, then put it first everywhere, then remove
    the old one everywhere. Nonces are random, so one key is good for 2^32 packets of the whole cluster (NIST SP
    800-38D, section 8.3): a year of 130 packets a second.
    """

    keys: tuple[bytes, ...] = field(repr=False)
    """1 to `KEYS_MAX` keys of `KEY_BYTES`."""
    ciphers: tuple[AESGCM, ...] = field(init=False, repr=False, compare=False)
    """One for each key, in order."""

    def __post_init__(self) -> None:
        assert 0 < len(self.keys) <= KEYS_MAX
        assert all(len(key) == KEY_BYTES for key in self.keys)
        object.__setattr__(self, "ciphers", tuple(map(AESGCM, self.keys)))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read one base64 key a line. Blank lines and lines that begin with # are skipped, as are repeated keys.

        Raises ConfigError with one line that names the line, and never shows the key.
        """
        keys: dict[bytes, None] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            content = line.strip()
            if not content or content.startswith("#"):
                continue
            keys[_parse_key(content, number)] = None
            if len(keys) > KEYS_MAX:
                raise ConfigError(f"gossip keyring, line {number}: more than {KEYS_MAX} keys")
        if not keys:
            raise ConfigError("gossip keyring: no key in it; one base64 key of 32 bytes a line is expected")
        return cls(tuple(keys))


def _parse_key(text: str, line: int) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigError(f"gossip keyring, line {line}: not base64") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"gossip keyring, line {line}: a key of {len(key)} bytes, {KEY_BYTES} expected")
    return key


# --- replay -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Heard:
    """Which packets of one sender's newest life have come."""

    epoch: int
    newest: int
    seen: int = 1
    """Bit i: sequence `newest` - i has come."""


class ReplayWindow:
    """Tells a packet that comes for the first time from one that somebody sends again (RFC 4303, section 3.4.3).

    It is asked about authentic packets only. A sender not heard for so long that `REPLAY_SENDERS_MAX` others were heard
    since is forgotten.
    """

    __slots__ = ("_senders",)

    def __init__(self) -> None:
        self._senders: OrderedDict[NodeId, _Heard] = OrderedDict()

    def admit(self, sender: NodeId, epoch: int, sequence: int) -> bool:
        """Tell whether this packet is new, and remember it if it is."""
        heard = self._senders.get(sender)
        if heard is None:
            self._senders[sender] = _Heard(epoch, sequence)
            if len(self._senders) > REPLAY_SENDERS_MAX:
                self._senders.popitem(last=False)
            return True
        if epoch != heard.epoch:
            if epoch < heard.epoch:
                return False
            heard.epoch, heard.newest, heard.seen = epoch, sequence, 1
        elif not _admit_sequence(heard, sequence):
            return False
        self._senders.move_to_end(sender)
        return True


def _admit_sequence(heard: _Heard, sequence: int) -> bool:
    ahead = sequence - heard.newest
    if ahead > 0:
        # A shift by an arbitrary distance could be of 2^63 bits.
        heard.seen = ((heard.seen << ahead) & _WINDOW_MASK) | 1 if ahead < REPLAY_WINDOW else 1
        heard.newest = sequence
        return True
    bit = 1 << -ahead if ahead > -REPLAY_WINDOW else 0
    if not bit or heard.seen & bit:
        return False
    heard.seen |= bit
    return True


_WINDOW_MASK = (1 << REPLAY_WINDOW) - 1

# --- packets ----------------------------------------------------------------------------------------

_ARRAY_HEADERS = tuple(
    bytes((0x90 | items,)) if items < 16 else b"\xdc" + items.to_bytes(2, "big")
    for items in range(_HEAD_FIELDS + MESSAGES_MAX + 1)
)
_PACKET_KINDS = {bytes((MAGIC, SCHEMA_VERSION, kind)): kind for kind in (_PLAIN, _ENCRYPTED)}
_STREAM_KINDS = {
    bytes((MAGIC, SCHEMA_VERSION, kind)): kind
    for packing in (_STREAM, _STREAM | _COMPRESSED)
    for kind in (packing | _PLAIN, packing | _ENCRYPTED)
}
_KIND_HEADERS = {kind: header for header, kind in (_PACKET_KINDS | _STREAM_KINDS).items()}


class Envelope:
    """Seals the packets of one life of one node, and opens those of the others.

    It numbers what it seals, so one node has one envelope; and it knows its own epoch from what it sealed last.
    """

    __slots__ = (
        "_additional",
        "_cluster",
        "_epoch",
        "_head",
        "_names",
        "_random_bytes",
        "_sender",
        "_sequence",
        "_window",
        "keyring",
        "overhead_bytes",
    )

    def __init__(
        self, cluster: str, sender: NodeId, keyring: Keyring | None, random_bytes: Callable[[int], bytes]
    ) -> None:
        """`random_bytes(count)` must be fit for nonces: os.urandom, but for a simulation."""
        assert is_id(cluster)
        assert is_id(sender)
        self.keyring = keyring
        """None: the cluster is not encrypted. May be replaced at any time."""
        self._cluster = cluster
        self._sender = sender
        self._random_bytes = random_bytes
        self._names = _pack(cluster) + _pack(sender)
        self._additional = {kind: header + cluster.encode() for kind, header in _KIND_HEADERS.items()}
        self._epoch = -1
        self._head = b""
        self._sequence = 0
        self._window = ReplayWindow()
        counts_bytes = 2 * 9  # Two counts, 64 bits each.
        array_header_bytes = 3
        self.overhead_bytes: int = (
            _HEADER_BYTES + NONCE_BYTES + array_header_bytes + len(self._names) + counts_bytes + TAG_BYTES
        )
        """At most what `seal` adds to its messages, with whatever keyring."""

    def seal(self, messages: Sequence[bytes], epoch: int) -> bytes:
        """Return a packet of these messages (`encode_message`), at least one. `epoch`: this node's boot epoch.

        Raises WireError("oversized") above `PACKET_BYTES_MAX` or `MESSAGES_MAX`.
        """
        assert messages
        if len(messages) > MESSAGES_MAX:
            raise WireError("oversized", f"{len(messages)} messages for a packet, at most {MESSAGES_MAX}")
        packet = self._protected(0, self._body(messages, epoch))
        if len(packet) > PACKET_BYTES_MAX:
            raise WireError("oversized", f"a packet of {len(packet)} bytes, at most {PACKET_BYTES_MAX}")
        return packet

    def open(self, packet: bytes) -> Packet:
        """Return what an authentic, new packet of another member says. Raises WireError(cause)."""
        body = self._authentic(packet, PACKET_BYTES_MAX, _PACKET_KINDS)
        try:
            fields = _unpack(body)
        except _UNPACK_ERRORS as error:
            raise WireError("malformed", f"msgpack: {error}") from None
        if type(fields) is not tuple or len(fields) <= _HEAD_FIELDS:
            raise WireError("malformed", "a body is an array of four fields and messages")
        sender, epoch = self._admitted(fields[:_HEAD_FIELDS])
        messages = tuple([_message(item) for item in fields[_HEAD_FIELDS:]])
        return Packet(sender, epoch, messages, len(packet))

    def seal_stream(self, messages: Sequence[bytes], epoch: int) -> bytes:
        """Return a stream packet of these messages, at least one, compressed when that pays.

        Raises WireError("oversized") above `STREAM_BYTES_MAX` or `STREAM_MESSAGES_MAX`.
        """
        assert messages
        if len(messages) > STREAM_MESSAGES_MAX:
            raise WireError("oversized", f"{len(messages)} messages for a stream, at most {STREAM_MESSAGES_MAX}")
        body = self._body(messages, epoch)
        if len(body) > STREAM_BYTES_MAX - _HEADER_BYTES - NONCE_BYTES - TAG_BYTES:
            raise WireError("oversized", f"a stream of {len(body)} bytes, at most {STREAM_BYTES_MAX}")
        if len(body) >= _COMPRESSED_BYTES_MIN:
            # The fastest level: ids and addresses repeat so much that higher ones gain little.
            compressed = zlib.compress(body, 1)
            if len(compressed) < len(body):
                return self._protected(_STREAM | _COMPRESSED, compressed)
        return self._protected(_STREAM, body)

    def open_stream(self, data: bytes) -> Packet:
        """Return what an authentic, new stream packet of another member says. Raises WireError(cause)."""
        body = self._authentic(data, STREAM_BYTES_MAX, _STREAM_KINDS)
        if data[2] & _COMPRESSED:
            body = _inflated(body)
        try:
            return self._read_stream(body, len(data))
        except _UNPACK_ERRORS as error:
            raise WireError("malformed", f"msgpack: {error}") from None

    def _read_stream(self, body: bytes, size_bytes: int) -> Packet:
        # Value by value, and no value is an array: small nested arrays would cost forty times their bytes.
        # Read piece by piece, because what is fed to an unpacker is copied.
        unpacker = msgpack.Unpacker(io.BytesIO(body), read_size=_PIECE_BYTES, max_array_len=0, **_SCALAR_BOUNDS)
        items = unpacker.read_array_header()
        if not _HEAD_FIELDS < items <= _HEAD_FIELDS + STREAM_MESSAGES_MAX:
            raise WireError("malformed", f"a body of {items} elements")
        sender, epoch = self._admitted(_taken(unpacker, _HEAD_FIELDS))
        messages = []
        for _ in range(items - _HEAD_FIELDS):
            size = unpacker.read_array_header()
            if size > _SYNC_FIELDS_MAX:
                raise WireError("oversized", f"a message of {size} fields, at most {_SYNC_FIELDS_MAX}")
            messages.append(_read_message(unpacker, size))
        if unpacker.tell() != len(body):
            raise WireError("malformed", "bytes after the last message")
        return Packet(sender, epoch, tuple(messages), size_bytes)

    def _body(self, messages: Sequence[bytes], epoch: int) -> bytes:
        if epoch != self._epoch:
            self._epoch = epoch
            self._head = self._names + _pack(epoch)
        self._sequence += 1
        sequence = self._sequence
        # Five bytes for each of the first 2^32 packets of a life, which are all that one key is good for.
        packed = b"\xce" + sequence.to_bytes(4, "big") if sequence < 1 << 32 else _pack(sequence)
        return b"".join((_ARRAY_HEADERS[_HEAD_FIELDS + len(messages)], self._head, packed, *messages))

    def _protected(self, kind: int, body: bytes) -> bytes:
        keyring = self.keyring
        if keyring is None:
            unchecked = _KIND_HEADERS[kind] + body
            return unchecked + zlib.crc32(unchecked).to_bytes(CHECKSUM_BYTES, "big")
        kind |= _ENCRYPTED
        nonce = self._random_bytes(NONCE_BYTES)
        return _KIND_HEADERS[kind] + nonce + keyring.ciphers[0].encrypt(nonce, body, self._additional[kind])

    def _authentic(self, data: bytes, bytes_max: int, kinds: Mapping[bytes, int]) -> bytes:
        """Return the body, still compressed. `kinds`: the headers that belong here."""
        if len(data) > bytes_max:
            raise WireError("oversized", f"{len(data)} bytes, at most {bytes_max}")
        if len(data) < _HEADER_BYTES + _BODY_BYTES_MIN + CHECKSUM_BYTES:
            raise WireError("truncated", f"{len(data)} bytes")
        kind = kinds.get(data[:_HEADER_BYTES])
        if kind is None:
            raise _refused_header(data)
        keyring = self.keyring
        if keyring is not None:
            if not kind & _ENCRYPTED:
                raise WireError("plaintext")
            return _decrypted(data, keyring.ciphers, self._additional[kind])
        if kind & _ENCRYPTED:
            raise WireError("encrypted")
        if zlib.crc32(data[:-CHECKSUM_BYTES]) != int.from_bytes(data[-CHECKSUM_BYTES:], "big"):
            raise WireError("checksum")
        return data[_HEADER_BYTES:-CHECKSUM_BYTES]

    def _admitted(self, head: tuple[Any, ...]) -> tuple[NodeId, int]:
        """Return sender and epoch of a packet that is of this cluster, of another life, and new."""
        cluster, sender, epoch, sequence = head
        if cluster != self._cluster:
            if not is_id(cluster):
                raise WireError("malformed", "cluster name")
            raise WireError("foreign-cluster", cluster)
        try:
            sender, epoch, sequence = _id(sender), _count(epoch), _count(sequence)
        except ValueError as error:
            raise WireError("malformed", f"head: {error}") from None
        if sender == self._sender and epoch == self._epoch:
            raise WireError("own")
        if self.keyring is not None and not self._window.admit(sender, epoch, sequence):
            raise WireError("replayed", f"packet {sequence} of {sender}")
        return sender, epoch


def _refused_header(data: bytes) -> WireError:
    if data[0] != MAGIC:
        return WireError("malformed", "no magic")
    if data[1] != SCHEMA_VERSION:
        return WireError("version", f"schema version {data[1]}")
    return WireError("malformed", f"kind {data[2]}")


def _decrypted(data: bytes, ciphers: Iterable[AESGCM], additional: bytes) -> bytes:
    start = _HEADER_BYTES + NONCE_BYTES
    if len(data) < start + _BODY_BYTES_MIN + TAG_BYTES:
        raise WireError("truncated", f"{len(data)} bytes")
    nonce, sealed = data[_HEADER_BYTES:start], data[start:]
    for cipher in ciphers:
        try:
            return cipher.decrypt(nonce, sealed, additional)
        except InvalidTag:
            continue
    raise WireError("authentication")


def _inflated(data: bytes) -> bytes:
    # Decompressed twice, which is quick: a bomb is refused before anything is kept, and the rest takes what it needs.
    return zlib.decompress(data, bufsize=_inflated_bytes(data))


def _inflated_bytes(data: bytes) -> int:
    """Return the length that a whole compressed body has, at most `STREAM_BYTES_MAX`."""
    stream = zlib.decompressobj()
    pending = data
    size = 0
    try:
        while not stream.eof:
            inflated = len(stream.decompress(pending, _PIECE_BYTES))
            pending = stream.unconsumed_tail
            if not inflated and not pending and not stream.eof:
                raise WireError("malformed", "compressed body: incomplete")
            size += inflated
            if size > STREAM_BYTES_MAX:
                raise WireError("oversized", f"decompressed above {STREAM_BYTES_MAX} bytes")
    except zlib.error as error:
        raise WireError("malformed", f"compressed body: {error}") from None
    if stream.unused_data:
        raise WireError("malformed", "bytes after the compressed body")
    return size


def _taken(unpacker: Any, count: int) -> tuple[Any, ...]:
    """Read the next values. Raises ValueError, or msgpack's own errors."""
    values = tuple(islice(unpacker, count))
    if len(values) != count:
        raise ValueError("incomplete")
    return values


# --- names ------------------------------------------------------------------------------------------

MESSAGE_NAMES: dict[type, str] = {
    Ping: "ping", Ack: "ack", PingRequest: "ping-request", Nack: "nack", Alive: "alive", Suspect: "suspect",
    Exit: "exit", Dead: "dead", Left: "left", UserEvent: "event", Sync: "sync",
}  # fmt: skip
"""What a message is called in metrics, in the order of the numbers of their types, from 1."""
_NAMES = ("", *MESSAGE_NAMES.values())


def message_name(message: bytes) -> str:
    """Return what an encoded message is called in metrics."""
    # The number of its type is the first element; the array's header takes three bytes in a long sync only.
    return "sync" if message[0] == 0xDC else _NAMES[message[1]]


def plain_overhead_bytes(cluster: str, sender: NodeId) -> int:
    """Return what `seal` adds to up to eleven messages where nothing is encrypted, within the first 2^32 packets."""
    epoch_bytes, sequence_bytes, array_header_bytes = 9, 5, 1
    head_bytes = array_header_bytes + len(_pack(cluster) + _pack(sender)) + epoch_bytes + sequence_bytes
    return _HEADER_BYTES + head_bytes + CHECKSUM_BYTES


def packet_room_bytes(cluster: str, sender: NodeId) -> int:
    """Return how many bytes of messages surely fit into one datagram, encrypted or not."""
    return PACKET_BYTES_MAX - Envelope(cluster, sender, None, bytes).overhead_bytes
