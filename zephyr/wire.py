"""What every wire format of the cluster demands of a member's fields.

Decides which values of other programs may become a `Member`. Never decides how they stand on a wire, or what follows
from them: that is for the formats (`zephyr.peer.wire`, `zephyr.gossip.wire`) and for the machines behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zephyr.config import NODE_ID_PATTERN, parse_address
from zephyr.model import Member

EPOCH_MAX = (1 << 63) - 1
WEIGHT_MIN, WEIGHT_MAX = 0.1, 10.0
ADDRESS_CHARACTERS_MAX = 262
"""A DNS name of 253, brackets, a colon and a port, rounded up."""
PROTOCOL_NUMBER_MAX = 0xFFFF
MEMBER_STATES = ("joining", "serving", "leaving")


def checked_member(fields: Sequence[Any]) -> Member:
    """Return the member that nine values of unknown types make, in the order of its fields.

    Raises ValueError(which field is wrong).
    """
    node_id, http, gossip, peer, epoch, weight, zone, state, protocol = fields
    if not is_id(node_id):
        raise ValueError("id")
    for name, address in (("http", http), ("gossip", gossip), ("peer", peer)):
        if not is_address(address):
            raise ValueError(f"{name} address of {node_id}")
    if type(epoch) is not int or not 0 <= epoch <= EPOCH_MAX:
        raise ValueError(f"epoch of {node_id}")
    if type(weight) not in (int, float) or not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise ValueError(f"weight of {node_id}")
    if zone != "" and not is_id(zone):
        raise ValueError(f"zone of {node_id}")
    if type(state) is not str or state not in MEMBER_STATES:
        raise ValueError(f"state of {node_id}")
    if not is_protocol(protocol):
        raise ValueError(f"protocol numbers of {node_id}")
    return Member(node_id, http, gossip, peer, epoch, float(weight), zone, state, protocol)  # type: ignore[arg-type]


def is_id(value: Any) -> bool:
    """Tell whether this may be the name of a node, a zone or a cluster."""
    return type(value) is str and NODE_ID_PATTERN.fullmatch(value) is not None


def is_address(address: Any) -> bool:
    """Tell whether this is `host:port`, of bounded length, and safe to resolve, log and show."""
    if type(address) is not str or len(address) > ADDRESS_CHARACTERS_MAX:
        return False
    # It is resolved, logged and shown: no spaces, no control characters.
    if not address.isascii() or not address.isprintable() or " " in address:
        return False
    try:
        parse_address(address)
    except ValueError:
        return False
    return True


def is_protocol(protocol: Any) -> bool:
    """Tell whether this is (oldest, newest) protocol number of a program."""
    if type(protocol) is not tuple or len(protocol) != 2:
        return False
    low, high = protocol
    return type(low) is int and type(high) is int and 1 <= low <= high <= PROTOCOL_NUMBER_MAX
