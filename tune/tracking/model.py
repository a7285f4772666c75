"""The model of a finished trial in MLflow: `mlflow.pyfunc.load_model`, its page and its registry.

A model's files there are `model.mpcc`, which mpcc loads, and MLflow's description of it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mpcc.runs import run_dir
from mpcc.runs.files import MODEL, RunDirError
from mpcc.use import load

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LogModels = Literal["best", "always", "never"]
"""The done trials whose models MLflow gets: those of the sweep's best cell once all trials have
ended (`mpcc.use.load.best_cell`), all, or none."""
NAME = "model"
"""The name of each trial's model: `runs:/ID/model`."""
IMAGES = 2
"""The number of images in the model's input example; they are black."""


def log_model(client: MlflowClient, run: Run, folder: Path) -> None:
    """Log the model of a trial's folder; it replaces any model of the run, half logged or not.

    RunDirError if the trial or its model file is missing or damaged.
    """
    import numpy as np
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    config, result = run_dir.read_config(folder), run_dir.read_result(folder)
    if config is None or result is None or load.model_data(folder, result) is None:
        raise RunDirError(f"{folder / MODEL} is missing; MLflow does not get it")
    size = (config.image_size, config.image_size)
    grey = config.n_channels == 1
    # Drawing images would take torch, a second to import, for an example that only shows the form.
    images = np.zeros((IMAGES, *size) if grey else (IMAGES, *size, 3), np.uint8)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1) if grey else (-1, -1, -1, 3))]),
        Schema([TensorSpec(np.dtype("int64"), (-1,))]),
    )
    run_id, experiment = run.info.run_id, run.info.experiment_id
    for old in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(old.model_id)
    logged = client.create_logged_model(experiment, NAME, run_id)
    with tempfile.TemporaryDirectory() as place:
        save_model(
            f"{place}/{NAME}",
            loader_module=load.__name__,
            data_path=str(folder / MODEL),
            signature=signature,
            input_example=images,
            conda_env=_environment(),
            mlflow_model=Model(artifact_path=NAME, run_id=run_id, model_id=logged.model_id),
        )
        client.log_model_artifacts(logged.model_id, f"{place}/{NAME}")
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, int(result["iteration"]))])


def _environment() -> dict[str, object]:
    """What the model needs, as MLflow writes it into each of its files about packages.

    A list of requirements would have MLflow scan all installed packages, a third of a second.
    """
    from mlflow import __version__

    # This package is on no index.
    packages = [f"mlflow=={__version__}", "torch", "numpy", "pillow"]
    python = f"python={'.'.join(map(str, sys.version_info[:3]))}"
    return {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [python, "pip", {"pip": packages}],
    }
