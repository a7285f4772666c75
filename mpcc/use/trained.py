"""From training to a model and its file, and back from the file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from mpcc.runs.model_file import Arrays, model_bytes, read_model
from mpcc.training.device import resolve_device
from mpcc.training.resume import misfit, take_model
from mpcc.training.state import TrainState, build_prior, build_state, seeded
from mpcc.use.images import CHUNK, Levels
from mpcc.use.model import Model


def trained_bytes(state: TrainState, generator: Generator) -> bytes:
    """The file of a model as training has it; the generator that an evaluation has used."""
    images = state.image_set
    head = _head(state.config, state.iteration, images.label_names, Levels.of(images.images))
    return model_bytes(head, _arrays(generator, state.encoder, state.prior))


def for_use(
    state: TrainState, evaluation: Evaluation, files: Sequence[str] | None
) -> dict[str, bytes]:
    """What the last evaluation leaves for users, by file: the model, and every image's cluster.

    files: of each image, where the images are files.
    """
    found = {MODEL: trained_bytes(state, evaluation.generator)}
    if evaluation.clusters is not None:
        images, chunks = state.image_set, evaluation.z_means.split(CHUNK)
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
    """The file of a model."""
    head = _head(model.config, model.iteration, model.label_names, model.levels)
    return model_bytes(head, _arrays(model.generator, model.encoder, model.prior))


def model_of(data: bytes, name: str, device: torch.device) -> Model:
    """The model in the content of a file; RunDirError with its name for what cannot be one."""
    head, arrays = read_model(data, name)
    try:
        config, levels = from_record(head["config"]), head["levels"]
        with torch.device("meta"):  # Weights come from the file, and a false size costs nothing.
            generator, encoder = Generator(config), Encoder(config, trunk(config))
        with seeded(0):
            prior = build_prior(config)
        for prefix, network in (("generator", generator), ("encoder", encoder), ("prior", prior)):
            _fill(network, _part(arrays, prefix), config.fast, device)
        return Model(
            config,
            int(head["iteration"]),
            generator,
            encoder,
            prior,
            tuple(map(str, head["label_names"])),
            None if levels is None else Levels(*map(float, levels)),
            name,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise RunDirError(f"{name} holds no model of this version ({reason})") from None


def unpickled(data: bytes, name: str) -> Model:
    """The model of a pickle, on the device that is best here."""
    return model_of(data, name, resolve_device("auto"))


def model_of_checkpoint(path: Path, config: Config, device: torch.device) -> Model:
    """The model in the newest intact checkpoint of a trial, evaluated as the trainer would.

    RunDirError where there is none.
    """
    blank = torch.zeros((1, config.n_channels, config.image_size, config.image_size))
    state = build_state(config, ImageSet(blank.to(device, torch.uint8), None, (), ""), device)
    found, problems = run_dir.read_checkpoints(path)
    shorter = [config.override(iterations=n) for n in run_dir.earlier_iterations(path)]
    for checkpoint in found:
        try:
            file = io.BytesIO(checkpoint.payload)
            content = torch.load(file, map_location=device, weights_only=True)
            foreign = content["trial_key"] not in {c.trial_key for c in (config, *shorter)}
            problem = "belongs to another trial" if foreign else misfit(content, state)
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
            problem = f"cannot be read: {(str(error).splitlines() or ['no reason given'])[0]}"
        if problem is None:
            take_model(state, content)
            with torch.no_grad():
                generator = averaged_generator(state, evaluation_rng(state))
            head = _head(config, state.iteration, (), None)
            arrays = _arrays(generator, state.encoder, state.prior)
            return model_of(model_bytes(head, arrays), str(path), device)
        problems.append(f"a checkpoint in {path} {problem}")
    raise RunDirError(
        "; ".join(problems) or f"{path} has no checkpoint yet: wait, or go on with the trial"
    )


def _head(
    config: Config, iteration: int, label_names: tuple[str, ...], levels: Levels | None
) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "iteration": iteration,
        "label_names": label_names,
        "levels": levels,
    }


def _arrays(generator: Generator, encoder: Encoder, prior: nn.Module) -> Arrays:
    """All tensors by name; a weight as the forward pass sees it where it is kept normalised."""
    found: dict[str, Tensor] = {}
    for prefix, network in (("generator", generator), ("encoder", encoder), ("prior", prior)):
        ours = network.state_dict()
        for name, module in network.named_modules():
            if isinstance(module, FastSpectral):
                ours[f"{name}.weight"] = module.normalised
                del ours[f"{name}.u"], ours[f"{name}.v"]
            if isinstance(module, ConditionalBatchNorm) and module.statistics.mean is not None:
                assert module.statistics.var is not None
                ours[f"{name}.standing_mean"] = module.statistics.mean
                ours[f"{name}.standing_var"] = module.statistics.var
        found |= {f"{prefix}.{name}": tensor for name, tensor in ours.items()}
    return {name: tensor.detach().cpu().float().numpy() for name, tensor in found.items()}


def _part(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    start = len(prefix) + 1
    return {name[start:]: a for name, a in arrays.items() if name.startswith(f"{prefix}.")}


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
            # Not by `torch.channels_last`, which leaves a layer of one channel as it is: other
            # strides round otherwise.
            n, c, h, w = array.shape
            flat = tensor.permute(0, 2, 3, 1).flatten()
            tensor = flat.view(n, h, w, c).permute(0, 3, 1, 2)
        tensors[name] = tensor
    for name, module in network.named_modules():
        if isinstance(module, ConditionalBatchNorm):
            statistics = module.statistics
            statistics.mean = tensors.pop(f"{name}.standing_mean")
            statistics.var = tensors.pop(f"{name}.standing_var")
            statistics.state = "standing"
    missing, unexpected = network.load_state_dict(tensors, strict=False, assign=True)
    vectors = tuple(
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, FastSpectral)
        for kind in ("u", "v")
    )
    if unexpected or set(missing) - set(vectors):
        raise ValueError(f"it has no '{[*unexpected, *missing][0]}', or one too many")
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, FastSpectral):
            module.normalised = module.weight.data
