"""From the bytes of pictures to their vectors, against embedding alone."""

from __future__ import annotations

from ragllava.evaluation.bench.rows import BenchRow, Side, Wanted, compare
from ragllava.evaluation.bench.workload import Workload, picture_of, png_of
from ragllava.images import decode


def ingest_rows(workload: Workload) -> list[BenchRow]:
    """Decoding and embedding in one process."""
    files = [png_of(picture_of(postcard)) for postcard in workload.archive.postcards]
    pictures = [decode(data).picture for data in files]
    retriever = workload.models.retriever

    def ours() -> list[float]:
        return retriever.embed_images([decode(data).picture for data in files], batch_size=64).ravel().tolist()

    def reference() -> list[float]:
        return retriever.embed_images(pictures, batch_size=64).ravel().tolist()

    found = compare(Side(len(files), ours), Side(len(files), reference))
    return [
        BenchRow(
            "ingest", "decode + embed", "embedding alone", "pictures/s", found.ours_per_s, found.reference_per_s,
            Wanted(at_least=0.85), {"largest_difference": found.largest_difference},
        )
    ]  # fmt: skip
