"""The data plane on whole nodes in virtual time: hints, repair, updates, batches, listings, explanations."""

from dataclasses import replace

import pytest

from chaos.cluster_scenarios import SETTINGS
from chaos.simulator import Simulation
from zephyr.model import (
    Condition,
    Failure,
    Outcome,
    ReadRequest,
    ScanCursor,
    ScanRequest,
    UpdateRequest,
    WriteRequest,
)
from zephyr.ring.ring import key_slot
from zephyr.store.record import record_value, record_version

IDS = ["n1", "n2", "n3", "n4", "n5"]
CREATE = (Condition(is_match=False, versions=()),)


class Cluster:
    """Five nodes with equal rings, level, and no etcd to lose."""

    def __init__(self, seed: int = 1, **changes: object) -> None:
        join = tuple(f"n{number}:79" for number in range(1, 6))
        self.simulation = Simulation(seed, settings=replace(SETTINGS, join=join, **changes))
        self.simulation.tick_etcd(0.5, 600)
        for node_id in IDS:
            self.simulation.start(node_id)
        self.wait(5)
        assert not any(item.node.readiness() for item in self.simulation.nodes.values())

    def wait(self, duration_s: float) -> None:
        self.simulation.run_until(self.simulation.now_s + duration_s)

    def node(self, node_id: str):
        return self.simulation.nodes[node_id].node

    def begin(self, node_id: str, request) -> object:
        return self.simulation.submit(node_id, request)

    def ended(self, result) -> Outcome:
        return result if isinstance(result, Outcome) else self.simulation.outcomes[result]

    def ask(self, node_id: str, request, wait_s: float = 0.3) -> Outcome:
        result = self.begin(node_id, request)
        self.wait(wait_s)
        return self.ended(result)

    def owners(self, key: bytes) -> tuple[str, ...]:
        return self.node("n1").ring.owners(key_slot(key))

    def held(self, node_id: str, key: bytes) -> bytes | None:
        node = self.node(node_id)
        record = node.store.peek(key_slot(key), key, self.simulation.instant().unix_ms)
        return record_value(record) if record is not None else None

    def cut(self, one: str, *others: str) -> None:
        for other in others:
            self.simulation.cuts[one, other] = self.simulation.cuts[other, one] = True

    def heal(self) -> None:
        self.simulation.cuts.clear()

    def hints(self, name: str) -> int:
        return sum(getattr(item.node.hints, name) for item in self.simulation.nodes.values())


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def key_of(cluster: Cluster, wanted) -> bytes:
    return next(key for number in range(10_000) if wanted(cluster.owners(key := b"key-%d" % number)))


# --- hints --------------------------------------------------------------------------------------------


def test_an_owner_that_missed_a_write_gets_it_when_it_is_back(cluster):
    key = key_of(cluster, lambda owners: "n1" not in owners)
    first, *_ = owners = cluster.owners(key)
    cluster.cut("n1", first)
    outcome = cluster.ask("n1", WriteRequest(key, b"value"), 3.0)
    assert outcome.failure is None
    assert [cluster.held(owner, key) for owner in owners].count(None) == 1
    assert cluster.node("n1").hints.targets_of(key) == (first,)
    cluster.heal()
    cluster.wait(5)
    assert cluster.held(first, key) == b"value"
    assert (cluster.hints("delivered"), cluster.hints("pending")) == (1, 0)


def test_a_sloppy_write_succeeds_with_one_owner_and_a_strict_one_is_refused(cluster):
    key = key_of(cluster, lambda owners: "n1" not in owners)
    alive, *gone = owners = cluster.owners(key)
    for node_id in gone:
        cluster.simulation.crash(node_id)
    cluster.wait(1)
    assert cluster.ask("n1", WriteRequest(key, b"strict")).failure is Failure.UNAVAILABLE
    outcome = cluster.ask("n1", WriteRequest(key, b"sloppy", is_sloppy=True))
    assert outcome.failure is None
    assert outcome.hinted
    keepers = [node_id for node_id in IDS if node_id not in (*owners, "n1")]
    assert any(cluster.node(node_id).hints.targets_of(key) for node_id in keepers), "another live node has it"
    for node_id in gone:
        cluster.simulation.start(node_id)
    cluster.wait(20)
    assert alive in cluster.owners(key)
    assert {cluster.held(owner, key) for owner in cluster.owners(key)} == {b"sloppy"}
    assert cluster.hints("pending") == 0


def test_hints_for_a_dead_owner_go_to_who_takes_its_place(cluster):
    key = key_of(cluster, lambda owners: "n1" not in owners)
    dead = cluster.owners(key)[0]
    cluster.simulation.crash(dead)
    cluster.wait(1)
    assert cluster.ask("n1", WriteRequest(key, b"value")).failure is None
    assert cluster.hints("pending") == 1
    cluster.wait(SETTINGS.evict_after + 5)
    assert dead not in cluster.owners(key)
    assert {cluster.held(owner, key) for owner in cluster.owners(key)} == {b"value"}
    assert (cluster.hints("pending"), cluster.hints("redirected")) == (0, 1)


# --- reading repairs ------------------------------------------------------------------------------------


def test_a_read_mends_the_replica_that_lacks_the_newest(cluster):
    key = key_of(cluster, lambda owners: "n1" in owners)
    cluster.ask("n1", WriteRequest(key, b"old"))
    behind = next(owner for owner in cluster.owners(key) if owner != "n1")
    newest = cluster.ask("n1", WriteRequest(key, b"new"))
    store, unix_ms = cluster.node(behind).store, cluster.simulation.instant().unix_ms
    store.drop_slot(key_slot(key))
    outcome = cluster.ask("n1", ReadRequest(key, quorum="all"))
    assert record_version(outcome.record) == newest.version
    assert store.peek(key_slot(key), key, unix_ms) is not None


# --- updates --------------------------------------------------------------------------------------------


def test_one_of_fifty_creations_at_once_wins(cluster):
    begun = [
        cluster.begin(IDS[number % 5], UpdateRequest(b"lock", "put", CREATE, value=b"%d" % number))
        for number in range(50)
    ]
    cluster.wait(3)
    outcomes = [cluster.ended(item) for item in begun]
    assert sum(outcome.failure is None for outcome in outcomes) == 1
    assert sum(outcome.failure is Failure.PRECONDITION for outcome in outcomes) == 49
    [winner] = [b"%d" % number for number, outcome in enumerate(outcomes) if outcome.failure is None]
    assert record_value(cluster.ask("n3", ReadRequest(b"lock")).record) == winner


def test_no_step_of_a_counter_is_lost_or_counted_twice(cluster):
    begun = [cluster.begin(IDS[number % 5], UpdateRequest(b"hits", "increment", step=1)) for number in range(100)]
    cluster.wait(5)
    numbers = sorted(int(record_value(cluster.ended(item).record)) for item in begun)
    assert numbers == list(range(1, 101))


def test_a_change_is_made_on_what_was_read_and_on_nothing_else(cluster):
    written = cluster.ask("n1", WriteRequest(b"key", b"one"))
    match = (Condition(is_match=True, versions=(written.version,)),)
    changed = cluster.ask("n2", UpdateRequest(b"key", "put", match, value=b"two"))
    assert (changed.failure, changed.existed) == (None, True)
    assert cluster.ask("n3", UpdateRequest(b"key", "put", match, value=b"three")).failure is Failure.PRECONDITION
    assert cluster.ask("n4", UpdateRequest(b"key", "delete", match)).failure is Failure.PRECONDITION
    gone = (Condition(is_match=True, versions=(changed.version,)),)
    assert cluster.ask("n5", UpdateRequest(b"key", "delete", gone)).failure is None
    assert cluster.ask("n1", ReadRequest(b"key")).record is None


def test_a_deadline_is_changed_and_the_value_stays(cluster):
    written = cluster.ask("n1", WriteRequest(b"key", b"value"))
    outcome = cluster.ask("n2", UpdateRequest(b"key", "expire", ttl_ms=2000))
    assert outcome.version > written.version
    assert record_value(cluster.ask("n3", ReadRequest(b"key")).record) == b"value"
    cluster.wait(2.5)
    assert cluster.ask("n3", ReadRequest(b"key")).record is None
    assert cluster.ask("n4", UpdateRequest(b"key", "expire", ttl_ms=2000)).failure is Failure.ABSENT


def test_updates_go_on_after_the_first_owner_is_gone(cluster):
    cluster.ask("n1", UpdateRequest(b"hits", "increment", step=1))
    first = cluster.owners(b"hits")[0]
    cluster.simulation.crash(first)
    cluster.wait(1)
    asked = next(node_id for node_id in IDS if node_id != first)
    outcome = cluster.ask(asked, UpdateRequest(b"hits", "increment", step=1))
    assert record_value(outcome.record) == b"2"


def test_the_minority_of_a_split_changes_nothing(cluster):
    cluster.ask("n1", UpdateRequest(b"hits", "increment", step=1))
    cluster.cut("n4", "n1", "n2", "n3")
    cluster.cut("n5", "n1", "n2", "n3")
    cluster.simulation.cut_from_etcd = dict.fromkeys(["n4", "n5"], True)
    cluster.wait(12)
    assert cluster.ask("n4", UpdateRequest(b"hits", "increment", step=1), 4.0).failure is not None
    cluster.heal()
    cluster.simulation.cut_from_etcd.clear()
    cluster.wait(15)
    assert record_value(cluster.ask("n1", ReadRequest(b"hits")).record) == b"1"


# --- batches, listings, explanations --------------------------------------------------------------------


def test_a_batch_sends_each_peer_one_frame(cluster):
    node, now = cluster.node("n1"), cluster.simulation.instant()
    requests = [WriteRequest(b"batch-%d" % number, b"%d" % number) for number in range(100)]
    begun, effects = node.begin_all(requests, now)
    assert len({effect.node_id for effect in effects}) == len(effects) == 4
    simulated = cluster.simulation.nodes["n1"]
    cluster.simulation._carry_out(simulated, effects)
    cluster.wait(0.3)
    keys = [(simulated.address, item.request_id) for item in begun]
    assert all(cluster.simulation.outcomes[key].failure is None for key in keys)
    assert record_value(cluster.ask("n4", ReadRequest(b"batch-7")).record) == b"7"


def scanned(cluster: Cluster, prefix: bytes, limit: int) -> list[bytes]:
    """List all keys, each page at another node."""
    keys, cursor, pages = [], ScanCursor(0, b""), 0
    while cursor is not None:
        pages += 1
        assert pages < 200
        key = cluster.begin(IDS[pages % 5], ScanRequest(prefix, limit, cursor))
        cluster.wait(0.1)
        page = cluster.simulation.surveys[key]
        assert page.failure is None, page.detail
        assert len(page.keys) <= limit
        keys += page.keys
        cursor = page.cursor
    return keys


def test_a_listing_has_every_key_once_and_no_deleted_one(cluster):
    names = [b"user:%d" % number for number in range(60)] + [b"other:%d" % number for number in range(20)]
    for name in names:
        cluster.begin("n2", WriteRequest(name, b"v"))
    cluster.wait(1)
    cluster.ask("n3", WriteRequest(b"user:7", None))
    assert sorted(scanned(cluster, b"user:", 7)) == sorted(set(names[:60]) - {b"user:7"})
    assert len(scanned(cluster, b"", 1000)) == 79
    assert scanned(cluster, b"nothing", 100) == []


def test_a_listing_with_too_few_replicas_is_refused_rather_than_short(cluster):
    cluster.ask("n1", WriteRequest(b"key", b"v"))
    cluster.cut("n1", "n2", "n3", "n4")
    page = cluster.begin("n1", ScanRequest(b"", 10, ScanCursor(0, b""), timeout_s=0.5))
    cluster.wait(1)
    assert cluster.simulation.surveys[page].failure is Failure.UNAVAILABLE


def test_an_explanation_tells_what_each_replica_holds(cluster):
    key = key_of(cluster, lambda owners: "n1" not in owners)
    owners = cluster.owners(key)
    written = cluster.ask("n1", WriteRequest(key, b"value", ttl_ms=60_000))
    cluster.cut("n1", owners[1])
    cluster.ask("n1", WriteRequest(key, None), 3.0)
    pending = cluster.node("n1").begin_explain(key, cluster.simulation.instant())
    simulated = cluster.simulation.nodes["n1"]
    cluster.simulation._carry_out(simulated, pending.effects)
    cluster.wait(3)
    told = cluster.simulation.surveys[simulated.address, pending.request_id]
    rows = {row.node_id: row for row in told.replicas}
    assert told.owners == owners
    assert (rows[owners[0]].state, rows[owners[0]].is_level) == ("tombstone", True)
    assert rows[owners[1]].state == "unreachable"
    assert rows["n1"].hinted == (owners[1],)
    assert written.version < rows[owners[0]].version
