"""Tables of sweeps: `python analysis/make_tables.py`, or in a notebook `load` and `summarise`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tables.pivot import summarise

__all__ = ["load", "summarise"]


def load(*folders: str | Path) -> pd.DataFrame:
    """A row per trial of these sweeps: its keys, every setting, its state and its last metrics.

    A trial that has not run is a row too. Without folders: the latest sweep under runs/. What was
    swept is in `attrs["axes"]`, what was wrong or merged while loading in `attrs["notes"]`.
    Raises ValueError, in one line, for a folder that holds no records.
    """
    from analysis.records.folders import latest_sweep
    from analysis.records.load import load as read

    places = [Path(folder) for folder in folders]
    records = read(places or [latest_sweep(Path(__file__).resolve().parents[1])])
    trials = records.trials.copy()
    trials.attrs = {"axes": list(records.axes), "notes": list(records.notes)}
    return trials


def __getattr__(name: str) -> Any:
    """`summarise`, when it is first asked for: pandas takes a second to import."""
    if name == "summarise":
        from analysis.tables.pivot import summarise

        return summarise
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
