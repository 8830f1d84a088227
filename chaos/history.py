"""The history of a run: what clients asked and were told, what was done to the cluster, and what was left in the end.

One driver on one monotonic clock writes it, whatever it drives: the simulator, processes or containers. It is a file of
JSON lines, one record each, in any order but for the first:

    run        what was run: nodes, replicas, bounds; the first line
    operation  one request of a client, from before it was sent until its answer or the driver's time-out
    fault      something done to nodes, from when until when
    sample     what one node showed at one moment: its ring, and its counts of hints where it tells them
    death      one node called another dead
    level      every running node was seen in the one ring, with all that it should hold
    holding    in the end, after healing: what one node keeps of one key

Writes and reads such files, and refuses what has another form. Judges nothing: `chaos.checkers` does.

Keys are percent-encoded texts. Values are unique texts, one for each write, which the driver makes; a body that it
reads and cannot have written is written down as it is, and then nobody attempted it. Versions are 32 hexadecimal
digits. Seconds count from the driver's start; null is later than everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from zephyr.errors import ZephyrError
from zephyr.model import NodeId, Version
from zephyr.store.record import VERSION_BYTES

FORMAT = 1
LINE_BYTES_MAX = 64 << 10
"""Of one record: a sample names 200 owners of up to 64 characters."""
OPERATIONS_MAX = 2_000_000
"""Of one history: about 0.4 KB each in memory."""
RECORDS_MAX = 1_000_000
"""Other records of one history."""

OperationKind: TypeAlias = Literal["put", "delete", "get"]
OutcomeWord: TypeAlias = Literal["ok", "fail", "info"]
HoldingState: TypeAlias = Literal["value", "tombstone", "ghost", "absent"]

KINDS = ("put", "delete", "get")
OUTCOMES = ("ok", "fail", "info")
STATES = ("value", "tombstone", "ghost", "absent")
HINT_COUNTS = ("queued", "delivered", "redirected", "expired", "dropped", "pending")
"""`queued` is the sum of the others, always."""


class HistoryError(ZephyrError):
    """A history cannot be read. Its text is one line that names the file and the line."""


class Run(NamedTuple):
    """What was run. Texts and figures that the checkers go by."""

    scenario: str
    nodes: tuple[NodeId, ...]
    replicas: int
    unix_ms_at_zero: int
    """The driver's wall clock at its second 0: versions are compared with it."""
    clock_skew_max_ms: int
    """No node's clock was further from the driver's than that, but for those named by faults of the kind `clock`."""
    request_timeout_s: float
    """A coordinator that still answers by then has stamped nothing later."""
    settle_s: float
    """Nodes that take over the same ring within this time of each other do so in one go."""
    ring_within_s: float = inf
    """Rings must be equal this soon after the last fault."""
    evicts: bool = False
    """Memory was short, so that entries may have been evicted: a miss then tells nothing."""
    seed: int | None = None
    replay: str = ""
    """The command that plays the run again."""


class Operation(NamedTuple):
    """One request. A tuple, since there are a million of them."""

    process: str
    """Who asked: one client, whose requests may overlap where the driver lets them."""
    kind: OperationKind
    key: str
    value: str | None
    """put: what was to be written. get: what was read; None: nothing is there."""
    version: Version
    """Of what was written or read; empty: not told."""
    invoked_s: float
    completed_s: float
    """When the answer came; infinite: never, or later than the driver waited."""
    outcome: OutcomeWord
    """fail: it was refused, and nothing was done. info: nobody knows; it may take effect at any later time."""
    coordinator: NodeId
    quorum: str = "quorum"
    """`1`, `quorum`, `all` or a number, as asked for."""
    ttl_ms: int = 0
    """0: no deadline."""
    is_sloppy: bool = False
    ring: str = ""
    """The coordinator's ring digest when it was asked; empty: not known."""
    epoch: str = ""
    line: int = 0
    """Where it stands in the history; 0: nowhere."""

    def text(self) -> str:
        """Tell it in a line."""
        value = "" if self.kind == "delete" else f" {self.value or 'nothing'}"
        return (
            f"{self.invoked_s:.4f}-{self.completed_s:.4f} {self.process} {self.kind} {self.key}{value} {self.outcome} "
            f"{self.version.hex()} at {self.coordinator}"
        )


class Fault(NamedTuple):
    """Something done to the cluster."""

    fault: str
    """`kill`, `pause`, `partition`, `one-way`, `loss`, `clock`, ...: free words, but `kill` empties a node."""
    nodes: tuple[NodeId, ...]
    """Whom it touched; empty: all."""
    at_s: float
    until_s: float
    """Infinite: to the end."""
    detail: str = ""


class Sample(NamedTuple):
    """What one node showed."""

    node: NodeId
    at_s: float
    digest: str
    owners: tuple[NodeId, ...]
    hints: tuple[int, ...] = ()
    """As in `HINT_COUNTS`; empty: it does not tell."""


class Death(NamedTuple):
    """One node called another dead."""

    observer: NodeId
    member: NodeId
    at_s: float


class Level(NamedTuple):
    """Every running node was in the one ring, and had all that it should hold."""

    at_s: float


class Holding(NamedTuple):
    """What one node keeps of one key in the end."""

    node: NodeId
    key: str
    state: HoldingState
    version: Version
    """Empty: none."""
    is_owner: bool
    is_level: bool
    """Whether it holds all that it should of the key's slot."""
    at_s: float = 0.0
    """When stock was taken: of all keys at once, and maybe more than once."""


Record: TypeAlias = Run | Operation | Fault | Sample | Death | Level | Holding


@dataclass(slots=True)
class History:
    """A whole history in memory. Operations in the order of their beginning, the rest in that of their time."""

    run: Run
    operations: list[Operation] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    holdings: list[Holding] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Take in one record more; `sort` it when all are there."""
        match record:
            case Operation():
                self.operations.append(record)
            case Fault():
                self.faults.append(record)
            case Sample():
                self.samples.append(record)
            case Death():
                self.deaths.append(record)
            case Level():
                self.levels.append(record)
            case Holding():
                self.holdings.append(record)
            case Run():
                raise ValueError("a second run")

    def sort(self) -> None:
        """Bring the records into order."""
        self.operations.sort(key=lambda item: item.invoked_s)
        for records in (self.faults, self.samples, self.deaths, self.levels, self.holdings):
            records.sort(key=lambda item: item.at_s)


# --- writing ----------------------------------------------------------------------------------------------


class HistoryWriter:
    """Writes records as they come, and keeps none."""

    def __init__(self, file: IO[str], run: Run) -> None:
        """`file`: open for text; the caller closes it."""
        self._file = file
        self.write(run)

    def write(self, record: Record) -> None:
        """Write one record as a line."""
        self._file.write(record_line(record))


def record_line(record: Record) -> str:
    """Return a record as its line, with its end."""
    return json.dumps(_document(record), separators=(",", ":")) + "\n"


def write_history(path: Path, history: History) -> None:
    """Write a history that is in memory. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        writer = HistoryWriter(file, history.run)
        for records in (
            history.operations, history.faults, history.samples, history.deaths, history.levels, history.holdings,
        ):  # fmt: skip
            for record in records:
                writer.write(record)


def _document(record: Record) -> dict[str, Any]:
    match record:
        case Run():
            return {"record": "run", "format": FORMAT} | _named(record)
        case Operation():
            return {
                "record": "operation",
                "process": record.process,
                "op": record.kind,
                "key": record.key,
                "value": record.value,
                "version": record.version.hex(),
                "invoked_s": record.invoked_s,
                "completed_s": _seconds(record.completed_s),
                "outcome": record.outcome,
                "coordinator": record.coordinator,
                "quorum": record.quorum,
                "ttl_ms": record.ttl_ms,
                "sloppy": record.is_sloppy,
                "ring": record.ring,
                "epoch": record.epoch,
            }
        case Sample():
            hints = dict(zip(HINT_COUNTS, record.hints, strict=True)) if record.hints else None
            return {"record": "sample"} | _named(record) | {"hints": hints}
        case Holding():
            return {
                "record": "holding",
                "node": record.node,
                "key": record.key,
                "state": record.state,
                "version": record.version.hex(),
                "owner": record.is_owner,
                "level": record.is_level,
                "at_s": record.at_s,
            }
        case Fault() | Death() | Level():
            return {"record": type(record).__name__.lower()} | _named(record)


def _named(record: Run | Fault | Sample | Death | Level) -> dict[str, Any]:
    """Return the fields as they are, infinite seconds as null."""
    return {name: _seconds(value) if type(value) is float else value for name, value in record._asdict().items()}


def _seconds(value_s: float) -> float | None:
    return value_s if isfinite(value_s) else None


# --- reading ----------------------------------------------------------------------------------------------


def read_history(path: Path) -> History:
    """Read a whole file. Raises HistoryError, with one line, when it cannot be read or has another form."""
    try:
        with path.open("rb") as file:
            return history_of(read_records(file, str(path)))
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or error}") from None


def history_of(records: Iterable[Record]) -> History:
    """Collect records; the first is the run. Raises HistoryError."""
    history: History | None = None
    for record in records:
        if history is None:
            assert isinstance(record, Run)
            history = History(record)
        else:
            history.add(record)
    if history is None:
        raise HistoryError("a history begins with a record of its run: this one is empty")
    history.sort()
    return history


def read_records(file: IO[bytes], name: str = "history") -> Iterator[Record]:
    """Read records one by one, in bounded memory. Raises HistoryError, which names the line."""
    number = operations = others = 0
    shared: dict[str, str] = {}
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        try:
            record = _record_of(line, number, shared)
        except KeyError as error:
            raise HistoryError(f"{name}, line {number}: {error.args[0]} is missing") from None
        except (ValueError, OverflowError, RecursionError) as error:
            said = "no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
            raise HistoryError(f"{name}, line {number}: {said}") from None
        if type(record) is Operation:
            operations += 1
        else:
            others += 1
        if operations > OPERATIONS_MAX or others > RECORDS_MAX:
            bounds = f"{OPERATIONS_MAX} operations, or {RECORDS_MAX} other records"
            raise HistoryError(f"{name}, line {number}: more than {bounds}")
        yield record
    if not number:
        raise HistoryError(f"{name}: a history begins with a record of its run: this one is empty")


def _record_of(line: bytes, number: int, shared: dict[str, str]) -> Record:
    """Read one line. `shared`: texts that come again and again, kept once. Raises ValueError or KeyError."""
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"longer than {LINE_BYTES_MAX} bytes")
    document = json.loads(line)
    if type(document) is not dict:
        raise ValueError("no object")
    kind = document.get("record")
    if (kind == "run") != (number == 1):
        raise ValueError("the record of the run is the first, and the only one of its kind")
    if kind == "operation":
        return _operation(document, number, shared)
    if type(kind) is not str or kind not in _READ:
        raise ValueError(f"record: {kind!r} is none of operation, {', '.join(_READ)}")
    return _READ[kind](document, shared)


def _run(document: dict[str, Any], _shared: dict[str, str]) -> Run:
    if document.get("format") != FORMAT:
        raise ValueError(f"format: this program reads {FORMAT}, not {document.get('format')!r}")
    seed = document.get("seed")
    if seed is not None and type(seed) is not int:
        raise ValueError("seed: not an integer")
    return Run(
        scenario=_text(document, "scenario"),
        nodes=_texts(document, "nodes"),
        replicas=_count(document, "replicas"),
        unix_ms_at_zero=_count(document, "unix_ms_at_zero"),
        clock_skew_max_ms=_count(document, "clock_skew_max_ms"),
        request_timeout_s=_moment(document, "request_timeout_s"),
        settle_s=_moment(document, "settle_s"),
        ring_within_s=_later(document, "ring_within_s"),
        evicts=_flag(document, "evicts"),
        seed=seed,
        replay=_text(document, "replay", may_be_empty=True),
    )


def _operation(document: dict[str, Any], line: int, shared: dict[str, str]) -> Operation:
    kind, outcome = _word(document, "op", KINDS), _word(document, "outcome", OUTCOMES)
    key, process, node = _text(document, "key"), _text(document, "process"), _text(document, "coordinator")
    value, version = document["value"], _version(document)
    if value is not None and type(value) is not str:
        raise ValueError("value: not a text")
    if kind != "get" and (value is None) != (kind == "delete"):
        raise ValueError("value: a put has one, and a delete has none")
    if kind == "get" and outcome == "ok" and (value is None) != (not version):
        raise ValueError("version: what was read has one, and nothing has none")
    if kind == "put" and outcome == "ok" and not version:
        raise ValueError("version: an acknowledged put has one")
    invoked_s, completed_s = _moment(document, "invoked_s"), _later(document, "completed_s")
    if completed_s < invoked_s:
        raise ValueError("completed_s is before invoked_s")
    if completed_s == inf and outcome != "info":
        raise ValueError("completed_s: only what nobody knows the outcome of is never over")
    quorum = document.get("quorum", "quorum")
    if quorum not in ("quorum", "all") and not (type(quorum) is str and quorum.isascii() and quorum.isdigit()):
        raise ValueError("quorum: not 1, quorum, all or a number")
    ring, epoch = (_text(document, name, may_be_empty=True) for name in ("ring", "epoch"))
    return Operation(
        shared.setdefault(process, process), kind, shared.setdefault(key, key), value, version,  # type: ignore[arg-type]
        invoked_s, completed_s, outcome, shared.setdefault(node, node), shared.setdefault(quorum, quorum),  # type: ignore[arg-type]
        _count(document, "ttl_ms") if "ttl_ms" in document else 0, _flag(document, "sloppy"),
        shared.setdefault(ring, ring), shared.setdefault(epoch, epoch), line,
    )  # fmt: skip


def _sample(document: dict[str, Any], shared: dict[str, str]) -> Sample:
    counts = document.get("hints")
    hints: tuple[int, ...] = ()
    if counts is not None:
        if type(counts) is not dict:
            raise ValueError("hints: no object")
        hints = tuple(_count(counts, name) for name in HINT_COUNTS)
    node, digest = _text(document, "node"), _text(document, "digest", may_be_empty=True)
    owners = tuple(shared.setdefault(item, item) for item in _texts(document, "owners"))
    return Sample(
        shared.setdefault(node, node), _moment(document, "at_s"), shared.setdefault(digest, digest), owners, hints
    )


def _fault(document: dict[str, Any], _shared: dict[str, str]) -> Fault:
    at_s, until_s = _moment(document, "at_s"), _later(document, "until_s")
    if until_s < at_s:
        raise ValueError("until_s is before at_s")
    detail = _text(document, "detail", may_be_empty=True)
    return Fault(_text(document, "fault"), _texts(document, "nodes"), at_s, until_s, detail)


def _death(document: dict[str, Any], _shared: dict[str, str]) -> Death:
    return Death(_text(document, "observer"), _text(document, "member"), _moment(document, "at_s"))


def _level(document: dict[str, Any], _shared: dict[str, str]) -> Level:
    return Level(_moment(document, "at_s"))


def _holding(document: dict[str, Any], shared: dict[str, str]) -> Holding:
    state, version, key = _word(document, "state", STATES), _version(document), _text(document, "key")
    if (state == "absent") == bool(version):
        raise ValueError("version: an absent key has none, and everything else has one")
    flags, at_s = (_flag(document, "owner"), _flag(document, "level")), _moment(document, "at_s")
    return Holding(_text(document, "node"), shared.setdefault(key, key), state, version, *flags, at_s)  # type: ignore[arg-type]


_READ: dict[str, Callable[[dict[str, Any], dict[str, str]], Record]] = {
    "run": _run,
    "fault": _fault,
    "sample": _sample,
    "death": _death,
    "level": _level,
    "holding": _holding,
}
"""How each kind is read, but for operations, which know their line. Each raises ValueError or KeyError."""


def _text(document: dict[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = document.get(name, "") if may_be_empty else document[name]
    if type(value) is not str or not (value or may_be_empty):
        raise ValueError(f"{name}: not a text")
    return value


def _texts(document: dict[str, Any], name: str) -> tuple[str, ...]:
    values = document[name]
    if type(values) is not list or not all(type(value) is str and value for value in values):
        raise ValueError(f"{name}: not a list of texts")
    return tuple(values)


def _word(document: dict[str, Any], name: str, words: tuple[str, ...]) -> str:
    value = document[name]
    if value not in words:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(words)}")
    return words[words.index(value)]


def _flag(document: dict[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if type(value) is not bool:
        raise ValueError(f"{name}: not true or false")
    return value


def _count(document: dict[str, Any], name: str) -> int:
    value = document[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name}: not a count")
    return value


def _moment(document: dict[str, Any], name: str) -> float:
    value = document[name]
    if type(value) not in (int, float) or not isfinite(value) or value < 0:
        raise ValueError(f"{name}: not a number of seconds")
    return float(value)


def _later(document: dict[str, Any], name: str) -> float:
    return inf if document.get(name) is None else _moment(document, name)


def _version(document: dict[str, Any]) -> Version:
    text = _text(document, "version", may_be_empty=True)
    try:
        version = bytes.fromhex(text)
    except ValueError:
        raise ValueError("version: not hexadecimal") from None
    if len(version) not in (0, VERSION_BYTES):
        raise ValueError(f"version: not {VERSION_BYTES} bytes")
    return version
