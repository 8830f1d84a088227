"""Conditional requests (RFC 9110, section 13): lists of entity tags as what must stand, and what a read makes of it.

Decides which tags a list names and what they mean for versions; never what stands: a write's conditions are met or
not where it is made, a read's against the version that it found. Pure.

A tag of ours is 32 hexadecimal digits, a version. One that is none of ours stands for no version that there is, and so
does a weak one where strong ones are asked for: a list of nothing else is met by nothing (`If-Match`), or by
everything (`If-None-Match`), and neither is the same as no list or as `*`.
"""

from __future__ import annotations

import re

from zephyr.model import Condition, Version
from zephyr.store.record import VERSION_BYTES

TAGS_MAX = 100
"""Entity tags in a list: they travel to the node that makes the change. More is no list that a person would write."""
VERSION_NEVER: Version = b"\xff" * VERSION_BYTES
"""Stands for tags that name no version: the clock of this one is thousands of years ahead, which nobody accepts."""

_ELEMENT = re.compile(rb'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|\Z)')
"""One element of a list, or none at all: a recipient puts up with empty ones (RFC 9110, section 5.6.1)."""
_OURS = re.compile(rb"[0-9a-f]{%d}" % (2 * VERSION_BYTES))


def parse_condition(raw: bytes, *, is_match: bool) -> Condition | None:
    """Read the list of `If-Match` (`is_match`) or `If-None-Match`, its lines joined by commas.

    None: everything meets it. Raises ValueError, with a sentence, for what is neither `*` nor a list with a tag in it,
    or has more than `TAGS_MAX`.
    """
    if raw.strip(b" \t") == b"*":
        return Condition(is_match, ())
    versions: list[Version] = []
    at = count = 0
    while at < len(raw):
        element = _ELEMENT.match(raw, at)
        if element is None:
            raise ValueError("it is neither * nor a list of entity tags in double quotes")
        at = element.end()
        is_weak, tag = element.groups()
        if tag is None:
            continue
        count += 1
        if count > TAGS_MAX:
            raise ValueError(f"it holds more than {TAGS_MAX} entity tags")
        # If-Match compares strongly, so that a weak tag equals none; If-None-Match weakly (section 8.8.3.2).
        if _OURS.fullmatch(tag) and not (is_match and is_weak):
            versions.append(bytes.fromhex(tag.decode()))
    if not count:
        raise ValueError("it holds no entity tag")
    if not versions:
        return Condition(True, (VERSION_NEVER,)) if is_match else None
    return Condition(is_match, tuple(versions))


def is_met(condition: Condition, version: Version) -> bool:
    """Tell whether a condition holds where a value of this version stands."""
    return condition.is_match == (not condition.versions or version in condition.versions)
