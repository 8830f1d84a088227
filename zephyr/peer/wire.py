"""The node-to-node protocol as bytes: frames in, frames out, nothing else.

Decides whether bytes are a frame of this protocol, and what they say. Never decides what a frame
means for the cluster, and never holds a socket or a clock.

A frame is a 4-byte big-endian length and one msgpack array, whose first element is its kind:

    hello    1, protocol_min, protocol_max, cluster, probe, frame_bytes_max, member
    request  2, call_id, operation, ring_digest, allowance_ms, arguments
    reply    3, call_id, status, payload
    goodbye  4, reason

Each side's first frame is a hello (or a goodbye that says why there is none) and no later one is. The
hello, the member in it and the goodbye keep their form in every version of the protocol, because they
are read before a version is agreed: newer programs may only append elements, and what is appended is
skipped. Requests and replies are exact.

Invariants:
- A length is checked before a byte of the frame is kept, so a decoder holds at most one frame.
- What a decoder returns has the types and ranges that the classes below state. Anything else raises
  WireError, and nothing of that batch is returned.
- Arguments and payloads are arrays of any msgpack values but extensions. Their shapes are checked where
  they are used (`zephyr.replication.coordinator`), as are operations and statuses that this program does
  not know: a wrong call costs that call (BAD_REQUEST), not the connection.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

import msgpack

from zephyr.errors import WireError
from zephyr.model import Member
from zephyr.wire import checked_member, is_id, is_protocol

LENGTH_BYTES = 4
FRAME_OVERHEAD_BYTES = 64 << 10
"""What a frame may hold beside one value: key, content type, msgpack's headers, pages of keys and versions."""
HELLO_BYTES_MAX = 4096
"""A hello is under 1.5 KiB of names and addresses; the rest is room for what newer programs append. Strangers
get no larger buffer than this."""
RING_DIGEST_BYTES = 8
CALL_ID_MAX = (1 << 64) - 1
TOLD_CALL_ID = 0
"""Of requests whose reply nobody waits for."""
ALLOWANCE_MS_MAX = 600_000
"""Ten times the longest --request-timeout."""
OPERATION_MAX = 0xFFFF
STATUS_MAX = 0xFF
FRAME_BYTES_MAX_HIGH = (1 << 32) - 1
"""What the length prefix can say."""
REASON_BYTES_MAX = 512

ARRAY_ITEMS_MAX = 4096
"""msgpack allocates an array when it reads its header. It nests 1,024 deep at most, so headers that claim this many
items each cost a sender 5 bytes and this node 32 KiB a level, 32 MiB in all, before they are refused."""
MAP_ITEMS_MAX = 32
STRING_BYTES_MAX = 512
"""The goodbye's reason is the longest string; keys and records are binary."""


class Kind(enum.IntEnum):
    """The first element of a frame."""

    HELLO = 1
    REQUEST = 2
    REPLY = 3
    GOODBYE = 4


class Operation(enum.IntEnum):
    """What a request asks for: (arguments) -> (payload of a reply whose status is OK).

    A *mark* is what a replica without an entry knows of one that was there: see `zephyr.store.store`. `unix_ms` is the
    replica's wall clock.
    """

    READ = 1
    """(key,) -> (record or None, whether the replica is level for the slot, mark)."""
    WRITE = 2
    """(key, record) -> (applied, existed, newest_version, unix_ms)."""
    NEWS = 3
    """(sealed gossip packet,) -> (). Told, not asked: its call id is TOLD_CALL_ID, and its reply is skipped."""
    VIEW = 4
    """What the peer knows of etcd: see `zephyr.etcd.relay`."""
    PULL = 5
    """A page of slots: see `zephyr.replication.level`."""
    DIGEST = 6
    """(key,) -> (version or empty, whether the replica is level for the slot, mark)."""
    REPAIR = 7
    """(key, record) -> (applied,): as WRITE, but at the cold end, and evicting nothing."""
    DROP = 8
    """(key, mark) -> (dropped,): another replica has a mark above what stands here."""
    KEEP = 9
    """(target, key, record) -> (): keep the record for the target (`zephyr.replication.hints`)."""
    UPDATE = 10
    """A change that depends on what stands: see `zephyr.replication.update`."""
    MANY = 11
    """((operation, arguments), ...) -> ((status, payload), ...): calls above that touch one key, in one frame."""
    LIST = 12
    """A page of keys: see `zephyr.replication.survey`."""
    EXPLAIN = 13
    """What is held of a key: see `zephyr.replication.survey`."""


class Status(enum.IntEnum):
    """How a request went. Payloads of the others than OK and NOT_OWNER are free, for people."""

    OK = 0
    NOT_OWNER = 1
    """The receiver does not own the key's slot in its own view, or is not the first to: (generation, revision,
    ring_digest) of that view."""
    CLOCK_SKEW = 2
    """The stamp is too far ahead of the receiver's clock: (unix_ms,) of that."""
    TOO_LARGE = 3
    OVERLOADED = 4
    BAD_REQUEST = 5
    UNCONFIRMED = 6
    """The receiver cannot make sure that it still owns the slot: (its record or None,) for a read."""
    ALONE = 7
    """Within a MANY: the answer does not fit beside the others. Ask again, by itself."""


@dataclass(slots=True)
class Hello:
    """Who is on this side of the connection, and what it can read."""

    protocol_min: int
    protocol_max: int
    cluster: str
    probe: bool
    """Only asks who is there: a goodbye follows the answer."""
    frame_bytes_max: int
    """Longest frame, without its length, that the sender reads after its hello."""
    member: Member


@dataclass(slots=True)
class Request:
    """One call."""

    call_id: int
    """Unique within one life of the caller; 0 to `CALL_ID_MAX`."""
    operation: int
    ring_digest: bytes
    allowance_ms: int
    """How long the caller waits, from the moment it queued the request: relative, since clocks differ."""
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Reply:
    """The answer to one call."""

    call_id: int
    status: int
    payload: tuple[Any, ...]


@dataclass(slots=True)
class Goodbye:
    """The sender closes the connection on purpose."""

    reason: str


Frame: TypeAlias = Hello | Request | Reply | Goodbye

# --- encoding ---------------------------------------------------------------------------------------

_pack: Callable[[Any], bytes] = msgpack.Packer().pack
"""One packer for all frames: building one costs four times as much as packing a small request."""


def frame_bytes_max(value_max: int) -> int:
    """Return the longest frame, without its length, of a node whose values have at most `value_max` bytes."""
    return value_max + FRAME_OVERHEAD_BYTES


def encode_hello(hello: Hello) -> bytes:
    """Return the frame of a hello."""
    return _framed(
        (
            int(Kind.HELLO),
            hello.protocol_min,
            hello.protocol_max,
            hello.cluster,
            hello.probe,
            hello.frame_bytes_max,
            encode_member(hello.member),
        )
    )


def encode_request(
    call_id: int, operation: int, ring_digest: bytes, allowance_ms: int, arguments: tuple[Any, ...]
) -> bytes:
    """Return the frame of a request. Fields as in `Request`; arguments are msgpack values."""
    assert len(ring_digest) == RING_DIGEST_BYTES
    body = _pack((2, call_id, operation, ring_digest, allowance_ms, arguments))
    return len(body).to_bytes(4, "big") + body


def encode_reply(call_id: int, status: int, payload: tuple[Any, ...]) -> bytes:
    """Return the frame of a reply. Fields as in `Reply`; the payload is msgpack values."""
    body = _pack((3, call_id, status, payload))
    return len(body).to_bytes(4, "big") + body


def encode_goodbye(reason: str) -> bytes:
    """Return the frame of a goodbye. The reason is cut to `REASON_BYTES_MAX`; what cannot be printed becomes `?`."""
    printable = "".join(character if character.isprintable() else "?" for character in reason[:REASON_BYTES_MAX])
    cut = printable.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")
    return _framed((int(Kind.GOODBYE), cut))


def encode_member(member: Member) -> tuple[Any, ...]:
    """Return a member as an array of msgpack values, to stand inside a frame. `decode_member` reads it back."""
    return (
        member.id,
        member.http,
        member.gossip,
        member.peer,
        member.epoch,
        float(member.weight),
        member.zone,
        member.state,
        tuple(member.protocol),
    )


def _framed(fields: tuple[Any, ...]) -> bytes:
    body = _pack(fields)
    return len(body).to_bytes(4, "big") + body


# --- decoding ---------------------------------------------------------------------------------------


class FrameDecoder:
    """Cuts one side's byte stream into frames. After a WireError the stream is lost: drop the connection."""

    __slots__ = ("_expected", "_frame_bytes_max", "_held", "_limit", "_needed")

    def __init__(self, expected: type[Request | Reply], frame_bytes_max: int) -> None:
        """`expected`: what the other side sends between hello and goodbye: requests to a server, replies to a client.

        `frame_bytes_max`: longest frame, without its length, after the hello (`frame_bytes_max(value_max)`).
        """
        self._expected = expected
        self._frame_bytes_max = frame_bytes_max
        self._limit = 0  # 0: the hello has not come
        self._held = bytearray()
        self._needed = LENGTH_BYTES

    @property
    def held_bytes(self) -> int:
        """Bytes kept of a frame that is not complete: below `frame_bytes_max` + one piece."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete now, in order.

        Raises WireError for anything that is not this protocol; then nothing of `data` is returned.
        """
        frames: list[Frame] = []
        held = self._held
        if not held:
            consumed = self._cut(data, frames)
            if consumed < len(data):
                held += data[consumed:]
            return frames
        # Pieces of a large frame are gathered, and looked at only when the frame is complete.
        held += data
        if len(held) >= self._needed:
            with memoryview(held) as view:
                consumed = self._cut(view, frames)
            del held[:consumed]
        return frames

    def _cut(self, source: bytes | memoryview, frames: list[Frame]) -> int:
        """Append the complete frames; return how many bytes they took."""
        size = len(source)
        offset = 0
        while size - offset >= LENGTH_BYTES:
            (length,) = _read_length(source, offset)
            if length > (self._limit or HELLO_BYTES_MAX):
                raise WireError("length", f"a frame of {length} bytes, at most {self._limit or HELLO_BYTES_MAX}")
            start = offset + LENGTH_BYTES
            end = start + length
            if end > size:
                self._needed = LENGTH_BYTES + length
                return offset
            frame = decode_frame(source[start:end])
            if type(frame) is not self._expected or not self._limit:
                self._check_order(frame)
            frames.append(frame)
            offset = end
        self._needed = LENGTH_BYTES
        return offset

    def _check_order(self, frame: Frame) -> None:
        if type(frame) is Goodbye:
            return
        if type(frame) is not Hello:
            raise WireError("order", f"a {type(frame).__name__.lower()} where none belongs")
        if self._limit:
            raise WireError("order", "a second hello")
        self._limit = self._frame_bytes_max


_read_length = struct.Struct(">I").unpack_from


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


_unpack: Callable[[bytes | memoryview], Any] = partial(
    msgpack.unpackb,
    raw=False,
    strict_map_key=True,
    use_list=False,
    max_array_len=ARRAY_ITEMS_MAX,
    max_map_len=MAP_ITEMS_MAX,
    max_str_len=STRING_BYTES_MAX,
    # Binary values have no bound of their own here: they lie within the frame, whose length was checked.
    max_ext_len=0,
    ext_hook=_refuse_extension,
)


def decode_frame(body: bytes | memoryview) -> Frame:
    """Read one frame, without its length. Raises WireError."""
    try:
        fields = _unpack(body)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError("msgpack", str(error) or type(error).__name__) from None
    if type(fields) is not tuple or not fields or type(fields[0]) is not int:
        raise WireError("shape", "a frame is an array that begins with its kind")
    decode = _DECODERS.get(fields[0])
    if decode is None:
        raise WireError("kind", f"no frame has kind {fields[0]}")
    return decode(fields)


def _decode_hello(fields: tuple[Any, ...]) -> Hello:
    if len(fields) < 7:
        raise WireError("shape", f"a hello has 7 elements, this one {len(fields)}")
    _, protocol_min, protocol_max, cluster, probe, frame_bytes, member = fields[:7]
    if not is_protocol((protocol_min, protocol_max)):
        raise WireError("field", "protocol numbers of a hello")
    if not is_id(cluster):
        raise WireError("field", "cluster name of a hello")
    if type(probe) is not bool:
        raise WireError("field", "probe flag of a hello")
    if type(frame_bytes) is not int or not HELLO_BYTES_MAX <= frame_bytes <= FRAME_BYTES_MAX_HIGH:
        raise WireError("field", "frame bound of a hello")
    return Hello(protocol_min, protocol_max, cluster, probe, frame_bytes, decode_member(member))


def _decode_request(fields: tuple[Any, ...]) -> Request:
    try:
        _, call_id, operation, ring_digest, allowance_ms, arguments = fields
    except ValueError:
        raise WireError("shape", f"a request has 6 elements, this one {len(fields)}") from None
    # msgpack has no integer above 2^64 - 1, so a call id needs no upper bound here.
    if type(call_id) is not int or call_id < 0:
        raise WireError("field", "call id of a request")
    if type(operation) is not int or not 0 <= operation <= OPERATION_MAX:
        raise WireError("field", "operation of a request")
    if type(ring_digest) is not bytes or len(ring_digest) != RING_DIGEST_BYTES:
        raise WireError("field", "ring digest of a request")
    if type(allowance_ms) is not int or not 0 <= allowance_ms <= ALLOWANCE_MS_MAX:
        raise WireError("field", "time allowance of a request")
    if type(arguments) is not tuple:
        raise WireError("field", "arguments of a request")
    return Request(call_id, operation, ring_digest, allowance_ms, arguments)


def _decode_reply(fields: tuple[Any, ...]) -> Reply:
    try:
        _, call_id, status, payload = fields
    except ValueError:
        raise WireError("shape", f"a reply has 4 elements, this one {len(fields)}") from None
    if type(call_id) is not int or call_id < 0:
        raise WireError("field", "call id of a reply")
    if type(status) is not int or not 0 <= status <= STATUS_MAX:
        raise WireError("field", "status of a reply")
    if type(payload) is not tuple:
        raise WireError("field", "payload of a reply")
    return Reply(call_id, status, payload)


def _decode_goodbye(fields: tuple[Any, ...]) -> Goodbye:
    if len(fields) < 2:
        raise WireError("shape", "a goodbye has a reason")
    reason = fields[1]
    if type(reason) is not str or not reason.isprintable():  # it is logged and shown, so it must be one line
        raise WireError("field", "reason of a goodbye")
    return Goodbye(reason)


_DECODERS: dict[int, Callable[[tuple[Any, ...]], Frame]] = {
    Kind.HELLO: _decode_hello,
    Kind.REQUEST: _decode_request,
    Kind.REPLY: _decode_reply,
    Kind.GOODBYE: _decode_goodbye,
}

# --- members ----------------------------------------------------------------------------------------


def decode_member(value: Any) -> Member:
    """Read what `encode_member` made, after msgpack. Elements that a newer program appended are skipped.

    Raises WireError("member", what is wrong).
    """
    if type(value) is not tuple or len(value) < 9:
        raise WireError("member", "it is an array of 9 elements")
    try:
        return checked_member(value[:9])
    except ValueError as error:
        raise WireError("member", str(error)) from None


def agreed_protocol(ours: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """Return the newest protocol in both (oldest, newest) ranges; None when they do not overlap."""
    newest = min(ours[1], theirs[1])
    return newest if newest >= max(ours[0], theirs[0]) else None
