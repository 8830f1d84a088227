"""One machine per read and per write: every order of replies is an input.

A machine knows the owners of its key, counts what they say and tells when it is decided. It sends
nothing and keeps no time: `zephyr.replication.coordinator` does, for all of them.

Write: stamped once, sent to all N owners, decided at W acknowledgements. An owner that already holds
something newer makes the coordinator stamp again above it, so that the client's write really is the
last. Read: asks R owners and, for each that fails, the next one; the highest version wins, a deletion
included.
"""

from __future__ import annotations

from zephyr.model import Failure, NodeId, Outcome, Version
from zephyr.store.record import record_version

RESTAMPS_MAX = 3
"""A write that is overtaken this often by newer ones is done: it was written, and overwritten."""


class QuorumRead:
    """A read of one key from `need` of its `owners`, asked in the order given."""

    __slots__ = ("_next", "_reason", "_unconfirmed", "answered", "asked", "best", "need", "owners", "waiting")

    def __init__(self, owners: tuple[NodeId, ...], need: int) -> None:
        assert 1 <= need <= len(owners)
        self.owners = owners
        self.need = need
        self.best: bytes | None = None
        self.answered = 0
        self.asked = 0
        self.waiting = 0
        self._next = 0
        self._reason = ""
        self._unconfirmed: tuple[bytes | None, ...] = ()
        """What an owner said that could not make sure that it is one."""

    def targets(self) -> tuple[NodeId, ...]:
        """Return whom to ask now: enough owners to reach `need`, as long as there are any left."""
        count = self.need - self.answered - self.waiting
        chosen = self.owners[self._next : self._next + count] if count > 0 else ()
        self._next += len(chosen)
        self.asked += len(chosen)
        self.waiting += len(chosen)
        return chosen

    def on_record(self, record: bytes | None) -> None:
        """An owner answered: its record, a tombstone included, or None."""
        self.waiting -= 1
        self.answered += 1
        if record is not None and (self.best is None or record_version(record) > record_version(self.best)):
            self.best = record

    def on_failure(self, reason: str) -> None:
        """An owner did not answer; `targets` names another if there is one."""
        self.waiting -= 1
        self._reason = reason

    def on_unconfirmed(self, node_id: NodeId, record: bytes | None) -> None:
        """An owner answered that cannot make sure that it still is one: no answer, but better than none at all."""
        self._unconfirmed = (record,)
        self.on_failure(f"{node_id} is not sure to own the key")

    def outcome(self) -> Outcome | None:
        """Return the end of the read, or None while it is open."""
        if self.answered >= self.need:
            return Outcome(record=self.best, answered=self.answered, asked=self.asked)
        if self.waiting or self._next < len(self.owners):
            return None
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
        "_failure", "_overtaken_by", "_reason", "_refusal", "_restamps", "_uncertain",
        "answered", "existed", "need", "owners", "version", "waiting", "written",
    )  # fmt: skip

    def __init__(self, owners: tuple[NodeId, ...], need: int, earlier: QuorumWrite | None = None) -> None:
        """`earlier`: the machine of the same write before the ring changed, if it was started once already."""
        assert 1 <= need <= len(owners)
        self.owners = owners
        self.need = need
        self.version: Version = b""
        self.existed: bool = earlier.existed if earlier is not None else False
        self.written: tuple[NodeId, ...] = earlier.written + earlier.owners if earlier is not None else ()
        """Owners to which an earlier round went."""
        self.answered = 0
        self.waiting = 0
        self._uncertain = False
        self._failure = Failure.UNAVAILABLE
        self._reason = ""
        self._restamps = 0
        self._overtaken_by: Version = b""
        self._refusal: Outcome | None = None

    def begin(self, version: Version) -> tuple[NodeId, ...]:
        """Start, or start again under a newer stamp, and return whom to send to.

        Earlier replies no longer count.
        """
        if self.version:
            self.written += self.owners
        self.version = version
        self.answered = 0
        self.waiting = len(self.owners)
        self._overtaken_by = b""
        return self.owners

    def on_reply(self, node_id: NodeId, *, applied: bool, existed: bool, newest: Version) -> None:
        """An owner has the record, or something newer.

        What `existed` at an owner that an earlier round went to may be what that round wrote, and tells nothing.
        """
        self.waiting -= 1
        self.answered += 1
        self.existed = self.existed or (existed and node_id not in self.written)
        if not applied and newest > self.version:
            self._overtaken_by = max(self._overtaken_by, newest)

    def on_failure(self, reason: str, *, uncertain: bool, failure: Failure = Failure.UNAVAILABLE) -> None:
        """An owner did not acknowledge. `uncertain`: it may have applied the record all the same."""
        self.waiting -= 1
        self._reason = reason
        self._uncertain = self._uncertain or uncertain
        self._failure = failure

    def refuse(self, failure: Failure, reason: str) -> None:
        """End the write before anything was sent."""
        self._refusal = Outcome(failure, reason, answered=0, asked=0)

    def overtaken(self) -> Version | None:
        """Return the version to stamp above, when an owner held something newer; None otherwise."""
        if not self._overtaken_by or self._restamps >= RESTAMPS_MAX:
            return None
        self._restamps += 1
        self._uncertain = True
        return self._overtaken_by

    def outcome(self) -> Outcome | None:
        """Return the end of the write, or None while it is open."""
        if self._refusal is not None:
            return self._refusal
        asked = len(self.owners)
        if self.answered >= self.need:
            return Outcome(version=self.version, existed=self.existed, answered=self.answered, asked=asked)
        if self.answered + self.waiting >= self.need:
            return None
        applied_somewhere = self.answered > 0 or self.waiting > 0 or self._uncertain
        return Outcome(
            Failure.UNKNOWN if applied_somewhere else self._failure,
            f"{self.answered} of the {self.need} acknowledgements needed; {self._reason}",
            answered=self.answered,
            asked=asked,
        )

    def timed_out(self) -> Outcome:
        """Return the end of a write whose deadline passed."""
        detail = f"{self.answered} of the {self.need} acknowledgements needed arrived in time"
        return Outcome(Failure.UNKNOWN, detail, answered=self.answered, asked=len(self.owners))
