"""Options of `python analysis/make_tables.py`. Quick to import, so that --help answers at once."""

import argparse

from mpcc.options import OneLineParser, path

TABLES = ("1", "2", "3a", "3b", "4", "grid", "search", "all")
FORMATS = ("md", "csv", "tex", "html", "fig")
DEFAULT_FORMATS = "md,csv,tex"


def parser() -> argparse.ArgumentParser:
    """The command-line parser of make_tables.py."""
    p = OneLineParser(
        prog="make_tables.py",
        description="Tables from the records of a sweep: printed, and written to <sweep>/tables.",
        epilog="Without options: the latest sweep under runs/, as Table 1 where it has that shape.",
    )
    p.add_argument(
        "--runs", nargs="+", type=path, metavar="DIR", help="sweep folders (default: the latest)"
    )
    p.add_argument(
        "--mlflow", metavar="URI", help="read the records from MLflow instead of run directories"
    )
    p.add_argument(
        "--sweep", metavar="NAME", help="for --mlflow: preset, sweep id, run name (default: latest)"
    )
    p.add_argument(
        "--table",
        choices=TABLES,
        help="which table (default: search for a search, 1 where it fits, else grid)",
    )
    for name, what in (
        ("metrics", "metrics of a table of your own: names or printed labels, or all"),
        ("rows", "settings in its rows (default: what was swept)"),
        ("columns", "settings whose values are its columns (default: a column per metric)"),
    ):
        p.add_argument(f"--{name}", metavar="LIST", help=what)
    p.add_argument(
        "--format",
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help=f"files to write, of {', '.join(FORMATS)}; fig: PDF and PNG (default: %(default)s)",
    )
    p.add_argument(
        "--style",
        choices=("compact", "full"),
        default="compact",
        help="full: how the numbers were made also under each table, printed and in Markdown",
    )
    p.add_argument("--out", type=path, metavar="DIR", help="write here (default: <sweep>/tables)")
    p.add_argument("--check", action="store_true", help="write nothing; exit 1 if files are stale")
    p.add_argument(
        "--export",
        type=path,
        metavar="ZIP",
        help="write one ZIP archive of tables and records, without checkpoints and models, for a "
        "paper's supplement",
    )
    p.add_argument(
        "--anonymous",
        action="store_true",
        help="with --export: without the names of machine and user, paths and addresses",
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
        "--explain", metavar="CELL", help='print every trial of a cell, like "esteps=4,eta_p=6e-4"'
    )
    p.add_argument(
        "--beside",
        type=path,
        metavar="CSV",
        help="other methods' published numbers as rows below ours: method, dataset, metric, mean, "
        "std, n, protocol, source",
    )
    p.add_argument(
        "--at",
        metavar="N",
        help="show every trial at iteration N, or at the iteration with its best METRIC "
        "(best:METRIC, a metric that needs no labels); written to <sweep>/tables/at-N",
    )
    p.add_argument(
        "--no-pictures", action="store_true", help="leave sample sheets out of the HTML report"
    )
    p.add_argument(
        "--pool-code", action="store_true", help="average trials of different code versions"
    )
    return p


def formats_of(text: str) -> list[str]:
    """The formats in `text`, in the order of FORMATS; ValueError if unknown or if there is none."""
    from mpcc.config import unknown

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise ValueError(unknown("format", name, FORMATS))
    if not names:
        raise ValueError(f"--format is empty; choose from {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in names]


def listed(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated list; empty if there is no text."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
