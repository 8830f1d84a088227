"""What is claimed of the data plane, on whole nodes under random faults: one seed is one run.

Several clients read, write and delete a few keys through all nodes, while nodes are killed and start again, stand
still, are cut off both ways or one, lose packets and have clocks that differ by up to 400 ms; now and then one is far
ahead. Each seed draws which of these there are, so that some runs know but one. Then all of it ends, every node is
level again, everything is read through every node, and what each of them keeps is looked at. `chaos.checkers` judges
the history.

An acknowledged write survives the loss of one replica until the others have it again. So a node is killed only while
all are level; nodes stand still and are cut off at any time, and who is evicted then loses what it has, which the
checkers count. A replica that missed a write has it from the hints of who coordinated that, or from a read
(docs/guarantees.md, 2): so what is kept is looked at after everything was read, and before that, too, where no node was
killed and took its hints with it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chaos.checkers import Report, check
from chaos.cluster_scenarios import log_digest
from chaos.faults import HEAL_MAX_S, SETTINGS, FaultyCluster
from chaos.history import Run
from chaos.recorded import CLIENT_TIMEOUT_S, SETTLE_S, RecordedSimulation
from zephyr.model import NodeId, ReadRequest, WriteRequest

NODES = (5, 6, 7)
"""One of them, by seed."""
WARM_S = 5.0
"""All nodes are in the ring by then, and clients begin."""
FAULTS_END_S = 50.0
"""All faults are over by then."""
CALM_S = 5.0
"""Clients go on for so long after that."""
LEVEL_WITHIN_S = 60.0
"""After the last fault, until every node is level."""
REPAIR_S = 15.0
"""Then, until what is kept is compared: hints and repairs have that long."""
PROCESSES = 8
THINK_S = 0.08
"""Between two requests of a process, on average."""
PLAIN_KEYS = 5
"""Keys that are only written."""
DELETED_KEYS = 5
"""Keys that are deleted, too."""
FLEETING_KEYS = 2
"""Keys that are deleted, and written with a deadline half of the time."""
HOT_KEYS = PLAIN_KEYS + DELETED_KEYS + FLEETING_KEYS
COLD_SHARE = 0.03
"""Of requests: a write of a key that nobody asks for again before the end. What misses it is mended by hints alone."""
SLOPPY_SHARE = 0.05
"""Of writes."""
SKEW_MAX_MS = 200
"""No clock is further off, but for one that is far ahead."""
FAR_AHEAD_MS = (1_000, 60_000, 3_600_000)
FAULT_EVERY_S = 2.5
"""Between two faults, on average."""
LASTS_S = (0.3, 1.0, 3.0, 12.0, 18.0)
"""How long nodes stand still, are down or cut off."""
LOSSES = (0.02, 0.1, 0.3)
DOWN_S = (0.05, 0.5, 2.0, 6.0, 12.0)
"""How long a killed node is down: too short to be missed, and longer than a lease."""
KILL_SHARE = 0.2
"""Of the looks, `KILL_EVERY_S` apart, at which a node may be killed."""
KILL_EVERY_S = 0.5
KINDS = ("pause", "split", "isolation", "pair", "one-way", "loss", "clock step", "clock ahead", "etcd", "watch")
FLEETING_MS = (1000, 2000, 4000)
"""Deadlines."""


def node_count(seed: int) -> int:
    """Return how many nodes a seed has."""
    return NODES[seed % len(NODES)]


class ClaimsRun(FaultyCluster):
    """One seed: a plan drawn from the simulation's own random source, and its history."""

    def __init__(self, seed: int, nodes: int = 0) -> None:
        """`nodes` 0: `node_count` of the seed."""
        count = nodes or node_count(seed)
        ids = [f"n{number}" for number in range(1, count + 1)]
        run = Run(
            scenario="claims",
            nodes=tuple(ids),
            replicas=SETTINGS.replicas,
            unix_ms_at_zero=0,
            clock_skew_max_ms=SKEW_MAX_MS,
            request_timeout_s=SETTINGS.request_timeout,
            settle_s=SETTLE_S,
            ring_within_s=HEAL_MAX_S,
            seed=seed,
            replay=replay_command(seed, count),
        )
        self.simulation: RecordedSimulation = RecordedSimulation(seed, settings=SETTINGS, run=run)
        super().__init__(self.simulation, ids, FAULTS_END_S)
        rng = self.simulation.rng
        chosen = rng.sample(KINDS, rng.randrange(len(KINDS) + 1))
        self.kinds = [kind for kind in KINDS if kind in chosen]
        self.kills = not self.kinds or rng.random() < 0.7
        self.keys = [b"plain-%d" % number for number in range(PLAIN_KEYS)]
        self.keys += [b"deleted-%d" % number for number in range(DELETED_KEYS)]
        self.keys += [b"fleeting-%d" % number for number in range(FLEETING_KEYS)]
        self._written = 0
        self._losses: list[float] = []
        self._fast_id: NodeId = ""
        """Whose clock is far ahead now and then."""
        self._blocked: Counter[tuple[NodeId, NodeId]] = Counter()
        """Pairs (from, to) -> how many faults cut them."""
        self._etcd_blocked: Counter[NodeId] = Counter()

    def run(self) -> Report:
        """Play the whole run, and judge it. Raises AssertionError when the cluster itself breaks."""
        simulation = self.simulation
        simulation.tick_etcd(0.5, FAULTS_END_S + LEVEL_WITHIN_S + REPAIR_S + 60)
        simulation.record("plan", ", ".join(self.kinds + ["kill"] * self.kills))
        for number, node_id in enumerate(self.ids):
            simulation.clock_offsets_ms[node_id] = self._skew_ms()
            simulation.at(number * 0.2, lambda node_id=node_id: simulation.start(node_id))  # type: ignore[misc]
        for number in range(PROCESSES):
            simulation.at(WARM_S + number * 0.01, lambda process=f"c{number}": self._act(process))  # type: ignore[misc]
        if self.kinds:
            simulation.at(WARM_S + 1, self._next_fault)
        if self.kills:
            simulation.at(WARM_S + 1, self._next_kill)
        simulation.run_until(FAULTS_END_S + 1)
        self._heal()
        self._wait_until_level()
        simulation.run_until(simulation.now_s + REPAIR_S)
        assert simulation.is_level(self.ids), "level, and then no longer"
        if not self.kills:
            simulation.take_stock(self.keys)
        self._read_back()
        simulation.take_stock(self.keys)
        simulation.history.sort()
        return check(simulation.history)

    def _wait_until_level(self) -> None:
        simulation = self.simulation
        while not simulation.is_level(self.ids):
            if simulation.now_s > FAULTS_END_S + LEVEL_WITHIN_S:
                missing = {node_id: self.simulation.nodes[node_id].node.readiness() for node_id in self.ids}
                raise AssertionError(f"not level {LEVEL_WITHIN_S:g} s after the last fault: {missing}")
            simulation.run_until(simulation.now_s + 0.5)

    def _read_back(self) -> None:
        simulation = self.simulation
        for node_id in self.ids:
            for key in self.keys:
                simulation.ask(f"last-{node_id}", node_id, ReadRequest(key))
            simulation.run_until(simulation.now_s + 0.1)
        simulation.run_until(simulation.now_s + CLIENT_TIMEOUT_S + 1)

    # --- clients ------------------------------------------------------------------------------------------

    def _act(self, process: str) -> None:
        """Have a process ask for something, and then for the next."""
        simulation, rng = self.simulation, self.simulation.rng
        if simulation.now_s > FAULTS_END_S + CALM_S:
            return
        node_id, key = rng.choice(self.ids), rng.choice(self.keys[:HOT_KEYS])
        quorum = rng.choices((None, "1", "all"), (88, 8, 4))[0]

        def go_on() -> None:
            simulation.at(simulation.now_s + rng.expovariate(1 / THINK_S), lambda: self._act(process))

        if rng.random() < COLD_SHARE:
            self.keys.append(b"cold-%d" % len(self.keys))
            simulation.ask(process, node_id, WriteRequest(self.keys[-1], self._new_value()), go_on)
            return
        if rng.random() < 0.5:
            simulation.ask(process, node_id, ReadRequest(key, quorum), go_on)
            return
        request = WriteRequest(key, None, quorum=quorum, is_sloppy=rng.random() < SLOPPY_SHARE)
        if key.startswith(b"plain") or rng.random() < 0.7:
            request.value = self._new_value()
            if key.startswith(b"fleeting") and rng.random() < 0.5:
                request.ttl_ms = rng.choice(FLEETING_MS)
        simulation.ask(process, node_id, request, go_on)

    def _new_value(self) -> bytes:
        self._written += 1
        return b"v%d" % self._written

    # --- faults -------------------------------------------------------------------------------------------

    def _next_fault(self) -> None:
        """Begin a fault of this seed's kinds, and see to the next."""
        simulation, rng = self.simulation, self.simulation.rng
        begin: dict[str, Callable[[float], None]] = {
            "pause": self._pause_one,
            "split": self._split_for,
            "isolation": self._isolate,
            "pair": self._cut_pair,
            "one-way": self._cut_way,
            "loss": self._lose,
            "clock step": self._step_clock,
            "clock ahead": self._set_clock_ahead,
            "etcd": self._stop_etcd,
            "watch": lambda _lasts_s: self._delay_watch(),
        }
        lasts_s = min(rng.choice(LASTS_S), FAULTS_END_S - simulation.now_s)
        begin[rng.choice(self.kinds)](lasts_s)
        next_s = simulation.now_s + rng.expovariate(1 / FAULT_EVERY_S)
        if next_s < FAULTS_END_S:
            simulation.at(next_s, self._next_fault)

    def _note(self, fault: str, nodes: Iterable[NodeId], lasts_s: float, detail: str = "") -> None:
        """Write a fault down, in the history and in the log."""
        now_s, names = self.simulation.now_s, tuple(nodes)
        self.simulation.fault(fault, names, now_s, now_s + lasts_s, detail)
        self.simulation.record(",".join(names) or "all", f"{fault} for {lasts_s:.1f} s {detail}".rstrip())

    def _after(self, lasts_s: float, action: Callable[[], None]) -> None:
        self.simulation.at(self.simulation.now_s + lasts_s, action)

    def _next_kill(self) -> None:
        """Kill a node now and then, but only where one replica is all that is lost."""
        simulation, rng = self.simulation, self.simulation.rng
        if simulation.now_s > FAULTS_END_S - KILL_EVERY_S:
            return
        if rng.random() < KILL_SHARE and simulation.is_level(self.ids):
            node_id = rng.choice(self.ids)
            simulation.crash(node_id)
            down_s = min(rng.choice(DOWN_S), FAULTS_END_S - simulation.now_s)
            self._after(down_s, lambda: simulation.start(node_id))
        self._after(KILL_EVERY_S, self._next_kill)

    def _pause_one(self, lasts_s: float) -> None:
        node_id = self._pick()
        if node_id is not None and self._runs(node_id):
            self.simulation.pause(node_id, lasts_s)

    def _block(self, pairs: Sequence[tuple[NodeId, NodeId]], without_etcd: Sequence[NodeId], lasts_s: float) -> None:
        """Lose everything on these ways, and between these nodes and etcd, for a while."""
        simulation = self.simulation
        self._blocked.update(pairs)
        simulation.cuts.update(dict.fromkeys(pairs, True))
        self._etcd_blocked.update(without_etcd)
        simulation.cut_from_etcd.update(dict.fromkeys(without_etcd, True))
        simulation.break_watches()

        def end() -> None:
            self._blocked.subtract(pairs)
            self._etcd_blocked.subtract(without_etcd)
            for pair in pairs:
                if not self._blocked[pair]:
                    simulation.cuts.pop(pair, None)
            for node_id in without_etcd:
                if not self._etcd_blocked[node_id]:
                    simulation.cut_from_etcd.pop(node_id, None)

        self._after(lasts_s, end)

    def _split_for(self, lasts_s: float) -> None:
        """Cut the cluster in two, with etcd on either side, on both or on none."""
        rng = self.simulation.rng
        side = rng.sample(self.ids, rng.randrange(1, len(self.ids)))
        pairs = [(one, other) for one in self.ids for other in self.ids if (one in side) != (other in side)]
        reached = rng.choice(["both", "side", "rest", "none"])
        rest = [node_id for node_id in self.ids if node_id not in side]
        without = {"both": [], "side": rest, "rest": side, "none": self.ids}[reached]
        self._note("partition", self.ids, lasts_s, f"{','.join(sorted(side))} from the rest; etcd reached by {reached}")
        self._block(pairs, without, lasts_s)

    def _isolate(self, lasts_s: float) -> None:
        """Cut one node from all others, both ways or one, with etcd or without."""
        rng = self.simulation.rng
        node_id = rng.choice(self.ids)
        ways = rng.choice(["both", "from", "to"])
        others = [item for item in self.ids if item != node_id]
        pairs = [(node_id, other) for other in others] if ways != "to" else []
        pairs += [(other, node_id) for other in others] if ways != "from" else []
        without = [node_id] if rng.random() < 0.5 else []
        self._note("isolation", self.ids, lasts_s, f"{node_id}, {ways}; {'without' if without else 'with'} etcd")
        self._block(pairs, without, lasts_s)

    def _cut_pair(self, lasts_s: float) -> None:
        one, other = self.simulation.rng.sample(self.ids, 2)
        self._note("partition", (one, other), lasts_s)
        self._block([(one, other), (other, one)], [], lasts_s)

    def _cut_way(self, lasts_s: float) -> None:
        one, other = self.simulation.rng.sample(self.ids, 2)
        self._note("one-way", (one, other), lasts_s, f"{one} does not reach {other}")
        self._block([(one, other)], [], lasts_s)

    def _lose(self, lasts_s: float) -> None:
        share = self.simulation.rng.choice(LOSSES)
        self._note("loss", (), lasts_s, f"{share}")
        self._losses.append(share)
        self.simulation.loss = max(self._losses)

        def end() -> None:
            self._losses.remove(share)
            self.simulation.loss = max(self._losses, default=0.0)

        self._after(lasts_s, end)

    def _skew_ms(self) -> int:
        return self.simulation.rng.randint(-SKEW_MAX_MS, SKEW_MAX_MS)

    def _step_clock(self, _lasts_s: float) -> None:
        """Let a node's clock jump within what clocks may differ by."""
        node_id = self.simulation.rng.choice(self.ids)
        if abs(self.simulation.clock_offsets_ms[node_id]) <= SKEW_MAX_MS:
            self.simulation.clock_offsets_ms[node_id] = self._skew_ms()
            self.simulation.record(node_id, f"clock at {self.simulation.clock_offsets_ms[node_id]} ms")

    def _set_clock_ahead(self, lasts_s: float) -> None:
        """Set a node's clock far ahead for a while, the same one's in all of a run: what two agree on is not refused.

        Not even one after the other: a write may be under way for as long as its receiver stands still.
        """
        simulation = self.simulation
        node_id = self._fast_id = self._fast_id or simulation.rng.choice(self.ids)
        if abs(simulation.clock_offsets_ms[node_id]) > SKEW_MAX_MS:
            return
        ahead_ms = simulation.rng.choice(FAR_AHEAD_MS)
        self._note("clock", (node_id,), lasts_s, f"{ahead_ms} ms ahead")
        simulation.clock_offsets_ms[node_id] = ahead_ms
        self._after(lasts_s, lambda: simulation.clock_offsets_ms.update({node_id: self._skew_ms()}))

    def _stop_etcd(self, lasts_s: float) -> None:
        """Stop etcd for a while, for all nodes."""
        if self.simulation.etcd_up:
            self._note("etcd", (), lasts_s)
            self._toggle_etcd()
            self._after(lasts_s, self._toggle_etcd)


def replay_command(seed: int, node_count: int) -> str:
    """Return the command that plays one run again and prints its event log."""
    return f"python -m chaos.simulate --scenario claims --seed {seed} --nodes {node_count} --log"


class Played(NamedTuple):
    """What one seed showed."""

    seed: int
    node_count: int
    log_digest: str
    report: Report | None
    """None: the run itself broke."""
    failure: str
    """What should have held and did not; empty: all of it did."""

    def figures(self) -> dict[str, float]:
        """Return what a table of many runs shows: of each check, what was judged, and how often it was violated."""
        values: dict[str, float] = {}
        if self.report is not None:
            values = {"operations": self.report.operations, "served": self.report.served}
            for verdict in self.report.verdicts:
                values |= {
                    f"judged {verdict.name}": verdict.judged,
                    f"violations {verdict.name}": verdict.violation_count,
                }
        return values


def play_seed(seed: int, nodes: int = 0) -> Played:
    """Play one seed. Whatever breaks is its result."""
    run = ClaimsRun(seed, nodes)
    report, failure = None, ""
    try:
        report = run.run()
        failure = "; ".join(f"{item.name} {item.violation_count}x: {item.violations[0].text}" for item in report.red)
    except Exception as error:  # noqa: BLE001  # any failure of a run is its result
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error} ({place.name}:{place.lineno})"
    return Played(seed, len(run.ids), log_digest(run.simulation.log), report, failure)
