"""The keys and values that all measurements use."""

from __future__ import annotations

VALUE_BYTES = 128
"""Of the HTTP rows: a small value, so that the request itself is what is measured."""


def key_of(number: int, key_bytes: int = 20) -> bytes:
    """Return a key of a fixed length: `key-` and a number."""
    return b"key-%0*d" % (key_bytes - 4, number)


def value_of(number: int, value_bytes: int) -> bytes:
    """Return a value of a fixed length, another object each time, as from a network."""
    return b"%0*d" % (value_bytes, number)
