"""One running digest a slot: equal digests, equal entries.

A slot's digest is the XOR of 128 bits of mmh3 over (key, version, tombstone flag) of its entries, so that
a write costs two hashes whatever the slot holds, and two owners of a slot compare 16 bytes.
"""

from __future__ import annotations

import mmh3

from zephyr.store.record import FLAG_TOMBSTONE, FLAGS_AT, VERSION_BYTES

_MARKS = (b"\x00", b"\x01")


def entry_digest(key: bytes, record: bytes) -> int:
    """Return the 128 bits that an entry adds to, and takes from, its slot's digest."""
    return mmh3.mmh3_x64_128_uintdigest(record[:VERSION_BYTES] + _MARKS[record[FLAGS_AT] & FLAG_TOMBSTONE] + key)
