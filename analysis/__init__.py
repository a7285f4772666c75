"""Tables of sweeps: `python analysis/make_tables.py`, or in a notebook `load` and `summarise`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tables.pivot import summarise

__all__ = ["load", "summarise"]


def load(*folders: str | Path) -> pd.DataFrame:
    """One row per trial of these sweeps: its keys, every setting, its state and its last metrics.

    A trial that has not run has a row too. Without folders: the latest sweep under runs/. The
    swept settings are in `attrs["axes"]`, problems and merged records in `attrs["notes"]`.
    Raises ValueError, with a one-line message, for a folder that holds no records.
    """
    from analysis.records.folders import latest_sweep
    from analysis.records.load import load as read

    places = [Path(folder) for folder in folders]
    records = read(places or [latest_sweep(Path(__file__).resolve().parents[1])])
    trials = records.trials.copy()
    trials.attrs = {"axes": list(records.axes), "notes": list(records.notes)}
    return trials


def __getattr__(name: str) -> Any:
    """Import `summarise` only when it is used, since pandas takes a second to import."""
    if name == "summarise":
        from analysis.tables.pivot import summarise

        return summarise
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
