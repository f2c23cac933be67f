"""Each reason of a rejection has its class: a new one that has none fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragllava
from ragllava.stores.archives.rejections import RejectionClass, class_of

PACKAGE = Path(ragllava.__file__).parent
_NAMED = ("_RAW", "_UNSUPPORTED", "_REASONS", "TOO_MANY_BYTES", "DISAPPEARED")
_WORDS_OF_A_NAME = 3  # at most: of a format or a maker of cameras, beside the reasons
_SAYS_WHY = ("why_not", "why_raw", "_why_not_text", "why_unreadable", "_damaged", "_too_long")  # and `…_problem`


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("it is a damaged PNG picture: broken data stream", RejectionClass.DAMAGED),
        ("the zip file is damaged: File is not a zip file", RejectionClass.DAMAGED),
        ("70000 × 8 pixels: a side is longer than the 65,000 allowed", RejectionClass.TOO_LARGE),
        ("decoding it takes more memory than allowed", RejectionClass.TOO_LARGE),
        ("3 pages, 3 of them rejected: the page has no size", RejectionClass.DAMAGED),
        ("it is text, not a picture", RejectionClass.NO_PICTURE),
        (
            "it is a zip file, not a picture; give it a name that ends in .zip to have it unpacked",
            RejectionClass.NO_PICTURE,
        ),
        ("GIMP pictures are not accepted; convert it to JPEG or PNG", RejectionClass.UNSUPPORTED),
        ("it is encrypted inside the zip file; unpack it with its password first", RejectionClass.UNSUPPORTED),
        ("its name leads out of the tar file (../ or an absolute path)", RejectionClass.PACKED),
        ("it is a symbolic link that leads out of the folder", RejectionClass.UNREADABLE),
        ("it cannot be read: permission denied", RejectionClass.UNREADABLE),
        ("object store s3:9000: there is no pictures/a.png", RejectionClass.UNREADABLE),
        ("something new", RejectionClass.OTHER),
    ],
)
def test_the_class_of_a_reason(reason: str, expected: RejectionClass) -> None:
    assert class_of(reason) is expected


def test_every_reason_in_the_code_has_a_class() -> None:
    files = [*(PACKAGE / "imaging").glob("*.py"), *(PACKAGE / "stages" / "ingest").glob("*.py")]
    reasons = {reason for file in files for reason in _reasons(ast.parse(file.read_text(encoding="utf-8")))}
    assert len(reasons) > 50
    assert [reason for reason in sorted(reasons) if class_of(reason) is RejectionClass.OTHER] == []


def _reasons(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ImageRejected":
            yield from filter(None, map(_sentence, node.args))
        elif isinstance(node, ast.FunctionDef) and (node.name in _SAYS_WHY or node.name.endswith("_problem")):
            returned = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return))
            yield from filter(None, map(_sentence, returned))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _NAMED:
            texts = filter(None, map(_sentence, ast.walk(node.value)))
            yield from (text for text in texts if len(text.split()) > _WORDS_OF_A_NAME and text == text.strip())


def _sentence(node: ast.AST | None) -> str | None:
    """The text of a literal; what is filled in is left out."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.IfExp(body=body):
            return _sentence(body)
    return None
