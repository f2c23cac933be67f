"""What clients of vLLM, Jina, Cohere and TEI send to be scored: queries and documents, in all their forms."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Body
from ragllava.api.routes.native.shared import Id, LongText

MAX_BODY_BYTES = 32 * 2**20
MAX_DOCUMENTS = 1_000
_MAX_PARTS = 20
_LETTERS_OF_A_TOKEN = 4  # about; `max_tokens_per_doc` need not be exact

# A picture as text: `data:image/png;base64,…`, or the base64 alone.
Data = Annotated[str, StringConstraints(max_length=MAX_BODY_BYTES)]


class ImageAddress(Body):
    """`url` is a data: address; remote ones are not fetched."""

    url: Data


class Part(Body):
    """A part of a document: a text, or a picture."""

    type: Annotated[str, StringConstraints(max_length=40)]
    text: LongText | None = None
    image_url: ImageAddress | Data | None = None
    image: Data | None = None


class ItemBody(Body):
    """One document, whatever its parts: a text, a picture, both, or a stored picture with its caption (`image_id`)."""

    text: LongText | None = None
    image: Data | None = None
    image_id: Id | None = None
    content: LongText | Annotated[list[Part], Field(max_length=_MAX_PARTS)] | None = None


Item = LongText | ItemBody
Items = Item | Annotated[list[Item], Field(max_length=MAX_DOCUMENTS)]


def _given(items: list[Item] | None) -> list[Item] | None:
    """An empty list is no list. Raises ValueError."""
    if items is not None and not items:
        raise ValueError("must have at least one document")
    return items


Documents = Annotated[list[Item], Field(max_length=MAX_DOCUMENTS), AfterValidator(_given)]


class RerankBody(Body):
    """A query and documents (`texts` for clients of TEI). `top_n` 0 or null: all. `instruction` is not used."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "ragllava"
    query: Item
    documents: Documents | None = None
    texts: Annotated[list[LongText], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    top_n: Annotated[int, Field(ge=0, le=2**31)] | None = None
    return_documents: bool | None = None
    return_text: bool = False
    max_tokens_per_doc: Annotated[int, Field(ge=1, le=2**31)] | None = None
    instruction: LongText | None = None
    instruct: LongText | None = None


class ScoreBody(Body):
    """Two lists under one of three pairs of names: one to one, one to many, or as many as there are on both sides."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "ragllava"
    queries: Items | None = None
    documents: Items | None = None
    data_1: Items | None = None
    data_2: Items | None = None
    text_1: Items | None = None
    text_2: Items | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1, le=2**31)] | None = None
    instruction: LongText | None = None
    instruct: LongText | None = None

    @property
    def sides(self) -> tuple[list[Item], list[Item]]:
        """Both lists, equally long. Raises InvalidRequest."""
        given = [(self.queries, self.documents), (self.data_1, self.data_2), (self.text_1, self.text_2)]
        named = [(left, right) for left, right in given if left is not None and right is not None]
        if len(named) != 1:
            raise InvalidRequest("give queries and documents, or data_1 and data_2, or text_1 and text_2")
        left, right = (side if isinstance(side, list) else [side] for side in named[0])
        if not left or not right or len(left) not in (1, len(right)):
            raise InvalidRequest(
                f"{len(left)} and {len(right)} texts do not fit: give one and many, or as many on both sides"
            )
        return (left * len(right) if len(left) == 1 else left), right


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document: its text, the bytes of its picture, or the id of a stored one."""

    text: str | None = None
    picture: bytes | None = None
    image_id: int | None = None


def parse_query(item: Item) -> str:
    """The text of a query. Raises InvalidRequest for one with a picture: the reranker reads a question and a picture of
    a document."""
    parsed = parse_item(item, "query")
    if parsed.picture is not None or parsed.image_id is not None:
        raise InvalidRequest("a query is a text; pictures are documents", "query")
    if not (parsed.text or "").strip():
        raise InvalidRequest("the query has no text", "query")
    return str(parsed.text)


def parse_item(item: Item, param: str, max_tokens: int | None = None) -> Parsed:
    """One document. Raises InvalidRequest that names it by `param`."""
    if isinstance(item, str):
        return Parsed(_cut(item, max_tokens))
    if item.image_id is not None:
        if item.text is not None or item.image is not None or item.content is not None:
            raise InvalidRequest("a stored picture has its own caption; give image_id alone", param)
        return Parsed(image_id=item.image_id)
    texts = [item.text] if item.text is not None else []
    pictures = [item.image] if item.image is not None else []
    if isinstance(item.content, str):
        texts.append(item.content)
    for part in item.content if isinstance(item.content, list) else ():
        _add_part(part, texts, pictures, param)
    return _joined(texts, pictures, param, max_tokens)


def _add_part(part: Part, texts: list[str], pictures: list[str], param: str) -> None:
    address = part.image_url.url if isinstance(part.image_url, ImageAddress) else part.image_url
    if part.text is not None and part.type in ("text", "input_text"):
        texts.append(part.text)
    elif (address or part.image) is not None and part.type in ("image_url", "image", "input_image"):
        pictures.append(str(address or part.image))
    else:
        raise InvalidRequest(f"a part of the type {part.type!r} cannot be scored; use text or image_url", param)


def _joined(texts: Sequence[str], pictures: Sequence[str], param: str, max_tokens: int | None) -> Parsed:
    if not texts and not pictures:
        raise InvalidRequest("the document has neither a text nor a picture", param)
    if len(pictures) > 1:
        raise InvalidRequest(f"a document has one picture at most, and this one has {len(pictures)}", param)
    text = _cut("\n".join(texts), max_tokens) if texts else None
    return Parsed(text, _bytes_of(pictures[0], param) if pictures else None)


def _bytes_of(address: str, param: str) -> bytes:
    head, comma, data = address.partition(",")
    if comma and head.startswith("data:"):
        if not head.endswith(";base64"):
            raise InvalidRequest("a data: address must be base64", param)
    elif "://" in address[:20]:
        raise InvalidRequest("remote pictures are not fetched; send a data: address, or image_id", param)
    else:
        data = address
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("the picture is not valid base64", param) from None


def _cut(text: str, max_tokens: int | None) -> str:
    return text if max_tokens is None else text[: max_tokens * _LETTERS_OF_A_TOKEN]
