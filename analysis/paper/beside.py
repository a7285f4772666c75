"""Other methods' published numbers beside ours: cited, never tested, ranked or subtracted.

A file of them is CSV with the columns of COLUMNS: `mean` and `std` as the source prints them and as
the tables do (an accuracy in %), `std` and `n` empty where the source has none.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.options import listed
from analysis.tables.columns import column, metric_name
from analysis.tables.groups import Group
from analysis.tables.layout import PAPER, Cell, Row, Table
from mpcc.config import N_CHANNELS, full_name, unknown
from mpcc.evaluation.metrics import METRICS

COLUMNS = ("method", "dataset", "metric", "mean", "std", "n", "protocol", "source")


@dataclass(frozen=True)
class Figure:
    """One published number."""

    method: str
    dataset: str
    metric: str
    text: str
    """`84.3 ± 1.2`, with the digits of the source."""
    mean: float
    note: str
    """Source, protocol and number of runs."""


def read(file: Path) -> list[Figure]:
    """The figures of a file; ValueError, in one line, names the line that cannot be."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8; --beside takes a CSV file") from None
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{file}: the first line must be {','.join(COLUMNS)}")
    figures = []
    for row in rows:
        try:
            told = {name: (row[name] or "").strip() for name in COLUMNS}
            figures.append(_figure(told | {"metric": metric_name(told["metric"])}))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file}, line {rows.line_num}: {error}") from None
    return figures


def _figure(row: dict[str, str]) -> Figure:
    if row["metric"] not in METRICS:
        raise ValueError(unknown("metric", row["metric"], METRICS))
    if row["dataset"] not in N_CHANNELS:
        raise ValueError(unknown("dataset", row["dataset"], N_CHANNELS))
    for name in ("method", "source", "mean"):
        if not row[name]:
            raise ValueError(f"{name} is empty")
    numbers = [float(row[name]) for name in ("mean", "std", "n") if row[name]]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("mean, std and n must be finite numbers")
    runs = f"{row['n']} run{'' if row['n'] == '1' else 's'}" if row["n"] else "runs not said"
    told = [row["source"], row["protocol"], runs]
    note = f"Published: {'; '.join(part for part in told if part)}. Not compared with ours."
    text = row["mean"] + (f" ± {row['std']}" if row["std"] else "")
    return Figure(row["method"], row["dataset"], row["metric"], text, numbers[0], note)


def add_published(
    product: str, table: Table, groups: Sequence[Group], options: argparse.Namespace
) -> None:
    """Rows of `--beside` below ours, for the methods that have a figure in the table's columns.

    product: the table's kind; one of a grid or one's own, whose cells are on one data set each.
    """
    figures, datasets = read(options.beside), {group.settings["dataset"] for group in groups}
    if product not in ("grid", "layout"):
        raise ValueError("--beside goes with --table grid, or with --metrics, --rows and --columns")
    if len(datasets) > 1 and "dataset" not in map(full_name, listed(options.columns)):
        raise ValueError("--beside needs one data set, or --columns dataset")
    given = [metric_name(name) for name in listed(options.metrics) if name != "all"]
    metrics = given or list(dict.fromkeys(figure.metric for figure in figures))
    known = {(f.method, f.dataset, f.metric): f for f in figures}
    headings = [heading.text for heading in table.headings]
    by_heading = {column(metric).heading: metric for metric in metrics}
    in_rows = [
        metric
        for metric in metrics
        if "metric" in headings or table.title.startswith(f"{column(metric).heading}: ")
    ]
    for method in dict.fromkeys(f.method for f in figures):
        for metric in in_rows if by_heading.keys().isdisjoint(headings) else [""]:
            cells = []
            for text in headings:
                of = text if text in N_CHANNELS else min(datasets)
                found = known.get((method, of, metric or by_heading.get(text, "")))
                place = found if text in N_CHANNELS or text in by_heading else None
                notes = table.noted((place, place.note)) if place else ()
                cells.append(Cell(place.text, notes, sort=place.mean) if place else Cell(""))
            if any(cell.text for cell in cells):
                if metric and "metric" in headings:
                    cells[headings.index("metric")] = Cell(column(metric).heading)
                table.rows.append(Row((Cell(method), *cells[1:]), PAPER, grey=True))
