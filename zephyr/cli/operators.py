"""The commands of operators: what a node believes and why, what happens, and the two things one can ask of it.

Decides how that reads. A time is UTC in ISO 8601, with milliseconds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

from zephyr.cli.client import ask, check_agreement, client_options, document_of, follow
from zephyr.cli.output import (
    EXIT_NOT_FOUND,
    EXIT_USAGE,
    CommandError,
    moment,
    print_json,
    print_json_line,
    print_row,
    print_table,
)
from zephyr.config import parse_duration_s

EVENT_COLUMNS = ("time", "kind", "member", "source", "detail")
EVENT_WIDTHS = (24, 18, 12, 9, 0)
"""On a terminal, where events that are still to come cannot be measured."""


@click.group(invoke_without_command=True)
@client_options
@click.pass_context
def views(context: click.Context, urls: list[str], timeout_s: float, output: str) -> int:
    """Show what each witness says of each member, and what one node makes of it. Exit code 5 when they disagree."""
    if context.invoked_subcommand is not None:
        if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
            raise click.UsageError(f"Options go after {context.invoked_subcommand}.", context)
        return 0
    document = document_of(ask(urls, timeout_s, "GET", "/debug/views"), "members", "disagreements", "ring", "etcd")
    if output == "json":
        print_json(document)
    else:
        click.echo(_summary(document), err=True)
        rows = [
            (
                row.get("id"), row.get("gossip", {}).get("state"), row.get("etcd", {}).get("state"), row.get("in_ring"),
                row.get("routable"), row.get("verdict"), row.get("reason"),
            )
            for row in document["members"]
        ]  # fmt: skip
        print_table(("id", "gossip", "etcd", "in ring", "routable", "verdict", "reason"), rows)
    check_agreement(document)
    return 0


def _summary(document: dict[str, Any]) -> str:
    """Say in one line who leads, which ring that is, and how etcd is."""
    ring, etcd = document["ring"], document["etcd"]
    reason = f" ({etcd['reason']})" if etcd.get("reason") else ""
    return (
        f"{document.get('node')}: authority {document.get('authority')} for {document.get('authority_since_s')} s; "
        f"ring {ring.get('digest')} of {len(ring.get('owners', ()))}; etcd {etcd.get('state')}{reason}"
    )


@views.command()
@client_options
def release(urls: list[str], timeout_s: float, output: str) -> None:
    """Let a held ring go: take etcd's word for who owns data."""
    document = document_of(ask(urls, timeout_s, "POST", "/cluster/release"), "released")
    if output == "json":
        print_json(document)
    else:
        click.echo("the held ring is let go", err=True)


@click.command()
@click.argument("node_id", metavar="ID")
@client_options
def evict(node_id: str, urls: list[str], timeout_s: float, output: str) -> None:
    """Propose that a member be removed from etcd, whatever gossip says. One that lives registers again."""
    answer = ask(urls, timeout_s, "POST", f"/cluster/evict/{_quoted_id(node_id)}")
    document = document_of(answer, "member", "proposed")
    if output == "json":
        print_json(document)
    else:
        click.echo(f"the eviction of {node_id} is proposed", err=True)


def _since_s(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Read how long ago; None when it is not given."""
    try:
        return None if text is None else parse_duration_s(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 5m or 2h.") from None


@click.command()
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--since", "since_s", callback=_since_s, metavar="DURATION", help="Only what is no longer ago than this.")
@client_options
def events(*, is_followed: bool, since_s: float | None, urls: list[str], timeout_s: float, output: str) -> None:
    """List what happened, as one node saw it, the oldest first."""
    since_unix_ms = 0 if since_s is None else max(0, round((time.time() - since_s) * 1000))
    if not is_followed:
        document = document_of(ask(urls, timeout_s, "GET", f"/debug/timeline?since={since_unix_ms}"), "events")
        if output == "json":
            print_json(document)
        else:
            for row in (EVENT_COLUMNS, *map(_event_cells, document["events"])):
                print_row(row, EVENT_WIDTHS)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _print_events(follow(urls, timeout_s, "/debug/events", last_id=0), since_unix_ms, output)


def _print_events(happening: Iterator[tuple[str, Any]], since_unix_ms: int, output: str) -> None:
    """Print events as they come. A view is one too; how many were lost is told on stderr."""
    is_first = True
    for kind, data in happening:
        if kind == "overflow":
            click.echo(f"zephyr: {data['lost']} earlier events are no longer kept", err=True)
            continue
        if data.get("at_unix_ms", since_unix_ms) < since_unix_ms:
            continue
        if output == "json":
            print_json_line(data if kind != "view" else {"kind": "view", **data})
            continue
        if is_first:
            print_row(EVENT_COLUMNS, EVENT_WIDTHS)
            is_first = False
        print_row(_event_cells(data) if kind != "view" else _view_cells(data), EVENT_WIDTHS)


def _event_cells(event: dict[str, Any]) -> tuple[Any, ...]:
    return (moment(event.get("at_unix_ms")), *(event.get(name) for name in EVENT_COLUMNS[1:]))


def _view_cells(view: dict[str, Any]) -> tuple[Any, ...]:
    detail = f"authority {view.get('authority')}, ring {view.get('digest')}, disagreements {view.get('disagreements')}"
    return (None, "view", None, None, detail)


@click.command()
@click.argument("node_id", metavar="ID")
@client_options
def certificate(node_id: str, urls: list[str], timeout_s: float, output: str) -> None:
    """Explain why a member was last declared dead, in the accuser's words. Exit code 3 when there are none."""
    path = f"/debug/certificate/{_quoted_id(node_id)}"
    names = ("member", "accuser", "accuser_url", "declared_at_unix_ms")
    document = document_of(ask(urls, timeout_s, "GET", path), *names)
    failure: CommandError | None = None
    if "suspicion" not in document and document["accuser_url"]:
        try:
            document = document_of(ask([document["accuser_url"]], timeout_s, "GET", ""), *names)
        except CommandError as error:
            failure = error
    if output == "json":
        print_json(document)
    else:
        click.echo("\n".join(_explanation(document)))
    if "suspicion" not in document:
        where = document["accuser_url"] or "an address that is not known"
        because = f" ({failure})" if failure is not None else ""
        code = EXIT_NOT_FOUND if failure is None else failure.exit_code
        raise CommandError(f"the certificate was kept by {document['accuser']} at {where}{because}", code)


def _explanation(document: dict[str, Any]) -> Iterator[str]:
    """Tell a certificate in a few lines; of a stub there is but one to tell."""
    declared = f"{document['member']} was declared dead by {document['accuser']}"
    if "suspicion" not in document:
        yield f"{declared}; this node heard of it at {moment(document['declared_at_unix_ms'])}"
        return
    suspicion, evidence = document["suspicion"], document["exit"]
    lasted_s = (document["declared_at_unix_ms"] - document["suspected_at_unix_ms"]) / 1000
    cause = "its process ended" if document["cause"] == "exit" else "it did not answer"
    yield f"{declared} at {moment(document['declared_at_unix_ms'])}: {cause}"
    yield f"life: epoch {document['epoch']}, incarnation {document['incarnation']}"
    first, *others = document["accusers"]
    confirmed = f", confirmed by {', '.join(others)}" if others else ", confirmed by nobody"
    yield f"suspected {lasted_s:.3f} s before, at {moment(document['suspected_at_unix_ms'])}, by {first}{confirmed}"
    curve = " -> ".join(f"{step['timeout_s']:g} s ({step['accuser']})" for step in suspicion["timeouts"])
    yield (
        f"time to refute: {curve}; at least {suspicion['min_s']:g} s, at most {suspicion['max_s']:g} s, "
        f"{suspicion['confirmations_expected']} confirmations expected; over after {suspicion['timeout_s']:g} s"
    )
    if suspicion["own_pause_s"]:
        yield f"{document['accuser']} itself did not run for {suspicion['own_pause_s']:g} s of that time"
    if evidence["observers"]:
        yield _exit_line(evidence, document["accuser"])
    for probe in document["probes"]:
        yield _probe_line(probe)
    round_trip = "not measured" if document["rtt_ms"] is None else f"{document['rtt_ms']:g} ms"
    yield (
        f"at the verdict: phi {document['phi']:g}, round trip {round_trip}, {document['accuser']}'s local health "
        f"{document['local_health']} and event-loop lag {document['event_loop_lag_s']:g} s, "
        f"{document['members_live']} members live"
    )


def _exit_line(evidence: dict[str, Any], accuser: str) -> str:
    signs = (("refused", "refused a connection"), ("udp_silent", "silent by UDP"))
    seen = " and ".join(text for name, text in signs if evidence[name]) or "nothing was seen"
    timeout_s = evidence["timeout_s"]
    ending = "" if timeout_s is None else f"; time to refute cut to {timeout_s:g} s"
    return f"exit seen by {', '.join(evidence['observers'])}; from {accuser}: {seen}{ending}"


def _probe_line(probe: dict[str, Any]) -> str:
    waited = "" if probe["direct_timeout_s"] is None else f" within {probe['direct_timeout_s']:g} s"
    nacks = f" ({', '.join(probe['nacks'])} got no answer either)" if probe["nacks"] else ""
    asked = f"; asked {', '.join(probe['helpers'])}{nacks}" if probe["helpers"] else "; nobody else to ask"
    tried = "; tried TCP" if probe["tcp_tried"] else ""
    return f"pinged at {moment(probe['at_unix_ms'])}: no answer{waited}{asked}{tried}"


def _quoted_id(node_id: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415  # slow

    if not node_id:
        raise CommandError("an id has at least one character", EXIT_USAGE)
    return quote(node_id.encode("utf-8", "surrogateescape"), safe="")
