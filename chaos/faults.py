"""What can be done to a simulated cluster, and what must hold when all of it is over.

Faults are drawn from the simulation's own random source; those that toggle end the one before. A scenario says which of
them come when, and what else must hold.
"""

from __future__ import annotations

from dataclasses import replace

from chaos.simulator import Simulation
from zephyr.config import Settings
from zephyr.model import NodeId

SETTINGS = replace(Settings(id="unnamed"), virtual_nodes=16)
"""Few virtual nodes: ring balance is not what is tested here, and tables are built thousands of times."""
HEAL_MAX_S = SETTINGS.evict_after + 5.0
"""Longest time from the last fault to equal rings."""
PAUSES_S = (0.5, 3.0, 8.0, 15.0)
"""Below half a lease, and above; up to more than a whole one."""
WATCH_DELAY_S = 3.0


class FaultyCluster:
    """A simulation, the ids of its nodes, and what can be done to them."""

    def __init__(self, simulation: Simulation, ids: list[NodeId], faults_end_s: float) -> None:
        """`faults_end_s`: no pause is longer than until then."""
        self.simulation = simulation
        self.ids = ids
        self.faults_end_s = faults_end_s

    def _pick(self) -> str | None:
        running = [node_id for node_id in self.ids if node_id in self.simulation.nodes]
        return self.simulation.rng.choice(running) if running else None

    def _runs(self, node_id: str) -> bool:
        simulated = self.simulation.nodes[node_id]
        return not simulated.stopped and self.simulation.now_s >= simulated.resumes_s

    def _crash(self) -> None:
        if node_id := self._pick():
            self.simulation.crash(node_id)

    def _restart(self) -> None:
        for node_id in self.ids:
            if node_id not in self.simulation.nodes:
                self.simulation.start(node_id)
                return

    def _leave(self) -> None:
        if node_id := self._pick():
            self.simulation.leave(node_id)

    def _toggle_etcd(self) -> None:
        simulation = self.simulation
        simulation.etcd_up = not simulation.etcd_up
        simulation.record("etcd", "up" if simulation.etcd_up else "down")
        if simulation.etcd_up:
            simulation.etcd.restart(simulation.now_s)
        else:
            simulation.break_watches()

    def _wipe_etcd(self) -> None:
        self.simulation.record("etcd", "wiped")
        self.simulation.etcd_up = False
        self.simulation.break_watches()
        self.simulation.etcd.wipe()
        self.simulation.etcd_up = True

    def _wipe_silently(self) -> None:
        """Lose everything without ending a stream, as behind a proxy: the watches stay, and tell nothing."""
        self.simulation.record("etcd", "wiped silently")
        streams = dict(self.simulation.etcd.watchers)
        self.simulation.etcd.wipe()
        self.simulation.etcd.watchers.update(streams)

    def _stick_watch(self) -> None:
        """Let one node's watch fall silent without an end."""
        if node_id := self._pick():
            self.simulation.record(node_id, "watch stuck")
            self.simulation.etcd.watchers.pop(node_id, None)

    def _cut_from_etcd(self) -> None:
        if node_id := self._pick():
            if self.simulation.cut_from_etcd.pop(node_id, None) is None:
                self.simulation.cut_from_etcd[node_id] = True
                self.simulation.record(node_id, "cut from etcd")
            self.simulation.break_watches()

    def _cut_peers(self) -> None:
        one, other = self._pick(), self._pick()
        if one and other and one != other:
            self.simulation.record(one, f"cut from {other}")
            self.simulation.cuts[one, other] = self.simulation.cuts[other, one] = True

    def _split(self) -> None:
        """Cut the cluster in two, with etcd on either side, on both or on none."""
        simulation = self.simulation
        if simulation.cuts:
            simulation.cuts.clear()
            simulation.cut_from_etcd.clear()
            simulation.record("network", "whole again")
            return
        side = simulation.rng.sample(self.ids, simulation.rng.randrange(1, len(self.ids)))
        for one in self.ids:
            for other in self.ids:
                if (one in side) != (other in side):
                    simulation.cuts[one, other] = True
        reaches = simulation.rng.choice(["both", "side", "rest", "none"])
        for node_id in self.ids:
            if (
                reaches == "none"
                or (reaches == "side" and node_id not in side)
                or (reaches == "rest" and node_id in side)
            ):
                simulation.cut_from_etcd[node_id] = True
        simulation.record("network", f"{','.join(sorted(side))} cut from the rest; etcd reached by {reaches}")
        simulation.break_watches()

    def _cut_all_from_etcd(self) -> None:
        simulation = self.simulation
        if simulation.cut_from_etcd:
            simulation.cut_from_etcd.clear()
        else:
            simulation.cut_from_etcd = dict.fromkeys(self.ids, True)
        simulation.record("etcd", f"unreachable for {len(simulation.cut_from_etcd)}")
        simulation.break_watches()

    def _cut_one_way(self) -> None:
        one, other = self._pick(), self._pick()
        if one and other and one != other:
            self.simulation.record(one, f"does not reach {other}")
            self.simulation.cuts[one, other] = True

    def _block_udp(self) -> None:
        """Block datagrams at one node or at all, or let them through again."""
        simulation = self.simulation
        if simulation.udp_blocked:
            simulation.udp_blocked.clear()
        elif node_id := self._pick():
            simulation.udp_blocked = dict.fromkeys(simulation.rng.choice([[node_id], self.ids]), True)
        simulation.record("network", f"UDP blocked at {','.join(simulation.udp_blocked) or 'none'}")

    def _pause(self) -> None:
        if node_id := self._pick():
            left_s = self.faults_end_s - self.simulation.now_s
            self.simulation.pause(node_id, min(left_s, self.simulation.rng.choice(PAUSES_S)))

    def _delay_watch(self) -> None:
        if node_id := self._pick():
            self.simulation.record(node_id, "watch is late")
            self.simulation.nodes[node_id].etcd_line_s = self.simulation.now_s + WATCH_DELAY_S

    def _compact(self) -> None:
        self.simulation.record("etcd", "compacted")
        self.simulation.etcd.compact()

    def _elect(self) -> None:
        self.simulation.record("etcd", "a new leader renews all leases")
        self.simulation.etcd.elect(self.simulation.now_s)

    def _revoke_all(self) -> None:
        self.simulation.record("etcd", "all leases revoked")
        self.simulation.etcd.revoke_all()

    def _toggle_loss(self) -> None:
        self.simulation.loss = 0.0 if self.simulation.loss else 0.05
        self.simulation.record("network", f"loss {self.simulation.loss}")

    def _delete_registration(self) -> None:
        keys = sorted(key for key in self.simulation.etcd.pairs if b"/members/" in key)
        if keys:
            key = self.simulation.rng.choice(keys)
            self.simulation.record("etcd", f"deleted {key.decode()} by hand")
            self.simulation.etcd.delete(key)

    def _heal(self) -> None:
        """End every fault, and bring every node back."""
        simulation = self.simulation
        simulation.record("world", "healed")
        simulation.loss = 0.0
        simulation.cuts.clear()
        simulation.udp_blocked.clear()
        simulation.cut_from_etcd.clear()
        if not simulation.etcd_up:
            self._toggle_etcd()
        for node_id in self.ids:
            running = simulation.nodes.get(node_id)
            if running is not None and (running.stopped or "leaving the cluster" in running.node.readiness()):
                simulation.crash(node_id)
            if node_id not in simulation.nodes:
                simulation.start(node_id)

    def _check_rings(self) -> None:
        nodes = [self.simulation.nodes[node_id] for node_id in self.ids]
        for simulated in nodes:
            node = simulated.node
            assert not simulated.stopped, f"{node.settings.id} stopped: {simulated.stopped}"
            assert not node.readiness(), f"{node.settings.id} is not ready: {node.readiness()}"
            assert list(node.view.owners) == self.ids, f"{node.settings.id} sees owners {node.view.owners}"
        assert len({simulated.node.view.digest for simulated in nodes}) == 1, "ring digests differ"

    def _check_authority(self) -> None:
        for node_id in self.ids:
            view = self.simulation.nodes[node_id].node.view
            assert view.authority == "both", f"{node_id}: authority {view.authority}"
