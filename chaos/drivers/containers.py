"""The Compose cluster of deploy/, and what Docker can do to it: `docker kill`, `pause`, `network disconnect`.

`ComposeProject` is the containers of one project, for whoever needs no more: the container tests. `ContainerDriver`
puts them behind the seam: those of a cluster that runs, which is then left as it was found, or of one that it brings up
for itself and takes down. Docker is asked by its command, so that what is done can be done by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from chaos.drivers import REQUEST_MAX_S, Driver, DriverError, Fault, commands_spared
from chaos.drivers.http import ask, is_ready, page_of
from zephyr.model import NodeId

COMPOSE_FILE = Path(__file__).parents[2] / "deploy" / "docker-compose.yml"
PROJECT_DEFAULT = "deploy"
"""What Compose calls the project of a file in deploy/, unless it is told otherwise."""
OWN_PREFIX = "zephyrchaos"
"""What the projects are called that are brought up for a run."""
PORTS = "18200-18299"
"""Host ports of a cluster of our own: not those of one that somebody has running, and below the ephemeral ones."""
COUNT_DEFAULT = 5
COMMAND_MAX_S = 120.0
"""Longest Docker or Compose command: seven nodes start and stop within 15 s on two quiet cores."""
READY_MAX_S = 60.0
"""Longest wait for a ring of all nodes: the interpreters of seven nodes start on two cores."""
POLL_S = 0.1
NODE_PORT = "8080/tcp"
ETCD_DATA = "/var/lib/etcd/data"
"""Where the Compose file has etcd keep its data: on a volume."""
ERROR_CHARS = 300

Undo = Callable[[], Awaitable[None]]


def find_compose() -> list[str]:
    """Return the Compose command: $COMPOSE, else whichever is installed. Raises DriverError."""
    if "COMPOSE" in os.environ:
        return shlex.split(os.environ["COMPOSE"])
    plugin = ["docker", "compose"]
    if shutil.which("docker"):
        with commands_spared():
            found = subprocess.run(  # noqa: S603  # Docker, as PATH has it
                [*plugin, "version"], check=False, capture_output=True, start_new_session=True
            )
        if found.returncode == 0:
            return plugin
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise DriverError("neither `docker compose` nor `docker-compose` is installed")


async def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end; return its standard output. Raises DriverError with the end of what it said.

    Whoever is cancelled waits for that end: what Docker has begun cannot be called back, and is to be undone.
    """
    try:
        with commands_spared():
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                # In a session of its own: Ctrl-C is for us.
                stderr=asyncio.subprocess.PIPE, env={**os.environ, **(environment or {})}, start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise DriverError(f"{command[0]}: {error.strerror}") from None
    ending = asyncio.ensure_future(asyncio.wait_for(process.communicate(), COMMAND_MAX_S))
    try:
        output, errors = await asyncio.shield(ending)
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError):
            await ending
        raise
    except TimeoutError:
        raise DriverError(f"{shlex.join(command)}: not within {COMMAND_MAX_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = " ".join(errors.decode(errors="replace").split())[-ERROR_CHARS:]
        raise DriverError(f"{shlex.join(command)}: exit code {process.returncode}: {said}")
    return output.decode()


@dataclass(frozen=True, slots=True)
class Container:
    """One running node."""

    name: str
    id: NodeId
    """The node's id: the host name, which is the start of the container's id."""
    number: int
    """Compose's number of it within the service, from 1."""
    url: str
    """Its published port; another one after each start. Empty while it has none: it is in no network."""
    health: str
    networks: tuple[str, ...]
    image: str


class ComposeProject:
    """The nodes and etcd of one Compose project."""

    def __init__(self, project: str, ports: str = PORTS) -> None:
        """`ports`: the range of host ports, where this project is brought up by `compose`."""
        self.project = project
        self._ports = ports

    async def compose(self, *arguments: str) -> str:
        """Run a Compose command on this project."""
        if not COMPOSE_FILE.is_file():
            raise DriverError(f"{COMPOSE_FILE} is not there: a cluster can be brought up from a checkout only")
        command = [*find_compose(), "-p", self.project, "-f", str(COMPOSE_FILE), *arguments]
        return await run(*command, environment={"PORTS": self._ports})

    async def containers_of(self, service: str, *, stopped: bool = False) -> list[str]:
        """Return the ids of the containers of a service that run, or of all."""
        label = "label=com.docker.compose"
        filters = ("--filter", f"{label}.project={self.project}", "--filter", f"{label}.service={service}")
        every = ("--all",) if stopped else ()
        return (await run("docker", "ps", "--quiet", "--no-trunc", *every, *filters)).split()

    async def nodes(self) -> list[Container]:
        """Return the running nodes by their numbers."""
        ids = await self.containers_of("node")
        found = json.loads(await run("docker", "inspect", *ids)) if ids else []
        containers = [_container(item) for item in found if item["State"]["Running"]]
        return sorted(containers, key=lambda container: container.number)


def _container(found: Any) -> Container:
    """Understand what `docker inspect` says of one."""
    ports = found["NetworkSettings"]["Ports"].get(NODE_PORT)
    return Container(
        found["Name"].lstrip("/"),
        found["Id"][:12],
        int(found["Config"]["Labels"]["com.docker.compose.container-number"]),
        f"http://127.0.0.1:{ports[0]['HostPort']}" if ports else "",
        found["State"].get("Health", {}).get("Status", ""),
        tuple(found["NetworkSettings"]["Networks"]),
        found["Image"],
    )


class ContainerDriver(Driver):
    """A Compose cluster: the one that runs, or one of its own."""

    name = "docker"
    faults = frozenset({Fault.KILL, Fault.STOP, Fault.DISCONNECT, Fault.KILL_ETCD, Fault.WIPE_ETCD})

    def __init__(self, count: int | None, project: str | None = None, *, is_fresh: bool = False) -> None:
        """`count`: of nodes; None: as many as run, else five. `project`: Compose's name of a cluster that runs.

        Without a project it is that of deploy/, if it runs; else, and where it `is_fresh`, one is brought up and taken
        down.
        """
        self.node_ids: list[NodeId] = []
        self._count = count
        self._asked_for = project
        self._project = ComposeProject(project or PROJECT_DEFAULT)
        self._is_fresh = is_fresh
        self._is_ours = False
        self._session: aiohttp.ClientSession | None = None
        self._containers: dict[NodeId, Container] = {}
        self._etcd = ""
        self._undo: dict[tuple[str, str], Undo] = {}
        """(what was done, to whom) -> what undoes it, in the order in which it was done."""

    async def open(self) -> str:
        """Find the cluster that runs, or bring one up; all nodes are ready then."""
        await run("docker", "version", "--format", "{{.Server.Version}}")
        if self._is_fresh or not await self._is_running():
            self._project = ComposeProject(f"{OWN_PREFIX}{uuid.uuid4().hex[:8]}")
            self._is_ours = True
            scale = f"node={self._count or COUNT_DEFAULT}"
            await self._project.compose("up", "-d", "--no-build", "--scale", scale)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_MAX_S))
        await self._look_up()
        self.node_ids = list(self._containers)
        etcds = await self._project.containers_of("etcd")
        if len(etcds) != 1:
            raise DriverError(f"the Compose project {self._project.project} has {len(etcds)} running etcds, not one")
        (self._etcd,) = etcds
        await self._until_ready()
        whose = "brought up for this" if self._is_ours else "which ran already and stays"
        return f"{len(self.node_ids)} containers of the Compose project {self._project.project}, {whose}"

    async def _is_running(self) -> bool:
        """Whether the cluster that is meant runs already. Raises DriverError where it is another than was asked for."""
        found = len(await self._project.nodes())
        if not found and self._asked_for:
            raise DriverError(f"no nodes of the Compose project {self._asked_for} run")
        if found and self._count not in (None, found):
            raise DriverError(
                f"the Compose project {self._project.project} has {found} running nodes, not {self._count}: "
                f"leave -n out, or add --fresh for a cluster of its own"
            )
        return found > 0

    async def _until_ready(self) -> None:
        deadline_s = asyncio.get_running_loop().time() + READY_MAX_S
        while True:
            await self._look_up()
            ready = await asyncio.gather(*map(self.is_ready, self.node_ids))
            if all(ready):
                return
            if asyncio.get_running_loop().time() >= deadline_s:
                waiting = [name for name, is_one in zip(self.node_ids, ready, strict=True) if not is_one]
                raise DriverError(f"not ready within {READY_MAX_S:.0f} s: {', '.join(waiting)}")
            await asyncio.sleep(POLL_S)

    async def _look_up(self) -> None:
        """Ask Docker again where the nodes listen: a container has another port after each start."""
        self._containers.update({container.id: container for container in await self._project.nodes()})

    async def close(self, *, is_failed: bool) -> str:
        """Take our own cluster down; mend what was done to somebody else's."""
        if self._session is not None:
            await self._session.close()
        if not self._is_ours:
            return await self._mend()
        kept = ""
        if is_failed:
            with contextlib.suppress(DriverError):
                logs = await self._project.compose("logs", "--no-color")
                descriptor, kept = tempfile.mkstemp(prefix="zephyr-chaos-", suffix=".log")
                with os.fdopen(descriptor, "w") as file:
                    file.write(logs)
        assert self._project.project.startswith(OWN_PREFIX), "somebody else's cluster is not taken down"
        await self._project.compose("down", "--volumes", "--timeout", "0")
        return f"the containers' logs: {kept}" if kept else ""

    async def _mend(self) -> str:
        """Undo what still stands, the last first; return what could not be undone."""
        left = []
        for undo in reversed(list(self._undo.values())):
            try:
                await undo()
            except DriverError as error:  # Somebody else may have undone it; or not.
                left.append(str(error))
        return f"not undone: {'; '.join(left)}" if left else ""

    # --- what is done -------------------------------------------------------------------------------------

    async def _do(self, what: str, whom: str, undo: Undo, *command: str) -> None:
        """Do something that can be undone, and remember how before it is begun."""
        self._undo[what, whom] = undo
        await run("docker", *command)

    async def _end(self, what: str, whom: str, *command: str) -> None:
        """Undo it, and forget how."""
        await run("docker", *command)
        self._undo.pop((what, whom), None)

    async def kill(self, node_id: NodeId) -> None:
        """`docker kill`."""
        await self._do("kill", node_id, lambda: self.restart(node_id), "kill", node_id)

    async def restart(self, node_id: NodeId) -> None:
        """`docker start`."""
        await self._end("kill", node_id, "start", node_id)
        await self._look_up()

    async def stop(self, node_id: NodeId) -> None:
        """`docker pause`: the freezer of cgroups, which no process sees."""
        await self._do("pause", node_id, lambda: self.resume(node_id), "pause", node_id)

    async def resume(self, node_id: NodeId) -> None:
        """`docker unpause`."""
        await self._end("pause", node_id, "unpause", node_id)

    async def disconnect(self, node_id: NodeId) -> None:
        """`docker network disconnect`: from us, too."""
        (network, *others) = self._containers[node_id].networks or ("",)
        if not network or others:
            raise DriverError(f"{node_id} is in {len(others) + 1 if network else 0} networks, not in one")
        await self._do(
            "disconnect", node_id, lambda: self._connect(node_id, network), "network", "disconnect", network, node_id
        )

    async def _connect(self, node_id: NodeId, network: str) -> None:
        # By the service's name the others' seeds find it, as Compose had it.
        await self._end("disconnect", node_id, "network", "connect", "--alias", "node", network, node_id)
        await self._look_up()

    async def heal(self) -> None:
        """`docker network connect`."""
        for (what, _), undo in list(self._undo.items()):
            if what == "disconnect":
                await undo()

    async def kill_etcd(self) -> None:
        """`docker kill`."""
        await self._do("kill", self._etcd, self.restart_etcd, "kill", self._etcd)

    async def wipe_etcd(self) -> None:
        """`docker kill`, and its data removed from the volume."""
        await self.kill_etcd()
        # Its own image has no shell. The nodes' has what it takes, and the volume keeps its place.
        image = next(iter(self._containers.values())).image
        command = ("run", "--rm", "--user", "0", "--network", "none", "--volumes-from", self._etcd)
        await run("docker", *command, "--entrypoint", "rm", image, "-rf", ETCD_DATA)

    async def restart_etcd(self) -> None:
        """`docker start`."""
        await self._end("kill", self._etcd, "start", self._etcd)

    # --- what is seen -------------------------------------------------------------------------------------

    async def page(self, node_id: NodeId) -> Any | None:
        """Return what it shows, at its published port."""
        url = self._containers[node_id].url
        return await page_of(self._asking, url) if url else None

    async def is_ready(self, node_id: NodeId) -> bool:
        """Whether it answers that it is."""
        url = self._containers[node_id].url
        return bool(url) and await is_ready(self._asking, url)

    async def write(self, node_id: NodeId, key: str, value: bytes) -> str:
        """PUT."""
        return await ask(self._asking, self._containers[node_id].url, "PUT", key, value)

    async def read(self, node_id: NodeId, key: str) -> str:
        """GET."""
        return await ask(self._asking, self._containers[node_id].url, "GET", key)

    @property
    def _asking(self) -> aiohttp.ClientSession:
        assert self._session is not None, "it is not open"
        return self._session
