"""The core knows no clock, socket, task or global randomness: proven by taking them away."""

import subprocess
import sys
import textwrap

PROGRAM = textwrap.dedent(
    """
    import random, socket, sys, time
    sys.modules["asyncio"] = None      # importing it fails from here on
    sys.modules["threading"] = None
    sys.modules["logging"] = None
    sys.modules["_socket"] = None

    def refuse(*_arguments, **_names):
        raise AssertionError("the core reached for the outside world")

    for module, names in (
        (time, ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")),
        (socket, ("socket", "create_connection", "getaddrinfo", "gethostname")),
        (random, ("random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "seed",
                  "getrandbits", "SystemRandom")),
    ):
        for name in names:
            setattr(module, name, refuse)

    import zephyr.api.contract  # noqa: F401
    from zephyr.config import Settings
    from zephyr.events import (
        EtcdSnapshotRead, EtcdTransactionDone, GrantLease, LeaseGranted, LeaveRequested, PeerConnected,
        PeerDisconnected, ReadSnapshot, SendPeer, Started, TimerFired, TransactKey,
    )
    from zephyr.model import Instant, Member, Outcome, ReadRequest, WriteRequest
    from zephyr.node import Node

    clock = [0.0]
    def now():
        clock[0] += 0.01
        return Instant(clock[0], 1_700_000_000_000 + int(clock[0] * 1000))

    member = Member("n1", "h:1", "h:2", "h:3", 1)
    node = Node(Settings(id="n1"), member, random.Random(1), now())
    assert ReadSnapshot() in node.handle(Started(), now())
    effects = node.handle(EtcdSnapshotRead(1, ()), now())
    settings = next(effect for effect in effects if isinstance(effect, TransactKey))
    node.handle(EtcdTransactionDone("settings", True, 2), now())
    from zephyr.events import KeyValue
    pairs = (KeyValue(settings.key, settings.value, 2, 0),)
    effects = node.handle(EtcdSnapshotRead(2, pairs), now())
    assert GrantLease(10) in effects
    effects = node.handle(LeaseGranted(7, 10, clock[0]), now())
    assert any(isinstance(effect, TransactKey) for effect in effects)
    node.handle(EtcdTransactionDone("register", True, 3), now())
    while node.deadline() < clock[0]:
        node.handle(TimerFired(), now())
    assert node.view.owners == ("n1",), node.view
    assert node.readiness() == ()
    written = node.begin_write(WriteRequest(b"key", b"value", ttl_ms=50), now())
    assert isinstance(written, Outcome) and written.failure is None, written
    read = node.begin_read(ReadRequest(b"key"), now())
    assert isinstance(read, Outcome) and read.record.endswith(b"value")
    clock[0] += 2
    node.handle(TimerFired(), now())
    assert node.store.items == 0, "expired actively"
    node.handle(PeerConnected(Member("n2", "h:1", "h:2", "h:3", 1)), now())
    node.handle(PeerDisconnected("n2", "gone"), now())
    node.handle(LeaveRequested(), now())
    print("pure")
    """
)


def test_the_core_runs_with_clock_socket_tasks_and_global_randomness_taken_away():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "pure\n", result.stderr
