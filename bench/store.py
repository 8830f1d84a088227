"""What the store itself costs, without a network: reads, writes, and the digests kept with each write."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from unittest import mock

from bench.keys import key_of, value_of
from bench.rows import ROUNDS, Measured, median, rounded, row
from zephyr.ring.ring import key_slot
from zephyr.store import store as store_module
from zephyr.store.record import HybridLogicalClock, pack_record
from zephyr.store.store import Store

KEYS = 100_000
OPERATIONS = 100_000
VALUE_BYTES = 32
UNIX_MS = 1_763_870_000_000


def make_store(*, memory_bytes_max: int = 8 << 30, eviction: str = "sieve", ghosts_max: int = 100_000) -> Store:
    """Return a store as a node has it, with room for every row."""
    return Store(
        memory_bytes_max=memory_bytes_max,
        tombstone_bytes_max=16 << 20,
        tombstone_grace_ms=3_600_000,
        ghosts_max=ghosts_max,
        eviction=eviction,
        slot_of=key_slot,
    )


def _timed_ns(work: Callable[[], None]) -> float:
    """Return the CPU time of one operation."""
    began_ns = time.process_time_ns()
    work()
    return (time.process_time_ns() - began_ns) / OPERATIONS


@functools.cache
def _figures() -> dict[str, list[float]]:  # noqa: C901  # four loops that must not pay for a call
    """Time reads and writes of the store and of a dict in turn, CPU ns an operation."""
    store, clock = make_store(), HybridLogicalClock("a")
    plain: dict[bytes, bytes] = {}
    slots = [(key_of(number), key_slot(key_of(number))) for number in range(KEYS)]
    random.Random(1).shuffle(slots)
    values = [value_of(number, VALUE_BYTES) for number in range(OPERATIONS)]
    for (key, slot), value in zip(slots, values, strict=True):
        store.apply(slot, key, pack_record(clock.stamp(UNIX_MS), value), UNIX_MS)
        plain[key] = value

    def get() -> None:
        for key, slot in slots:
            store.get(slot, key, UNIX_MS)

    def put() -> None:
        for (key, slot), value in zip(slots, values, strict=True):
            store.apply(slot, key, pack_record(clock.stamp(UNIX_MS), value), UNIX_MS)

    def dict_get() -> None:
        for key, _ in slots:
            plain.get(key)

    def dict_put() -> None:
        for (key, _), value in zip(slots, values, strict=True):
            plain[key] = value

    work = {"get": get, "put": put, "dict_get": dict_get, "dict_put": dict_put}
    figures: dict[str, list[float]] = {name: [] for name in (*work, "put_without_digest")}
    for _ in range(ROUNDS):
        for name, function in work.items():
            figures[name].append(_timed_ns(function))
        with mock.patch.object(store_module, "entry_digest", lambda _key, _record: 0):  # noqa: PT008  # a mock is slow
            figures["put_without_digest"].append(_timed_ns(put))
    return figures


def _against(ours: str, baseline: str) -> Measured:
    figures = _figures()
    ratios = [theirs / mine for mine, theirs in zip(figures[ours], figures[baseline], strict=True)]
    ours_us, baseline_us = median(figures[ours]) / 1000, median(figures[baseline]) / 1000
    return Measured(
        median(ratios),
        f"{1e6 / ours_us:,.0f}/s",
        f"{1e6 / baseline_us:,.0f}/s",
        (ours_us, baseline_us),
        {"ratios": rounded(ratios)},
    )


@row("store-get", "get from the store", baseline="a plain dict")
def store_get() -> Measured:
    """Read with a check of the deadline and a use counted for eviction."""
    return _against("get", "dict_get")


@row("store-put", "put into the store, stamped and packed", baseline="a plain dict")
def store_put() -> Measured:
    """Write a new version over an old one."""
    return _against("put", "dict_put")


@row("store-digest", "digest upkeep, share of a put", baseline="a put without it", unit=" %")
def store_digest() -> Measured:
    """How much of a put goes into the running digest of its slot."""
    figures = _figures()
    shares = [
        100 * (1 - without / whole)
        for whole, without in zip(figures["put"], figures["put_without_digest"], strict=True)
    ]
    whole_us, without_us = median(figures["put"]) / 1000, median(figures["put_without_digest"]) / 1000
    return Measured(
        median(shares),
        f"{whole_us:.2f} us a put",
        f"{without_us:.2f} us a put",
        (whole_us, without_us),
        {"shares": rounded(shares)},
    )
