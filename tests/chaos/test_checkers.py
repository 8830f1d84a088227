"""Each check, on histories made by hand: green where the claim holds, red where not, unknown where nobody knows."""

from dataclasses import replace as changed
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos import checkers
from chaos.checkers import CHECKS, Facts, check
from chaos.history import Death, Fault, History, Holding, Level, Operation, Run, Sample

UNIX_MS = 1_700_000_000_000
RUN = Run("story", ("n1", "n2", "n3", "n4"), 3, UNIX_MS, 200, 2.0, 10.0)
RING = ("n1", "n2", "n3", "n4")


def version(at_s: float, counter: int = 0) -> bytes:
    """Return a version as a right clock stamps it at a second of the run."""
    return ((UNIX_MS + round(at_s * 1000)) << 16 | counter).to_bytes(8, "big") + b"n1-n1-n1"


class Story:
    """A history told one operation after the other: each lasts 0.5 s, unless it says otherwise."""

    def __init__(self, **run: object) -> None:
        self.history = History(RUN._replace(**run))

    def tell(self, kind, value, at_s, *, stamp=None, by="c1", until_s=None, outcome="ok", key="k", **more):
        over_s = at_s + 0.5 if until_s is None else until_s
        stamped = b"" if stamp is None else stamp if isinstance(stamp, bytes) else version(stamp)
        operation = Operation(
            by, kind, key, value, stamped, float(at_s), float(over_s), outcome, more.pop("node", "n1"),
            line=len(self.history.operations) + 2, **more,
        )  # fmt: skip
        self.history.add(operation)
        return self

    def put(self, value, at_s, **more):
        return self.tell("put", value, at_s, **({"stamp": at_s + 0.1} | more))

    def unknown_put(self, value, at_s, **more):
        return self.tell("put", value, at_s, **({"outcome": "info", "until_s": inf} | more))

    def delete(self, at_s, **more):
        return self.tell("delete", None, at_s, **({"stamp": at_s + 0.1} | more))

    def get(self, value, at_s, stamp=None, **more):
        return self.tell("get", value, at_s, stamp=stamp, **more)

    def add(self, *records):
        for record in records:
            self.history.add(record)
        return self

    def kept(self, key="k", at_s=60.0, **versions):
        """Tell what nodes hold in the end: a version, None for nothing, or (state, version)."""
        for node, held in versions.items():
            state, stamp = held if isinstance(held, tuple) else ("absent" if held is None else "value", held)
            stamped = b"" if stamp is None else version(stamp)
            self.add(Holding(node, key, state, stamped, is_owner=True, is_level=True, at_s=at_s))
        return self

    def judged(self, name: str):
        self.history.sort()
        judge = next(item for item in CHECKS if item(Facts(History(RUN))).name == name)
        return judge(Facts(self.history))

    def is_red(self, name: str) -> bool:
        return self.judged(name).colour == "red"

    def is_green(self, name: str) -> bool:
        return self.judged(name).colour == "green"


def settled(*nodes: str, at_s: float = 0.0, owners=RING):
    return [Sample(node, at_s, "-".join(owners), owners) for node in nodes or RING]


# --- phantom ------------------------------------------------------------------------------------------


def test_what_was_attempted_may_be_read():
    story = Story().put("a", 0).unknown_put("b", 1).get("a", 2, 0.1).get("b", 3, 1.2, quorum="1")
    assert story.is_green("phantom")


def test_what_nobody_wrote_may_not_be_read():
    assert Story().put("a", 0).get("b", 2, 0.1).is_red("phantom")
    assert Story().put("a", 0, key="other").get("a", 2, 0.1).is_red("phantom"), "by another key's name"


def test_what_was_refused_may_not_be_read_by_any_quorum():
    refused = Story().tell("put", "a", 0, outcome="fail")
    assert refused.get("a", 2, 0.1, quorum="1").is_red("phantom")


def test_what_is_not_written_yet_may_not_be_read():
    assert Story().put("a", 3).get("a", 1, 3.1).is_red("phantom")


# --- stale reads --------------------------------------------------------------------------------------


def test_a_read_finds_what_was_acknowledged_before_it_or_newer():
    story = Story().put("a", 0).put("b", 1).get("b", 2, 1.1).unknown_put("c", 3).get("c", 4, 3.2)
    assert story.is_green("stale-reads")
    assert story.judged("stale-reads").judged == 2


def test_a_read_of_an_older_value_is_stale():
    verdict = Story().put("a", 0).put("b", 1).get("a", 2, 0.1, by="c2").judged("stale-reads")
    assert verdict.colour == "red"
    assert [item.value for item in verdict.violations[0].operations] == ["a", "b"]


def test_a_read_that_overlaps_the_write_may_find_either():
    assert Story().put("a", 0).put("b", 1, until_s=3).get("a", 2, 0.1).judged("stale-reads").colour == "green"


def test_a_read_of_nothing_is_stale_where_nothing_explains_it():
    assert Story().put("a", 0).get(None, 2).is_red("stale-reads")
    assert Story(evicts=True).put("a", 0).get(None, 2).judged("stale-reads").colour == "unknown"


def test_a_delete_explains_that_nothing_is_there():
    assert Story().put("a", 0).delete(1).get(None, 2).is_green("stale-reads")
    assert Story().delete(0).put("a", 1).get(None, 2).is_red("stale-reads"), "an older one does not"
    assert Story().put("a", 0).get(None, 2).delete(4).is_red("stale-reads"), "a later one does not"


def test_a_delete_that_nobody_knows_of_explains_it_while_its_version_may_be_newer():
    late = Story().put("a", 0).delete(1, outcome="info", stamp=None, until_s=1.5)
    assert late.put("b", 2).get(None, 3).is_green("stale-reads"), "a clock that is ahead may have stamped it"
    assert late.put("c", 4).get(None, 5).is_red("stale-reads"), "no clock is that far ahead"
    never_over = Story().delete(1, outcome="info", stamp=None, until_s=inf)
    assert never_over.put("c", 40).get(None, 50).is_green("stale-reads")


def test_a_delete_that_was_refused_explains_nothing():
    assert Story().put("a", 0).delete(1, outcome="fail", stamp=None).get(None, 2).is_red("stale-reads")


def test_a_deadline_explains_that_nothing_is_there_when_it_may_have_passed():
    assert Story().put("a", 0, ttl_ms=3000).get(None, 2).is_red("stale-reads")
    assert Story().put("a", 0, ttl_ms=3000).get(None, 2.2).is_green("stale-reads"), "by two clocks that are off"
    assert Story().put("a", 0, ttl_ms=3000).put("b", 1).get(None, 9).is_red("stale-reads")


def test_reads_and_writes_of_fewer_replicas_are_not_held_to_it():
    assert not Story().put("a", 0).put("b", 1).get("a", 2, 0.1, quorum="1").is_red("stale-reads")
    assert not Story().put("a", 0).put("b", 1, quorum="1").get("a", 2, 0.1).is_red("stale-reads")
    assert not Story().put("a", 0).put("b", 1, is_sloppy=True).get("a", 2, 0.1).is_red("stale-reads")
    assert Story().put("a", 0).put("b", 1, quorum="3").get("a", 2, 0.1, quorum="all").is_red("stale-reads")


def test_a_delete_without_a_known_version_is_newer_than_what_was_acknowledged_before_it():
    assert Story().put("a", 0).delete(1, stamp=None).get("a", 2, 0.1).is_red("stale-reads")
    fast = Story().put("a", 0, stamp=0.5).delete(0.6, stamp=None)
    assert fast.get("a", 2, 0.5).is_red("stale-reads"), "whatever the clocks are"
    assert Story().put("a", 0).delete(1, stamp=None).put("b", 2).get("b", 3, 2.1).is_green("stale-reads")


# --- the ring is not stable ---------------------------------------------------------------------------


def change(at_s: float, owners, *nodes: str):
    return [Sample(node, at_s, "-".join(owners), owners) for node in nodes]


def test_operations_while_nodes_take_over_a_ring_are_not_judged():
    smaller = RING[:3]
    rings = [*settled(), *settled(at_s=1.0), *change(1.2, smaller, "n1"), *change(3.0, smaller, "n2", "n3")]
    read = Story().add(*rings).put("a", 0).put("b", 0.3).get("a", 2, 0.1)
    assert read.judged("stale-reads").colour == "unknown"
    assert read.judged("stale-reads").unknown == 1
    write = Story().add(*rings).put("a", 0).put("b", 2).get("a", 4, 0.1)
    assert not write.is_red("stale-reads"), "what was acknowledged then may be missed"
    assert Story().add(*rings).put("a", 0).put("b", 0.3).get("a", 4, 0.1).is_red("stale-reads"), "before and after"


def test_a_node_that_is_cut_off_and_keeps_its_ring_unsettles_nothing():
    smaller = RING[:3]
    rings = [*settled(), *settled(at_s=1.0), *change(1.2, smaller, "n1", "n2", "n3")]
    rings += [*settled("n4", at_s=89.8), *change(90.0, smaller, "n4")]
    assert Story().add(*rings).put("a", 20).put("b", 21).get("a", 22, 20.1, node="n4").is_red("stale-reads")
    assert not Story().add(*rings).put("a", 20).put("b", 21).get("a", 89.9, 20.1).is_red("stale-reads")


def test_a_node_that_has_just_started_unsettles_nothing():
    rings = [*settled(), Sample("n2", 5.0, "", ()), *settled("n2", at_s=5.4)]
    assert Story().add(*rings).put("a", 1).put("b", 2).get("a", 5.2, 1.1).is_red("stale-reads")


def test_a_ring_smaller_than_the_replicas_is_not_stable():
    rings = settled("n1", "n2", owners=("n1", "n2"))
    assert Story().add(*rings).put("a", 1).put("b", 2).get("a", 3, 1.1).judged("stale-reads").colour == "unknown"


def rings_of(newer: dict[str, tuple[str, ...]], *, from_s: float = 10.0):
    """Sample five nodes for half a minute; some of them have a newer ring from a moment on."""
    five = ("n1", "n2", "n3", "n4", "n5")
    moments_s = [number / 2 for number in range(60)]
    return [
        Sample(node, at_s, "", newer.get(node, five) if at_s >= from_s else five) for at_s in moments_s for node in five
    ]


def test_a_ring_that_a_majority_still_uses_is_not_old():
    """A minority that reaches etcd shrinks its ring and serves; the majority goes on with the old one."""
    for newer in ({"n4": ("n4",)}, dict.fromkeys(("n4", "n5"), ("n3", "n4", "n5"))):
        story = Story().add(*rings_of(newer)).put("a", 1).delete(12).get("a", 14, 1.1, node="n4")
        assert story.judged("resurrection").colour == "unknown"
        assert story.judged("stale-reads").colour == "unknown"


def test_a_ring_that_only_a_minority_still_uses_is_old():
    newer = dict.fromkeys(("n1", "n2", "n3"), ("n1", "n2", "n3"))
    story = Story().add(*rings_of(newer)).put("a", 11).delete(12).get("a", 14, 11.1, node="n5")
    assert story.is_red("resurrection")
    assert story.is_red("stale-reads")


# --- losses -------------------------------------------------------------------------------------------


def test_one_lost_replica_loses_nothing():
    story = Story().add(Fault("kill", ("n1",), 2, 3)).put("a", 0).put("b", 1).get("a", 4, 0.1)
    assert story.is_red("stale-reads")


def test_two_lost_replicas_before_all_is_level_void_what_was_before():
    kills = [Fault("kill", ("n1",), 2, 3), Fault("kill", ("n2",), 4, 5)]
    assert not Story().add(*kills).put("a", 0).put("b", 1).get("a", 6, 0.1).is_red("stale-reads")
    assert Story().add(*kills).put("b", 7).get(None, 8).is_red("stale-reads"), "what comes after counts"
    between = Story().add(*kills, Level(3.5)).put("a", 0).put("b", 1).get("a", 6, 0.1)
    assert between.is_red("stale-reads"), "all was level between"


def test_a_node_that_leaves_the_ring_loses_what_it_has():
    smaller = RING[:3]
    rings = [*settled(), *settled(at_s=2.0), *change(2.2, smaller, "n1", "n2", "n3")]
    evicted_and_killed = Story().add(*rings, Fault("kill", ("n1",), 3, 4)).put("a", 0).put("b", 1)
    assert not evicted_and_killed.get("a", 6, 0.1).is_red("stale-reads")
    killed_and_evicted = Story().add(*rings, Fault("kill", ("n4",), 1.8, 9)).put("a", 0).put("b", 1)
    assert killed_and_evicted.get("a", 6, 0.1).is_red("stale-reads"), "the same node is lost once"


# --- sessions -----------------------------------------------------------------------------------------


def test_a_process_reads_what_it_wrote():
    assert Story().put("a", 0).get("a", 1, 0.1).is_green("read-your-writes")
    assert Story().put("a", 0).put("b", 1).get("a", 2, 0.1).is_red("read-your-writes")
    assert Story().put("a", 0).put("b", 1).get(None, 2).is_red("read-your-writes")
    assert not Story().put("a", 0).put("b", 1, by="c2").get("a", 2, 0.1).is_red("read-your-writes")
    assert Story().put("a", 0).delete(1).get("a", 2, 0.1).is_red("read-your-writes")


def test_a_process_never_reads_less_than_it_has_read():
    partial = Story().put("a", 0).unknown_put("b", 1).get("b", 2, 1.2, by="c2").get("a", 3, 0.1, by="c3")
    assert partial.judged("monotonic-reads").colour == "unknown", "no process read twice"
    assert partial.get("a", 4, 0.1, by="c2").is_red("monotonic-reads")
    assert Story().put("a", 0).get("a", 1, 0.1).get(None, 2).is_red("monotonic-reads")
    assert Story().put("a", 0).get("a", 1, 0.1).delete(2).get(None, 3).is_green("monotonic-reads")


# --- resurrection -------------------------------------------------------------------------------------


def test_no_deleted_value_comes_back():
    assert Story().put("a", 0).delete(1).get("a", 2, 0.1).is_red("resurrection")
    assert Story().put("a", 0).delete(1).put("b", 2).get("b", 3, 2.1).is_green("resurrection")
    assert not Story().put("a", 0).delete(1, outcome="info").get("a", 2, 0.1).is_red("resurrection")
    assert not Story().put("a", 0).delete(1, until_s=3).get("a", 2, 0.1).is_red("resurrection"), "not yet"
    assert not Story().put("a", 0).delete(1).get("a", 2, 0.1, quorum="1").is_red("resurrection"), "by no strict read"


def test_no_deleted_value_comes_back_while_the_ring_changes_either():
    rings = [*settled(), *settled(at_s=1.9), *change(2.0, RING[:3], "n1", "n2"), *change(3.0, RING[:3], "n3")]
    assert Story().add(*rings).put("a", 0).delete(1).get("a", 2.1, 0.1).is_red("resurrection")


def test_no_value_comes_back_after_its_deadline():
    assert Story().put("a", 0, ttl_ms=1000).get("a", 1.9, 0.1).is_green("resurrection"), "within the skew of clocks"
    assert Story().put("a", 0, ttl_ms=1000).get("a", 2.1, 0.1).is_red("resurrection")


# --- atomic -------------------------------------------------------------------------------------------


def test_values_that_follow_each_other_are_atomic():
    story = Story().put("a", 0).get("a", 1, 0.1).put("b", 2).get("b", 3, 2.1).get("b", 4, 2.1, by="c2")
    assert story.is_green("atomic")
    assert story.judged("atomic").judged == 3


def test_a_value_that_two_readers_see_in_another_order_is_not_atomic():
    story = Story().put("a", 0).put("b", 1, until_s=9)
    assert story.get("b", 2, 1.1, by="c2").get("a", 3, 0.1, by="c3").is_red("atomic")


def test_a_value_that_nobody_knows_of_may_appear_late_and_then_stays():
    late = Story().put("a", 0).unknown_put("b", 1).get("a", 2, 0.1)
    assert late.get("b", 5, 1.2).get("b", 6, 1.2).is_green("atomic")
    assert late.get("a", 7, 0.1).is_red("atomic")


def test_a_write_that_stamped_again_is_judged_by_its_versions():
    overtaken = Story().put("a", 0, until_s=6, stamp=5.0).put("b", 1, until_s=6, stamp=1.1)
    story = overtaken.get("a", 2, 0.1).get("b", 3, 1.1).get("a", 5.2, 5.0)
    assert story.is_green("atomic"), "its first stamp was read before it was overtaken"


def test_the_first_absence_is_a_value_like_any_other_where_nothing_else_explains_one():
    assert Story().get(None, 0).put("a", 1).get("a", 2, 1.1).is_green("atomic")
    assert Story().put("a", 0).get("a", 1, 0.1).get(None, 2).is_red("atomic")
    assert not Story().put("a", 0).get("a", 1, 0.1).get(None, 2).delete(3, outcome="info").is_red("atomic")


def test_a_delete_without_a_known_version_takes_part():
    assert Story().put("a", 0).delete(1, stamp=None).get("a", 2, 0.1).is_red("atomic")


# --- versions -----------------------------------------------------------------------------------------


def test_a_version_names_one_value():
    assert Story().put("a", 0).get("a", 1, 0.1).is_green("versions")
    assert Story().put("a", 0).put("b", 1, until_s=9).get("b", 1, 0.1).is_red("versions")


def test_later_writes_have_later_versions():
    assert Story().put("a", 0, stamp=0.3).put("b", 1, stamp=0.2).is_red("versions")
    assert Story().put("a", 0, stamp=0.3, until_s=2).put("b", 1, stamp=0.2).is_green("versions"), "they overlap"
    assert Story().put("a", 0, stamp=0.3).put("b", 1, stamp=0.2, outcome="info").is_green("versions")


def test_no_version_is_far_ahead_of_the_clock():
    assert Story().put("a", 0, stamp=1.0).is_green("versions"), "by what one clock may be ahead of another"
    assert Story().put("a", 0, stamp=3600.0).is_red("versions")
    assert Story().unknown_put("a", 0).get("a", 2, 3600.0).is_red("versions")


# --- what is left in the end --------------------------------------------------------------------------


def test_what_was_acknowledged_is_with_every_level_owner():
    assert Story().put("a", 0).kept(n1=0.1, n2=0.1, n3=0.1).is_green("acknowledged-lost")
    assert Story().put("a", 0).kept(n1=0.1, n2=0.1, n3=9).is_green("acknowledged-lost"), "or newer"
    behind = Story().put("a", 0).put("b", 1).kept(n1=1.1, n2=0.1, n3=1.1).judged("acknowledged-lost")
    assert (behind.colour, behind.figures) == ("red", {"keys_lost": 0, "keys_behind": 1})
    lost = Story().put("a", 0).put("b", 1).kept(n1=0.1, n2=0.1, n3=None).judged("acknowledged-lost")
    assert (lost.colour, lost.figures) == ("red", {"keys_lost": 1, "keys_behind": 0})


def test_who_is_no_owner_or_not_level_is_not_asked():
    story = Story().put("a", 0).kept(n1=0.1)
    story.add(Holding("n2", "k", "absent", b"", is_owner=True, is_level=False))
    story.add(Holding("n4", "k", "absent", b"", is_owner=False, is_level=True))
    assert story.is_green("acknowledged-lost")
    assert Story().put("a", 0).judged("acknowledged-lost").colour == "unknown"


def test_what_was_deleted_or_is_over_may_be_absent():
    assert Story().put("a", 0).delete(1).kept(n1=("tombstone", 1.1), n2=None).is_green("acknowledged-lost")
    assert Story().put("a", 0).delete(1, stamp=None).kept(n1=None, n2=None).is_green("acknowledged-lost")
    assert Story().put("a", 0).delete(1, stamp=None).kept(n1=0.1).is_red("acknowledged-lost")
    assert Story().put("a", 0, ttl_ms=9).kept(n1=("ghost", 0.1), n2=None).is_green("acknowledged-lost")
    assert Story().put("a", 0).kept(n1=None).is_red("acknowledged-lost")
    assert (
        Story()
        .put("a", 0)
        .delete(1, outcome="info", stamp=None, until_s=1.2)
        .kept(n1=None)
        .is_green("acknowledged-lost")
    )


def test_each_taking_of_stock_counts():
    story = Story().put("a", 0).put("b", 1).kept(n1=1.1, n2=0.1).kept(n1=1.1, n2=1.1, at_s=70.0)
    assert story.is_red("acknowledged-lost")


def test_what_was_acknowledged_in_a_ring_too_small_is_unknown():
    rings = [*settled("n1", owners=("n1",)), *settled("n1", at_s=3.0)]
    verdict = Story().add(*rings).put("a", 0).kept(n1=None).judged("acknowledged-lost")
    assert (verdict.colour, verdict.unknown) == ("unknown", 1)
    assert not Story().add(*rings).put("a", 0).delete(1).get("a", 5, 0.1).is_red("resurrection")
    assert Story().add(*rings).put("a", 4).kept(n1=None).is_red("acknowledged-lost")


def test_what_is_read_after_healing_is_not_less_than_was_acknowledged():
    healed = Story().add(Fault("pause", ("n1",), 2, 3), Level(4)).put("a", 0).put("b", 1).kept(n1=1.1)
    assert healed.get("a", 3.5, 0.1).is_green("acknowledged-lost"), "not healed yet"
    assert healed.get("a", 5, 0.1).is_red("acknowledged-lost")
    assert Story().add(Level(4)).put("a", 0).kept(n1=0.1).get(None, 5).is_red("acknowledged-lost")
    assert Story().add(Level(4)).put("a", 0).get(None, 5).is_red("acknowledged-lost"), "though nobody told what is kept"
    assert Story().add(Level(4)).put("a", 0).get("a", 5, 0.1).is_green("acknowledged-lost")


def test_what_was_acknowledged_before_too_many_losses_is_unknown():
    kills = [Fault("kill", ("n1",), 2, 3), Fault("kill", ("n2",), 4, 5)]
    verdict = Story().add(*kills).put("a", 0).kept(n1=None).judged("acknowledged-lost")
    assert (verdict.colour, verdict.unknown) == ("unknown", 1)
    assert Story().add(*kills).put("a", 0).put("b", 6).kept(n1=None).is_red("acknowledged-lost")


def test_owners_have_the_same_in_the_end():
    assert Story().kept(n1=1, n2=1).is_green("replicas-converge")
    assert Story().kept(n1=1, n2=2).is_red("replicas-converge")
    assert Story().kept(n1=1, n2=None).is_red("replicas-converge")
    assert Story().kept(n1=("ghost", 1), n2=None).is_green("replicas-converge")
    assert Story().kept(n1=("tombstone", 1), n2=None).is_red("replicas-converge")
    assert Story().kept(n1=1, n2=2).kept(n1=2, n2=2, at_s=70.0).is_green("replicas-converge"), (
        "when it was looked at last"
    )
    assert Story().kept(n1=2, n2=2).kept(n1=1, n2=2, at_s=70.0).is_red("replicas-converge")


# --- membership and hints -----------------------------------------------------------------------------


def test_a_death_that_no_fault_explains_is_false():
    assert Story().is_green("false-deaths")
    assert Story().add(Death("n1", "n2", 5)).is_red("false-deaths")
    assert Story().add(Fault("kill", ("n2",), 4, 9), Death("n1", "n2", 5)).is_green("false-deaths")
    assert Story().add(Fault("pause", ("n1",), 4, 9), Death("n1", "n2", 10)).is_green("false-deaths"), "the observer's"
    assert Story().add(Fault("loss", (), 4, 9), Death("n1", "n2", 10)).is_green("false-deaths")
    assert Story().add(Fault("kill", ("n3",), 4, 9), Death("n1", "n2", 5)).is_red("false-deaths")
    assert Story().add(Fault("kill", ("n2",), 4, 9), Death("n1", "n2", 60)).is_red("false-deaths"), "long ago"
    assert Story().add(Fault("kill", ("n2",), 6, 9), Death("n1", "n2", 5)).is_red("false-deaths"), "before it"


def sampled(until_s: float, digest_of):
    moments_s = [number / 5 for number in range(round(until_s * 5))]
    return [Sample(node, at_s, digest_of(node, at_s), RING) for at_s in moments_s for node in RING]


def test_rings_become_equal_after_the_last_fault():
    healing = Story(ring_within_s=3.0).add(Fault("partition", ("n1",), 1, 4))
    verdict = healing.add(*sampled(10, lambda node, at_s: "old" if node == "n1" and at_s < 6 else "new"))
    assert verdict.is_green("rings-converge")
    assert verdict.judged("rings-converge").figures["converged_s"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    "digest_of",
    [
        lambda node, _at_s: "old" if node == "n1" else "new",
        lambda node, at_s: "old" if node == "n1" and at_s < 8 else "new",
        lambda node, at_s: "other" if node == "n1" and 6 < at_s < 8 else "new",
    ],
    ids=["never", "late", "not for good"],
)
def test_rings_that_differ_for_too_long_are_red(digest_of):
    story = Story(ring_within_s=3.0).add(Fault("partition", ("n1",), 1, 4)).add(*sampled(10, digest_of))
    assert story.is_red("rings-converge")


def test_rings_that_were_not_followed_are_unknown():
    assert Story().judged("rings-converge").colour == "unknown"
    three = [item for item in sampled(10, lambda *_: "new") if item.node != "n2"]
    assert Story().add(*three).judged("rings-converge").colour == "unknown"
    assert Story().add(*three, Fault("kill", ("n2",), 1, inf)).is_green("rings-converge"), "who is gone has no ring"
    gap = [item for item in sampled(10, lambda *_: "new") if item.node != "n2" or not 3 < item.at_s < 5]
    assert Story().add(*gap).judged("rings-converge").colour == "unknown"


def test_hints_are_delivered_redirected_expired_dropped_or_pending():
    assert Story().add(Sample("n1", 1, "", (), (15, 1, 2, 3, 4, 5))).is_green("hints-balance")
    assert Story().add(Sample("n1", 1, "", (), (16, 1, 2, 3, 4, 5))).is_red("hints-balance")
    assert Story().add(*settled()).judged("hints-balance").colour == "unknown"


# --- clocks -------------------------------------------------------------------------------------------


def test_of_a_node_with_a_bad_clock_no_version_is_guessed():
    bad = Fault("clock", ("n1",), 0, 9)
    assert Story().put("a", 0, stamp=0.5, node="n2").delete(1, stamp=None).get("a", 3, 0.5).is_red("resurrection")
    assert not Story().add(bad).put("a", 0, node="n2").delete(1, stamp=None).get("a", 3, 0.1).is_red("resurrection")
    info = Story().add(bad).delete(1, outcome="info", stamp=None, until_s=1.5).put("b", 5, node="n2")
    assert info.get(None, 6, node="n2").is_green("stale-reads"), "its delete may be from the far future"


# --- the whole ----------------------------------------------------------------------------------------


def busy(count: int = 120) -> Story:
    story = Story().add(*settled())
    for number in range(count):
        story.put(f"v{number}", number).get(f"v{number}", number + 0.6, number + 0.1, until_s=number + 0.7)
    return story


def test_a_run_that_serves_is_judged_by_all_checks():
    report = check(busy().history)
    assert report.is_served
    assert report.red == []
    assert report.verdict("atomic").colour == "green"


def test_a_run_that_served_too_little_is_unknown_and_not_green():
    report = check(busy(40).history)
    assert not report.is_served
    assert {item.colour for item in report.verdicts} == {"unknown"}
    refused = busy(120)
    for number in range(1200):
        refused.tell("get", None, 200 + number, outcome="fail")
    assert not check(refused.history).is_served, "most of it was refused"


def test_a_violation_is_red_however_little_was_served():
    assert check(busy(40).get("v0", 50, 0.1).history).verdict("stale-reads").colour == "red"


def test_violations_are_counted_and_few_are_kept():
    story = busy()
    for number in range(100):
        story.get("v0", 200 + number, 0.1)
    verdict = check(story.history).verdict("stale-reads")
    assert (verdict.violation_count, len(verdict.violations)) == (100, checkers.VIOLATIONS_MAX)


@st.composite
def atomic_runs(draw):
    """A register that really is atomic: each operation takes effect at some moment within it."""
    story, moments = Story(), draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    at_s, value, stamp = 0.0, None, None
    for number, step in enumerate(moments):
        at_s += step / 100
        before, after = (draw(st.integers(0, 40)) / 100 for _ in range(2))
        begun, over, by = max(0.0, at_s - before), at_s + after, draw(st.sampled_from(["c1", "c2", "c3"]))
        match draw(st.sampled_from(["put", "get", "delete", "lost put", "late put"])):
            case "get":
                story.get(value, begun, stamp, until_s=over, by=by)
            case "put":
                value, stamp = f"v{number}", version(at_s, number)
                story.put(value, begun, until_s=over, stamp=stamp, by=by)
            case "delete":
                story.delete(begun, until_s=over, stamp=draw(st.sampled_from([version(at_s, number), None])), by=by)
                value, stamp = None, None
            case "lost put":
                story.unknown_put(f"v{number}", begun, by=by)
            case "late put":
                value, stamp = f"v{number}", version(at_s, number)
                story.unknown_put(value, begun, by=by)
    return story


@settings(max_examples=500, deadline=None)
@given(atomic_runs())
def test_what_an_atomic_register_did_is_never_red(story):
    story.history.sort()
    assert [item.name for item in check(story.history).red] == []


@settings(max_examples=200, deadline=None)
@given(atomic_runs(), st.randoms(use_true_random=False))
def test_more_unknown_outcomes_never_make_a_run_red(story, random):
    story.history.operations = [
        item if item.kind == "get" or random.random() < 0.5
        else item._replace(outcome="info", completed_s=inf, version=b"")
        for item in story.history.operations
    ]  # fmt: skip
    story.history.sort()
    assert [item.name for item in check(story.history).red] == []


def test_checks_do_not_change_the_history():
    story = busy()
    before = changed(story.history, operations=list(story.history.operations))
    check(story.history)
    assert story.history == before
