"""Clusters of real processes that detect failures: ours, kinship's and serf's, behind one small interface.

A system says what to start and what a line of its output means; everything else is the same for all: a
thread for each process stamps each line with the monotonic clock as it arrives. A cluster runs on loopback, or
with each node in a network namespace of its own where silence can be made: packets dropped on the way, with no
reset and no error, as a cut cable does it.

Only what was started here is ended here: processes by their handle, namespaces by the names given here.
"""

from __future__ import annotations

import configparser
import contextlib
import functools
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

from bench.rows import NotMeasurableError

State: TypeAlias = Literal["alive", "suspect", "dead", "left"]

CONVERGE_MAX_S = 30.0
"""Longest wait until all know all; serf retries a join once in a second, and ten processes start on two cores."""
INSTALL_MAX_S = 300.0
COMMAND_MAX_S = 20.0
LOG_LINES_MAX = 2000
"""Lines kept of a process, to explain why it did not start."""
PORTS = range(20_000, 32_000)
"""Below those that the kernel hands out to connections."""
PORTS_TRIES = 1000
LOOK_S = 0.005
"""How often a wait looks. Stamps are taken when a line arrives, so this costs no precision."""
VIEWS_PERIOD_S = 0.02
VIEWS_TIMEOUT_S = 1.0
OUR_CLUSTER = f"bench-{os.getpid()}"
"""Its name: others on this machine have theirs."""
ROOT = Path(__file__).resolve().parent.parent
BASELINES = ROOT / ".venv-bench"
"""Where the baselines that are Python packages are installed: their dependencies are none of ours."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node runs."""

    name: str
    host: str
    gossip_port: int
    peer_port: int
    control_port: int
    namespace: str = ""
    """Empty: where the benchmark itself runs."""

    @property
    def gossip(self) -> str:
        """Where others reach its gossip."""
        return f"{self.host}:{self.gossip_port}"


@dataclass(frozen=True, slots=True)
class Change:
    """What a node began to believe of another, and when that was heard."""

    at_s: float
    observer: str
    subject: str
    state: State
    source: str = "output"


class System(ABC):
    """One failure detector with one of its profiles."""

    name: str

    @abstractmethod
    def prepare(self) -> None:
        """Find the program. Raises NotMeasurableError, with the reason, where it is missing."""

    @abstractmethod
    def command(self, place: Place, seeds: list[Place]) -> list[str]:
        """Return what starts a node."""

    @abstractmethod
    def read(self, line: str) -> tuple[State, str] | None:
        """Return what a line of its output says of which member, if it says anything."""


class Kinship(System):
    """kinship, a Rust core with Python bindings, from PyPI."""

    def __init__(self, preset: str) -> None:
        """`preset`: local or lan."""
        self.preset = preset
        self.name = f"kinship-{preset}"

    def prepare(self) -> None:
        """Install it where it is missing."""
        _install_baselines()

    def command(self, place: Place, seeds: list[Place]) -> list[str]:
        """Return what starts a node."""
        script = Path(__file__).with_name("kinship_node.py")
        joined = ",".join(seed.gossip for seed in seeds)
        return [str(BASELINES / "bin" / "python"), str(script), self.preset, place.name, place.gossip, joined]

    def read(self, line: str) -> tuple[State, str] | None:
        """Read a line of kinship_node.py."""
        state, _, name = line.partition(" ")
        return (state, name) if state in ("alive", "suspect", "dead", "left") else None  # type: ignore[return-value]


@functools.cache
def _install_baselines() -> None:
    """Install what setup.cfg names under the extra `bench`. A failure is told once for each row, and tried once."""
    python = BASELINES / "bin" / "python"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = [line for line in setup["options.extras_require"]["bench"].split("\n") if line.strip()]
    try:
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(BASELINES)], timeout_s=INSTALL_MAX_S)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *wanted], timeout_s=INSTALL_MAX_S)
    except NotMeasurableError as error:
        raise NotMeasurableError(f"{' '.join(wanted)} cannot be installed in {BASELINES.name}: {error}") from None


class Serf(System):
    """serf on memberlist, from Debian."""

    _MEANING = re.compile(r"serf: EventMember(Join|Failed|Leave): (\S+)")
    _STATES: dict[str, State] = {"Join": "alive", "Failed": "dead", "Leave": "left"}  # noqa: RUF012  # never changed

    def __init__(self, profile: str) -> None:
        """`profile`: local or lan."""
        self.profile = profile
        self.name = f"serf-{profile}"

    def prepare(self) -> None:
        """Find it."""
        if shutil.which("serf") is None:
            raise NotMeasurableError("serf is missing: apt-get install serf")

    def command(self, place: Place, seeds: list[Place]) -> list[str]:
        """Return what starts an agent."""
        command = ["serf", "agent", f"-node={place.name}", f"-bind={place.gossip}", f"-profile={self.profile}"]
        command += [f"-rpc-addr=127.0.0.1:{place.control_port}", "-retry-interval=1s", "-log-level=info"]
        return command + [f"-retry-join={seed.gossip}" for seed in seeds if seed != place]

    def read(self, line: str) -> tuple[State, str] | None:
        """Read its log. This line comes at once; the event that handlers get comes up to a second later."""
        found = self._MEANING.search(line)
        # Suspicions are in its log as well, but not their end.
        return None if found is None else (self._STATES[found[1]], found[2])


class Zephyr(System):
    """ZephyrCache, as the only thing here with more to do than to gossip: HTTP, peers and a ring."""

    _STATES: dict[str, State] = {  # noqa: RUF012  # never changed
        "member-alive": "alive",
        "member-refuted": "alive",
        "member-suspected": "suspect",
        "member-dead": "dead",
        "member-left": "left",
    }

    def __init__(self, profile: str) -> None:
        """`profile`: local or lan."""
        self.profile = profile
        self.name = f"zephyr-{profile}"

    def prepare(self) -> None:
        """It is here."""

    def command(self, place: Place, seeds: list[Place]) -> list[str]:
        """Return what starts a node."""
        return self.joining(place, [seed.gossip for seed in seeds])

    def joining(self, place: Place, seeds: list[str]) -> list[str]:
        """Return what starts a node that asks these gossip addresses."""
        command = [sys.executable, "-m", "zephyr", "node", "--id", place.name, "--gossip", place.gossip]
        command += ["--peer", f"{place.host}:{place.peer_port}", "--http", f"{place.host}:{place.control_port}"]
        command += [
            "--gossip-profile",
            self.profile,
            "--etcd",
            "none",
            "--cluster",
            OUR_CLUSTER,
            "--log-format",
            "json",
        ]
        return [*command, "--join", ",".join(seeds)]

    def read(self, line: str) -> tuple[State, str] | None:
        """Read its log: what gossip noted."""
        if not line.startswith("{"):
            return None
        try:
            note = json.loads(line)
        except ValueError:
            return None
        state = self._STATES.get(note.get("event", ""))
        return None if state is None or note.get("source") != "gossip" else (state, note.get("member", ""))


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (Zephyr("lan"), Zephyr("local"), Kinship("local"), Kinship("lan"), Serf("local"), Serf("lan"))
}


class Cluster:
    """Nodes of one system, and all that they said."""

    def __init__(self, system: System, places: list[Place]) -> None:
        """Start nothing yet."""
        self.system = system
        self.places = {place.name: place for place in places}
        self.names = list(self.places)
        self.changes: list[Change] = []
        """Of all observers; those of one source of one observer are in order."""
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._lines: dict[str, list[str]] = {}
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        """Start every node."""
        try:
            for name in self.names:
                self._start(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """End every node."""
        self.close()

    def close(self) -> None:
        """End every node, and wait until its output has been read."""
        self._closing.set()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for thread in self._threads:
            thread.join(COMMAND_MAX_S)

    def _start(self, name: str) -> None:
        place = self.places[name]
        command = self.system.command(place, list(self.places.values()))
        if place.namespace:
            command = ["ip", "netns", "exec", place.namespace, *command]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ZEPHYR_")}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1,
        )  # fmt: skip
        self._processes[name] = process
        self._lines[name] = []
        self._watch(functools.partial(self._read, name, process))

    def _watch(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        """Stamp what a process says, until it ends."""
        assert process.stdout is not None
        lines = self._lines[name]
        with process.stdout:
            for line in process.stdout:
                at_s = time.monotonic()
                said = self.system.read(line.strip())
                if said is not None:
                    self.changes.append(Change(at_s, name, said[1], said[0]))
                if len(lines) < LOG_LINES_MAX:
                    lines.append(line)

    def watch_views(self) -> None:
        """Ask each node of ours on loopback, besides, what its pages show: a second opinion on what its log says."""
        if not isinstance(self.system, Zephyr):
            return
        for place in self.places.values():
            if not place.namespace:
                self._watch(functools.partial(self._poll_views, place))

    def _poll_views(self, place: Place) -> None:
        connection = http.client.HTTPConnection(place.host, place.control_port, timeout=VIEWS_TIMEOUT_S)
        known: dict[str, State] = {}
        while not self._closing.wait(VIEWS_PERIOD_S):
            try:
                connection.request("GET", "/debug/views")
                members = json.load(connection.getresponse())["members"]
            except (OSError, ValueError, KeyError, http.client.HTTPException):
                connection.close()  # The next request connects again: it may be starting, or stopped for a while.
                continue
            at_s = time.monotonic()
            for member in members:
                name, state = member["id"], member["gossip"]["state"]
                if known.get(name) != state and state in ("alive", "suspect", "dead", "left"):
                    known[name] = state
                    self.changes.append(Change(at_s, place.name, name, state, "views"))
        connection.close()

    # --- what they believe --------------------------------------------------------------------------

    def believed(self) -> dict[tuple[str, str, str], State]:
        """Return the latest state by (source, observer, subject)."""
        return {(change.source, change.observer, change.subject): change.state for change in list(self.changes)}

    def is_converged(self) -> bool:
        """Whether every node calls every other alive."""
        believed = self.believed()
        return all(
            believed.get(("output", observer, subject)) == "alive"
            for observer, subject in itertools.permutations(self.names, 2)
        )

    def wait_converged(self) -> None:
        """Wait for it. Raises NotMeasurableError when a node ends, or it takes too long."""

        def is_settled() -> bool:
            return self.is_converged() or any(process.poll() is not None for process in self._processes.values())

        if not (wait_until(is_settled, CONVERGE_MAX_S) and self.is_converged()):
            believed = self.believed()
            known = {
                observer: sum(believed.get(("output", observer, subject)) == "alive" for subject in self.names)
                for observer in self.names
            }
            worst = min(known, key=lambda name: known[name])
            said = "".join(self._lines[worst][-3:]).strip()
            raise NotMeasurableError(
                f"{self.system.name}: {len(self.names)} nodes did not find each other; {worst} said last: {said[-300:]}"
            )

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time that each node has used since it started."""
        return {name: process_cpu_s(process.pid) for name, process in self._processes.items()}

    # --- what is done to them -----------------------------------------------------------------------

    def kill(self, name: str) -> float:
        """Kill a node as `kill -9` does; return when."""
        return self._signal(name, signal.SIGKILL)

    def stop(self, name: str) -> float:
        """Stop a node as `kill -STOP` does; return when."""
        return self._signal(name, signal.SIGSTOP)

    def go_on(self, name: str) -> float:
        """Let a stopped node go on; return when."""
        return self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> float:
        process = self._processes[name]
        assert process.poll() is None, f"{name} has ended by itself"
        at_s = time.monotonic()
        process.send_signal(number)
        return at_s


def process_cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of a process, to the microsecond where the kernel keeps it so."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wait_until(condition: Callable[[], bool], max_s: float) -> bool:
    """Wait for a condition; return whether it came true."""
    deadline_s = time.monotonic() + max_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(LOOK_S)
    return True


# --- where they run -----------------------------------------------------------------------------------


def node_name(number: int) -> str:
    """Return the name of a node, counted from 0."""
    return f"n{number + 1}"


def loopback_places(count: int, rng: random.Random) -> list[Place]:
    """Return places on loopback whose ports are free, by UDP and TCP."""
    with contextlib.ExitStack() as stack:
        ports = [_hold_port(stack, rng) for _ in range(3 * count)]
    thirds = (ports[:count], ports[count : 2 * count], ports[2 * count :])
    return [
        Place(node_name(number), "127.0.0.1", gossip, peer, control)
        for number, (gossip, peer, control) in enumerate(zip(*thirds, strict=True))
    ]


def _hold_port(stack: contextlib.ExitStack, rng: random.Random) -> int:
    """Find a free port, and keep it until all are found."""
    for _ in range(PORTS_TRIES):
        port = rng.choice(PORTS)
        sockets = [socket.socket(type=kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
        try:
            for item in sockets:
                item.bind(("127.0.0.1", port))
        except OSError:
            for item in sockets:
                item.close()
            continue
        for item in sockets:
            stack.callback(item.close)
        return port
    raise NotMeasurableError(f"no free port from {PORTS.start} to {PORTS.stop}")


class Network:
    """A network namespace for each node, and a router between them in one of its own.

    The router drops what is to be lost: where the sender dropped it, its `sendto` would fail, and it would know.
    """

    GOSSIP_PORT, PEER_PORT, CONTROL_PORT = 7946, 7846, 8080

    def __init__(self, count: int) -> None:
        """Make nothing yet."""
        self._router = f"zephyr-bench-{os.getpid()}-r"
        self.places = [
            Place(
                node_name(number), f"10.213.{number + 1}.2", self.GOSSIP_PORT, self.PEER_PORT, self.CONTROL_PORT,
                f"zephyr-bench-{os.getpid()}-{number + 1}",
            )
            for number in range(count)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        """Make it. Raises NotMeasurableError where that is not allowed."""
        if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "iptables-restore", "sysctl")):
            raise NotMeasurableError("network namespaces need root, iproute2, iptables and sysctl")
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove it."""
        self.close()

    def _make(self) -> None:
        router = self._router
        _run(["ip", "netns", "add", router])
        _run(["ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
        for number, place in enumerate(self.places, 1):
            node, gateway = place.namespace, f"10.213.{number}.1"
            _run(["ip", "netns", "add", node])
            _run(["ip", "link", "add", "eth0", "netns", node, "type", "veth", "peer", f"v{number}", "netns", router])
            _run(["ip", "-n", router, "address", "add", f"{gateway}/24", "dev", f"v{number}"])
            _run(["ip", "-n", router, "link", "set", f"v{number}", "up"])
            _run(["ip", "-n", node, "address", "add", f"{place.host}/24", "dev", "eth0"])
            for link in ("lo", "eth0"):
                _run(["ip", "-n", node, "link", "set", link, "up"])
            _run(["ip", "-n", node, "route", "add", "default", "via", gateway])

    def silence(self, place: Place) -> float:
        """Drop all packets from and to a node, both ways at one moment; return when."""
        rules = f"*filter\n-A FORWARD -s {place.host} -j DROP\n-A FORWARD -d {place.host} -j DROP\nCOMMIT\n"
        at_s = time.monotonic()
        _run(["ip", "netns", "exec", self._router, "iptables-restore", "--noflush"], text=rules)
        return at_s

    def close(self) -> None:
        """Remove the namespaces; what is inside them goes with them."""
        for namespace in [place.namespace for place in self.places] + [self._router]:
            with contextlib.suppress(NotMeasurableError):  # It may not have come to be.
                _run(["ip", "netns", "delete", namespace])


def _run(command: Iterable[str], *, text: str | None = None, timeout_s: float = COMMAND_MAX_S) -> None:
    """Run a command to its end. Raises NotMeasurableError with what it said."""
    command = list(command)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasurableError(str(error)) from None
    if done.returncode:
        raise NotMeasurableError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
