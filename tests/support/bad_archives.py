"""The zip and tar files of the hostile corpus (tests.support.bad_files)."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

from tests.support.picture_files import Case, encoded, grainy, jpeg, quadrants


def zips(folder: Path) -> list[Case]:
    good = encoded(quadrants(), "PNG")
    with zipfile.ZipFile(folder / "album.zip", "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("trip/one.png", good)
        package.writestr("trip/one.txt", "The first.\nder erste")
        package.writestr("trip/two.jpg", jpeg())
        package.writestr("trip/two.jpg.txt", "The second.")
        package.writestr("trip/.DS_Store", b"clutter")
        package.writestr("__MACOSX/trip/._one.png", b"clutter")
        package.writestr("../evil.png", good)
        package.writestr("/etc/evil.png", good)
        package.writestr("C:\\evil.png", good)
        package.writestr("trip/text.png", "no picture")
        package.writestr("inner.zip", b"PK\x03\x04")
        package.writestr("bomb.png", bytes(30_000_000))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        package.writestr(link, "/etc/passwd")
    return [
        Case("album.zip/trip/one.png", caption="The first. der erste"),
        Case("album.zip/trip/two.jpg", caption="The second."),
        Case("album.zip/../evil.png", rejected="leads out"),
        Case("album.zip//etc/evil.png", rejected="leads out"),
        Case("album.zip/C:\\evil.png", rejected="leads out"),
        Case("album.zip/trip/text.png", rejected="text"),
        Case("album.zip/inner.zip", rejected="inside the zip"),
        Case("album.zip/bomb.png", rejected="100 times"),
        Case("album.zip/link.png", rejected="link"),
    ]


def damaged_zips(folder: Path) -> list[Case]:
    noise = grainy((100, 100), 90)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as package:
        package.writestr("a.png", encoded(noise, "PNG"))
    complete = stream.getvalue()
    encrypted = bytearray(complete)
    encrypted[6] |= 1  # the flag in the member's own header
    encrypted[complete.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    flipped = bytearray(complete)
    flipped[200] ^= 0xFF
    (folder / "encrypted.zip").write_bytes(encrypted)
    (folder / "flipped.zip").write_bytes(flipped)
    (folder / "cut.zip").write_bytes(complete[:-30])
    (folder / "text.zip").write_text("no zip file")
    with zipfile.ZipFile(folder / "twice.zip", "w") as package, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what we do here on purpose
        package.writestr("a.png", b"the first is hidden by the second")
        package.writestr("a.png", encoded(quadrants(), "PNG"))
    return [
        Case("encrypted.zip/a.png", rejected="encrypted"),
        Case("flipped.zip/a.png", rejected="damaged"),
        Case("cut.zip", rejected="damaged"),
        Case("text.zip", rejected="damaged"),
        Case("twice.zip/a.png", rejected="same name"),
        Case("twice.zip/a.png"),
    ]


def tars(folder: Path) -> list[Case]:
    good = encoded(quadrants(), "PNG")
    cases: list[Case] = []
    for name, mode in (("a.tar", "w:"), ("b.tar.gz", "w:gz"), ("c.tar.xz", "w:xz"), ("d.tbz2", "w:bz2")):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as package:  # type: ignore[call-overload]
            _add(package, "./one.png", good)
            _add(package, os.fsdecode(b"latin-\xe9.png"), good)
            _add(package, "../evil.png", good)
            _add(package, "inner.tar.gz", b"")
            _add(package, "one.png", b"another picture of the same shown name")
            _add(package, "./one.png", good)
            for kind, member in (
                (tarfile.SYMTYPE, "sym.png"),
                (tarfile.LNKTYPE, "hard.png"),
                (tarfile.CHRTYPE, "device.png"),
                (tarfile.FIFOTYPE, "pipe.png"),
            ):
                info = tarfile.TarInfo(member)
                info.type, info.linkname = kind, "/etc/passwd"
                package.addfile(info)
            _add(package, "./one.txt", "A caption that comes later.".encode("utf-16"))
        (folder / name).write_bytes(stream.getvalue())
        cases += [
            Case(f"{name}/one.png", caption="A caption that comes later."),
            Case(f"{name}/one.png", rejected="text"),
            Case(f"{name}/one.png", rejected="same name", caption="A caption that comes later."),
            Case(f"{name}/latin-\\xe9.png"),
            Case(f"{name}/../evil.png", rejected="leads out"),
            Case(f"{name}/inner.tar.gz", rejected="inside the tar"),
            *(Case(f"{name}/{member}.png", rejected="link, device") for member in ("sym", "hard", "device", "pipe")),
        ]
    return cases


def damaged_tars(folder: Path) -> list[Case]:
    good = encoded(grainy((200, 200), 90), "PNG")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as package:
        for number in range(3):
            _add(package, f"{number}.png", encoded(quadrants(), "PNG") if number == 0 else good)
    complete = stream.getvalue()
    second = complete.index(b"1.png")
    wrong_header = bytearray(complete)
    wrong_header[second + 148 : second + 156] = b"garbage!"  # the header's checksum
    (folder / "cut.tar").write_bytes(complete[: second + 3_000])
    (folder / "cut.tar.gz").write_bytes(gzip.compress(complete)[:8_000])
    (folder / "header.tar").write_bytes(wrong_header)
    (folder / "empty.tar").write_bytes(b"")
    with gzip.open(folder / "bomb.tgz", "wb", compresslevel=1) as bomb:
        info = tarfile.TarInfo("zeros.png")
        info.size = 1 << 28
        bomb.write(info.tobuf())
        for _ in range(1 << 8):
            bomb.write(bytes(1 << 20))
    return [
        Case("cut.tar/0.png"),
        Case("cut.tar/1.png", rejected="damaged"),
        Case("cut.tar", rejected="damaged"),
        Case("cut.tar.gz/0.png"),
        Case("cut.tar.gz/1.png", rejected="damaged"),
        Case("cut.tar.gz", rejected="damaged"),
        Case("header.tar/0.png"),
        Case("header.tar", rejected="damaged after 1"),
        Case("empty.tar", rejected="damaged"),
        Case("bomb.tgz/zeros.png", rejected="bomb"),
        Case("bomb.tgz", rejected="bomb"),
    ]


def _add(package: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    package.addfile(info, io.BytesIO(content))
