"""What gossip costs where nothing happens: CPU of idle nodes, in a small cluster and in a large one.

Up to ten nodes are real processes. Of a larger cluster one is, and the others are light peers (`bench.light_peers`)
in a process of their own, which speak to it as real ones do.

    python -m bench.detection --mode idle --nodes 100

measures one size; `make bench ONLY=idle` makes the rows.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

from bench.clusters import (
    CONVERGE_MAX_S,
    OUR_CLUSTER,
    ROOT,
    Cluster,
    Zephyr,
    loopback_places,
    process_cpu_s,
    wait_until,
)
from bench.rows import Measured, NotMeasurableError, row

REAL_MAX = 10
"""Nodes of a cluster that are all real: more would be busy with each other on a machine of two cores."""
SETTLE_S = 10.0
"""From all know all to the measurement: the news of the joins has run out by then."""
WATCH_S = 30.0
NODES = {10: 0.01, 100: 0.03}
"""Size of the cluster -> goal: share of a core that an idle node uses."""
SEED = 5


@dataclass(frozen=True, slots=True)
class Idle:
    """What idle nodes used: shares of one core."""

    nodes: int
    shares: tuple[float, ...]
    """Of each real node."""

    @property
    def mean(self) -> float:
        """Return the mean."""
        return sum(self.shares) / len(self.shares)

    def text(self) -> str:
        """Write it for a person."""
        most = f", the busiest {max(self.shares):.2%}" if len(self.shares) > 1 else ""
        return f"{self.mean:.2%} of a core{most}"


def measure_idle(nodes: int, profile: str = "lan") -> Idle:
    """Start a cluster, let it settle, and see what its nodes use. Raises NotMeasurableError where it does not start."""
    if nodes <= REAL_MAX:
        with Cluster(Zephyr(profile), loopback_places(nodes, random.Random(SEED))) as cluster:
            cluster.wait_converged()
            time.sleep(SETTLE_S)
            before_s, began_s = cluster.cpu_s(), time.monotonic()
            time.sleep(WATCH_S)
            after_s, took_s = cluster.cpu_s(), time.monotonic() - began_s
        return Idle(nodes, tuple((after_s[name] - before_s[name]) / took_s for name in before_s))
    return Idle(nodes, (_one_among_light_peers(nodes, profile),))


def _one_among_light_peers(nodes: int, profile: str) -> float:
    with contextlib.ExitStack() as stack:
        light = [sys.executable, "-m", "bench.light_peers", str(nodes - 1), OUR_CLUSTER, profile]
        peers = subprocess.Popen(light, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        stack.callback(peers.wait)
        stack.callback(peers.kill)
        assert peers.stdout is not None
        seeds = peers.stdout.readline().strip().split(",")
        [place] = loopback_places(1, random.Random(SEED))
        command = Zephyr(profile).joining(place, seeds)
        node = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(node.wait)
        stack.callback(node.kill)
        if not wait_until(lambda: _alive(place.control_port) == nodes, CONVERGE_MAX_S):
            raise NotMeasurableError(f"of {nodes} members, the node knows {_alive(place.control_port)}")
        time.sleep(SETTLE_S)
        before_s, began_s = process_cpu_s(node.pid), time.monotonic()
        time.sleep(WATCH_S)
        share = (process_cpu_s(node.pid) - before_s) / (time.monotonic() - began_s)
        if _alive(place.control_port) != nodes:
            raise NotMeasurableError(f"of {nodes} members, {_alive(place.control_port)} are alive in the end")
        return share


def _alive(port: int) -> int:
    """Return how many members a node calls alive; 0 while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/views", timeout=CONVERGE_MAX_S) as answer:
            members = json.load(answer)["members"]
    except OSError:
        return 0
    return sum(member["gossip"]["state"] == "alive" for member in members)


def _register(nodes: int, goal: float) -> None:
    @row(f"idle-{nodes}", f"CPU of an idle node, {nodes} nodes, share of a core", baseline="none", high=goal)
    def idle() -> Measured:
        found = measure_idle(nodes)
        return Measured(found.mean, found.text(), "-", details={"shares": list(found.shares)})


for _nodes, _goal in NODES.items():
    _register(_nodes, _goal)
