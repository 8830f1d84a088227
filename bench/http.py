"""What a request costs over HTTP, against a bare aiohttp handler over a dict with the same answers.

The baseline is aiohttp's low-level server with one handler and no router, on uvloop, its headers ready
made: as little as aiohttp can do. Server and load have a core each; rounds are interleaved.
"""

from __future__ import annotations

import functools

from bench.keys import key_of
from bench.load import Keys, Load, Server, cores, free_port, send, start
from bench.rows import Measured, median, rounded, row
from zephyr.ring.ring import RingMember, build_ring, key_slot

KEYS = 10_000
LOCAL_ROUNDS = 11
"""Many short rounds, each in another order: a disturbance hits one of them, not one server."""
LOCAL_LOAD_S = 1
GROWTH_KEYS = (10_000, 100_000, 1_000_000, 5_000_000)
GROWTH_KEYS_ASKED = 100_000
GROWTH_LOAD_S = 1
GROWTH_ROUNDS = 7


@functools.cache
def _pair() -> dict[str, Server]:
    """Start one node and the baselines, filled alike."""
    servers = {kind: start(kind, "--fill", str(KEYS)) for kind in ("node", "low-level", "application")}
    for server in servers.values():
        server.wait()
    return servers


@functools.cache
def _local(method: str) -> dict[str, list[Load]]:
    """Load the node and the baselines in turn."""
    keys = Keys([key_of(number) for number in range(KEYS)])
    servers = _pair()
    for server in servers.values():
        send(server, method, keys, duration_s=1)
    loads: dict[str, list[Load]] = {kind: [] for kind in servers}
    order = list(servers.items())
    for _ in range(LOCAL_ROUNDS):
        order = order[1:] + order[:1]
        for kind, server in order:
            loads[kind].append(send(server, method, keys, duration_s=LOCAL_LOAD_S))
    return loads


def _compared(ours: list[Load], baseline: list[Load]) -> Measured:
    ratios = [mine.per_s / theirs.per_s for mine, theirs in zip(ours, baseline, strict=True)]
    return Measured(
        median(ratios),
        f"{median(load.per_s for load in ours):,.0f}/s",
        f"{median(load.per_s for load in baseline):,.0f}/s",
        (median(load.cpu_us for load in ours), median(load.cpu_us for load in baseline)),
        {
            "ratios": rounded(ratios),
            "ours_per_s": rounded((load.per_s for load in ours), 0),
            "baseline_per_s": rounded((load.per_s for load in baseline), 0),
            "ours_p99_ms": rounded(load.latency_p99_ms for load in ours),
            "baseline_p99_ms": rounded(load.latency_p99_ms for load in baseline),
        },
    )


@row("http-get", "GET of a local key", baseline="a bare aiohttp handler", low=0.85)
def http_get() -> Measured:
    """Read keys that this node holds."""
    loads = _local("GET")
    return _compared(loads["node"], loads["low-level"])


@row("http-put", "PUT of a local key", baseline="a bare aiohttp handler", low=0.85)
def http_put() -> Measured:
    """Overwrite keys that this node holds."""
    loads = _local("PUT")
    return _compared(loads["node"], loads["low-level"])


@row("http-get-routed", "GET of a local key", baseline="an aiohttp application with a route")
def http_get_routed() -> Measured:
    """Compare with what most people would write."""
    loads = _local("GET")
    return _compared(loads["node"], loads["application"])


@row("http-put-routed", "PUT of a local key", baseline="an aiohttp application with a route")
def http_put_routed() -> Measured:
    """Compare with what most people would write."""
    loads = _local("PUT")
    return _compared(loads["node"], loads["application"])


@row("http-lag", "event loop's lag under full load, p99", baseline="the bare handler's", unit=" ms", high=10)
def http_lag() -> Measured:
    """How late a timer fires while all connections send GETs and PUTs as fast as they are answered."""
    p99_ms: dict[str, list[float]] = {}
    for kind in ("node", "low-level"):
        loads = _local("GET")[kind] + _local("PUT")[kind]
        p99_ms[kind] = [sorted(load.lags_ms)[int(len(load.lags_ms) * 0.99)] for load in loads]
    ours_ms, baseline_ms = median(p99_ms["node"]), median(p99_ms["low-level"])
    details = {"ours_ms": rounded(p99_ms["node"]), "baseline_ms": rounded(p99_ms["low-level"])}
    return Measured(ours_ms, f"{ours_ms:.1f} ms", f"{baseline_ms:.1f} ms", details=details)


@row("http-get-remote", "GET through a node that is no owner", baseline="a local GET of the same node", low=0.5)
def http_get_remote() -> Measured:
    """Two nodes, one copy of each key. The owner shares the core of the load generator."""
    ports = {node_id: free_port() for node_id in "ab"}
    nodes = {
        node_id: start(
            "node", "--id", node_id, "--gossip", str(ports[node_id]), "--fill", str(KEYS), "--members", "2",
            "--join", f"127.0.0.1:{ports['b' if node_id == 'a' else 'a']}", core=core,
        )
        for node_id, core in zip("ab", cores(), strict=True)
    }  # fmt: skip
    for node in nodes.values():
        node.wait()
    ring = build_ring([RingMember("a", 1.0, ""), RingMember("b", 1.0, "")], 1, 1024)
    owned: dict[str, list[bytes]] = {"a": [], "b": []}
    for number in range(KEYS):
        key = key_of(number)
        owned[ring.owners(key_slot(key))[0]].append(key)
    local, remote = Keys(owned["a"]), Keys(owned["b"])
    for keys in (local, remote):
        send(nodes["a"], "GET", keys, duration_s=1)
    loads: dict[str, list[Load]] = {"local": [], "remote": []}
    owner_cpu_us = []
    for _ in range(LOCAL_ROUNDS):
        loads["local"].append(send(nodes["a"], "GET", local, duration_s=LOCAL_LOAD_S))
        owner_cpu_s = nodes["b"].cpu_s()
        load = send(nodes["a"], "GET", remote, duration_s=LOCAL_LOAD_S)
        owner_cpu_us.append((nodes["b"].cpu_s() - owner_cpu_s) / (load.per_s * LOCAL_LOAD_S) * 1e6)
        loads["remote"].append(load)
    for node in nodes.values():
        node.stop()
    measured = _compared(loads["remote"], loads["local"])
    measured.details["owner_cpu_us"] = rounded(owner_cpu_us, 0)
    return measured


@functools.cache
def _grown() -> dict[tuple[str, int], list[Load]]:
    """Load nodes that hold more and more keys, in turn."""
    nodes = {
        count: start("node", "--fill", str(count), "--memory-mib", str(256 + count // 2500)) for count in GROWTH_KEYS
    }
    loads: dict[tuple[str, int], list[Load]] = {}
    keys = {}
    for count, node in nodes.items():
        node.wait()
        step = max(1, count // GROWTH_KEYS_ASKED)
        keys[count] = Keys([key_of(number) for number in range(0, count, step)])
        send(node, "PUT", keys[count], duration_s=1)
    for _ in range(GROWTH_ROUNDS):
        for method in ("GET", "PUT"):
            for count, node in nodes.items():
                load = send(node, method, keys[count], duration_s=GROWTH_LOAD_S)
                loads.setdefault((method, count), []).append(load)
    for node in nodes.values():
        node.stop()
    return loads


def _growth(method: str) -> Measured:
    loads = _grown()
    per_s = {count: [load.per_s for load in loads[method, count]] for count in GROWTH_KEYS}
    smallest = GROWTH_KEYS[0]
    ratios = {
        count: median(mine / theirs for mine, theirs in zip(per_s[count], per_s[smallest], strict=True))
        for count in GROWTH_KEYS
    }
    worst = min(GROWTH_KEYS[1:], key=lambda count: ratios[count])
    return Measured(
        ratios[worst],
        f"{median(per_s[worst]):,.0f}/s at {worst:,}",
        f"{median(per_s[smallest]):,.0f}/s at {smallest:,}",
        (median(load.cpu_us for load in loads[method, worst]), median(load.cpu_us for load in loads[method, smallest])),
        {
            "ratios": {str(count): round(ratio, 3) for count, ratio in ratios.items()},
            "per_s": {str(count): rounded(values, 0) for count, values in per_s.items()},
            "cpu_us": {
                str(count): round(median(load.cpu_us for load in loads[method, count]), 1) for count in GROWTH_KEYS
            },
        },
    )


@row("http-growth-get", "GET with up to 5M keys, the slowest", baseline="the same with 10k keys", low=0.8)
def http_growth_get() -> Measured:
    """A request must not cost more because there are many keys."""
    return _growth("GET")


@row("http-growth-put", "PUT with up to 5M keys, the slowest", baseline="the same with 10k keys", low=0.8)
def http_growth_put() -> Measured:
    """A request must not cost more because there are many keys."""
    return _growth("PUT")
