"""A scenario played several times on one cluster: what all of it showed, and nothing left behind.

Decides who is the victim each time, when to give up, and that a person who has enough (Ctrl-C, SIGTERM, SIGHUP) ends it
in good order: whatever was started or broken is stopped or mended first, however often they insist.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chaos.convergence import Repetition, json_s, percentiles
from chaos.drivers import ClusterUnavailableError, Driver, FaultUnavailableError
from chaos.episode import Episode, State
from chaos.fault_scenarios import Scenario
from zephyr.errors import ZephyrError

TELL_S = 0.1
"""How often a person is told what the nodes show."""
SHARES = {"p50": 0.5, "p99": 0.99}
"""Rows below the repetitions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often, for how long, and by which dice."""

    repetitions: int
    limit_s: float
    """Of each wait."""
    hold_s: float | None
    """A fault lasts for at least so long; None: as the scenario has it."""
    seed: int


class Progress(NamedTuple):
    """Where a run is, for people."""

    repetition: int
    """From 1."""
    victim: str
    since_s: float
    """Seconds since the fault, or since it ended."""
    stage: str
    """`before`, `fault` or `healing`."""
    states: Sequence[State]


Tell = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What all repetitions showed."""

    scenario: str
    driver: str
    cluster: str = ""
    """Which cluster it was, in a few words."""
    nodes: int = 0
    seed: int = 0
    repetitions: list[Repetition] = field(default_factory=list)

    @property
    def has_converged(self) -> bool:
        """Whether all that was waited for came in time, each time."""
        return bool(self.repetitions) and not any(item.missed for item in self.repetitions)

    def document(self) -> dict[str, Any]:
        """Return it as JSON's values; seconds, and null for what never came or is no question."""
        return {
            "scenario": self.scenario,
            "driver": self.driver,
            "cluster": self.cluster,
            "nodes": self.nodes,
            "seed": self.seed,
            "converged": self.has_converged,
            "repetitions": [item.document() for item in self.repetitions],
            **{
                row: {name: json_s(value_s) for name, value_s in percentiles(self.repetitions, share).items()}
                for row, share in SHARES.items()
            },
        }


def run(driver: Driver, scenario: Scenario, plan: Plan, tell: Tell, say: Say) -> Report:
    """Have a cluster, play the scenario as often as planned, undo everything.

    Raises FaultUnavailableError before anything is done, ClusterUnavailableError when there is no cluster to do it to,
    DriverError when something could not be done, and KeyboardInterrupt when it was told to stop; everything is
    undone then, too.
    """
    lacking = sorted(scenario.needs - driver.faults)
    if lacking:
        raise FaultUnavailableError(f"the driver {driver.name} cannot {', '.join(lacking)} here")
    with asyncio.Runner(loop_factory=driver.new_loop) as runner:
        return runner.run(_Run(driver, scenario, plan, tell, say).play())


class _Run:
    """One run: a cluster, what is done to it, and who is told."""

    def __init__(self, driver: Driver, scenario: Scenario, plan: Plan, tell: Tell, say: Say) -> None:
        self.driver = driver
        self.scenario = scenario
        self.plan = plan
        self.tell = tell
        self.say = say
        self.rng = random.Random(plan.seed)
        self.report = Report(scenario.name, driver.name, seed=plan.seed)

    async def play(self) -> Report:
        """From having the cluster until it is left, which no signal keeps from being done."""
        is_failed, is_told = True, False
        working = asyncio.ensure_future(self._work())

        def stop() -> None:
            nonlocal is_told
            if not is_told:  # Once: what the work itself mends on its way out is to be done, too.
                is_told = True
                working.cancel()
            self.say("Stopping, and undoing what was done ...")

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        try:
            await working
            is_failed = not self.report.has_converged
        except asyncio.CancelledError:
            if not is_told:
                raise
            is_failed = False  # Somebody had enough.
            raise KeyboardInterrupt from None
        finally:
            # Not in the work's task: that one may be cancelled at any moment, this must be done.
            where = await self.driver.close(is_failed=is_failed)
            if where:
                self.say(where)
        return self.report

    async def _work(self) -> None:
        self.report.cluster = await self._opened()
        self.report.nodes = len(self.driver.node_ids)
        self.say(f"{self.scenario.name}: {self.report.cluster}")
        await self._repeat()

    async def _opened(self) -> str:
        try:
            return await self.driver.open()
        except ClusterUnavailableError:
            raise
        except ZephyrError as error:
            raise ClusterUnavailableError(str(error)) from None

    async def _repeat(self) -> None:
        for number in range(1, self.plan.repetitions + 1):
            repetition = await self._once(number)
            self.report.repetitions.append(repetition)
            if repetition.missed:
                missed = ", ".join(repetition.missed)
                self.say(f"repetition {number}: not within {self.plan.limit_s:g} s: {missed}")
                return  # Whatever comes next would be measured on a cluster that is not whole.

    async def _once(self, number: int) -> Repetition:
        victim = "" if self.scenario.is_etcds else self.rng.choice(sorted(self.driver.node_ids))
        hold_s = self.scenario.hold_s if self.plan.hold_s is None else self.plan.hold_s
        episode = Episode(self.driver, victim, hold_s=hold_s, limit_s=self.plan.limit_s)
        async with episode.observed(self.rng):
            telling = asyncio.create_task(self._keep_telling(episode, number))
            try:
                await self.scenario.play(episode)
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            self.tell(_progress(episode, number))
        return episode.result

    async def _keep_telling(self, episode: Episode, number: int) -> None:
        while True:
            self.tell(_progress(episode, number))
            await asyncio.sleep(TELL_S)


def _progress(episode: Episode, number: int) -> Progress:
    """Say where an episode is: seconds count from the fault, then from its end."""
    now_s = asyncio.get_running_loop().time()
    stage, since_s = "before", 0.0
    if now_s >= episode.undone_s:
        stage, since_s = "healing", now_s - episode.undone_s
    elif now_s >= episode.injected_s:
        stage, since_s = "fault", now_s - episode.injected_s
    return Progress(number, episode.victim or "etcd", since_s, stage, episode.states())
