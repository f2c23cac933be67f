"""Pictures that are no postcards: shapes on white, as in a collection of clip art."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw


def write_clip_art(folder: Path, number: int) -> Path:
    """So many PNG files in a new folder; returns it."""
    folder.mkdir()
    for no in range(number):
        rng = random.Random(no)
        picture = Image.new("RGB", (180, 140), "white")
        draw = ImageDraw.Draw(picture)
        for _ in range(4):
            x, y, width, height = rng.randrange(120), rng.randrange(90), rng.randrange(20, 60), rng.randrange(20, 50)
            color = tuple(rng.randrange(256) for _ in range(3))
            shape = rng.choice([draw.ellipse, draw.rectangle])
            shape((x, y, x + width, y + height), fill=color, outline="black", width=3)
        picture.save(folder / f"art-{no:03d}.png")
    return folder
