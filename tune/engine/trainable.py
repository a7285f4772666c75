"""MPCC as a Ray Tune trainable, for a sweep of ours and for a Tuner of your own.

    from ray import tune
    from tune.engine.trainable import MPCCTrainable

    tuner = tune.Tuner(
        MPCCTrainable,
        param_space={"preset": "digits", "prior_lr": tune.loguniform(1e-3, 1e-2), "seed": 0},
        tune_config=tune.TuneConfig(metric="cluster_information", mode="max", num_samples=6),
    )
    results = tuner.fit()

`param_space` holds `preset` and any fields of `mpcc.config.Config`. A step is one evaluation, its
result the row of metrics that `python -m mpcc` writes; Tune keeps the checkpoints, so schedulers
that stop trials early and `Tuner.restore` work. MPCC_DATA_DIR names the data folder.

In a sweep of ours `config["sweep"]` holds the `TrialSpec` of each trial that shares the process. A
step then also ends after about a second, so that a stop request takes effect soon, and the only
checkpoint is the run directory's.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from mpcc.config import Config, preset, value_text
from mpcc.evaluation.metrics import METRICS
from mpcc.runs import run_dir
from tune.engine import faults
from tune.engine.worker import GroupWorker, TrialWorker
from tune.plan.state import State

if TYPE_CHECKING:
    from mpcc.training.trainer import Progress

SWEEP = "sweep"
"""The key of `config` under which a sweep passes its specifications."""
EVENT = "event"
"""The key of a result under which a sweep's worker passes its event."""
NO_CHECKPOINTS_SECONDS = 1e6


class MPCCTrainable(tune.Trainable):
    """Trains MPCC; see the module's documentation for the two forms of `config`."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the trial, or the trials of a group. ValueError names a setting that is wrong."""
        self._run: OwnRun | TrialWorker | GroupWorker
        specs = config.get(SWEEP)
        if specs is None:
            self._run = OwnRun(config_of(config))
        else:
            self._run = TrialWorker(specs[0]) if len(specs) == 1 else GroupWorker(specs)

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation; in a sweep for about a second at most."""
        if isinstance(self._run, OwnRun):
            return self._run.step()
        event = self._run.step()
        if isinstance(self._run, GroupWorker):
            return {EVENT: event, "done": self._run.finished}
        return {EVENT: event, "done": event.ends}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the run directory with a checkpoint of this step."""
        if isinstance(self._run, OwnRun):
            self._run.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Go on from what `save_checkpoint` wrote.

        ValueError for a checkpoint of other settings: population-based training, which changes the
        settings of a trial under way, is not supported.
        """
        if isinstance(self._run, OwnRun):
            self._run.load(Path(str(checkpoint)))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare another trial in this process, which saves the start of a new process."""
        self.cleanup()
        faults.free_gpu_memory()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Stop the training; in a sweep the trainer writes a checkpoint."""
        self._run.release()


def config_of(values: Mapping[str, Any]) -> Config:
    """Return the configuration of a Tuner's `config`: a preset, changed by fields."""
    fields = dict(values)
    name = fields.pop("preset", "digits")
    return preset(str(name)).override(**fields)


class OwnRun:
    """A trial under a Tuner of the user's own, in a temporary run directory."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = Path(tempfile.mkdtemp(prefix="mpcc-tune-"))
        self._progress: Generator[Progress] | None = None

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation and return its row; `done` after the last one."""
        from mpcc.training.trainer import train

        if self._progress is None:
            self._progress = train(
                self._config, self._path, checkpoint_seconds=NO_CHECKPOINTS_SECONDS
            )
        progress = next(p for p in self._progress if p.metrics is not None or p.state != "running")
        result: dict[str, Any] = {"done": progress.state != "running", "state": progress.state}
        if progress.state == State.DIVERGED:
            return dict.fromkeys(METRICS, math.nan) | result
        row = progress.metrics or run_dir.read_metrics(self._path)[-1]
        return {**row, **result}

    def save(self, folder: Path) -> None:
        """Copy the run directory with a checkpoint of the iteration reached."""
        self._close()
        for file in self._path.iterdir():
            if file.is_file() and file.name != run_dir.PREVIOUS_CHECKPOINT:
                shutil.copyfile(file, folder / file.name)

    def load(self, folder: Path) -> None:
        """Replace the run directory by a copy that `save` made."""
        self._close()
        saved = run_dir.read_config(folder)
        if saved is not None and saved != self._config:
            was, now = saved.to_dict(), self._config.to_dict()
            name = next(name for name in was if was[name] != now[name])
            raise ValueError(
                f"the checkpoint is of a trial with {name}={value_text(was[name])}, now "
                f"{value_text(now[name])}: settings of a trial under way cannot change, so "
                "population-based training is not supported; use another scheduler"
            )
        shutil.rmtree(self._path)
        shutil.copytree(folder, self._path)

    def release(self) -> None:
        """Stop the training and remove the run directory."""
        self._close()
        shutil.rmtree(self._path, ignore_errors=True)

    def _close(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.close()
