"""Records made by hand: sweep folders as a sweep leaves them, without training anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.options import parser
from analysis.records.load import load
from analysis.tables.grid import GridResult, baseline_of, grid_tables
from analysis.tables.groups import groups
from analysis.tables.layout import OURS, Table
from mpcc.config import Config, preset
from mpcc.runs.clusters import CLUSTERS, clusters_bytes
from mpcc.runs.run_dir import write_json, write_metrics, write_provenance, write_result

TABLE1_ROWS = ((1, 1e-3), (2, 1e-3), (4, 1e-3), (4, 2e-3), (4, 5e-3))
TABLE1_MEANS = (0.61, 0.64, 0.66, 0.74, 0.83)
ITERATIONS = 1500
PARAMETERS = {"generator": 1000, "discriminator": 400, "encoder": 234}
COST = {"seconds": {"train": 12.5, "evaluate": 2.5}, "n_parameters": PARAMETERS}


def table1_changes(rows: Sequence[tuple[int, float]] = TABLE1_ROWS) -> list[dict[str, Any]]:
    """The five cells of Table 1 at the scale of `digits`."""
    return [{"n_encoder_steps": steps, "prior_lr": rate} for steps, rate in rows]


def options(table: str | None = None, *words: str) -> argparse.Namespace:
    """What `make_tables.py --table TABLE` takes."""
    return parser().parse_args([*(["--table", table] if table else []), *words])


class SweepBuilder:
    """A sweep folder that grows trial by trial."""

    def __init__(self, path: Path, name: str = "digits", **base: Any) -> None:
        self.path = path
        self.name = name
        self.base = preset(name).override(**({"iterations": ITERATIONS} | base))
        self.cells: list[dict[str, Any]] = []

    def plan(
        self,
        changes: Iterable[Mapping[str, Any]],
        seeds: Sequence[int] = (0, 1, 2),
        grid: str = "esteps,eta_p",
        variant: str | None = None,
    ) -> SweepBuilder:
        """Add cells to the plan and write it."""
        for change in changes:
            key = self.config(change, 0).cell_key
            cell = {"key": key, "changes": dict(change), "variant": variant}
            self.cells.append(cell | {"grids": [grid], "seeds": list(seeds)})
        return self.write_plan()

    def write_plan(self) -> SweepBuilder:
        """sweep.json."""
        base = {k: v for k, v in self.base.to_dict().items() if k != "seed"}
        self.path.mkdir(parents=True, exist_ok=True)
        plan = {"schema": 1, "id": "abc", "preset": self.name, "base": base, "cells": self.cells}
        write_json(self.path / "sweep.json", plan | {"code": "c0de"})
        return self

    def config(self, changes: Mapping[str, Any], seed: int) -> Config:
        """The trial's configuration."""
        return self.base.override(**changes, seed=seed)

    def folder(self, changes: Mapping[str, Any], seed: int) -> Path:
        """Where the trial's records are."""
        return self.path / "trials" / self.config(changes, seed).trial_key

    def trial(
        self,
        changes: Mapping[str, Any],
        seed: int,
        metrics: Mapping[str, Any] | None = None,
        *,
        state: str | None = "done",
        cause: str | None = None,
        iteration: int | None = None,
        code: str = "c0de",
        device: str = "cpu",
        fingerprint: str = "f00d",
        n_images: int = 1797,
        kmeans: float | None = 0.79,
        curve: Sequence[Mapping[str, Any]] = (),
        run_id: str | None = None,
        failures: Sequence[str] = (),
        unavailable: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        cost: Mapping[str, Any] = COST,
        clusters: Sequence[int] = (),
    ) -> Path:
        """One run directory; `state` None leaves it without a result."""
        config = self.config(changes, seed)
        path = self.folder(changes, seed)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "config.json", config.to_dict())
        data = {"dataset": config.dataset, "fingerprint": fingerprint, "n_images": n_images}
        data |= {"notes": list(notes)}
        write_provenance(path, {"code": code, "device": device, "data": data})
        reached = config.iterations if iteration is None else iteration
        rows = [*curve] or ([{"iteration": reached, **metrics}] if metrics else [])
        write_metrics(path, rows)
        (path / "result.json").unlink(missing_ok=True)
        if state is not None:
            result = {"state": state, "cause": cause, "iteration": reached}
            result |= {"trial_key": config.trial_key, "metrics": dict(metrics or {})}
            result |= {"failures": list(failures), "unavailable": dict(unavailable or {})}
            if kmeans is not None:
                result["baseline"] = {"kmeans_acc_majority": kmeans}
            files = {CLUSTERS: clusters_bytes(clusters, [1.0] * len(clusters))} if clusters else {}
            write_result(path, {**result, **cost}, rows, files)
        if run_id:
            write_json(path / "mlflow.json", {"run_id": run_id, "tracking_uri": "sqlite:////x"})
        return path

    def fill(self, changes: Mapping[str, Any], values: Iterable[Any], **trial: Any) -> SweepBuilder:
        """The trials of a cell, from seed 0 on, with these metrics; a number is an accuracy."""
        for seed, value in enumerate(values):
            metrics = value if isinstance(value, Mapping) else {"acc_majority": value}
            self.trial(changes, seed, metrics, **trial)
        return self


def filled(
    path: Path,
    cells: Iterable[tuple[Mapping[str, Any], Sequence[Any]]],
    name: str = "digits",
    grid: str = "esteps,eta_p",
    **base: Any,
) -> SweepBuilder:
    """A sweep of these cells, each with the metrics or the accuracy of every seed."""
    sweep = SweepBuilder(path, name, **base)
    for changes, values in cells:
        sweep.plan([changes], range(len(values)), grid).fill(changes, values)
    return sweep


def grid(*folders: Path, test: str = "welch", baseline: str | None = None) -> GridResult:
    """The grid's tables of these folders."""
    records = load(folders)
    cells = groups(records)
    return grid_tables(records, cells, test, baseline_of(records, cells, baseline))


def texts(table: Table, heading: str, kind: str = OURS) -> list[str]:
    """A column of our rows, or of those of another kind."""
    place = [h.text for h in table.headings].index(heading)
    return [row.cells[place].text for row in table.rows if row.kind == kind]


def notes_at(table: Table, row: int, heading: str) -> str:
    """The notes of a cell in our rows."""
    place = [h.text for h in table.headings].index(heading)
    numbers = [r for r in table.rows if r.kind == OURS][row].cells[place].notes
    return " ".join(table.notes[number - 1] for number in numbers)


def metrics_of(accuracy: float, rng: np.random.Generator) -> dict[str, float]:
    """A plausible evaluation."""
    return {
        "acc_majority": accuracy,
        "acc_hungarian": accuracy - 0.04,
        "nmi": 0.9 * accuracy,
        "mse": 0.11 + 0.01 * float(rng.standard_normal()),
        "mse_published": 3e-4 + 5e-5 * float(rng.standard_normal()),
        "saturation_excess": 0.01,
    }


def table1_sweep(path: Path, seeds: Sequence[int] = (0, 1, 2), **base: Any) -> SweepBuilder:
    """Table 1's five rows on `digits`, all trials done."""
    rng = np.random.default_rng(7)
    sweep = SweepBuilder(path, **base).plan(table1_changes(), seeds)
    for change, centre in zip(table1_changes(), TABLE1_MEANS, strict=True):
        for seed in seeds:
            accuracy = centre + 0.02 * float(rng.standard_normal())
            sweep.trial(change, seed, metrics_of(accuracy, rng))
    return sweep
