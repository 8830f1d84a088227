"""The membership policy: what follows from what etcd and gossip say of one member, as one table.

Two questions, two witnesses: who owns data is etcd's to say, who can be sent to is gossip's. Each rule tells, for one
combination, whether the member owns slots, whether it is sent requests, and why, in a sentence for a person. The first
rule that fits counts. Time is not in here: `zephyr.cluster` turns it into the words below (a grace that is over makes
`lapsed` into `absent`), and takes the ring from the column `owner`.

*Lead*, whose word makes the ring:

    etcd      its registrations, read here or by a peer, or its last word while it is silent for a moment
    held      the last settled ring: etcd lost most of it at once, and gossip hears them
    gossip    nobody heard reaches etcd: the last committed view, less those that gossip has called dead for long
    takeover  etcd is back: that ring stands until everybody has registered
    cold      no committed view is known to anyone heard: nothing, or the provisional ring of a cold start
    alone     no etcd is configured: whoever gossip hears

*etcd*, of the member: registered; joining; removed (registered, but that life was removed while gossip led);
lapsed (its registration went without a word, a moment ago); absent.

*kept*: whether it is in the ring that stands while etcd's word does not make it.

*gossip*: alive, suspect, dead, left, unknown (never met), overdue (unknown, and silent by TCP, for too long).
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, TypeAlias

Lead: TypeAlias = Literal["etcd", "held", "gossip", "takeover", "cold", "alone"]
EtcdWord: TypeAlias = Literal["registered", "joining", "removed", "lapsed", "absent"]
GossipWord: TypeAlias = Literal["alive", "suspect", "dead", "left", "unknown", "overdue"]


class Facts(NamedTuple):
    """What is known of one member at one moment."""

    lead: Lead
    etcd: EtcdWord
    kept: bool
    gossip: GossipWord


class Rule(NamedTuple):
    """One line of the table. An empty column fits everything; words of one column stand with `|` between."""

    lead: str
    etcd: str
    kept: bool | None
    gossip: str
    owner: bool
    routed: bool
    """Sent requests: as an owner, or to coordinate where it owns nothing."""
    verdict: str
    sentence: str
    """May name {state}, {gossip} and {gossip_grace}, and {gossip_age} and {etcd_age}: see `MemberView.told`."""

    def fits(self, facts: Facts) -> bool:
        """Whether this rule speaks of such a member."""
        return (
            (not self.lead or facts.lead in self.lead.split("|"))
            and (not self.etcd or facts.etcd in self.etcd.split("|"))
            and (self.kept is None or self.kept == facts.kept)
            and (not self.gossip or facts.gossip in self.gossip.split("|"))
        )


POLICY = (
    # lead, etcd, kept, gossip -> owner, routed, verdict, sentence
    Rule("etcd", "registered", None, "alive", True, True, "agree",
         "registered and {state}"),
    Rule("etcd", "registered", None, "suspect", True, True, "gossip-first",
         "gossip suspects it for {gossip_age}, etcd holds its lease; it is asked again, and reads go to it last"),
    Rule("etcd", "registered", None, "unknown", True, True, "etcd-first",
         "etcd holds its lease, gossip has not met it yet; it is tried over TCP"),
    Rule("etcd", "registered", None, "overdue", True, False, "etcd-first",
         "etcd holds its lease, gossip never met it and TCP is silent; leaves the ring when its eviction commits or "
         "the lease ends"),
    Rule("etcd", "registered", None, "dead", True, False, "gossip-first",
         "gossip says dead for {gossip_age}, etcd still holds its lease; leaves the ring when its eviction commits or "
         "the lease ends"),
    Rule("etcd", "registered", None, "left", True, False, "gossip-first",
         "gossip says that it left {gossip_age} ago, etcd still holds its lease; leaves the ring when its eviction "
         "commits or the lease ends"),
    Rule("etcd", "removed", None, "", False, False, "gossip-first",
         "gossip says {gossip} for {gossip_age} and removed it while etcd was away; etcd still holds its lease until "
         "its eviction commits"),
    Rule("etcd", "joining", None, "alive|suspect|unknown", False, True, "pending",
         "registered as joining; owns nothing yet"),
    Rule("etcd", "joining", None, "", False, False, "gossip-first",
         "gossip says {gossip}, etcd has it as joining; owns nothing"),
    Rule("etcd", "lapsed", None, "alive", True, True, "unregistered",
         "gossip says alive, etcd lost its registration {etcd_age} ago; it has a moment to register again"),
    Rule("etcd", "absent", None, "alive", False, True, "unregistered",
         "gossip says alive, etcd has no registration for {etcd_age}; it may coordinate, and owns nothing"),
    Rule("etcd", "absent|lapsed", None, "", False, False, "agree",
         "gossip says {gossip}, and etcd has no registration"),

    Rule("held", "", True, "dead|left|overdue", True, False, "held",
         "gossip says {gossip} for {gossip_age}; the last ring is held until the others have registered again"),
    Rule("held", "registered", True, "", True, True, "agree",
         "registered again; the last ring is held until all are"),
    Rule("held", "", True, "", True, True, "held",
         "etcd lost its registration {etcd_age} ago, gossip says {gossip}; the last ring is held until all register "
         "again"),
    Rule("held", "registered|joining", False, "alive|suspect|unknown", False, True, "held",
         "registered, and joins the ring when the held one is let go"),
    Rule("held", "", False, "alive", False, True, "unregistered",
         "gossip says alive, etcd has no registration; it may coordinate, and owns nothing"),
    Rule("held", "absent|lapsed", False, "", False, False, "agree",
         "gossip says {gossip}, and etcd has no registration"),
    Rule("held", "", False, "", False, False, "gossip-first",
         "gossip says {gossip}, etcd has it registered; owns nothing while the last ring is held"),

    Rule("gossip", "", True, "alive|suspect|unknown|overdue", True, True, "unconfirmed",
         "gossip says {gossip}, etcd cannot be reached by anyone heard; the last committed ring stands"),
    Rule("gossip", "", True, "dead|left", True, False, "gossip-first",
         "gossip says {gossip} for {gossip_age}, etcd cannot be reached; leaves the ring after {gossip_grace}, where "
         "most of the last ring is heard"),
    Rule("gossip", "", False, "alive|suspect", False, True, "unconfirmed",
         "gossip says {gossip}, etcd cannot be reached; it may coordinate, and becomes an owner when etcd is back"),
    Rule("gossip", "", False, "", False, False, "gossip-first",
         "gossip says {gossip}, etcd cannot be reached; it is out of the ring"),

    Rule("takeover", "", True, "dead|left", True, False, "gossip-first",
         "gossip says {gossip} for {gossip_age}; etcd is back, and takes over when everybody has registered"),
    Rule("takeover", "registered", True, "", True, True, "agree",
         "registered; etcd is back, and takes over when everybody has registered"),
    Rule("takeover", "", True, "", True, True, "unregistered",
         "gossip says {gossip}, not registered yet; etcd is back, and takes over when everybody has registered"),
    Rule("takeover", "", False, "alive|suspect", False, True, "held",
         "gossip says {gossip}; joins the ring when etcd takes over"),
    Rule("takeover", "", False, "", False, False, "gossip-first",
         "gossip says {gossip}; it is out of the ring"),

    Rule("cold", "", True, "alive|suspect|unknown|overdue", True, True, "unconfirmed",
         "gossip says {gossip}, etcd was never reached by anyone heard; the ring is provisional"),
    Rule("cold", "", True, "", True, False, "gossip-first",
         "gossip says {gossip} for {gossip_age}, etcd was never reached; leaves the ring after {gossip_grace}"),
    Rule("cold", "", False, "alive|suspect", False, True, "unconfirmed",
         "gossip says {gossip}, etcd was never reached by anyone heard; there is no ring yet"),
    Rule("cold", "", False, "", False, False, "gossip-first",
         "gossip says {gossip}, etcd was never reached"),

    Rule("alone", "", True, "alive|suspect|unknown|overdue", True, True, "agree",
         "gossip says {gossip}; no etcd is configured"),
    Rule("alone", "", True, "", True, False, "gossip-first",
         "gossip says {gossip} for {gossip_age}; leaves the ring after {gossip_grace}"),
    Rule("alone", "", False, "", False, False, "agree",
         "gossip says {gossip}; no etcd is configured"),
)  # fmt: skip


@cache  # There are a few hundred combinations, and a look at 200 members must not take long.
def rule_for(facts: Facts) -> Rule:
    """Return the first rule that fits: there is one for everything."""
    return next(rule for rule in POLICY if rule.fits(facts))
