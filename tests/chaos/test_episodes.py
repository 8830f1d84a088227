"""Scenarios on the simulator: the same code that breaks processes and containers, in virtual time."""

import asyncio
import math
import signal
from dataclasses import replace

import pytest

from chaos.drivers import ClusterUnavailableError, Driver, DriverError, Fault, FaultUnavailableError
from chaos.drivers.simulated import SimulatedDriver
from chaos.episode import Episode
from chaos.fault_scenarios import SCENARIOS, Scenario
from chaos.repeat import Plan, Report, run
from zephyr.errors import ZephyrError

PLAN = Plan(repetitions=1, limit_s=60.0, hold_s=None, seed=4)
NODES = 3
EVICT_AFTER_S = 5.0
LEASE_S = 10.0
GRAIN_S = 2.0
"""Of what a test may take a time to be: a lease is looked at twice a second, a probe is made once."""


def play(scenario: Scenario, plan: Plan = PLAN, driver: Driver | None = None, seed: int = 4) -> Report:
    return run(driver or SimulatedDriver(NODES, seed), scenario, plan, lambda _: None, lambda _: None)


def ad_hoc(play, *needs: Fault, is_etcds: bool = False) -> Scenario:
    """Return a scenario of a test's own."""
    return Scenario("ad-hoc", "", frozenset(needs), play, is_etcds=is_etcds)


def test_a_killed_node_is_known_at_once_and_out_after_the_grace():
    report = play(SCENARIOS["kill-one"], replace(PLAN, repetitions=2))
    assert report.has_converged
    assert len(report.repetitions) == 2
    for item in report.repetitions:
        times = item.times
        assert item.victim in {"n1", "n2", "n3"}
        assert 0 < times.first_knows_s <= times.all_know_s < 1
        assert 0 < times.unroutable_s < 1
        assert EVICT_AFTER_S < times.out_s <= times.equal_s < EVICT_AFTER_S + GRAIN_S
        assert 1 <= times.back_s < 5  # A process needs a second to start here.
        assert item.failed == 0
        # A second before, six of the fault, one until it is back: ten a second.
        assert item.requests == pytest.approx(10 * (1 + times.equal_s + times.back_s), abs=4)


@pytest.mark.parametrize("name", ["pause-one", "disconnect-one"])
def test_a_silent_node_is_out_when_its_lease_is_over_at_the_latest(name):
    report = play(SCENARIOS[name])
    assert report.has_converged
    for item in report.repetitions:
        assert 2 < item.times.first_knows_s <= item.times.all_know_s  # Silence takes seconds to be a death.
        assert item.times.out_s < LEASE_S + GRAIN_S
        assert item.times.back_s < 5
        assert item.failed == 0


def test_an_etcd_that_is_away_changes_no_ring():
    report = play(SCENARIOS["kill-etcd"])
    assert report.has_converged
    for item in report.repetitions:
        assert item.document()["victim"] == "etcd"
        assert 0 < item.times.first_knows_s <= item.times.all_know_s < 10
        assert item.times.equal_s == 0.0
        assert item.times.unroutable_s is item.times.out_s is None
        assert item.failed == 0


def test_a_wiped_etcd_is_whole_again_only_when_every_node_has_seen_it():
    driver = SimulatedDriver(NODES, 4)
    report = play(SCENARIOS["wipe-etcd"], driver=driver)
    assert report.has_converged
    # Before the nodes have looked at it, they still show the ring of the data that are lost.
    assert all(item.times.back_s > 0.5 for item in report.repetitions)
    assert sum(b"/members/" in key for key in driver.simulation.etcd.pairs) == NODES


def test_the_same_seed_is_the_same_run_to_the_byte():
    logs = []
    for seed in (1, 1, 2):
        driver = SimulatedDriver(NODES, seed)
        play(SCENARIOS["kill-one"], driver=driver)
        logs.append(driver.simulation.log)
    assert logs[0] == logs[1] != logs[2]


def test_a_fault_lasts_as_long_as_it_is_told_to():
    seen = []

    async def hold(episode: Episode) -> None:
        await SCENARIOS["kill-one"].play(episode)
        seen.append(episode.undone_s - episode.injected_s)

    play(ad_hoc(hold), Plan(1, 60.0, 20.0, 4))
    assert seen == [pytest.approx(20.0, abs=0.1)]


def test_what_does_not_come_in_time_is_named_and_ends_the_run():
    said = []
    plan = Plan(repetitions=3, limit_s=2.0, hold_s=None, seed=4)
    report = run(SimulatedDriver(NODES, 4), SCENARIOS["kill-one"], plan, lambda _: None, said.append)
    assert not report.has_converged
    (item,) = report.repetitions
    assert item.missed == ["gone for all others"]
    assert item.times.all_know_s < 1
    assert item.times.out_s == item.times.equal_s == math.inf
    assert math.isfinite(item.times.back_s)
    assert any("not within 2 s: gone for all others" in text for text in said)
    assert report.document()["repetitions"][0]["out_s"] is None


def test_a_cluster_that_is_not_mended_is_not_whole():
    async def forget(episode: Episode) -> None:
        await episode.inject(episode.driver.kill(episode.victim))
        await episode.until_gone()
        await episode.undo(episode.driver.heal())

    report = play(ad_hoc(forget), Plan(2, 12.0, None, 4))
    assert [item.missed for item in report.repetitions] == [["back and level"]]
    assert report.repetitions[0].times.back_s == math.inf


def test_equal_rings_are_not_enough_where_a_node_is_not_ready():
    class Unready(SimulatedDriver):
        async def is_ready(self, node_id: str) -> bool:
            return "undone" not in seen and await super().is_ready(node_id)

    seen = []

    async def wait_in_vain(episode: Episode) -> None:
        await episode.inject(episode.driver.heal())
        seen.append("undone")
        await episode.undo(episode.driver.heal())

    report = play(ad_hoc(wait_in_vain), Plan(2, 5.0, None, 4), Unready(NODES))
    assert [item.missed for item in report.repetitions] == [["back and level"]]


def test_requests_that_fail_are_counted_and_told():
    async def kill_most(episode: Episode) -> None:
        victims = [episode.victim, *episode.survivors[:1]]
        for victim in victims:
            await episode.inject(episode.driver.kill(victim))
        await asyncio.sleep(3)
        for victim in victims:
            await episode.driver.restart(victim)
        await episode.undo(episode.driver.heal())

    report = play(ad_hoc(kill_most), Plan(1, 60.0, None, 4))
    (item,) = report.repetitions
    assert 0 < item.failed < item.requests
    assert len(item.failures) == min(item.failed, 20)
    assert all(text.startswith(("GET through n", "PUT through n")) for text in item.failures)


# --- the seam -----------------------------------------------------------------------------------------


def test_a_driver_without_the_fault_is_not_even_opened():
    class Poor(SimulatedDriver):
        faults = frozenset({Fault.KILL})

        async def open(self) -> str:
            raise AssertionError("nobody should ask for a cluster")

    with pytest.raises(FaultUnavailableError, match="cannot stop"):
        play(SCENARIOS["pause-one"], driver=Poor(NODES))


def test_a_cluster_that_does_not_start_is_closed_all_the_same():
    closed = []

    class Broken(SimulatedDriver):
        async def open(self) -> str:
            raise ZephyrError("no such thing")

        async def close(self, *, is_failed: bool) -> str:
            closed.append(is_failed)
            return ""

    with pytest.raises(ClusterUnavailableError, match="no such thing"):
        play(SCENARIOS["kill-one"], driver=Broken(NODES))
    assert closed == [True]


def test_nothing_is_done_to_a_cluster_that_is_not_whole_to_begin_with():
    class Half(SimulatedDriver):
        async def open(self) -> str:
            cluster = await super().open()
            self.simulation.crash("n2")
            return cluster

        async def kill(self, node_id: str) -> None:
            raise AssertionError("nothing should be done to it")

    with pytest.raises(ClusterUnavailableError, match="did not agree before, within 3 s"):
        play(SCENARIOS["kill-one"], Plan(1, 3.0, None, 4), Half(NODES))


def test_a_fault_that_cannot_be_made_ends_the_run_and_closes_the_cluster():
    closed = []

    class Stubborn(SimulatedDriver):
        async def kill(self, node_id: str) -> None:
            raise DriverError(f"{node_id} does not die")

        async def close(self, *, is_failed: bool) -> str:
            closed.append(is_failed)
            return ""

    with pytest.raises(DriverError, match="does not die"):
        play(SCENARIOS["kill-one"], driver=Stubborn(NODES))
    assert closed == [True]


@pytest.mark.parametrize("at_s", [0.2, 3.0, 5.9])
def test_a_signal_closes_the_cluster_before_the_run_ends(at_s):
    """Seconds from the fault on: it is out of the rings after five and a half."""
    closed = []
    injected_s = []

    class Interrupted(SimulatedDriver):
        async def close(self, *, is_failed: bool) -> str:
            await asyncio.sleep(1)
            signal.raise_signal(signal.SIGINT)  # Whoever insists does not keep it from being done.
            await asyncio.sleep(1)
            closed.append(is_failed)
            return ""

        async def kill(self, node_id: str) -> None:
            injected_s.append(self.simulation.now_s)
            await super().kill(node_id)

        async def page(self, node_id: str) -> object:
            if injected_s and self.simulation.now_s > injected_s[0] + at_s:
                injected_s.clear()
                signal.raise_signal(signal.SIGTERM)
            return await super().page(node_id)

    with pytest.raises(KeyboardInterrupt):
        play(SCENARIOS["kill-one"], driver=Interrupted(NODES))
    assert closed == [False]


def test_a_signal_while_the_cluster_is_closed_changes_nothing():
    closed = []

    class Closing(SimulatedDriver):
        async def close(self, *, is_failed: bool) -> str:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(1)
            closed.append(is_failed)
            return ""

    assert play(SCENARIOS["wipe-etcd"], driver=Closing(NODES)).has_converged
    assert closed == [False]


def views(driver: SimulatedDriver) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return (authority, owners) of each running node."""
    nodes = {node_id: item.node for node_id, item in driver.simulation.nodes.items()}
    return {node_id: (node.view.authority, node.view.owners) for node_id, node in nodes.items()}


def test_the_simulator_has_every_fault_of_the_network_and_heals_it():
    seen: dict[str, dict] = {}

    async def every(episode: Episode) -> None:
        driver = episode.driver
        one, two, three = episode.everybody
        await driver.block_udp([one])
        await asyncio.sleep(10)
        seen["block-udp"] = views(driver)
        await driver.heal()
        await asyncio.sleep(10)
        await driver.cut_from_etcd([one])
        await asyncio.sleep(15)
        seen["cut-from-etcd"] = views(driver)
        await driver.heal()
        await asyncio.sleep(10)
        await driver.cut([one], [two, three])
        await asyncio.sleep(40)
        seen["cut"] = views(driver)
        await episode.inject(driver.cut_one_way([one], [two]))
        await episode.undo(driver.heal())

    driver = SimulatedDriver(NODES, 4)
    report = play(ad_hoc(every, *Fault), Plan(1, 60.0, None, 4), driver)
    assert report.has_converged
    everybody = ("n1", "n2", "n3")
    assert seen["block-udp"]["n1"] == ("etcd", everybody)
    assert seen["block-udp"]["n3"] == ("both", everybody)
    assert seen["cut-from-etcd"]["n1"] == ("relayed", everybody)
    assert seen["cut"] == {"n1": ("etcd", ("n2", "n3")), "n2": ("both", ("n2", "n3")), "n3": ("both", ("n2", "n3"))}


def test_one_more_node_is_one_of_all():
    async def add(episode: Episode) -> None:
        assert await episode.driver.add() == "n4"
        await asyncio.sleep(10)
        await episode.inject(episode.driver.heal())

    driver = SimulatedDriver(NODES, 4)
    play(ad_hoc(add, Fault.ADD), Plan(1, 60.0, None, 4), driver)
    assert driver.node_ids[-1] == "n4"
    assert {owners for _, owners in views(driver).values()} == {("n1", "n2", "n3", "n4")}
