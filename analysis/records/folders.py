"""Where sweeps are. Quick to import, so that a wrong folder is said before pandas is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpcc.runs.run_dir import CONFIG
from tune.plan.plan import PLAN


class LoadError(ValueError):
    """There is nothing to make a table of; the message says what was looked for and where."""


def latest_sweep(root: Path) -> Path:
    """The sweep folder below `root`/runs in which something happened last."""

    def last_change(folder: Path) -> float:
        places = [folder / PLAN, folder / "trials"]
        return max(place.stat().st_mtime for place in places if place.exists())

    return max(sweeps_below(root), key=last_change)


def sweeps_below(root: Path) -> list[Path]:
    """Every sweep folder below `root`/runs, by name."""
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
        places = (PLAN, CONFIG, f"*/{CONFIG}", f"trials/*/{CONFIG}")
        if not any(next(folder.glob(place), None) for place in places):
            raise LoadError(f"{folder} holds no {PLAN} and no run directory")
