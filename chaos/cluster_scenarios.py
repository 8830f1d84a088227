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

from chaos.faults import HEAL_MAX_S, SETTINGS, FaultyCluster
from chaos.simulator import Simulation
from zephyr.model import Outcome, ReadRequest, WriteRequest
from zephyr.store.record import record_value

FAULTS_S = 60.0
"""Faults are injected for so long."""
SETTLE_S = 30.0
"""After that: rounds of probes which find that UDP passes again, by nodes that doubt themselves and are slow, too."""
SAMPLE_S = 0.5
"""How often the nodes' rings are compared."""


class RandomRun(FaultyCluster):
    """One seed: a plan drawn from the simulation's own random source."""

    def __init__(self, seed: int, node_count: int) -> None:
        ids = [f"n{number}" for number in range(1, node_count + 1)]
        super().__init__(Simulation(seed, settings=SETTINGS), ids, FAULTS_S)
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
