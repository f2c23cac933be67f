"""Files that are rejected, by the class that the metrics count: real bad files through the real ingest."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

from PIL import Image

from ragllava.client import Client
from ragllava.errors import RejectionClass
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.sources import list_sources
from ragllava.stores.objects import MAX_KEY_BYTES
from tests.support.picture_files import encoded, quadrants, raw_png
from tests.support.workshop import Workshop

BY_CLASS = {
    RejectionClass.DAMAGED: ("empty.png", "cut.webp", "cut.zip", "pages.tif"),
    RejectionClass.TOO_LARGE: ("long-side.png",),
    RejectionClass.NO_PICTURE: ("text.png", "film.jpg", "packed.png"),
    RejectionClass.UNSUPPORTED: ("icon.ico", "camera.raf", "holiday.rar"),
    RejectionClass.UNREADABLE: ("nowhere.png", "gone.png"),
    RejectionClass.PACKED: ("album.zip/inner.zip",),
    RejectionClass.OTHER: ("refused.png",),
}


def write_bad_files(folder: Path) -> None:
    """A file of each name in BY_CLASS, without that of the object store; `gone.png` is still whole."""
    picture = quadrants()
    no_numbers = Image.new("F", (2, 1), float("nan"))
    files = {
        "empty.png": b"",
        "cut.webp": encoded(picture, "WEBP", lossless=True)[:60],
        "cut.zip": b"PK\x03\x04" + bytes(30),
        "pages.tif": encoded(no_numbers, "TIFF", save_all=True, append_images=[no_numbers]),
        "long-side.png": raw_png((70_000, 1), 8, 0, bytes(70_001)),
        "text.png": b"I am not a picture.\n",
        "film.jpg": b"\x00\x00\x00\x18ftypqt  " + bytes(100),
        "packed.png": b"PK\x03\x04" + bytes(30),
        "icon.ico": encoded(picture, "ICO"),
        "camera.raf": b"FUJIFILMCCD-RAW " + bytes(100),
        "holiday.rar": b"Rar!\x1a\x07\x00",
        "gone.png": encoded(picture, "PNG"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "nowhere.png").symlink_to("missing.png")
    with zipfile.ZipFile(folder / "album.zip", "w") as package:
        package.writestr("inner.zip", b"")


def test_each_bad_file_is_counted_in_its_class(workshop: Workshop, tmp_path: Path) -> None:
    write_bad_files(tmp_path)
    listed = list(list_sources([tmp_path]))
    (tmp_path / "gone.png").unlink()
    refused = SourceFile("refused.png", "s3://pictures/" + "x" * (MAX_KEY_BYTES + 1))
    job = workshop.ingest_files([*listed, refused])
    rejected = Counter(source for source, status, _ in workshop.outcomes(job.job_id) if status == "rejected")
    assert rejected == Counter(name for names in BY_CLASS.values() for name in names)
    with Client(workshop.settings) as client:
        [counter] = [r for r in client.metrics.read() if r.metric.name == "ragllava_decode_rejected_total"]
    counted = {sample.labels[0]: sample.number for sample in counter.samples}
    assert counted == {name.value: len(names) for name, names in BY_CLASS.items()}
