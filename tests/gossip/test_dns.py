"""Names to addresses, asked of a real DNS server on loopback whose records the tests choose."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import aiodns
import pytest

from zephyr.gossip import dns
from zephyr.gossip.dns import SEED_ADDRESSES_MAX, SRV_TARGETS_MAX, Resolver, resolve_seeds

A, AAAA, SRV = 1, 28, 33
NXDOMAIN = 3
TTL_S = 600
"""What Docker's DNS says of the services of Compose."""


class NameServer(asyncio.DatagramProtocol):
    """Answers A, AAAA and SRV queries (RFC 1035, RFC 2782) by UDP."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], list[bytes]] = {}
        self.queries: list[tuple[str, int]] = []
        self.is_silent = False
        self.transport: asyncio.DatagramTransport

    def set(self, name: str, *literals: str) -> None:
        for kind, version in ((A, 4), (AAAA, 6)):
            addresses = [ipaddress.ip_address(literal) for literal in literals]
            self.records[name, kind] = [address.packed for address in addresses if address.version == version]

    def set_services(self, name: str, *services: tuple[int, int, int, str]) -> None:
        """Each service is (priority, weight, port, target)."""
        self.records[name, SRV] = [struct.pack(">HHH", *service[:3]) + encode_name(service[3]) for service in services]

    def make_resolver(self) -> aiodns.DNSResolver:
        host, port = self.transport.get_extra_info("sockname")
        return aiodns.DNSResolver(
            nameservers=[f"{host}:{port}"],
            loop=asyncio.get_running_loop(),
            timeout=0.2,
            tries=2,
            domains=["search.test"],
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, position = [], 12
        while length := data[position]:
            labels.append(data[position + 1 : position + 1 + length].decode())
            position += 1 + length
        question = data[12 : position + 5]
        name, kind = ".".join(labels).lower(), int.from_bytes(question[-4:-2], "big")
        self.queries.append((name, kind))
        if self.is_silent:
            return
        answers = self.records.get((name, kind), [])
        known = any(name == known_name for known_name, _kind in self.records)
        flags = 0x8180 | (0 if known else NXDOMAIN)
        body = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, TTL_S, len(answer)) + answer for answer in answers)
        self.transport.sendto(data[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 0, 0) + question + body, addr)


def encode_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()


async def test_a_literal_stands_for_itself_and_asks_nobody():
    async with name_server() as server:
        resolver = Resolver(server.make_resolver)
        resolved = await resolve_seeds(["192.0.2.1:7946", "[2001:db8::1]:7946", "dns:192.0.2.2:1"], resolver)
        assert resolved.addresses == ("192.0.2.1:7946", "[2001:db8::1]:7946", "192.0.2.2:1")
        assert resolved.failures == ()
        assert server.queries == []


async def test_a_host_gives_its_ipv4_and_ipv6_addresses():
    async with name_server() as server:
        server.set("one.test", "127.0.0.1", "::1")
        resolved = await resolve_seeds(["one.test:7946"], Resolver(server.make_resolver))
        assert sorted(resolved.addresses) == ["127.0.0.1:7946", "[::1]:7946"]
        assert resolved.failures == ()


async def test_a_host_of_the_hosts_file_needs_no_server():
    async with name_server() as server:
        resolved = await resolve_seeds(["localhost:7946"], Resolver(server.make_resolver))
        assert "127.0.0.1:7946" in resolved.addresses
        assert server.queries == []


async def test_a_dns_seed_gives_all_a_records_and_then_all_aaaa_records():
    async with name_server() as server:
        server.set("all.test", "192.0.2.2", "2001:db8::2", "192.0.2.1", "2001:db8::1")
        resolved = await resolve_seeds(["dns:all.test:7946"], Resolver(server.make_resolver))
        assert resolved.addresses[:2] in (
            ("192.0.2.1:7946", "192.0.2.2:7946"),
            ("192.0.2.2:7946", "192.0.2.1:7946"),
        )
        assert sorted(resolved.addresses[2:]) == ["[2001:db8::1]:7946", "[2001:db8::2]:7946"]


async def test_a_dns_seed_with_records_of_one_family_is_no_failure():
    async with name_server() as server:
        server.set("four.test", "192.0.2.4")
        server.set("six.test", "2001:db8::6")
        resolved = await resolve_seeds(["dns:four.test:1", "dns:six.test:2"], Resolver(server.make_resolver))
        assert resolved.addresses == ("192.0.2.4:1", "[2001:db8::6]:2")
        assert resolved.failures == ()


async def test_a_dns_seed_without_records_of_its_own_is_found_through_the_search_domain():
    async with name_server() as server:
        server.set("short.search.test", "192.0.2.7")
        resolved = await resolve_seeds(["dns:short:7946"], Resolver(server.make_resolver))
        assert resolved.addresses == ("192.0.2.7:7946",)


async def test_services_come_by_priority_then_by_weight_and_each_target_is_resolved():
    async with name_server() as server:
        server.set("a.test", "192.0.2.1")
        server.set("b.test", "192.0.2.2", "2001:db8::2")
        server.set("c.test", "192.0.2.3")
        server.set_services(
            "_gossip._udp.test", (2, 9, 1, "a.test"), (1, 5, 3, "c.test"), (1, 7, 2, "b.test"), (1, 1, 4, "gone.test")
        )
        resolved = await resolve_seeds(["srv:_gossip._udp.test"], Resolver(server.make_resolver))
        assert sorted(resolved.addresses[:2]) == ["192.0.2.2:2", "[2001:db8::2]:2"]
        assert resolved.addresses[2:] == ("192.0.2.3:3", "192.0.2.1:1")
        assert resolved.failures == ()


async def test_services_without_an_address_are_one_failure():
    async with name_server() as server:
        server.set_services("_gone._udp.test", (1, 1, 1, "gone.test"), (2, 1, 1, "away.test"))
        server.set_services("_none._udp.test", (1, 1, 1, "."))
        seeds = ["srv:_gone._udp.test", "srv:_none._udp.test", "srv:_never._udp.test"]
        resolved = await resolve_seeds(seeds, Resolver(server.make_resolver))
        assert resolved.addresses == ()
        assert resolved.failures == (
            "seed srv:_gone._udp.test: no address of away.test, domain name not found",
            "seed srv:_none._udp.test: _none._udp.test names no service",
            "seed srv:_never._udp.test: no address of _never._udp.test, domain name not found",
        )


async def test_more_targets_than_the_bound_are_not_looked_up():
    async with name_server() as server:
        count = SRV_TARGETS_MAX + 10
        server.set_services("_many._udp.test", *((number, 1, number, "192-0-2-1.test") for number in range(1, count)))
        server.set("192-0-2-1.test", "192.0.2.1")
        resolved = await resolve_seeds(["srv:_many._udp.test"], Resolver(server.make_resolver))
        assert resolved.addresses == tuple(f"192.0.2.1:{port}" for port in range(1, SRV_TARGETS_MAX + 1))


async def test_results_keep_the_order_of_the_seeds_and_have_no_repetitions():
    async with name_server() as server:
        server.set("one.test", "192.0.2.1")
        server.set("two.test", "192.0.2.2", "192.0.2.1")
        seeds = ["192.0.2.9:1", "dns:one.test:1", "dns:gone.test:1", "dns:two.test:1", "192.0.2.9:1"]
        resolved = await resolve_seeds(seeds, Resolver(server.make_resolver))
        assert resolved.addresses == ("192.0.2.9:1", "192.0.2.1:1", "192.0.2.2:1")
        assert resolved.failures == ("seed dns:gone.test:1: no address of gone.test, domain name not found",)


async def test_addresses_are_bounded():
    async with name_server() as server:
        server.set("large.test", *(f"192.0.{2 + number // 200}.{number % 200}" for number in range(300)))
        seeds = ["192.0.2.255:7946", "dns:large.test:7946"]
        resolved = await resolve_seeds(seeds, Resolver(server.make_resolver))
        assert len(resolved.addresses) == SEED_ADDRESSES_MAX
        assert resolved.addresses[0] == "192.0.2.255:7946"


async def test_a_seed_that_is_none_is_a_failure():
    resolved = await resolve_seeds(["nonsense", "dns:name", "ä..b:1", f"{'a' * 70}.test:1"], Resolver())
    assert resolved.addresses == ()
    assert resolved.failures == (
        "seed nonsense: it is no HOST:PORT",
        "seed dns:name: it is no HOST:PORT",
        "seed ä..b:1: no address of ä..b, misformatted domain name",
        f"seed {'a' * 70}.test:1: no address of {'a' * 70}.test, misformatted domain name",
    )


@pytest.mark.parametrize("seed", ["late.test:7946", "dns:late.test:7946", "srv:_late._udp.test"])
async def test_a_name_that_does_not_resolve_yet_is_found_once_it_does(seed):
    async with name_server() as server:
        resolver = Resolver(server.make_resolver)
        resolved = await resolve_seeds([seed], resolver)
        assert resolved.addresses == ()
        assert len(resolved.failures) == 1
        server.set("late.test", "192.0.2.1")
        server.set_services("_late._udp.test", (1, 1, 7946, "late.test"))
        resolved = await resolve_seeds([seed], resolver)
        assert resolved.addresses == ("192.0.2.1:7946",)
        assert resolved.failures == ()


@pytest.mark.parametrize("seed", ["moved.test:7946", "dns:moved.test:7946"])
async def test_an_answer_is_not_remembered_for_as_long_as_its_server_says(seed):
    async with name_server() as server:
        resolver = Resolver(server.make_resolver)
        server.set("moved.test", "192.0.2.1")
        assert (await resolve_seeds([seed], resolver)).addresses == ("192.0.2.1:7946",)
        server.set("moved.test", "192.0.2.2")
        assert (await resolve_seeds([seed], resolver)).addresses == ("192.0.2.2:7946",)


async def test_a_silent_server_is_waited_for_no_longer_than_the_bound(monkeypatch):
    monkeypatch.setattr(dns, "LOOKUP_TIMEOUT_S", 0.05)
    async with name_server() as server:
        server.is_silent = True
        resolver = Resolver(server.make_resolver)
        resolved = await resolve_seeds(["slow.test:7946", "srv:_slow._udp.test", "192.0.2.1:7946"], resolver)
        assert resolved.addresses == ("192.0.2.1:7946",)
        assert resolved.failures == (
            "seed slow.test:7946: no answer about slow.test within 0.05 s",
            "seed srv:_slow._udp.test: no answer about _slow._udp.test within 0.05 s",
        )
        assert server.queries


async def test_no_resolver_is_kept_between_lookups():
    async with name_server() as server:
        server.set("one.test", "192.0.2.1")
        resolver = Resolver(server.make_resolver)
        await asyncio.gather(*(resolver.addresses("one.test") for _ in range(5)))
        assert resolver._resolver is None
        with pytest.raises(OSError, match=r"no address of gone\.test"):
            await resolver.addresses("gone.test")
        assert resolver._resolver is None


async def test_closing_ends_the_lookups_under_way():
    async with name_server() as server:
        server.is_silent = True
        resolver = Resolver(server.make_resolver)
        lookup = asyncio.create_task(resolver.addresses("slow.test"))
        async with asyncio.timeout(10):
            while not server.queries:  # noqa: ASYNC110  # no callback announces it
                await asyncio.sleep(0.001)
            await resolver.close()
            with pytest.raises(OSError, match=r"no address of slow\.test"):
                await lookup
