"""The machines of one read and one write: every order of replies is an input."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.model import Failure
from zephyr.replication.quorum import RESTAMPS_MAX, QuorumRead, QuorumWrite
from zephyr.store.record import pack_record

OWNERS = ("n1", "n2", "n3")


def version(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(8)


def record(number: int) -> bytes:
    return pack_record(version(number), b"value-%d" % number)


def test_a_read_asks_as_many_owners_as_it_needs_and_no_more():
    read = QuorumRead(OWNERS, 2)
    assert read.targets() == ("n1", "n2")
    assert read.targets() == ()


def test_a_read_asks_another_owner_for_each_that_fails():
    read = QuorumRead(OWNERS, 2)
    read.targets()
    read.on_failure("n1 is silent")
    assert read.targets() == ("n3",)
    read.on_record("n1", None)
    assert read.outcome() is None
    read.on_record("n1", record(1))
    outcome = read.outcome()
    assert outcome.failure is None
    assert outcome.record == record(1)
    assert (outcome.answered, outcome.asked) == (2, 3)


@pytest.mark.parametrize("order", list(itertools.permutations([record(1), record(3), None])))
def test_a_read_answers_with_the_highest_version_in_whatever_order_it_comes(order):
    read = QuorumRead(OWNERS, 3)
    read.targets()
    for answer in order:
        read.on_record("n1", answer)
    assert read.outcome().record == record(3)


def test_a_read_that_runs_out_of_owners_says_why():
    read = QuorumRead(OWNERS, 2)
    read.targets()
    for reason in ("n1 is silent", "n2 is silent"):
        read.on_failure(reason)
        read.targets()
    read.on_failure("n3 is silent")
    outcome = read.outcome()
    assert outcome.failure is Failure.UNAVAILABLE
    assert "n3 is silent" in outcome.detail


def test_a_write_is_done_at_its_quorum():
    write = QuorumWrite(OWNERS, 2)
    assert write.begin(version(5)) == OWNERS
    write.on_reply("n1", applied=True, existed=False, newest=version(5))
    assert write.outcome() is None
    write.on_reply("n1", applied=True, existed=True, newest=version(5))
    outcome = write.outcome()
    assert outcome.failure is None
    assert outcome.existed
    assert outcome.version == version(5)


def test_a_write_that_nobody_can_have_applied_is_unavailable_and_otherwise_unknown():
    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_failure("refused", uncertain=False)
    write.on_failure("refused", uncertain=False)
    assert write.outcome().failure is Failure.UNKNOWN, "the third owner may still apply it"
    write.on_failure("refused", uncertain=False)
    assert write.outcome().failure is Failure.UNAVAILABLE

    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_failure("refused", uncertain=False)
    write.on_failure("connection lost", uncertain=True)
    write.on_failure("refused", uncertain=False)
    assert write.outcome().failure is Failure.UNKNOWN


def test_a_write_overtaken_by_a_newer_version_is_to_be_stamped_above_it():
    write = QuorumWrite(OWNERS, 2)
    write.begin(version(5))
    write.on_reply("n1", applied=False, existed=True, newest=version(9))
    assert write.overtaken() == version(9)
    assert write.begin(version(10)) == OWNERS
    write.on_reply("n1", applied=True, existed=True, newest=version(10))
    write.on_reply("n1", applied=True, existed=True, newest=version(10))
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


@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_read_ends_once_all_asked_have_answered_or_failed(need: int, rng: random.Random):
    read = QuorumRead(OWNERS, need)
    pending = list(read.targets())
    while pending:
        pending.pop()
        if rng.random() < 0.5:
            read.on_record("n1", record(rng.randrange(5)))
        else:
            read.on_failure("silent")
        pending += read.targets()
    assert read.outcome() is not None


@given(st.integers(1, 3), st.lists(st.sampled_from(["ack", "lost", "refused"]), min_size=3, max_size=3))
def test_a_write_succeeds_exactly_when_its_quorum_acknowledged(need: int, replies: list[str]):
    write = QuorumWrite(OWNERS, need)
    write.begin(version(5))
    for reply in replies:
        if reply == "ack":
            write.on_reply("n1", applied=True, existed=False, newest=version(5))
        else:
            write.on_failure(reply, uncertain=reply == "lost")
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
