"""Servers in processes of their own, and load on them: wrk on one core, all servers under test on the other.

CPU time is that of the server processes, from /proc/<pid>/stat, so it hardly moves when the machine is busy.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.keys import VALUE_BYTES
from bench.rows import NotMeasurableError

CONNECTIONS = 50
START_MAX_S = 90.0
"""Longest wait for a server: one that fills itself with 5M keys takes half a minute on a busy machine."""
LAG_MAX_S = 5.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What one burst of load did."""

    per_s: float
    cpu_us: float
    """CPU of all servers that were loaded, user and system, microseconds a request."""
    latency_p99_ms: float
    lags_ms: tuple[float, ...]
    """How late the servers' event loops woke their timers, each time."""


def cores() -> tuple[int, int]:
    """Return the core of the server and that of the load; the same one where there is one only."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        return int(item.getsockname()[1])


class Server:
    """One process of `bench.servers`."""

    def __init__(self, kind: str, *, core: int, port: int, arguments: tuple[str, ...] = ()) -> None:
        """Start it; `wait` tells when it is ready."""
        self.kind = kind
        self.port = port
        self._directory = tempfile.TemporaryDirectory(prefix="zephyr-bench-")
        self._state = Path(self._directory.name)
        command = ["taskset", "-c", str(core), sys.executable, "-m", "bench.servers", kind]
        command += ["--port", str(port), "--state", str(self._state), *arguments]
        with (self._state / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _running.append(self)

    def wait(self) -> None:
        """Wait until it serves and is filled."""
        deadline_s = time.monotonic() + START_MAX_S
        while not (self._state / "ready").exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                log = (self._state / "log").read_text(encoding="utf-8", errors="replace")
                raise NotMeasurableError(f"the {self.kind} server did not start: {log[-500:]}")
            time.sleep(0.05)

    def cpu_s(self) -> float:
        """Return user and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def lags_ms(self) -> tuple[float, ...]:
        """Return the lags since the last call."""
        path = self._state / "lag.json"
        path.unlink(missing_ok=True)
        self._process.send_signal(signal.SIGUSR1)
        deadline_s = time.monotonic() + LAG_MAX_S
        while not path.exists():
            if time.monotonic() > deadline_s:
                raise NotMeasurableError(f"the {self.kind} server does not tell its lag")
            time.sleep(0.005)
        return tuple(json.loads(path.read_text(encoding="utf-8")))

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()
        _running.remove(self)


_running: list[Server] = []


def start(kind: str, *arguments: str, core: int | None = None, port: int = 0) -> Server:
    """Start a server, on the servers' core and a free port unless others are named."""
    return Server(kind, core=cores()[0] if core is None else core, port=port or free_port(), arguments=arguments)


def stop_servers() -> None:
    """End every server that was started here."""
    while _running:
        _running[-1].stop()


class Lines:
    """A file of lines for wrk: keys, or bodies of batches."""

    def __init__(self, lines: list[bytes]) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="zephyr-bench-lines-")  # noqa: SIM115  # lives as long as this
        self._file.write(b"\n".join(lines) + b"\n")
        self._file.flush()
        self.path = self._file.name


class Keys(Lines):
    """Keys in random order."""

    def __init__(self, keys: list[bytes]) -> None:
        random.Random(1).shuffle(keys)
        super().__init__(keys)


def send(server: Server, method: str, keys: Lines, *, duration_s: int) -> Load:
    """Load a server as fast as it answers. Every answer must be a success."""
    return send_to_each([server], method, keys, duration_s=duration_s, connections=CONNECTIONS)


def send_to_each(
    servers: Sequence[Server],
    method: str,
    lines: Lines,
    *,
    duration_s: int,
    connections: int,
    query: str = "",
    beside: Sequence[Server] = (),
) -> Load:
    """Load servers at once, each by a thread of wrk with an equal share of the connections.

    A server may be named twice. `method`: GET, PUT, or BATCH, for which `lines` are bodies. `beside`: servers that
    those ask, so that their CPU time counts. Every answer must be a success, and every row of a batch. Raises
    NotMeasurableError otherwise.
    """
    wrk, taskset = shutil.which("wrk"), shutil.which("taskset")
    if wrk is None or taskset is None:
        raise NotMeasurableError("wrk or taskset is missing: apt-get install wrk util-linux")
    assert connections % len(servers) == 0, "wrk gives all threads as many connections"
    command = [taskset, "-c", str(cores()[1]), wrk, "-t", str(len(servers)), "-c", str(connections)]
    command += ["-d", f"{duration_s}s", "-s", str(SCRIPT), f"http://127.0.0.1:{servers[0].port}", "--"]
    command += [method, lines.path, str(VALUE_BYTES), query, *[str(server.port) for server in servers]]
    loaded = list(dict.fromkeys((*servers, *beside)))
    for server in loaded:
        server.lags_ms()
    before_s = sum(server.cpu_s() for server in loaded)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    cpu_s = sum(server.cpu_s() for server in loaded) - before_s
    kind = servers[0].kind
    if done.returncode:
        raise NotMeasurableError(f"wrk on {kind}: {done.stderr.strip() or done.stdout.strip()}")
    requests, duration_us, latency_us, errors = done.stdout.rpartition("RESULT")[2].split()
    if int(errors) or not int(requests):
        raise NotMeasurableError(f"{kind}: {errors} of {requests} requests failed")
    return Load(
        per_s=int(requests) / (int(duration_us) / 1e6),
        cpu_us=cpu_s / int(requests) * 1e6,
        latency_p99_ms=int(latency_us) / 1000,
        lags_ms=tuple(lag_ms for server in loaded for lag_ms in server.lags_ms()),
    )
