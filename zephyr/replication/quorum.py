"""One machine per read and per write: every order of replies is an input.

A machine knows the owners of its key, counts what they say and tells when it is decided. It sends
nothing and keeps no time: `zephyr.replication.coordinator` does, for all of them.

Read: asks one of R owners for the record and the others for its version only, and for each that fails the
next owner. Where they differ, the newest is fetched, and those that were asked have it before the answer is given: a
later quorum read can then not be older. What a replica that is not level says is heard, and counts to nothing.
Nothing found is weak evidence in a cache, so a value found wins over it, unless a level replica has a *mark* above that
value: a tombstone, a ghost, or the floor of the slot of one that has no entry. Then it is a miss, and the value is
dropped where it was found.

Write: stamped once, sent to all N owners, decided at W acknowledgements. An owner that already holds
something newer makes the coordinator stamp again above it, so that the client's write really is the
last. A conditional write is not stamped again: the condition was about what stood before. Owners that did not
acknowledge are *missed*, and are to be told later (`zephyr.replication.hints`). In a sloppy write another live node may
keep the record for a missed owner, and that counts as its acknowledgement.
"""

from __future__ import annotations

from typing import NamedTuple

from zephyr.model import Failure, NodeId, Outcome, Version
from zephyr.store.record import record_version

RESTAMPS_MAX = 3
"""A write that is overtaken this often by newer ones is done: it was written, and overwritten."""
NO_VERSION: Version = b""
"""Of a replica without an entry: below every version."""


class _Seen(NamedTuple):
    """What a replica said that it has."""

    version: Version
    """Of its value or tombstone; `NO_VERSION` without one."""
    mark: Version
    """Without an entry: at or below which there was one, or may have been; `NO_VERSION` when nothing is known."""
    is_level: bool

    def is_behind(self, version: Version) -> bool:
        """Whether it lacks that version, and would take it."""
        return self.version < version and self.mark < version


class QuorumRead:
    """A read of one key from `need` of its `owners`, asked in the order given."""

    __slots__ = (
        "_background", "_fetching", "_full_from", "_next", "_outcome", "_reason", "_repairing", "_seen", "_spare",
        "_unconfirmed", "answered", "asked", "best", "has_unlevel", "need", "outdated", "owners", "waiting",
    )  # fmt: skip

    def __init__(self, owners: tuple[NodeId, ...], need: int) -> None:
        assert 1 <= need <= len(owners)
        self.owners = owners
        self.need = need
        self.best: bytes | None = None
        """The newest record that came."""
        self.answered = 0
        """Level replicas that have what the answer will be, or newer."""
        self.asked = 0
        self.waiting = 0
        """Replies to come, of asking and of repairing."""
        self.outdated: tuple[Version, tuple[NodeId, ...]] | None = None
        """A mark, and who has an entry below it that is to be dropped."""
        self._seen: dict[NodeId, _Seen] = {}
        self._repairing: dict[NodeId, None] = {}
        self._background: tuple[NodeId, ...] = ()
        self._full_from: NodeId = ""
        """Whose record is awaited or has come."""
        self._fetching: NodeId = ""
        """Who had something newer than the record that came, and is asked for it."""
        self._next = 0
        self._spare = 0
        """Owners asked beyond the need, because another is slow."""
        self._reason = ""
        self._outcome: Outcome | None = None
        self.has_unlevel = False
        """An owner answered that is not level: it is, in a moment."""
        self._unconfirmed: tuple[bytes | None, ...] = ()
        """What an owner said that could not make sure that it is one."""

    # --- what is to be sent ---------------------------------------------------------------------------

    def asks(self) -> list[tuple[NodeId, bool]]:
        """Return whom to ask now, and whether for the record: enough to reach `need`, while there are any left."""
        asked: list[tuple[NodeId, bool]] = []
        if self._outcome is not None:
            return asked
        count = self.need + self._spare - self.answered - self.waiting
        while count > 0 and self._next < len(self.owners):
            node_id = self.owners[self._next]
            self._next += 1
            self.asked += 1
            self.waiting += 1
            count -= 1
            asked.append((node_id, not self._full_from))
            self._full_from = self._full_from or node_id
        if self.answered >= self.need and not self._fetching and (holder := self._holder_of_newest()):
            self.answered -= self._seen.pop(holder).is_level
            self.waiting += 1
            self._full_from = self._fetching = holder
            asked.append((holder, True))
        return asked

    def ask_one_more(self) -> None:
        """Somebody is slow, and `is_choice_left`: let `asks` name an owner beyond the need."""
        self._spare = 1
        if self._full_from not in self._seen:
            self._full_from = ""  # It may be the slow one.

    def repairs(self) -> tuple[NodeId, ...]:
        """Return who must have `best` before the answer is given, once each; with nobody left the read is decided."""
        if self._outcome is not None or self.answered < self.need or self._fetching or self._repairing:
            return ()
        seen = self._seen
        newest = record_version(self.best) if self.best is not None else NO_VERSION
        if self.best is None or self._is_agreed(newest):
            self._outcome = Outcome(record=self.best, answered=self.answered, asked=self.asked)
            return ()
        floor = max([item.mark for item in seen.values() if item.is_level], default=NO_VERSION)
        if newest < floor and self.best is not None:
            self.outdated = (floor, tuple(node_id for node_id, item in seen.items() if item.version))
            self.best = None
        behind = [node_id for node_id, item in seen.items() if item.is_behind(newest)] if self.best is not None else []
        blocking = tuple(node_id for node_id in behind if seen[node_id].is_level) if self.need > 1 else ()
        if behind and not self._background:
            self._background = self.owners[self._next :] + tuple(item for item in behind if item not in blocking)
        if blocking:
            self._repairing = dict.fromkeys(blocking)
            self.waiting += len(blocking)
            self.answered -= len(blocking)
        else:
            self._outcome = Outcome(record=self.best, answered=self.answered, asked=self.asked)
        return blocking

    def _is_agreed(self, newest: Version) -> bool:
        """Whether all that answered have the newest version, and no mark above it: as good as always."""
        for item in self._seen.values():  # noqa: SIM110  # a generator takes three times as long
            if item.version != newest or item.mark > newest:
                return False
        return True

    def background(self) -> tuple[NodeId, ...]:
        """Return who is to be sent `best` without an answer being awaited, once the read is decided."""
        return self._background if self.best is not None else ()

    @property
    def is_choice_left(self) -> bool:
        """Whether an owner is left that was not asked, and one may be asked for being slow."""
        return self._outcome is None and not self._spare and self._next < len(self.owners) and not self._repairing

    def is_repairing(self, node_id: NodeId) -> bool:
        """Whether the reply that this owner still owes is that of a repair."""
        return node_id in self._repairing

    def _holder_of_newest(self) -> NodeId:
        """Return who has the newest version, where its record has not come; empty when it has."""
        newest, holder = record_version(self.best) if self.best is not None else NO_VERSION, ""
        for node_id, item in self._seen.items():
            if item.version > newest:
                newest, holder = item.version, node_id
        return holder

    # --- what came ------------------------------------------------------------------------------------

    def on_record(
        self, node_id: NodeId, record: bytes | None, mark: Version = NO_VERSION, *, is_level: bool = True
    ) -> None:
        """An owner sent its record, a tombstone included, or None and its mark."""
        version = record_version(record) if record is not None else NO_VERSION
        if record is not None and (self.best is None or version > record_version(self.best)):
            self.best = record
        self.on_version(node_id, version, mark, is_level=is_level)

    def on_version(
        self, node_id: NodeId, version: Version, mark: Version = NO_VERSION, *, is_level: bool = True
    ) -> None:
        """An owner sent the version of its entry, or `NO_VERSION` and its mark.

        One that is not level may lack what the others have: it is heard, and counts to no quorum.
        """
        self._seen[node_id] = _Seen(version, mark, is_level)
        self.waiting -= 1
        if node_id == self._fetching:
            self._fetching = ""
        if is_level:
            self.answered += 1
        else:
            self.has_unlevel = True
            self._reason = f"{node_id} is not level yet"
            if node_id == self._full_from and not version:
                self._full_from = ""

    def on_repaired(self, node_id: NodeId) -> None:
        """An owner has `best` now, or something newer, or no room for it, which is an eviction."""
        del self._repairing[node_id]
        assert self.best is not None
        self._seen[node_id] = _Seen(record_version(self.best), NO_VERSION, is_level=True)
        self.waiting -= 1
        self.answered += 1

    def on_failure(self, node_id: NodeId, reason: str) -> None:
        """An owner did not answer; `asks` names another if there is one."""
        self.waiting -= 1
        self._reason = reason
        self._repairing.pop(node_id, None)
        self._seen.pop(node_id, None)
        if node_id == self._fetching:
            self._fetching = ""
        if node_id == self._full_from:
            self._full_from = ""

    def on_unconfirmed(self, node_id: NodeId, record: bytes | None) -> None:
        """An owner answered that cannot make sure that it still is one: no answer, but better than none at all."""
        self._unconfirmed = (record,)
        self.on_failure(node_id, f"{node_id} is not sure to own the key")

    def is_late_behind(self, version: Version, mark: Version) -> bool:
        """An owner answered after the end: whether it lacks what was answered."""
        self.waiting -= 1
        return self.best is not None and _Seen(version, mark, is_level=True).is_behind(record_version(self.best))

    # --- how it ends ----------------------------------------------------------------------------------

    def outcome(self) -> Outcome | None:
        """Return the end of the read, or None while it is open: `asks` and `repairs` come first."""
        if self._outcome is not None or self.answered >= self.need or self.waiting or self._next < len(self.owners):
            return self._outcome
        if self.need == 1 and self._unconfirmed:
            return Outcome(record=self._unconfirmed[0], asked=self.asked, is_unconfirmed=True)
        return Outcome(
            Failure.UNAVAILABLE,
            f"{self.answered} of the {self.need} replicas needed answered; {self._reason}",
            answered=self.answered,
            asked=self.asked,
        )

    def timed_out(self) -> Outcome:
        """Return the end of a read whose deadline passed."""
        detail = f"{self.answered} of the {self.need} replicas needed answered in time"
        return Outcome(Failure.UNKNOWN, detail, answered=self.answered, asked=self.asked)


class QuorumWrite:
    """A write of one record to all `owners`, decided by `need` acknowledgements."""

    __slots__ = (
        "_failure", "_keepers", "_keeping", "_missed", "_open", "_overtaken_by", "_reason", "_refusal", "_restamps",
        "_told", "_uncertain", "answered", "existed", "is_conditional", "need", "owners",
        "version", "written",
    )  # fmt: skip

    def __init__(
        self,
        owners: tuple[NodeId, ...],
        need: int,
        earlier: QuorumWrite | None = None,
        *,
        keepers: tuple[NodeId, ...] = (),
        is_conditional: bool = False,
    ) -> None:
        """`earlier`: the machine of the same write before the ring changed, if it was started once already.

        `keepers`: live nodes that may keep the record for a missed owner, in order of preference; for sloppy writes.
        """
        assert 1 <= need <= len(owners)
        self.owners = owners
        self.need = need
        self.is_conditional = is_conditional
        self.version: Version = b""
        self.existed = False
        self.written: tuple[NodeId, ...] = ()
        """Owners to which an earlier round went."""
        self.answered = 0
        self._open: dict[NodeId, None] = {}
        """Owners that have not answered."""
        self._missed: list[NodeId] = []
        """Owners that have not taken the record, and should."""
        self._told = 0
        """How many of those `missed` has named."""
        self._keepers = list(keepers[::-1])
        self._keeping: dict[NodeId, NodeId] = {}
        """Who was asked to keep the record -> for whom."""
        self._uncertain = False
        self._failure = Failure.UNAVAILABLE
        self._reason = ""
        self._restamps = 0
        self._overtaken_by: Version = b""
        self._refusal: Outcome | None = None
        if earlier is not None:
            self.existed = earlier.existed
            self.written = earlier.written + earlier.owners
            self._uncertain = earlier.may_be_applied

    @property
    def waiting(self) -> int:
        """Replies to come."""
        return len(self._open) + len(self._keeping)

    @property
    def may_be_applied(self) -> bool:
        """Whether some owner may have the record."""
        return self.answered > 0 or self.waiting > 0 or self._uncertain

    def begin(self, version: Version) -> tuple[NodeId, ...]:
        """Start, or start again under a newer stamp, and return whom to send to.

        Earlier replies no longer count.
        """
        if self.version:
            self.written += self.owners
            self.answered = 0
            self._missed, self._told, self._keeping = [], 0, {}
            self._overtaken_by = b""
        self.version = version
        self._open = dict.fromkeys(self.owners)
        return self.owners

    def on_reply(self, node_id: NodeId, *, applied: bool, existed: bool, newest: Version) -> None:
        """An owner has the record, or something newer.

        What `existed` at an owner that an earlier round went to may be what that round wrote, and tells nothing.
        """
        del self._open[node_id]
        self.answered += 1
        self.existed = self.existed or (existed and node_id not in self.written)
        if not applied and newest > self.version:
            self._overtaken_by = max(self._overtaken_by, newest)

    def on_failure(
        self,
        node_id: NodeId,
        reason: str,
        *,
        uncertain: bool,
        failure: Failure = Failure.UNAVAILABLE,
        is_missed: bool = True,
    ) -> NodeId:
        """An owner did not acknowledge. `uncertain`: it may have applied the record all the same.

        `is_missed`: it should have the record yet; else it refused it for good. Returns who is to be asked to keep
        the record for it; empty: nobody.
        """
        del self._open[node_id]
        self._reason = reason
        self._uncertain = self._uncertain or uncertain
        self._failure = failure
        if not is_missed:
            return ""
        self._missed.append(node_id)
        return self._next_keeper(node_id)

    def _next_keeper(self, owner: NodeId) -> NodeId:
        if not self._keepers:
            return ""
        keeper = self._keepers.pop()
        self._keeping[keeper] = owner
        return keeper

    def is_keeping(self, node_id: NodeId) -> NodeId:
        """Return for whom this node was asked to keep the record; empty: for nobody."""
        return self._keeping.get(node_id, "")

    def on_kept(self, keeper: NodeId) -> None:
        """A live node keeps the record for a missed owner."""
        del self._keeping[keeper]
        self.answered += 1

    def on_keep_failed(self, keeper: NodeId, reason: str) -> NodeId:
        """A node does not keep it. Returns who is to be asked instead; empty: nobody."""
        self._reason = reason
        return self._next_keeper(self._keeping.pop(keeper))

    def skip(self, node_id: NodeId) -> None:
        """An owner is not sent the record after all."""
        del self._open[node_id]

    def waits_for_others(self, node_id: NodeId) -> bool:
        """Whether anybody but this node may still acknowledge."""
        return bool(self._keeping) or any(item != node_id for item in self._open)

    @property
    def has_missed(self) -> bool:
        """Whether `missed` has somebody to name."""
        return len(self._missed) > self._told

    def missed(self) -> list[NodeId]:
        """Return the missed owners that were not named before."""
        found, self._told = self._missed[self._told :], len(self._missed)
        return found

    def give_up(self) -> list[NodeId]:
        """Wait for nobody any more: return all that were not named before."""
        self._missed += self._open
        self._open = {}
        return self.missed()

    def refuse(self, failure: Failure, reason: str) -> None:
        """End the write before anything was sent."""
        self._refusal = Outcome(failure, reason, answered=0, asked=0)

    def overtaken(self) -> Version | None:
        """Return the version to stamp above, when an owner held something newer; None otherwise."""
        if not self._overtaken_by or self.is_conditional or self._restamps >= RESTAMPS_MAX:
            return None
        self._restamps += 1
        self._uncertain = True
        return self._overtaken_by

    @property
    def is_refused(self) -> bool:
        """Whether it ended before anything was sent."""
        return self._refusal is not None

    @property
    def is_conflict(self) -> bool:
        """Whether something newer than a conditional write was found."""
        return self.is_conditional and bool(self._overtaken_by)

    def outcome(self) -> Outcome | None:
        """Return the end of the write, or None while it is open."""
        if self._refusal is not None:
            return self._refusal
        asked, answered = len(self.owners), self.answered
        if self.is_conflict:
            return Outcome(Failure.CONFLICT, "another write came in between", answered=answered, asked=asked)
        if answered >= self.need:
            hinted = tuple(self._missed) if self._missed else ()
            return Outcome(version=self.version, existed=self.existed, answered=answered, asked=asked, hinted=hinted)
        if answered + self.waiting >= self.need:
            return None
        return Outcome(
            Failure.UNKNOWN if self.may_be_applied else self._failure,
            f"{answered} of the {self.need} acknowledgements needed; {self._reason}",
            answered=answered,
            asked=asked,
        )

    def timed_out(self) -> Outcome:
        """Return the end of a write whose deadline passed."""
        detail = f"{self.answered} of the {self.need} acknowledgements needed arrived in time"
        return Outcome(Failure.UNKNOWN, detail, answered=self.answered, asked=len(self.owners))
