"""`python analysis/make_tables.py`: the records of a sweep as tables, printed and written."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]  # In place of this folder: its modules are `analysis.*`.

from analysis.options import formats_of, parser  # noqa: E402
from mpcc.shell import guard_output, one_line, script, shown, without_password  # noqa: E402

if TYPE_CHECKING:
    from analysis.records.frame import Records
    from analysis.tables.assemble import Product
    from analysis.tables.groups import Group


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the tables; returns 0, 1 if --check finds stale files, 2 on a usage error."""
    options = parser().parse_args(arguments)
    try:
        formats = formats_of(options.format)
        _refuse(options, formats)
        with tempfile.TemporaryDirectory() as scratch:
            return _make(options, formats, Path(scratch))
    except (ValueError, OSError) as error:
        print(f"make_tables: {one_line(error)}", file=sys.stderr)
        return 2


def _refuse(options: argparse.Namespace, formats: Sequence[str]) -> None:
    """Raise ValueError for the first combination of options that is not allowed."""
    usual, out, archive = vars(parser().parse_args([])), options.out, options.export
    given = {name for name, value in vars(options).items() if value != usual[name]}
    elsewhere = [f"--{n}" for n in ("out", "check", "explain", "beside") if n in given]
    if options.baseline and Path(options.baseline).is_dir():
        elsewhere.append("a folder as --baseline")
    idle = ("table", "metrics", "rows", "columns", "format", "style", "out", "check", "test")
    wrong = {
        "--mlflow and --runs are two sources; give one of them": {"mlflow", "runs"} <= given,
        f"--out {out} is a file; name a folder": out and out.exists() and not out.is_dir(),
        "--metrics, --rows and --columns make a table of their own; leave out --table": (
            "table" in given and given & {"metrics", "rows", "columns"}
        ),
        "--sweep goes with --mlflow; a folder is named with --runs": (
            "sweep" in given and "mlflow" not in given
        ),
        "--anonymous goes with --export; the records themselves keep names": (
            "anonymous" in given and archive is None
        ),
        f"--export takes the name of a .zip file, got {archive}": (
            archive and (archive.suffix != ".zip" or archive.is_dir())
        ),
        **{
            f"--export packs only the tables of --runs; leave out {name}": archive
            for name in elsewhere
        },
        "--no-pictures applies only to the report; add --format html": (
            "no_pictures" in given and "html" not in formats
        ),
        **{
            f"--{name} does nothing with --explain; leave one of them out": "explain" in given
            for name in (*idle, "beside", "baseline")
            if name in given
        },
    }
    for message, holds in wrong.items():
        if holds:
            raise ValueError(message)


def _read(
    options: argparse.Namespace, formats: Sequence[str], scratch: Path
) -> tuple[Records, Path]:
    """The records that were asked for, and the folder that their tables are written to."""
    from analysis.records.folders import check_folders, latest_sweep, sweeps_below

    folders = options.runs
    if not folders and not options.mlflow:
        folders = sweeps_below(ROOT) if options.table == "4" else [latest_sweep(ROOT)]
    check_folders(folders or ())

    from analysis.records.load import load
    from analysis.records.moment import at, checked

    moment = checked(options.at) if options.at else ""
    curves = "html" in formats or bool(moment or options.export)
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
        raise ValueError("--at works with a search only in --table grid")
    return at(records, moment), options.out or tables / f"at-{moment.replace(':', '-')}"


def _make(options: argparse.Namespace, formats: Sequence[str], scratch: Path) -> int:
    """Load the records, make every file, then check, pack or write the files; the exit status."""
    records, out = _read(options, formats, scratch)

    from analysis.output.export import companion
    from analysis.tables.assemble import files, products
    from analysis.tables.groups import groups

    cells = groups(records, pool_code=options.pool_code)
    verdicts = _against(options, records, cells)
    if options.explain:
        from analysis.output.explain import explain

        print(explain(records, cells, options.explain))
        return 0
    found = products(records, cells, options, verdicts)
    names = {"report"} if "html" in formats else {product.name for product in found}
    idle = {
        "--baseline": options.baseline and not names & {"report", "grid", "search"},
        "--test": options.test != "welch" and not names & {"report", "table1", "grid", "layout"},
    }
    for name in filter(idle.get, idle):
        raise ValueError(
            f"{name} does nothing in {found[0].name}; add --table grid or --format html"
        )
    contents: dict[str, str | bytes] = {}
    for product in found:
        contents |= files(records, product, options, formats)
    every = [*cells, *groups(records, pool_code=options.pool_code, confirm=True)]
    if "html" in formats:
        from analysis.report.page import report

        other = dict.fromkeys(("metrics", "rows", "columns", "beside"))
        grid = argparse.Namespace(**vars(options) | other | {"table": "grid"})
        has_grid = any(product.result for product in found)  # The report always shows the grid.
        shown_too = [] if has_grid else products(records, cells, grid, verdicts)
        contents["report.html"] = report(
            *(records, cells, [*found, *shown_too], options.test),
            pictures=not options.no_pictures,
            verdicts=verdicts,
            place=None if options.mlflow else out,
        )
        contents |= companion(records, every, "report", options.test)
    if "fig" in formats:
        contents |= _figures(records, cells, found)
        contents |= companion(records, every, "figures", options.test)
    if options.check:
        return _check(records, found, options, out, contents, every)
    write(out, contents)
    if options.export:
        from analysis.supplement import pack

        print(pack(options))
        return 0
    from analysis.records.frame import short
    from mpcc.config import value_text

    first = cells[0]  # The example of a cell, as --explain takes it.
    settings = [f"{short(axis)}={value_text(first.settings[axis])}" for axis in records.swept]
    _print(found, out, contents, options, ",".join(settings) or first.cell_key)
    return 0


def _against(options: argparse.Namespace, records: Records, cells: list[Group]) -> list[str]:
    """Lines comparing a search with the sweep that --baseline names; empty if it names a cell."""
    if not options.baseline or not Path(options.baseline).is_dir():
        return []
    from analysis.records.load import load
    from analysis.searches.rival import against

    if not records.searches:
        raise ValueError(f"--baseline {options.baseline} is a folder, which only a search takes")
    other = Path(options.baseline)
    return against(records, cells, load([other]), other.resolve().name)


def _figures(records: Records, cells: list[Group], made: list[Product]) -> dict[str, bytes]:
    """File name -> content of the figures: effects of the axes and, for a search, its figures."""
    from analysis.output.figures import figures
    from analysis.tables.shared import shown_metrics

    drawn = figures(cells, records.swept, shown_metrics(cells)[0])
    if records.searches:
        from analysis.output.search_figures import files
        from analysis.tables.assemble import search_of

        search = search_of(records, cells, made)
        drawn |= files(search) if search else {}
    return drawn


def write(out: Path, files: dict[str, str | bytes]) -> None:
    """Write each file atomically; a file that already has this content is left unchanged."""
    from mpcc.runs.run_dir import write_bytes

    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if _is_stale(out / name, content):
            write_bytes(out / name, content if isinstance(content, bytes) else content.encode())


def _is_stale(file: Path, content: str | bytes) -> bool:
    data = content.encode() if isinstance(content, str) else content
    return not file.is_file() or file.read_bytes() != data


def _check(
    records: Records,
    found: Sequence[Product],
    options: argparse.Namespace,
    out: Path,
    asked: dict[str, str | bytes],
    cells: list[Group],
) -> int:
    """Print which files are stale, of those asked for and others in `out`; returns 1 if any is."""
    from analysis.output.export import outdated
    from analysis.records.frame import CONFLICT, DAMAGED
    from analysis.tables.assemble import files

    trials = records.trials
    for cause in trials["cause"][trials["state"].isin((DAMAGED, CONFLICT))]:
        print(f"left out: {cause}")
    made = dict(asked)
    for product in found:
        beside = files(records, product, options, ("md", "csv", "tex")).items()
        made |= {name: text for name, text in beside if name in made or (out / name).exists()}
    wrong = [name for name, content in made.items() if _is_stale(out / name, content)]
    wrong += outdated(out, made, cells)
    if wrong:
        print(f"stale or missing in {out}: {', '.join(wrong)}; run make_tables.py again")
        return 1
    print(f"{len(asked)} files in {out} are what the records give")
    return 0


def _print(
    found: Sequence[Product],
    out: Path,
    files: dict[str, str | bytes],
    options: argparse.Namespace,
    example: str,
) -> None:
    """The tables, where they were written, and what to do next."""
    from analysis.output.render import text
    from analysis.tables.layout import on_one_page

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for table in on_one_page([table for product in found for table in product.tables]):
        print(text(table, colour=colour, full=options.style == "full"))
    print(f"Written to {shown(out)}: {', '.join(sorted(files))}")
    runs = "".join(f" {shlex.quote(shown(folder))}" for folder in options.runs or ())
    again = script("analysis", "make_tables.py") + (f" --runs{runs}" if runs else "")
    again += f" --mlflow {shlex.quote(without_password(options.mlflow))}" if options.mlflow else ""
    if "report.html" in files:
        print(f"Next: open {shown(out / 'report.html')} in a browser")
    elif options.table in ("grid", "all"):
        print(f'Next: {again} --explain CELL   (every trial behind a cell: "{example}")')
    else:
        print(f"Next: {again} --format html   (the report: differences, seeds, curves, pictures)")


if __name__ == "__main__":
    gc.disable()  # Everything read is kept until exit; collection cost 6 % of the run time.
    guard_output()
    sys.exit(main())
