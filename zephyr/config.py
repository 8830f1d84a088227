"""Every setting: its default, unit, bounds and reason, and how its text is read.

Pure: reading flags, the environment and files is the command line's business (`zephyr.cli`), which
hands raw texts to `parse_setting`. Durations are float seconds inside the program and `10s`, `500ms`,
`2m`, `1h`, `7d` outside; sizes are bytes inside and `256MiB` outside.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from zephyr.errors import ConfigError

NODE_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLUSTER_NAMES_RESERVED = frozenset({"members", "settings", "evictions"})
"""Cluster names that would collide with etcd keys of the cluster `dev`."""
CLUSTER_DEFAULT = "dev"
KEY_BYTES_MAX = 1024
"""Longest key, after percent-decoding (http.md)."""
SLOTS = 16384
"""Redis Cluster's number of hash slots."""
HASH_VERSION = 1
"""Names the placement: CRC16 slots, mmh3 64-bit tokens, midpoint walk. Any change to it is a new number."""
SEEDS_MAX = 64
"""Seeds of `--join`: one that answers is enough."""
MEMBERS_MAX = 200
"""Largest ring; a larger one is refused, since a ring's table is built from members x virtual nodes."""

Kind = Literal[
    "text", "id", "zone", "cluster", "host", "address", "addresses", "seeds",
    "duration", "bytes", "count", "number", "quorum",
]  # fmt: skip

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|d)?")
_DURATION_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)?", re.IGNORECASE)
_BYTES_UNIT = {
    None: 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 1000, "mb": 1000**2, "gb": 1000**3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spec:
    """How one setting is read, bounded and explained."""

    kind: Kind
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False


def _setting(
    default: Any,
    kind: Kind,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:  # a dataclass field, typed by its annotation
    return field(default=default, metadata={"spec": Spec(kind, help_text, low, high, choices, secret)})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a node, parsed and within bounds. Field names are the flags' with underscores."""

    id: str = _setting("", "id", "Name of this node, unique in the cluster. Default: the host name.")
    cluster: str = _setting(CLUSTER_DEFAULT, "cluster", "Name of the cluster; nodes of another one are refused.")
    http: str = _setting("127.0.0.1:8080", "address", "Where clients are served.")
    gossip: str = _setting("127.0.0.1:7946", "address", "Where gossip is served, by UDP and TCP.")
    peer: str = _setting("127.0.0.1:7846", "address", "Where peers are served.")
    advertise: str = _setting(
        "", "host", "Host announced to the others. Default: the bound host, or the default route's when bound to all."
    )
    join: tuple[str, ...] = _setting(
        (), "seeds", "Gossip addresses of other nodes: HOST:PORT, dns:NAME:PORT or srv:NAME, with commas between."
    )
    gossip_profile: str = _setting(
        "lan", "text", "Pace of gossip: lan, or local for one machine.", choices=("lan", "local")
    )
    gossip_keyring: str = _setting(
        "", "text", "File of base64 keys of 32 bytes, one a line: the first encrypts gossip, all decrypt it."
    )
    exit_suspicion: float = _setting(
        0.25, "duration", "Time to refute once two members saw a process end.", low=0.05, high=60
    )
    gossip_evict_after: float = _setting(
        30.0, "duration", "Without etcd, a member that is dead for this long leaves the ring.", low=0, high=3600
    )
    dead_memory: float = _setting(
        86400.0, "duration", "How long a member that died or left is remembered.", low=1, high=30 * 86400
    )
    etcd: tuple[str, ...] = _setting(
        ("127.0.0.1:2379",), "addresses", "etcd endpoints HOST:PORT,..., or none to live by gossip alone."
    )
    etcd_ca: str = _setting("", "text", "File of PEM certificates that sign etcd's; turns TLS on.")
    etcd_cert: str = _setting("", "text", "File of this node's PEM client certificate for etcd.")
    etcd_key: str = _setting("", "text", "File of the PEM key of --etcd-cert.")
    etcd_user: str = _setting("", "text", "etcd user name, with --etcd-password.")
    etcd_password: str = _setting("", "text", "etcd password; better in the environment than in a flag.", secret=True)
    etcd_timeout: float = _setting(
        2.0, "duration", "Deadline of each etcd call: two of them fit between two keep-alives.", low=0.1, high=60
    )
    replicas: int = _setting(3, "count", "Copies of each key (N). The same on every node.", low=1, high=7)
    read_quorum: str = _setting("quorum", "quorum", "Replicas that must answer a read: 1, quorum, all or a number.")
    write_quorum: str = _setting(
        "quorum", "quorum", "Replicas that must acknowledge a write: 1, quorum, all or a number."
    )
    request_timeout: float = _setting(
        2.0, "duration", "Deadline of a client's request unless it names its own.", low=0.01, high=60
    )
    memory: int = _setting(256 << 20, "bytes", "Bound of keys, values and their overhead.", low=1 << 20, high=1 << 40)
    eviction: str = _setting("sieve", "text", "Which entry goes when the bound is reached.", choices=("sieve", "lru"))
    tombstone_memory: int = _setting(
        16 << 20, "bytes", "Bound of the marks that deletions leave.", low=1 << 16, high=1 << 36
    )
    tombstone_grace: float = _setting(
        3600.0, "duration", "How long a deletion's mark is kept at least.", low=1, high=30 * 86400
    )
    ghosts_max: int = _setting(
        100_000, "count", "Marks kept of expired and evicted entries, so that no peer brings them back.",
        low=100, high=10_000_000,
    )  # fmt: skip
    hint_memory: int = _setting(
        64 << 20, "bytes", "Bound of the records kept for owners that missed a write.", low=0, high=1 << 36
    )
    hint_memory_target: int = _setting(16 << 20, "bytes", "Bound of those kept for one of them.", low=0, high=1 << 36)
    hint_window: float = _setting(
        1800.0, "duration", "How long they are kept; at most --tombstone-grace.", low=1, high=30 * 86400
    )
    virtual_nodes: int = _setting(
        1024, "count", "Tokens of a member of weight 1. The same everywhere.", low=16, high=4096
    )
    weight: float = _setting(1.0, "number", "This node's share of keys, relative to the others'.", low=0.1, high=10)
    zone: str = _setting("", "zone", "Failure domain; replicas are spread over zones.")
    lease_ttl: float = _setting(
        10.0, "duration", "A node silent for this long leaves the ring. Whole seconds, as etcd counts.", low=2, high=300
    )
    evict_after: float = _setting(
        5.0, "duration", "A member that is dead for this long is proposed for eviction from etcd.", low=0, high=3600
    )
    unknown_timeout: float = _setting(
        30.0, "duration", "A registered member that gossip has not met for this long counts as dead.", low=1, high=3600
    )
    expiry_grace: float = _setting(
        3.0,
        "duration",
        "How long a member whose lease lapsed stays in the ring while gossip hears it.",
        low=0,
        high=300,
    )
    hold_max: float = _setting(
        60.0, "duration", "Longest time the last ring is held after most registrations vanished.", low=0, high=3600
    )
    takeover_max: float = _setting(
        10.0,
        "duration",
        "After an outage of etcd, its word waits so long at most for all members that are heard to register.",
        low=0,
        high=3600,
    )
    bootstrap_after: float = _setting(
        15.0,
        "duration",
        "Started without etcd, and without a peer that knows its last word, a node waits so long for either.",
        low=0,
        high=3600,
    )
    bootstrap_expect: int = _setting(
        3, "count", "Members heard, this one included, that make a provisional ring then; 1 without --join.",
        low=1, high=200,
    )  # fmt: skip
    confirm_max: float = _setting(
        2.0,
        "duration",
        "Without a living lease, how long the sight of a majority with the same ring confirms this node's view.",
        low=0.1,
        high=60,
    )
    value_max: int = _setting(1 << 20, "bytes", "Largest value; a larger one is answered 413.", low=1, high=64 << 20)
    connections_max: int = _setting(
        10_000, "count", "Client connections; the one idle longest is closed for a new one.", low=1, high=1_000_000
    )
    drain_timeout: float = _setting(
        10.0, "duration", "Time to leave in on SIGTERM, before the node stops all the same.", low=0.1, high=600
    )
    log_format: str = _setting("console", "text", "Form of the log on stderr.", choices=("console", "json"))
    log_level: str = _setting("info", "text", "Least level logged.", choices=("debug", "info", "warning", "error"))

    @property
    def lease_ttl_s(self) -> int:
        """The lease's time to live in whole seconds, as etcd grants it."""
        return round(self.lease_ttl)

    def quorum(self, text: str, replicas: int) -> int:
        """Turn `1`, `quorum`, `all` or a number into a count out of `replicas`; may exceed it."""
        if text == "quorum":
            return replicas // 2 + 1
        return replicas if text == "all" else int(text)


@dataclass(frozen=True, slots=True)
class GossipPace:
    """How fast gossip goes about its business; one of `GOSSIP_PACES`."""

    probe_interval_s: float
    """One member is probed in each; times the local health plus one."""
    probe_timeout_s: float
    """Wait for a direct answer; then others are asked to try."""
    gossip_interval_s: float
    """While there is news, it is sent this often, beside what rides on probes."""
    sync_interval_s: float
    """Everything known is compared with a random member this often (push-pull)."""
    suspicion_multiplier: int
    """Shortest time to refute, in probe intervals, for up to ten members; grows with their logarithm."""


GOSSIP_PACES = {
    "lan": GossipPace(1.0, 0.5, 0.2, 30.0, 4),
    "local": GossipPace(1.0, 0.2, 0.1, 15.0, 3),
}
"""By the name of `--gossip-profile`. The figures are the ones that memberlist and its users have tuned for a decade."""


SPECS: dict[str, Spec] = {item.name: item.metadata["spec"] for item in fields(Settings)}
DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Settings)}


def flag(name: str) -> str:
    """Return the flag of a setting: `lease_ttl` -> `--lease-ttl`."""
    return "--" + name.replace("_", "-")


def environment_variable(name: str) -> str:
    """Return the environment variable of a setting: `lease_ttl` -> `ZEPHYR_LEASE_TTL`."""
    return "ZEPHYR_" + name.upper()


def parse_duration_s(text: str) -> float:
    """Read `30`, `1.5s`, `500ms`, `5m`, `2h`, `7d` as seconds. Raise ValueError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _DURATION_UNIT_S[match[2]]


def parse_address(text: str) -> tuple[str, int]:
    """Split `host:port` (IPv6 in brackets); the port is 0 to 65535. Raise ValueError for anything else."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(text)
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(text)
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Join a host and a port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_setting(name: str, text: str) -> Any:
    """Read one setting from its text.

    Raises ConfigError, with one line that names the flag, the text and what was expected.
    """
    spec = SPECS[name]
    try:
        value = _READ[spec.kind](text.strip())
    except (ValueError, OverflowError):
        raise ConfigError(f"{flag(name)}: {text!r} is not {_EXPECTED[spec.kind]}") from None
    if spec.choices and value not in spec.choices:
        raise ConfigError(f"{flag(name)}: {text!r} is none of {', '.join(spec.choices)}")
    if (spec.low is not None and value < spec.low) or (spec.high is not None and value > spec.high):
        low, high = (format_value(spec, bound) for bound in (spec.low, spec.high))
        raise ConfigError(f"{flag(name)}: {text} is not between {low} and {high}")
    return value


_EXPECTED: dict[str, str] = {
    "text": "a text",
    "id": "1 to 64 of the characters A-Z a-z 0-9 . _ -",
    "zone": "up to 64 of the characters A-Z a-z 0-9 . _ -",
    "cluster": f"1 to 64 of the characters A-Z a-z 0-9 . _ - and none of {', '.join(sorted(CLUSTER_NAMES_RESERVED))}",
    "host": "an IP address or a host name, without a port",
    "address": "HOST:PORT",
    "addresses": "HOST:PORT,... or none",
    "seeds": "HOST:PORT, dns:NAME:PORT or srv:NAME, with commas between, or none",
    "duration": "a duration such as 500ms, 10s, 2m, 1h or 7d",
    "bytes": "a size such as 64KiB, 256MiB or 2GiB",
    "count": "a whole number",
    "number": "a number",
    "quorum": "1, quorum, all or a whole number above 0",
}


def _parse_address_text(text: str) -> str:
    parse_address(text)
    return text


def _parse_host(text: str) -> str:
    if text and not _HOST_NAME.fullmatch(text):
        ipaddress.ip_address(text)
    return text


def _parse_bytes(text: str) -> int:
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _BYTES_UNIT[match[2] and match[2].lower()])


def _parse_number(text: str) -> float:
    number = float(text)
    if number != number or number in (float("inf"), float("-inf")):  # noqa: PLR0124  # NaN differs from itself
        raise ValueError(text)
    return number


def _parse_addresses(text: str) -> tuple[str, ...]:
    if text in ("", "none"):
        return ()
    addresses = tuple(part.strip() for part in text.split(","))
    for address in addresses:
        parse_address(address)
    return addresses


def _parse_seeds(text: str) -> tuple[str, ...]:
    if text in ("", "none"):
        return ()
    seeds = tuple(part.strip() for part in text.split(","))
    if len(seeds) > SEEDS_MAX:
        raise ValueError(text)
    for seed in seeds:
        scheme, separator, name = seed.partition(":")
        if separator and scheme == "srv":
            if not name or ":" in name:
                raise ValueError(text)
        else:
            parse_address(name if separator and scheme == "dns" else seed)
    return seeds


def _parse_quorum(text: str) -> str:
    if text not in ("quorum", "all") and int(text) < 1:
        raise ValueError(text)
    return text


def _parse_name(text: str) -> str:
    if not NODE_ID_PATTERN.fullmatch(text):
        raise ValueError(text)
    return text


def _parse_zone(text: str) -> str:
    return _parse_name(text) if text else text


def _parse_cluster(text: str) -> str:
    if text in CLUSTER_NAMES_RESERVED:
        raise ValueError(text)
    return _parse_name(text)


_READ: dict[Kind, Callable[[str], Any]] = {
    "text": str,
    "id": _parse_name,
    "zone": _parse_zone,
    "cluster": _parse_cluster,
    "host": _parse_host,
    "address": _parse_address_text,
    "addresses": _parse_addresses,
    "seeds": _parse_seeds,
    "duration": parse_duration_s,
    "bytes": _parse_bytes,
    "count": int,
    "number": _parse_number,
    "quorum": _parse_quorum,
}
"""How the text of each kind is read. Each raises ValueError, or OverflowError, for what is none."""


def validated(settings: Settings) -> Settings:
    """Check what no single setting can tell. Raises ConfigError with one line."""
    for name in ("read_quorum", "write_quorum"):
        wanted = getattr(settings, name)
        if settings.quorum(wanted, settings.replicas) > settings.replicas:
            raise ConfigError(f"{flag(name)}: {wanted} is more than --replicas {settings.replicas}")
    if settings.hint_window > settings.tombstone_grace:
        raise ConfigError("--hint-window: longer than --tombstone-grace, so that deleted values could come back")
    if not settings.id:
        raise ConfigError("--id: a node needs a name, and the host has none")
    if bool(settings.etcd_cert) != bool(settings.etcd_key):
        raise ConfigError("--etcd-cert and --etcd-key go together")
    if bool(settings.etcd_user) != bool(settings.etcd_password):
        raise ConfigError("--etcd-user and --etcd-password go together")
    if settings.value_max + (64 << 10) > settings.memory:
        raise ConfigError(f"--value-max: {settings.value_max} bytes do not fit into --memory {settings.memory}")
    return settings


def format_value(spec: Spec, value: Any) -> str:
    """Write a setting's value as its text, so that `parse_setting` reads it back."""
    if spec.secret and value:
        return "********"
    match spec.kind:
        case "duration":
            return _format_scaled(value, (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)), ("ms", 0.001))
        case "bytes":
            return _format_scaled(value, (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)), ("", 1))
        case "addresses" | "seeds":
            return ",".join(value) or "none"
        case "number":
            return f"{value:g}"
        case _:
            return str(value)


def _format_scaled(value: float, units: tuple[tuple[str, int], ...], smallest: tuple[str, float]) -> str:
    for unit, scale in units:
        if value >= scale and value % scale == 0:
            return f"{value / scale:.0f}{unit}"
    return f"{value / smallest[1]:.0f}{smallest[0]}"
