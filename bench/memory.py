"""What a million entries take, and how long the store is ever busy with one of them.

Each figure comes from a process of its own, `python -m bench.memory WHAT KEY_BYTES VALUE_BYTES`, since memory
that was freed is not given back. A stall is the CPU time of the longest single call: the time that a shared
machine gives to others in between says nothing about the store. Wall time stands in the JSON beside it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.keys import key_of, value_of
from bench.load import cores
from bench.rows import ROUNDS, Measured, NotMeasurableError, median, rounded, row
from bench.store import UNIX_MS, make_store
from zephyr.node import EXPIRY_SLICE_KEYS
from zephyr.ring.ring import key_slot
from zephyr.store.record import HybridLogicalClock, pack_record

ENTRIES = 1_000_000
SIZES = {"long-keys": (20, 32), "short-keys": (12, 40)}
"""Two ways to make 52 bytes; malloc rounds them differently."""
RSS_ROUNDS = 3
"""Memory hardly varies."""
LRU_ROUNDS = 3
"""Of the policy that is not the default."""
TTL_MS = 60_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def _dict_rss(key_bytes: int, value_bytes: int) -> dict[str, float]:
    before_bytes = _rss_bytes()
    entries = {}
    for number in range(ENTRIES):
        entries[key_of(number, key_bytes)] = value_of(number, value_bytes)
    return {"rss_bytes": (_rss_bytes() - before_bytes) / len(entries)}


def _store_rss(key_bytes: int, value_bytes: int, eviction: str) -> dict[str, float]:
    clock = HybridLogicalClock("a")
    before_bytes = _rss_bytes()
    store = make_store(eviction=eviction)
    for number in range(ENTRIES):
        key = key_of(number, key_bytes)
        store.apply(key_slot(key), key, pack_record(clock.stamp(UNIX_MS), value_of(number, value_bytes)), UNIX_MS)
    return {"rss_bytes": (_rss_bytes() - before_bytes) / ENTRIES, "counted_bytes": store.bytes_used / ENTRIES}


class _Longest:
    """The longest of many calls, by CPU and by wall time, in ms."""

    def __init__(self) -> None:
        self.cpu_ns = self.wall_ns = 0

    def took(self, cpu_ns: int, wall_ns: int) -> None:
        self.cpu_ns = max(self.cpu_ns, cpu_ns)
        self.wall_ns = max(self.wall_ns, wall_ns)

    def figures(self, name: str) -> dict[str, float]:
        return {f"{name}_cpu_ms": self.cpu_ns / 1e6, f"{name}_wall_ms": self.wall_ns / 1e6}


def _dict_stalls(key_bytes: int, value_bytes: int) -> dict[str, float]:
    entries = {}
    longest = _Longest()
    cpu, wall = time.thread_time_ns, time.perf_counter_ns
    for number in range(ENTRIES):
        key, value = key_of(number, key_bytes), value_of(number, value_bytes)
        wall_ns, cpu_ns = wall(), cpu()
        entries[key] = value
        longest.took(cpu() - cpu_ns, wall() - wall_ns)
    return longest.figures("fill")


def _store_stalls(key_bytes: int, value_bytes: int, eviction: str) -> dict[str, float]:
    """Fill with entries of one TTL, then expire them in slices, as a node does."""
    clock = HybridLogicalClock("a")
    store = make_store(eviction=eviction)
    filling, expiring = _Longest(), _Longest()
    cpu, wall = time.thread_time_ns, time.perf_counter_ns
    for number in range(ENTRIES):
        unix_ms = UNIX_MS + number // 100  # 100,000 writes a second.
        key, value = key_of(number, key_bytes), value_of(number, value_bytes)
        slot = key_slot(key)
        wall_ns, cpu_ns = wall(), cpu()
        store.apply(slot, key, pack_record(clock.stamp(unix_ms), value, expires_unix_ms=unix_ms + TTL_MS), unix_ms)
        filling.took(cpu() - cpu_ns, wall() - wall_ns)
    unix_ms = UNIX_MS + ENTRIES // 100 + TTL_MS + 1000
    while store.items:
        wall_ns, cpu_ns = wall(), cpu()
        store.expire(unix_ms, EXPIRY_SLICE_KEYS)
        expiring.took(cpu() - cpu_ns, wall() - wall_ns)
    return filling.figures("fill") | expiring.figures("expire")


def _child(what: str, size: str) -> dict[str, float]:
    command = ["taskset", "-c", str(cores()[0]), sys.executable, "-m", "bench.memory", what]
    command += [str(number) for number in SIZES[size]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasurableError(f"{what}: {done.stderr[-300:]}")
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


@functools.cache
def _rss(what: str, size: str) -> list[dict[str, float]]:
    return [_child(what, size) for _ in range(RSS_ROUNDS)]


def _memory(size: str, eviction: str) -> Measured:
    ours, plain = _rss(f"rss-{eviction}", size), _rss("rss-dict", size)
    ours_bytes = median(item["rss_bytes"] for item in ours)
    plain_bytes = median(item["rss_bytes"] for item in plain)
    return Measured(
        ours_bytes / plain_bytes,
        f"{ours_bytes:.0f} B an entry",
        f"{plain_bytes:.0f} B an entry",
        details={"ours": rounded(item["rss_bytes"] for item in ours)},
    )


@row("memory-long-keys", "RSS of 1M entries, keys of 20 and values of 32 bytes", baseline="a plain dict", high=1.25)
def memory_long_keys() -> Measured:
    """Compare with the least that Python can do."""
    return _memory("long-keys", "sieve")


@row("memory-short-keys", "RSS of 1M entries, keys of 12 and values of 40 bytes", baseline="a plain dict", high=1.25)
def memory_short_keys() -> Measured:
    """Compare with the least that Python can do, where malloc's rounding is in its favour."""
    return _memory("short-keys", "sieve")


@row("memory-lru", "the same with LRU, keys of 20 and values of 32 bytes", baseline="a plain dict")
def memory_lru() -> Measured:
    """Show what the other policy takes."""
    return _memory("long-keys", "lru")


@row("memory-bound", "bytes counted for 1M entries, the worst case", baseline="their RSS", low=0.85, high=1.15)
def memory_bound() -> Measured:
    """The bound means something only if what is counted is what is used."""
    cases = {}
    for what, size in (("rss-sieve", "long-keys"), ("rss-sieve", "short-keys"), ("rss-lru", "long-keys")):
        runs = _rss(what, size)
        cases[f"{what[4:]}, {size}"] = (
            median(item["counted_bytes"] for item in runs),
            median(item["rss_bytes"] for item in runs),
        )
    counted, used = max(cases.values(), key=lambda pair: abs(pair[0] / pair[1] - 1))
    details = {name: rounded(pair, 1) for name, pair in cases.items()}
    return Measured(counted / used, f"{counted:.0f} B an entry", f"{used:.0f} B an entry", details=details)


@functools.cache
def _stalls() -> dict[str, list[dict[str, float]]]:
    rounds = {"stalls-sieve": ROUNDS, "stalls-dict": ROUNDS, "stalls-lru": LRU_ROUNDS}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in rounds}
    for number in range(ROUNDS):
        for kind, count in rounds.items():
            if number < count:
                found[kind].append(_child(kind, "long-keys"))
    return found


def _stall(phase: str, kind: str) -> Measured:
    found = _stalls()
    ours = [item[f"{phase}_cpu_ms"] for item in found[kind]]
    plain_ms = median(item["fill_cpu_ms"] for item in found["stalls-dict"])
    wall = [item[f"{phase}_wall_ms"] for item in found[kind]]
    details = {"cpu_ms": rounded(ours, 1), "wall_ms": rounded(wall, 1)}
    return Measured(median(ours), f"{median(ours):.1f} ms", f"{plain_ms:.1f} ms", details=details)


@row("memory-stall-fill", "longest call while 1M entries are written", baseline="a dict's growth", unit=" ms", high=10)
def memory_stall_fill() -> Measured:
    """No write may hold up all others."""
    return _stall("fill", "stalls-sieve")


@row("memory-stall-expire", "longest slice while 1M entries expire", baseline="a dict's growth", unit=" ms", high=10)
def memory_stall_expire() -> Measured:
    """No slice of active expiry may hold up the requests."""
    return _stall("expire", "stalls-sieve")


@row("memory-stall-lru-fill", "the same with LRU: writes", baseline="a dict's growth", unit=" ms")
def memory_stall_lru_fill() -> Measured:
    """No write may hold up all others, with the other policy either."""
    return _stall("fill", "stalls-lru")


@row("memory-stall-lru-expire", "the same with LRU: expiry", baseline="a dict's growth", unit=" ms")
def memory_stall_lru_expire() -> Measured:
    """No slice of active expiry may hold up the requests, with the other policy either."""
    return _stall("expire", "stalls-lru")


def _main() -> None:
    what, key_bytes, value_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    kind, _, subject = what.partition("-")
    if kind == "rss":
        found = _dict_rss(key_bytes, value_bytes) if subject == "dict" else _store_rss(key_bytes, value_bytes, subject)
    elif subject == "dict":
        found = _dict_stalls(key_bytes, value_bytes)
    else:
        found = _store_stalls(key_bytes, value_bytes, subject)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
