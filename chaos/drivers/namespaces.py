"""A network of one's own on one machine: a namespace for each node, and a router that loses what it is told to.

Knows links, routes and iptables, and nothing of what runs inside. Needs root, iproute2, iptables and sysctl. All of it
is gone after `close`; should that never be called, the namespaces stay, and `ip netns` lists them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection

from chaos.drivers import DriverError, commands_spared
from zephyr.etcd.embedded import EmbeddedEtcd

SUBNETS = 256
NODES_MAX = 62
"""Of one network: each takes four addresses of a /24, and so does the way in."""
TOOLS = ("ip", "iptables", "sysctl")


def can_make_networks() -> bool:
    """Whether this process may, and has what it takes."""
    return os.geteuid() == 0 and all(map(shutil.which, TOOLS))


class Network:
    """A network namespace for each node, and a router between them, etcd and us, in one of its own.

    The router drops what is to be lost: where the sender dropped it, its `sendto` would fail, and it would know. Each
    network has one of the blocks 10.214.x.0/24; the host's end of it is where etcd listens besides.
    """

    def __init__(self, count: int) -> None:
        """`count`: of nodes, at most 62. One network a process."""
        assert 0 < count <= NODES_MAX, f"a network has at most {NODES_MAX} nodes"
        self._name = f"zephyr-{os.getpid()}"
        self._link = f"zephyr{os.getpid()}"
        self._router = f"{self._name}-r"
        self.namespaces = [f"{self._name}-{number + 1}" for number in range(count)]
        self._prefix = ""

    @property
    def here(self) -> str:
        """The address of our own end, where nodes reach etcd."""
        return f"{self._prefix}.1"

    def host(self, number: int) -> str:
        """Return a node's address; nodes are counted from 0."""
        return f"{self._prefix}.{4 * number + 6}"

    def make(self) -> None:
        """Make all of it. Raises DriverError; `close` then removes what there is."""
        run("ip", "netns", "add", self._router)
        self.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("ip", "link", "add", self._link, "type", "veth", "peer", "up0", "netns", self._router)
        run("ip", "link", "set", self._link, "up")
        self._prefix = self._claim_prefix()
        run("ip", "address", "add", f"{self.here}/30", "dev", self._link)
        self.inside("ip", "address", "add", f"{self._prefix}.2/30", "dev", "up0")
        self.inside("ip", "link", "set", "up0", "up")
        for number, node in enumerate(self.namespaces):
            gateway = f"{self._prefix}.{4 * number + 5}"
            run("ip", "netns", "add", node)
            run("ip", "link", "add", "eth0", "netns", node, "type", "veth", "peer", f"v{number}", "netns", self._router)
            self.inside("ip", "address", "add", f"{gateway}/30", "dev", f"v{number}")
            self.inside("ip", "link", "set", f"v{number}", "up")
            run("ip", "-n", node, "address", "add", f"{self.host(number)}/30", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", node, "link", "set", link, "up")
            run("ip", "-n", node, "route", "add", "default", "via", gateway)

    def _claim_prefix(self) -> str:
        """Take a block that nobody else has: the route to it is the claim, and goes with the link."""
        for number in range(SUBNETS):
            prefix = f"10.214.{(os.getpid() + number) % SUBNETS}"
            route = ["ip", "route", "add", f"{prefix}.0/24", "via", f"{prefix}.2", "dev", self._link, "onlink"]
            if _tried(*route).returncode == 0:
                return prefix
        raise DriverError(f"all {SUBNETS} blocks of addresses are taken")

    def inside(self, *command: str) -> None:
        """Run a command at the router."""
        run("ip", "netns", "exec", self._router, *command)

    def drop(self, *match: str) -> None:
        """Lose what iptables matches so, on the way."""
        self.inside("iptables", "-A", "FORWARD", *match, "-j", "DROP")

    def drop_udp(self, number: int | None = None) -> None:
        """Lose the datagrams from and to a node; of all nodes when none is named."""
        sides = ((),) if number is None else (("-s", self.host(number)), ("-d", self.host(number)))
        for side in sides:
            self.drop("-p", "udp", *side)

    def part(self, ones: Collection[int], others: Collection[int]) -> None:
        """Lose everything between these nodes and those."""
        self.part_one_way(ones, others)
        self.part_one_way(others, ones)

    def part_one_way(self, senders: Collection[int], receivers: Collection[int]) -> None:
        """Lose everything that these nodes send to those."""
        for sender in senders:
            for receiver in receivers:
                self.drop("-s", self.host(sender), "-d", self.host(receiver))

    def cut_from_here(self, number: int, port: int) -> None:
        """Lose everything between a node and a port of our own end."""
        self.drop("-p", "tcp", "-s", self.host(number), "--dport", str(port))
        self.drop("-p", "tcp", "-d", self.host(number), "--sport", str(port))

    def heal(self) -> None:
        """Lose nothing any more."""
        self.inside("iptables", "-F", "FORWARD")

    def close(self) -> None:
        """Remove the namespaces and the link; what is inside them goes with them."""
        for command in (
            ["ip", "link", "delete", self._link],
            *(["ip", "netns", "delete", namespace] for namespace in [*self.namespaces, self._router]),
        ):
            _tried(*command)  # It may not have come to be.


def run(*command: str) -> None:
    """Run a command to its end. Raises DriverError with what it said."""
    done = _tried(*command)
    if done.returncode != 0:
        raise DriverError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")


def _tried(*command: str) -> subprocess.CompletedProcess[str]:
    # In a session of its own: Ctrl-C is for us, who then undo what was done, by such commands.
    with commands_spared():
        return subprocess.run(command, check=False, capture_output=True, text=True, start_new_session=True)  # noqa: S603  # ours


class ReachableEtcd(EmbeddedEtcd):
    """An etcd that is reached from a network's namespaces, too."""

    def __init__(self, network: Network) -> None:
        """`network`: one that has been made."""
        super().__init__()
        self.port = int(self.endpoint.rpartition(":")[2])
        self.network_endpoint = f"{network.here}:{self.port}"
        self._arguments = ("--listen-client-urls", f"http://{self.endpoint},http://{self.network_endpoint}")
