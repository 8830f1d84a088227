"""Versions and packed records: the bytes of which the store, the wire and the digests are made.

A *version* is 16 bytes, big-endian, compared as bytes:

    0..8    hybrid logical clock: 48 bits of unix ms, 16 bits of counter
    8..16   the writer's tag: 64 bits of mmh3 over its node id, which breaks ties

A *record* is one `bytes` object an entry, so that a million entries are a million objects that the
garbage collector never looks into. What most values do not have takes no room:

    0..16   version
    16      flags, bit 0: tombstone, bit 1: has a deadline, bit 2: has a content type
    17..    with bit 1: the deadline, unix ms, 6 bytes, not 0
            with bit 2: length of the content type, then it; without: application/octet-stream
            the value

Source: Kulkarni et al., "Logical Physical Clocks" (2014), for the clock.
"""

from __future__ import annotations

import mmh3

from zephyr.model import NodeId, Version

HEADER_BYTES = 17
"""Version and flags: what every record has."""
VERSION_BYTES = 16
CONTENT_TYPE_BYTES_MAX = 255
"""One length byte."""
DEFAULT_CONTENT_TYPE = b"application/octet-stream"
FLAG_TOMBSTONE = 1
FLAG_DEADLINE = 2
FLAG_CONTENT_TYPE = 4
FLAGS_MAX = FLAG_TOMBSTONE | FLAG_DEADLINE | FLAG_CONTENT_TYPE
FLAGS_AT = VERSION_BYTES
"""Where the flags stand."""
DEADLINE_END = HEADER_BYTES + 6
"""Where a deadline ends, if there is one."""
CLOCK_DRIFT_MAX_MS = 500
"""A stamp further ahead than this is refused: one bad clock must not pin keys for everyone."""
VERSION_ZERO: Version = bytes(VERSION_BYTES)
"""Older than every real version."""


def node_tag(node_id: NodeId) -> bytes:
    """Return the 8 bytes that stand for a node id in its versions."""
    return mmh3.hash64(node_id.encode(), 0, True, signed=False)[0].to_bytes(8, "big")


def version_unix_ms(version: Version) -> int:
    """Return the wall-clock part of a version, in unix ms."""
    return int.from_bytes(version[:6], "big")


def pack_record(
    version: Version,
    value: bytes,
    *,
    expires_unix_ms: int = 0,
    content_type: bytes = DEFAULT_CONTENT_TYPE,
    tombstone: bool = False,
) -> bytes:
    """Pack an entry. `content_type` is at most 255 bytes, `expires_unix_ms` fits 48 bits; 0 means never."""
    assert len(version) == VERSION_BYTES
    flags, parts = (FLAG_TOMBSTONE if tombstone else 0), b""
    if expires_unix_ms:
        flags |= FLAG_DEADLINE
        parts = expires_unix_ms.to_bytes(6, "big")
    if content_type and content_type != DEFAULT_CONTENT_TYPE:
        assert len(content_type) <= CONTENT_TYPE_BYTES_MAX
        flags |= FLAG_CONTENT_TYPE
        parts += len(content_type).to_bytes(1, "big") + content_type
    return version + _FLAGS[flags] + parts + value


def record_version(record: bytes) -> Version:
    """Return the version of a packed record."""
    return record[:VERSION_BYTES]


def record_expires_unix_ms(record: bytes) -> int:
    """Return the deadline of a packed record in unix ms; 0: none."""
    return int.from_bytes(record[HEADER_BYTES:DEADLINE_END], "big") if record[FLAGS_AT] & FLAG_DEADLINE else 0


def record_is_tombstone(record: bytes) -> bool:
    """Tell whether a packed record marks a deletion."""
    return record[FLAGS_AT] & FLAG_TOMBSTONE != 0


def record_content_type(record: bytes) -> bytes:
    """Return the content type of a packed record."""
    flags = record[FLAGS_AT]
    if not flags & FLAG_CONTENT_TYPE:
        return DEFAULT_CONTENT_TYPE
    start = DEADLINE_END if flags & FLAG_DEADLINE else HEADER_BYTES
    return record[start + 1 : start + 1 + record[start]]


def record_value(record: bytes) -> bytes:
    """Return the value of a packed record."""
    flags = record[FLAGS_AT]
    start = DEADLINE_END if flags & FLAG_DEADLINE else HEADER_BYTES
    return record[start + 1 + record[start] :] if flags & FLAG_CONTENT_TYPE else record[start:]


def record_is_valid(record: bytes) -> bool:
    """Tell whether bytes from a peer have the shape of a record: long enough, flags known, a deadline that is one."""
    if len(record) < HEADER_BYTES or record[FLAGS_AT] > FLAGS_MAX:
        return False
    flags, start = record[FLAGS_AT], HEADER_BYTES
    if flags & FLAG_DEADLINE:
        start = DEADLINE_END
        if len(record) < start or not record_expires_unix_ms(record):
            return False
    if flags & FLAG_CONTENT_TYPE:
        return len(record) > start and record[start] > 0 and len(record) > start + record[start]
    return True


_FLAGS = [bytes([flags]) for flags in range(FLAGS_MAX + 1)]


class HybridLogicalClock:
    """Stamps that respect causality and stay near the wall clock. Never goes back."""

    __slots__ = ("_last", "_tag")

    def __init__(self, node_id: NodeId) -> None:
        self._tag = node_tag(node_id)
        self._last = 0

    def stamp(self, unix_ms: int) -> Version:
        """Return a version newer than every one stamped or observed here."""
        physical = unix_ms << 16
        self._last = physical if physical > self._last else self._last + 1
        return self._last.to_bytes(8, "big") + self._tag

    def observe(self, version: Version, unix_ms: int) -> bool:
        """Take note of a peer's version. False, and no change, when it is over `CLOCK_DRIFT_MAX_MS` ahead."""
        remote = int.from_bytes(version[:8], "big")
        if remote > self._last:
            if (remote >> 16) > unix_ms + CLOCK_DRIFT_MAX_MS:
                return False
            self._last = remote
        return True

    def settle(self, unix_ms: int) -> None:
        """Come back to a wall clock that was set back: nobody takes stamps from so far ahead.

        Only where others own every key too, so that no record stands here alone under such a stamp.
        """
        if (self._last >> 16) > unix_ms + CLOCK_DRIFT_MAX_MS:
            self._last = unix_ms << 16

    def now_unix_ms(self, unix_ms: int) -> int:
        """Return max(wall clock, this clock), in unix ms: what deadlines and expiry use."""
        return max(unix_ms, self._last >> 16)
