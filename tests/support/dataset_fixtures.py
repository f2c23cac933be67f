"""Data sets for tests: the fixtures copied to a folder of the test's own, with pictures drawn beside them."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from tests.support.picture_files import encoded

FIXTURES = Path(__file__).parents[1] / "fixtures" / "evaluation"
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".gif": "GIF", ".tif": "TIFF"}


def copied(name: str, folder: Path) -> Path:
    """The fixture `name` as a folder that the test may change."""
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def picture_bytes(colour: int, kind: str = "PNG") -> bytes:
    """A picture of 8 × 6 grey pixels, told from others by its grey of 0 to 255."""
    return encoded(Image.new("L", (8, 6), colour), kind)


def draw_files(folder: Path, names: Mapping[str, int]) -> None:
    """A picture under each name, of that grey, in the format of its suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in names.items():
        (folder / name).write_bytes(picture_bytes(colour, _FORMATS[Path(name).suffix]))


def write_tsv(folder: Path, greys: Mapping[int, int]) -> None:
    """imgs.tsv and imgs.lineidx, with a picture of that grey for each image id, in the order given."""
    write_rows(folder, {image_id: picture_bytes(grey) for image_id, grey in greys.items()})


def write_rows(folder: Path, pictures: Mapping[int, bytes]) -> None:
    """imgs.tsv and imgs.lineidx with the bytes of each picture, in the order given."""
    lines = [b"%d\t%s\n" % (image_id, base64.b64encode(data)) for image_id, data in pictures.items()]
    (folder / "imgs.tsv").write_bytes(b"".join(lines))
    offsets = [sum(map(len, lines[:number])) for number in range(len(lines))]
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
