"""From files to arrays: one reader per format, each with the format's own checks."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpcc.config import Config
from mpcc.data import files as data_files
from mpcc.data.own_images import read_folder
from mpcc.data.places import DataError
from mpcc.data.source import Pixels, Source, in_training, resize

N_COPIES = 20
"""Augmented copies of each Omniglot drawing (Hu et al. 2017): 100 x 20 x 20 = 40,000 images."""
AUGMENTATION_SEED = 2017

LABEL_NAMES = {
    "mnist": tuple("0123456789"),
    "fmnist": tuple(
        "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()
    ),
    "cifar10": tuple(
        "airplane automobile bird cat deer dog frog horse ship truck".split(),
    ),
    "cifar20": tuple(
        "aquatic mammals, fish, flowers, food containers, fruit and vegetables, "
        "household electrical devices, household furniture, insects, large carnivores, "
        "large man-made outdoor things, large natural outdoor scenes, "
        "large omnivores and herbivores, medium-sized mammals, non-insect invertebrates, people, "
        "reptiles, small mammals, trees, vehicles 1, vehicles 2".split(", ")
    ),
}


def read(config: Config, data_dir: Path | None) -> Source:
    """The data set and split that the configuration names; DataError says what is wrong."""
    return READERS[config.dataset](config, data_dir)


# -- digits --------------------------------------------------------------------------------------


def _read_digits(config: Config, data_dir: Path | None) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16  # 0..16, rounded to the nearest
    kept = in_training(len(pixels)) if config.split == "train" else slice(None)
    names = tuple(str(name) for name in digits.target_names)
    return Source(pixels[kept, None].astype(np.uint8), digits.target[kept].astype(np.int64), names)


# -- MNIST and Fashion-MNIST: idx files; CIFAR-10 and CIFAR-20: pickled batches ------------------


def _read_official(config: Config, data_dir: Path | None) -> Source:
    """A data set with an official split; its last part, the test images, is omitted for `train`."""
    dataset, names = config.dataset, LABEL_NAMES[config.dataset]
    paths = data_files.missing_or_found(dataset, data_dir)
    n_files, take = (1, _cifar_part) if dataset.startswith("cifar") else (2, _idx_part)
    parts = [paths[i : i + n_files] for i in range(0, len(paths), n_files)]
    images: list[Pixels] = []
    labels: list[NDArray[np.int64]] = []
    for part in parts[: -1 if config.split == "train" else None]:
        read = [(p, data_files.read_checked(p, data_files.checksum(dataset, p))) for p in part]
        x, y = take(dataset, *read)
        _check_labels(part[-1], y, len(x), len(names))
        if images and x.shape[1:] != images[0].shape[1:]:
            raise DataError(f"{part[0]} holds images of another size than {paths[0].name}")
        images.append(x)
        labels.append(y.astype(np.int64))
    note = data_files.modification(paths[0].parent)
    notes = () if note is None else (f"{dataset}: files differ from the official ones: {note}",)
    return Source(np.concatenate(images), np.concatenate(labels), names, notes)


File = tuple[Path, bytes]


def _idx_part(dataset: str, images: File, labels: File) -> tuple[Pixels, NDArray[Any]]:
    x, y = _idx(*images), _idx(*labels)
    if x.ndim != 3 or not x.size:
        raise DataError(f"{images[0]} holds no images; get it again")
    return x[:, None], y


def _idx(path: Path, data: bytes) -> Pixels:
    """The array of an idx file of unsigned bytes."""
    n_axes = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or n_axes not in (1, 3) or len(data) < 4 + 4 * n_axes:
        raise DataError(f"{path} is not an idx file of bytes; get it again")
    shape = struct.unpack(f">{n_axes}I", data[4 : 4 + 4 * n_axes])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * n_axes)
    if values.size != math.prod(shape):
        raise DataError(
            f"{path} holds {values.size:,} values where its head says "
            f"{' x '.join(map(str, shape))}; it is truncated: get it again"
        )
    return values.reshape(shape)


def _cifar_part(dataset: str, file: File) -> tuple[Pixels, NDArray[Any]]:
    path, batch = file[0], _unpickle(*file)
    key = "labels" if dataset == "cifar10" else "coarse_labels"
    x = batch.get("data")
    if key not in batch or not isinstance(x, np.ndarray):
        raise DataError(f"{path} has no data with {key}; it is another file: get it again")
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072 or not x.size:
        raise DataError(f"{path} holds no 32 x 32 colour images of bytes; get it again")
    try:
        return x.reshape(-1, 3, 32, 32), np.asarray(batch[key])
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} holds no row of labels ({error}); get it again") from None


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of arrays, lists and text, which refuses every other class or function."""

    _ALLOWED = {
        "numpy": ("ndarray", "dtype"),
        "numpy._core.multiarray": ("_reconstruct",),
        "numpy._core.numeric": ("_frombuffer",),
        "_codecs": ("encode",),
    }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if name not in self._ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path, data: bytes) -> dict[str, Any]:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # By pickle's documentation, damaged data may raise any error.
        raise DataError(f"{path} is not a batch of images ({error}); get it again") from None
    if not isinstance(batch, dict):
        raise DataError(f"{path} is not a batch of images; get it again")
    return batch


# -- Omniglot ------------------------------------------------------------------------------------


def _read_omniglot(config: Config, data_dir: Path | None) -> Source:
    """Twenty distorted copies of each drawing of 100 characters, ink bright on black like MNIST's.

    The paper follows Hu et al. 2017, who name the number of copies and a random affine distortion.
    Deviation: which hundred characters and which ranges is our choice, as that text leaves them
    open: the first hundred by name, and the ranges of `_distort`, drawn with a fixed seed.
    """
    place = data_files.find_omniglot(data_dir)
    images, labels, names = [], [], []
    for k, (name, drawings) in enumerate(_characters(place)):
        rng = np.random.default_rng([AUGMENTATION_SEED, k])
        copies = np.stack([_distort(drawing, rng) for drawing in drawings for _ in range(N_COPIES)])
        if config.split == "train":  # Distorted as for `all`: they are a subset of it.
            copies = copies[np.repeat(in_training(len(drawings)), N_COPIES)]
        images.append(resize(copies[:, None], config.image_size))
        labels.append(np.full(len(copies), k))
        names.append(name)
    note = f"omniglot: the first {len(names)} characters of {place.name}, {N_COPIES} copies each"
    return Source(np.concatenate(images), np.concatenate(labels), tuple(names), (note,))


def _characters(place: Path) -> Iterator[tuple[str, list[Image.Image]]]:
    """The first hundred characters by name, each with its drawings by name, ink bright."""
    archive = zipfile.ZipFile(place) if place.is_file() else None
    if archive is None:
        files = [str(p.relative_to(place)) for p in place.glob("*/*/*.png")]
    else:
        files = data_files.omniglot_names(place)
    by_character: dict[str, list[str]] = {}
    for file in sorted(files):
        by_character.setdefault("/".join(Path(file).parts[-3:-1]), []).append(file)
    for name in sorted(by_character)[: data_files.OMNIGLOT_CHARACTERS]:
        drawings: list[Image.Image] = []
        for file in by_character[name]:
            try:
                data = archive.read(file) if archive else (place / file).read_bytes()
                grey = Image.open(io.BytesIO(data)).convert("L")
            except Exception as error:  # Decoders raise many types of errors.
                raise DataError(f"{place}: {file} is damaged ({error}); get it again") from None
            if drawings and grey.size != drawings[0].size:
                raise DataError(f"{place}: {file} has another size than its fellows; get it again")
            drawings.append(grey.point(lambda level: 255 - level))
        yield name, drawings


def _distort(drawing: Image.Image, rng: np.random.Generator) -> Pixels:
    """The drawing under a random affine map about its centre.

    Each part is used with probability 1/2 and is uniform in its range, as Koch et al. 2015 do for
    this data: rotation +-10 degrees, shears +-0.3, scales 0.8..1.2, shifts +-2 of 105 pixels.
    """
    use = rng.random(7) < 0.5
    low = np.array([-math.radians(10), -0.3, -0.3, 0.8, 0.8, -2.0, -2.0])
    high = np.array([math.radians(10), 0.3, 0.3, 1.2, 1.2, 2.0, 2.0])
    nothing = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    angle, shear_x, shear_y, scale_x, scale_y, shift_x, shift_y = np.where(
        use, rng.uniform(low, high), nothing
    )
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[1, shear_x], [shear_y, 1]]) @ np.diag([scale_x, scale_y])
    back = np.linalg.inv(forward)  # Pillow needs the map from output to input
    width, height = drawing.size
    centre = np.array([width / 2, height / 2])
    offset = centre - back @ (centre + np.array([shift_x, shift_y]) * width / 105)
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    moved = drawing.transform(
        drawing.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _check_labels(path: Path, labels: NDArray[Any], n_images: int, n_labels: int) -> None:
    if labels.shape != (n_images,):
        raise DataError(
            f"{path} holds {labels.size:,} labels for {n_images:,} images; get both again"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= n_labels:
        raise DataError(f"{path} holds labels beyond 0..{n_labels - 1}; get it again")


READERS: dict[str, Callable[[Config, Path | None], Source]] = {
    "digits": _read_digits,
    "mnist": _read_official,
    "fmnist": _read_official,
    "omniglot": _read_omniglot,
    "cifar10": _read_official,
    "cifar20": _read_official,
    "folder": read_folder,
}
