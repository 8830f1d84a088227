"""Random runs of the simulator, over all cores: what they showed as a table, and how to replay what failed.

    python -m chaos.simulate --seeds 500                        many seeds of the scenario `cluster`
    python -m chaos.simulate --seed 17 --log                    one seed, with its event log
    python -m chaos.simulate --scenario plan --seeds 1000       another scenario (`chaos.gossip_scenarios`)
    python -m chaos.simulate --replay plan,seed=17,nodes=10     one run of it
    python -m chaos.simulate --scenario claims --seed 17 --history h.jsonl    one run of it, and its history

The scenario `cluster` is whole nodes and etcd under random faults (`chaos.cluster_scenarios`); `claims` asks beside
that whether the data plane keeps what is claimed of it (`chaos.claims_scenarios`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from chaos import claims_scenarios as claims
from chaos import gossip_scenarios as scenarios
from chaos.cluster_scenarios import RandomRun, log_digest, run_seed
from chaos.gossip_scenarios import Case, Result
from chaos.history import write_history
from chaos.report import Table, tables
from zephyr.config import GOSSIP_PACES

WIDTH = 200
"""Columns of a table that goes to a file."""


class Plan(NamedTuple):
    """What `make simulate SCENARIO=...` runs unless it is told otherwise."""

    seeds: int
    nodes: tuple[int, ...]
    """Each with all seeds; empty: as many as the seed says."""


PLANS = {
    "cluster": Plan(2000, (5,)),
    "claims": Plan(200, ()),
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
    """Return every run of a scenario, cell by cell. `arms`: of `LIFEGUARD_ARMS`, for the scenario `lifeguard`.

    `nodes` may be empty for `claims`: each seed has its number of them then.
    """
    if scenario == "claims" and not nodes:
        return [Case(scenario, seed=seed, nodes=claims.node_count(seed)) for seed in range(1, seeds + 1)]
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
    if case.scenario == "claims":
        played = claims.play_seed(case.seed, case.nodes)
        return Result(case, played.figures(), played.failure, played.log_digest)
    return scenarios.run_case(case)


def play_all(runs: Sequence[Case]) -> list[Result]:
    """Play many runs on all cores, and tell at once what failed. The results come in the order of the runs."""
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
            if result.failure:
                progress.console.print(f"seed {result.case.seed}: {result.failure}", markup=False)
            progress.advance(task)
    return [results[case] for case in runs]


def replay_command(case: Case) -> str:
    """Return the command that plays one run again and prints its event log."""
    if case.scenario == "cluster":
        return f"python -m chaos.simulate --seed {case.seed} --nodes {case.nodes} --log"
    if case.scenario == "claims":
        return claims.replay_command(case.seed, case.nodes)
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


def replay_claims(case: Case, *, log: bool, history: Path | None) -> int:
    """Play one run of the claims again: its verdicts, what broke them, its event log and its history on request."""
    run = claims.ClaimsRun(case.seed, case.nodes)
    try:
        report = run.run()
    finally:
        if log:
            print("\n".join(run.simulation.log))
        if history is not None:
            write_history(history, run.simulation.history)
    for verdict in report.verdicts:
        judged = f"{verdict.judged} judged, {verdict.unknown} unknown, {verdict.violation_count} violations"
        print(f"{verdict.name}: {verdict.colour}; {verdict.note or judged}", file=sys.stderr)
        for violation in verdict.violations:
            seen = "".join(f"\n    {item.text()}" for item in violation.operations)
            print(f"  {violation.text}{seen}", file=sys.stderr)
    print(f"seed {case.seed}: {len(report.red)} red; log {log_digest(run.simulation.log)}", file=sys.stderr)
    return 1 if report.red else 0


def replay(case: Case, *, log: bool, history: Path | None = None) -> int:
    """Play one run again: what it showed, what it cost, and its event log on request."""
    if case.scenario == "claims":
        return replay_claims(case, log=log, history=history)
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
    parser.add_argument("--nodes", help="how many nodes, or several numbers, each with all seeds")
    parser.add_argument("--profile", choices=tuple(GOSSIP_PACES), default="lan", help="pace of gossip")
    arms = ",".join(scenarios.LIFEGUARD_ARMS)
    parser.add_argument("--arms", default=arms, help=f"what the scenario lifeguard compares (default {arms})")
    parser.add_argument("--seed", type=int, help="one seed only")
    parser.add_argument("--replay", help="one run, as a failure names it: SCENARIO,seed=...,nodes=...")
    parser.add_argument("--log", action="store_true", help="print the event log (with --seed or --replay)")
    parser.add_argument(
        "--history", type=Path, help="write the run's history to a file (with --scenario claims --seed)"
    )
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
        count = nodes[0] if nodes else claims.node_count(arguments.seed)
        one = Case(arguments.scenario, seed=arguments.seed, nodes=count, profile=arguments.profile)
    if one is not None:
        return replay(one, log=arguments.log, history=arguments.history)
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
