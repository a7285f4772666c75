"""Images of every kind, prepared as for training; what cannot be meant is refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mpcc.config import PRESETS
from mpcc.data.files import DataError
from mpcc.data.image_set import load
from mpcc.options import usable
from mpcc.use.images import files_of, prepare
from mpcc.use.levels import Levels

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (6, 12, 12), np.uint8)
COLOUR = rng.integers(0, 256, (5, 9, 14, 3), np.uint8)


class Pictures(Dataset):
    """A data set of PIL images with labels, as torchvision has them."""

    def __len__(self) -> int:
        return len(GREY)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(GREY[i]), 0


class Endless(IterableDataset):
    """A data set that has no length."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(GREY)


def saved(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{i:02}.png" for i in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    return files


def test_every_kind_of_grey_images_is_the_same_to_the_bit(tmp_path: Path) -> None:
    expected = prepare(GREY, 1, 8)
    assert expected.shape == (6, 1, 8, 8) and expected.dtype == torch.uint8
    files = saved(tmp_path / "flat", GREY)
    saved(tmp_path / "deep" / "a", GREY)
    saved(tmp_path / "colour", GREY[..., None].repeat(3, -1))
    tensor = torch.from_numpy(GREY)
    for images, value_range in (
        (GREY[:, None], None),
        (GREY[..., None], None),
        (tensor, None),
        (list(GREY), None),
        (list(tensor), None),
        ((GREY / 255).tolist(), None),
        ([Image.fromarray(image) for image in GREY], None),
        (GREY[:, ::-1].copy()[:, ::-1], None),
        ((tensor / 255).half(), None),
        (tensor / 255, None),
        ((GREY / 255).astype(np.float32), None),
        (GREY / 127.5 - 1, (-1, 1)),
        (GREY.astype(np.float64), (0, 255)),
        (GREY.astype(np.int64), (0, 255)),
        (Pictures(), None),
        (TensorDataset(tensor[:, None] / 255, torch.zeros(6)), None),
        (files, None),
        ([str(file) for file in files], None),
        (tmp_path / "flat", None),
        (str(tmp_path / "deep"), None),
        (tmp_path / "colour", None),
    ):
        assert torch.equal(prepare(images, 1, 8, value_range=value_range), expected), images


def test_colour_images_are_cut_to_their_middle_square_as_a_training_folder_is(
    tmp_path: Path,
) -> None:
    saved(tmp_path / "x", COLOUR)
    config = PRESETS["tiny"].override(dataset="folder")
    trained = load(config, tmp_path / "x").images
    for images in (COLOUR, COLOUR.transpose(0, 3, 1, 2), COLOUR / 255, tmp_path / "x"):
        assert torch.equal(prepare(images, 3, 8), trained)


def test_a_named_data_set_given_as_it_is_published_is_what_training_had() -> None:
    from sklearn.datasets import load_digits

    digits = load(PRESETS["tiny"])
    assert torch.equal(prepare(load_digits().images, 1, 8, value_range=(0, 16)), digits.images)
    assert torch.equal(
        prepare(load_digits().images, 1, 16, value_range=(0, 16)),
        load(PRESETS["tiny"].override(image_size=16)).images,
    )


def test_images_in_a_list_may_differ_in_size_and_black_ones_be_among_them() -> None:
    pixels = prepare([GREY[0], np.zeros((9, 9), np.uint8), GREY[1][:10]], 1, 8)
    assert torch.equal(pixels[0], prepare(GREY[:1], 1, 8)[0]) and not pixels[1].any()
    dark = prepare(GREY // 16, 1, 8, inverted=False)
    assert torch.equal(dark, prepare(GREY // 16, 1, 8, levels=Levels(9.0, 2.0)))


def test_masks_are_black_and_white() -> None:
    assert prepare(GREY > 127, 1, 16).unique().numel() > 2  # Resized.
    mask = torch.from_numpy(GREY > 127)
    assert torch.equal(prepare(mask.bfloat16(), 1, 8), prepare(mask, 1, 8))
    assert torch.equal(
        prepare(GREY > 127, 1, 8), prepare(255 * (GREY > 127).astype(np.uint8), 1, 8)
    )


NAN = np.where(np.arange(144).reshape(1, 12, 12) == 7, np.nan, 0.5)


@pytest.mark.parametrize(
    ("images", "n_channels", "more", "message"),
    [
        (GREY / 127.5 - 1, 1, {}, r"values -1 to 1, beyond 0 to 1: .*value_range=\(-1, 1\)"),
        (GREY.astype(float), 1, {}, r"values 0 to 255, beyond 0 to 1: .*value_range=\(0, 255\)"),
        (GREY / 20, 1, {}, r"beyond 0 to 1: say their range"),
        (GREY / 255, 1, {"value_range": (0.5, 1)}, "beyond 0.5 to 1"),
        (GREY / 255, 1, {"value_range": (1, 0)}, "value_range must be two rising numbers"),
        (GREY, 1, {"value_range": (0, 1)}, "uint8 images are 0 to 255"),
        (GREY.astype(np.int64), 1, {}, r"int64, 0 to 255: give uint8"),
        ((GREY > 127).astype(np.uint8), 1, {}, "nearly black: none has a value above 1 of 255"),
        (list(GREY // 16), 1, {}, r"nearly black: .* value_range=\(0, 15\)"),
        (GREY / 255 / 255, 1, {}, "nearly black"),
        (GREY, 1, {"inverted": "no"}, "inverted must be True, False or None, got 'no'"),
        (GREY / 2, 1, {"value_range": (0, np.inf)}, "must be two rising numbers"),
        (GREY / 2, 1, {"value_range": (128,)}, "must be two rising numbers"),
        (NAN, 1, {}, "NaN or infinite"),
        (np.full((1, 12, 12), np.inf), 1, {}, "NaN or infinite"),
        (GREY[:0], 1, {}, "no images"),
        (np.zeros(0), 1, {}, "takes grey images"),
        (GREY[0], 1, {}, r"one image is \[image\]"),
        (GREY.reshape(6, -1), 1, {}, "flat ones need reshape"),
        (GREY[0][:, :, None], 1, {}, "images of 12 x 1 pixels"),
        (COLOUR, 1, {}, r"takes grey images .*, got shape \(5, 9, 14, 3\)"),
        (GREY, 3, {}, r"takes colour images \(N, H, W, 3\) or \(N, 3, H, W\), got shape"),
        (GREY[:, None], 3, {}, "takes colour images"),
        (np.array(["a", "b"]), 1, {}, "must be numbers"),
        (np.zeros((2, 8, 8), complex), 1, {}, "must be numbers"),
        (TensorDataset(torch.zeros(0, 1, 8, 8)), 1, {}, "no images: the list or data set is empty"),
        (TensorDataset(torch.full((2, 1, 8, 8), -1.0)), 1, {}, "item 0: .*beyond"),
        (DataLoader(TensorDataset(torch.zeros(3, 1, 8, 8))), 1, {}, "a list or torch Dataset"),
        ((image for image in GREY), 1, {}, "a list or torch Dataset"),
        (Endless(), 1, {}, r"has no length; give list"),
        (torch.eye(8)[None].to_sparse(), 1, {}, "a Tensor gives no array"),
        ([GREY[0], "a.png"], 1, {}, "something else too"),
        ("no/such/folder", 1, {}, "does not exist"),
        (["no/such.png"], 1, {}, "no/such.png is not a sound image"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    images: Any, n_channels: int, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(images, n_channels, 8, **more)
    assert "\n" not in str(caught.value)


def test_files_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    Image.fromarray(COLOUR[0]).save(tmp_path / "colour.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "colour.png").read_bytes()[:60])
    for name, message in (
        ("empty", "no images"),
        ("colour.png", "is in colour and the model is of grey images"),
        ("torn.png", "not a sound image"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / name, 1, 8)
    with pytest.raises(ValueError, match="the path is empty"):  # Not the folder that one is in.
        prepare("", 1, 8)


def test_a_file_called_like_a_users_home_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (at_home,) = saved(tmp_path / "home", GREY[:1])
    Image.fromarray(GREY[1]).save("~x.png")
    expected = prepare(GREY[1:2], 1, 8)
    assert files_of(".") == [Path("home/00.png"), Path("~x.png")]
    for images in (files_of(".")[1:], ["~x.png"], "~x.png"):
        assert torch.equal(prepare(images, 1, 8), expected)
    assert files_of("~/00.png") == files_of(["~/00.png"]) == [at_home]
    with pytest.raises(ValueError, match="'~y.png' cannot be resolved"):
        files_of("~y.png")


def test_a_loop_of_links_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "x.png"):
        with pytest.raises(ValueError, match="a.* cannot be a path: Too many levels"):
            usable(path)
    assert usable(tmp_path / "c" / "x.png") == tmp_path / "c" / "x.png"


def test_files_are_converted_as_for_training_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(GREY[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    clear = np.dstack((np.repeat(GREY[0][..., None], 3, -1), np.full(GREY[0].shape, 0, np.uint8)))
    Image.fromarray(clear).save(tmp_path / "transparent.png")
    Image.fromarray(GREY[0]).save(tmp_path / "plain.png")
    deep, plain, transparent = prepare(tmp_path, 1, 8, ground="black")
    assert torch.equal(deep, plain) and not transparent.any()
    assert "1 of 16 bits, grey, divided by 257" in caplog.text
    assert "transparent" in caplog.text and prepare(tmp_path / "transparent.png", 1, 8).min() == 255


def test_inverted_ink_is_refused_or_put_right_and_other_images_are_not() -> None:
    digits = load(PRESETS["tiny"]).images
    levels = Levels.of(digits)
    assert levels.mean == pytest.approx(float(digits.double().mean()))
    for n in (1, 30):
        with pytest.raises(DataError, match="seem to be inverted: .* inverted=True"):
            prepare(255 - digits[:n], 1, 8, levels=levels)
        assert torch.equal(
            prepare(255 - digits[:n], 1, 8, levels=levels, inverted=True), digits[:n]
        )
    black = np.zeros((1, 8, 8), np.uint8)
    for image in (*digits.numpy(), black):
        prepare(image.reshape(1, 8, 8), 1, 8, levels=levels)
    assert torch.equal(prepare(255 - digits, 1, 8, levels=levels, inverted=False), 255 - digits)
    grey = Levels(120.0, 40.0)  # Like photographs: nothing can be told from their brightness.
    prepare(255 - COLOUR, 3, 8, levels=grey)
