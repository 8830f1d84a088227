"""Zones against the definition: every order is tried on histories that are small enough."""

from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaos.zones import conflicts

INITIAL = ("initial", -inf, -inf)


def is_atomic_by_trying(writes, reads) -> bool:
    """Whether some order of all operations keeps to real time, and each read sees the write before it.

    A write that is never over may have happened or not.
    """
    operations = [("write", *item) for item in writes] + [("read", *item) for item in reads]

    def goes_on(left, value) -> bool:
        if all(over_s == inf and kind == "write" for kind, _, _, over_s in left):
            return True
        for number, (kind, label, begun_s, _) in enumerate(left):
            rest = left[:number] + left[number + 1 :]
            if any(over_s < begun_s for _, _, _, over_s in rest):
                continue
            if (kind == "write" or label == value) and goes_on(rest, label):
                return True
        return False

    return goes_on(operations, None)


@st.composite
def histories(draw):
    """Up to four writes and four reads of what they wrote, at moments that are often equal."""
    moments = st.integers(0, 9)

    def span():
        begun = draw(moments)
        return float(begun), float(begun + draw(st.integers(0, 4)))

    writes = [INITIAL]
    for number in range(draw(st.integers(0, 3))):
        begun, over = span()
        writes.append((f"v{number}", begun, inf if draw(st.booleans()) and draw(st.booleans()) else over))
    reads = [(draw(st.sampled_from(writes))[0], *span()) for _ in range(draw(st.integers(0, 4)))]
    return writes, reads


@settings(max_examples=3000, deadline=None)
@given(histories())
@example(([INITIAL, ("a", 0.0, 1.0)], [("initial", 2.0, 3.0)]))
@example(([INITIAL, ("a", 0.0, inf)], [("a", 2.0, 3.0), ("initial", 4.0, 5.0)]))
def test_zones_say_what_trying_every_order_says(history):
    writes, reads = history
    assert (not conflicts(writes, reads)) == is_atomic_by_trying(writes, reads), history


def test_about_as_many_small_histories_are_atomic_as_not():
    verdicts = []

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(histories())
    def collect(history):
        verdicts.append(not conflicts(*history))

    collect()
    assert 0.1 < sum(verdicts) / len(verdicts) < 0.95, "or agreement means little"


@pytest.mark.parametrize(
    ("writes", "reads", "kinds"),
    [
        ([("a", 0, 1), ("b", 2, 3)], [("b", 4, 5)], []),
        ([("a", 0, 1), ("b", 2, 3)], [("a", 4, 5)], ["within"]),
        ([("a", 0, 1), ("b", 0, 1)], [("a", 2, 3), ("b", 4, 5), ("a", 6, 7)], ["overlap"]),
        ([("a", 0, inf)], [("a", 2, 3), ("a", 8, 9)], []),
        ([("a", 4, 5)], [("a", 1, 2)], ["future"]),
        ([("a", 0, 1), ("b", 1, 2)], [("b", 2, 3)], []),
    ],
)
def test_each_kind_of_conflict_is_named(writes, reads, kinds):
    assert [item.kind for item in conflicts(writes, reads)] == kinds


def test_a_zone_that_reaches_over_several_conflicts_with_each_that_it_meets():
    writes = [("a", 0, 1), ("b", 2, 3), ("c", 6, 7)]
    reads = [("a", 10, 11), ("b", 4, 5), ("c", 8, 9)]
    found = conflicts(writes, reads)
    assert [(item.kind, item.label, item.other) for item in found] == [("overlap", "a", "b"), ("overlap", "a", "c")]


def test_a_read_of_what_is_not_there_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError):
        conflicts([("a", 0, 1)], [("b", 0, 1)])
