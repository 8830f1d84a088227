"""What it costs to find the owners of a key."""

from __future__ import annotations

import bisect
import time

import mmh3

from bench.keys import key_of
from bench.rows import ROUNDS, Measured, median, rounded, row
from zephyr.ring.ring import RingMember, build_ring, key_slot

MEMBERS = 10
REPLICAS = 3
VIRTUAL_NODES = 1024
LOOKUPS = 100_000


@row("ring-lookup", "key to its three owners, 10 members", baseline="mmh3 and bisect, one owner")
def ring_lookup() -> Measured:
    """Compare with a sorted list of as many tokens, as hash rings are usually written."""
    ring = build_ring([RingMember(f"node-{number}", 1.0, "") for number in range(MEMBERS)], REPLICAS, VIRTUAL_NODES)
    while not ring.fill():
        pass
    tokens = sorted(
        (mmh3.hash64(b"node-%d#%d" % (member, number), signed=False)[0], member)
        for member in range(MEMBERS)
        for number in range(VIRTUAL_NODES)
    )
    starts, members = [token for token, _ in tokens], [member for _, member in tokens]
    keys = [key_of(number) for number in range(LOOKUPS)]
    ours_ns, baseline_ns = [], []
    for _ in range(ROUNDS):
        began_ns = time.process_time_ns()
        for key in keys:
            ring.owners(key_slot(key))
        ours_ns.append((time.process_time_ns() - began_ns) / LOOKUPS)
        began_ns = time.process_time_ns()
        for key in keys:
            members[bisect.bisect(starts, mmh3.hash64(key, signed=False)[0]) % len(members)]
        baseline_ns.append((time.process_time_ns() - began_ns) / LOOKUPS)
    ratios = [theirs / mine for mine, theirs in zip(ours_ns, baseline_ns, strict=True)]
    return Measured(
        median(ratios),
        f"{1e9 / median(ours_ns):,.0f}/s",
        f"{1e9 / median(baseline_ns):,.0f}/s",
        (median(ours_ns) / 1000, median(baseline_ns) / 1000),
        {"ratios": rounded(ratios)},
    )
