"""Gossip machines on the simulated network: what each fault may and may not cost, and the runs that measure it."""

import concurrent.futures
import os

import pytest

from chaos.gossip_scenarios import SCENARIOS, Case, parse_case, run_case
from chaos.gossip_world import LINKS_ALL_KEPT_MAX, LINKS_KEPT, GossipWorld
from chaos.network import Path, Uniform
from chaos.report import percentile, tables, wilson
from chaos.simulate import PLANS, cases, replay_command

PLAN_SEEDS = (
    pytest.param(20, marks=pytest.mark.timeout(400)),
    pytest.param(1000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)]),
)
"""Pure computation; the bounds are for a run that hangs, on any machine."""


def settled(count: int, **options: object) -> GossipWorld:
    """A cluster that has known itself for ten seconds."""
    world = GossipWorld(1, **options)
    world.converged_start(count)
    world.run_until(10.0)
    return world


def values(text: str) -> dict[str, float]:
    result = run_case(parse_case(text))
    assert not result.failure, f"{result.failure}: {replay_command(result.case)}"
    return result.values


# --- one fault ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["crash", "container"])
@pytest.mark.parametrize("nodes", [2, 5, 10])
def test_an_ended_process_is_known_to_all_within_half_a_second(scenario, nodes):
    assert values(f"{scenario},nodes={nodes}")["all_s"] < 0.5


def test_a_run_goes_on_after_the_death_for_as_long_as_asked():
    text = "crash,nodes=10,lasts_s=30.0"
    assert values(text) == values("crash,nodes=10")
    times_s = [float(line.split()[0]) for line in run_case(parse_case(text), "lines").log]
    assert 29.0 < times_s[-1] <= 30.0


def test_a_silent_death_is_known_within_its_bound():
    assert 4.0 < values("silent,nodes=10")["all_s"] < 2 * 9 + 1 + 24 + 2


@pytest.mark.parametrize("seed", range(5))
def test_a_process_that_stands_still_for_three_seconds_harms_nobody_and_is_back_at_once(seed):
    shown = values(f"pause,nodes=10,seed={seed}")
    assert shown["false_deaths_others"] == 0
    assert shown["back_s"] <= 2.0


def test_a_node_that_stood_still_probes_as_often_as_before():
    world = settled(10)
    node = world.nodes["n4"]
    world.network.pause(node.host, 2.0)
    world.run_until(30.0)
    before = node.host.packets_sent
    world.run_until(60.0)
    assert node.host.packets_sent - before == pytest.approx(60, abs=8), "one ping and one ack a second"


@pytest.mark.parametrize("refusing", [False, True])
def test_a_partition_heals_whether_it_was_silent_or_refusing(refusing):
    shown = values(f"partition,nodes=10,refusing={refusing}")
    assert shown["split_views"] == 10, "both sides gave the other up"
    assert shown["converged_s"] < 30


def test_a_port_that_refuses_peers_kills_nobody_while_udp_answers():
    world = settled(10)
    world.network.refuse_peers(world.nodes["n4"].host, refuses=True)
    world.run_until(60.0)
    assert world.deaths == []
    world.network.refuse_peers(world.nodes["n4"].host, refuses=False)
    world.run_until(65.0)
    assert len(world.nodes["n4"].host.served) == 9


def test_a_network_that_lets_only_tcp_pass_kills_nobody():
    world = settled(10)
    world.network.set_path(Path(Uniform(0.0002, 0.005), datagram_loss=1.0))
    world.run_until(60.0)
    assert world.deaths == []


def test_a_node_that_leaves_is_never_called_dead():
    world = settled(10)
    world.leave(world.nodes["n4"])
    world.run_until(60.0)
    assert world.deaths == []
    assert world.disagreements() == []


def test_a_restarted_node_takes_its_id_over():
    world = settled(10)
    world.crash(world.nodes["n4"])
    world.start("n4", ("10.0.0.0:7946",))
    world.run_until(20.0)
    assert world.disagreements() == []
    assert not world.false_deaths


def test_all_join_through_seeds_that_are_names():
    world = GossipWorld(1)
    world.names["dns:zephyr:7946"] = ("10.0.0.0:7946", "10.0.0.1:7946")
    for number in range(1, 11):
        world.scheduler.at(number * 0.01, world.start, f"n{number}", ("dns:zephyr:7946",))
    world.run_until(10.0)
    assert len(world.running()) == 10
    assert world.disagreements() == []
    assert all(len(node.host.connections) == 9 for node in world.running())


def test_idle_nodes_send_two_packets_a_period_however_many_they_are():
    few, many = (values(f"idle,nodes={nodes}")["packets_node_period"] for nodes in (10, 100))
    assert few == pytest.approx(2.0, rel=0.1)
    assert many == pytest.approx(few, rel=0.1)


# --- kept connections ---------------------------------------------------------------------------------


def test_every_connection_is_kept_up_to_a_size_and_a_few_beyond():
    small, large = GossipWorld(1), GossipWorld(1)
    small.converged_start(LINKS_ALL_KEPT_MAX + 1)
    large.converged_start(LINKS_ALL_KEPT_MAX + 2)
    assert {len(node.links) for node in small.running()} == {LINKS_ALL_KEPT_MAX}
    assert {len(node.links) for node in large.running()} == {LINKS_KEPT}
    assert len({tuple(sorted(node.links)) for node in large.running()}) > 60, "each chooses for itself"


def test_connections_that_are_chosen_follow_who_lives():
    world = GossipWorld(1)
    nodes = world.converged_start(72)
    world.run_until(1.0)
    for node in nodes[:5]:
        world.crash(node)
    world.run_until(40.0)
    for node in world.running():
        assert len(node.links) == LINKS_KEPT
        assert all(link.is_up for link in node.links.values())
    for node in nodes[5:7]:
        world.crash(node)
    world.run_until(80.0)
    assert {len(node.links) for node in world.running()} == {64}, "that many others: all"


# --- many faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", PLAN_SEEDS)
def test_random_fault_plans_hold(seeds):
    workers = max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(run_case, cases("plan", seeds, [10], "lan"), chunksize=5))
    failures = [f"{result.failure}: {replay_command(result.case)}" for result in results if result.failure]
    assert not failures, "\n".join(failures[:10])


def test_lifeguard_spares_whom_plain_swim_loses():
    cell = "lifeguard,nodes=30,loss=0.05,starved=0.1,seed=1"
    assert values(cell)["false_deaths"] == 0
    assert values(f"{cell},lifeguard=False,connections=False")["false_deaths"] > 0


@pytest.mark.parametrize("text", ["plan,seed=3", "crash,nodes=20", "partition,nodes=8,refusing=True"])
def test_the_same_seed_gives_the_same_run_to_the_byte(text):
    first, second = (run_case(parse_case(text), "lines") for _ in range(2))
    hashed = run_case(parse_case(text), "hash")
    other = run_case(parse_case(f"{text},seed=4"), "hash")
    assert len(first.log) > 100
    assert first.log == second.log
    assert first.digest == second.digest == hashed.digest != other.digest
    assert hashed.log is None


# --- runs and tables ----------------------------------------------------------------------------------


def test_a_case_is_read_as_it_was_written():
    case = Case("lifeguard", seed=7, nodes=50, loss=0.03, lifeguard=False, profile="local")
    assert parse_case(case.text()) == case
    assert parse_case("plan") == Case("plan")
    assert replay_command(case).endswith(f"--replay {case.text()} --log")


@pytest.mark.parametrize("text", ["", "nothing", "plan,seed", "plan,speed=3", "plan,seed=x", "plan,scenario=crash"])
def test_a_case_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        parse_case(text)


def test_every_scenario_is_planned_for():
    assert set(PLANS) == {"cluster", "claims", *SCENARIOS}


def test_whatever_a_run_raises_is_its_result(monkeypatch):
    def fail(_case, _log):
        raise KeyError("n1")

    monkeypatch.setitem(SCENARIOS, "idle", fail)
    assert "KeyError: 'n1'" in run_case(Case("idle")).failure


@pytest.mark.parametrize(("hits", "count", "low", "high"), [
    (0, 100, 0.0, 0.0370), (50, 100, 0.4038, 0.5962), (100, 100, 0.9630, 1.0), (1, 10, 0.0179, 0.4042),
    (0, 0, 0.0, 1.0),
])  # fmt: skip
def test_wilson_intervals_are_those_of_the_books(hits, count, low, high):
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_percentiles_are_values_that_occurred():
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.99) == 4.0
    assert percentile([], 0.5) == float("inf")


def test_tables_tell_of_failures_and_compare_the_arms_of_lifeguard():
    runs = [run_case(case) for case in cases("lifeguard", 1, [5], "lan")[:3]]
    first, second, third = tables(runs)
    assert len(first.rows) == 3
    assert [row[:3] for row in second.rows] == [("5", "1 %", "1 %")]
    assert [row[1] for row in third.rows] == ["Lifeguard", "Lifeguard, UDP alone", "SWIM"]
    assert all(len(row) == len(table.columns) for table in (first, second, third) for row in table.rows)


def test_an_arm_of_lifeguard_may_be_left_out():
    chosen = cases("lifeguard", 1, [5], "lan", ["lifeguard", "swim"])
    assert len(chosen) == 18
    _, by_cell, compared = tables(run_case(case) for case in chosen[:2])
    assert len(by_cell.columns) == 3 + 2 * 2
    assert [row[1] for row in compared.rows] == ["Lifeguard", "SWIM"]
