"""What is handed out of the core: nobody who holds it can change it, nor see it change."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from zephyr.config import Settings
from zephyr.events import DatagramReceived, Started
from zephyr.gossip.messages import Alive, Dead, Packet
from zephyr.model import Instant, Member
from zephyr.node import Node

NOW = Instant(1.0, 1_700_000_000_000)


def member(node_id: str) -> Member:
    return Member(node_id, f"{node_id}:1", f"{node_id}:2", f"{node_id}:3", 1)


def a_node() -> Node:
    node = Node(Settings(id="me", etcd=(), memory=1 << 24), member("me"), random.Random(1), NOW)
    node.handle(Started(), NOW)
    node.handle(DatagramReceived("a:2", Packet("a", 1, (Alive(member("a"), 0), Alive(member("b"), 0)))), NOW)
    return node


def mutable_parts(value: Any, path: str) -> list[str]:
    """Name every part of a value that could be changed in place."""
    if is_dataclass(value):
        found = []
        for item in fields(value):
            part = getattr(value, item.name)
            with pytest.raises(FrozenInstanceError):
                setattr(value, item.name, part)
            found += mutable_parts(part, f"{path}.{item.name}")
        return found
    if isinstance(value, tuple | frozenset):
        return [name for index, part in enumerate(value) for name in mutable_parts(part, f"{path}[{index}]")]
    return [] if isinstance(value, str | bytes | int | float | bool | None) else [f"{path}: {type(value).__name__}"]


def test_a_view_of_the_cluster_is_immutable_through_and_through():
    view = a_node().view
    assert len(view.members) == 3
    assert mutable_parts(view, "view") == []


def test_a_view_stays_as_it_was_when_the_cluster_changes():
    node = a_node()
    view, before = node.view, repr(node.view)
    node.handle(DatagramReceived("a:2", Packet("a", 1, (Dead("b", 1, 0, "a"),))), NOW)
    assert node.view != view
    assert repr(view) == before


def test_the_living_members_are_handed_out_as_they_are_now():
    node = a_node()
    living = node.swim.live_members()
    assert mutable_parts(living, "living") == []
    node.handle(DatagramReceived("a:2", Packet("a", 1, (Dead("b", 1, 0, "a"),))), NOW)
    assert [item.id for item in living] == ["a", "b"]
    assert [item.id for item in node.swim.live_members()] == ["a"]
