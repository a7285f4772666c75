"""Load a model from its file, from the folder of a trial or of a sweep, or from MLflow."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcc.config import SHORT, Config, parse_settings, training_cell_key, value_text
from mpcc.options import usable
from mpcc.runs import run_dir
from mpcc.runs.files import MODEL, RunDirError, belongs, read_bytes, read_json
from mpcc.shell import message_of

if TYPE_CHECKING:
    from mpcc.use.model import Model

TRIALS, PLAN = "trials", "sweep.json"
SCORE = "cluster_information"
"""The metric by which `cell="best"` chooses: I(x; y) in nats, which needs no labels."""


def load(
    path: str | Path, cell: str | None = None, *, seed: int = 0, device: str = "auto"
) -> Model:
    """The model of a trial, finished or still running, or of one trial of a sweep.

    path: the folder, a model's file, or the address of a model in MLflow: `runs:/ID` of a trial's
      run, `models:/NAME/VERSION` or `models:/ID` as MLflow's pages show it.
      MLFLOW_TRACKING_URI says where MLflow is.
    cell: of a sweep, `best` (the greatest mean I(x; y) of the seeds that are done), a cell's key,
      or settings that one cell alone has, such as `esteps=4,eta_p=0.01`.
    seed: of the trial within the cell.
    device: auto, cpu, cuda or cuda:N.
    A trial that is done gives the model of its last evaluation, to the bit; any other trial gives
    that of its newest checkpoint. ValueError, one line, if the model cannot be loaded.
    """
    from mpcc.training.device import resolve_device
    from mpcc.use.trained import model_of, model_of_checkpoint

    where, path = resolve_device(device), usable(path)
    if re.match("(runs|models):/", str(path)):
        _refuse_cell(path, cell)
        return model_of(_from_mlflow(str(path)), str(path), where)
    if path.is_file():
        _refuse_cell(path, cell)
        return model_of(read_bytes(path) or b"", str(path), where)
    path = find_trial(path, cell, seed)
    config = run_dir.read_config(path)
    if config is None:
        raise RunDirError(f"{path} holds no trial ({run_dir.CONFIG} is missing)")
    result = run_dir.read_result(path) or {}
    if result.get("state") == run_dir.DIVERGED:
        raise RunDirError(
            f"the trial in {path} diverged ({result.get('cause')}): load another seed or cell"
        )
    data = model_data(path, result)
    if data is None:  # A trial of earlier code, or not at its end.
        return model_of_checkpoint(path, config, where)
    return model_of(data, str(path), where)


def model_data(path: Path, result: Mapping[str, Any]) -> bytes | None:
    """The model file of a trial with this result; None if there is none. RunDirError if it is
    damaged."""
    data = read_bytes(path / MODEL) if MODEL in result.get("seal", {}) else None
    if data is not None and not belongs(result, MODEL, data):
        raise RunDirError(f"{path / MODEL} is damaged; delete it to use the checkpoint")
    return data


def _load_pyfunc(path: str) -> Model:
    """What MLflow calls to load a model that a sweep has logged: its `predict` takes images."""
    return load(path)


def _from_mlflow(address: str) -> bytes:
    """The bytes of a model's file in MLflow."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        import mlflow
    except ImportError:
        raise RunDirError(f"{address} needs MLflow: pip install mlflow") from None
    if not mlflow.is_tracking_uri_set():
        raise RunDirError(
            f"{address} does not say which MLflow: set MLFLOW_TRACKING_URI, such as "
            "sqlite:///runs/digits/mlflow.db or http://localhost:5000"
        )
    model = f"{address}/model" if re.fullmatch("runs:/[^/]+", address) else address
    with tempfile.TemporaryDirectory() as folder:
        try:
            place = mlflow.artifacts.download_artifacts(model, dst_path=folder)
            return (Path(place) / "data" / MODEL).read_bytes()
        except Exception as error:  # whatever a database, a server or a store can raise
            missing = isinstance(error, FileNotFoundError)
            why = f"there is no data/{MODEL} in it" if missing else message_of(error, 200)
            raise RunDirError(
                f"{address}: MLflow gives no model ({why}); by default a sweep logs only its best "
                "cell; use --sync --log-models always"
            ) from None


def find_trial(path: Path, cell: str | None, seed: int) -> Path:
    """The folder of the trial: the path itself, or in a sweep's folder that of cell and seed."""
    if not path.is_dir():
        raise RunDirError(f"{path} does not exist; name the folder of a trial or of a sweep")
    if not (path / TRIALS).is_dir():
        _refuse_cell(path, cell)
        return path
    if cell is None:
        raise RunDirError(f'{path} holds a sweep: say which cell, such as cell="best"')
    trials = _trials(path)
    key = best_cell(path) if cell == "best" else _named(trials, str(cell), path)
    seeds = {config.seed: folder for folder, config in trials.items() if config.cell_key == key}
    if seed not in seeds:
        raise RunDirError(
            f"cell {key} of {path} has no trial of seed {seed}: it has {_listed(sorted(seeds))}"
        )
    return seeds[seed]


def _refuse_cell(path: Path, cell: str | None) -> None:
    if cell is not None:
        raise RunDirError(f"{path} is one trial and has no cells: leave out cell={cell}")


def _trials(path: Path) -> dict[Path, Config]:
    found = {}
    for folder in sorted((path / TRIALS).glob("*")):
        config = run_dir.read_config(folder) if folder.is_dir() else None
        if config is not None:
            found[folder] = config
    if not found:
        raise RunDirError(f"{path} holds no trial that has begun: start the sweep first")
    return found


def best_cell(path: Path, cells: Collection[str] | None = None) -> str:
    """The key of the sweep's cell with the greatest mean of SCORE over its trials that are done.

    cells: the keys of those that may be chosen, by default all that the plan has. Trials that were
    dropped from the plan do not count, nor do cells with a collapsed or diverged seed, unless all
    have one. RunDirError if no trial counts.
    """
    values: dict[str, list[float]] = {}
    data = set()
    unsound, dropped = set(), set[str]()
    with suppress(RunDirError, KeyError, TypeError):  # Without a sound plan, all cells count.
        plan: Any = read_json(path / PLAN) or {}
        dropped = {*plan.get("dropped", ())}
        cells = {cell["key"] for cell in plan["cells"]} if cells is None else cells
    for folder, config in _trials(path).items():
        counts = folder.name not in dropped and (cells is None or config.cell_key in cells)
        result = run_dir.read_result(folder) or {} if counts else {}
        value = result.get("metrics", {}).get(SCORE)
        if result.get("state") == run_dir.DONE and isinstance(value, float):
            values.setdefault(config.cell_key, []).append(value)
            data.add((config.dataset, config.split, config.n_clusters))
        if result.get("state") == run_dir.DIVERGED or "collapsed" in result.get("failures", ()):
            unsound.add(config.cell_key)
    if not values:
        raise RunDirError(f"no trial of {path} that is done has {SCORE}: name a cell by its key")
    if len(data) > 1:
        raise RunDirError(
            f"{path} has several data sets or numbers of clusters, whose I(x; y) does not compare: "
            "name a cell by its settings or key"
        )
    keys = values.keys() - unsound or values.keys()
    means = {key: sum(values[key]) / len(values[key]) for key in keys}
    return max(sorted(means), key=means.__getitem__)


def _named(trials: dict[Path, Config], cell: str, path: Path) -> str:
    """The key of the one cell with this key, its first digits or these settings; else RunDirError.

    Of cells that differ only in their evaluation, the last one begun is taken.
    """
    by_time = sorted(trials, key=lambda folder: (folder / run_dir.CONFIG).stat().st_mtime)
    cells = {trials[folder].cell_key: trials[folder] for folder in by_time}
    if re.fullmatch(r"[0-9a-f]{4,12}", cell):
        found = [key for key in cells if key.startswith(cell)]
    else:
        settings = parse_settings(cell)
        found = [
            key
            for key, config in cells.items()
            if all(getattr(config, name) == value for name, value in settings.items())
        ]
    if len({training_cell_key(cells[key]) for key in found}) == 1:
        return found[-1]
    told = _listed(sorted(_differing(cells[key], list(cells.values())) for key in found or cells))
    raise RunDirError(
        f"{len(found) or 'no'} cells of {path} fit '{cell}'; "
        f"{'they' if found else 'its cells'} are: {told}"
    )


def _differing(config: Config, others: list[Config]) -> str:
    """A cell by what differs within the sweep: `esteps=4,eta_p=0.01 (key)`."""
    values = [other.to_dict() for other in others]
    settings = [
        f"{SHORT.get(name, name)}={value_text(value)}"
        for name, value in config.to_dict().items()
        if name != "seed" and any(other[name] != value for other in values)
    ]
    return f"{','.join(settings)} ({config.cell_key})".strip()


def _listed(items: Sequence[object], most: int = 8) -> str:
    text = "; ".join(map(str, items[:most]))
    return text + (f"; and {len(items) - most} more" if len(items) > most else "")
