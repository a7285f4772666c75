"""`python analysis/make_tables.py`: the records of a sweep as tables, and where they were written."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]  # Not this folder: its modules are `analysis.*`.

if TYPE_CHECKING:
    from analysis.cells import Group
    from analysis.layout import Table
    from analysis.load import Records

TABLES = ("1", "grid")
FORMATS = ("md", "csv", "tex")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit 2."""
        self.exit(2, f"make_tables: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(
        prog="make_tables.py",
        description="Tables from the records of a sweep: printed, and written to <sweep>/tables.",
        epilog="Without options: the latest sweep under runs/, as Table 1 where it has that shape.",
        allow_abbrev=False,
    )
    p.add_argument(
        "--runs", nargs="+", type=Path, metavar="DIR", help="sweep folders (default: the latest)"
    )
    p.add_argument("--table", choices=TABLES, help="which table (default: what the sweep fits)")
    p.add_argument(
        "--format",
        default=",".join(FORMATS),
        metavar="LIST",
        help=f"files to write, of {', '.join(FORMATS)} (default: %(default)s)",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where to (default: <sweep>/tables)")
    p.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where the files are stale"
    )
    p.add_argument(
        "--test",
        choices=("welch", "paired"),
        default="welch",
        help="test of differences, to be chosen before looking (default: %(default)s)",
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
        print(f"make_tables: {error}", file=sys.stderr)
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
    from analysis.load import latest_sweep, load

    folders = options.runs or [latest_sweep(ROOT)]
    records = load(folders)
    out = options.out or folders[0] / "tables"
    files: dict[str, str] = {}
    printed = []
    for table, groups in build(records, options):
        printed.append(table)
        files |= render(records, table, groups, formats, options)
    if options.check:
        return _check(out, files)
    write(out, files)
    _report(printed, out, files, folders)
    return 0


def build(records: Records, options: argparse.Namespace) -> list[tuple[Table, list[Group]]]:
    """The tables that were asked for, each with the groups in it."""
    from analysis.cells import groups
    from analysis.grid import grid_table
    from analysis.tables import table1, table1_groups

    found = groups(records, pool_code=options.pool_code)
    if not found:
        raise ValueError("the sweep has no trials; plan some with tune/ablation.py --grid")
    asked = [g for g in found if _in_grid(records, g, "esteps,eta_p")] or found
    pairs = table1_groups(asked) if options.table != "grid" else []
    if pairs:
        return [(table1(records, pairs, options.test), [group for group, _ in pairs])]
    if options.table == "1":
        raise ValueError(
            "these cells are not Table 1's five rows (three esteps at the lowest eta_p, then two "
            "higher eta_p); use --table grid, or sweep --grid esteps,eta_p"
        )
    return [(grid_table(records, found, options.test), found)]


def _in_grid(records: Records, group: Group, grid: str) -> bool:
    """Whether the plan has this cell because of this grid."""
    cells = [cell for sweep in records.sweeps if sweep.plan for cell in sweep.plan["cells"]]
    return any(c["key"] == group.cell_key and grid in c.get("grids", ()) for c in cells)


def render(
    records: Records,
    table: Table,
    groups: Sequence[Group],
    formats: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, str]:
    """File name -> content. The companion file goes with every format."""
    from analysis import export
    from analysis.render import latex, markdown

    makers: dict[str, Callable[[], dict[str, str]]] = {
        "md": lambda: {f"{table.name}.md": markdown(table)},
        "csv": lambda: {
            f"{table.name}.csv": export.cells_csv(records, groups),
            f"{table.name}-trials.csv": export.trials_csv(records, groups),
        },
        "tex": lambda: {f"{table.name}.tex": latex(table)},
    }
    files: dict[str, str] = {}
    for name in formats:
        files |= makers[name]()
    analysis = {"test": options.test, "family": "comparisons of one table and metric, Holm"}
    companion = export.provenance_json(records, groups, table.name, analysis)
    return files | {f"{table.name}-provenance.json": companion}


def write(out: Path, files: dict[str, str]) -> None:
    """Every file, whole or not at all; one that says the same already is left alone."""
    from mpcc.run_dir import write_bytes

    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data, path = content.encode(), out / name
        if not path.exists() or path.read_bytes() != data:
            write_bytes(path, data)


def _check(out: Path, files: dict[str, str]) -> int:
    stale = []
    for name, content in files.items():
        path = out / name
        if not path.exists() or path.read_bytes() != content.encode():
            stale.append(name)
    if stale:
        print(f"stale or missing in {out}: {', '.join(stale)}; run make_tables.py again")
        return 1
    print(f"{len(files)} files in {out} are what the records give")
    return 0


def _report(tables: Sequence[Table], out: Path, files: dict[str, str], folders: list[Path]) -> None:
    from analysis.render import text

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for table in tables:
        print(text(table, colour=colour))
    print(f"Written to {_near(out)}: {', '.join(sorted(files))}")
    runs = " ".join(shlex.quote(str(_near(folder))) for folder in folders)
    print(f"Next: python analysis/make_tables.py --runs {runs} --table grid   (differences, tests)")


def _near(path: Path) -> Path:
    """The path as seen from here where it lies below, else absolute."""
    path = path.resolve()
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
