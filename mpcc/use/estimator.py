"""MPCC as a scikit-learn estimator on arrays of images."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mpcc.config import IMAGE_SIZES, Config, full_name, preset
from mpcc.data.image_set import ImageSet, fingerprint
from mpcc.data.places import DataError
from mpcc.evaluation import metrics
from mpcc.runs import run_dir
from mpcc.runs.files import MODEL
from mpcc.use.images import Images, prepare
from mpcc.use.model import FITTED, Model

COLOUR, GREY = "folder", "digits"
"""Values of `dataset` that only give the number of channels of your images: 3, 1."""


class MPCC(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator):
    """Cluster images without labels, and draw new ones; `fit` trains one trial.

    n_clusters: K.
    iterations: generator updates; None: those of the preset.
    preset: gives all other settings; `digits` takes about a minute on one CPU core.
    settings: further fields of `mpcc.Config`, by full or short name, such as
      {"n_encoder_steps": 4, "eta_p": 0.01}.
    image_size: 8, 16, 32 or 64 to resize to; None: the first not below the shorter side, or 64.
    value_range: of images that are floats; None: [0, 1].
    device: auto, cpu, cuda or cuda:N.
    random_state: an integer is the trial's seed: same seed, settings and images give bit-identical
      results. None draws one from numpy's own random stream.

    `fit` takes arrays and tensors, the other methods images as `mpcc.Model`. Attributes: `labels_`,
    the cluster of every image of X; `model_`, a `mpcc.Model`; `config_`, all settings, whose
    `dataset` only says how many channels; `metrics_`, the last evaluation.
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        iterations: int | None = None,
        preset: str = "digits",
        settings: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        value_range: tuple[float, float] | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.iterations = iterations
        self.preset = preset
        self.settings = settings
        self.image_size = image_size
        self.value_range = value_range
        self.device = device
        self.random_state = random_state

    def fit(self, X: Images, y: object = None) -> MPCC:
        """Train on the images X; y is not used. ValueError if training diverges."""
        n_channels, side = _looked_at(X)
        config = self._config(n_channels, side)
        pixels = prepare(X, n_channels, config.image_size, value_range=self.value_range)
        image_set = ImageSet(pixels, None, (), fingerprint(pixels, None))
        self.model_, self.metrics_ = _trained(config, image_set, self.device)
        self.config_, self._n_features_out = config, config.latent_size
        self.labels_ = self.model_.predict(pixels, inverted=False)
        return self

    def predict(self, X: Images) -> NDArray[np.int64]:
        """The most likely cluster of each image, (N,)."""
        return self._fitted().predict(X, value_range=self.value_range)

    def predict_proba(self, X: Images) -> NDArray[np.float32]:
        """q(y|x) of each image, (N, K)."""
        return self._fitted().predict_proba(X, value_range=self.value_range)

    def transform(self, X: Images) -> NDArray[np.float32]:
        """Mean of q(z|x) of each image, (N, J)."""
        return self._fitted().encode(X, value_range=self.value_range)

    def sample(self, n: int, cluster: int | None = None, seed: int = 0) -> NDArray[np.uint8]:
        """n images (n, C, H, W) drawn from one cluster, or from p(y); equal for equal seeds."""
        return self._fitted().sample(n, cluster, seed)

    def score(self, X: Images, y: object = None) -> float:
        """I(x; y) of images and clusters in nats, 0 to log K, higher is better; y is not used."""
        with np.errstate(divide="ignore", invalid="ignore"):  # A membership may be exactly 0.
            return metrics.cluster_information(np.log(self.predict_proba(X)))

    def _fitted(self) -> Model:
        check_is_fitted(self, "model_")
        return self.model_

    def _config(self, n_channels: int, side: int) -> Config:
        """The settings of the trial."""
        base, state = preset(self.preset), self.random_state
        if state is None or isinstance(state, np.random.RandomState):
            state = int(check_random_state(state).randint(2**31 - 1))
        changes: dict[str, Any] = {
            "n_clusters": self.n_clusters,
            "iterations": base.iterations if self.iterations is None else self.iterations,
            "image_size": self.image_size or next((s for s in IMAGE_SIZES if s >= side), 64),
            "dataset": base.dataset,
            "seed": state,
        }
        if base.n_channels != n_channels:
            changes["dataset"] = COLOUR if n_channels == 3 else GREY
        own = {*changes, "split"}
        changes["eval_every"] = changes["iterations"]
        for name, value in dict(self.settings or {}).items():
            if full_name(name) in own:
                why = "it is fixed, an argument of MPCC, or given twice"
                raise ValueError(f"settings may not hold {name}: {why}")
            own.add(full_name(name))
            changes[full_name(name)] = value
        # A parameter grid made with numpy holds numpy numbers.
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in changes.items()}
        config = base.override(**plain)
        if config.prior == "normal":
            raise ValueError("MPCC clusters, and prior=normal has no clusters; train it as a trial")
        return config


def _looked_at(X: Images) -> tuple[int, int]:
    """Number of channels and shorter side, from the shape of X; DataError for another shape."""
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) == 3:
        return 1, min(shape[1:])
    if len(shape) == 4 and shape[1] in (1, 3):
        return shape[1], min(shape[2:])
    if len(shape) == 4 and shape[3] in (1, 3):
        return shape[3], min(shape[1:3])
    raise DataError(
        "fit takes an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3, "
        f"got {f'shape {shape}; reshape flat images' if shape else type(X).__name__}"
    )


def _trained(config: Config, image_set: ImageSet, device: str) -> tuple[Model, dict[str, Any]]:
    """The model and the last evaluation of a trial in a temporary folder."""
    from mpcc.training.device import cpu_threads, resolve_device
    from mpcc.training.trainer import train
    from mpcc.use.trained import model_of

    with tempfile.TemporaryDirectory(prefix="mpcc-fit-") as folder:
        path = Path(folder)
        trial = train(config, path, device=device, checkpoint_seconds=1e6, image_set=image_set)
        with cpu_threads(config.cpu_threads):
            for _ in trial:
                pass
        result = run_dir.read_result(path) or {}
        if result["state"] == run_dir.DIVERGED:
            raise ValueError(
                f"training diverged ({result['cause']}): try another random_state, or smaller "
                "eta_p or eta by settings"
            )
        model = model_of((path / MODEL).read_bytes(), FITTED, resolve_device(device))
        return model, result["metrics"]
