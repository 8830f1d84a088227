"""Several processes that end at once, and one that only looks so, in virtual time."""

from __future__ import annotations

import pytest

from chaos.gossip_world import GossipWorld


@pytest.mark.parametrize(("nodes", "ended"), [(3, 2), (5, 4), (10, 9), (10, 5)])
def test_processes_that_end_at_once_are_known_within_two_seconds_to_all_that_are_left(nodes, ended):
    world = GossipWorld(1)
    alive = world.converged_start(nodes)
    world.run_until(10.0)
    for node in alive[:ended]:
        world.crash(node)
    world.run_until(12.0)
    assert world.disagreements() == []
    assert not world.false_deaths


def test_one_that_looks_ended_to_a_single_member_lives_on_beside_a_slow_one():
    world = GossipWorld(1)
    first, second, third = world.converged_start(3)
    world.run_until(10.0)
    world.network.pause(third.host, 3.0)  # Suspected for a while, and no witness of anything.
    world.network.refuse_peers(second.host, refuses=True)
    world.run_until(13.5)
    assert not world.false_deaths
    world.network.refuse_peers(second.host, refuses=False)
    world.run_until(20.0)
    assert world.disagreements() == []
    assert first.swim.size == 3
