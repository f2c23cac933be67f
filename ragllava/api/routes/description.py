"""`/openapi.json`, and `/docs`: the same as a page, without scripts and without other hosts."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment
from starlette.responses import JSONResponse, Response

from ragllava.api.description import describe
from ragllava.api.route import Call, NoBody, NoQuery, Route, Routes

routes = Routes("Description")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ api.info.title }} HTTP API</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
 details { border: 1px solid #ccc; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; }
 summary { cursor: pointer; } code, pre { font: 14px/1.4 ui-monospace, monospace; }
 pre { background: #f5f5f5; padding: .6rem; overflow: auto; } .method { font-weight: 700; min-width: 4.5rem; }
 @media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } pre { background: #262626; } }
</style>
<h1>{{ api.info.title }} {{ api.info.version }}</h1>
<p>{{ api.info.description }} For programs: <a href="/openapi.json">openapi.json</a>.</p>
{% for tag in api.tags %}
<h2>{{ tag.name }}</h2>
{% for path, methods in api.paths.items() %}{% for method, operation in methods.items() %}
{% if tag.name in operation.tags %}
<details id="{{ operation.operationId }}">
<summary><code><span class="method">{{ method | upper }}</span> {{ path }}</code> {{ operation.summary }}</summary>
<pre>{{ operation.description }}</pre>
{% if operation.parameters %}<h4>Parameters</h4><ul>
{% for parameter in operation.parameters %}<li><code>{{ parameter.name }}</code> ({{ parameter.in }}
{%- if parameter.required %}, required{% endif %}): <code>{{ parameter.schema | tojson }}</code></li>
{% endfor %}</ul>{% endif %}
{% if operation.requestBody %}<h4>Body</h4>
{% for type, content in operation.requestBody.content.items() %}<p>{{ type }}</p>
<pre>{{ content.schema | resolved | tojson(indent=2) }}</pre>{% endfor %}{% endif %}
<h4>Answers</h4><ul>
{% for status, response in operation.responses.items() %}<li>{{ status }}: {{ response.description }}
{% for type, content in (response.content or {}).items() if status | int < 300 %}<pre>{{ type }}
{{ (content.schema or {}) | resolved | tojson(indent=2) }}</pre>{% endfor %}</li>
{% endfor %}</ul>
</details>
{% endif %}{% endfor %}{% endfor %}{% endfor %}
</html>
"""


@routes.get("/openapi.json", needs=None)
def show_description(call: Call[NoQuery, NoBody]) -> Response:
    """This description: OpenAPI 3.1."""
    return JSONResponse(_document())


@routes.get("/docs", needs=None, streams="text/html")
def show_page(call: Call[NoQuery, NoBody]) -> Response:
    """The same as a page."""
    return Response(_page(), media_type="text/html", headers={"content-security-policy": _POLICY})


@cache
def _document() -> dict[str, Any]:
    return describe(_all_routes())


@cache
def _page() -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["resolved"] = _resolved
    return environment.from_string(_PAGE).render(api=_document())


def _resolved(schema: dict[str, Any]) -> Any:
    """A schema instead of a reference to it."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return _document()["components"]["schemas"].get(name, schema)


def _all_routes() -> tuple[Route, ...]:
    from ragllava.api.routes import ALL_ROUTES  # which has these, too

    return ALL_ROUTES
