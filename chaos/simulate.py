"""Random runs of the simulator, over all cores: what they showed as a table, and how to replay what failed.

    python -m chaos.simulate --seeds 500                        many seeds of the scenario `cluster`
    python -m chaos.simulate --seed 17 --log                    one seed, with its event log
    python -m chaos.simulate --scenario plan --seeds 1000       another scenario (`chaos.gossip_scenarios`)
    python -m chaos.simulate --replay plan,seed=17,nodes=10     one run of it

The scenario `cluster` is whole nodes and etcd: faults for a minute, then healing. What must hold: invariants after
every event; a ring once seen is never empty; every value read was written; and `HEAL_MAX_S` after the last fault all
nodes are registered, their rings are equal and contain all of them, and a value written through one node is read
through each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from chaos import gossip_scenarios as scenarios
from chaos.gossip_scenarios import Case, Result
from chaos.report import Table, tables
from chaos.simulator import Simulation
from zephyr.config import GOSSIP_PACES, Settings
from zephyr.model import Outcome, ReadRequest, WriteRequest
from zephyr.store.record import record_value

FAULTS_S = 60.0
"""Faults are injected for so long."""
LEASE_TTL_S = 10
HEAL_MAX_S = 2 * LEASE_TTL_S + 5
"""Longest time from the last fault to equal rings: a lease that a restarted etcd renewed, plus the hold after a wipe
(both a TTL at most), plus retries."""
SETTINGS = replace(Settings(id="unnamed"), virtual_nodes=16, lease_ttl=float(LEASE_TTL_S))
"""Few virtual nodes: ring balance is not what is tested here, and tables are built thousands of times."""
WIDTH = 200
"""Columns of a table that goes to a file."""


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
        simulation.tick_etcd(0.5, FAULTS_S + HEAL_MAX_S + 10)
        for number, node_id in enumerate(self.ids):
            simulation.at(number * 0.3, lambda node_id=node_id: simulation.start(node_id))  # type: ignore[misc]
        for at_s in range(5, int(FAULTS_S)):
            if simulation.rng.random() < 0.25:
                simulation.at(at_s + simulation.rng.random(), self._fault)
        for step in range(int(FAULTS_S * 4)):
            simulation.at(2 + step / 4, self._client)
        simulation.run_until(FAULTS_S + 1)
        self._heal()
        simulation.run_until(FAULTS_S + 1 + HEAL_MAX_S)
        self._check_rings()
        self._check_service()
        self._check_reads()

    def _fault(self) -> None:
        faults: list[Callable[[], None]] = [
            self._crash, self._restart, self._toggle_etcd, self._wipe_etcd, self._cut_from_etcd, self._cut_peers,
            self._toggle_loss, self._delete_registration, self._leave, self._wipe_silently, self._stick_watch,
        ]  # fmt: skip
        self.simulation.rng.choice(faults)()

    def _pick(self) -> str | None:
        running = [node_id for node_id in self.ids if node_id in self.simulation.nodes]
        return self.simulation.rng.choice(running) if running else None

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
        if node_id is None or self.simulation.nodes[node_id].stopped:
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
            assert node.view.authority == "both", f"{node.settings.id}: authority {node.view.authority}"
        assert len({simulated.node.view.digest for simulated in nodes}) == 1, "ring digests differ"

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


class Plan(NamedTuple):
    """What `make simulate SCENARIO=...` runs unless it is told otherwise."""

    seeds: int
    nodes: tuple[int, ...]


PLANS = {
    "cluster": Plan(500, (5,)),
    "lifeguard": Plan(20, scenarios.LIFEGUARD_NODES),
    "crash": Plan(20, (10, 100, 1000)),
    "container": Plan(20, (10, 100)),
    "silent": Plan(20, (10, 100, 1000)),
    "pause": Plan(200, (10,)),
    "partition": Plan(200, (10,)),
    "join": Plan(1, (1000,)),
    "idle": Plan(1, (10, 100, 1000)),
    "plan": Plan(1000, (10,)),
}


def cases(
    scenario: str, seeds: int, nodes: Sequence[int], profile: str, arms: Iterable[str] = scenarios.LIFEGUARD_ARMS
) -> list[Case]:
    """Return every run of a scenario, cell by cell. `arms`: of `LIFEGUARD_ARMS`, for the scenario `lifeguard`."""
    cells = [Case(scenario, nodes=count, profile=profile) for count in nodes]
    if scenario == "lifeguard":
        cells = [
            replace(cell, loss=loss, starved=starved, lifeguard=lifeguard, connections=connections)
            for cell in cells
            for loss in scenarios.LIFEGUARD_LOSSES
            for starved in scenarios.LIFEGUARD_STARVED
            for lifeguard, connections in map(scenarios.LIFEGUARD_ARMS.__getitem__, arms)
        ]
    return [replace(cell, seed=seed) for cell in cells for seed in range(1, seeds + 1)]


def play(case: Case) -> Result:
    """Play one run of any scenario."""
    if case.scenario == "cluster":
        _, digest, failure = run_seed(case.seed, case.nodes)
        return Result(case, failure=failure, digest=digest)
    return scenarios.run_case(case)


def play_all(runs: Sequence[Case]) -> list[Result]:
    """Play many runs on all cores, behind a progress bar. The results come in the runs' order."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    results: dict[Case, Result] = {}
    # Large runs first: the last ones to end should be short, so that no core waits.
    order = sorted(runs, key=lambda case: -case.nodes)
    with (
        concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(runs[0].scenario, total=len(runs))
        for future in concurrent.futures.as_completed([pool.submit(play, case) for case in order]):
            result = future.result()
            results[result.case] = result
            progress.advance(task)
    return [results[case] for case in runs]


def replay_command(case: Case) -> str:
    """Return the command that plays one run again and prints its event log."""
    if case.scenario == "cluster":
        return f"python -m chaos.simulate --seed {case.seed} --nodes {case.nodes} --log"
    return f"python -m chaos.simulate --replay {case.text()} --log"


def show(table: Table, *, markdown: bool) -> None:
    """Print a table, for a terminal or for a document."""
    if markdown:
        print(f"\n{table.title}\n\n| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}")
        for row in table.rows:
            print(f"| {' | '.join(row)} |")
        return
    shown = RichTable(title=table.title)
    for column in table.columns:
        shown.add_column(column, justify="right")
    for row in table.rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(shown)


def replay(case: Case, *, log: bool) -> int:
    """Play one run again: what it showed, what it cost, and its event log on request."""
    if case.scenario == "cluster":
        run = RandomRun(case.seed, case.nodes)
        try:
            run.run()
        finally:
            if log:
                print("\n".join(run.simulation.log))
        print(f"seed {case.seed}: held; log {log_digest(run.simulation.log)}", file=sys.stderr)
        return 0
    begun_s = time.process_time()
    result = scenarios.run_case(case, "lines" if log else "hash")
    took_s = time.process_time() - begun_s
    if log:
        print("\n".join(result.log or []))
    for name, value in result.values.items():
        print(f"{name}: {value:.6g}", file=sys.stderr)
    print(f"took {took_s:.1f} s of one core", file=sys.stderr)
    print(f"{case.text()}: {result.failure or 'held'}; log {result.digest}", file=sys.stderr)
    return 1 if result.failure else 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Random runs of the cluster in virtual time.")
    parser.add_argument("--scenario", choices=tuple(PLANS), default="cluster")
    parser.add_argument("--seeds", type=int, help="how many seeds of each cell, from 1 on")
    parser.add_argument("--nodes", help="how many nodes, or several numbers with commas between")
    parser.add_argument("--profile", choices=tuple(GOSSIP_PACES), default="lan", help="pace of gossip")
    arms = ",".join(scenarios.LIFEGUARD_ARMS)
    parser.add_argument("--arms", default=arms, help=f"what the scenario lifeguard compares (default {arms})")
    parser.add_argument("--seed", type=int, help="one seed only")
    parser.add_argument("--replay", help="one run, as a failure names it: SCENARIO,seed=...,nodes=...")
    parser.add_argument("--log", action="store_true", help="print the event log (with --seed or --replay)")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    arguments = parser.parse_args()
    plan = PLANS[arguments.scenario]
    try:
        nodes = [int(part) for part in arguments.nodes.split(",")] if arguments.nodes else list(plan.nodes)
        one = scenarios.parse_case(arguments.replay) if arguments.replay else None
    except ValueError as error:
        parser.error(f"cannot read {error}")
    if unknown := [arm for arm in arguments.arms.split(",") if arm not in scenarios.LIFEGUARD_ARMS]:
        parser.error(f"no such arm: {unknown[0]!r}; there are {arms}")
    if one is None and arguments.seed is not None:
        one = Case(arguments.scenario, seed=arguments.seed, nodes=nodes[0], profile=arguments.profile)
    if one is not None:
        return replay(one, log=arguments.log)
    seeds = plan.seeds if arguments.seeds is None else arguments.seeds
    results = play_all(cases(arguments.scenario, seeds, nodes, arguments.profile, arguments.arms.split(",")))
    for table in tables(results):
        show(table, markdown=arguments.markdown)
    failed = [result for result in results if result.failure]
    for result in failed:
        print(f"seed {result.case.seed}: {result.failure}\n  replay: {replay_command(result.case)}")
    print(f"{len(results) - len(failed)} of {len(results)} runs of {arguments.scenario} held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
