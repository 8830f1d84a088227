"""`/openapi.json` against a real node: whatever a client sends, the answer is one that the document describes.

schemathesis makes the requests, from the document: valid ones, ones at the bounds, and ones that break each rule of
it. What the document says of a status, its media type, headers and body holds for each answer, what breaks the document
is refused, and no answer is 500, which is in it nowhere. A failure prints the request and how to run it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from zephyr.api.openapi import document
from zephyr.config import Settings

EXAMPLES = 10
"""Random requests to each operation; those at the bounds, up to 150, come on top of them."""
TIMEOUT_S = 30.0
CHECKS = [
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
CONFIG = schemathesis.Config.from_dict(
    {
        "phases": {"stateful": {"enabled": False}},  # There are no links: a key is the client's, not an answer's.
        "checks": {"negative_data_rejection": {"expected-statuses": [400, 404, 405, 409, 414]}},
    }
)
DESCRIBED = schemathesis.openapi.from_dict(document(Settings(id="n1")), config=CONFIG)


@pytest.fixture(scope="module")
def session(lone_node) -> Iterator[requests.Session]:
    with requests.Session() as session:
        described = session.get(f"http://{lone_node.http}/openapi.json", timeout=TIMEOUT_S)
        assert described.json() == document(Settings(id="n1")), "what is tested is what the node serves"
        yield session


@DESCRIBED.exclude(path="/debug/events", method="GET").parametrize()  # It has no end.
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_document_describes(case, lone_node, session):
    url = f"http://{lone_node.http}"
    key = case.path_parameters.get("key", "")
    if case.path == "/kv/{key}" and case.method != "PUT" and len(key) % 2:
        # Reads find something now and then, and what is to be counted up is a number.
        session.put(url + case.formatted_path, data=b"41", timeout=TIMEOUT_S)
    # A bad operation of a batch is a row of its own, and no reason to refuse the others.
    excluded = [negative_data_rejection] if case.path == "/batch" else []
    case.call_and_validate(base_url=url, session=session, checks=CHECKS, excluded_checks=excluded, timeout=TIMEOUT_S)
