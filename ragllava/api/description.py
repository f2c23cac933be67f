"""The description of the HTTP API in OpenAPI 3.1, made of the list of routes and of the models that validate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from ragllava.api.route import Answer, NoBody, NoQuery, Route

_TEMPLATE = "#/components/schemas/{model}"
_PART = re.compile(r"\{(\w+)(:path)?\}")
_NUMBERS = ("job_id", "image_id", "index_id", "webhook_id")
# What every route may answer besides; 404 also stands for what belongs to an archive that the key does not see.
_PUBLIC_ERRORS = {400: "The request is wrong.", 500: "A fault of the server.", 503: "A service is away."}
_ERRORS = {
    **_PUBLIC_ERRORS,
    401: "No valid key.",
    403: "The role or the archives of the key do not allow it.",
    404: "It does not exist, or the key does not see it.",
    408: "The body was cut off.",
    409: "The state does not allow it.",
    413: "The body is too large.",
    422: "The idempotency key was used for something else.",
    429: "A quota or a rate is used up; `retry-after` says when to come back.",
    504: "No worker has answered in time.",
}


class ErrorDetail(Answer):
    """What is wrong, and where."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """The body of every error."""

    error: ErrorDetail


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "RagLLaVA",
            "version": version("ragllava"),
            "description": "Questions to archives of pictures. An archive is a model; a batch of questions is a job.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas:
    """The schemas of all models, each under one name."""

    def __init__(self, routes: Sequence[Route]) -> None:
        inputs: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
            (model, mode, TypeAdapter(model)) for model, mode in dict.fromkeys(_models(routes))
        ]
        generator = GenerateJsonSchema(ref_template=_TEMPLATE)
        made, definitions = generator.generate_definitions(
            [(model, mode, adapter.core_schema) for model, mode, adapter in inputs]
        )
        self._of = {(model, mode): made[model, mode] for model, mode, _ in inputs}
        self.definitions: dict[str, Any] = {str(name): schema for name, schema in definitions.items()}

    def of(self, model: Any, mode: JsonSchemaMode) -> dict[str, Any]:
        """A reference to the schema of a model."""
        return dict(self._of[model, mode])

    def properties(self, model: Any) -> tuple[dict[str, Any], list[str]]:
        """The fields of a model, and which of them are required."""
        schema = self.of(model, "validation")
        name = schema.get("$ref", "").rpartition("/")[2]
        schema = self.definitions.get(name, schema)
        return schema.get("properties", {}), schema.get("required", [])


def _models(routes: Sequence[Route]) -> Iterator[tuple[Any, JsonSchemaMode]]:
    yield ErrorAnswer, "serialization"
    for route in routes:
        yield route.query, "validation"
        yield route.body, "validation"
        if route.answer is not None:
            yield route.answer, "serialization"
        if route.answer_also is not None:
            yield route.answer_also, "serialization"


def _path(route: Route) -> str:
    return _PART.sub(r"{\1}", route.path)


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": _full_description(route),
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas)],
        "responses": _responses(route, schemas),
    }
    body = _request_body(route, schemas)
    if body is not None:
        operation["requestBody"] = body
    if route.needs is None:
        operation["security"] = []
    return operation


def _full_description(route: Route) -> str:
    role = "No key is needed." if route.needs is None else f"Role: {route.needs.value}."
    bound = " Not for keys that are bound to archives." if route.of_all else ""
    return f"{route.description}\n\n{role}{bound}"


def _path_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name, _ in _PART.findall(route.path):
        schema = {"type": "integer", "minimum": 0} if name in _NUMBERS else {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(route: Route, schemas: _Schemas) -> Iterator[dict[str, Any]]:
    if route.query is NoQuery:
        return
    properties, required = schemas.properties(route.query)
    for name, schema in properties.items():
        yield {"name": name, "in": "query", "required": name in required, "schema": _without_null(schema)}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter, which is left out where a body would say null."""
    choices = schema.get("anyOf")
    if choices is None or {"type": "null"} not in choices:
        return schema
    left = [choice for choice in choices if choice != {"type": "null"}]
    others = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return others | (left[0] if len(left) == 1 else {"anyOf": left})


def _request_body(route: Route, schemas: _Schemas) -> dict[str, Any] | None:
    if route.upload is not None:
        properties, required = schemas.properties(route.body)
        file = {"type": "string", "contentMediaType": "application/octet-stream"}
        form = {"type": "object", "properties": {**properties, "file": file}, "required": [*required, "file"]}
        return {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    if route.body is NoBody:
        return None
    return {"required": True, "content": {"application/json": {"schema": schemas.of(route.body, "validation")}}}


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    responses = {str(route.status): {"description": "It is done.", **_content(route, schemas)}}
    if route.streams is not None and route.method == "GET":
        responses |= {
            "204": {"description": "There is nothing more to come."},
            "206": {"description": "The part that was asked for.", "content": {"*/*": {}}},
            "304": {"description": "The client has it already."},
            "416": {"description": "The range is outside the file.", "content": {"*/*": {}}},
        }
    error = {"application/json": {"schema": schemas.of(ErrorAnswer, "serialization")}}
    errors = _PUBLIC_ERRORS if route.needs is None else _ERRORS
    return responses | {str(status): {"description": said, "content": error} for status, said in errors.items()}


def _content(route: Route, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        schema = schemas.of(route.answer, "serialization")
        if route.answer_also is not None:
            schema = {"anyOf": [schema, schemas.of(route.answer_also, "serialization")]}
        content["application/json"] = {"schema": schema}
    if route.streams is not None:
        content[route.streams] = {}
    if not content:
        content["application/json"] = {"schema": {"type": "object"}}
    return {"content": content}
