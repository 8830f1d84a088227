"""How commands ask a running cluster, over the HTTP API that any client has; and who is in it and owns what.

Decides which node is asked next and which exit code an answer has. Whatever is slow to import is imported
where it is needed: `zephyr get` runs inside other people's loops.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from zephyr.cli.output import (
    EXIT_ERROR,
    EXIT_NOT_FOUND,
    EXIT_TIME_OUT,
    EXIT_UNHEALTHY,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandError,
    output_option,
    print_json,
    print_table,
)
from zephyr.config import parse_duration_s

EXIT_OF_STATUS = {404: EXIT_NOT_FOUND, 503: EXIT_TIME_OUT, 504: EXIT_TIME_OUT}
"""Other refusals are plain errors."""
SAFE_METHODS = frozenset({"GET", "HEAD"})
"""What may be asked again elsewhere where no answer came."""
LEVEL_TIMEOUT_S = 1.0
"""Longest wait for each member that is asked how level it is: it may be out of reach from here."""
LEVEL_ASKED_MAX = 64
"""Members that are asked at once."""
DURATION_MAX_S = 3600.0
"""Nobody waits longer for a command."""
SILENCE_MAX_S = 45.0
"""A node whose events are followed gives a sign of life every 15 s."""
LINE_BYTES_MAX = 1 << 20
"""Of events: far more than any has."""

Command = TypeVar("Command", bound=Callable[..., Any])


class Answer(NamedTuple):
    """What a node answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class UnreachableError(CommandError):
    """A node gave no answer. `sent`: it may have acted on the request."""

    def __init__(self, url: str, error: Exception, *, sent: bool) -> None:
        """`error`: what the network said."""
        cause = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        super().__init__(f"{url}: {cause}", EXIT_TIME_OUT if sent else EXIT_UNREACHABLE)
        self.sent = sent


def _urls(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def duration_s(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Read an option such as 500ms or 10s, above 0 and at most an hour; None when it is not given."""
    if text is None:
        return None
    try:
        seconds = parse_duration_s(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a duration such as 500ms or 10s.") from None
    if not 0 < seconds <= DURATION_MAX_S:
        raise click.BadParameter(f"{text} is not above 0 and at most 1h.")
    return seconds


def _key(_context: click.Context, _parameter: click.Parameter, text: str) -> bytes:
    # What is no UTF-8 on the command line reached us as surrogates: the same bytes leave.
    return text.encode("utf-8", "surrogateescape")


def key_argument(command: Command) -> Command:
    """Give a command its KEY: the bytes of the text."""
    return click.argument("key", callback=_key)(command)


def client_options(command: Command) -> Command:
    """Give a command what each client command has."""
    command = click.option(
        "--url", "urls", envvar="ZEPHYR_URL", default="http://127.0.0.1:8080", callback=_urls, show_default=True,
        metavar="URL,...", help="Nodes to ask, the next one when one cannot be reached.",
    )(command)  # fmt: skip
    command = click.option(
        "--timeout", "timeout_s", default="10s", callback=duration_s, show_default=True,
        metavar="DURATION", help="Longest wait for each node.",
    )(command)  # fmt: skip
    return output_option(command)


def ask(
    urls: Sequence[str],
    timeout_s: float,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Return the first answer that is no error.

    The next URL is asked only where the request had no effect: the node was not reached, or nothing was
    to change. Raises CommandError with the exit code that fits.
    """
    if not urls:
        raise CommandError("--url: no URL", EXIT_USAGE)
    failures = []
    for url in urls:
        try:
            answer = _ask_one(url, timeout_s, method, path, body=body, headers=headers or {})
        except UnreachableError as error:
            failures.append(error)
            if error.sent and method not in SAFE_METHODS:
                raise CommandError(f"{error}: it is unknown whether it was done", EXIT_TIME_OUT) from None
            continue
        if answer.status >= 400:
            raise CommandError(_problem(answer), EXIT_OF_STATUS.get(answer.status, EXIT_ERROR))
        return answer
    exit_code = EXIT_TIME_OUT if any(failure.sent for failure in failures) else EXIT_UNREACHABLE
    raise CommandError("; ".join(map(str, failures)), exit_code)


def _ask_one(
    url: str, timeout_s: float, method: str, path: str, *, body: bytes | None, headers: Mapping[str, str]
) -> Answer:
    import http.client  # noqa: PLC0415  # slow: it brings ssl and email along

    connection, prefix = _connected(url, timeout_s)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A value may be refused unread: the answer is there all the same.
            connection.request(method, prefix + path, body, dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(url, error, sent=True) from None
    finally:
        connection.close()


def _connected(url: str, timeout_s: float) -> tuple[Any, str]:
    """Return a connection to a node, and what its paths begin with. Raises CommandError."""
    import http.client  # noqa: PLC0415
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    except (ValueError, KeyError, http.client.InvalidURL):
        raise CommandError(f"--url: {url!r} is not http://HOST:PORT", EXIT_USAGE) from None
    try:
        connection.connect()
    except (OSError, UnicodeError) as error:
        raise UnreachableError(url, error, sent=False) from None
    return connection, parts.path.rstrip("/")


def follow(urls: Sequence[str], timeout_s: float, path: str, last_id: int) -> Iterator[tuple[str, Any]]:
    """Yield the events of the first node that answers, as (kind, data), those after `last_id` first.

    It never ends by itself. Raises CommandError: exit code 2 when the node cannot be reached, or is there no more.
    """
    if not urls:
        raise CommandError("--url: no URL", EXIT_USAGE)
    failures = []
    for url in urls:
        try:
            connection, prefix = _connected(url, timeout_s)
        except UnreachableError as error:
            failures.append(error)
            continue
        try:
            yield from _events(url, connection, prefix + path, last_id)
        finally:
            connection.close()
    raise CommandError("; ".join(map(str, failures)), EXIT_UNREACHABLE)


def _events(url: str, connection: Any, path: str, last_id: int) -> Iterator[tuple[str, Any]]:
    """Read Server-Sent Events, each of which a node writes as one line of data."""
    import http.client  # noqa: PLC0415

    sock = connection.sock  # The connection forgets it when it sees that the answer ends with it.
    try:
        connection.request("GET", path, headers={"Accept": "text/event-stream", "Last-Event-ID": str(last_id)})
        response = connection.getresponse()
        if response.status >= 400:
            refusal = Answer(response.status, response.headers, response.read())
            raise CommandError(_problem(refusal), EXIT_OF_STATUS.get(refusal.status, EXIT_ERROR))
        if response.headers.get_content_type() != "text/event-stream":
            raise CommandError("what answered is no node of a cluster", EXIT_ERROR)
        sock.settimeout(SILENCE_MAX_S)
        kind = ""
        while (line := response.readline(LINE_BYTES_MAX)).endswith(b"\n"):
            name, _, value = line.decode(errors="replace").rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)
    except (OSError, http.client.HTTPException) as error:
        cause = f"has been silent for {SILENCE_MAX_S:g} s" if isinstance(error, TimeoutError) else str(error)
        raise CommandError(f"{url}: {cause or type(error).__name__}", EXIT_UNREACHABLE) from None
    except ValueError:
        raise CommandError("what answered is no node of a cluster", EXIT_ERROR) from None
    raise CommandError(f"{url}: the node ended its events", EXIT_UNREACHABLE)


def _problem(answer: Answer) -> str:
    """Say what went wrong in the node's words where it gave any (RFC 9457)."""
    try:
        document = json.loads(answer.body)
        return str(document.get("detail") or document["title"])
    except (ValueError, KeyError, AttributeError):
        return f"the node answered {answer.status}"


def quoted(key: bytes) -> str:
    """Write a key as it stands in a path. Raises CommandError for an empty one."""
    from urllib.parse import quote  # noqa: PLC0415

    if not key:
        raise CommandError("a key has at least one byte", EXIT_USAGE)
    return quote(key, safe="")


@click.command()
@client_options
def members(urls: list[str], timeout_s: float, output: str) -> int:
    """List the members as one node sees them, and how level each says it is. Exit code 5 when the views disagree."""
    document = document_of(ask(urls, timeout_s, "GET", "/debug/views"), "members", "disagreements")
    rows = document["members"]
    for row, slots_pending in zip(rows, _slots_pending(rows, min(timeout_s, LEVEL_TIMEOUT_S)), strict=True):
        row["slots_pending"] = slots_pending
    if output == "json":
        print_json(document)
    else:
        columns = ("id", "state", "in ring", "routable", "http", "verdict", "reason")
        table = [[row.get(name.replace(" ", "_")) for name in columns] for row in rows]
        for cells, row in zip(table, rows, strict=True):
            cells.insert(2, _level(row["slots_pending"]))
        print_table((*columns[:2], "level", *columns[2:]), table)
    check_agreement(document)
    return 0


def _slots_pending(rows: Sequence[Mapping[str, Any]], timeout_s: float) -> list[int | None]:
    """Ask each member how many of its slots it has still to fetch; None: it did not say."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # slow

    def ask_one(row: Mapping[str, Any]) -> int | None:
        if not row.get("routable") or not row.get("http"):
            return None
        try:
            answer = _ask_one(row["http"], timeout_s, "GET", "/info", body=None, headers={})
            return int(document_of(answer, "slots_pending")["slots_pending"])
        except (CommandError, TypeError, ValueError):
            return None

    with ThreadPoolExecutor(LEVEL_ASKED_MAX) as pool:
        return list(pool.map(ask_one, rows))


def _level(slots_pending: int | None) -> str | None:
    if slots_pending is None:
        return None
    return f"{slots_pending} slots to fetch" if slots_pending else "yes"


def check_agreement(views: Mapping[str, Any]) -> None:
    """Raise CommandError, with exit code 5, while gossip and etcd disagree."""
    if views["disagreements"]:
        raise CommandError(f"the views disagree about {views['disagreements']} of the members", EXIT_UNHEALTHY)


@click.group(no_args_is_help=False)
def ring() -> None:
    """Look at who owns which keys."""


@ring.command("show")
@client_options
def ring_show(urls: list[str], timeout_s: float, output: str) -> None:
    """List the owners, their share of first copies and of all copies."""
    document = document_of(ask(urls, timeout_s, "GET", "/debug/ring"), "owners")
    if output == "json":
        print_json(document)
        return
    rows = [
        (row["id"], f"{row['share']:.4f}", f"{row['replica_share']:.4f}", row["tokens"]) for row in document["owners"]
    ]
    print_table(("id", "share", "replica share", "tokens"), rows)


@ring.command("owner")
@key_argument
@client_options
def ring_owner(key: bytes, urls: list[str], timeout_s: float, output: str) -> None:
    """Name the owners of one key, in order of preference."""
    document = document_of(ask(urls, timeout_s, "GET", f"/debug/ring?key={quoted(key)}"), "key", "slot", "owners")
    if output == "json":
        print_json(document)
    else:
        print_table(("key", "slot", "owners"), [(document["key"], document["slot"], ",".join(document["owners"]))])


def document_of(answer: Answer, *names: str) -> dict[str, Any]:
    """Read a page's JSON, which must have these names. Raises CommandError."""
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not all(name in document for name in names):
        raise CommandError("what answered is no node of a cluster", EXIT_ERROR)
    return document
