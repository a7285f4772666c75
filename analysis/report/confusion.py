"""The confusion matrix of labels and clusters of one trial, as an SVG picture for the report."""

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mpcc.runs.clusters import read_clusters

COLOUR = "#0072b2"
MOST = 40
"""With more labels or clusters, names and numbers would be too small to read."""
SIZE = 20
"""Side of a square, in the units of the SVG."""


def figure(folder: Path | None, text: str) -> str:
    """The confusion matrix of the trial in this folder, above `text`; empty if there are no labels.

    A row for each label, a column for each cluster; clusters are ordered by the label that most of
    their images have. Numbers are percent of the label's images. If the file cannot be read, the
    reason is shown instead.
    """
    try:
        rows = read_clusters(folder) if folder else None
        pairs = Counter((row["label"], int(row["cluster"])) for row in rows or () if "label" in row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).replace(f"{folder}/", "")
        return f"<figure><figcaption>{escape(f'{text}: {reason}')}</figcaption></figure>"
    if not pairs:
        return ""
    caption = f"{text}: confusion matrix, percent of each label’s images (row) in each cluster"
    return f"<figure>{_svg(pairs, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(pairs: Mapping[tuple[str, int], int], caption: str) -> str:
    labels = sorted({label for label, _ in pairs}, key=lambda label: (len(label), label))

    def place(cluster: int) -> tuple[int, int, int]:
        """By the label that most of its images have, the larger count first."""
        counts = [pairs.get((label, cluster), 0) for label in labels]
        return counts.index(max(counts)), -max(counts), cluster

    clusters = sorted({cluster for _, cluster in pairs}, key=place)
    totals = {name: sum(n for (label, _), n in pairs.items() if label == name) for name in labels}
    numbered = max(len(labels), len(clusters)) <= MOST
    parts = []
    for y, label in enumerate(labels):
        for x, cluster in enumerate(clusters):
            n = pairs.get((label, cluster), 0)
            if n:
                share = n / totals[label]
                title = escape(f"label {label}, cluster {cluster}: {n:,}")
                parts.append(
                    f'<rect x="{SIZE * x}" y="{SIZE * y}" width="{SIZE}" height="{SIZE}" '
                    f'fill="{COLOUR}" fill-opacity="{share:.3f}"><title>{title}</title></rect>'
                )
                if numbered and share >= 0.05:
                    ink = "#fff" if share > 0.5 else "#333"
                    number = f"{100 * share:.0f}"
                    parts.append(_text(x + 0.5, y + 0.65, number, "middle", f"fill:{ink}"))
    if numbered:
        parts += [_text(-0.2, y + 0.65, name[:8], "end") for y, name in enumerate(labels)]
        parts += [_text(x + 0.5, -0.3, str(k), "middle") for x, k in enumerate(clusters)]
    parts += [_text(-0.2, -1.3, "label ↓", "end"), _text(0.1, -1.3, "cluster →", "start")]
    margin = max(6 * min(8, max(map(len, labels))), 36) + 8
    width, height = margin + SIZE * max(len(clusters), 3), SIZE * (len(labels) + 2)
    return (
        f'<svg viewBox="{-margin} {-2 * SIZE} {width} {height}" role="img" '
        f'aria-label="{escape(caption)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    place = f'x="{SIZE * x:g}" y="{SIZE * y:g}" text-anchor="{anchor}" style="{style}"'
    return f"<text {place}>{escape(text)}</text>"
