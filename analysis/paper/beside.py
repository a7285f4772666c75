"""Other methods' published numbers beside ours: cited, never tested, ranked or subtracted.

They come from a CSV file with the columns COLUMNS: `mean` and `std` with the digits of the source
and in the unit of the tables (accuracy in %); `std` and `n` are empty if the source has none.
"""

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.options import listed
from analysis.tables.columns import column, metric_name
from analysis.tables.groups import Group
from analysis.tables.layout import PAPER, Cell, Row, Table
from mpcc.config import N_CHANNELS, full_name, unknown
from mpcc.evaluation.metrics import METRICS

COLUMNS = ("method", "dataset", "metric", "mean", "std", "n", "protocol", "source")


Figures = dict[tuple[str, str, str], tuple[Cell, str]]
"""Method, data set and metric -> one published number with the digits of its source, and a note on
source, protocol and number of runs."""


def read(file: Path) -> Figures:
    """The figures of a CSV file; ValueError, with a one-line message, names the invalid line."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # With or without Excel's byte order mark.
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8; --beside takes a CSV file") from None
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{file}: the first line must be {','.join(COLUMNS)}")
    figures: Figures = {}
    for row in rows:
        try:
            told = {name: (row[name] or "").strip() for name in COLUMNS}
            told["metric"] = metric_name(told["metric"])
            figures[told["method"], told["dataset"], told["metric"]] = _figure(told)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file}, line {rows.line_num}: {error}") from None
    return figures


def _figure(row: dict[str, str]) -> tuple[Cell, str]:
    for name, known in (("metric", METRICS), ("dataset", N_CHANNELS)):
        if row[name] not in known:
            raise ValueError(unknown(name, row[name], known))
    for name in ("method", "source", "mean"):
        if not row[name]:
            raise ValueError(f"{name} is empty")
    numbers = [float(row[name]) for name in ("mean", "std", "n") if row[name]]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("mean, std and n must be finite numbers")
    runs = f"{row['n']} run{'' if row['n'] == '1' else 's'}" if row["n"] else "runs not given"
    told = "; ".join(part for part in (row["source"], row["protocol"], runs) if part)
    text = row["mean"] + (f" ± {row['std']}" if row["std"] else "")
    return Cell(text, sort=numbers[0]), f"Published: {told}. Not compared with ours."


def add_published(
    product: str, table: Table, groups: Sequence[Group], options: argparse.Namespace
) -> None:
    """Add rows of `--beside` below ours, for methods that have a figure in the table's columns.

    product: the kind of table; ValueError unless `grid` or `layout`, or if data sets are mixed.
    """
    figures, datasets = read(options.beside), {group.settings["dataset"] for group in groups}
    if product not in ("grid", "layout"):
        raise ValueError("--beside goes with --table grid, or with --metrics, --rows and --columns")
    if len(datasets) > 1 and "dataset" not in map(full_name, listed(options.columns)):
        raise ValueError("--beside needs one data set, or --columns dataset")
    given = [metric_name(name) for name in listed(options.metrics) if name != "all"]
    metrics = given or list(dict.fromkeys(metric for *_, metric in figures))
    headings = [heading.text for heading in table.headings]
    by_heading = {column(metric).heading: metric for metric in metrics}
    in_rows = [
        metric
        for metric in metrics
        if "metric" in headings or table.title.startswith(f"{column(metric).heading}: ")
    ]
    n_ours = len(table.rows)
    for method in dict.fromkeys(method for method, *_ in figures):
        for metric in in_rows if by_heading.keys().isdisjoint(headings) else [""]:
            cells = []
            for text in headings:
                of = text if text in N_CHANNELS else min(datasets)
                found = figures.get((method, of, metric or by_heading.get(text, "")))
                if found and (text in N_CHANNELS or text in by_heading):
                    cells.append(replace(found[0], notes=table.noted((True, found[1]))))
                else:
                    cells.append(Cell(""))
            if any(cell.text for cell in cells):
                if metric and "metric" in headings:
                    cells[headings.index("metric")] = Cell(column(metric).heading)
                table.rows.append(Row((Cell(method), *cells[1:]), PAPER, grey=True))
    if len(table.rows) == n_ours:
        where = " and ".join(sorted(datasets))
        raise ValueError(f"{options.beside} has no figure on {where} for a column of this table")
