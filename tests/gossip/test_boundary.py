"""Bytes from anywhere, from the sockets' side of the codec up to what the machine believes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.config import Settings
from zephyr.gossip.messages import Alive, Dead, Left, Nack, Suspect
from zephyr.gossip.swim import Swim
from zephyr.gossip.udp import GossipHost, GossipTransport
from zephyr.gossip.wire import MAGIC, PACKET_BYTES_MAX, SCHEMA_VERSION, Envelope, Keyring, encode_message
from zephyr.model import Instant, Member

EPOCH = 1_700_000_000_000
NOW = Instant(1.0, EPOCH)
KEYRINGS = (None, Keyring((bytes(32),)))
CHANGES = (
    Alive(Member("stranger", "s:1", "s:2", "s:3", EPOCH), 0), Suspect("a", EPOCH, 0, "b"), Dead("b", EPOCH, 0, "a"),
    Left("a", EPOCH, 0), Dead("me", EPOCH, 0, "a"),
)  # fmt: skip
"""What would change membership, were it believed."""


def member(node_id: str) -> Member:
    return Member(node_id, f"{node_id}:1", f"{node_id}:2", f"{node_id}:3", EPOCH)


class Shell:
    """One machine behind its transport, which has no sockets here: packets come as over a peer connection."""

    def __init__(self, keyring: Keyring | None) -> None:
        settings = Settings(id="me")
        self.swim = Swim(settings, member("me"), random.Random(1))
        self.swim.assume([member("a"), member("b")], NOW)
        host = GossipHost(dispatch=lambda event: self.swim.handle(event, NOW) and None, epoch=lambda: EPOCH)
        self.transport = GossipTransport(settings, Envelope("dev", "me", keyring, random.Random(1).randbytes), host)

    def believed(self) -> tuple[object, ...]:
        records = self.swim.table.members.values()
        others = [(item.member, item.incarnation, item.state, item.heard_s) for item in records]
        return (self.swim.member, self.swim.incarnation, self.swim.change_count, *others)

    def refuses(self, data: bytes, *causes: str) -> None:
        """Let it come; it must be counted, once, and change nothing."""
        before, drops = self.believed(), self.transport.counters.drops.copy()
        self.transport.receive_news(data)
        assert self.believed() == before
        counted = self.transport.counters.drops - drops
        assert counted.total() == 1
        assert not causes or set(counted) <= set(causes)


def sealed(keyring: Keyring | None, *messages: object, cluster: str = "dev", sender: str = "a") -> bytes:
    envelope = Envelope(cluster, sender, keyring, random.Random(2).randbytes)
    return envelope.seal([encode_message(message) for message in messages], EPOCH)


@pytest.mark.parametrize("keyring", KEYRINGS, ids=["plain", "encrypted"])
def test_what_is_authentic_changes_what_is_believed(keyring):
    shell = Shell(keyring)
    before = shell.believed()
    shell.transport.receive_news(sealed(keyring, *CHANGES))
    assert shell.believed() != before
    assert not shell.transport.counters.drops


@given(data=st.binary(max_size=PACKET_BYTES_MAX + 10), kind=st.integers(0, 7))
def test_arbitrary_bytes_change_nothing(data, kind):
    for keyring in KEYRINGS:
        shell = Shell(keyring)
        shell.refuses(data)
        shell.refuses(bytes((MAGIC, SCHEMA_VERSION, kind)) + data)


@given(place=st.floats(0, 1, exclude_max=True), inserted=st.binary(max_size=4), removed=st.integers(0, 4))
def test_a_packet_that_was_changed_on_its_way_changes_nothing(place, inserted, removed):
    for keyring in KEYRINGS:
        packet = sealed(keyring, *CHANGES)
        at = int(place * len(packet))
        changed = packet[:at] + inserted + packet[at + removed :]
        if changed != packet:
            Shell(keyring).refuses(changed)


@pytest.mark.parametrize("keyring", KEYRINGS, ids=["plain", "encrypted"])
def test_each_way_to_be_refused_has_its_own_count_and_changes_nothing(keyring):
    packet = sealed(keyring, *CHANGES)
    shell = Shell(keyring)
    shell.refuses(packet[:12], "truncated")
    shell.refuses(packet[:-1], "checksum", "authentication")
    shell.refuses(packet + bytes(PACKET_BYTES_MAX), "oversized")
    shell.refuses(sealed(keyring, *CHANGES, cluster="other"), "foreign-cluster", "authentication")
    shell.refuses(sealed(Keyring((bytes(31) + b"1",)), *CHANGES), "encrypted", "authentication")
    shell.transport.seal_news([encode_message(Nack(1))])  # From here on it knows its own packets.
    shell.refuses(sealed(keyring, *CHANGES, sender="me"), "own")
    shell.refuses(packet[:-1] + bytes((packet[-1] ^ 1,)), "checksum", "authentication")
    if keyring is not None:
        shell.refuses(sealed(None, *CHANGES), "plaintext")
        shell.transport.receive_news(packet)
        shell.refuses(packet, "replayed")


def test_of_a_packet_with_one_bad_message_nothing_is_applied():
    good = [encode_message(message) for message in CHANGES]
    for bad in (b"\x92\x04\xc0", b"\x91\x63", b"\xc1"):
        envelope = Envelope("dev", "a", None, bytes)
        Shell(None).refuses(envelope.seal([*good, bad, encode_message(Nack(1))], EPOCH), "malformed")
