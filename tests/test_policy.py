"""The membership policy: a rule for everything, and what holds across all of them."""

from itertools import product
from typing import get_args

import pytest

from zephyr.policy import POLICY, EtcdWord, Facts, GossipWord, Lead, rule_for

EVERYTHING = [
    Facts(*words) for words in product(get_args(Lead), get_args(EtcdWord), (True, False), get_args(GossipWord))
]


def test_there_is_a_rule_for_everything():
    for facts in EVERYTHING:
        assert rule_for(facts).sentence


def test_each_rule_is_the_first_for_something():
    assert {rule_for(facts) for facts in EVERYTHING} == set(POLICY)


def test_nobody_is_sent_requests_whom_gossip_calls_dead_or_left():
    for facts in EVERYTHING:
        if facts.gossip in ("dead", "left"):
            assert not rule_for(facts).routed, facts


def test_while_etcds_word_does_not_make_the_ring_the_one_that_stands_does():
    for facts in EVERYTHING:
        if facts.lead != "etcd":
            assert rule_for(facts).owner == facts.kept, facts


def test_while_etcd_leads_nobody_owns_data_without_a_registration_but_in_its_grace():
    for facts in EVERYTHING:
        if facts.lead == "etcd" and rule_for(facts).owner:
            assert facts.etcd == "registered" or (facts.etcd == "lapsed" and facts.gossip == "alive"), facts


@pytest.mark.parametrize("rule", POLICY, ids=lambda rule: f"{rule.lead}-{rule.etcd}-{rule.kept}-{rule.gossip}")
def test_the_words_of_a_rule_are_words_of_the_table(rule):
    for column, words in ((rule.lead, Lead), (rule.etcd, EtcdWord), (rule.gossip, GossipWord)):
        assert set(column.split("|")) <= {"", *get_args(words)}
