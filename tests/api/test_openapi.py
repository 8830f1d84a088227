"""The document that describes the API: it is one, it leaves nothing out, and it says what is decided elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import create_autospec

import pytest
import schemathesis

from zephyr.api import batch, contract, http, openapi
from zephyr.api.assets import PAGE_PATH, assets
from zephyr.api.backend import Backend
from zephyr.api.http import HttpApi
from zephyr.config import Settings
from zephyr.metrics import Metrics
from zephyr.model import Instant

DOCUMENT = openapi.document(Settings(id="n1"))
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if method != "parameters"
}
NEVER_MEANT = {contract.INTERNAL_ERROR, contract.METHOD_NOT_ALLOWED, batch.BAD_OPERATION, batch.ANSWER_TOO_LARGE}
"""A fault of the program, what other methods are answered, and what only a row of a batch says."""


def inside(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from inside(item)


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found: Any = DOCUMENT
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


def test_it_is_a_document_of_openapi_3_1():
    assert DOCUMENT["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT))).validate()
    for item in inside(DOCUMENT):
        resolved(item)  # A reference that leads nowhere raises.
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


def test_every_path_is_described_and_no_other(free_standing_api):
    def described(path: bytes) -> str:
        name = "key" if path == http.EXPLAIN_PREFIX else "id"
        return path.decode() + (f"{{{name}}}" if path.endswith(b"/") else "")

    api = free_standing_api
    files = set(assets()) - {PAGE_PATH}
    expected = {(method, described(path)) for path in api._pages.keys() - files for method in contract.PAGE_METHODS}
    expected |= {(method, described(path)) for path in api._actions for method in contract.ACTION_METHODS}
    expected |= {(method, "/kv/{key}") for method in contract.KV_METHODS} | {("POST", http.BATCH_PATH.decode())}
    assert set(OPERATIONS) == expected


@pytest.fixture
def free_standing_api() -> HttpApi:
    backend = create_autospec(Backend, instance=True)
    return HttpApi(Settings(id="n1"), backend=backend, dispatch=print, now=lambda: Instant(0.0, 0), metrics=Metrics())


def test_every_problem_is_described_where_it_may_happen():
    modules = (contract, batch)
    problems = {value for module in modules for value in vars(module).values() if isinstance(value, contract.Problem)}
    problems |= set(contract.FAILURES.values())
    described = {
        problem_type
        for operation in OPERATIONS.values()
        for response in operation["responses"].values()
        for media in resolved(response).get("content", {}).values()
        for part in media["schema"].get("allOf", ())
        for problem_type in part.get("properties", {}).get("type", {}).get("enum", ())
    }
    assert described == {contract.PROBLEM_TYPE_PREFIX + problem.name for problem in problems - NEVER_MEANT}


@pytest.mark.parametrize("method", contract.KV_METHODS)
def test_every_parameter_under_kv_is_described(method):
    parameters = [resolved(item) for item in OPERATIONS[method, "/kv/{key}"]["parameters"]]
    assert {item["name"] for item in parameters if item["in"] == "query"} == set(contract.PARAMETERS[method])
    assert {item["name"] for item in parameters if item["in"] == "header"} == {"If-Match", "If-None-Match"}


def test_bounds_are_those_of_the_settings():
    parameters = openapi.document(Settings(id="n1", replicas=5))["components"]["parameters"]
    assert parameters["r"]["schema"]["anyOf"][1]["maximum"] == 5
    document = openapi.document(Settings(id="n1", value_max=12345))
    assert "12345" in document["paths"]["/kv/{key}"]["put"]["requestBody"]["description"]
