"""A postcard: a picture of a landmark with its caption."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from PIL import Image

from ragllava.postcards.drawing import Drawing, draw_postcard
from ragllava.postcards.names import Attributes, Landmark


@dataclass(frozen=True, slots=True)
class Postcard:
    """A picture with its caption. Only the seed of the picture is stored; every call of `draw` draws it again."""

    file_name: str
    landmark: Landmark
    picture_seed: int

    @property
    def caption(self) -> str:
        """What is printed under the picture."""
        return self.landmark.caption

    @property
    def attributes(self) -> Attributes:
        """What the picture shows."""
        return self.landmark.attributes

    def draw(self) -> Drawing:
        """Draw the picture; every call gives the same. About 2 ms."""
        return draw_postcard(self.attributes, random.Random(self.picture_seed))  # noqa: S311 - repeatable on purpose

    def picture(self) -> Image.Image:
        """The drawing as a Pillow image."""
        return Image.fromarray(self.draw().pixels)

    def png(self) -> bytes:
        """The drawing as a PNG file."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()
