"""`/openapi.json` tells the truth: its references resolve, its fields are those the code takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import msgspec
from starlette.routing import Route, WebSocketRoute

from gateway import explain
from gateway.app import create_app
from gateway.brokers.base import Receipt
from gateway.errors import ENDS, KINDS, Problem
from gateway.grants import Wanted
from gateway.job import Body as JobBody
from gateway.job import State
from gateway.publish import Body
from gateway.roll_call import Connection, Roll
from gateway.settings import Settings
from gateway.verbs import Disconnect, Subscription

DOCUMENT: dict[str, Any] = json.loads(files("gateway").joinpath("openapi.json").read_bytes())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_resolves_and_nothing_is_there_for_nobody() -> None:
    components = DOCUMENT["components"]
    defined = {f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in components[kind]}
    assert set(references(DOCUMENT)) == defined


def test_bodies_have_the_fields_that_are_taken() -> None:
    bodies: dict[str, type[msgspec.Struct]] = {
        "Publish": Body, "TicketRequest": Wanted, "JobEvent": JobBody, "Disconnect": Disconnect,
        "Subscription": Subscription,
    }  # fmt: skip
    for schema, taken in bodies.items():
        assert set(SCHEMAS[schema]["properties"]) == set(taken.__struct_fields__), schema


def test_a_disconnect_has_the_codes_that_are_taken() -> None:
    assert SCHEMAS["Disconnect"]["properties"]["code"]["enum"] == list(ENDS)
    assert len({KINDS[code].close for code in ENDS}) == len(ENDS)  # a poll tells the code by the number


def test_answers_have_the_fields_that_are_given() -> None:
    assert set(SCHEMAS["Receipt"]["properties"]) == set(msgspec.to_builtins(Receipt("topic:a", 1, "id")))
    assert set(SCHEMAS["Job"]["properties"]) == set(State.__struct_fields__)
    assert set(SCHEMAS["Connections"]["properties"]) == set(Roll.__struct_fields__)
    connection = SCHEMAS["Connections"]["properties"]["connections"]["items"]["properties"]
    assert set(connection) == set(Connection.__struct_fields__)
    told = Problem("rate_limited", "Later", retry_after=1).as_json()
    assert set(SCHEMAS["Problem"]["properties"]) == set(told)


async def test_what_is_explained_has_the_fields_that_are_given() -> None:
    node = create_app(Settings()).state.node
    assert set(SCHEMAS["Nodes"]["properties"]) == set(nodes := explain.nodes(node, details=True))
    assert set(SCHEMAS["Nodes"]["properties"]["nodes"]["items"]["properties"]) == set(nodes["nodes"][0])


def test_it_names_every_route_with_its_methods() -> None:
    served: dict[str, set[str]] = {}
    for route in create_app(Settings()).routes:
        if isinstance(route, Route) and route.include_in_schema:
            path = route.path.replace(":path}", "}")
            served.setdefault(path, set()).update(method.lower() for method in (route.methods or ()))
        elif isinstance(route, WebSocketRoute):
            served[route.path] = {"get"}
    assert {path: methods - {"head"} for path, methods in served.items()} == {
        path: set(operations) for path, operations in DOCUMENT["paths"].items()
    }


def test_every_operation_has_an_id_of_its_own() -> None:
    ids = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
