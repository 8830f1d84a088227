"""Whole nodes under random faults of etcd, network and processes: one seed is one run.

Faults come for a minute, of every kind that `RandomRun` knows, several at a time; then all of them end and every node
is brought back. What must hold: each node's invariants after each of its events; equal rings wherever the same word of
etcd makes them; a ring once seen is never empty; every value read was written; and `HEAL_MAX_S` after the last fault
all nodes are registered, their rings are equal and contain all of them, and a value written through one node is read
through each.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable
from dataclasses import replace

from chaos.simulator import Simulation
from zephyr.config import Settings
from zephyr.model import Outcome, ReadRequest, WriteRequest
from zephyr.store.record import record_value

FAULTS_S = 60.0
"""Faults are injected for so long."""
SETTINGS = replace(Settings(id="unnamed"), virtual_nodes=16)
"""Few virtual nodes: ring balance is not what is tested here, and tables are built thousands of times."""
HEAL_MAX_S = SETTINGS.evict_after + 5.0
"""Longest time from the last fault to equal rings."""
SETTLE_S = 30.0
"""After that: rounds of probes which find that UDP passes again, by nodes that doubt themselves and are slow, too."""
SAMPLE_S = 0.5
"""How often the nodes' rings are compared."""
PAUSES_S = (0.5, 3.0, 8.0, 15.0)
"""Below half a lease, and above; up to more than a whole one."""
WATCH_DELAY_S = 3.0


class RandomRun:
    """One seed: a plan drawn from the simulation's own random source."""

    def __init__(self, seed: int, node_count: int) -> None:
        self.simulation = Simulation(seed, settings=SETTINGS)
        self.ids = [f"n{number}" for number in range(1, node_count + 1)]
        self.written: dict[bytes, list[bytes]] = {}
        self.reads: list[tuple[bytes, tuple[str, int]]] = []
        self.answered = 0
        self._count = 0

    def run(self) -> None:
        """Play the whole run. Raises AssertionError when something does not hold."""
        simulation = self.simulation
        simulation.tick_etcd(0.5, FAULTS_S + HEAL_MAX_S + SETTLE_S + 10)
        for number, node_id in enumerate(self.ids):
            simulation.at(number * 0.3, lambda node_id=node_id: simulation.start(node_id))  # type: ignore[misc]
        for at_s in range(5, int(FAULTS_S)):
            if simulation.rng.random() < 0.25:
                simulation.at(at_s + simulation.rng.random(), self._fault)
        for step in range(int(FAULTS_S * 4)):
            simulation.at(2 + step / 4, self._client)
        simulation.at(SAMPLE_S, self._sample)
        simulation.run_until(FAULTS_S + 1)
        self._heal()
        simulation.run_until(FAULTS_S + 1 + HEAL_MAX_S)
        self._check_rings()
        simulation.run_until(simulation.now_s + SETTLE_S)
        self._check_authority()
        self._check_service()
        self._check_reads()

    def _fault(self) -> None:
        faults: list[Callable[[], None]] = [
            self._crash, self._restart, self._leave, self._pause, self._split, self._cut_peers,
            self._cut_one_way, self._block_udp, self._toggle_loss, self._toggle_etcd,
            self._cut_from_etcd, self._cut_all_from_etcd, self._wipe_etcd, self._wipe_silently,
            self._stick_watch, self._delay_watch, self._compact, self._elect, self._revoke_all,
            self._delete_registration,
        ]  # fmt: skip
        self.simulation.rng.choice(faults)()

    def _pick(self) -> str | None:
        running = [node_id for node_id in self.ids if node_id in self.simulation.nodes]
        return self.simulation.rng.choice(running) if running else None

    def _runs(self, node_id: str) -> bool:
        simulated = self.simulation.nodes[node_id]
        return not simulated.stopped and self.simulation.now_s >= simulated.resumes_s

    def _sample(self) -> None:
        """Where etcd's word alone makes the ring, the same word makes the same ring."""
        digests: dict[object, str] = {}
        for node_id, simulated in self.simulation.nodes.items():
            node = simulated.node
            if not self._runs(node_id) or not node.cluster.is_plain or node.view.digest != node.coordinator.digest:
                continue
            assert node.etcd is not None
            word = tuple(sorted((item.member.id, item.mod_revision) for item in node.etcd.registrations.values()))
            digest = digests.setdefault((node.etcd.generation, word), node.view.digest.hex())
            assert digest == node.view.digest.hex(), f"{node_id} makes another ring of the same registrations"
        if self.simulation.now_s < FAULTS_S:
            self.simulation.at(self.simulation.now_s + SAMPLE_S, self._sample)

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
            left_s = FAULTS_S - self.simulation.now_s
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

    def _client(self) -> None:
        """Write or read one key through some node."""
        node_id = self._pick()
        if node_id is None or not self._runs(node_id):
            return
        key = b"key-%d" % self.simulation.rng.randrange(20)
        if self.simulation.rng.random() < 0.5:
            self._count += 1
            value = b"value-%d" % self._count
            self.written.setdefault(key, []).append(value)
            self.simulation.submit(node_id, WriteRequest(key, value))
            return
        result = self.simulation.submit(node_id, ReadRequest(key))
        if isinstance(result, Outcome):
            self._check_read(key, result)
        else:
            self.reads.append((key, result))

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

    def _check_service(self) -> None:
        simulation = self.simulation
        for node_id in self.ids:
            key, value = f"final-{node_id}".encode(), f"through-{node_id}".encode()
            self.written[key] = [value]
            result = simulation.submit(node_id, WriteRequest(key, value))
            simulation.run_until(simulation.now_s + 0.5)
            outcome = result if isinstance(result, Outcome) else simulation.outcomes[result]
            assert outcome.failure is None, f"write through {node_id}: {outcome}"
            for reader in self.ids:
                read = simulation.submit(reader, ReadRequest(key))
                simulation.run_until(simulation.now_s + 0.1)
                outcome = read if isinstance(read, Outcome) else simulation.outcomes[read]
                assert outcome.record is not None, f"read through {reader}: {outcome}"
                assert outcome.record.endswith(value), f"read through {reader} another value"

    def _check_reads(self) -> None:
        for key, request in self.reads:
            outcome = self.simulation.outcomes.get(request)
            if outcome is not None:
                self._check_read(key, outcome)
        assert self.answered > 0, "no read was answered: the run shows nothing"

    def _check_read(self, key: bytes, outcome: Outcome) -> None:
        if outcome.failure is None:
            self.answered += 1
            if outcome.record is not None:
                value = record_value(outcome.record)
                assert value in self.written.get(key, []), f"{key!r} was read as {value!r}, which nobody wrote"


def log_digest(log: list[str]) -> str:
    """Return a short fingerprint of an event log."""
    return hashlib.sha256("\n".join(log).encode()).hexdigest()[:16]


def run_seed(seed: int, node_count: int = 5) -> tuple[int, str, str]:
    """Run one seed. Return it, its log's digest, and the failure or an empty text."""
    run = RandomRun(seed, node_count)
    try:
        run.run()
    except Exception as error:  # noqa: BLE001  # any failure of a run is its result
        place = traceback.extract_tb(error.__traceback__)[-1]
        return seed, log_digest(run.simulation.log), f"{type(error).__name__}: {error} ({place.name}:{place.lineno})"
    return seed, log_digest(run.simulation.log), ""
