"""The slot of a key is Redis Cluster's, to the bit: redirects and hash tags of its clients depend on it."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot as redis_key_slot

from zephyr.config import SLOTS
from zephyr.ring.ring import key_slot


def crc16_xmodem(data: bytes) -> int:
    """CRC16 bit by bit, as the Redis Cluster specification defines it: polynomial 0x1021, initial value 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def test_slots_equal_those_of_the_redis_client_for_100_000_random_keys():
    rng = random.Random(16384)
    for _ in range(50_000):
        plain = rng.randbytes(rng.randrange(40))
        assert key_slot(plain) == redis_key_slot(plain), plain
        # Four letters of which two are braces: every arrangement of empty, nested and unclosed tags turns up.
        braced = bytes(rng.choices(b"{}ab", k=rng.randrange(12)))
        assert key_slot(braced) == redis_key_slot(braced), braced


@given(st.text(alphabet="{}aé", max_size=20).map(str.encode) | st.binary(max_size=64))
@example(b"")
@example(b"{}")
@example(b"}{")
@example(b"{{}}")
def test_any_key_has_the_slot_of_the_redis_client_and_one_within_the_table(key):
    assert key_slot(key) == redis_key_slot(key)
    assert 0 <= key_slot(key) < SLOTS


@pytest.mark.parametrize("key", [b"", b"a", b"foo", b"123456789", bytes(range(256)).replace(b"{", b"")])
def test_slot_is_the_crc16_of_the_specification_modulo_16384(key):
    assert key_slot(key) == crc16_xmodem(key) % 16384


def test_the_check_value_of_the_specification_is_met():
    assert crc16_xmodem(b"123456789") == 0x31C3
    assert key_slot(b"123456789") == 0x31C3


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"foo}bar{", b"foo}bar{"),
    ],
)
def test_only_the_first_hash_tag_counts_unless_it_is_empty_or_open(key, hashed):
    assert key_slot(key) == crc16_xmodem(hashed) % 16384
