"""How long it takes until others know that a member is gone, in real processes, beside kinship and serf.

    kill     kill -9 of one node, on loopback: until the first and until all others call it dead
    silent   all packets from and to one node are dropped, with no reset: the same
    stop     SIGSTOP of one node for 3 s, then SIGCONT: who is called dead, and when it is alive everywhere again
    idle     nothing: what CPU that takes (`bench.idle`)

Each repetition starts a new cluster, waits until all know all and for a random while longer, and hurts a
random node. Systems take turns, repetition by repetition, so that a disturbance of the machine hits all of
them. A false death is any call of dead for a node that nothing was done to.

    python -m bench.detection --mode kill --nodes 5 --repetitions 3 --system kinship-local --system serf-lan

measures single systems and shows them in a table; `make bench ONLY=detection` makes the rows.
"""

from __future__ import annotations

import functools
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias, get_args

import click
from rich.console import Console
from rich.table import Table

from bench.clusters import SYSTEMS, Change, Cluster, Network, Place, loopback_places, wait_until
from bench.idle import measure_idle
from bench.rows import Measured, NotMeasurableError, row

Mode: TypeAlias = Literal["kill", "silent", "stop"]

REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "20"))
"""How often each system is measured with each size. Fewer, by BENCH_REPETITIONS, to try it out."""
SETTLE_S = (2.0, 4.0)
"""Between convergence and the fault: lets the news of the joins run out, and the fault meet any point of a period."""
DETECT_MAX_S = 60.0
"""Who has not called it dead by then never will, here."""
AFTERMATH_S = 0.5
"""How long false deaths are still counted once all know."""
STOP_S = 3.0
STOP_WATCH_S = 6.0
"""After SIGCONT: as long as a suspicion among ten nodes lasts with the slower profiles, for one may be late."""
SEED = 5
FAILURES_MAX = 2
"""Of one system, before it is given up for the run."""
OURS = "zephyr-lan"
"""Our default profile."""
KILL_BASELINES = ("kinship-local", "kinship-lan", "serf-local", "serf-lan")
SILENT_BASELINES = ("kinship-lan",)
STOP_BASELINES = ("kinship-lan",)
KILL_NODES = (5, 10)
NODES = 10
"""In the other two modes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one repetition showed."""

    victim: str
    first_s: float
    """Until the first other node called the victim dead; infinite: none did."""
    all_s: float
    """Until the last one did; infinite: not all did."""
    false_deaths: int
    """Calls of dead, each by one observer, of a node that was not the victim or before anything was done."""
    back_s: float = math.nan
    """After a stop: from SIGCONT until all call all alive for good; 0 when nobody ever doubted; infinite: not seen."""
    called_dead: int = 0
    """After a stop: how many called the stopped node dead."""


@dataclass(slots=True)
class Figures:
    """All repetitions of one system."""

    outcomes: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def quantile(self, share: float, of: Callable[[Outcome], float]) -> float:
        """Return the nearest rank: with 20 repetitions, p99 is the longest."""
        values = sorted(of(outcome) for outcome in self.outcomes)
        return values[max(0, math.ceil(share * len(values)) - 1)]

    def p50(self, of: Callable[[Outcome], float]) -> float:
        """Return the median as a nearest rank."""
        return self.quantile(0.5, of)

    def p99(self, of: Callable[[Outcome], float]) -> float:
        """Return the 99th percentile as a nearest rank."""
        return self.quantile(0.99, of)

    @property
    def false_deaths(self) -> int:
        """Return the false deaths of all repetitions."""
        return sum(outcome.false_deaths for outcome in self.outcomes)


def first_s(outcome: Outcome) -> float:
    """Return when the first knew."""
    return outcome.first_s


def all_s(outcome: Outcome) -> float:
    """Return when all knew."""
    return outcome.all_s


def back_s(outcome: Outcome) -> float:
    """Return when the stopped node was back."""
    return outcome.back_s


# --- one repetition -----------------------------------------------------------------------------------


def repeat(system: str, mode: Mode, nodes: int, rng: random.Random, *, views: bool = False) -> Outcome:
    """Start a cluster, hurt one of it, and watch. Raises NotMeasurableError where it does not even start.

    `views`: polls the pages of our nodes, beside reading their log.
    """
    if mode != "silent":
        return _repeat_in(loopback_places(nodes, rng), None, system, mode, rng, views=views)
    with Network(nodes) as network:
        return _repeat_in(network.places, network, system, mode, rng, views=views)


def _repeat_in(
    places: list[Place], network: Network | None, system: str, mode: Mode, rng: random.Random, *, views: bool
) -> Outcome:
    with Cluster(SYSTEMS[system], places) as cluster:
        if views:
            cluster.watch_views()
        cluster.wait_converged()
        converged_s = time.monotonic()
        time.sleep(rng.uniform(*SETTLE_S))
        victim = rng.choice(cluster.names)
        if mode == "stop":
            return _after_stop(cluster, victim, converged_s)
        at_s = cluster.kill(victim) if network is None else network.silence(cluster.places[victim])
        return _after_death(cluster, victim, converged_s, at_s)


def _after_death(cluster: Cluster, victim: str, converged_s: float, at_s: float) -> Outcome:
    """Watch until all others call the victim dead."""
    others = [name for name in cluster.names if name != victim]

    def called() -> dict[str, float]:
        times_s: dict[str, float] = {}
        for change in list(cluster.changes):
            if (
                change.subject == victim
                and change.state == "dead"
                and change.at_s >= at_s
                and change.observer in others
            ):
                times_s[change.observer] = min(times_s.get(change.observer, math.inf), change.at_s - at_s)
        return times_s

    wait_until(lambda: len(called()) == len(others), DETECT_MAX_S)
    time.sleep(AFTERMATH_S)
    times_s = called()
    false = {
        (change.observer, change.subject)
        for change in list(cluster.changes)
        if change.state == "dead"
        and change.at_s >= converged_s
        # What the victim itself believes once it is cut off is right, in its own way.
        and (change.at_s < at_s or victim not in (change.observer, change.subject))
    }
    return Outcome(
        victim,
        min(times_s.values(), default=math.inf),
        max(times_s.values()) if len(times_s) == len(others) else math.inf,
        len(false),
    )


def _after_stop(cluster: Cluster, victim: str, converged_s: float) -> Outcome:
    """Stop the victim, let it go on, and watch until it is as if nothing had been."""
    at_s = cluster.stop(victim)
    time.sleep(STOP_S)
    on_s = cluster.go_on(victim)
    time.sleep(STOP_WATCH_S)
    changes = list(cluster.changes)
    others = [name for name in cluster.names if name != victim]
    dead = [change for change in changes if change.state == "dead" and change.at_s >= converged_s]
    # The stopped node may not come back and call others dead, either.
    false = {(change.observer, change.subject) for change in dead if change.subject != victim or change.at_s < at_s}
    times_s = sorted(
        {change.observer: change.at_s - at_s for change in reversed(dead) if change.subject == victim}.values()
    )
    return Outcome(
        victim,
        min(times_s, default=math.inf),
        max(times_s) if len(times_s) == len(others) else math.inf,
        len(false),
        _back_s(changes, cluster, on_s),
        len(times_s),
    )


def _back_s(changes: list[Change], cluster: Cluster, on_s: float) -> float:
    """Return the last moment, from SIGCONT, at which any node still doubted another."""
    if any(state != "alive" for state in cluster.believed().values()):
        return math.inf
    recovered = [change.at_s - on_s for change in changes if change.state == "alive" and change.at_s >= on_s]
    return max(recovered, default=0.0)


# --- all repetitions ----------------------------------------------------------------------------------


def measure(
    mode: Mode, nodes: int, systems: tuple[str, ...], repetitions: int, seed: int = SEED, *, views: bool = False
) -> dict[str, Figures]:
    """Measure systems in turns. What cannot be measured has no outcomes, and says why."""
    rng = random.Random(seed)
    figures = {system: Figures() for system in systems}
    for system, found in figures.items():
        try:
            SYSTEMS[system].prepare()
        except NotMeasurableError as error:
            found.problems += [str(error)] * FAILURES_MAX
    order = list(systems)
    for _ in range(repetitions):
        order = order[1:] + order[:1]
        for system in order:
            found = figures[system]
            if len(found.problems) >= FAILURES_MAX:
                continue
            try:
                found.outcomes.append(repeat(system, mode, nodes, rng, views=views))
            except NotMeasurableError as error:
                found.problems.append(str(error))
    return figures


@functools.cache
def _measured(mode: Mode, nodes: int) -> dict[str, Figures]:
    """Measure for the rows: once for all that share it."""
    baselines = {"kill": KILL_BASELINES, "silent": SILENT_BASELINES, "stop": STOP_BASELINES}[mode]
    return measure(mode, nodes, (OURS, *baselines), REPETITIONS)


# --- rows ---------------------------------------------------------------------------------------------


def _text(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.2f} s"


def _summary(found: Figures, of: Callable[[Outcome], float]) -> str:
    return f"{_text(found.p50(of))} (p99 {_text(found.p99(of))})"


def _details(figures: dict[str, Figures]) -> dict[str, object]:
    outcomes = {
        system: [
            {name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in fields.items()}
            for fields in map(asdict, found.outcomes)
        ]
        for system, found in figures.items()
    }
    return {**outcomes, "problems": {system: found.problems for system, found in figures.items() if found.problems}}


def _ours(figures: dict[str, Figures], of: Callable[[Outcome], float] = all_s) -> Figures:
    """Return our figures. Raises NotMeasurableError, with what the others did, where there are none."""
    ours = figures[OURS]
    if not ours.outcomes:
        others = ", ".join(
            f"{system} {_summary(found, of)}" for system, found in figures.items() if found.outcomes and system != OURS
        )
        raise NotMeasurableError(f"{ours.problems[0]}. Of the others: {others or 'nothing'}")
    return ours


def _theirs(figures: dict[str, Figures], system: str) -> Figures:
    """Return a baseline's figures. Raises NotMeasurableError where there are none."""
    found = figures[system]
    if not found.outcomes:
        raise NotMeasurableError(f"{system}: {found.problems[0]}")
    return found


def _fastest(figures: dict[str, Figures], of: Callable[[Figures], float]) -> str:
    """Name the baseline with the lowest figure, and the figure."""
    values = {system: of(found) for system, found in figures.items() if system != OURS and found.outcomes}
    if not values:
        return "none could be run"
    best = min(values, key=lambda system: values[system])
    return f"{_text(values[best])} ({best})"


def _register_kill(nodes: int) -> None:
    @row(
        f"detection-kill-{nodes}", f"all others know of a kill -9, {nodes} nodes, p50",
        baseline="the fastest of the others", unit=" s", high=0.5,
    )  # fmt: skip
    def median() -> Measured:
        figures = _measured("kill", nodes)
        ours = _ours(figures)
        return Measured(
            ours.p50(all_s),
            f"{_text(ours.p50(all_s))} (first {_text(ours.p50(first_s))})",
            _fastest(figures, lambda found: found.p50(all_s)),
            details=_details(figures),
        )

    @row(
        f"detection-kill-{nodes}-p99", f"all others know of a kill -9, {nodes} nodes, p99",
        baseline="the fastest of the others", unit=" s", high=1.0,
    )  # fmt: skip
    def longest() -> Measured:
        figures = _measured("kill", nodes)
        ours = _ours(figures)
        return Measured(
            ours.p99(all_s),
            f"{_text(ours.p99(all_s))} (first {_text(ours.p99(first_s))})",
            _fastest(figures, lambda found: found.p99(all_s)),
        )

    _register_false_deaths("kill", nodes, "a kill -9")
    for system in KILL_BASELINES:
        _register_ratio("kill", nodes, system, "a kill -9", 1.0)


def _register_ratio(mode: Mode, nodes: int, system: str, what: str, high: float) -> None:
    @row(
        f"detection-{mode}-{nodes}-{system}", f"all others know of {what}, {nodes} nodes, p50",
        baseline=system, high=high,
    )  # fmt: skip
    def ratio() -> Measured:
        figures = _measured(mode, nodes)
        ours, theirs = _ours(figures), _theirs(figures, system)
        return Measured(
            ours.p50(all_s) / theirs.p50(all_s),
            _summary(ours, all_s),
            f"{_summary(theirs, all_s)}; first {_summary(theirs, first_s)}",
            details=_details({OURS: ours, system: theirs}),
        )


def _register_false_deaths(mode: Mode, nodes: int, what: str) -> None:
    @row(
        f"detection-{mode}-{nodes}-false", f"false deaths beside {what}, {nodes} nodes",
        baseline="the others' together", high=0,
    )  # fmt: skip
    def false_deaths() -> Measured:
        figures = _measured(mode, nodes)
        ours = _ours(figures, back_s if mode == "stop" else all_s)
        theirs = {system: found for system, found in figures.items() if system != OURS}
        texts = [
            f"{sum(found.false_deaths for found in group)} in {sum(len(found.outcomes) for found in group)}"
            for group in ([ours], list(theirs.values()))
        ]
        return Measured(ours.false_deaths, texts[0], texts[1])


def _register_stop() -> None:
    _register_false_deaths("stop", NODES, "SIGSTOP for 3 s")

    @row(
        f"detection-stop-{NODES}-back", f"a node stopped for 3 s is alive everywhere again, {NODES} nodes, the longest",
        baseline="kinship-lan", unit=" s", high=2.0,
    )  # fmt: skip
    def back() -> Measured:
        figures = _measured("stop", NODES)
        ours, baseline = _ours(figures, back_s), figures["kinship-lan"]
        theirs = _text(baseline.p99(back_s)) if baseline.outcomes else baseline.problems[0]
        return Measured(ours.p99(back_s), _text(ours.p99(back_s)), theirs, details=_details(figures))


for _nodes in KILL_NODES:
    _register_kill(_nodes)
_register_ratio("silent", NODES, "kinship-lan", "a silent death", 1.15)
_register_false_deaths("silent", NODES, "a silent death")
_register_stop()


# --- by hand ------------------------------------------------------------------------------------------


def table(mode: Mode, nodes: int, figures: dict[str, Figures]) -> Table:
    """Draw what was measured, for a person."""
    columns = ["system", "runs", "first p50", "first p99", "all p50", "all p99", "false deaths"]
    columns += ["back p50", "back longest", "called dead by"] if mode == "stop" else []
    result = Table(title=f"{mode}, {nodes} nodes")
    for column in columns:
        result.add_column(column)
    for system, found in figures.items():
        if not found.outcomes:
            result.add_row(system, "0", found.problems[0])
            continue
        runs = str(len(found.outcomes))
        cells = [system, f"{runs}, {len(found.problems)} did not start" if found.problems else runs]
        cells += [_text(quantile(of)) for of in (first_s, all_s) for quantile in (found.p50, found.p99)]
        cells.append(str(found.false_deaths))
        if mode == "stop":
            called = sum(outcome.called_dead for outcome in found.outcomes)
            cells += [_text(found.p50(back_s)), _text(found.p99(back_s)), str(called)]
        result.add_row(*cells)
    return result


@click.command()
@click.option("--mode", type=click.Choice([*get_args(Mode), "idle"]), default="kill", show_default=True)
@click.option("--nodes", type=click.IntRange(2, 200), default=5, show_default=True)
@click.option("--repetitions", type=click.IntRange(1, 1000), default=REPETITIONS, show_default=True)
@click.option("--system", "systems", type=click.Choice(list(SYSTEMS)), multiple=True, help="Default: all.")
@click.option("--seed", default=SEED, show_default=True)
@click.option("--views", is_flag=True, help="Poll /debug/views of our nodes, beside reading their log.")
def main(
    mode: Mode | Literal["idle"], nodes: int, repetitions: int, systems: tuple[str, ...], seed: int, *, views: bool
) -> None:
    """Measure how systems detect a failure, and show it."""
    # Ended from outside, it still stops what it started and removes its namespaces.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else 160)
    if mode == "idle":
        console.print(f"idle, {nodes} nodes: {measure_idle(nodes).text()}")
        return
    console.print(table(mode, nodes, measure(mode, nodes, systems or tuple(SYSTEMS), repetitions, seed, views=views)))


if __name__ == "__main__":
    main()
