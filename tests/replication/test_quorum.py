"""The machines of one read and one write: every order of replies is an input."""

from hypothesis import given
from hypothesis import strategies as st

from zephyr.model import Failure
from zephyr.replication.quorum import NO_VERSION, RESTAMPS_MAX, QuorumRead, QuorumWrite
from zephyr.store.record import pack_record, record_version

OWNERS = ("n1", "n2", "n3")


def version(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(8)


def record(number: int) -> bytes:
    return pack_record(version(number), b"value-%d" % number)


def test_a_read_asks_as_many_owners_as_it_needs_and_no_more():
    read = QuorumRead(OWNERS, 2)
    assert read.asks() == [("n1", True), ("n2", False)]
    assert read.asks() == []


def test_a_read_asks_another_owner_for_each_that_fails():
    read = QuorumRead(OWNERS, 2)
    read.asks()
    read.on_failure("n1", "n1 is silent")
    assert read.asks() == [("n3", True)], "the record is still to be had"
    read.on_version("n2", NO_VERSION)
    assert read.outcome() is None
    read.on_record("n3", record(1))
    assert read.asks() == []
    assert read.repairs() == ("n2",)
    read.on_repaired("n2")
    read.repairs()
    outcome = read.outcome()
    assert outcome.failure is None
    assert outcome.record == record(1)
    assert (outcome.answered, outcome.asked) == (2, 3)


def test_a_mark_above_what_all_have_makes_it_a_miss():
    read = QuorumRead(OWNERS, 2)
    read.asks()
    read.on_record("n1", record(1))
    read.on_version("n2", version(1), version(2))
    assert (read.asks(), read.repairs()) == ([], ())
    assert read.outcome().record is None
    assert read.outdated == (version(2), ("n1", "n2"))


def test_a_read_that_runs_out_of_owners_says_why():
    read = QuorumRead(OWNERS, 2)
    read.asks()
    for node_id in OWNERS:
        read.on_failure(node_id, f"{node_id} is silent")
        read.asks()
    outcome = read.outcome()
    assert outcome.failure is Failure.UNAVAILABLE
    assert "n3 is silent" in outcome.detail


@st.composite
def replicas(draw):
    """What each of three replicas holds: (version of its entry or 0, mark without one, whether it is level)."""
    held = []
    for _ in OWNERS:
        number = draw(st.integers(0, 4))
        mark = draw(st.integers(0, 4)) if not number else 0
        held.append([number, mark, draw(st.booleans())])
    return held


@given(replicas(), st.integers(1, 3), st.randoms(use_true_random=False), st.floats(0, 0.4))
def test_a_read_of_any_replicas_in_any_order_is_the_newest_that_a_quorum_knows(held, need, rng, lossy):
    """A model of three replicas answers in any order; some calls fail; one more owner may be asked on the way."""
    state = dict(zip(OWNERS, held, strict=True))
    read = QuorumRead(OWNERS, need)
    calls: list[tuple[str, bool]] = []
    heard: dict[str, int] = {}
    while True:
        calls += read.asks()
        calls += [(node_id, False) for node_id in read.repairs()]
        if not calls or read.outcome() is not None:
            break
        node_id, is_full = calls.pop(rng.randrange(len(calls)))
        number, mark, is_level = state[node_id]
        if read.is_choice_left and rng.random() < 0.2:
            read.ask_one_more()
        if rng.random() < lossy:
            read.on_failure(node_id, f"{node_id} is silent")
            heard.pop(node_id, None)
        elif read.is_repairing(node_id):
            repaired = int.from_bytes(record_version(read.best)[:8], "big")
            if repaired > max(number, mark):
                state[node_id] = [repaired, 0, is_level]
            read.on_repaired(node_id)
            heard[node_id] = repaired
        else:
            found = version(number) if number else NO_VERSION
            if is_full:
                read.on_record(node_id, record(number) if number else None, version(mark), is_level=is_level)
            else:
                read.on_version(node_id, found, version(mark), is_level=is_level)
            heard[node_id] = number
    outcome = read.outcome()
    assert outcome is not None
    if outcome.failure is not None:
        assert outcome.failure is Failure.UNAVAILABLE
        return
    level = [node_id for node_id in heard if state[node_id][2]]
    assert len(level) >= need
    marks = [held[OWNERS.index(node_id)][1] for node_id in level if not held[OWNERS.index(node_id)][0]]
    newest = max(heard.values())
    if newest and newest >= max(marks, default=0):
        assert outcome.record == record(newest)
    else:
        assert outcome.record is None
    if need > 1 and outcome.record is not None:
        taken = [node_id for node_id in level if max(state[node_id][:2]) >= newest]
        assert len(taken) >= need, "a later quorum read is not older"


def test_a_write_is_done_at_its_quorum():
    write = QuorumWrite(OWNERS, 2)
    assert write.begin(version(5)) == OWNERS
    write.on_reply("n1", applied=True, existed=False, newest=version(5))
    assert write.outcome() is None
    write.on_reply("n2", applied=True, existed=True, newest=version(5))
    outcome = write.outcome()
    assert outcome.failure is None
    assert outcome.existed
    assert outcome.version == version(5)


def test_a_write_that_nobody_can_have_applied_is_unavailable_and_otherwise_unknown():
    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_failure("n1", "refused", uncertain=False)
    write.on_failure("n2", "refused", uncertain=False)
    assert write.outcome().failure is Failure.UNKNOWN, "the third owner may still apply it"
    write.on_failure("n3", "refused", uncertain=False)
    assert write.outcome().failure is Failure.UNAVAILABLE

    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_failure("n1", "refused", uncertain=False)
    write.on_failure("n2", "connection lost", uncertain=True)
    write.on_failure("n3", "refused", uncertain=False)
    assert write.outcome().failure is Failure.UNKNOWN


def test_owners_that_missed_a_write_are_named_once_and_those_that_refused_it_are_not():
    write = QuorumWrite(OWNERS, 1)
    write.begin(version(5))
    write.on_reply("n1", applied=True, existed=False, newest=version(5))
    write.on_failure("n2", "connection lost", uncertain=True)
    assert write.missed() == ["n2"]
    assert write.missed() == []
    assert write.give_up() == ["n3"], "silence is a miss"
    write = QuorumWrite(OWNERS, 1)
    write.begin(version(5))
    write.on_failure("n2", "too large", uncertain=False, is_missed=False)
    assert write.missed() == []


def test_a_sloppy_write_counts_a_record_that_another_node_keeps_and_asks_the_next_where_one_does_not():
    write = QuorumWrite(OWNERS, 2, keepers=("n4", "n5"))
    write.begin(version(5))
    write.on_reply("n1", applied=True, existed=False, newest=version(5))
    assert write.on_failure("n2", "silent", uncertain=False) == "n4"
    assert write.is_keeping("n4") == "n2"
    assert write.on_keep_failed("n4", "full") == "n5"
    assert write.outcome() is None
    write.on_kept("n5")
    outcome = write.outcome()
    assert (outcome.failure, outcome.answered, outcome.hinted) == (None, 2, ("n2",))
    assert write.on_failure("n3", "silent", uncertain=False) == "", "nobody is left"


def test_a_conditional_write_that_finds_something_newer_is_a_conflict():
    write = QuorumWrite(OWNERS, 2, is_conditional=True)
    write.begin(version(5))
    write.on_reply("n2", applied=False, existed=True, newest=version(9))
    assert write.overtaken() is None
    assert write.outcome().failure is Failure.CONFLICT


def test_a_write_overtaken_by_a_newer_version_is_to_be_stamped_above_it():
    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_reply("n1", applied=False, existed=True, newest=version(9))
    assert write.overtaken() == version(9)
    assert write.begin(version(10)) == OWNERS
    write.on_reply("n1", applied=True, existed=True, newest=version(10))
    write.on_reply("n2", applied=True, existed=True, newest=version(10))
    assert write.outcome().version == version(10)


def test_a_write_gives_up_racing_after_a_bounded_number_of_stamps():
    write = QuorumWrite(OWNERS, 1)
    for number in range(RESTAMPS_MAX):
        write.begin(version(number))
        write.on_reply("n1", applied=False, existed=True, newest=version(100 + number))
        assert write.overtaken() is not None
    write.begin(version(50))
    write.on_reply("n1", applied=False, existed=True, newest=version(200))
    assert write.overtaken() is None
    assert write.outcome().failure is None


@given(st.integers(1, 3), st.lists(st.sampled_from(["ack", "lost", "refused"]), min_size=3, max_size=3))
def test_a_write_succeeds_exactly_when_its_quorum_acknowledged(need: int, replies: list[str]):
    write = QuorumWrite(OWNERS, need)
    write.begin(version(5))
    for node_id, reply in zip(OWNERS, replies, strict=True):
        if reply == "ack":
            write.on_reply(node_id, applied=True, existed=False, newest=version(5))
        else:
            write.on_failure(node_id, reply, uncertain=reply == "lost")
    outcome = write.outcome()
    if replies.count("ack") >= need:
        assert outcome.failure is None
    elif replies.count("refused") == len(replies):
        assert outcome.failure is Failure.UNAVAILABLE
    else:
        assert outcome.failure is Failure.UNKNOWN


def test_what_an_earlier_round_wrote_does_not_count_as_having_existed():
    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_reply("n1", applied=True, existed=False, newest=version(5))
    again = QuorumWrite(("n1", "n2", "n4"), 2, write)
    again.begin(version(6))
    again.on_reply("n1", applied=True, existed=True, newest=version(6))
    again.on_reply("n2", applied=True, existed=True, newest=version(6))
    assert not again.outcome().existed
    again.on_reply("n4", applied=True, existed=True, newest=version(6))
    assert again.outcome().existed, "no earlier round went there"
