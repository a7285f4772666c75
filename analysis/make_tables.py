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

from analysis.options import formats_of, listed, parser  # noqa: E402
from mpcc.shell import guard_output  # noqa: E402

if TYPE_CHECKING:
    from analysis.paper.beside import Figure
    from analysis.records.frame import Records
    from analysis.tables.assemble import Choices, Product
    from analysis.tables.groups import Group
    from analysis.tables.layout import Table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the tables; 0, or 1 for --check on stale files, or 2 for a usage error."""
    options = parser().parse_args(arguments)
    try:
        formats = formats_of(options.format)
        return _run(options, formats)
    except ValueError as error:
        print(f"make_tables: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"make_tables: {error.strerror or error}{where}", file=sys.stderr)
        return 2


def _published(options: argparse.Namespace) -> tuple[Figure, ...]:
    if not options.beside:
        return ()
    from analysis.paper.beside import read

    return tuple(read(options.beside))


def _run(options: argparse.Namespace, formats: list[str]) -> int:
    import tempfile

    if options.mlflow and options.runs:
        raise ValueError("--mlflow and --runs are two sources; give one of them")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; name a folder")
    if options.table and any((options.metrics, options.rows, options.columns)):
        raise ValueError(
            "--metrics, --rows and --columns make a table of their own; leave out --table"
        )
    if options.sweep and not options.mlflow:
        raise ValueError("--sweep goes with --mlflow; a folder is named with --runs")
    _check_export(options)
    if options.no_pictures and "html" not in formats:
        raise ValueError("--no-pictures is of the report; add --format html")
    if options.explain:
        _refuse_idle(options)
    with tempfile.TemporaryDirectory() as scratch:
        return _make(options, formats, Path(scratch))


def _check_export(options: argparse.Namespace) -> None:
    if options.export is None:
        if options.anonymous:
            raise ValueError("--anonymous goes with --export; the records themselves keep names")
        return
    if options.export.suffix != ".zip" or options.export.is_dir():
        raise ValueError(f"--export takes the name of a .zip file, got {options.export}")
    elsewhere = options.baseline and Path(options.baseline).is_dir()
    given = {"--out": options.out, "--check": options.check, "--explain": options.explain}
    given |= {"--beside": options.beside, "a folder as --baseline": elsewhere}
    for name, value in given.items():
        if value:
            raise ValueError(f"--export packs the tables of --runs alone; leave out {name}")


def _refuse_idle(options: argparse.Namespace) -> None:
    """ValueError for options beside --explain, which prints one cell and writes nothing."""
    names = ("metrics", "rows", "columns", "format", "out", "check", "beside", "baseline")
    usual = parser().parse_args([])
    for name in names:
        if getattr(options, name) != getattr(usual, name):
            raise ValueError(f"--{name} does nothing with --explain; leave one of them out")


def _read(options: argparse.Namespace, formats: list[str], scratch: Path) -> tuple[Records, Path]:
    """The records that were asked for, and the folder that their tables are written to."""
    from analysis.records.folders import check_folders, latest_sweep, sweeps_below

    folders = options.runs
    if not folders and not options.mlflow:
        folders = sweeps_below(ROOT) if options.table == "4" else [latest_sweep(ROOT)]
    check_folders(folders or ())

    from analysis.records.load import load
    from analysis.records.moment import at, checked

    moment = checked(options.at) if options.at else ""
    curves = "html" in formats or bool(moment)
    place = None
    if options.mlflow:
        from analysis.records.load_mlflow import fetch

        folders = fetch(options.mlflow, scratch, options.sweep, curves=curves)
        place = ROOT / "runs" / folders[0].name
    if options.export:
        from analysis.supplement import stage

        pictures = "html" in formats and not options.no_pictures
        folders = options.runs = stage(folders, scratch, options.anonymous, pictures)
        place = None
    tables = (place or folders[0]) / "tables"
    records = load(folders, curves=curves)
    if not moment:
        return records, options.out or tables
    if records.searches and options.table != "grid":
        raise ValueError("--at shows a search's points in --table grid alone")
    return at(records, moment), options.out or tables / f"at-{moment.replace(':', '-')}"


def _make(options: argparse.Namespace, formats: list[str], scratch: Path) -> int:
    records, out = _read(options, formats, scratch)

    from collections import ChainMap
    from dataclasses import replace

    from analysis.records.frame import left_out
    from analysis.tables.assemble import Choices, companion, files, products
    from analysis.tables.groups import groups

    cells = groups(records, pool_code=options.pool_code)
    lines = _against(options, records, cells)
    baseline = None if lines else options.baseline
    choices = Choices(
        table=options.table,
        formats=tuple(formats),
        test=options.test,
        baseline=baseline,
        metrics=listed(options.metrics),
        rows=listed(options.rows),
        columns=listed(options.columns),
        beside=_published(options),
        full=options.style == "full",
        lines=tuple(lines),
    )
    if options.explain:
        from analysis.output.explain import explain

        print(explain(records, cells, options.explain))
        return 0
    found = products(records, cells, choices)
    compared = "html" in formats or any(p.result or p.name == "search" for p in found)
    if options.baseline and not compared:
        raise ValueError(
            f"--baseline does nothing in the table {found[0].name}: nothing is compared with it; "
            "add --table grid or --format html"
        )
    contents: dict[str, bytes] = {}
    for product in found:
        contents |= _encoded(files(records, product, choices))
    every = [*cells, *groups(records, pool_code=options.pool_code, confirm=True)]
    if "html" in formats:
        place = None if options.mlflow else out
        page = _report_page(records, cells, found, choices, options, place)
        contents |= _encoded({"report.html": page} | companion(records, every, "report", choices))
    if "fig" in formats:
        from analysis.output.figures import figures
        from analysis.tables.shared import shown_metrics

        contents |= figures(cells, records.swept, shown_metrics(cells)[0])
        contents |= _search_figures(records, cells)
        contents |= _encoded(companion(records, every, "figures", choices))
    if options.check:
        other = replace(choices, formats=("md", "csv", "tex"))
        beside = [_encoded(files(records, product, other)) for product in found]
        for cause in left_out(records):
            print(f"left out: {cause}")
        return _check(out, contents, dict(ChainMap(*beside)), every)
    write(out, contents)
    if options.export:
        from analysis.supplement import pack

        print(pack(options))
        return 0
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
    place: Path | None,
) -> str:
    """The page; it always has the grid's differences, whichever table was asked for."""
    from dataclasses import replace

    from analysis.report.page import report
    from analysis.tables.assemble import products

    if not any(product.result for product in found):
        found = [*found, *products(records, cells, replace(choices, table="grid"))]
    pictures = not options.no_pictures
    return report(
        *(records, cells, found, choices.test),
        pictures=pictures,
        lines=choices.lines,
        place=place,
    )


def _against(options: argparse.Namespace, records: Records, cells: list[Group]) -> list[str]:
    """How a search compares with the folder that --baseline names; nothing for a cell's name."""
    if not options.baseline or not Path(options.baseline).is_dir():
        return []
    from analysis.records.folders import check_folders
    from analysis.records.load import load
    from analysis.searches.rival import against

    if not records.searches:
        raise ValueError(f"--baseline {options.baseline} is a folder, which only a search takes")
    other = Path(options.baseline)
    check_folders([other])
    return against(records, cells, load([other]), other.resolve().name)


def _search_figures(records: Records, cells: list[Group]) -> dict[str, bytes]:
    if not records.searches:
        return {}
    from analysis.output.search_figures import files
    from analysis.searches.search import found

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
    from analysis.tables.layout import on_one_page
    from mpcc.shell import script, shown

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for table in on_one_page(tables):
        print(text(table, colour=colour, full=options.style == "full"))
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
