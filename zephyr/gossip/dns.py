"""Names to IP addresses: what a seed stands for, and where a peer that goes by a name is found now.

Decides which records are asked for, in what order their addresses come, and when it has waited long enough.
Never decides when to ask again or whom to contact.

Invariants:
- No lookup outlasts `LOOKUP_TIMEOUT_S`, none blocks the event loop, and none runs on once `close` is done.
- No answer is older than its lookup: nothing is remembered here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import aiodns
import pycares

from zephyr.config import format_address, parse_address
from zephyr.events import SeedsResolved
from zephyr.model import Address

LOOKUP_TIMEOUT_S = 5.0
"""For all queries of one seed or name: an outage of DNS is waited for no longer before the next seed counts."""
QUERY_TIMEOUT_S = 1.0
"""Of a query's first try, with one server; c-ares waits longer for the next ones."""
QUERY_TRIES = 3
SEED_ADDRESSES_MAX = 256
"""Addresses of all seeds together: more than the largest ring has members."""
SRV_TARGETS_MAX = 64
"""Targets of one SRV name that are looked up; those of the best priority come first."""


def make_resolver() -> aiodns.DNSResolver:
    """Make a resolver with the system's name servers, for the running loop."""
    return aiodns.DNSResolver(loop=asyncio.get_running_loop(), timeout=QUERY_TIMEOUT_S, tries=QUERY_TRIES)


class Resolver:
    """Looks names up, each time anew.

    c-ares, which aiodns wraps, remembers answers for as long as their time to live says: ten minutes for Docker's,
    longer than a container keeps its address. So its resolver lives no longer than the lookups under way.
    """

    def __init__(self, make: Callable[[], aiodns.DNSResolver] = make_resolver) -> None:
        """Open nothing yet. `make` gives a new resolver, for the running loop."""
        self._make = make
        self._resolver: aiodns.DNSResolver | None = None
        self._lookups = 0

    async def addresses(self, host: str) -> list[str]:
        """Return the IP addresses of a host, as every program on this machine sees it: /etc/hosts counts.

        At least one, IPv4 and IPv6, the best to reach first (RFC 6724). A literal is returned as it is. Raises OSError
        when there is none, or no answer in time.
        """
        if is_literal(host):
            return [host]
        async with self._lookup(host) as resolver:
            answer = await resolver.getaddrinfo(host, type=socket.SOCK_STREAM)
        found = _distinct(node.addr[0].decode() for node in answer.nodes)
        if not found:
            raise OSError(None, f"no address of {host}")
        return found

    async def records(self, name: str) -> list[str]:
        """Return the addresses of all A, then of all AAAA records of a name. Raises OSError as `addresses` does.

        Only a name that has none in DNS is looked up as a host. A container's /etc/hosts may know the name of its
        service as well, but as itself alone.
        """
        if is_literal(name):
            return [name]
        async with self._lookup(name) as resolver:
            queries = (resolver.query_dns(name, kind) for kind in ("A", "AAAA"))
            answers = await asyncio.gather(*queries, return_exceptions=True)
        found = _distinct(
            record.data.addr
            for answer in answers
            if isinstance(answer, pycares.DNSResult)
            for record in answer.answer
            if isinstance(record.data, pycares.ARecordData | pycares.AAAARecordData)
        )
        return found or await self.addresses(name)

    async def services(self, name: str) -> list[tuple[str, int]]:
        """Return (target, port) of each SRV record of a full name: lowest priority, then highest weight first.

        RFC 2782 has clients draw among equals at random, to spread their load; a joining node wants one that answers.
        Raises OSError as `addresses` does.
        """
        async with self._lookup(name) as resolver:
            result = await resolver.query_dns(name, "SRV")
        services = [record.data for record in result.answer if isinstance(record.data, pycares.SRVRecordData)]
        services.sort(key=lambda data: (data.priority, -data.weight, data.target, data.port))
        # A lone dot as the target says that there is no such service (RFC 2782).
        found = [(data.target.rstrip("."), data.port) for data in services if data.target.rstrip(".")]
        if not found:
            raise OSError(None, f"{name} names no service")
        return found[:SRV_TARGETS_MAX]

    async def close(self) -> None:
        """End what is under way; its callers are told that there is no answer."""
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None

    @asynccontextmanager
    async def _lookup(self, name: str) -> AsyncIterator[aiodns.DNSResolver]:
        """Lend a resolver for one lookup, and turn what may go wrong into OSError."""
        resolver = self._resolver
        if resolver is None:
            resolver = self._resolver = self._make()
        self._lookups += 1
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                yield resolver
        except TimeoutError:
            raise OSError(None, f"no answer about {name} within {LOOKUP_TIMEOUT_S:g} s") from None
        except (aiodns.error.DNSError, UnicodeError) as error:
            raise OSError(None, f"no address of {name}, {str(error.args[-1]).lower()}") from None
        finally:
            self._lookups -= 1
            if not self._lookups:
                await self.close()


async def resolve_seeds(seeds: Sequence[str], resolver: Resolver) -> SeedsResolved:
    """Turn seeds into gossip addresses, all at once, within two lookups' time.

    `HOST:PORT` gives the addresses of a host, `dns:NAME:PORT` those of all A and AAAA records, `srv:NAME` those of the
    targets of all SRV records. In the seeds' order, without repetitions, `SEED_ADDRESSES_MAX` at most.
    """
    found = await asyncio.gather(*(_resolve(seed, resolver) for seed in seeds))
    addresses = _distinct(address for part, _failure in found for address in part)
    failures = tuple(failure for _part, failure in found if failure)
    return SeedsResolved(tuple(addresses[:SEED_ADDRESSES_MAX]), failures)


def is_literal(host: str) -> bool:
    """Tell an IP address from a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _resolve(seed: str, resolver: Resolver) -> tuple[list[Address], str]:
    """Return a seed's addresses, and one sentence when it has none."""
    scheme, _, name = seed.partition(":")
    try:
        if scheme == "srv":
            return await _resolve_services(name, resolver), ""
        host, port = parse_address(name if scheme == "dns" else seed)
        hosts = await (resolver.records(host) if scheme == "dns" else resolver.addresses(host))
    except ValueError:
        return [], f"seed {seed}: it is no HOST:PORT"
    except OSError as error:
        return [], f"seed {seed}: {error.args[-1]}"
    return [format_address(host, port) for host in hosts], ""


async def _resolve_services(name: str, resolver: Resolver) -> list[Address]:
    services = await resolver.services(name)
    lookups = (resolver.addresses(target) for target, _port in services)
    found = await asyncio.gather(*lookups, return_exceptions=True)
    addresses: list[Address] = []
    refusal = OSError(None, f"no address of {name}")
    for (_target, port), hosts in zip(services, found, strict=True):
        if isinstance(hosts, OSError):
            refusal = hosts
        elif isinstance(hosts, BaseException):
            raise hosts
        else:
            addresses.extend(format_address(host, port) for host in hosts)
    if not addresses:
        raise refusal
    return addresses


def _distinct(texts: Iterable[str]) -> list[str]:
    """Drop repetitions, keep the order."""
    return list(dict.fromkeys(texts))
