"""How much the seeds of a cell agree, where no label can say how good the clusters are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from mpcc.evaluation.metrics import ari
from mpcc.runs.clusters import read_clusters
from mpcc.runs.run_dir import DONE, RunDirError

AGREEMENT = "seed_agreement"


def add_agreement(rows: Sequence[dict[str, Any]], folders: Sequence[Path]) -> None:
    """Give each finished trial without labels its mean adjusted Rand index with the other seeds.

    folders: of the sweeps, by the rows' `source`. A trial without a sound file of its clusters, or
    without another seed on the same images, gets none.
    """
    cells: dict[tuple[Any, ...], dict[str, tuple[dict[str, Any], list[int]]]] = {}
    for row in rows:
        if row["state"] != DONE or "cluster_information" not in row or "acc_majority" in row:
            continue
        with suppress(RunDirError, OSError):
            lines = read_clusters(folders[row["source"]] / row["run_dir"])
            if lines:
                cell = cells.setdefault((row["cell_key"], row["fingerprint"]), {})
                cell[row["trial_key"]] = row, [int(line["cluster"]) for line in lines]
    for cell in cells.values():
        found = {}
        for a, b in itertools.combinations(cell, 2):
            (row, ours), (_, theirs) = cell[a], cell[b]
            found[a, b] = ari(theirs, ours, row["n_clusters"])
        for key, (row, _) in cell.items():
            if values := [value for pair, value in found.items() if key in pair]:
                row[AGREEMENT] = fmean(values)
