"""The pictures at a trial's end: samples by cluster, reconstructions, latent space and curves."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from mpcc.evaluation import pictures, plots
from mpcc.evaluation.evaluate import MIN_SAMPLES, SAMPLES_PER_CLUSTER, Evaluation, draw, error_text
from mpcc.training.state import TrainState

_drawing = threading.Lock()
"""Matplotlib draws for one thread at a time."""


@torch.no_grad()
def write_pictures(path: Path, state: TrainState, evaluation: Evaluation) -> dict[str, str]:
    """Write samples by cluster, reconstructions by label, the latent space and the curves as PNG.

    Returns file name -> why it could not be drawn; a failed picture does not fail the trial.
    """
    problems = {}
    drawn = (
        ("samples.png", _write_samples),
        ("reconstructions.png", _write_reconstructions),
        ("latent.png", _write_latent_picture),
        ("curves.png", _write_curves),
    )
    with _drawing:
        for name, write in drawn:
            try:
                write(path / name, state, evaluation)
            except Exception as error:
                problems[name] = error_text(error)
    return problems


def _write_samples(file: Path, state: TrainState, evaluation: Evaluation) -> None:
    n_clusters = state.config.n_clusters if state.prior.has_clusters else 1
    # Fewer samples of each of many clusters keep the sheet to a page.
    n_each = max(4, min(SAMPLES_PER_CLUSTER, MIN_SAMPLES // n_clusters))
    by_cluster = (n_clusters, -1, *evaluation.samples.shape[1:])
    samples = evaluation.samples.view(by_cluster)[:, :n_each].flatten(0, 1).cpu()
    of_cluster = torch.arange(n_clusters).repeat_interleave(n_each)
    pictures.sample_sheet(samples, of_cluster, n_clusters, file)


def _write_reconstructions(file: Path, state: TrainState, evaluation: Evaluation) -> None:
    clusters, names = evaluation.clusters, list(state.image_set.label_names)
    labels = None if state.labels is None else state.labels.cpu()
    chosen = torch.arange(min(100, len(state.images)))
    if labels is not None:
        each = max(1, 100 // max(1, int(labels.max()) + 1))
        chosen = torch.as_tensor(pictures.choose_by_label(labels, each))
    chosen = chosen.to(state.device)
    given = None if clusters is None else clusters[chosen]
    x_hat = draw(state, evaluation.generator, evaluation.z_means[chosen], given)
    pictures.reconstruction_sheet(
        state.images[chosen].cpu(),
        x_hat.cpu(),
        file,
        labels=None if labels is None else labels[chosen.cpu()],
        label_names=names or None,
    )


def _write_latent_picture(file: Path, state: TrainState, evaluation: Evaluation) -> None:
    clusters, prior = evaluation.clusters, state.prior
    plots.latent_picture(
        evaluation.z_means.cpu(),
        torch.zeros(len(state.images), dtype=torch.long) if clusters is None else clusters.cpu(),
        file,
        prior_means=prior.mean.cpu() if prior.has_clusters else None,
        prior_covariances=prior.covariances.cpu() if prior.has_clusters else None,
        title="Encodings by cluster, and the prior's components (two standard deviations)",
    )


def _write_curves(file: Path, state: TrainState, evaluation: Evaluation) -> None:
    plots.curve_picture(state.rows, file)
