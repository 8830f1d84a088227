"""What copies cost: clusters that keep three of each key and one, and batches against single requests.

Each cluster is three processes that speak to each other over loopback, all of them on one core; wrk is on the
other. Each node has an equal share of the clients, who know nothing of owners: where there is one copy, two of three
requests go through a node that does not have it. *Alone* is a single node with the same clients, whose requests all
end there. Keys, values and what is loaded first are those of the HTTP rows. Rounds are interleaved, in another order
each.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
from dataclasses import replace

from bench.http import KEYS, LOCAL_LOAD_S, LOCAL_ROUNDS
from bench.keys import VALUE_BYTES, key_of
from bench.load import Keys, Lines, Load, Server, free_port, send_to_each, start
from bench.rows import Measured, NotMeasurableError, median, rounded, row

NODES = 3
CLIENTS = 51
"""The fifty of the HTTP rows, and one more: 17 to each node."""
ANSWER_MAX_S = 5.0
BATCH_OPERATIONS = 100

REQUESTS = {"put": ("PUT", "", 3), "get": ("GET", "", 2), "get-one": ("GET", "?r=1", 1)}
"""What is measured -> method, query, and how many replicas are asked where there are three copies."""


def _start_cluster(replicas: int) -> list[Server]:
    ports = {f"n{number + 1}": free_port() for number in range(NODES)}
    seeds = ",".join(f"127.0.0.1:{port}" for port in ports.values())
    return [
        start(
            "node", "--id", node_id, "--gossip", str(port), "--join", seeds, "--members", str(NODES),
            "--replicas", str(replicas), "--fill", str(KEYS),
        )
        for node_id, port in ports.items()
    ]  # fmt: skip


@functools.cache
def _systems() -> dict[str, list[Server]]:
    """Start both clusters and the single node, filled alike: for each client's third, its server."""
    systems = {"three": _start_cluster(NODES), "one": _start_cluster(1)}
    systems["alone"] = [start("node", "--fill", str(KEYS))] * NODES
    for servers in systems.values():
        for server in servers:
            server.wait()
    return systems


def _ask(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    """Send one request. Raises NotMeasurableError where it is no success."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_MAX_S)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        raise NotMeasurableError(f"{method} {path}: {error}") from None
    finally:
        connection.close()
    if answer.status >= 300:
        raise NotMeasurableError(f"{method} {path}: {answer.status} {answer.reason}")
    return answer, content


def _check_replicas(servers: list[Server], method: str, query: str, asked: int) -> None:
    """See that each node asks as many replicas as the row says."""
    for server in servers:
        answer, _ = _ask(server, method, f"/kv/{key_of(0).decode()}{query}", b"v" * VALUE_BYTES)
        replicas = answer.getheader("X-Zephyr-Replicas", "")
        if replicas.partition("/")[2] != str(asked):
            raise NotMeasurableError(f"{method}{query} answers from {replicas} replicas, not of {asked}")


@functools.cache
def _loaded(request: str) -> dict[str, list[Load]]:
    """Load the clusters and the single node in turn."""
    method, query, asked = REQUESTS[request]
    keys = Keys([key_of(number) for number in range(KEYS)])
    systems = _systems()
    for name, servers in systems.items():
        _check_replicas(servers, method, query, asked if name == "three" else 1)
        send_to_each(servers, method, keys, duration_s=1, connections=CLIENTS, query=query)
    loads: dict[str, list[Load]] = {name: [] for name in systems}
    order = list(systems.items())
    for _ in range(LOCAL_ROUNDS):
        order = order[1:] + order[:1]
        for name, servers in order:
            load = send_to_each(servers, method, keys, duration_s=LOCAL_LOAD_S, connections=CLIENTS, query=query)
            loads[name].append(load)
    return loads


def _compared(ours: list[Load], baseline: list[Load]) -> Measured:
    ratios = [mine.per_s / theirs.per_s for mine, theirs in zip(ours, baseline, strict=True)]
    texts = []
    for loads in (ours, baseline):
        p99_ms = median(load.latency_p99_ms for load in loads)
        texts.append(f"{median(load.per_s for load in loads):,.0f}/s, p99 {p99_ms:.1f} ms")
    return Measured(
        median(ratios),
        texts[0],
        texts[1],
        (median(load.cpu_us for load in ours), median(load.cpu_us for load in baseline)),
        {
            "ratios": rounded(ratios),
            "ours_per_s": rounded((load.per_s for load in ours), 0),
            "baseline_per_s": rounded((load.per_s for load in baseline), 0),
            "ours_cpu_us": rounded((load.cpu_us for load in ours), 1),
            "baseline_cpu_us": rounded((load.cpu_us for load in baseline), 1),
            "ours_p99_ms": rounded(load.latency_p99_ms for load in ours),
            "baseline_p99_ms": rounded(load.latency_p99_ms for load in baseline),
        },
    )


def _register(request: str, title: str, low: float) -> None:
    @row(f"replica-{request}", title, baseline="one copy on three nodes (N=1)", low=low)
    def replica() -> Measured:
        loads = _loaded(request)
        return _compared(loads["three"], loads["one"])


def _register_alone(request: str, title: str, low: float) -> None:
    @row(f"replica-{request}-alone", title, baseline="a single node (N=1)", low=low)
    def replica_alone() -> Measured:
        loads = _loaded(request)
        return _compared(loads["three"], loads["alone"])


_GOALS = {
    "put": ("PUT, three nodes on one core, N=3, W=2", 0.35),
    "get": ("GET, three nodes on one core, N=3, R=2", 0.5),
    "get-one": ("GET ?r=1, three nodes on one core, N=3", 0.9),
}
for _register_row in (_register, _register_alone):
    for _request, (_title, _low) in _GOALS.items():
        _register_row(_request, _title, _low)


# --- batches ------------------------------------------------------------------------------------------


def _batches(operation: str) -> list[bytes]:
    """Return bodies that together have every key once."""
    value = base64.b64encode(b"v" * VALUE_BYTES).decode()
    bodies = []
    for first in range(0, KEYS, BATCH_OPERATIONS):
        keys = [key_of(number).decode() for number in range(first, first + BATCH_OPERATIONS)]
        rows = [{"op": operation, "key": key} | ({"value": value} if operation == "put" else {}) for key in keys]
        bodies.append(json.dumps(rows).encode())
    return bodies


def _check_batch(server: Server, body: bytes) -> None:
    """See that each operation of a batch is answered, and done."""
    _, content = _ask(server, "POST", "/batch", body)
    statuses = [item["status"] for item in json.loads(content)]
    if len(statuses) != BATCH_OPERATIONS or any(status >= 300 for status in statuses):
        raise NotMeasurableError(f"POST /batch: {len(statuses)} rows, statuses {sorted(set(statuses))}")


@functools.cache
def _batched(name: str, operation: str) -> dict[str, list[Load]]:
    """Send batches and single requests in turn, each over one connection to one node. Both counted by operations."""
    nodes = list(dict.fromkeys(_systems()[name]))
    bodies = _batches(operation)
    _check_batch(nodes[0], bodies[0])
    lines = {"BATCH": Lines(bodies), operation.upper(): Keys([key_of(number) for number in range(KEYS)])}
    loads: dict[str, list[Load]] = {"batches": [], "singles": []}
    for _ in range(LOCAL_ROUNDS):
        for method, sent in lines.items():
            load = send_to_each(nodes[:1], method, sent, duration_s=LOCAL_LOAD_S, connections=1, beside=nodes[1:])
            if method == "BATCH":
                load = replace(load, per_s=load.per_s * BATCH_OPERATIONS, cpu_us=load.cpu_us / BATCH_OPERATIONS)
            loads["batches" if method == "BATCH" else "singles"].append(load)
    return loads


def _register_batch(name: str, operation: str, title: str, low: float | None) -> None:
    suffix = "" if name == "three" else f"-{name}"

    @row(f"batch-{operation}{suffix}", title, baseline="a hundred requests, one after the other", low=low)
    def batch() -> Measured:
        loads = _batched(name, operation)
        return _compared(loads["batches"], loads["singles"])


for _operation in ("put", "get"):
    _title = f"{_operation.upper()}s in batches of {BATCH_OPERATIONS} over one connection, N=3"
    _register_batch("three", _operation, _title, 8)
for _operation in ("put", "get"):
    _title = f"{_operation.upper()}s in batches of {BATCH_OPERATIONS} over one connection, a single node"
    _register_batch("alone", _operation, _title, None)
