"""A node as a process of this machine: `zephyr node`, started, signalled and ended by whoever holds it.

The demonstration and the chaos drivers have their clusters of these.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from zephyr.etcd.embedded import die_with_parent
from zephyr.model import NodeId


@dataclass
class NodeProcess:
    """One node: `zephyr node` with its ports and its log."""

    id: NodeId
    http: str
    peer: str
    gossip: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    program: tuple[str, ...] = (sys.executable, "-m", "zephyr")

    def start(self, *arguments: str) -> None:
        """Start it, again with the same addresses when it ran before."""
        command = [*self.program, "node", "--id", self.id, "--http", self.http, "--peer", self.peer]
        command += ["--gossip", self.gossip, *arguments]
        # Its settings are those given here, whatever this shell has set for another cluster.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ZEPHYR_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # ourselves
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                # In a session of its own Ctrl-C reaches us alone, and we decide what becomes of it.
                preexec_fn=die_with_parent, start_new_session=True,  # noqa: PLW1509  # one call of prctl
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether its process has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """End it as `kill -9` and `docker kill` do; one that does not run stays ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self, timeout_s: float = 15) -> int:
        """Ask it to leave; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)
