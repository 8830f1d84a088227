"""What is done to a cluster, written once for every driver: each scenario is a function over an episode.

A scenario names what it does and in which order; how a driver does it, what is looked at and what the looks mean is
elsewhere. `zephyr chaos list` shows this catalogue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from chaos.drivers import Fault
from chaos.episode import Episode


class Scenario(NamedTuple):
    """Something to do to a cluster, on any driver that has the faults."""

    name: str
    summary: str
    needs: frozenset[Fault]
    play: Callable[[Episode], Awaitable[None]]
    hold_s: float = 0.0
    """The fault lasts for at least so long, where nobody says otherwise."""
    is_etcds: bool = False
    """Whether it is done to etcd: then no node is the victim."""


async def kill_one(episode: Episode) -> None:
    """Kill a node, and start it again when the others have closed the ring."""
    await episode.inject(episode.driver.kill(episode.victim))
    await episode.until_gone()
    await episode.undo(episode.driver.restart(episode.victim))


async def pause_one(episode: Episode) -> None:
    """Have a node stand still, and go on when the others have closed the ring."""
    await episode.inject(episode.driver.stop(episode.victim))
    await episode.until_gone()
    await episode.undo(episode.driver.resume(episode.victim))


async def disconnect_one(episode: Episode) -> None:
    """Cut a node off, and connect it when the others have closed the ring."""
    await episode.inject(episode.driver.disconnect(episode.victim))
    await episode.until_gone()
    await episode.undo(episode.driver.heal())


async def kill_etcd(episode: Episode) -> None:
    """Kill etcd, and start it again some time after all have seen it."""
    await episode.inject(episode.driver.kill_etcd())
    await episode.until_known()
    await episode.undo(episode.driver.restart_etcd())


async def wipe_etcd(episode: Episode) -> None:
    """Kill etcd, and start it at once, empty: whether anybody sees it go is up to who looks when."""
    await episode.inject(episode.driver.wipe_etcd())
    await episode.undo(episode.driver.restart_etcd(), is_new_etcd=True)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("kill-one", "kill -9 of a node, started again when it is out of every ring",
                 frozenset({Fault.KILL}), kill_one),
        Scenario("pause-one", "a node stands still (SIGSTOP), and goes on when it is out of every ring",
                 frozenset({Fault.STOP}), pause_one),
        Scenario("disconnect-one", "a node is cut off from all others and from etcd, until it is out of their rings",
                 frozenset({Fault.DISCONNECT}), disconnect_one),
        Scenario("kill-etcd", "kill -9 of etcd, started again 10 s later with its data",
                 frozenset({Fault.KILL_ETCD}), kill_etcd, hold_s=10.0, is_etcds=True),
        Scenario("wipe-etcd", "kill -9 of etcd, started again at once without its data",
                 frozenset({Fault.WIPE_ETCD}), wipe_etcd, is_etcds=True),
    )
}  # fmt: skip
