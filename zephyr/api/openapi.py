"""The description of the HTTP API for programs: an OpenAPI 3.1 document, at `/openapi.json`.

Says what `contract`, `batch`, `scan`, `debug` and `http` do, and decides nothing. Every problem and bound in it
is taken from where it is decided. The shapes of pages are those of an interface, to which names may be added: a page
with more of them still conforms. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from zephyr import __version__
from zephyr.api import batch, contract, scan
from zephyr.api.contract import Problem
from zephyr.config import KEY_BYTES_MAX, SLOTS, Settings
from zephyr.model import Authority, EtcdState, EtcdWitness, Failure, GossipWitness

DURATION_PATTERN = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]*\.[0-9]*[1-9][0-9]*)(ms|s|m|h|d)?$"
"""Whatever is above 0."""
TAG_LIST_PATTERN = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'
ETAG_PATTERN = r'^"[0-9a-f]{32}"$'
VERSION_PATTERN = r"^[0-9a-f]{32}$"

Json = dict[str, Any]

_EVERYWHERE = (
    contract.MALFORMED, contract.TOO_SLOW, contract.KEY_TOO_LONG, contract.HEADERS_TOO_LARGE,
    contract.TOO_MANY_CONNECTIONS,
)  # fmt: skip
"""What any request may be answered before anybody knows what it asks for."""
_WITH_BODY = (
    contract.TOO_MANY_BODIES, contract.EXPECTATION_FAILED, contract.NOT_SUPPORTED,
)  # fmt: skip
_FAILURES = contract.FAILURES
_ON_READ = tuple(_FAILURES[kind] for kind in (Failure.UNAVAILABLE, Failure.UNKNOWN, Failure.OVERLOADED))
_ON_WRITE = (*_ON_READ, *(_FAILURES[kind] for kind in (Failure.TOO_LARGE, Failure.CLOCK_SKEW)))
_ON_KEY = (
    contract.BAD_KEY, contract.BAD_PARAMETER, contract.BAD_HEADER, contract.UNKNOWN_PAGE, contract.NOT_SUPPORTED,
    contract.NOT_READY, contract.PRECONDITION_FAILED,
)  # fmt: skip
"""What may be wrong with a request under `/kv/`, whatever its method."""


def document(settings: Settings) -> Json:
    """Return the document of a node with these settings, ready to be written as JSON."""
    paths = {"/kv/{key}": _values(settings), "/batch": {"post": _batch()}, "/scan": {"get": _scan()}}
    paths |= {path: {"get": operation} for path, operation in _pages().items()}
    for path in paths.values():
        if "get" in path and "head" not in path:
            path["head"] = _headed(path["get"])
    paths |= {path: {"post": operation} for path, operation in _actions().items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ZephyrCache",
            "version": __version__,
            "summary": "A distributed cache; any node answers any request.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "values", "description": "One key."},
            {"name": "many", "description": "Many keys."},
            {"name": "probes", "description": "For load balancers and supervisors."},
            {"name": "pages", "description": "What a node is, what it believes, and what happened."},
            {"name": "orders", "description": "What operators may ask of a node."},
        ],
        "paths": paths,
        "components": {
            "parameters": _parameters(settings),
            "headers": _headers(),
            "responses": {
                f"Refused{status}": _refusal(status, kinds) for status, kinds in _by_status(_EVERYWHERE).items()
            },
            "schemas": _schemas(),
        },
    }


_DESCRIPTION = """\
Keys are any bytes, 1 to 1,024 of them: the path after `/kv/`, percent-decoded once, without any normalisation. In JSON
a key is a percent-encoded string. Values are opaque. Errors are problem+json (RFC 9457); 503 means that nothing was
applied anywhere, 504 that the outcome is unknown. A parameter that is unknown, given twice or empty is refused under
`/kv/`, `/batch` and `/scan`; pages ignore what they do not know. Any other method is answered 405, any other path 404.
"""


# --- operations -----------------------------------------------------------------------------------------


def _values(settings: Settings) -> Json:
    value = {"required": False, "content": {"*/*": {"schema": _BYTES}, "application/octet-stream": {"schema": _BYTES}}}
    value["description"] = f"The value: any bytes, at most {settings.value_max}; its Content-Type is kept."
    read_parameters = ("r", "timeout", "If-Match", "If-None-Match")
    write_parameters = ("ttl", "w", "sloppy", "timeout", "If-Match", "If-None-Match")
    written = (*_ON_KEY, *_ON_WRITE, _FAILURES[Failure.CONFLICT])
    too_large = (contract.VALUE_TOO_LARGE,)
    get = _operation(
        "values", "readValue", "Read a value", read_parameters,
        {200: _found(), 304: _answered("It is the one that the client has.", *_VALIDATORS)},
        problems=(*_ON_KEY, *_ON_READ, contract.NOT_FOUND),
    )  # fmt: skip
    put = _operation(
        "values", "writeValue", "Write a value", write_parameters, _CREATED_OR_REPLACED,
        problems=(*written, *_WITH_BODY, *too_large), body=value,
    )  # fmt: skip
    post = _operation(
        "values", "postValue", "Write a value, or with `incr` add to a number", (*write_parameters, "incr"),
        {**_CREATED_OR_REPLACED, 200: _counted()},
        problems=(*written, *_WITH_BODY, *too_large, _FAILURES[Failure.NOT_A_NUMBER]), body=value,
    )  # fmt: skip
    delete = _operation(
        "values", "deleteValue", "Delete a value, whether it is there or not",
        ("w", "sloppy", "timeout", "If-Match", "If-None-Match"),
        {204: _answered("There is no value now.", *_ORIGIN, "X-Zephyr-Hinted")}, problems=written,
    )  # fmt: skip
    patch = _operation(
        "values", "setDeadline", "Set or remove the deadline of a value",
        ("ttlOrNone", "w", "timeout", "If-Match", "If-None-Match"),
        {204: _answered("It has the deadline, and a new version.", "ETag", *_ORIGIN, "X-Zephyr-Hinted")},
        problems=(*written, *_WITH_BODY, contract.NOT_FOUND),
    )  # fmt: skip
    post["description"] = (
        "With `incr` it takes no body: an absent key starts at 0, `ttl` counts only where it is created, and the new "
        "number is answered."
    )
    operations = {"get": get, "head": _headed(get), "put": put, "post": post, "delete": delete, "patch": patch}
    return {"parameters": [_ref("parameters", "key")], **operations}


def _batch() -> Json:
    rows = {"type": "array", "maxItems": batch.OPERATIONS_MAX, "items": _ref("schemas", "BatchOperation")}
    answer = _json(
        "A row for each operation, in the same order.", _list(_ref("schemas", "BatchRow")), "X-Zephyr-Coordinator"
    )
    return _operation(
        "many", "batch", "Many operations at once", ("r", "w", "sloppy", "timeout"), {200: answer},
        problems=(contract.BAD_PARAMETER, contract.NOT_READY, batch.BATCH_TOO_LARGE, *_WITH_BODY),
        body={
            "required": True,
            "description": f"At most {batch.OPERATIONS_MAX} operations and {batch.BODY_BYTES_MAX} bytes. Operations on "
            "one key are done in their order; a malformed one has status 400 of its own. The query holds for all; "
            f"`timeout` for the whole. Values of more than {batch.VALUES_BYTES_MAX} bytes in all are not answered.",
            "content": {"application/json": {"schema": rows}},
        },
    )  # fmt: skip


def _scan() -> Json:
    operation = _operation(
        "many", "scan", "List keys", ("prefix", "limit", "cursor", "timeout"),
        {200: _json("Keys, and where to go on.", _ref("schemas", "ScanPage"), "X-Zephyr-Coordinator")},
        problems=(contract.BAD_PARAMETER, contract.NOT_READY, *_ON_READ),
    )  # fmt: skip
    operation["description"] = (
        "A key that stays all the while is listed once or more. A page may have fewer keys than asked for, or none, "
        "and yet a cursor."
    )
    return operation


def _pages() -> dict[str, Json]:
    not_ready = (contract.NOT_READY,)

    def page(name: str, summary: str, schema: str, *problems: Problem, parameters: tuple[str, ...] = ()) -> Json:
        answers = {200: _json(summary + ".", _ref("schemas", schema))}
        return _operation("pages", name, summary, parameters, answers, problems=(*not_ready, *problems))

    text = {"text/plain": {"schema": {"type": "string"}}}
    alive = {200: {**_answered("The loop turns.", "Cache-Control"), "content": text}}
    ready = {200: {**_answered("Joined, level and not draining.", "Cache-Control"), "content": text}}
    formats = ("text/plain", "application/openmetrics-text")
    exposition = {kind: {"schema": {"type": "string"}} for kind in formats}
    metrics = {200: {**_answered("All metrics.", "Cache-Control"), "content": exposition}}
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    stream = {200: {**_answered("Events without an end.", "Cache-Control"), "content": events}}
    markup = {
        200: {
            **_answered("The page.", "ETag", "Cache-Control"),
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
        304: _answered("It is the one that the client has.", "ETag"),
    }
    document_schema = {"type": "object", "required": ["openapi", "paths"]}
    return {
        "/healthz": _operation("probes", "healthz", "Whether the loop turns", (), alive),
        "/livez": _operation("probes", "livez", "Whether the loop turns", (), alive),
        "/readyz": _operation("probes", "readyz", "Whether this node is to be asked", (), ready, problems=not_ready),
        "/metrics": _operation("pages", "metrics", "Metrics for Prometheus", (), metrics),
        "/openapi.json": _operation(
            "pages", "openapi", "This document", (), {200: _json("This document.", document_schema)}
        ),
        "/info": page("info", "What this process is and holds", "Info"),
        "/debug": _operation("pages", "page", "The page for people", (), markup),
        "/debug/cluster": page("cluster", "What every node says, asked by this one", "Cluster"),
        "/debug/cluster/certificate/{id}": page(
            "clusterCertificate", "Why a member was last declared dead, in its accuser's words", "Certificate",
            contract.UNKNOWN_MEMBER, contract.NO_CERTIFICATE, parameters=("id",),
        ),
        "/debug/views": page("views", "What each witness says of each member, and what follows", "Views"),
        "/debug/ring": page(
            "ring", "Who owns how much, or with `key` who owns that key", "RingOrKey",
            contract.BAD_PARAMETER, contract.UNKNOWN_PAGE, parameters=("ringKey",),
        ),
        "/debug/timeline": page(
            "timeline", "What happened, the oldest first", "Timeline", contract.BAD_PARAMETER, parameters=("since",)
        ),
        "/debug/events": _operation(
            "pages", "events", "What happens, as it happens (Server-Sent Events)", ("Last-Event-ID",), stream,
            problems=(*not_ready, contract.TOO_MANY_STREAMS),
        ),
        "/debug/certificate/{id}": page(
            "certificate", "Why a member was last declared dead", "Certificate", contract.UNKNOWN_MEMBER,
            contract.NO_CERTIFICATE, parameters=("id",),
        ),
        "/cluster/explain/{key}": page(
            "explain", "Where a key is", "Explanation", contract.BAD_KEY, contract.UNKNOWN_PAGE, parameters=("key",)
        ),
    }  # fmt: skip


def _actions() -> dict[str, Json]:
    def order(name: str, summary: str, parameters: tuple[str, ...], done: Json, *problems: Problem) -> Json:
        required = {"type": "object", "required": list(done), "properties": done}
        answers = {202: _json("The order was taken.", required)}
        return _operation("orders", name, summary, parameters, answers, problems=(contract.NOT_READY, *problems))

    return {
        "/cluster/evict/{id}": order(
            "evict", "Propose that a member be removed", ("id",),
            {"member": _STRING, "proposed": {"const": True}}, contract.UNKNOWN_MEMBER, contract.CANNOT_EVICT,
        ),
        "/cluster/release": order(
            "release", "Let a held ring go", (), {"released": {"const": True}}, contract.NOTHING_HELD
        ),
    }  # fmt: skip


def _operation(
    tag: str,
    name: str,
    summary: str,
    parameters: tuple[str, ...],
    answers: Mapping[int, Json],
    *,
    problems: tuple[Problem, ...] = (),
    body: Json | None = None,
) -> Json:
    """Describe one method of one path; every request may also end in what may happen to any."""
    responses = {str(status): answer for status, answer in answers.items()}
    responses |= _refusals((*_EVERYWHERE, *problems))
    operation: Json = {"operationId": name, "tags": [tag], "summary": summary}
    if parameters:
        operation["parameters"] = [_ref("parameters", parameter) for parameter in parameters]
    if body is not None:
        operation["requestBody"] = body
    operation["responses"] = dict(sorted(responses.items()))
    return operation


def _headed(get: Json) -> Json:
    """Describe HEAD: the same answers, without their bodies."""
    everywhere = {str(status): _refusal(status, kinds) for status, kinds in _by_status(_EVERYWHERE).items()}
    responses = {
        status: {name: part for name, part in (everywhere[status] if "$ref" in response else response).items()
                 if name != "content"}
        for status, response in get["responses"].items()
    }  # fmt: skip
    summary = f"{get['summary']}: the headers alone"
    return {**get, "operationId": f"{get['operationId']}Head", "summary": summary, "responses": responses}


def _refusals(problems: tuple[Problem, ...]) -> dict[str, Json]:
    """Describe an answer for each status: which problems have it."""
    everywhere = _by_status(_EVERYWHERE)
    return {
        str(status): _ref("responses", f"Refused{status}")
        if kinds == everywhere.get(status)
        else _refusal(status, kinds)
        for status, kinds in _by_status(problems).items()
    }


def _by_status(problems: tuple[Problem, ...]) -> dict[int, list[Problem]]:
    by_status: dict[int, list[Problem]] = {}
    for problem in dict.fromkeys(problems):
        by_status.setdefault(problem.status, []).append(problem)
    return by_status


def _refusal(status: int, kinds: list[Problem]) -> Json:
    types = [contract.PROBLEM_TYPE_PREFIX + kind.name for kind in kinds]
    narrowed = {"properties": {"type": {"enum": types}, "status": {"const": status}}}
    names = ("Cache-Control", "Retry-After") if status in contract.WAIT_STATUSES else ("Cache-Control",)
    return {
        **_answered("; or ".join(f"{kind.title} (`{kind.name}`)" for kind in kinds) + ".", *names),
        "content": {"application/problem+json": {"schema": {"allOf": [_ref("schemas", "Problem"), narrowed]}}},
    }


def _answered(description: str, *headers: str) -> Json:
    return {"description": description, "headers": {name: _ref("headers", name) for name in headers}}


def _json(description: str, schema: Json, *headers: str) -> Json:
    return {**_answered(description, "Cache-Control", *headers), "content": {"application/json": {"schema": schema}}}


def _found() -> Json:
    return {
        **_answered("The value, with the Content-Type that it was written with.", *_VALIDATORS),
        "content": {"*/*": {"schema": _BYTES}},
    }


def _counted() -> Json:
    number = {"text/plain": {"schema": {"type": "string", "pattern": "^-?[0-9]{1,19}$"}}}
    return {**_answered("With `incr`: the new number.", "ETag", *_ORIGIN, "X-Zephyr-Hinted"), "content": number}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


_BYTES: Json = {}
"""Of any bytes there is nothing to be said (OpenAPI 3.1, section 4.8.14.4)."""
_STRING: Json = {"type": "string"}
_ORIGIN = ("X-Zephyr-Coordinator", "X-Zephyr-Replicas")
_VALIDATORS = ("ETag", "Last-Modified", "Cache-Control", *_ORIGIN, "X-Zephyr-Authority")
_CREATED_OR_REPLACED = {
    201: _answered("It was created.", "ETag", *_ORIGIN, "X-Zephyr-Hinted"),
    204: _answered("It replaced a value.", "ETag", *_ORIGIN, "X-Zephyr-Hinted"),
}


# --- parameters and headers -----------------------------------------------------------------------------


def _parameters(settings: Settings) -> dict[str, Json]:
    quorum = {"anyOf": [{"enum": ["quorum", "all"]}, {"type": "integer", "minimum": 1, "maximum": settings.replicas}]}
    duration = {"type": "string", "pattern": DURATION_PATTERN}
    step = {"type": "integer", "minimum": contract.STEP_MIN, "maximum": contract.STEP_MAX}
    limit = {"type": "integer", "minimum": 1, "maximum": scan.LIMIT_MAX, "default": scan.LIMIT_DEFAULT}
    deadline = "seconds (`30`, `1.5`) or with unit (`500ms`, `1.5s`, `5m`, `2h`, `7d`), above 0"
    none_or_ttl = {"anyOf": [{"const": "none"}, duration]}
    node_id = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
    above_members = "More than there are members now: 503."
    return {
        "key": _parameter(
            "path", "key", {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX},
            f"Any bytes, percent-encoded; 1 to {KEY_BYTES_MAX} once decoded.",
        ),
        "id": _parameter("path", "id", node_id, "Id of a member."),
        "ttl": _parameter("query", "ttl", duration, f"How long the value is kept: {deadline}, at most ten years."),
        "ttlOrNone": {
            **_parameter("query", "ttl", none_or_ttl, f"From now on: {deadline}, at most ten years; or no limit."),
            "required": True,
        },
        "r": _parameter("query", "r", quorum, f"Replicas that must answer. {above_members}"),
        "w": _parameter("query", "w", quorum, f"Replicas that must acknowledge. {above_members}"),
        "timeout": _parameter(
            "query", "timeout", duration, f"Deadline: {deadline}, at most {contract.TIMEOUT_S_MAX:.0f} s."
        ),
        "sloppy": _parameter(
            "query", "sloppy", {"type": "boolean", "default": False},
            "What another live node keeps for an owner counts as that owner's. Not with conditions nor with `incr`.",
        ),
        "incr": _parameter("query", "incr", step, "What to add to the number that stands."),
        "prefix": _parameter(
            "query", "prefix", {"type": "string", "maxLength": KEY_BYTES_MAX}, "Keys that begin so, percent-encoded.",
            allowEmptyValue=True,
        ),
        "limit": _parameter("query", "limit", limit, "Most keys of a page."),
        "cursor": _parameter(
            "query", "cursor", {"type": "string", "maxLength": scan.CURSOR_CHARACTERS_MAX},
            "Of the page before, of whichever node.", allowEmptyValue=True,
        ),
        "since": _parameter("query", "since", {"type": "string", "pattern": "^[0-9]{0,15}$"}, "A moment in unix ms."),
        "ringKey": _parameter("query", "key", {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX}, "A key."),
        "If-Match": _parameter("header", "If-Match", _tags(), "What must stand (RFC 9110, 13.1.1), compared strongly."),
        "If-None-Match": _parameter(
            "header", "If-None-Match", _tags(), "What must not stand (RFC 9110, 13.1.2), compared weakly."
        ),
        "Last-Event-ID": _parameter(
            "header", "Last-Event-ID", _STRING, "The id of the last event that was read."
        ),
    }  # fmt: skip


def _parameter(where: str, name: str, schema: Json, description: str, **more: Any) -> Json:
    required = {"required": True} if where == "path" else {}
    return {"in": where, "name": name, "description": description, "schema": schema, **required, **more}


def _tags() -> Json:
    return {"type": "string", "pattern": TAG_LIST_PATTERN}


def _headers() -> dict[str, Json]:
    def header(description: str, pattern: str) -> Json:
        return {"description": description, "schema": {"type": "string", "pattern": pattern}}

    return {
        "ETag": {**header("The version: the same on every replica.", ETAG_PATTERN), "required": True},
        "Last-Modified": header("When this version was written.", " GMT$"),
        "Cache-Control": header(
            "Of a value: `max-age`, what is left of its ttl in whole seconds, or `no-cache`; of all else: `no-store`.",
            "^(max-age=[0-9]+|no-cache|no-store)$",
        ),
        "Retry-After": header("Seconds after which it may go better.", "^[0-9]+$"),
        "X-Zephyr-Coordinator": header("The node that answered.", "^[A-Za-z0-9._-]{1,64}$"),
        "X-Zephyr-Replicas": header("Replicas that had answered, of those that were asked.", "^[0-9]+/[0-9]+$"),
        "X-Zephyr-Hinted": header("Owners for which another node keeps it until they are back.", "^[A-Za-z0-9._, -]+$"),
        "X-Zephyr-Authority": header("The replica could not make sure that it still is one.", "^unconfirmed$"),
    }


# --- shapes ---------------------------------------------------------------------------------------------


def _object(**properties: Json) -> Json:
    """Describe an object that has all of these names, and may have others."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _or_null(kind: str) -> Json:
    return {"type": [kind, "null"]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _schemas() -> dict[str, Json]:
    return {**_schemas_of_values(), **_schemas_of_pages(), "Certificate": _certificate()}


def _schemas_of_values() -> dict[str, Json]:
    key = {"type": "string", "description": "Percent-encoded.", "minLength": 1}
    base64 = {"type": "string", "contentEncoding": "base64"}
    ttl = {"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"type": "number", "exclusiveMinimum": 0}]}
    put = _object(op={"const": "put"}, key=key, value=base64)
    put["properties"] |= {"ttl": ttl, "content_type": {"type": "string", "maxLength": 255}}
    replica = _object(
        node=_STRING,
        owner=_BOOLEAN,
        level=_BOOLEAN,
        state={"enum": ["value", "tombstone", "absent", "ghost", "unreachable"]},
        version={"type": ["string", "null"], "pattern": VERSION_PATTERN},
        expires_unix_ms=_or_null("integer"),
        hinted=_list(_STRING),
    )
    row = _object(
        key=_or_null("string"),
        status=_INTEGER,
        value={"type": ["string", "null"], "contentEncoding": "base64"},
        etag={"type": ["string", "null"], "pattern": ETAG_PATTERN},
    )
    row["properties"] |= {
        "content_type": _STRING, "hinted": _list(_STRING), "authority": {"const": "unconfirmed"}, "type": _STRING,
        "title": _STRING, "detail": _STRING, "retryable": _BOOLEAN,
    }  # fmt: skip
    row["description"] = "An error also has the members of a problem."
    problem = _object(type=_STRING, title=_STRING, status=_INTEGER, detail=_STRING, retryable=_BOOLEAN)
    problem["properties"]["type"] = {"type": "string", "pattern": f"^{contract.PROBLEM_TYPE_PREFIX}[a-z-]+$"}
    problem["properties"]["retryable"] = {
        "type": "boolean", "description": "The same request may be sent again, and may then succeed.",
    }  # fmt: skip
    slot = {"type": "integer", "minimum": 0, "maximum": SLOTS - 1}
    return {
        "Problem": problem,
        "BatchOperation": {
            "oneOf": [
                {**_object(op={"enum": ["get", "delete"]}, key=key), "additionalProperties": False},
                {**put, "additionalProperties": False},
            ]
        },
        "BatchRow": row,
        "ScanPage": _object(keys={**_list(key), "maxItems": scan.LIMIT_MAX}, cursor=_or_null("string")),
        "Explanation": _object(key=key, slot=slot, owners=_list(_STRING), replicas=_list(replica)),
        "KeyOwners": _object(key=key, slot=slot, owners=_list(_STRING)),
    }


def _schemas_of_pages() -> dict[str, Json]:
    info = dict.fromkeys(
        ("pid", "epoch", "replicas", "items", "bytes", "bytes_max", "tombstones", "tombstone_bytes", "ghosts",
         "slots_pending", "requests_in_flight"), _INTEGER,
    )  # fmt: skip
    member = _object(
        id=_STRING, http=_STRING, peer=_STRING, zone=_STRING, weight=_NUMBER, epoch=_INTEGER, state=_STRING,
        gossip=_object(
            state={"enum": list(get_args(GossipWitness))},
            incarnation={"type": ["array", "null"], "items": _INTEGER, "minItems": 2, "maxItems": 2},
            since_s=_or_null("number"), phi=_or_null("number"), rtt_ms=_or_null("number"),
        ),
        etcd=_object(state={"enum": list(get_args(EtcdWitness))}, revision=_INTEGER, since_s=_NUMBER),
        in_ring=_BOOLEAN, routable=_BOOLEAN, verdict=_STRING, reason=_STRING,
    )  # fmt: skip
    etcd = _object(
        state={"enum": list(get_args(EtcdState))}, revision=_INTEGER, lease_ttl_s=_or_null("number"), reason=_STRING
    )
    share = {"type": "number", "minimum": 0, "maximum": 1}
    owner = _object(id=_STRING, share=share, replica_share=share, tokens={"type": "integer", "minimum": 1})
    ring = _object(epoch=_STRING, digest=_STRING, virtual_nodes=_INTEGER, owners=_list(owner), pending=_list(_STRING))
    event = _object(
        at_unix_ms=_INTEGER, kind=_STRING, member=_STRING,
        source={"enum": ["gossip", "etcd", "ring", "repair", "authority", "node"]}, detail=_STRING, sequence=_INTEGER,
    )  # fmt: skip
    return {
        "Info": _object(
            id=_STRING, version=_STRING, uptime_s=_NUMBER, cluster=_STRING, zone=_STRING, weight=_NUMBER,
            ready=_BOOLEAN, **info,
        ),
        "Views": _object(
            node=_STRING, cluster=_STRING, now_unix_ms=_INTEGER, authority={"enum": list(get_args(Authority))},
            authority_since_s=_NUMBER, etcd=etcd,
            gossip=_object(health=_INTEGER, probe_interval_s=_NUMBER, event_loop_lag_s=_or_null("number")),
            ring=_object(epoch=_STRING, digest=_STRING, owners=_list(_STRING)), disagreements=_INTEGER,
            members=_list(member),
        ),
        "Cluster": _object(
            node=_STRING, now_unix_ms=_INTEGER, took_ms=_NUMBER, not_asked=_list(_STRING),
            nodes=_list(
                _object(
                    id=_STRING, http=_STRING, answered=_BOOLEAN, reason=_STRING, took_ms=_NUMBER,
                    views=_or_null("object"), info=_or_null("object"),
                )
            ),
        ),
        "Ring": ring,
        "RingOrKey": {"oneOf": [_ref("schemas", "Ring"), _ref("schemas", "KeyOwners")]},
        "Timeline": _object(events=_list(event)),
    }  # fmt: skip


def _certificate() -> Json:
    """Describe what the accuser tells, or what another node knows: who that is."""
    stub = _object(member=_STRING, accuser=_STRING, accuser_url=_or_null("string"), declared_at_unix_ms=_INTEGER)
    told = {
        "epoch": _INTEGER, "incarnation": _INTEGER, "cause": _STRING, "suspected_at_unix_ms": _INTEGER,
        "accusers": _list(_STRING), "probes": _list({"type": "object"}), "exit": {"type": "object"},
        "suspicion": {"type": "object"}, "phi": _NUMBER, "rtt_ms": _or_null("number"), "local_health": _INTEGER,
        "event_loop_lag_s": _or_null("number"), "members_live": _INTEGER,
    }  # fmt: skip
    stub["properties"] |= told
    return stub


_BOOLEAN: Json = {"type": "boolean"}
_INTEGER: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
