"""The one timer of a node: it fires for what is due, and for nothing else."""

import asyncio
import time
from math import inf
from types import SimpleNamespace

import pytest

from zephyr.config import Settings
from zephyr.events import TimerFired
from zephyr.runtime import Runtime

WAIT_MAX_S = 5.0


class Node:
    """Waits for one moment, and knows when it heard that it has come."""

    def __init__(self) -> None:
        self.due_s = inf
        self.heard_s: list[float] = []
        self.heard = asyncio.Event()
        self.coordinator = SimpleNamespace(due_s=inf)

    def deadline(self) -> float:
        self.coordinator.due_s = self.due_s
        return self.due_s

    def handle(self, event, now):
        assert type(event) is TimerFired
        self.heard_s.append(now.monotonic_s)
        self.due_s = inf
        self.heard.set()
        return []


@pytest.fixture
async def runtime():
    runtime = Runtime(Settings(id="n1"))
    runtime._loop = asyncio.get_running_loop()
    runtime.node = Node()
    runtime.gossip = SimpleNamespace(drain=lambda: None)
    return runtime


async def test_a_request_that_waits_for_an_earlier_moment_moves_the_timer_forward(runtime):
    node, began_s = runtime.node, time.monotonic()
    node.due_s = began_s + WAIT_MAX_S
    runtime._arm()
    node.due_s = node.coordinator.due_s = began_s + 0.02
    runtime._arm_for_request()
    await asyncio.wait_for(node.heard.wait(), WAIT_MAX_S)
    assert began_s + 0.02 <= node.heard_s[0] < began_s + WAIT_MAX_S


async def test_a_moment_for_which_nobody_waits_any_more_is_no_event(runtime):
    node, began_s = runtime.node, time.monotonic()
    node.due_s = node.coordinator.due_s = began_s + 0.01
    runtime._arm_for_request()
    node.due_s = began_s + 0.06
    await asyncio.wait_for(node.heard.wait(), WAIT_MAX_S)
    assert [heard_s >= began_s + 0.06 for heard_s in node.heard_s] == [True]
