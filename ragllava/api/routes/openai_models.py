"""`/v1/models`: each archive is a model by the name `ragllava/<archive>`, as OpenAI's clients choose one."""

from __future__ import annotations

from typing import Literal

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Answer, Call, NoBody, NoQuery, Routes
from ragllava.client import MODEL, AccessRole, Archive, archive_named
from ragllava.errors import NotFound

routes = Routes("Models")


class ModelObject(Answer):
    """A model: one archive, or `ragllava` alone, with which a request names its archive in `metadata`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = MODEL


class ModelList(Answer):
    """All models that the caller may use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


@routes.get("/v1/models", needs=AccessRole.READ, answer=ModelList)
def list_models(call: Call[NoQuery, NoBody]) -> ModelList:
    """The archives that the caller may see, as models."""
    archives = [archive for archive in call.client.archives.listed() if call.principal.may_see(archive.archive_id)]
    return ModelList(data=[ModelObject(id=MODEL, created=1), *map(_model, archives)])


@routes.get("/v1/models/{model:path}", needs=AccessRole.READ, answer=ModelObject, archive_in="path:model")
def show_model(call: Call[NoQuery, NoBody]) -> ModelObject:
    """One of them."""
    model = call.path("model")
    if model == MODEL:
        return ModelObject(id=MODEL, created=1)
    for archive in call.client.archives.listed():
        if model == f"{MODEL}/{archive.name}" and call.principal.may_see(archive.archive_id):
            return _model(archive)
    raise NotFound(f"there is no model {model[:80]!r}; GET /v1/models lists all")


def archive_of_model(model: str) -> str | None:
    """The archive that the name of a model names, None for `ragllava` alone. Raises InvalidRequest for other models."""
    if model == MODEL:
        return None
    name = archive_named(model)
    if name is None:
        raise InvalidRequest(
            f"the model {model[:80]!r} does not exist; use ragllava/<archive>, or ragllava with metadata.archive",
            "model",
            "model_not_found",
        )
    return name


def _model(archive: Archive) -> ModelObject:
    return ModelObject(id=f"{MODEL}/{archive.name}", created=int(archive.created_at.timestamp()))
