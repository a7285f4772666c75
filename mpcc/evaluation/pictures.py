"""Sheets of images: samples by cluster and reconstructions, drawn with Pillow.

Images are uint8 (N, C, H, W), tensors or arrays; small ones are scaled up by whole factors, so that
a pixel stays a square.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from mpcc.runs.run_dir import write_bytes

MIN_TILE = 32
"""Images are drawn at this many screen pixels or more."""
BAND_TILES = 24
"""Largest number of tiles side by side; further clusters go into the next band."""
GAP = 8
"""Screen pixels between clusters."""
HEADING = 18
"""Screen pixels for a heading."""
PAPER = (255, 255, 255)
INK = (40, 40, 40)


def sample_sheet(
    images: ArrayLike,
    clusters: ArrayLike,
    n_clusters: int,
    path: Path,
    *,
    columns: int = 2,
    headings: Sequence[str] | None = None,
) -> None:
    """Write samples by cluster, each under its number, like the paper's figures 2, 7 and 9.

    clusters: cluster of each image, (N,). Every cluster has `columns` columns, filled row by row;
    clusters without samples stay blank.
    Clusters that do not fit side by side go into bands below, ten to a band if ten fit.
    """
    tiles = _tiles(images)
    clusters = np.asarray(clusters)
    groups = [tiles[clusters == k] for k in range(n_clusters)]
    names = headings or [str(k) for k in range(n_clusters)]
    _save(_bands(groups, names, columns), path)


def reconstruction_sheet(
    images: ArrayLike,
    reconstructions: ArrayLike,
    path: Path,
    *,
    labels: ArrayLike | None = None,
    label_names: Sequence[str] | None = None,
    rows: int = 10,
) -> None:
    """Write pairs, image left and reconstruction right, sorted by label, like figures 3, 8 and 10.

    Pairs go down a column of `rows` before the next. With labels, each label has columns of its
    own under its name, as many as its pairs need.
    """
    pairs = np.concatenate([_tiles(images), _tiles(reconstructions)], axis=2)
    groups, names = [pairs], ["image | reconstruction"]
    if labels is not None:
        labels = np.asarray(labels)
        present = np.unique(labels)
        groups = [pairs[labels == k] for k in present]
        names = [str(label_names[k] if label_names else k) for k in present]
    columns = max(-(-len(group) // rows) for group in groups)
    _save(_bands(groups, names, columns, rows), path)


def choose_by_label(labels: ArrayLike, per_label: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices of `per_label` images of every label, or as many as there are, label by label."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == k][:per_label] for k in np.unique(labels)])


def _tiles(images: ArrayLike) -> NDArray[np.uint8]:
    """Images as (N, H, W, 3), scaled up by a whole factor to at least MIN_TILE."""
    array = np.asarray(images)
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), got {array.dtype} {array.shape}")
    array = array.transpose(0, 2, 3, 1)
    if array.shape[3] == 1:
        array = array.repeat(3, axis=3)
    factor = -(-MIN_TILE // array.shape[1])
    return array.repeat(factor, axis=1).repeat(factor, axis=2)


def _bands(
    groups: Sequence[NDArray[np.uint8]],
    headings: Sequence[str],
    columns: int,
    rows: int | None = None,
) -> Image.Image:
    """Groups side by side, each `columns` tiles wide under its heading, in bands down the page.

    rows: tiles per column, filled column by column; None: tiles are filled row by row.
    """
    height, width = groups[0].shape[1:3]
    font = ImageFont.load_default(12)
    text = max(font.getlength(h) for h in headings)
    columns = max(columns, 1)
    group_width = max(columns * (width + 1), int(text) + 2) + GAP
    fit = max(1, min(len(groups), BAND_TILES * (MIN_TILE + 1) // group_width))
    if fit >= 10 and len(groups) > fit:
        fit = 10
    bands = [range(i, min(i + fit, len(groups))) for i in range(0, len(groups), fit)]
    n_rows = [rows or max(1, max(-(-len(groups[k]) // columns) for k in band)) for band in bands]
    band_heights = [HEADING + n * (height + 1) + GAP for n in n_rows]
    sheet = Image.new("RGB", (fit * group_width + GAP, sum(band_heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP // 2
    for band, band_height in zip(bands, band_heights, strict=True):
        for place, k in enumerate(band):
            left = GAP + place * group_width
            middle = left + columns * (width + 1) / 2
            start = max(left, middle - font.getlength(headings[k]) / 2)
            draw.text((start, top + 1), headings[k], INK, font)
            for i, tile in enumerate(groups[k]):
                column, row = divmod(i, rows) if rows else (i % columns, i // columns)
                place_of = left + column * (width + 1), top + HEADING + row * (height + 1)
                sheet.paste(Image.fromarray(tile), place_of)
        top += band_height
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=False)
    write_bytes(path, buffer.getvalue())
