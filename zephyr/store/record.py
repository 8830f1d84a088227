"""Versions and packed records: the bytes of which the store, the wire and the digests are made.

A *version* is 16 bytes, big-endian, compared as bytes:

    0..8    hybrid logical clock: 48 bits of unix ms, 16 bits of counter
    8..16   the writer's tag: 64 bits of mmh3 over its node id, which breaks ties

A *record* is one `bytes` object an entry, so that a million entries are a million objects that the
garbage collector never looks into:

    0..16   version
    16..22  deadline, unix ms; 0: none
    22      flags, bit 0: tombstone
    23      length of the content type; 0: application/octet-stream
    24..    content type, then the value

Source: Kulkarni et al., "Logical Physical Clocks" (2014), for the clock.
"""

from __future__ import annotations

import mmh3

from zephyr.model import NodeId, Version

HEADER_BYTES = 24
"""Fixed part of a record."""
VERSION_BYTES = 16
CONTENT_TYPE_BYTES_MAX = 255
"""One length byte."""
DEFAULT_CONTENT_TYPE = b"application/octet-stream"
EXPIRES_UNIX_MS_MAX = (1 << 48) - 1
FLAG_TOMBSTONE = 1
CLOCK_DRIFT_MAX_MS = 500
"""A stamp further ahead than this is refused: one bad clock must not pin keys for everyone."""
VERSION_ZERO: Version = bytes(VERSION_BYTES)
"""Older than every real version."""


_PLAIN = bytes(HEADER_BYTES - VERSION_BYTES)
"""What follows the version of a value that has no deadline and the default content type: most are such."""


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
    if content_type == DEFAULT_CONTENT_TYPE:
        if not expires_unix_ms and not tombstone:
            return version + _PLAIN + value
        content_type = b""
    assert len(content_type) <= CONTENT_TYPE_BYTES_MAX
    return b"".join(
        (
            version,
            expires_unix_ms.to_bytes(6, "big"),
            b"\x01" if tombstone else b"\x00",
            len(content_type).to_bytes(1, "big"),
            content_type,
            value,
        )
    )


def record_version(record: bytes) -> Version:
    """Return the version of a packed record."""
    return record[:VERSION_BYTES]


def record_expires_unix_ms(record: bytes) -> int:
    """Return the deadline of a packed record in unix ms; 0: none."""
    return int.from_bytes(record[16:22], "big")


def record_is_tombstone(record: bytes) -> bool:
    """Tell whether a packed record marks a deletion."""
    return record[22] & FLAG_TOMBSTONE != 0


def record_content_type(record: bytes) -> bytes:
    """Return the content type of a packed record."""
    length = record[23]
    return record[HEADER_BYTES : HEADER_BYTES + length] if length else DEFAULT_CONTENT_TYPE


def record_value(record: bytes) -> bytes:
    """Return the value of a packed record."""
    return record[HEADER_BYTES + record[23] :]


def record_is_valid(record: bytes) -> bool:
    """Tell whether bytes from a peer have the shape of a record: long enough, flags known."""
    return len(record) >= HEADER_BYTES + record[23] and record[22] <= FLAG_TOMBSTONE if len(record) > 23 else False


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

    def now_unix_ms(self, unix_ms: int) -> int:
        """Return max(wall clock, this clock), in unix ms: what deadlines and expiry use."""
        return max(unix_ms, self._last >> 16)
