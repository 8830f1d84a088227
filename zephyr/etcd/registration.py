"""The keys and values that a cluster keeps in etcd: where they lie, and how they are read.

Decides what bytes under the prefix mean, and refuses those that mean nothing. Never talks to etcd and
keeps no state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from zephyr.config import CLUSTER_DEFAULT, NODE_ID_PATTERN, parse_address
from zephyr.model import Member, NodeId

VALUE_BYTES_MAX = 4096
"""Longest value read; a longer one is garbage."""


class Keyspace:
    """Where a cluster's keys lie in etcd, and what each key means.

    The cluster `dev` lies directly under `/zephyrcache/`, every other one under `/zephyrcache/<cluster>/`.
    One range covers evictions, members and settings, so that all three are read at one revision. In the
    cluster `dev` that range can contain keys of clusters whose names sort between: they are not ours.
    """

    def __init__(self, cluster: str) -> None:
        prefix = "/zephyrcache/" if cluster == CLUSTER_DEFAULT else f"/zephyrcache/{cluster}/"
        self.prefix = prefix.encode()
        self.settings = self.prefix + b"settings"
        self.range_start = self.prefix + b"evictions/"
        self.range_end = self.settings + b"\x00"

    def member(self, node_id: NodeId) -> bytes:
        """Return the key of a registration."""
        return self.prefix + b"members/" + node_id.encode()

    def eviction(self, node_id: NodeId) -> bytes:
        """Return the key of an eviction's mark."""
        return self.prefix + b"evictions/" + node_id.encode()

    def kind(self, key: bytes) -> tuple[str, str]:
        """Return ("members" or "evictions", id), ("settings", ""), or ("", "") for a key that is not ours."""
        if key == self.settings:
            return "settings", ""
        kind, slash, name = key[len(self.prefix) :].partition(b"/")
        if slash and kind in (b"members", b"evictions") and b"/" not in name:
            return kind.decode(), name.decode("utf-8", "replace")
        return "", ""


def encode_registration(member: Member) -> bytes:
    """Write a member as the JSON value of its registration."""
    return json.dumps(
        {
            "id": member.id,
            "http": member.http,
            "gossip": member.gossip,
            "peer": member.peer,
            "epoch": member.epoch,
            "weight": member.weight,
            "zone": member.zone,
            "state": member.state,
            "protocol": list(member.protocol),
        }
    ).encode()


def decode_registration(node_id: str, value: bytes) -> Member:
    """Read a registration. Raises ValueError, with the reason, for anything that is not one of this id."""
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError("longer than a registration may be")
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # the bytes are wrong, not the caller's type
    if not NODE_ID_PATTERN.fullmatch(node_id) or fields.get("id") != node_id:
        raise ValueError(f"its id is {fields.get('id')!r}, its key says {node_id!r}")
    for name in ("http", "gossip", "peer"):
        if not isinstance(fields.get(name), str):
            raise ValueError(f"no address {name!r}")  # noqa: TRY004
        parse_address(fields[name])
    state, zone = fields.get("state", "serving"), fields.get("zone", "")
    if state not in ("joining", "serving", "leaving"):
        raise ValueError(f"unknown state {state!r}")
    if not isinstance(zone, str) or (zone and not NODE_ID_PATTERN.fullmatch(zone)):
        raise ValueError(f"unusable zone {zone!r}")
    epoch, weight = _number(fields, "epoch", int, 0, 1 << 62), _number(fields, "weight", float, 0.1, 10)
    low, high = _protocol_range(fields.get("protocol", [1, 1]))
    return Member(node_id, fields["http"], fields["gossip"], fields["peer"], epoch, weight, zone, state, (low, high))


@dataclass(frozen=True, slots=True)
class EvictionMark:
    """Why a registration was deleted by another member: it explains the end of one life, and of no later one."""

    by: NodeId
    epoch: int
    """Boot epoch of the life that was evicted."""
    reason: str

    def encode(self) -> bytes:
        """Write as the JSON value of the mark's key."""
        return json.dumps({"by": self.by, "epoch": self.epoch, "reason": self.reason}).encode()

    @staticmethod
    def decode(value: bytes) -> EvictionMark:
        """Read a mark. Raises ValueError."""
        fields = json.loads(value[:VALUE_BYTES_MAX])
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004
        by, reason = fields.get("by"), fields.get("reason")
        if not isinstance(by, str) or not isinstance(reason, str):
            raise ValueError("an eviction's mark names who and why")  # noqa: TRY004
        return EvictionMark(by, _number(fields, "epoch", int, 0, 1 << 62), reason)


def _number(fields: dict[str, Any], name: str, kind: type[int | float], low: float, high: float) -> Any:
    number = fields.get(name)
    if isinstance(number, bool) or not isinstance(number, (int, kind)) or not low <= number <= high:
        raise ValueError(f"unusable {name} {number!r}")
    return kind(number)


def _protocol_range(value: object) -> tuple[int, int]:
    match value:
        case [int(low), int(high)] if 1 <= low <= high < 1 << 16:
            return low, high
    raise ValueError(f"unusable protocol range {value!r}")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What every node of a cluster must agree on, else equal members would not mean equal owners."""

    replicas: int
    virtual_nodes: int
    hash_version: int
    generation: int
    """Unix ms of the writing: orders the views before and after etcd was wiped."""

    def encode(self) -> bytes:
        """Write as the JSON value of the settings key."""
        return json.dumps(
            {
                "replicas": self.replicas,
                "virtual_nodes": self.virtual_nodes,
                "hash_version": self.hash_version,
                "generation": self.generation,
            }
        ).encode()

    @staticmethod
    def decode(value: bytes) -> ClusterSettings:
        """Read the settings key. Raises ValueError."""
        fields = json.loads(value[:VALUE_BYTES_MAX])
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004
        names = ("replicas", "virtual_nodes", "hash_version", "generation")
        return ClusterSettings(*(_number(fields, name, int, 0, 1 << 62) for name in names))
