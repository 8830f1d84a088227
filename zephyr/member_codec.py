"""A member as msgpack values: the one form in which peers and gossip hand on who somebody is.

Decides whether values that came from outside are a member; never what that member means. The form stays the
same in every version of the protocols, since it is read before one is agreed: newer programs may only append.
"""

from __future__ import annotations

from typing import Any

from zephyr.config import NODE_ID_PATTERN, parse_address
from zephyr.errors import WireError
from zephyr.model import Member

PROTOCOL_NUMBER_MAX = 0xFFFF
EPOCH_MAX = (1 << 63) - 1
WEIGHT_MIN, WEIGHT_MAX = 0.1, 10.0
ADDRESS_CHARACTERS_MAX = 262
"""A DNS name of 253, brackets, a colon and a port, rounded up."""

_STATES = frozenset({"joining", "serving", "leaving"})


def encode_member(member: Member) -> tuple[Any, ...]:
    """Return a member as an array of msgpack values, to stand inside a frame. `decode_member` reads it back."""
    return (
        member.id,
        member.http,
        member.gossip,
        member.peer,
        member.epoch,
        float(member.weight),
        member.zone,
        member.state,
        tuple(member.protocol),
    )


def decode_member(value: Any) -> Member:
    """Read what `encode_member` made, after msgpack. Elements that a newer program appended are skipped.

    Raises WireError("member", what is wrong).
    """
    if type(value) is not tuple or len(value) < 9:
        raise WireError("member", "it is an array of 9 elements")
    node_id, http, gossip, peer, epoch, weight, zone, state, protocol = value[:9]
    if type(node_id) is not str or not NODE_ID_PATTERN.fullmatch(node_id):
        raise WireError("member", "id")
    for name, address in (("http", http), ("gossip", gossip), ("peer", peer)):
        if not _is_address(address):
            raise WireError("member", f"{name} address of {node_id}")
    if type(epoch) is not int or not 0 <= epoch <= EPOCH_MAX:
        raise WireError("member", f"epoch of {node_id}")
    if type(weight) not in (int, float) or not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise WireError("member", f"weight of {node_id}")
    if type(zone) is not str or (zone and not NODE_ID_PATTERN.fullmatch(zone)):
        raise WireError("member", f"zone of {node_id}")
    if type(state) is not str or state not in _STATES:
        raise WireError("member", f"state of {node_id}")
    if not is_protocol(protocol):
        raise WireError("member", f"protocol numbers of {node_id}")
    return Member(node_id, http, gossip, peer, epoch, float(weight), zone, state, protocol)  # type: ignore[arg-type]


def _is_address(address: Any) -> bool:
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
    """Tell whether this is a range of protocol numbers."""
    if type(protocol) is not tuple or len(protocol) != 2:
        return False
    low, high = protocol
    return type(low) is int and type(high) is int and 1 <= low <= high <= PROTOCOL_NUMBER_MAX
