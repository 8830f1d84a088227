"""Names into addresses, through aiodns: seeds of a cluster, and the rare member that announces a name.

Translates and decides nothing: whoever asks decides when to ask again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

import aiodns
import pycares

from zephyr.config import format_address, parse_address
from zephyr.events import SeedsResolved
from zephyr.model import Address

RESOLVE_TIMEOUT_S = 5.0
"""For one seed, all its names together."""
SEED_ADDRESSES_MAX = 256
"""Addresses of all seeds together; more than the largest ring."""


class Resolver:
    """One DNS channel, made at first use."""

    def __init__(self, nameservers: Iterable[str] | None = None) -> None:
        """`nameservers`: instead of the system's, for tests."""
        self._nameservers = list(nameservers) if nameservers is not None else None
        self._channel: aiodns.DNSResolver | None = None

    async def close(self) -> None:
        """End what is under way."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def hosts(self, name: str) -> list[str]:
        """Return the IP addresses of a name, A and AAAA, as the system orders them. Raises OSError with a sentence."""
        if is_ip(name):
            return [name]
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._dns().getaddrinfo(name, type=socket.SOCK_DGRAM)
        except TimeoutError:
            raise OSError(None, f"{name}: no answer within {RESOLVE_TIMEOUT_S:g} s") from None
        except (aiodns.error.DNSError, UnicodeError) as error:
            raise OSError(None, f"{name}: {error.args[-1]}") from None
        return list(dict.fromkeys(node.addr[0].decode() for node in found.nodes))

    async def resolve_seeds(self, seeds: Iterable[str]) -> SeedsResolved:
        """Return the gossip addresses of seeds: HOST:PORT, dns:NAME:PORT or srv:NAME."""
        seeds = list(seeds)
        found = await asyncio.gather(*(self._seed(seed) for seed in seeds), return_exceptions=True)
        addresses: dict[Address, None] = {}
        failures = []
        for seed, result in zip(seeds, found, strict=True):
            if isinstance(result, OSError):
                failures.append(f"{seed}: {result.args[-1]}")
            elif isinstance(result, BaseException):
                raise result
            else:
                addresses.update(dict.fromkeys(result))
        return SeedsResolved(tuple(addresses)[:SEED_ADDRESSES_MAX], tuple(failures))

    async def _seed(self, seed: str) -> list[Address]:
        scheme, _, name = seed.partition(":")
        if scheme == "srv":
            return await self._service(name)
        host, port = parse_address(name if scheme == "dns" else seed)
        return [format_address(address, port) for address in await self.hosts(host)]

    async def _service(self, name: str) -> list[Address]:
        """Follow SRV records, the preferred first (RFC 2782)."""
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._dns().query_dns(name, "SRV")
        except TimeoutError:
            raise OSError(None, f"{name}: no answer within {RESOLVE_TIMEOUT_S:g} s") from None
        except (aiodns.error.DNSError, UnicodeError) as error:
            raise OSError(None, f"{name}: {error.args[-1]}") from None
        records = [record.data for record in found.answer if isinstance(record.data, pycares.SRVRecordData)]
        records.sort(key=lambda record: (record.priority, -record.weight, record.target))
        addresses: list[Address] = []
        failure = OSError(None, f"{name}: no service there")
        for record in records[:SEED_ADDRESSES_MAX]:
            try:
                hosts = await self.hosts(record.target.rstrip("."))
            except OSError as error:
                failure = error
                continue
            addresses += [format_address(host, record.port) for host in hosts]
        if not addresses:
            raise failure
        return addresses

    def _dns(self) -> aiodns.DNSResolver:
        if self._channel is None:
            self._channel = aiodns.DNSResolver(nameservers=self._nameservers, timeout=1.0, tries=2)
        return self._channel


def is_ip(host: str) -> bool:
    """Tell whether a host is an address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
