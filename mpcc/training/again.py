"""Whether this code reproduces a finished trial: retrain it up to its first evaluation."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mpcc.runs import run_dir
from mpcc.training.trainer import train


def differing(path: Path, data_dir: Path | None = None) -> list[str]:
    """Names of losses and metrics whose values differ when this code retrains a finished trial to
    its first evaluation.

    path: its run directory, which is not changed. A metric that only one of the two code versions
    measures is not compared. Raises as `train` does.
    """
    config = run_dir.read_config(path)
    assert config is not None
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "run"
        run = train(config, again, data_dir=data_dir, checkpoint_seconds=1e9)
        for progress in run:
            if progress.metrics is not None:
                break
        run.close()
        (was, *_), now = run_dir.read_metrics(path), run_dir.read_metrics(again)
    row = now[0] if now else {"iteration": 0}
    return [name for name in was if name in row and name != "seconds" and was[name] != row[name]]
