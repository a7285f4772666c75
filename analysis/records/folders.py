"""Find sweep folders. Quick to import: a wrong folder is reported before pandas is loaded."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mpcc.runs.run_dir import CONFIG
from tune.plan.plan import PLAN, TRIALS


class LoadError(ValueError):
    """Records are missing or cannot be read; the one-line message says which and where."""


def latest_sweep(root: Path) -> Path:
    """The sweep folder below `root`/runs that changed last; LoadError if there is none."""

    def last_change(folder: Path) -> float:
        places = [folder / PLAN, folder / "trials"]
        return max(place.stat().st_mtime for place in places if place.exists())

    return max(sweeps_below(root), key=last_change)


def sweeps_below(root: Path) -> list[Path]:
    """Every sweep folder below `root`/runs, sorted by name; LoadError if there is none."""
    folders = [path.parent for path in sorted((Path(root) / "runs").glob(f"*/{PLAN}"))]
    if not folders:
        raise LoadError(
            f"no sweep under {Path(root) / 'runs'}: run `python tune/ablation.py` first, "
            "or name a folder with --runs DIR"
        )
    return folders


def check_folders(folders: Iterable[Path]) -> None:
    """Raise LoadError for the first folder that holds no records."""
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise LoadError(f"{folder} is not a folder; --runs takes the folder of a sweep")
        if not (folder / PLAN).exists() and next(run_dirs(folder), None) is None:
            raise LoadError(f"{folder} holds no {PLAN} and no run directory")


def run_dirs(folder: Path) -> Iterator[Path]:
    """The run directories of a folder: itself, those in it, those of its trials; each by name."""
    for place in (CONFIG, f"*/{CONFIG}", f"{TRIALS}/*/{CONFIG}"):
        yield from sorted(file.parent for file in folder.glob(place))
