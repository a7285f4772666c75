"""`python -m mpcc cluster|sample|reconstruct`, as a user runs them."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mpcc
from mpcc.__main__ import main
from mpcc.config import PRESETS
from mpcc.data.image_set import load
from mpcc.runs.clusters import read_clusters
from mpcc.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trial, a sweep of it alone, and thirty of its images."""
    base = tmp_path_factory.mktemp("cli")
    config = PRESETS["tiny"].override(iterations=40, width=2)
    list(train(config, base / "one", device="cpu"))
    (base / "sweep" / "trials").mkdir(parents=True)
    (base / "sweep" / "trials" / config.trial_key).symlink_to(base / "one")
    (base / "images").mkdir()
    for i, image in enumerate(load(PRESETS["tiny"]).images[:30, 0].numpy()):
        Image.fromarray(image).save(base / "images" / f"{i:02}.png")
    return base


def picture(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened)


def test_clusters_of_a_folder_are_those_of_the_trials_own_images(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clusters.csv"
    words = ["cluster", str(place / "one"), "--images", str(place / "images"), "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "30 images in" in said.err and not said.out
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == ["file", "cluster", "probability", "second_cluster"]
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(30)]
    trained = read_clusters(place / "one")
    assert trained is not None
    assert [row["cluster"] for row in rows] == [row["cluster"] for row in trained[:30]]
    shares = mpcc.load(place / "one").predict_proba(place / "images")
    order = (-shares).argsort(1)
    assert [int(row["second_cluster"]) for row in rows] == order[:, 1].tolist()
    before = out.read_bytes()
    words[1:2] = [str(place / "sweep"), "--cell", "best"]
    assert main(words) == 0 and out.read_bytes() == before


def test_samples_and_reconstructions_are_a_sheet_or_single_images(
    place: Path, tmp_path: Path
) -> None:
    run = str(place / "one")
    for sheet in ("a.png", "b.png"):
        words = ["sample", run, "--cluster", "3", "-n", "64", "--out", str(tmp_path / sheet)]
        assert main(words) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert min(picture(tmp_path / "a.png").shape[:2]) > 8 * 32
    assert main(["sample", run, "-n", "11", "--out", str(tmp_path / "drawn")]) == 0
    drawn = [picture(f) for f in sorted((tmp_path / "drawn").iterdir())]
    assert np.array_equal(np.stack(drawn), mpcc.load(run).sample(11)[:, 0])
    images = str(place / "images")
    for out in ("pairs.png", "each"):
        words = ["reconstruct", run, "--images", images, "--out", str(tmp_path / out)]
        assert main(words) == 0
    assert picture(tmp_path / "pairs.png").shape[1] > 2 * 3 * 32
    assert len(list((tmp_path / "each").iterdir())) == 30


def test_what_is_left_out_of_a_folder_is_said_and_damaged_files_on_demand(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, long = tmp_path / "folder", "x" * 251
    shutil.copytree(place / "images", folder)
    (folder / "00.png").rename(folder / f"{long}.png")
    for name in ("._00.png", "notes.txt", "empty.png"):
        (folder / name).write_bytes(b"")
    (folder / "half.png").write_bytes((folder / "01.png").read_bytes()[:60])
    for command, out in (("cluster", "c.csv"), ("reconstruct", "each")):
        words = [command, str(place / "one"), "--images", str(folder), "--out", str(tmp_path / out)]
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "2 of 32 files are not sound images: " in err and "half.png (" in err
        assert "or leave them out by --skip-damaged" in err
        caplog.clear()
        assert main([*words, "--skip-damaged"]) == 0
        told = capsys.readouterr().err + caplog.text
        for note in ("1 hidden file and", "1 file of other kinds: 1 .txt", "2 damaged files: "):
            assert told.count(f"left out {note}") == 1
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 30 and rows[-1]["file"] == f"{long}.png"
    assert len(list((tmp_path / "each").iterdir())) == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster", "nothing", "--images", "images", "--out", "x.csv"], "nothing does not exist"),
        (["cluster", "one", "--images", "nothing", "--out", "x.csv"], "nothing does not exist"),
        (["cluster", "one", "--images", "one/config.json", "--out", "x.csv"], "not a sound image"),
        (["cluster", "one", "--images", "images", "--out", "images"], "is a folder; name a file"),
        (["cluster", "one", "--images", "sweep", "--out", "x.csv", "--cell", "best"], "no cells"),
        (["cluster", "sweep", "--images", "images", "--out", "x.csv"], 'cell="best"'),
        (["cluster", "one", "--images", "images", "--out", "no/x.csv"], "there is no folder no"),
        (["cluster", "one", "--out", "x.csv"], "required: --images"),
        (["cluster", "one", "--imges", "images", "--out", "x.csv"], "required: --images"),
        (["sample", "one", "--cluster", "10", "--out", "x.png"], "cluster must be 0 to 9"),
        (["sample", "one", "-n", "0", "--out", "x.png"], "n must be at least 1"),
        (["sample", "one", "--out", "no/x.png"], "there is no folder no"),
        (["sample", "one", "-n", "2", "--out", "images"], "holds other files, such as 00.png"),
        (["sample", "one", "--out", "x.jpg"], "neither a sheet (NAME.png) nor a folder"),
        (
            ["sample", "one", "--device", "gpu", "--out", "x.png"],
            "device must be auto, cpu, cuda",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2_with_nothing_written(
    words: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    before = sorted(os.listdir(place))
    try:
        code = main(words)
    except SystemExit as stopped:  # argparse
        code = int(str(stopped.code))
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Model(")]
    assert code == 2 and len(err) == 1 and message in err[0], err
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("command", ["cluster", "sample", "reconstruct"])
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(
    command: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root, a file that is put in the place of /dev/full would take it from everyone."""
    os.mkfifo(pipe := tmp_path / "pipe.png")
    images = [] if command == "sample" else ["--images", str(place / "images")]
    assert main([command, str(place / "one"), *images, "--out", str(pipe)]) == 2
    assert "is a device or a pipe" in capsys.readouterr().err and pipe.is_fifo()
