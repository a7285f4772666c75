"""Folders of images of one's own, as phones, scanners, drawing programs and other systems leave
them: nothing is left out, clipped, recoloured, turned or made a label without a word."""

import csv
import io
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from benchmarks.fault_places import write_images
from mpcc import __main__ as command
from mpcc.config import Config, from_dict
from mpcc.data import image_set as data
from mpcc.data import pictures, prepared
from mpcc.data.own_images import image_files
from mpcc.data.places import DataError
from mpcc.runs.clusters import csv_text, read_clusters
from mpcc.training.checks import check_data

RED, BLUE = (200, 30, 10), (10, 30, 200)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)


@pytest.fixture
def root(tmp_path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def config(**changes) -> Config:
    return from_dict({"dataset": "folder", "image_size": 8} | changes)


def flat(colour=RED, size=(8, 8), mode="RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def save(image: Image.Image, path: Path, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **more)
    return path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def load(root: Path, **changes) -> data.ImageSet:
    return data.load(config(**changes), root)


def said(root: Path, **changes) -> str:
    """What is printed before training, which is what the result's notes keep."""
    text = prepared.description(config(**changes), root)
    assert "\n" not in text and text == "data: " + "; ".join(load(root, **changes).notes)
    return text


def refused(root: Path, **changes) -> str:
    with pytest.raises(DataError) as error:
        load(root, **changes)
    text = str(error.value)
    assert "\n" not in text
    return text


# -- values and colours --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"), [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tiff", ">u2"), ("a.pgm", "<u2")]
)
def test_sixteen_bits_are_scaled_by_their_range(root, name, order):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040 + 15
    deep = Image.frombytes("I;16B" if order[0] == ">" else "I;16", (8, 8), values.astype(order))
    if name.endswith("pgm"):
        write(root / name, b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        save(deep, root / name)
    assert (load(root).images[0, 1].numpy() == np.rint(values / 257)).all()
    assert "1 of 16 bits, grey, divided by 257" in said(root)
    assert "largest value of these with 16 bits: 65,535" in said(root)


def test_sixteen_bits_a_channel_are_said(root):
    pixels = np.full((8, 8, 3), 0x8040, ">u2")
    row = b"".join(b"\0" + line.tobytes() for line in pixels)
    write(root / "a.png", _png(8, 8, depth=16, colour=2, rows=row))
    assert load(root).images.unique().tolist() == [0x80]
    assert "1 of 16 bits a channel, read as 8 (RGB)" in said(root)


def _png(
    width: int, height: int, *, depth: int, colour: int, rows: bytes, clear: bytes = b""
) -> bytes:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", clear) if clear else b""
    content = (
        chunk(b"IHDR", head)
        + transparent
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + content


def test_values_without_a_range_are_refused(root):
    save(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), root / "f.tif")
    assert "f.tif is not a sound image (floating point values have no range" in refused(root)
    save(Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)), root / "f.tif")
    assert "32-bit or signed values have no range" in refused(root)
    save(flat(200, mode="L"), root / "f.tif", tiffinfo={pictures.Tag.SampleFormat: pictures.SIGNED})
    assert "f.tif is not a sound image (signed values have no range" in refused(root)


def test_channels_that_are_neither_colour_nor_alpha_are_said(root):
    save(flat((*RED, 0), mode="RGBX"), root / "a.tif")
    assert load(root).images[0, :, 0, 0].tolist() == list(RED)
    assert "1 with channels beside the colours, which are left out" in said(root)


@pytest.mark.parametrize(("depth", "colour"), [(2, 0), (4, 0), (16, 0), (16, 2)])
def test_a_transparent_level_that_pillow_would_not_find_is_refused(root, depth, colour):
    """Pillow brings the pixels to 8 bits and compares them with the level as it was."""
    row = b"\0" + bytes(8 * depth // 8 * (3 if colour else 1))
    clear = b"\0\1" * (3 if colour else 1)
    write(root / "a.png", _png(8, 8, depth=depth, colour=colour, rows=row * 8, clear=clear))
    assert "a.png is not a sound image (transparent grey level is not 8-bit" in refused(root)


@pytest.mark.parametrize(("ground", "level"), [("white", 255), ("grey", 128), ("black", 0)])
def test_what_is_transparent_shows_the_ground_and_not_the_colour_below(root, ground, level):
    hidden = flat((*RED, 0), mode="RGBA")
    save(hidden, root / "a.png")
    half = flat((*RED, 51), mode="RGBA")  # a fifth
    save(half, root / "b.png")
    save(flat((90, 0), mode="LA"), root / "c.png")
    palette = flat(RED).quantize(4)
    save(palette, root / "d.gif", transparency=palette.getpixel((0, 0)))
    save(flat(), root / "e.png", transparency=RED)
    images = load(root, image_ground=ground).images
    assert images[[0, 2, 3, 4]].unique().tolist() == [level]
    expected = [round(c / 5 + level * 4 / 5) for c in RED]
    assert images[1, :, 3, 3].tolist() == expected
    assert f"5 transparent, put on {ground}" in said(root, image_ground=ground)


def test_an_alpha_channel_that_hides_nothing_changes_nothing(root, tmp_path):
    save(flat((*RED, 255), mode="RGBA"), root / "a.png")
    save(flat(), tmp_path / "other" / "a.png")
    assert load(root).fingerprint == load(tmp_path / "other").fingerprint
    assert "transparent" not in said(root)


def test_other_colour_spaces_and_profiles_are_said(root):
    save(flat((0, 255, 255, 0), mode="CMYK"), root / "a.jpg")
    save(flat(), root / "b.png", icc_profile=_profile("sRGB"))
    save(flat(), root / "c.png", icc_profile=b"no profile at all")
    save(flat((128, 0, 0), mode="LAB"), root / "d.tif")
    text = said(root)
    assert "1 converted from CMYK to RGB without a colour profile" in text
    assert "1 with the colour profile unreadable, which is not applied" in text
    assert "1 converted from LAB to RGB" in text and text.count("colour profile") == 3
    red = load(root).images[0, :, 4, 4].tolist()
    assert red[0] > 240 and max(red[1:]) < 20


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_they_say(root, name, orientation):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = RED, BLUE, (255, 255, 255)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = Image.fromarray(upright)
    stored = stored.transpose(back[orientation]) if orientation in back else stored
    exif = Image.Exif()
    exif[pictures.Tag.Orientation] = orientation
    lossless = {"lossless": True} if name.endswith("webp") else {}
    save(stored, root / name, exif=exif, **lossless, **({"quality": 95} if "jpg" in name else {}))
    shown = load(root, image_size=16).images[0].numpy().transpose(1, 2, 0).astype(int)
    assert np.abs(shown[2:6, 2:6] - RED).max() < 30 and np.abs(shown[2:6, 10:14] - BLUE).max() < 30
    assert ("1 turned upright" in said(root, image_size=16)) == (orientation != 1)


def test_the_first_of_several_frames_is_taken_and_said(root):
    frames = [flat(), flat(BLUE)]
    save(frames[0], root / "a.gif", save_all=True, append_images=frames[1:])
    save(frames[0], root / "b.tiff", save_all=True, append_images=frames[1:])
    save(frames[0], root / "c.webp", save_all=True, append_images=frames[1:], lossless=True)
    save(frames[0], root / "d.png", save_all=True, append_images=frames[1:])
    save(frames[0], root / "e.mpo", save_all=True, append_images=frames[1:], quality=95)
    images = load(root).images
    assert (images[:, 0].float().mean((1, 2)) > 150).all()
    assert "5 of several frames, of which the first is taken" in said(root)


def test_images_that_are_not_square_are_counted(root):
    save(flat(size=(20, 10)), root / "a.png")
    save(flat(size=(9, 9)), root / "b.png")
    assert "9–20 pixels wide, 9–10 high" in said(root) and "1 cropped to the middle" in said(root)


# -- which files ---------------------------------------------------------------------------------

SUFFIXES = "bmp dib gif ico jp2 jpeg jpg pbm pcx pgm png ppm sgi tga tif tiff webp".split()


def test_every_format_counts_in_upper_and_lower_case(root):
    for suffix in SUFFIXES:
        mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
        for name in (f"a.{suffix}", f"B.{suffix.upper()}"):
            save(flat(size=(16, 16)).convert(mode), root / suffix / name)
    loaded = load(root)
    assert loaded.label_names == tuple(SUFFIXES) and len(loaded) == 2 * len(SUFFIXES)


def test_hidden_files_and_folders_are_no_images(root):
    for name in ("cats/a.png", "dogs/b.png"):
        save(flat(), root / name)
    for name in (
        "cats/._a.png",
        "__MACOSX/cats/._a.png",
        ".ipynb_checkpoints/a.png",
        "@eaDir/a.png",
        ".DS_Store",
        "dogs/Thumbs.db",
    ):
        write(root / name, b"\0\5\x16\7 no picture")
    loaded = load(root)
    assert len(loaded) == 2 and loaded.label_names == ("cats", "dogs")
    assert "left out 6 hidden files and folders" in said(root)


def test_files_of_other_kinds_are_counted_by_suffix(root):
    save(flat(), root / "a.png")
    for name in ("labels.csv", "notes.TXT", "more.txt", "README"):
        write(root / name, b"text")
    os.mkfifo(root / "pipe.png")
    assert "left out 5 files of other kinds: 1 .csv, 1 .png, 2 .txt, 1 no suffix" in said(root)


def test_a_new_file_of_another_kind_is_said_though_the_images_are_prepared(root):
    save(flat(), root / "a.png")
    assert "left out" not in said(root)
    write(root / "b.txt", b"")
    assert "left out 1 file of other kinds: 1 .txt" in said(root)


def test_photographs_that_pillow_shows_as_thumbnails_are_refused(root):
    save(flat(), root / "a.png")
    save(flat(), root / "raw.tif").rename(root / "raw.NEF")
    write(root / "phone.heic", b"\0\0\0\x18ftypheic")
    text = refused(root)
    assert "raw.NEF (.NEF is not read; save it as PNG or JPEG)" in text and "phone.heic" in text


def _damaged(root: Path) -> None:
    save(Image.effect_noise((64, 64), 90), root / "whole.jpg")
    whole = (root / "whole.jpg").read_bytes()
    write(root / "half.jpg", whole[: len(whole) // 2])
    png = bytearray(save(Image.effect_noise((64, 64), 90), root / "byte.png").read_bytes())
    png[len(png) // 2] ^= 0xFF
    write(root / "byte.png", png)
    write(root / "empty.png", b"")
    write(root / "page.jpg", b"<!doctype html><title>404</title>")
    (root / "lost.png").symlink_to(root / "nowhere.png")
    (root / "round.png").symlink_to(root / "round.png")


def test_all_damaged_files_are_named_at_once(root):
    _damaged(root)
    text = refused(root)
    assert text.startswith(f"6 of 7 files in {root} are not sound images: byte.png (broken ")
    assert "empty.png (0 bytes), " in text
    assert "half.jpg (image file is truncated" in text and "page.jpg (no image in it that" in text
    assert "lost.png (No such file" in text and "round.png (Too many levels" in text
    assert text.endswith("leave them out by --set skip_damaged=true")


def test_a_png_that_decodes_and_has_another_checksum_is_damaged(root):
    whole = bytearray(save(flat(), root / "a.png").read_bytes())
    whole[-13] ^= 1  # the last byte before IEND's chunk: of the checksum of the pixels
    write(root / "a.png", whole)
    assert "a.png is not a sound image (broken PNG file" in refused(root)


def test_ten_of_many_damaged_files_are_named(root):
    for i in range(25):
        write(root / f"{i:02}.png", b"")
    text = refused(root)
    assert "25 of 25 files" in text and "09.png (0 bytes) and 15 more;" in text


def test_damaged_files_are_left_out_on_demand_and_counted(root):
    _damaged(root)
    loaded = load(root, skip_damaged=True)
    assert len(loaded) == 1
    assert "left out 6 damaged files: byte.png (broken PNG file" in said(root, skip_damaged=True)
    (root / "whole.jpg").unlink()
    assert "6 of 6 files" in refused(root, skip_damaged=True)


def test_a_name_that_is_no_text_can_be_printed(root):
    for label in (b"caf\xe8", b"caf\xe9", b"ice\ntea", "thé".encode()):
        save(flat(), Path(os.fsdecode(os.fsencode(root) + b"/" + label)) / "a.png")
    assert "written alike" not in said(root).encode().decode()
    assert load(root).label_names == ("caf\\xe8", "caf\\xe9", "ice\\ntea", "thé")
    with pytest.raises(DataError, match=r"a\.png is a file; correct --data-dir"):
        load(root / "thé" / "a.png")
    assert json.loads(json.dumps(load(root).notes))
    save(flat(), root / "caf\\xe8" / "a.png")
    assert "folders whose names are written alike count to one label" in said(root)


def test_odd_names_in_a_csv_are_read_by_pandas(root):
    names = [
        b"a,b.png",
        b'a"b.png',
        b"caf\xe9.png",
        b"cr\rhere.png",
        b"new\nline.png",
        b"\xc3\xa9.png",
    ]
    for name in names:
        save(flat(), Path(os.fsdecode(os.fsencode(root) + b"/" + name)))
    text = csv_text({"file": image_files(config(), root, len(names))})
    read = pd.read_csv(io.BytesIO(text.encode()))["file"]
    shown = ["a,b.png", 'a"b.png', "caf\\xe9.png", "cr\\rhere.png", "new\nline.png", "é.png"]
    assert sorted(read) == sorted(shown)


# -- labels --------------------------------------------------------------------------------------


def test_folders_and_files_that_are_links_are_followed(root, tmp_path):
    save(flat(), tmp_path / "elsewhere" / "a.png")
    save(flat(BLUE), root / "dogs" / "b.png")
    (root / "cats").symlink_to(tmp_path / "elsewhere")
    (root / "dogs" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (root / "dogs" / "up").symlink_to(root)
    loaded = load(root)
    assert loaded.label_names == ("cats", "dogs") and loaded.labels.tolist() == [0, 1, 1]
    assert "left out links that lead back to a folder above: dogs/up" in said(root)


def _splits(root: Path, tops=("train", "test")) -> None:
    for top in tops:
        for label in ("cats", "dogs"):
            for i in range(3):
                save(flat(), root / top / label / f"{i}.png")


def test_a_split_above_the_labels_is_no_label(root):
    _splits(root, ("Train", "val", "test"))
    loaded = load(root)
    assert loaded.label_names == ("cats", "dogs") and len(loaded) == 18
    assert "Train, test, val taken for splits, labels lie below" in said(root)
    assert len(load(root, split="train")) == 6
    assert "6 images, 2 labels (cats 3, dogs 3)" in said(root, split="train")


def test_splits_without_labels_have_none(root):
    for top in ("train", "test"):
        save(flat(), root / top / "a.png")
    assert load(root).labels is None and "no labels below" in said(root)


def test_splits_of_which_only_one_has_labels_are_refused(root):
    _splits(root, ("train",))
    save(flat(), root / "test" / "x.png")
    assert "beside and inside subfolders (test/x.png, train/cats/0.png)" in refused(root)


def test_a_label_may_be_called_as_a_split(root):
    for label in ("bus", "car", "train"):
        save(flat(), root / label / "a.png")
    assert load(root).label_names == ("bus", "car", "train")


def test_splits_beside_other_folders_are_refused(root):
    _splits(root)
    save(flat(), root / "extra" / "x.png")
    assert "folders of splits (test, train) beside others (extra)" in refused(root)


def test_a_folder_around_the_labels_is_refused_by_name(root):
    for label in ("cats", "dogs"):
        save(flat(), root / "pictures" / label / "a.png")
    assert refused(root).endswith(f"give {root / 'pictures'} as --data-dir")


def test_one_image_none_and_deeper_ones_are_counted(root):
    for name in ("cats/a.png", "dogs/b.png", "dogs/deep/er/c.png"):
        save(flat(), root / name)
    for name in ("birds", "fish"):
        (root / name).mkdir()
    text = said(root)
    assert load(root).label_names == ("cats", "dogs")
    assert "3 images, 2 labels (cats 1, dogs 2)" in text
    assert "1 image in deeper folders counted to the label above" in text
    assert "no label for folders without images: birds, fish" in text


def test_a_label_that_a_split_or_damage_empties_is_said(root):
    for i in range(4):
        save(flat(), root / "cats" / f"{i}.png")
    save(flat(), root / "dogs" / "a.png")  # the fifth
    assert "no image of dogs is left" in said(root, split="train")


def test_one_label_and_labels_alike_are_said(root):
    save(flat(), root / "cats" / "a.png")
    assert "one label alone, so that accuracies say nothing" in said(root)
    save(flat(), root / "Cats" / "a.png")
    for accent in ("caf\u00e9", "cafe\u0301"):
        save(flat(), root / accent / "a.png")
    alike = "labels that differ in case, spaces or the code of accents alone: Cats/cats, cafe"
    assert alike in said(root)


def test_conditional_training_needs_labels_and_a_cluster_for_each(root):
    for label in ("a", "b", "c"):
        save(flat(), root / label / "x.png")
    with pytest.raises(DataError, match="have 3 labels: set n_clusters=3, not 2"):
        check_data(config(conditional=True, n_clusters=2), root)
    save(flat(), root / "a" / "y.png")
    with pytest.raises(DataError, match="needs labels"):
        check_data(config(conditional=True, n_clusters=2), root / "a")


# -- what was read rightly is read alike ---------------------------------------------------------


def test_images_without_any_of_this_keep_their_fingerprint(root):
    rng = np.random.default_rng(5)
    for i in range(40):
        height, width = [(20, 20), (31, 17), (64, 90), (8, 8)][i % 4]
        image = Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))
        image = [image, image.convert("L"), image.quantize(16), image, image.convert("1")][i % 5]
        save(image, root / "abc"[i % 3] / f"{i}{'.PNG' if i % 5 == 4 else '.png'}")
    assert load(root, image_size=8).fingerprint == "3d4b4be10594"
    assert load(root, image_size=32, split="train").fingerprint == "8a7ac2db4f2a"


def test_a_large_image_is_resized_like_a_small_part_of_it():
    rng = np.random.default_rng(0)
    scan = rng.integers(256, size=(1, 3, 1100, 1100), dtype=np.uint8)
    from mpcc.data.source import _interpolation, resize

    weights = _interpolation(1100, 8)
    expected = np.floor((weights @ (scan.astype(float) @ weights.T)) / 2**28 + 0.5)
    assert (resize(scan, 8) == expected).all()


# -- before training -----------------------------------------------------------------------------


def test_the_command_says_what_it_found_and_dry_run_too(root, capsys, tmp_path):
    save(flat(), root / "cats" / "a.png")
    save(flat(BLUE), root / "dogs" / "b.png")
    small = ["--preset", "tiny", "--set", "dataset=folder", "n_clusters=2"]
    ask = [*small, "--data-dir", str(root), "--out", str(tmp_path / "out")]
    assert command.main([*ask, "--dry-run"]) == 0
    line = "data: 2 images, 2 labels (cats 1, dogs 1), 8 pixels wide, 8 high, modes RGB 2\n"
    assert capsys.readouterr().err == line and not (tmp_path / "out").exists()
    assert command.main(ask) == 0
    assert capsys.readouterr().err.count(line) == 1
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert "data: " + "; ".join(provenance["data"]["notes"]) + "\n" == line


def test_damage_is_refused_before_anything_is_written(root, capsys, tmp_path):
    _damaged(root)
    ask = ["--preset", "tiny", "--set", "dataset=folder", "--data-dir", str(root)]
    for more in ([], ["--dry-run"]):
        assert command.main([*ask, "--out", str(tmp_path / "out"), *more]) == 2
        out, err = capsys.readouterr()
        assert "6 of 7 files" in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "out").exists()


def test_a_sweep_refuses_damage_before_ray_starts_and_says_what_it_found(
    root, capsys, tmp_path, nothing_is_measured
):
    from tune import ablation

    _damaged(root)
    for i in range(12):
        flat().save(root / f"sound{i}.png")
    ask = ["--preset", "tiny", "--set", "dataset=folder", "--grid", "esteps=1"]
    ask += ["--data-dir", str(root), "--out", str(tmp_path / "sweep")]
    assert ablation.main(ask) == 2
    assert "6 of 19 files" in capsys.readouterr().err and not (tmp_path / "sweep").exists()
    assert ablation.main([*ask, "--set", "skip_damaged=true", "--dry-run"]) == 0
    assert "left out 6 damaged files" in capsys.readouterr().err


def test_many_images_are_read_fast_and_with_progress(root, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "PROGRESS_SECONDS", 0.0)
    buffer = io.BytesIO()
    flat(size=(28, 28), mode="L", colour=9).save(buffer, "PNG")
    for i in range(3000):
        (root / f"{i}.png").write_bytes(buffer.getvalue())
    begun = time.perf_counter()
    assert len(load(root)) == 3000
    assert 3000 / (time.perf_counter() - begun) > 500  # 2,000 on two cores that are idle
    assert "of 3,000 images, " in capsys.readouterr().err


def test_three_hundred_images_of_every_kind_are_trained_and_clustered_by_a_command_each(
    root, tmp_path, capsys
):
    write_images(root)
    run, table = tmp_path / "run", tmp_path / "clusters.csv"
    ask = ["--preset", "tiny", "--set", "dataset=folder", "n_clusters=4", "--data-dir", str(root)]
    assert command.main([*ask, "--out", str(run)]) == 0
    told = capsys.readouterr().err
    for part in ("300 images", "birds 75", "52 turned upright", "left out 4 hidden files"):
        assert part in told
    assert command.main(["cluster", str(run), "--images", str(root), "--out", str(table)]) == 0
    with table.open(newline="") as file:
        found = {row["file"]: row["cluster"] for row in csv.DictReader(file)}
    trained = {row["file"]: row["cluster"] for row in read_clusters(run)}
    assert found == trained and len(found) == 300
