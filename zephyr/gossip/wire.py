"""Gossip as bytes: messages into packets, packets into messages, and nothing that is not authentic, whole and ours.

Decides whether bytes are a packet of this cluster and what they say; never what that means. Holds no socket.

    byte 0     0x5A
    byte 1     version of this form, 1
    byte 2     kind: 0 a plain datagram, 1 an encrypted one, 2 a plain stream, 3 an encrypted one; 4 more: compressed
    plain      body, then the CRC-32 of everything before it, 4 bytes, big-endian
    encrypted  12 bytes of nonce, then the body under AES-256-GCM with its tag; bytes 0 to 2 and the cluster's name
               are the additional data
    body       msgpack array: cluster, sender, the sender's boot epoch, sequence, message, message, ...
    message    msgpack array: number of its type, fields ...

A checksum keeps accidents out, a keyring keeps strangers out: with one, only packets under one of its keys are
read, and each of them once (a window of sequences for each sender's life, RFC 4303, section 3.4.3).

Invariants:
- Nothing is decoded before it is authentic, and nothing is returned unless all of it is well-formed: types, ranges
  and lengths are those that `zephyr.gossip.messages` states. Otherwise WireError tells the cause, for a counter.
- A datagram is at most PACKET_BYTES_MAX bytes, a stream's packet STREAM_BYTES_MAX, before and after compression.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zephyr.config import NODE_ID_PATTERN
from zephyr.errors import ConfigError, WireError
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
from zephyr.member_codec import EPOCH_MAX, decode_member, encode_member
from zephyr.model import Member, NodeId

PACKET_BYTES_MAX = 1400
"""Fits an Ethernet frame with room for tunnels' headers, so that no datagram is ever fragmented."""
STREAM_BYTES_MAX = 1 << 20
"""Twice what 4,096 members of ordinary names need."""
METADATA_BYTES_MAX = 512
"""Of one member: two of them fit into a datagram."""
MESSAGES_MAX = 252
"""In one datagram: with the four elements of the body before them, an array of 256."""
SYNC_ENTRIES_MAX = 4096
"""Members in one push-pull."""
COMPRESS_FROM_BYTES = 1024
"""A smaller body is sent as it is."""
EVENT_NAME_CHARACTERS_MAX = 64
EVENT_PAYLOAD_BYTES_MAX = 512
LAG_MS_MAX = 3_600_000
RING_DIGEST_BYTES = 8
KEYS_MAX = 16
"""In a keyring: a rotation needs two."""
KEY_BYTES = 32
REPLAY_WINDOW = 1024
"""Sequences below the highest that are told apart: more than one sender's packets within a second."""
REPLAY_SENDERS_MAX = 4096
"""Senders whose windows are kept; the one not heard for longest goes first."""
MEMBERS_CACHED_MAX = 8192
"""Members that were checked once and need not be again."""

MAGIC = 0x5A
VERSION = 1
ENCRYPTED, STREAM, COMPRESSED = 1, 2, 4
NONCE_BYTES, TAG_BYTES, CRC_BYTES, START_BYTES = 12, 16, 4, 3
BODY_OVERHEAD_BYTES = 3 + 2 + 2 + 9 + 9
"""The array's header, those of two names, and two numbers."""

_LIMITS: dict[str, Any] = {
    "raw": False, "strict_map_key": True, "use_list": False, "max_array_len": 256, "max_map_len": 0,
    "max_str_len": METADATA_BYTES_MAX, "max_bin_len": 1200, "max_ext_len": 0,
}  # fmt: skip
_STREAM_LIMITS = {**_LIMITS, "max_array_len": SYNC_ENTRIES_MAX}
_STATES = ("alive", "suspect", "dead", "left")


# --- keys -------------------------------------------------------------------------------------------


class Keyring:
    """Keys of AES-256-GCM: the first one encrypts, all decrypt."""

    __slots__ = ("_ciphers", "keys")

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self.keys = keys
        """1 to KEYS_MAX, each KEY_BYTES long."""
        self._ciphers = tuple(AESGCM(key) for key in keys)

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read one base64 key a line; empty lines and those that begin with # are skipped.

        Raises ConfigError with one line that names the line in question, and never the key.
        """
        keys = []
        for number, line in enumerate(text.splitlines(), 1):
            word = line.strip()
            if not word or word.startswith("#"):
                continue
            try:
                key = base64.b64decode(word, validate=True)
            except (binascii.Error, ValueError):
                raise ConfigError(f"line {number} is not base64") from None
            if len(key) != KEY_BYTES:
                raise ConfigError(f"the key in line {number} has {len(key)} bytes, not {KEY_BYTES}")
            keys.append(key)
        if not 1 <= len(keys) <= KEYS_MAX:
            raise ConfigError(f"a keyring has 1 to {KEYS_MAX} keys, this one {len(keys)}")
        return cls(tuple(keys))

    def encrypt(self, nonce: bytes, body: bytes, additional: bytes) -> bytes:
        """Return the body under the first key, with its tag."""
        return self._ciphers[0].encrypt(nonce, body, additional)

    def decrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
        """Return the body. Raises WireError("authentication") when it is under none of the keys."""
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, data, additional)
            except InvalidTag:
                continue
        raise WireError("authentication")


class ReplayWindows:
    """Which sequences of each sender's newest life were seen."""

    __slots__ = ("_senders",)

    def __init__(self) -> None:
        self._senders: dict[NodeId, tuple[int, int, int]] = {}
        """Sender -> (epoch, highest sequence, bits of those at and below it), the one heard last at the end."""

    def admit(self, sender: NodeId, epoch: int, sequence: int) -> None:
        """Note a packet. Raises WireError("replayed") for one that was seen, or may have been."""
        known_epoch, highest, bits = self._senders.pop(sender, (epoch, sequence, 0))
        if epoch > known_epoch:
            known_epoch, highest, bits = epoch, sequence, 0
        age = highest - sequence
        is_new = epoch == known_epoch and age < REPLAY_WINDOW and (age < 0 or not bits >> age & 1)
        if is_new:
            if age < 0:
                bits = bits << -age & (1 << REPLAY_WINDOW) - 1 if -age < REPLAY_WINDOW else 0
                highest, age = sequence, 0
            bits |= 1 << age
        self._senders[sender] = (known_epoch, highest, bits)
        if len(self._senders) > REPLAY_SENDERS_MAX:
            del self._senders[next(iter(self._senders))]
        if not is_new:
            raise WireError("replayed")


# --- packets ----------------------------------------------------------------------------------------


def packet_room_bytes(cluster: str, sender: NodeId) -> int:
    """Return how many bytes of messages surely fit into one datagram, encrypted or not."""
    names = len(cluster.encode()) + len(sender.encode())
    return PACKET_BYTES_MAX - START_BYTES - NONCE_BYTES - TAG_BYTES - BODY_OVERHEAD_BYTES - names


class Envelope:
    """Seals what one node sends and opens what it receives."""

    def __init__(
        self, cluster: str, sender: NodeId, keyring: Keyring | None, random_bytes: Callable[[int], bytes]
    ) -> None:
        """`random_bytes` makes nonces: they must differ between all packets of all members under one key."""
        self.keyring = keyring
        """May be replaced at any time."""
        self._cluster = cluster
        self._sender = sender
        self._random_bytes = random_bytes
        self._packer = msgpack.Packer()
        self._names = self._packer.pack(cluster) + self._packer.pack(sender)
        self._sequence = 0
        self._epoch = -1
        self._windows = ReplayWindows()
        self._members: dict[tuple[Any, ...], Member] = {}

    def seal(self, messages: Sequence[bytes], epoch: int) -> bytes:
        """Return a datagram of encoded messages, `packet_room_bytes` of them at most. Raises WireError("oversized")."""
        packet = self._close(0, self._body(messages, epoch))
        if len(packet) > PACKET_BYTES_MAX:
            raise WireError("oversized")
        return packet

    def seal_stream(self, messages: Sequence[bytes], epoch: int) -> bytes:
        """Return a stream's packet, compressed where that makes it smaller. Raises WireError("oversized")."""
        body = self._body(messages, epoch)
        if len(body) > STREAM_BYTES_MAX:
            raise WireError("oversized", f"{len(body)} bytes")
        kind = STREAM
        if len(body) >= COMPRESS_FROM_BYTES:
            compressed = zlib.compress(body, 1)
            if len(compressed) < len(body):
                body, kind = compressed, STREAM | COMPRESSED
        return self._close(kind, body)

    def open(self, packet: bytes) -> Packet:
        """Return what a datagram says. Raises WireError with the cause; then nothing of it counts."""
        if len(packet) > PACKET_BYTES_MAX:
            raise WireError("oversized")
        kind, body = self._unseal(packet)
        if kind & ~ENCRYPTED:
            raise WireError("malformed", "not a datagram")
        return self._read(body, kind, _LIMITS)

    def open_stream(self, packet: bytes) -> Packet:
        """Return what a stream's packet says. Raises WireError as `open` does."""
        if len(packet) > STREAM_BYTES_MAX + PACKET_BYTES_MAX:
            raise WireError("oversized")
        kind, body = self._unseal(packet)
        if not kind & STREAM or kind > ENCRYPTED | STREAM | COMPRESSED:
            raise WireError("malformed", "not a stream's packet")
        return self._read(_expand(body) if kind & COMPRESSED else body, kind, _STREAM_LIMITS)

    # Sealing.

    def _body(self, messages: Sequence[bytes], epoch: int) -> bytes:
        self._sequence += 1
        self._epoch = epoch
        pack = self._packer.pack
        header = self._packer.pack_array_header(4 + len(messages))
        return b"".join((header, self._names, pack(epoch), pack(self._sequence), *messages))

    def _close(self, kind: int, body: bytes) -> bytes:
        if self.keyring is None:
            data = bytes((MAGIC, VERSION, kind)) + body
            return data + zlib.crc32(data).to_bytes(CRC_BYTES, "big")
        start = bytes((MAGIC, VERSION, kind | ENCRYPTED))
        nonce = self._random_bytes(NONCE_BYTES)
        return start + nonce + self.keyring.encrypt(nonce, body, start + self._cluster.encode())

    # Opening.

    def _unseal(self, packet: bytes) -> tuple[int, bytes]:
        """Return kind and body of an authentic packet."""
        if len(packet) < START_BYTES + CRC_BYTES:
            raise WireError("truncated")
        if packet[0] != MAGIC or packet[1] != VERSION:
            raise WireError("version")
        kind = packet[2]
        if kind & ENCRYPTED:
            return kind, self._decrypted(packet)
        if self.keyring is not None:
            raise WireError("plaintext")
        if zlib.crc32(packet[:-CRC_BYTES]) != int.from_bytes(packet[-CRC_BYTES:], "big"):
            raise WireError("checksum")
        return kind, packet[START_BYTES:-CRC_BYTES]

    def _decrypted(self, packet: bytes) -> bytes:
        if self.keyring is None:
            raise WireError("encrypted")
        body_at = START_BYTES + NONCE_BYTES
        if len(packet) < body_at + TAG_BYTES:
            raise WireError("truncated")
        additional = packet[:START_BYTES] + self._cluster.encode()
        return self.keyring.decrypt(packet[START_BYTES:body_at], packet[body_at:], additional)

    def _read(self, body: bytes, kind: int, limits: dict[str, Any]) -> Packet:
        try:
            fields = msgpack.unpackb(body, **limits)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise WireError("malformed", type(error).__name__) from None
        if type(fields) is not tuple or len(fields) < 4:
            raise WireError("malformed", "no packet")
        cluster, sender, epoch, sequence = fields[:4]
        if cluster != self._cluster:
            raise WireError("foreign-cluster")
        if type(sender) is not str or not NODE_ID_PATTERN.fullmatch(sender):
            raise WireError("malformed", "sender")
        _check_number(epoch, EPOCH_MAX)
        _check_number(sequence, EPOCH_MAX)
        if sender == self._sender and epoch == self._epoch:
            raise WireError("own")
        messages = tuple([self._message(value) for value in fields[4:]])
        if kind & ENCRYPTED:
            self._windows.admit(sender, epoch, sequence)
        return Packet(sender, epoch, messages)

    def _message(self, value: Any) -> GossipMessage:
        if type(value) is not tuple or not value:
            raise WireError("malformed", "no message")
        number = value[0]
        if type(number) is not int or not 0 < number < len(_DECODERS):
            raise WireError("malformed", "unknown message")
        return _DECODERS[number](self, value[1:])

    def member(self, value: Any) -> Member:
        """Return a member that is well-formed, and remember that it is."""
        try:
            member = self._members.get(value)
        except TypeError:
            raise WireError("malformed", "member") from None
        # Equal values may differ in type (1 and True, 1 and 1.0), and decoding makes a float of the weight only.
        if member is not None and type(value[4]) is int:
            return member
        try:
            member = decode_member(value)
        except WireError as error:
            raise WireError("malformed", str(error)) from None
        if len(msgpack.packb(value)) > METADATA_BYTES_MAX:
            raise WireError("malformed", "metadata too long")
        if len(self._members) >= MEMBERS_CACHED_MAX:
            self._members.clear()
        self._members[value] = member
        return member


def _expand(data: bytes) -> bytes:
    """Return a body that was compressed; one that grows beyond its bound is not expanded further."""
    expander = zlib.decompressobj()
    try:
        body = expander.decompress(data, STREAM_BYTES_MAX)
    except zlib.error:
        raise WireError("malformed", "compression") from None
    if expander.unconsumed_tail:
        raise WireError("oversized", "expands too far")
    if not expander.eof:
        raise WireError("truncated")
    return body


# --- messages ---------------------------------------------------------------------------------------


def encode_message(message: GossipMessage) -> bytes:
    """Return a message as it stands in a packet. Raises WireError("oversized") for a member with too much metadata."""
    match message:
        case PingRequest(sequence, target):
            fields: tuple[Any, ...] = (sequence, _packable(target))
        case Alive(member, incarnation):
            fields = (_packable(member), incarnation)
        case Sync(entries, is_join):
            rows = [(encode_member(entry.member), entry.incarnation, _STATES.index(entry.state)) for entry in entries]
            fields = (rows[:SYNC_ENTRIES_MAX], is_join)
        case _:
            fields = message
    return bytes(msgpack.packb((_NUMBERS[type(message)], *fields)))


def _packable(member: Member) -> tuple[Any, ...]:
    value = encode_member(member)
    if len(msgpack.packb(value)) > METADATA_BYTES_MAX:
        raise WireError("oversized", f"the addresses of {member.id} take more than {METADATA_BYTES_MAX} bytes")
    return value


def _check_number(value: Any, highest: int) -> None:
    if type(value) is not int or not 0 <= value <= highest:
        raise WireError("malformed", "number")


def _check_id(value: Any) -> None:
    if type(value) is not str or not NODE_ID_PATTERN.fullmatch(value):
        raise WireError("malformed", "id")


def _check_count(fields: tuple[Any, ...], count: int) -> None:
    if len(fields) != count:
        raise WireError("malformed", "fields")


def _ping(_envelope: Envelope, fields: tuple[Any, ...]) -> Ping:
    _check_count(fields, 2)
    _check_number(fields[0], EPOCH_MAX)
    _check_id(fields[1])
    return Ping(*fields)


def _ack(_envelope: Envelope, fields: tuple[Any, ...]) -> Ack:
    _check_count(fields, 3)
    _check_number(fields[0], EPOCH_MAX)
    if type(fields[1]) is not bytes or len(fields[1]) not in (0, RING_DIGEST_BYTES):
        raise WireError("malformed", "ring digest")
    _check_number(fields[2], LAG_MS_MAX)
    return Ack(*fields)


def _ping_request(envelope: Envelope, fields: tuple[Any, ...]) -> PingRequest:
    _check_count(fields, 2)
    _check_number(fields[0], EPOCH_MAX)
    return PingRequest(fields[0], envelope.member(fields[1]))


def _nack(_envelope: Envelope, fields: tuple[Any, ...]) -> Nack:
    _check_count(fields, 1)
    _check_number(fields[0], EPOCH_MAX)
    return Nack(*fields)


def _alive(envelope: Envelope, fields: tuple[Any, ...]) -> Alive:
    _check_count(fields, 2)
    _check_number(fields[1], EPOCH_MAX)
    return Alive(envelope.member(fields[0]), fields[1])


def _accusation(kind: type[Suspect | Dead]) -> Callable[[Envelope, tuple[Any, ...]], GossipMessage]:
    def decode(_envelope: Envelope, fields: tuple[Any, ...]) -> GossipMessage:
        _check_count(fields, 4)
        _check_id(fields[0])
        _check_number(fields[1], EPOCH_MAX)
        _check_number(fields[2], EPOCH_MAX)
        _check_id(fields[3])
        return kind(*fields)

    return decode


def _exit(_envelope: Envelope, fields: tuple[Any, ...]) -> Exit:
    _check_count(fields, 3)
    _check_id(fields[0])
    _check_number(fields[1], EPOCH_MAX)
    _check_id(fields[2])
    return Exit(*fields)


def _left(_envelope: Envelope, fields: tuple[Any, ...]) -> Left:
    _check_count(fields, 3)
    _check_id(fields[0])
    _check_number(fields[1], EPOCH_MAX)
    _check_number(fields[2], EPOCH_MAX)
    return Left(*fields)


def _user_event(_envelope: Envelope, fields: tuple[Any, ...]) -> UserEvent:
    _check_count(fields, 5)
    _check_id(fields[0])
    _check_number(fields[1], EPOCH_MAX)
    _check_number(fields[2], EPOCH_MAX)
    name, payload = fields[3:]
    if type(name) is not str or not 0 < len(name) <= EVENT_NAME_CHARACTERS_MAX or not name.isprintable():
        raise WireError("malformed", "name of an event")
    if type(payload) is not bytes or len(payload) > EVENT_PAYLOAD_BYTES_MAX:
        raise WireError("malformed", "payload of an event")
    return UserEvent(*fields)


def _sync(envelope: Envelope, fields: tuple[Any, ...]) -> Sync:
    _check_count(fields, 2)
    rows, is_join = fields
    if type(rows) is not tuple or type(is_join) is not bool:
        raise WireError("malformed", "push-pull")
    entries = []
    for row in rows:
        if type(row) is not tuple or len(row) != 3:
            raise WireError("malformed", "push-pull")
        value, incarnation, state = row
        _check_number(incarnation, EPOCH_MAX)
        _check_number(state, len(_STATES) - 1)
        entries.append(SyncEntry(envelope.member(value), incarnation, _STATES[state]))  # type: ignore[arg-type]
    return Sync(tuple(entries), is_join)


def _nothing(_envelope: Envelope, _fields: tuple[Any, ...]) -> GossipMessage:
    raise WireError("malformed", "unknown message")


_DECODERS: tuple[Callable[[Envelope, tuple[Any, ...]], GossipMessage], ...] = (
    _nothing, _ping, _ack, _ping_request, _nack, _alive, _accusation(Suspect), _exit, _accusation(Dead), _left,
    _user_event, _sync,
)  # fmt: skip
"""By the number of the message's type."""
_NUMBERS: dict[type, int] = {
    Ping: 1, Ack: 2, PingRequest: 3, Nack: 4, Alive: 5, Suspect: 6, Exit: 7, Dead: 8, Left: 9, UserEvent: 10, Sync: 11,
}  # fmt: skip
MESSAGE_NAMES: dict[type, str] = {
    Ping: "ping", Ack: "ack", PingRequest: "ping-request", Nack: "nack", Alive: "alive", Suspect: "suspect",
    Exit: "exit", Dead: "dead", Left: "left", UserEvent: "event", Sync: "sync",
}  # fmt: skip
"""What a message is called in metrics."""
_NAMES_BY_NUMBER = {number: MESSAGE_NAMES[kind] for kind, number in _NUMBERS.items()}


def message_name(message: bytes) -> str:
    """Return what an encoded message is called in metrics: its number is the first element of a short array."""
    return _NAMES_BY_NUMBER[message[1]]
