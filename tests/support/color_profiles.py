"""ICC profiles made for tests: RGB and grey by gamma and primaries, CMYK by a table."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

# Primaries as XYZ adapted to the white of profiles, one column each: red, green, blue.
ADOBE_RGB = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
DISPLAY_P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
PRO_PHOTO = ((0.79767, 0.13519, 0.03134), (0.28804, 0.71188, 0.00008), (0.0, 0.0, 0.82491))
_WHITE = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: Sequence[Sequence[float]], gamma: float) -> bytes:
    """A profile of three primaries and one gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    columns = [_xyz([row[column] for row in primaries]) for column in range(3)]
    tags = {b"rXYZ": columns[0], b"gXYZ": columns[1], b"bXYZ": columns[2]}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    """A profile of greys with a gamma."""
    return _profile(
        b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))}
    )


def cmyk_profile(darkness: float = 0.9, points: int = 9) -> bytes:
    """A profile of a simple printing process: inks take light away, `darkness` of it at the most."""
    inks = ((1.0, 0.35, 0.1), (0.1, 1.0, 0.4), (0.05, 0.15, 1.0), (1.0, 1.0, 1.0))  # absorbed of red, green, blue
    table = []
    for index in range(points**4):
        amounts = [index // points**power % points / (points - 1) for power in (3, 2, 1, 0)]
        light = [1.0, 1.0, 1.0]
        for amount, absorbed in zip(amounts, inks, strict=True):
            light = [value * (1 - darkness * amount * part) for value, part in zip(light, absorbed, strict=True)]
        table += _lab(light)
    lut = b"mft2" + bytes(4) + struct.pack(">BBBB", 4, 3, points, 0)
    lut += struct.pack(">9i", *(65_536 if number % 4 == 0 else 0 for number in range(9)))
    lut += struct.pack(">HH", 2, 2) + struct.pack(">HH", 0, 65_535) * 4
    lut += struct.pack(f">{len(table)}H", *table) + struct.pack(">HH", 0, 65_535) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut})


def _lab(light: Sequence[float]) -> list[int]:
    """Linear sRGB-like light as Lab in 16 bits of an ICC profile of version 2."""
    matrix = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
    xyz = [sum(part * value for part, value in zip(row, light, strict=True)) for row in matrix]
    root: Callable[[float], float] = lambda t: t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116  # noqa: E731
    x, y, z = (root(value / white) for value, white in zip(xyz, _WHITE, strict=True))
    lab = (116 * y - 16, 500 * (x - y), 200 * (y - z))
    coded = (lab[0] * 652.8, (lab[1] + 128) * 256, (lab[2] + 128) * 256)
    return [min(65_535, max(0, round(value))) for value in coded]


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65_536) for value in values))


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made for tests\x00"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + text, b"wtpt": _xyz(_WHITE), **tags}
    body, directory = b"", struct.pack(">I", len(tags))
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        directory += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, device, space, connection)
    header += (
        struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
        + b"acsp"
        + bytes(28)
        + struct.pack(">3i", *(round(value * 65_536) for value in _WHITE))
    )
    return header.ljust(128, b"\x00") + directory + body
