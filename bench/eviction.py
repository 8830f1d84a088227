"""Which policy keeps the right keys: traces driven through the seam that the store uses.

    zipf-0.8, zipf-1.0, zipf-1.2   requests whose popularity falls with the rank to that power
    scan                           zipf 1.0, every tenth of it followed by a scan of keys asked for once
    shift                          zipf 1.0 over a tenth of the keys, which moves on nine times

Each is read with a cache of 0.1 %, 1 % and 10 % of its distinct keys. The figure is the share of requests
that miss; a policy's score is the mean over all traces and sizes of its misses against LRU's.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Callable, Iterator

from bench.rows import Measured, row
from bench.s3fifo import S3Fifo
from zephyr.store.eviction import EvictionPolicy, LeastRecentlyUsed, Sieve

KEYS = 100_000
REQUESTS = 500_000
SCANS = 10
SCAN_KEYS = 20_000
SHIFTS = 10
SHARES = (0.001, 0.01, 0.1)
SEED = 20_24
POLICIES: dict[str, tuple[Callable[[], EvictionPolicy], float]] = {
    "lru": (LeastRecentlyUsed, 1.0),
    "sieve": (Sieve, 1.0),
    "s3-fifo": (S3Fifo, 1.0),
    "s3-fifo, equal memory": (S3Fifo, 214 / 224),
}
"""Each with the share of keys that it gets. An entry of 52 bytes takes 214 bytes with SIEVE. S3-FIFO would need at
least 10 more: one more bit for each of the 8 to 16 bits that SIEVE has for a key, and a ghost of a fingerprint and a
time, 4 bytes each. (LRU takes 292; it gets as many keys all the same.)"""


def _zipf(rng: random.Random, keys: int, power: float, count: int) -> list[int]:
    """Draw ranks, 0 the most popular."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** power for rank in range(keys)))
    total = weights[-1]
    draw = rng.random
    return [bisect.bisect_left(weights, draw() * total) for _ in range(count)]


def _scan(rng: random.Random) -> Iterator[int]:
    ranks = _zipf(rng, KEYS, 1.0, REQUESTS - SCANS * SCAN_KEYS)
    part = len(ranks) // SCANS
    for number in range(SCANS):
        yield from ranks[number * part : (number + 1) * part]
        first = KEYS + number * SCAN_KEYS
        yield from range(first, first + SCAN_KEYS)


def _shift(rng: random.Random) -> Iterator[int]:
    keys = KEYS // SHIFTS
    for number in range(SHIFTS):
        yield from (number * keys + rank for rank in _zipf(rng, keys, 1.0, REQUESTS // SHIFTS))


TRACES: dict[str, Callable[[random.Random], Iterator[int]]] = {
    "zipf-0.8": lambda rng: iter(_zipf(rng, KEYS, 0.8, REQUESTS)),
    "zipf-1.0": lambda rng: iter(_zipf(rng, KEYS, 1.0, REQUESTS)),
    "zipf-1.2": lambda rng: iter(_zipf(rng, KEYS, 1.2, REQUESTS)),
    "scan": _scan,
    "shift": _shift,
}


def _misses(policy: EvictionPolicy, requests: list[bytes], capacity: int) -> int:
    """Run requests through a cache of so many keys; return how many miss."""
    present: dict[bytes, None] = {}
    misses = 0
    for key in requests:
        if key in present:
            policy.touch(key)
            continue
        misses += 1
        # As in the store: what was just written is listed, and then room is made without it.
        if len(present) >= capacity:
            victim = policy.next_victim()
            assert victim is not None
            del present[victim]
        present[key] = None
        policy.admit(key, cold=False)
    return misses


@functools.cache
def miss_ratios() -> dict[tuple[str, float, str], float]:
    """Return the share of requests that miss, by trace, share of keys that fit, and policy."""
    ratios = {}
    for trace, make in TRACES.items():
        numbers = list(make(random.Random(SEED)))
        names = {number: b"key-%08d" % number for number in set(numbers)}
        requests = [names[number] for number in numbers]
        for share in SHARES:
            for name, (policy, keys_share) in POLICIES.items():
                misses = _misses(policy(), requests, round(len(names) * share * keys_share))
                ratios[trace, share, name] = misses / len(requests)
    return ratios


def score(name: str) -> float:
    """Return the mean, over all traces and sizes, of a policy's misses against LRU's."""
    ratios = miss_ratios()
    values = [ratios[trace, share, name] / ratios[trace, share, "lru"] for trace in TRACES for share in SHARES]
    return sum(values) / len(values)


def _overall(name: str) -> Measured:
    ratios = miss_ratios()
    cases = list(itertools.product(TRACES, SHARES))
    mean = {policy: sum(ratios[trace, share, policy] for trace, share in cases) / len(cases) for policy in POLICIES}
    table = {f"{trace} {share:.1%}": {p: round(ratios[trace, share, p], 4) for p in POLICIES} for trace, share in cases}
    return Measured(score(name), f"{mean[name]:.1%} miss", f"{mean['lru']:.1%} miss", details={"misses": table})


@row("eviction-sieve", "misses with SIEVE (default), mean over all traces and sizes", baseline="LRU", high=1.0)
def eviction_sieve() -> Measured:
    """Judge the default."""
    return _overall("sieve")


@row("eviction-s3fifo", "misses with S3-FIFO and as many keys, mean over all", baseline="LRU")
def eviction_s3fifo() -> Measured:
    """Judge the candidate."""
    return _overall("s3-fifo")


@row("eviction-s3fifo-memory", "misses with S3-FIFO and as much memory, mean over all", baseline="LRU")
def eviction_s3fifo_memory() -> Measured:
    """Judge the candidate with what its own memory leaves for keys."""
    return _overall("s3-fifo, equal memory")


def _by_trace(trace: str) -> Measured:
    ratios = miss_ratios()
    ours = [ratios[trace, share, "sieve"] for share in SHARES]
    theirs = [ratios[trace, share, "lru"] for share in SHARES]
    value = sum(mine / other for mine, other in zip(ours, theirs, strict=True)) / len(SHARES)
    texts = [" / ".join(f"{ratio:.1%}" for ratio in values) for values in (ours, theirs)]
    return Measured(value, texts[0], texts[1])


def _register(trace: str) -> None:
    @row(f"eviction-{trace}", f"misses with SIEVE, {trace}, at 0.1 / 1 / 10 % of the keys", baseline="LRU")
    def measure() -> Measured:
        return _by_trace(trace)


for _trace in TRACES:
    _register(_trace)
