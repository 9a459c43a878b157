"""/openapi.json: every route, every parameter, nothing that is not so."""

from __future__ import annotations

import json
import re

from fastapi.routing import APIRoute

from safelight.api.dialects import native
from safelight.api.openapi import EXAMPLE_REQUEST, PREDICT_BODY


def refs_in(value: object) -> set[str]:
    return set(re.findall(r"#/components/schemas/(\w+)", json.dumps(value)))


def _is_public(route: object) -> bool:
    return isinstance(route, APIRoute) and route.include_in_schema


async def test_the_document_is_served_and_has_every_route(house):
    document = (await house.client.get("/openapi.json")).json()
    documented = {(path, method.upper()) for path, each in document["paths"].items() for method in each}
    routes = {(each.path, method) for each in house.app.routes if _is_public(each) for method in each.methods}
    assert routes == documented
    assert ("/{deployment}/predict", "POST") in documented and ("/runs/{run_id}/events", "GET") in documented


async def test_every_reference_leads_somewhere_and_nothing_is_left_over(house):
    document = (await house.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert refs_in(document) == set(schemas)


async def test_every_operation_tells_its_errors_and_its_parameters(house):
    document = (await house.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert {"421", "500"} <= statuses
            assert ({"401", "403"} <= statuses) == ("security" in operation), path
            in_path = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))
            assert operation["description"] and operation["responses"]
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (method, path)
    ids = [each["operationId"] for operations in document["paths"].values() for each in operations.values()]
    assert len(ids) == len(set(ids))


async def test_the_examples_are_taken_by_the_server(house):
    document = (await house.client.get("/openapi.json")).json()
    content = document["paths"]["/{deployment}/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]["full"]["value"] == EXAMPLE_REQUEST
    for example in content["examples"].values():
        answer = await house.client.post("/pinhole/predict", json=example["value"], headers={"Prefer": "respond-async"})
        assert answer.status_code in {200, 202}


def test_the_body_has_exactly_the_keys_that_are_read():
    asked = native.to_params(dict.fromkeys(PREDICT_BODY["properties"]) | {"prompt": "x"})
    assert asked.unknown_keys == () and asked.wrong == ()
    source = native.to_params({"prompt": "x", **{key: "?" for key in PREDICT_BODY["properties"] if key != "prompt"}})
    assert {error.field for error in source.wrong} | {"prompt", "negative_prompt", "webhook_endpoint"} == set(
        PREDICT_BODY["properties"]
    ) - {"hf_model_path", "model_id", "hf_token"}


async def test_the_keys_scheme_is_the_header_of_the_page(house):
    schemes = (await house.client.get("/openapi.json")).json()["components"]["securitySchemes"]
    assert schemes["key"]["name"] == "Authorization" and schemes["bearer"]["scheme"] == "bearer"
