"""`python analysis/make_tables.py`: the records of a sweep as tables, printed and written."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]  # Not this folder: its modules are `analysis.*`.

from mpcc.options import OneLineParser, path  # noqa: E402
from mpcc.shell import guard_output  # noqa: E402

if TYPE_CHECKING:
    from analysis.records.frame import Records
    from analysis.tables.assemble import Choices, Product
    from analysis.tables.groups import Group
    from analysis.tables.layout import Table

TABLES = ("1", "2", "3a", "3b", "4", "grid", "search", "all")
FORMATS = ("md", "csv", "tex", "html", "fig")
DEFAULT_FORMATS = "md,csv,tex"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = OneLineParser(
        speaker="make_tables",
        prog="make_tables.py",
        description="Tables from the records of a sweep: printed, and written to <sweep>/tables.",
        epilog="Without options: the latest sweep under runs/, as Table 1 where it has that shape.",
    )
    p.add_argument(
        "--runs", nargs="+", type=path, metavar="DIR", help="sweep folders (default: the latest)"
    )
    p.add_argument(
        "--mlflow", metavar="URI", help="read from MLflow alone, where the run directories are gone"
    )
    p.add_argument(
        "--sweep", metavar="NAME", help="with --mlflow: preset, sweep id or run name (the latest)"
    )
    p.add_argument(
        "--table",
        choices=TABLES,
        help="which table (default: search for a search, 1 where it fits, else grid)",
    )
    p.add_argument(
        "--format",
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help=f"files to write, of {', '.join(FORMATS)}; fig: PDF and PNG (default: %(default)s)",
    )
    p.add_argument("--out", type=path, metavar="DIR", help="where to (default: <sweep>/tables)")
    p.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where the files are stale"
    )
    p.add_argument(
        "--test",
        choices=("welch", "paired", "pooled", "permutation"),
        default="welch",
        help="test of differences, to be chosen before looking (default: %(default)s)",
    )
    p.add_argument(
        "--baseline",
        metavar="CELL",
        help="cell to compare with: settings, variant or key (default: the base settings); for a "
        "search also the folder of another sweep, whose best cell the best point must beat",
    )
    p.add_argument(
        "--explain", metavar="CELL", help='print every trial behind a cell, "esteps=4,eta_p=6e-4"'
    )
    p.add_argument(
        "--no-pictures", action="store_true", help="leave sample sheets out of the HTML report"
    )
    p.add_argument(
        "--pool-code", action="store_true", help="average trials of different code versions"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the tables; 0, or 1 for --check on stale files, or 2 for a usage error."""
    options = parser().parse_args(arguments)
    try:
        formats = _formats(options.format)
        return _run(options, formats)
    except ValueError as error:
        print(f"make_tables: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"make_tables: {error.strerror or error}{where}", file=sys.stderr)
        return 2


def _formats(text: str) -> list[str]:
    from mpcc.config import unknown

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise ValueError(unknown("format", name, FORMATS))
    if not names:
        raise ValueError(f"--format is empty; choose from {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in names]


def _run(options: argparse.Namespace, formats: list[str]) -> int:
    import tempfile

    if options.mlflow and options.runs:
        raise ValueError("--mlflow and --runs are two sources; give one of them")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; name a folder")
    if options.sweep and not options.mlflow:
        raise ValueError("--sweep goes with --mlflow; a folder is named with --runs")
    with tempfile.TemporaryDirectory() as scratch:
        return _make(options, formats, Path(scratch))


def _make(options: argparse.Namespace, formats: list[str], scratch: Path) -> int:
    from analysis.records.folders import check_folders, latest_sweep, sweeps_below

    curves, folders = "html" in formats, options.runs
    if not folders and not options.mlflow:
        folders = sweeps_below(ROOT) if options.table == "4" else [latest_sweep(ROOT)]
    check_folders(folders or ())

    from collections import ChainMap
    from dataclasses import replace

    from analysis.records.load import load
    from analysis.tables.assemble import Choices, companion, files, products
    from analysis.tables.groups import groups

    if options.mlflow:
        from analysis.records.load_mlflow import fetch

        folders = fetch(options.mlflow, scratch, options.sweep, curves=curves)
        out = options.out or ROOT / "runs" / folders[0].name / "tables"
    else:
        out = options.out or folders[0] / "tables"
    records = load(folders, curves=curves)
    cells = groups(records, pool_code=options.pool_code)
    lines = _against(options, records, cells)
    baseline = None if lines else options.baseline
    choices = Choices(options.table, tuple(formats), options.test, baseline, tuple(lines))
    if options.explain:
        from analysis.output.explain import explain

        print(explain(records, cells, options.explain))
        return 0
    found = products(records, cells, choices)
    contents: dict[str, bytes] = {}
    for product in found:
        contents |= _encoded(files(records, product, choices))
    every = [*cells, *groups(records, pool_code=options.pool_code, confirm=True)]
    if "html" in formats:
        page = _report_page(records, cells, found, choices, options)
        contents |= _encoded({"report.html": page} | companion(records, every, "report", choices))
    if "fig" in formats:
        from analysis.output.figures import figures
        from analysis.tables.grid import shown_metrics, swept

        contents |= figures(cells, swept(records), shown_metrics(cells)[0])
        contents |= _search_figures(records, cells)
        contents |= _encoded(companion(records, every, "figures", choices))
    if options.check:
        other = replace(choices, formats=("md", "csv", "tex"))
        beside = [_encoded(files(records, product, other)) for product in found]
        return _check(out, contents, dict(ChainMap(*beside)), every)
    write(out, contents)
    tables = [table for product in found for table in product.tables]
    _report(tables, out, contents, options, _example(cells[0], records.axes))
    return 0


def _encoded(files: dict[str, str]) -> dict[str, bytes]:
    return {name: content.encode() for name, content in files.items()}


def _report_page(
    records: Records,
    cells: list[Group],
    found: list[Product],
    choices: Choices,
    options: argparse.Namespace,
) -> str:
    """The page; it always has the grid's differences, whichever table was asked for."""
    from dataclasses import replace

    from analysis.output.report import report
    from analysis.tables.assemble import products

    if not any(product.result for product in found):
        found = [*found, *products(records, cells, replace(choices, table="grid"))]
    pictures = not options.no_pictures
    return report(records, cells, found, choices.test, pictures=pictures, lines=choices.lines)


def _against(options: argparse.Namespace, records: Records, cells: list[Group]) -> list[str]:
    """How a search compares with the folder that --baseline names; nothing for a cell's name."""
    if not options.baseline or not Path(options.baseline).is_dir():
        return []
    from analysis.records.folders import check_folders
    from analysis.records.load import load
    from analysis.tables.search import against

    if not records.searches:
        raise ValueError(f"--baseline {options.baseline} is a folder, which only a search takes")
    other = Path(options.baseline)
    check_folders([other])
    return against(records, cells, load([other]), other.resolve().name)


def _search_figures(records: Records, cells: list[Group]) -> dict[str, bytes]:
    if not records.searches:
        return {}
    from analysis.output.search_figures import files
    from analysis.tables.search import found

    search = found(records, cells)
    return files(search) if search else {}


def write(out: Path, files: dict[str, bytes]) -> None:
    """Every file, whole or not at all; one that says the same already is left alone."""
    from mpcc.runs.run_dir import write_bytes

    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        file = out / name
        if not file.exists() or file.read_bytes() != data:
            write_bytes(file, data)


def _check(out: Path, asked: dict[str, bytes], beside: dict[str, bytes], cells: list[Group]) -> int:
    from analysis.output.check import outdated, stale

    wrong = stale(out, asked, beside) + outdated(out, [*asked, *beside], cells)
    if wrong:
        print(f"stale or missing in {out}: {', '.join(wrong)}; run make_tables.py again")
        return 1
    print(f"{len(asked)} files in {out} are what the records give")
    return 0


def _report(
    tables: Sequence[Table],
    out: Path,
    files: dict[str, bytes],
    options: argparse.Namespace,
    example: str,
) -> None:
    from analysis.output.render import text
    from mpcc.shell import script, shown

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for table in tables:
        print(text(table, colour=colour))
    print(f"Written to {shown(out)}: {', '.join(sorted(files))}")
    runs = "".join(f" {shlex.quote(shown(folder))}" for folder in options.runs or ())
    again = script("analysis", "make_tables.py") + (f" --runs{runs}" if runs else "")
    again += f" --mlflow {shlex.quote(options.mlflow)}" if options.mlflow else ""
    if "report.html" in files:
        print(f"Next: open {shown(out / 'report.html')} in a browser")
    elif options.table in ("grid", "all"):
        print(f'Next: {again} --explain CELL   (every trial behind a cell: "{example}")')
    else:
        print(f"Next: {again} --format html   (the report: differences, seeds, curves, pictures)")


def _example(group: Group, axes: Sequence[str]) -> str:
    """The first cell as --explain takes it."""
    from analysis.records.frame import short
    from mpcc.config import value_text

    settings = [f"{short(a)}={value_text(group.settings[a])}" for a in axes if a != "seed"]
    return ",".join(settings) or group.cell_key


if __name__ == "__main__":
    gc.disable()  # All that is read is kept to the end: a search for garbage takes 6 % of the time.
    guard_output()
    sys.exit(main())
