"""What gossip must stand: each scenario is a function from plain data to plain data, one run of one seed.

    lifeguard   loss and starved nodes for two minutes, and one silent death: false deaths, with Lifeguard and without;
                plain SWIM keeps no connections either, so it is compared with Lifeguard over UDP alone too
    crash       a process ends: how long until the first and until all others know
    container   the same in a container, whose port refuses for a moment only
    silent      a machine loses power: nothing to be seen but silence
    pause       a process is stopped for some seconds
    partition   the network is cut in two for a minute, then heals
    join        a tenth of the nodes is joined by all others at once
    idle        nothing happens: what it costs
    plan        faults at random, then what must hold

`chaos.simulate` runs many of them and makes tables. Nothing here reads a clock or a file.
"""

from __future__ import annotations

import gc
import math
import random
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from chaos.gossip_world import Death, GossipNode, GossipWorld, LogKind
from chaos.network import CrashKind, Host, Lognormal, Path, Uniform
from zephyr.config import GOSSIP_PACES
from zephyr.gossip.suspicion import SUSPICION_MAX_FACTOR, suspicion_min_s

WARM_S = 10.0
"""A settled cluster has measured round trips by then."""
POLL_S = 0.05
"""How often a run looks whether what it waits for has happened."""

LIFEGUARD_S = 120.0
LIFEGUARD_CRASH_S = 60.0
LIFEGUARD_LOSSES = (0.01, 0.03, 0.05)
LIFEGUARD_STARVED = (0.01, 0.05, 0.10)
LIFEGUARD_NODES = (50, 200)
"""The eighteen cells of membership.md."""
LIFEGUARD_ARMS = {"lifeguard": (True, True), "udp": (True, False), "swim": (False, False)}
"""What is compared -> (Lifeguard, kept connections): as it is, Lifeguard over UDP alone, and plain SWIM."""

DETECTION_MAX_S = 120.0
PARTITION_S = 60.0
CONVERGENCE_MAX_S = 120.0
IDLE_WARM_S = 10.0
IDLE_S = 30.0

PLAN_FAULTS_S = 60.0
"""Faults are injected for so long."""
PLAN_LOSS_MAX = 0.01
"""Up to here no live member may be called dead."""
PLAN_PAUSE_HARMLESS_S = 3.0
"""A longer pause may cost the paused member its life: the shortest time to refute is 4 s."""
PLAN_READ_LATE_S = 5.0
"""After a pause, a starved node may not have read for so long that the paused one is back."""
PLAN_EXCUSED_S = 30.0
"""For so long after a fault that explains a false death, it still does: the longest suspicion of ten members and a
few periods."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a scenario, its seed and what else it depends on."""

    scenario: str
    seed: int = 1
    nodes: int = 10
    profile: str = "lan"
    loss: float = 0.0
    starved: float = 0.0
    """Share of the nodes."""
    lifeguard: bool = True
    connections: bool = True
    """Members keep connections: for news at once and for exit evidence. Neither is part of plain SWIM."""
    pause_s: float = 3.0
    refusing: bool = False
    lasts_s: float = 0.0
    """Go on at least until then, for what that costs."""

    def text(self) -> str:
        """Write it so that `parse_case` reads it."""
        parts = [self.scenario]
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if value != item.default or item.name in ("seed", "nodes"):
                parts.append(f"{item.name}={value}")
        return ",".join(parts)


def parse_case(text: str) -> Case:
    """Read `scenario,name=value,...`. Raises ValueError."""
    scenario, *parts = text.split(",")
    if scenario not in SCENARIOS:
        raise ValueError(text)
    known = asdict(Case(scenario))
    values: dict[str, Any] = {}
    for part in parts:
        name, separator, value = part.partition("=")
        if not separator or name not in known or name == "scenario":
            raise ValueError(text)
        kind = type(known[name])
        values[name] = value == "True" if kind is bool else kind(value)
    return Case(scenario, **values)


@dataclass(slots=True)
class Result:
    """What one run showed."""

    case: Case
    values: dict[str, float] = field(default_factory=dict)
    """By what was measured, the unit last; infinite: it did not happen."""
    failure: str = ""
    """What should have held and did not."""
    digest: str = ""
    """Fingerprint of the run's event log, if it had one."""
    log: list[str] | None = None


def run_case(case: Case, log: LogKind = "none") -> Result:
    """Play one run. Any failure of it is its result."""
    gc.disable()  # Millions of records live as long as the run; looking through them again and again finds nothing.
    try:
        return SCENARIOS[case.scenario](case, log)
    except Exception as error:  # noqa: BLE001  # whatever a machine raises is what this run showed
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Result(case, failure=f"{type(error).__name__}: {error} ({place.name}:{place.lineno})")
    finally:
        gc.enable()
        gc.collect()


def _world(case: Case, log: LogKind, path: Path | None = None) -> GossipWorld:
    return GossipWorld(
        case.seed,
        profile=case.profile,
        lifeguard=case.lifeguard,
        connections=case.connections,
        path=path or Path(Uniform(0.0002, 0.005), loss=case.loss),
        log=log,
    )


def _result(case: Case, world: GossipWorld, values: dict[str, float], failure: str = "") -> Result:
    digest = world.log.digest if world.log is not None else ""
    return Result(case, values, failure, digest, world.log.lines if world.log is not None else None)


def _run_until(world: GossipWorld, end_s: float, reached: Callable[[], bool]) -> float:
    """Let time pass until something holds. Return when, or infinity."""
    while world.now_s < end_s:
        world.run_until(min(world.now_s + POLL_S, end_s))
        if reached():
            return world.now_s
    return math.inf


def _false_deaths(world: GossipWorld, without: Iterable[str] = ()) -> int:
    excepted = dict.fromkeys(without)
    return sum(member not in excepted for member, _, _ in world.false_deaths)


# --- one fault ---------------------------------------------------------------------------------------


def run_lifeguard(case: Case, log: LogKind) -> Result:
    """Loss everywhere, some nodes starved all the time, one silent death after a minute."""
    world = _world(case, log)
    nodes = world.converged_start(case.nodes)
    starved = world.rng.sample(range(case.nodes), max(1, round(case.starved * case.nodes)) if case.starved else 0)
    for index in sorted(starved):
        world.network.starve(nodes[index].host)
    healthy = [node for index, node in enumerate(nodes) if index not in starved]
    victim = world.rng.choice(healthy)
    world.run_until(LIFEGUARD_CRASH_S)
    world.crash(victim, "silent")
    world.run_until(LIFEGUARD_S)
    known = world.detection(victim.swim.member, LIFEGUARD_CRASH_S, [node for node in healthy if node is not victim])
    return _result(case, world, {
        "false_deaths": len(world.false_deaths),
        "false_deaths_healthy": _false_deaths(world, (nodes[index].id for index in sorted(starved))),
        "first_s": known.first_s,
        "half_s": known.half_s,
        "all_s": known.all_s,
        "refutations": sum(world.refutations.values()),
        "packets": sum(node.host.packets_sent for node in nodes),
    })  # fmt: skip


def _run_end(case: Case, log: LogKind, kind: CrashKind) -> Result:
    world = _world(case, log)
    nodes = world.converged_start(case.nodes)
    victim = world.rng.choice(nodes)
    others = [node for node in nodes if node is not victim]
    ended_s = WARM_S + world.rng.random()
    world.run_until(ended_s)
    world.crash(victim, kind)
    missing = dict.fromkeys(node.id for node in others)

    def heard(death: Death) -> None:
        missing.pop(death.observer, None)
        if not missing:
            world.scheduler.stop()

    world.on_death = heard
    world.run_until(ended_s + DETECTION_MAX_S)
    world.on_death = None
    if world.now_s < case.lasts_s:
        world.run_until(case.lasts_s)
    known = world.detection(victim.swim.member, ended_s, others)
    failure = "" if known.all_s < math.inf else f"not known to {','.join(missing)} after {DETECTION_MAX_S:.0f} s"
    if world.false_deaths:
        failure = f"false deaths: {', '.join(member for member, _, _ in world.false_deaths)}"
    return _result(case, world, {
        "first_s": known.first_s, "half_s": known.half_s, "all_s": known.all_s, "spread_s": known.all_s - known.first_s,
        "false_deaths": len(world.false_deaths),
    }, failure)  # fmt: skip


def run_crash(case: Case, log: LogKind) -> Result:
    """A process ends as by kill -9."""
    return _run_end(case, log, "process")


def run_container(case: Case, log: LogKind) -> Result:
    """A container ends as by docker kill."""
    return _run_end(case, log, "container")


def run_silent(case: Case, log: LogKind) -> Result:
    """A machine loses power."""
    return _run_end(case, log, "silent")


def run_pause(case: Case, log: LogKind) -> Result:
    """A process is stopped and goes on: nobody else may be harmed, and it must be back soon."""
    world = _world(case, log)
    nodes = world.converged_start(case.nodes)
    victim = world.rng.choice(nodes)
    stopped_s = WARM_S + world.rng.random()
    world.run_until(stopped_s)
    world.network.pause(victim.host, case.pause_s)
    resumed_s = stopped_s + case.pause_s
    world.run_until(resumed_s)

    def is_back() -> bool:
        return not world.disagreements() and not any(
            record.state == "suspect" for node in nodes for record in node.swim.table.live
        )

    back_s = _run_until(world, resumed_s + CONVERGENCE_MAX_S, is_back) - resumed_s
    harmed = _false_deaths(world, (victim.id,))
    return _result(case, world, {
        "false_deaths_others": harmed, "false_deaths_paused": len(world.false_deaths) - harmed, "back_s": back_s,
    }, "another node was called dead" if harmed else "")  # fmt: skip


def run_partition(case: Case, log: LogKind) -> Result:
    """The network is cut in two, each side gives the other up, the cut heals."""
    world = _world(case, log)
    nodes = world.converged_start(case.nodes)
    world.run_until(WARM_S)
    side = world.rng.sample(nodes, world.rng.randint(1, case.nodes // 2))
    world.network.partition([[node.host for node in side]], refusing=case.refusing)
    world.run_until(WARM_S + PARTITION_S)
    split_views = len(world.disagreements())
    world.network.heal()
    healed_s = world.now_s
    converged_s = _run_until(world, healed_s + CONVERGENCE_MAX_S, lambda: not world.disagreements()) - healed_s
    failure = "" if converged_s < math.inf else f"not healed: {world.disagreements()[0]}"
    wrong = [death for death in world.deaths if death.condition == "running"]
    return _result(case, world, {
        "side": len(side), "split_views": split_views, "converged_s": converged_s, "deaths_reachable": len(wrong),
    }, failure)  # fmt: skip


def run_join(case: Case, log: LogKind) -> Result:
    """A tenth of the nodes has been there for a while; all others start at once and ask three of them."""
    world = _world(case, log)
    settled = max(1, case.nodes // 10)
    nodes = world.converged_start(settled)
    world.run_until(WARM_S)
    sent = sum(node.host.packets_sent for node in nodes)
    seeds = tuple(node.host.name for node in nodes[:3])
    joined_s = world.now_s
    for number in range(settled + 1, case.nodes + 1):
        node_id = f"n{number}"
        world.scheduler.at(joined_s + 0.1 * world.rng.random(), world.start, node_id, seeds)

    def is_settled() -> bool:
        return len(world.nodes) == case.nodes and all(node.swim.size == case.nodes for node in world.nodes.values())

    half_s = math.inf

    def note_half() -> bool:
        nonlocal half_s
        if half_s == math.inf:
            sizes = sorted(node.swim.size for node in world.nodes.values())
            if sizes[len(sizes) // 2] >= 0.99 * case.nodes:
                half_s = world.now_s - joined_s
        return is_settled()

    known_s = _run_until(world, joined_s + CONVERGENCE_MAX_S, note_half) - joined_s
    hosts = [node.host for node in world.nodes.values()]
    failure = f"false deaths: {len(world.false_deaths)}" if world.false_deaths else ""
    if known_s == math.inf:
        failure = f"least view after {CONVERGENCE_MAX_S:.0f} s: {min(node.swim.size for node in world.nodes.values())}"
    return _result(case, world, {
        "half_know_s": half_s, "all_know_s": known_s, "false_deaths": len(world.false_deaths),
        "packets": sum(host.packets_sent for host in hosts) - sent,
        "packets_node_max": max(host.packets_sent for host in hosts),
        "dropped_full": sum(host.dropped_full for host in hosts),
    }, failure)  # fmt: skip


def run_idle(case: Case, log: LogKind) -> Result:
    """Nothing happens."""
    world = _world(case, log)
    nodes = world.converged_start(case.nodes)
    world.run_until(IDLE_WARM_S)
    before = sum(node.host.packets_sent for node in nodes)
    before_bytes = sum(node.host.bytes_sent for node in nodes)
    world.run_until(IDLE_WARM_S + IDLE_S)
    periods = IDLE_S / GOSSIP_PACES[case.profile].probe_interval_s * case.nodes
    failure = f"false deaths: {len(world.false_deaths)}" if world.false_deaths else ""
    return _result(case, world, {
        "packets_node_period": (sum(node.host.packets_sent for node in nodes) - before) / periods,
        "bytes_node_period": (sum(node.host.bytes_sent for node in nodes) - before_bytes) / periods,
    }, failure)  # fmt: skip


# --- many faults -------------------------------------------------------------------------------------


class Plan:
    """Faults at random for a minute, then healing, then one silent death: and what must hold throughout."""

    def __init__(self, case: Case, log: LogKind) -> None:
        self.case = case
        self.rng = random.Random(f"{case.seed}/plan")
        self.quality = Path(
            self.rng.choice((Uniform(0.0002, 0.005), Lognormal(0.002, 0.7), Lognormal(0.02, 0.5))),
            loss=self.rng.choice((0.0, PLAN_LOSS_MAX / 2, PLAN_LOSS_MAX)),
            duplicate=self.rng.choice((0.0, 0.02)),
            reorder=self.rng.choice((0.0, 0.05)),
        )
        self.world = _world(case, log, self.quality)
        self.world.checking = True
        self.world.on_death = self._judge
        self.ids = [f"n{number}" for number in range(1, case.nodes + 1)]
        self.excused_s: dict[str, float] = {}
        """Node -> until when calling it dead is no mistake of gossip."""
        self.resumed_s: dict[str, float] = {}
        """Node -> when its last pause ended, or will."""
        self.failure = ""
        self._seeds = tuple(f"10.0.0.{number}:7946" for number in range(3))

    def run(self) -> dict[str, float]:
        """Play all of it. Raises AssertionError when something does not hold."""
        world = self.world
        world.converged_start(self.case.nodes)
        for node in world.running():
            node.host.skew_ms = self.rng.choice((0, 0, 0, 500, -500, 3_600_000, -3_600_000))
        for at_s in range(3, int(PLAN_FAULTS_S)):
            if self.rng.random() < 0.3:
                world.scheduler.at(at_s + self.rng.random(), self._fault)
        world.run_until(PLAN_FAULTS_S)
        self._heal()
        converged_s = _run_until(world, PLAN_FAULTS_S + CONVERGENCE_MAX_S, self._is_settled) - PLAN_FAULTS_S
        assert converged_s < math.inf, f"views differ: {world.disagreements()[:2]}"
        return {"converged_s": converged_s, "detected_s": self._check_detection(), "deaths": len(world.deaths)}

    def _fault(self) -> None:
        faults: list[Callable[[], None]] = [
            self._crash, self._crash, self._restart, self._restart, self._leave, self._pause, self._pause,
            self._starve, self._feed, self._block, self._partition, self._mend, self._worsen, self._refuse_peers,
        ]  # fmt: skip
        self.rng.choice(faults)()

    def _pick(self) -> GossipNode | None:
        """Draw a node that runs; the last three are left in peace."""
        running = [node for node in self.world.running() if not node.stopped]
        return self.rng.choice(running) if len(running) > 3 else None

    def _excuse(self, node: GossipNode, for_s: float) -> None:
        until_s = self.world.now_s + for_s + PLAN_EXCUSED_S
        self.excused_s[node.id] = max(self.excused_s.get(node.id, 0.0), until_s)

    def _crash(self) -> None:
        if node := self._pick():
            kinds: tuple[CrashKind, ...] = ("process", "container", "silent")
            self.world.crash(node, self.rng.choice(kinds))

    def _restart(self) -> None:
        running = {node.id: None for node in self.world.running()}
        for node_id in self.ids:
            if node_id not in running:
                self.world.start(node_id, self._seeds)
                return

    def _leave(self) -> None:
        if (node := self._pick()) and node.host.paused_since_s is None:
            self.world.leave(node)

    def _pause(self) -> None:
        node = self._pick()
        if node and not node.host.refuses_peers:
            duration_s = self.rng.choice((0.3, 1.0, 2.0, 3.0, 8.0))
            self.resumed_s[node.id] = max(self.resumed_s.get(node.id, 0.0), self.world.now_s + duration_s)
            if duration_s > PLAN_PAUSE_HARMLESS_S:
                self._excuse(node, duration_s)
            self.world.network.pause(node.host, duration_s)

    def _starve(self) -> None:
        """Read late: Lifeguard makes false deaths of such nodes rare, not impossible."""
        if node := self._pick():
            self._excuse(node, PLAN_FAULTS_S)
            self.world.network.starve(node.host)

    def _feed(self) -> None:
        for host in self._hosts():
            if host.starved_s is not None:
                self.world.network.starve(host, None)

    def _block(self) -> None:
        """Cut one way between two: the others still reach both, so that nobody dies of it."""
        one, other = self._pick(), self._pick()
        if one and other and one is not other:
            self.world.network.block(one.host, other.host)

    def _partition(self) -> None:
        side = self.rng.sample(self._hosts(), self.rng.randint(1, len(self.ids) // 2))
        for node in self.world.running():
            self._excuse(node, PLAN_FAULTS_S)
        self.world.network.partition([side], refusing=self.rng.random() < 0.2)

    def _mend(self) -> None:
        self.world.network.heal()
        for node in self.world.running():
            if self.excused_s.get(node.id, 0.0) > PLAN_FAULTS_S and node.host.starved_s is None:
                self.excused_s[node.id] = self.world.now_s + PLAN_EXCUSED_S

    def _worsen(self) -> None:
        self.quality = replace(
            self.quality, loss=self.rng.choice((0.0, PLAN_LOSS_MAX)), reorder=self.rng.choice((0.0, 0.1))
        )
        self.world.network.set_path(self.quality)

    def _refuse_peers(self) -> None:
        """A port that closes under a process that does not answer either is what an ended process looks like."""
        node = self._pick()
        if node and node.host.paused_since_s is None and node.host.starved_s is None:
            self.world.network.refuse_peers(node.host, refuses=not node.host.refuses_peers)

    def _hosts(self) -> list[Host]:
        return [node.host for node in self.world.nodes.values()]

    def _heal(self) -> None:
        """End every fault, and bring every node back."""
        world = self.world
        world.network.heal()
        self._feed()
        for node_id in self.ids:
            node = world.nodes[node_id]
            if node.host.refuses_peers:
                world.network.refuse_peers(node.host, refuses=False)
            if node.host.process is node and node.stopped:
                world.crash(node)
            if node.host.process is None:
                world.start(node_id, self._seeds)

    def _is_settled(self) -> bool:
        return not self.world.disagreements() and not any(
            record.state == "suspect" for node in self.world.running() for record in node.swim.table.live
        )

    def _judge(self, said: Death) -> None:
        """Judge a death as it is declared: of a live member that nothing was done to, it is a failure."""
        if said.condition == "gone" or said.at_s < self.excused_s.get(said.member, 0.0):
            return
        # A starved node may read too late that a member which stood still refuted in time, and then misleads everyone.
        starving = any(host.starved_s is not None for host in self._hosts())
        if starving and said.at_s < self.resumed_s.get(said.member, -math.inf) + PLAN_READ_LATE_S:
            return
        # Nor can it tell a process whose port is closed from one that ended: whatever it asks is answered too late.
        if starving and self.world.nodes[said.member].host.refuses_peers:
            return
        if not self.failure:
            self.failure = f"{said.observer} called {said.member} dead at {said.at_s:.3f} s, which was {said.condition}"

    def _check_detection(self) -> float:
        """In the healed cluster, a silent death must be known within its bound."""
        world = self.world
        pace, count = GOSSIP_PACES[self.case.profile], self.case.nodes
        max_s = SUSPICION_MAX_FACTOR * suspicion_min_s(pace.suspicion_multiplier, count, pace.probe_interval_s)
        bound_s = (2 * (count - 1) + 1) * pace.probe_interval_s + max_s + 2.0
        victim = self.rng.choice(world.running())
        others = [node for node in world.running() if node is not victim]
        ended_s = world.now_s
        world.crash(victim, "silent")
        world.run_until(ended_s + bound_s)
        known = world.detection(victim.swim.member, ended_s, others)
        assert known.all_s <= bound_s, (
            f"the death of {victim.id} at {ended_s:.1f} s was not known {bound_s:.0f} s later"
        )
        return known.all_s


def run_plan(case: Case, log: LogKind) -> Result:
    """Play a random plan."""
    plan = Plan(case, log)
    values: dict[str, float] = {}
    try:
        values = plan.run()
    except AssertionError as error:
        plan.failure = plan.failure or str(error) or "an invariant does not hold"
    return _result(case, plan.world, values, plan.failure)


SCENARIOS: dict[str, Callable[[Case, LogKind], Result]] = {
    "lifeguard": run_lifeguard,
    "crash": run_crash,
    "container": run_container,
    "silent": run_silent,
    "pause": run_pause,
    "partition": run_partition,
    "join": run_join,
    "idle": run_idle,
    "plan": run_plan,
}
