"""The commands for values: read, write, delete, count, give a deadline, list, and explain where one is.

Decides what they send and how an answer reads. A key is the bytes of its text; what is printed of one is
percent-encoded, as it stands in a URL.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from zephyr.cli.client import Answer, ask, client_options, document_of, key_argument, quoted
from zephyr.cli.output import (
    EXIT_ERROR,
    EXIT_NOT_FOUND,
    EXIT_USAGE,
    CommandError,
    moment,
    print_json,
    print_json_line,
    print_table,
)

PAGE_KEYS_MAX = 1000
"""Most keys that a node lists at once."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _path(key: bytes, **parameters: str | None) -> str:
    """Return the path of a key, with those parameters that are given."""
    from urllib.parse import urlencode  # noqa: PLC0415  # slow

    query = urlencode({name: text for name, text in parameters.items() if text is not None})
    return f"/kv/{quoted(key)}?{query}" if query else f"/kv/{quoted(key)}"


def _w_option(command: Command) -> Command:
    return click.option(
        "--w", metavar="COUNT", help="Replicas that must acknowledge: 1, quorum, all or a number."
    )(command)  # fmt: skip


def _write_options(command: Command) -> Command:
    """Give a command what each change of a value has."""
    command = click.option(
        "--if-none-match", "if_none_match", metavar="ETAG", help="Only where none of these stands; * for any value."
    )(command)
    command = click.option(
        "--if-match", "if_match", metavar="ETAG", help="Only where one of these stands; * for any value."
    )(command)
    return _w_option(command)


def _sloppy_option(command: Command) -> Command:
    return click.option(
        "--sloppy", is_flag=True, help="What another node keeps for an owner that is away counts as the owner's."
    )(command)


def _conditions(if_match: str | None, if_none_match: str | None) -> dict[str, str]:
    """Write conditions as headers. An ETag may be given without its quotes, which shells like to eat."""
    headers = {}
    for name, text in (("If-Match", if_match), ("If-None-Match", if_none_match)):
        if text is not None:
            is_bare = re.fullmatch(r"[0-9a-f]{32}", text)
            headers[name] = f'"{text}"' if is_bare else text
    return headers


@click.command()
@key_argument
@click.option("--r", metavar="COUNT", help="Replicas that must answer: 1, quorum, all or a number.")
@client_options
def get(*, key: bytes, r: str | None, urls: list[str], timeout_s: float, output: str) -> None:
    """Write a value to stdout, byte for byte."""
    answer = ask(urls, timeout_s, "GET", _path(key, r=r))
    if output == "table":
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
        return
    import base64  # noqa: PLC0415

    print_json(
        {
            "key": quoted(key),
            "value": base64.b64encode(answer.body).decode(),
            "etag": answer.headers.get("ETag"),
            "content_type": answer.headers.get("Content-Type"),
            "expires_s": _expires_s(answer),
        }
    )


def _expires_s(answer: Answer) -> int | None:
    """Return the whole seconds for which a value is still kept; None: it has no deadline."""
    remaining = re.search(r"max-age=(\d+)", answer.headers.get("Cache-Control", ""))
    return int(remaining[1]) if remaining else None


@click.command()
@key_argument
@click.argument("value", required=False)
@click.option("--ttl", metavar="DURATION", help="How long it is kept: 30, 500ms, 5m, 2h, 7d. Default: no limit.")
@click.option("--content-type", metavar="TYPE", help="Kept with the value and sent with it.")
@_write_options
@_sloppy_option
@client_options
def put(
    key: bytes,
    *,
    value: str | None,
    ttl: str | None,
    content_type: str | None,
    w: str | None,
    if_match: str | None,
    if_none_match: str | None,
    sloppy: bool,
    urls: list[str],
    timeout_s: float,
    output: str,
) -> None:
    """Store VALUE, or what comes on stdin when it is - or missing."""
    path = _path(key, ttl=ttl, w=w, sloppy="true" if sloppy else None)
    body = sys.stdin.buffer.read() if value in (None, "-") else value.encode("utf-8", "surrogateescape")
    headers = {
        "Content-Type": content_type or "application/octet-stream", **_conditions(if_match, if_none_match),
    }  # fmt: skip
    answer = ask(urls, timeout_s, "PUT", path, body=body, headers=headers)
    if output == "json":
        _print_change(key, "created" if answer.status == 201 else "replaced", answer)


def _print_change(key: bytes, result: str, answer: Answer) -> None:
    print_json({"key": quoted(key), "result": result, "etag": answer.headers.get("ETag")})


@click.command("del")
@key_argument
@_write_options
@_sloppy_option
@client_options
def delete(
    key: bytes,
    *,
    w: str | None,
    if_match: str | None,
    if_none_match: str | None,
    sloppy: bool,
    urls: list[str],
    timeout_s: float,
    output: str,
) -> None:
    """Delete a key, whether it is there or not."""
    path = _path(key, w=w, sloppy="true" if sloppy else None)
    ask(urls, timeout_s, "DELETE", path, headers=_conditions(if_match, if_none_match))
    if output == "json":
        print_json({"key": quoted(key), "result": "deleted"})


def _step(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    # Any number: how large it may be is the node's to say. What was no option is no step either.
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise click.BadParameter(f"{text!r} is not a whole number.")
    return text


@click.command("incr", context_settings={"ignore_unknown_options": True})  # So that -5 is a step.
@key_argument
@click.argument("step", default="1", callback=_step)
@click.option(
    "--ttl", metavar="DURATION", help="How long it is kept, where it is created. One that stands keeps its own."
)
@_write_options
@client_options
def increment(
    key: bytes,
    *,
    step: str,
    ttl: str | None,
    w: str | None,
    if_match: str | None,
    if_none_match: str | None,
    urls: list[str],
    timeout_s: float,
    output: str,
) -> None:
    """Add STEP, or 1, to a number, and print what it is now. An absent key starts at 0."""
    headers = _conditions(if_match, if_none_match)
    answer = ask(urls, timeout_s, "POST", _path(key, incr=step, ttl=ttl, w=w), headers=headers)
    try:
        number = int(answer.body)
    except ValueError:
        raise CommandError("what answered is no node of a cluster", EXIT_ERROR) from None
    if output == "json":
        print_json({"key": quoted(key), "value": number, "etag": answer.headers.get("ETag")})
    else:
        click.echo(number)


@click.command()
@key_argument
@click.argument("duration", required=False)
@_write_options
@client_options
def ttl(
    key: bytes,
    *,
    duration: str | None,
    w: str | None,
    if_match: str | None,
    if_none_match: str | None,
    urls: list[str],
    timeout_s: float,
    output: str,
) -> None:
    """Keep a value for DURATION from now on, or with none for ever. Without it: print the seconds that are left."""
    headers = _conditions(if_match, if_none_match)
    if duration is None:
        if w is not None or headers:
            raise CommandError("--w, --if-match and --if-none-match go with a DURATION", EXIT_USAGE)
        _show_ttl(key, urls, timeout_s, output)
        return
    answer = ask(urls, timeout_s, "PATCH", _path(key, ttl=duration, w=w), headers=headers)
    if output == "json":
        _print_change(key, "kept" if duration == "none" else "expires", answer)


def _show_ttl(key: bytes, urls: list[str], timeout_s: float, output: str) -> None:
    try:
        answer = ask(urls, timeout_s, "HEAD", _path(key))
    except CommandError as error:
        if error.exit_code == EXIT_NOT_FOUND:  # The answer to HEAD says nothing.
            raise CommandError("no value is stored under this key", EXIT_NOT_FOUND) from None
        raise
    expires_s = _expires_s(answer)
    if output == "json":
        print_json({"key": quoted(key), "expires_s": expires_s})
    else:
        click.echo("none" if expires_s is None else expires_s)


@click.command()
@click.option("--prefix", default="", metavar="TEXT", help="Only keys that begin with these bytes.")
@click.option("--limit", type=click.IntRange(min=1), metavar="COUNT", help="At most so many. Default: all.")
@client_options
def scan(*, prefix: str, limit: int | None, urls: list[str], timeout_s: float, output: str) -> None:
    """List keys, percent-encoded, one a line; as JSON one page a line. A key may come more than once."""
    from urllib.parse import urlencode  # noqa: PLC0415

    wanted = sys.maxsize if limit is None else limit
    query = {"prefix": prefix.encode("utf-8", "surrogateescape")} if prefix else {}
    cursor: str | None = ""
    while cursor is not None and wanted > 0:
        parameters = {**query, "limit": min(wanted, PAGE_KEYS_MAX), **({"cursor": cursor} if cursor else {})}
        page = document_of(ask(urls, timeout_s, "GET", f"/scan?{urlencode(parameters)}"), "keys", "cursor")
        cursor = page["cursor"]
        wanted -= len(page["keys"])
        if output == "json":
            print_json_line(page)
        else:
            click.echo("".join(f"{key}\n" for key in page["keys"]), nl=False)


@click.command()
@key_argument
@client_options
def explain(key: bytes, urls: list[str], timeout_s: float, output: str) -> None:
    """Show where a key is: its owners, and what each node says that it holds of it."""
    answer = ask(urls, timeout_s, "GET", f"/cluster/explain/{quoted(key)}")
    document = document_of(answer, "key", "owners", "replicas")
    if output == "json":
        print_json(document)
        return
    click.echo(f"{document['key']}: slot {document.get('slot')}, owners {', '.join(document['owners'])}", err=True)
    rows = [_replica_cells(row) for row in document["replicas"]]
    print_table(("node", "owner", "level", "state", "version", "expires", "keeps it for"), rows)


def _replica_cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        row.get("node"), row.get("owner"), row.get("level"), row.get("state"), row.get("version"),
        moment(row.get("expires_unix_ms")), ", ".join(row.get("hinted", ())),
    )  # fmt: skip
