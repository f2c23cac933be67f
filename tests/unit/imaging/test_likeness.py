"""Near-duplicates: copies of a drawn postcard are alike, other postcards are not."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from ragllava.imaging.likeness import Likeness, is_thumbnail, thumbnail
from ragllava.postcards.archive import draw_archive


@pytest.fixture(scope="module", params=[False, True], ids=["in-domain", "shifted"])
def postcards(request: pytest.FixtureRequest) -> dict[str, Image.Image]:
    drawn = draw_archive(7, 80, 0, shifted=request.param)
    return {postcard.file_name: postcard.picture() for postcard in drawn.postcards}


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def copies(picture: Image.Image) -> dict[str, Image.Image]:
    width, height = picture.size
    small = picture.resize((width // 2, height // 2))
    return {
        "JPEG": as_jpeg(picture, 75),
        "poor JPEG": as_jpeg(picture, 30),
        "half as large": small,
        "small JPEG": as_jpeg(small, 80),
        "larger": picture.resize((width * 2, height * 2)),
        "stretched": picture.resize((width, height + 8)),
        "brighter": ImageEnhance.Brightness(picture).enhance(1.07),
    }


def test_copies_are_alike_and_other_postcards_are_not(postcards: dict[str, Image.Image]) -> None:
    thumbnails = {name: thumbnail(picture) for name, picture in postcards.items()}
    for name, picture in postcards.items():
        thumbnails |= {f"{name} {kind}": thumbnail(copy) for kind, copy in copies(picture).items()}
    groups = Likeness(thumbnails).groups(thumbnails)
    assert all(groups[name] == groups[name.partition(" ")[0]] for name in thumbnails)
    # A few landmarks of one kind, color and sky look alike, although they are others.
    assert len({groups[name] for name in postcards}) >= 0.95 * len(postcards)


def test_the_next_picture_of_a_burst_is_mostly_alike() -> None:
    """A photograph changes smoothly, so a camera that moved by a hundredth of its width shows nearly the same."""
    alike = 0
    for seed in range(40):
        levels = np.random.default_rng(seed).normal(128, 60, (16, 24)).clip(0, 255).astype("uint8")
        picture = Image.fromarray(levels).convert("RGB").resize((480, 320), Image.Resampling.BICUBIC)
        moved = ImageChops.offset(picture, 5, 3)
        likeness = Likeness({"first": thumbnail(picture), "second": thumbnail(moved)})
        alike += likeness.groups(["first", "second"])["second"] == "first"
    assert alike >= 28


def faint(picture: Image.Image, *, lines: bool) -> Image.Image:
    """A drawing of thin pale lines on white, or the picture as a watermark."""
    if not lines:
        return Image.blend(Image.new("RGB", picture.size, "white"), picture, 0.02)
    edges = picture.convert("L").filter(ImageFilter.FIND_EDGES)
    return edges.point(lambda value: 240 if value > 60 else 255).convert("RGB")


@pytest.mark.parametrize("lines", [True, False], ids=["lines", "watermarks"])
def test_copies_of_pictures_with_next_to_no_contrast_are_alike(postcards: dict[str, Image.Image], lines: bool) -> None:
    thumbnails = {name: thumbnail(picture) for name, picture in postcards.items()}
    drawings = {name: faint(picture, lines=lines) for name, picture in list(postcards.items())[:40]}
    for name, drawing in drawings.items():
        unchanged = {kind: copy for kind, copy in copies(drawing).items() if kind != "brighter"}
        thumbnails |= {f"{name} {kind}": thumbnail(copy) for kind, copy in ({"": drawing} | unchanged).items()}
    groups = Likeness(thumbnails).groups(thumbnails)
    assert all(groups[f"{name} {kind}"] == groups[f"{name} "] for name in drawings for kind in unchanged)
    assert not {groups[name] for name in postcards} & {groups[f"{name} "] for name in drawings}


def test_pictures_of_one_color_are_alike_if_it_is_the_same() -> None:
    def plain(*color: int) -> bytes:
        return thumbnail(Image.new("RGB", (64, 64), color))

    likeness = Likeness({"a": plain(220, 30, 30), "b": plain(221, 32, 30), "c": plain(220, 60, 30)})
    assert likeness.groups(["a", "b", "c", "unknown"]) == {"a": "a", "b": "a", "c": "c", "unknown": "unknown"}
    assert likeness.near(["a", "c", "unknown"], ["b", "unknown"]) == {"a", "unknown"}
    assert Likeness({}).near(["a"], ["b"]) == set()


def test_near_are_those_alike_to_one_of_the_others(postcards: dict[str, Image.Image]) -> None:
    (first, picture), (second, _), (third, _) = list(postcards.items())[:3]
    thumbnails = {name: thumbnail(shown) for name, shown in postcards.items()}
    likeness = Likeness(thumbnails | {"copy": thumbnail(as_jpeg(picture, 75))})
    assert likeness.near(["copy", second, third], [first, third]) == {"copy", third}


def burst(picture: Image.Image, share: float, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Two shots by a camera that moved: windows of one scene, the second one brighter or darker, as a JPEG."""

    def window() -> Image.Image:
        width, height = (round(side * (1 - share)) for side in picture.size)
        left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        return picture.crop((left, top, left + width, top + height))

    return window(), as_jpeg(ImageEnhance.Brightness(window()).enhance(rng.uniform(0.9, 1.1)), 85)


@pytest.mark.parametrize("share", [0.02, 0.04, 0.08])
def test_shots_of_a_burst_are_alike_and_other_scenes_are_not(share: float) -> None:
    """Scenes as smooth as photographs; docs/method.md has the shares of real ones."""
    rng = random.Random(3)
    noise = [Image.frombytes("RGB", (6, 4), rng.randbytes(72)) for _ in range(30)]
    scenes = [scene.resize((480, 320), Image.Resampling.BICUBIC) for scene in noise]
    shots = {
        f"{number:02d}{shot}": thumbnail(picture)
        for number, scene in enumerate(scenes)
        for shot, picture in zip("ab", burst(scene, share, rng), strict=True)
    }
    groups = Likeness(shots).groups(shots)
    assert all(groups[name].startswith(name[:2]) for name in shots)
    assert sum(groups[f"{number:02d}b"] == f"{number:02d}a" for number in range(30)) >= 28


def test_thumbnails_of_an_earlier_version_are_told_apart() -> None:
    assert is_thumbnail(thumbnail(Image.new("RGB", (3, 5))))
    assert not is_thumbnail(bytes(192))
