"""Encrypted clusters in virtual time: what a replay window must not keep out."""

from __future__ import annotations

import pytest

from chaos.gossip_world import GossipWorld
from zephyr.gossip.wire import Keyring

HOUR_MS = 3_600_000


@pytest.mark.parametrize("keyring", [None, Keyring((bytes(32),))], ids=["plain", "encrypted"])
@pytest.mark.parametrize("away_s", [0.0, 10.0])
def test_a_process_that_begins_anew_with_its_clock_set_back_is_a_member_again(keyring, away_s):
    world = GossipWorld(1, keyring=keyring)
    world.converged_start(5)
    world.run_until(5.0)
    node = world.nodes["n4"]
    world.crash(node)
    world.run_until(5.0 + away_s)
    node.host.skew_ms = -HOUR_MS
    world.start("n4", ("10.0.0.0:7946",))
    world.run_until(60.0 + away_s)
    assert world.disagreements() == []
