"""Make a model and its file from a training state, and a model from a file or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mpcc.config import Config, from_record
from mpcc.data.image_set import ImageSet
from mpcc.evaluation.evaluate import Evaluation, averaged_generator, evaluation_rng
from mpcc.fast.layers import Spectral as FastSpectral
from mpcc.fast.layers import quicken
from mpcc.model.layers import ConditionalBatchNorm
from mpcc.model.networks import Encoder, Generator, trunk
from mpcc.runs import run_dir
from mpcc.runs.clusters import CLUSTERS, clusters_bytes
from mpcc.runs.files import MODEL, RunDirError
from mpcc.runs.model_file import model_bytes, read_model
from mpcc.shell import message_of
from mpcc.training.device import resolve_device
from mpcc.training.resume import fitting, load_model
from mpcc.training.state import TrainState, build_prior, build_state, seeded
from mpcc.use.images import CHUNK
from mpcc.use.levels import Levels
from mpcc.use.model import Model

NETWORKS = ("generator", "encoder", "prior")


def for_use(
    state: TrainState, evaluation: Evaluation, files: Sequence[str] | None
) -> dict[str, bytes]:
    """The files that a finished trial leaves for users, by name: its model, and every image's
    cluster. files: of each image, if the images are files."""
    images = state.image_set
    networks = evaluation.generator, state.encoder, state.prior
    model = Model(
        state.config, state.iteration, *networks, images.label_names, Levels.of(images.images)
    )
    found = {MODEL: bytes_of(model)}
    if evaluation.clusters is not None:
        chunks = evaluation.z_means.split(CHUNK)
        with torch.no_grad():
            shares = [state.prior.log_memberships(z).exp().amax(1).cpu() for z in chunks]
        labels = None
        if images.labels is not None:
            names = images.label_names
            labels = [names[k] if names else str(k) for k in images.labels.tolist()]
        clusters = evaluation.clusters.tolist()
        found[CLUSTERS] = clusters_bytes(clusters, torch.cat(shares).tolist(), labels, files)
    return found


def bytes_of(model: Model) -> bytes:
    """The bytes of a model's file: all tensors by name (fast layers: the normalised weight)."""
    found: dict[str, Tensor] = {}
    for prefix in NETWORKS:
        network = getattr(model, prefix)
        ours = network.state_dict()
        for name, module in network.named_modules():
            if isinstance(module, FastSpectral):
                ours[f"{name}.weight"] = module.normalised
                del ours[f"{name}.u"], ours[f"{name}.v"]
        found |= {f"{prefix}.{name}": tensor for name, tensor in ours.items()}
    head = {
        "config": model.config.to_dict(),
        "iteration": model.iteration,
        "label_names": model.label_names,
        "levels": model.levels,
    }
    return model_bytes(head, {n: t.detach().cpu().float().numpy() for n, t in found.items()})


def model_of(data: bytes, name: str, device: torch.device) -> Model:
    """The model in the bytes of a file; RunDirError, with its name, if they are no valid model."""
    head, arrays = read_model(data, name)
    try:
        config, levels = from_record(head["config"]), head["levels"]
        with torch.device("meta"):  # Weights come from the file; here a wrong size needs no memory.
            generator, encoder = Generator(config), Encoder(config, trunk(config))
        with seeded(0):
            prior = build_prior(config)
        networks = generator, encoder, prior
        for prefix, network in zip(NETWORKS, networks, strict=True):
            ours = {
                n.removeprefix(f"{prefix}."): a for n, a in arrays.items() if n.startswith(prefix)
            }
            _fill(network, ours, config.fast, device)
        return Model(
            config,
            int(head["iteration"]),
            *networks,
            tuple(map(str, head["label_names"])),
            None if levels is None else Levels(*map(float, levels)),
            name,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        why = message_of(error, 200)
        raise RunDirError(f"{name} holds no model of this version ({why})") from None


def unpickled(data: bytes, name: str) -> Model:
    """The model of a pickle, on the GPU if there is one, else on the CPU."""
    return model_of(data, name, resolve_device("auto"))


def model_of_checkpoint(path: Path, config: Config, device: torch.device) -> Model:
    """The model in the newest intact checkpoint of a trial, evaluated as the trainer would;
    RunDirError if there is none."""
    blank = torch.zeros((1, config.n_channels, config.image_size, config.image_size))
    state = build_state(config, ImageSet(blank.to(device, torch.uint8), None, (), ""), device)
    found, damaged = run_dir.read_checkpoints(path)
    problems = list(damaged.values())
    for _, content in fitting(found, state, path, problems):
        load_model(state, content)
        with torch.no_grad():
            generator = averaged_generator(state, evaluation_rng(state))
        model = Model(config, state.iteration, generator, state.encoder, state.prior)
        return model_of(bytes_of(model), str(path), device)
    raise RunDirError(
        "; ".join(problems) or f"{path} has no checkpoint yet: wait, or go on with the trial"
    )


def _fill(
    network: nn.Module, arrays: Mapping[str, np.ndarray], fast: bool, device: torch.device
) -> None:
    """Give a network these tensors, laid out in memory as in training; `fast` as it was trained."""
    if fast:
        quicken(network)
    tensors = {}
    for name, array in arrays.items():
        tensor = torch.tensor(array, device=device)
        if fast and array.ndim == 4:
            # Not torch.channels_last: under it one-channel weights keep other strides, and then
            # round differently.
            n, c, h, w = array.shape
            flat = tensor.permute(0, 2, 3, 1).flatten()
            tensor = flat.view(n, h, w, c).permute(0, 3, 1, 2)
        tensors[name] = tensor
    for name, module in network.named_modules():
        if isinstance(module, ConditionalBatchNorm):
            module.standing_mean = tensors[f"{name}.standing_mean"]
            module.standing_var = tensors[f"{name}.standing_var"]
            module.state = "standing"
    missing, unexpected = network.load_state_dict(tensors, strict=False, assign=True)
    if fast:  # Only training needs a weight's singular vectors.
        missing = [name for name in missing if not name.endswith((".u", ".v"))]
    if unexpected or missing:
        raise ValueError(f"it has no '{[*unexpected, *missing][0]}', or one too many")
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, FastSpectral):
            module.normalised = module.weight.data
