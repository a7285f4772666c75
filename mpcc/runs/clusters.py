"""The file of a finished trial that says which cluster each of its images is in.

    index,label,cluster,probability        `file` in place of `index` for a folder of images

Unlabelled data has no label column. The file is sealed with the trial's result and holds no time
stamp: the same trial writes the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mpcc.runs import run_dir
from mpcc.runs.files import RunDirError, belongs, read_bytes

CLUSTERS = "clusters.csv.gz"


def clusters_bytes(
    clusters: Sequence[int],
    probabilities: Sequence[float],
    labels: Sequence[str] | None = None,
    files: Sequence[str] | None = None,
) -> bytes:
    """The content of the file; one value for each image in each sequence. probabilities: q(y|x) of
    the image's own cluster."""
    names: Sequence[object] = range(len(clusters)) if files is None else files
    columns: dict[str, Iterable[object]] = {"index" if files is None else "file": names}
    if labels is not None:
        columns["label"] = labels
    columns |= {"cluster": clusters, "probability": [f"{p:.6f}" for p in probabilities]}
    return gzip.compress(csv_text(columns).encode(), mtime=0)


def csv_text(columns: dict[str, Iterable[object]]) -> str:
    """Columns of equal length as CSV, under their names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def read_clusters(path: Path) -> list[dict[str, str]] | None:
    """The rows of a finished trial's file, as text by column; None if the trial has no such file.
    RunDirError if the file differs from the one that was recorded."""
    file, result = Path(path) / CLUSTERS, run_dir.read_result_record(path)
    data = read_bytes(file)
    if data is None or result is None:
        return None
    try:
        if not belongs(result, CLUSTERS, data):
            raise ValueError
        text = gzip.decompress(data).decode(errors="surrogateescape")
    except (ValueError, OSError, EOFError, zlib.error):
        raise RunDirError(f"{file} is damaged: other bytes than {run_dir.RESULT} has") from None
    return list(csv.DictReader(io.StringIO(text)))
