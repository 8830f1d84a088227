"""Lists of entity tags: which versions they name, and what is no list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.api.conditions import TAGS_MAX, VERSION_NEVER, is_met, parse_condition
from zephyr.api.contract import entity_tag
from zephyr.model import Condition

ONE, TWO = bytes(range(16)), bytes(range(16, 32))
A, B = entity_tag(ONE), entity_tag(TWO)

ANY, NOTHING = (), (VERSION_NEVER,)
EVERYTHING = None
"""No condition at all."""


@pytest.mark.parametrize(
    ("raw", "match", "none_match"),
    [
        (b"*", ANY, ANY),
        (b" \t* ", ANY, ANY),
        (A, (ONE,), (ONE,)),
        (A + b"," + B, (ONE, TWO), (ONE, TWO)),
        (b" " + A + b" ,\t" + B + b" ", (ONE, TWO), (ONE, TWO)),
        (b", ," + A + b",,", (ONE,), (ONE,)),
        (b"W/" + A, NOTHING, (ONE,)),
        (b"W/" + A + b", " + B, (TWO,), (ONE, TWO)),
        (b'"other"', NOTHING, EVERYTHING),
        (b'""', NOTHING, EVERYTHING),
        (b'"*"', NOTHING, EVERYTHING),
        (b'W/"other", "\xc3\xa9"', NOTHING, EVERYTHING),
        (b'"a,b", ' + A, (ONE,), (ONE,)),
        (b'"other", ' + A, (ONE,), (ONE,)),
        (A.upper().replace(b"0", b"F"), NOTHING, EVERYTHING),
        (A[:-3] + b'"', NOTHING, EVERYTHING),
        (A[:-1] + b'0"', NOTHING, EVERYTHING),
    ],
)
def test_a_list_names_the_versions_of_its_tags_that_are_ours(raw, match, none_match):
    assert parse_condition(raw, is_match=True) == Condition(True, match)
    expected = None if none_match is EVERYTHING else Condition(False, none_match)
    assert parse_condition(raw, is_match=False) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b",", b" , ,", b"x", A[1:-1], A[:-1], A[1:], b"**", b"*, " + A, A + b", *", A + b" " + B,
        A + b";" + B, b"w/" + A, b"W /" + A, b"W/ " + A, b"W/*", b"'a'", b'"a b"', b'"a\tb"', b'"a\x7fb"', b'"a"b"',
        b'"a", b', b'"a\\"b"',
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_match", [True, False])
def test_what_is_no_list_is_refused(raw, is_match):
    with pytest.raises(ValueError, match="it "):
        parse_condition(raw, is_match=is_match)


def test_a_list_has_its_bound():
    tags = [entity_tag(number.to_bytes(16, "big")) for number in range(TAGS_MAX + 1)]
    condition = parse_condition(b", ".join(tags[:-1]), is_match=True)
    assert condition is not None
    assert len(condition.versions) == TAGS_MAX
    with pytest.raises(ValueError, match="more than"):
        parse_condition(b", ".join(tags), is_match=True)


@pytest.mark.parametrize(
    ("condition", "version", "is_so"),
    [
        (Condition(True, ()), ONE, True),
        (Condition(True, (ONE, TWO)), TWO, True),
        (Condition(True, (ONE,)), TWO, False),
        (Condition(True, NOTHING), ONE, False),
        (Condition(False, ()), ONE, False),
        (Condition(False, (ONE, TWO)), TWO, False),
        (Condition(False, (ONE,)), TWO, True),
    ],
)
def test_a_condition_is_met_or_not_by_the_version_that_stands(condition, version, is_so):
    assert is_met(condition, version) is is_so


spaces = st.text(" \t", max_size=3).map(str.encode)
foreign = st.binary(max_size=40).map(lambda raw: b'"' + bytes(b for b in raw if b == 0x21 or 0x23 <= b != 0x7F) + b'"')
elements = st.one_of(
    st.binary(min_size=16, max_size=16).map(lambda version: (version, False, entity_tag(version))),
    st.binary(min_size=16, max_size=16).map(lambda version: (version, True, b"W/" + entity_tag(version))),
    foreign.map(lambda tag: (None, False, tag)),
    st.just((None, False, b"")),
)


@given(st.lists(st.tuples(elements, spaces, spaces), min_size=1, max_size=20))
def test_every_list_however_it_is_spaced_names_its_versions(items):
    raw = b",".join(before + element[2] + after for element, before, after in items)
    if not any(element[2] for element, _, _ in items):
        with pytest.raises(ValueError, match="it "):
            parse_condition(raw, is_match=True)
        return
    strong = tuple(element[0] for element, _, _ in items if element[0] is not None and not element[1])
    named = tuple(element[0] for element, _, _ in items if element[0] is not None)
    assert parse_condition(raw, is_match=True) == Condition(True, strong or NOTHING)
    assert parse_condition(raw, is_match=False) == (Condition(False, named) if named else None)


@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_condition_or_a_refusal(raw):
    for is_match in (True, False):
        try:
            condition = parse_condition(raw, is_match=is_match)
        except ValueError as error:
            assert str(error).startswith("it ")  # noqa: PT017  # refusing is one of the right answers
        else:
            assert condition is None or condition.is_match == is_match
