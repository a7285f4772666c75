"""Damage to a trial's records, at every stage: nothing is lost, and nothing trained twice."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.runs.files import with_hash
from mpcc.runs.repair import repair
from mpcc.training import trainer
from mpcc.training.trainer import train
from tests.test_trainer import evaluations

OLD_MAGIC = b"mpcc checkpoint 1\n"
CONFIG = PRESETS["tiny"].override(iterations=8, eval_every=2)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """They are most of the time, and none of the numbers."""
    with (
        patch.object(trainer, "write_pictures"),
        patch.object(trainer, "kmeans_baseline", return_value={}),
    ):
        yield


@pytest.fixture(scope="module")
def images(digits):
    return replace(digits, images=digits.images[:60], labels=digits.labels[:60])


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed trial, as a sweep leaves it."""
    path = tmp_path_factory.mktemp("whole") / "trial"
    for _ in train(CONFIG, path, image_set=images):
        pass
    return path


@pytest.fixture(scope="module")
def half(images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial stopped at iteration 4, with checkpoints of 2 and 4."""
    path = tmp_path_factory.mktemp("half") / "trial"
    run = train(CONFIG, path, image_set=images, checkpoint_iterations=2)
    while next(run).iteration < 4:
        pass
    run.close()
    found = [c.iteration for c in run_dir.read_checkpoints(path)[0]]
    assert found == [4, 2]
    return path


def ends_like(path: Path, whole: Path, images) -> dict[str, Any]:
    """Train to the end and hold all against the undisturbed trial; the provenance."""
    for _ in train(CONFIG, path, image_set=images):
        pass
    result, expected = (run_dir.read_trial(p) for p in (path, whole))
    assert result[0] and expected[0]
    for name in ("state", "iteration", "weights_sha256", "metrics"):
        assert result[0][name] == expected[0][name]
    assert evaluations(path) == evaluations(whole)
    return run_dir.read_provenance(path)


def flip(data: bytes, n: int = 3, seed: int = 0) -> bytes:
    spoilt, rng = bytearray(data), random.Random(seed)
    for at in rng.sample(range(len(data)), min(n, len(data))):
        spoilt[at] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "without its last line": lambda data: b"".join(data.splitlines(keepends=True)[:-1]),
    "cut in the last line": lambda data: data[:-5],
    "cut in half": lambda data: data[: len(data) // 2],
    "cut in the first line": lambda data: data[:5],
    "flipped": flip,
    "another number": lambda data: data.replace(b"0.", b"7.", 1),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_half_trained_trial_keeps_its_evaluations_and_goes_on(
    how: str, half: Path, whole: Path, images, tmp_path: Path
) -> None:
    """Mended by the driver, or by the trainer itself."""
    for name in ("driver", "trainer"):
        shutil.copytree(half, path := tmp_path / name)
        file = path / run_dir.METRICS
        file.write_bytes(DAMAGE[how](file.read_bytes()))
    assert repair(tmp_path / "driver", CONFIG) == [run_dir.METRICS]
    assert run_dir.read_metrics(tmp_path / "driver") == run_dir.read_metrics(half)
    assert repair(tmp_path / "driver", CONFIG) == []
    assert ends_like(path, whole, images)["starts"] == [0, 4]


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", [run_dir.METRICS, run_dir.RESULT])
def test_the_records_of_a_trial_that_has_ended_are_written_again_and_not_trained(
    how: str, name: str, whole: Path, images, tmp_path: Path
) -> None:
    path = tmp_path / "trial"
    shutil.copytree(whole, path)
    data = (path / name).read_bytes()
    (path / name).write_bytes(DAMAGE[how](data))
    assert (path / name).read_bytes() != data
    with pytest.raises(run_dir.RunDirError, match=name):
        run_dir.read_trial(path)
    assert repair(path, CONFIG) == [name]
    assert run_dir.read_trial(path) == run_dir.read_trial(whole)
    assert repair(path, CONFIG) == []
    assert ends_like(path, whole, images)["starts"] == [0]


def test_both_records_damaged_are_written_again_from_the_last_checkpoint(
    whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trial"
    shutil.copytree(whole, path)
    for name in (run_dir.METRICS, run_dir.RESULT):
        (path / name).write_bytes(b"\xff")
    assert repair(path, CONFIG) == [run_dir.RESULT, run_dir.METRICS]
    assert run_dir.read_trial(path) == run_dir.read_trial(whole)


def test_records_that_no_checkpoint_has_are_made_again(whole: Path, images, tmp_path: Path) -> None:
    path = tmp_path / "trial"
    shutil.copytree(whole, path)
    (path / run_dir.CHECKPOINT).unlink()
    (path / run_dir.PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
    (path / run_dir.METRICS).write_bytes(b"")
    assert repair(path, CONFIG) == [run_dir.METRICS]
    assert not (path / run_dir.RESULT).exists()
    ends_like(path, whole, images)


def damaged_header(data: bytes) -> bytes:
    return bytes([data[0] ^ 4]) + data[1:]


@pytest.mark.parametrize(
    ("spoil", "both"),
    [
        (damaged_header, False),
        (damaged_header, True),
        (lambda data: bytes(len(data)), False),
        (lambda data: b"PK", False),
        (lambda data: b"", False),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    spoil: Callable[[bytes], bytes], both: bool, half: Path, whole: Path, images, tmp_path: Path
) -> None:
    path = tmp_path / "trial"
    shutil.copytree(half, path)
    names = [run_dir.CHECKPOINT, run_dir.PREVIOUS_CHECKPOINT][: 1 + both]
    for name in names:
        (path / name).write_bytes(spoil((path / name).read_bytes()))
    damaged = repair(path, CONFIG)
    assert [name for name in damaged if name != run_dir.METRICS] == names
    assert all((path / f"{name}.damaged").exists() for name in names)
    start = ends_like(path, whole, images)["starts"][1]
    assert start == 0 if both else start == 2


def test_the_trainer_by_itself_falls_back_to_the_checkpoint_before(
    half: Path, whole: Path, images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trial"
    shutil.copytree(half, path)
    newest = path / run_dir.CHECKPOINT
    newest.write_bytes(newest.read_bytes()[:-7])
    assert ends_like(path, whole, images)["starts"] == [0, 2]
    assert "is damaged" in caplog.text and "going on at iteration 2" in caplog.text


@pytest.mark.parametrize("change", ['"seed": 1', '"prior_lr": 0.5'])
def test_an_altered_configuration_is_written_again_from_the_plan(
    change: str, half: Path, whole: Path, images, tmp_path: Path
) -> None:
    path = tmp_path / "trial"
    shutil.copytree(half, path)
    values = CONFIG.to_dict()
    name = change.split('"')[1]
    text = (path / run_dir.CONFIG).read_text()
    altered = "\n".join(
        f" {change}{',' * line.endswith(',')}" if f'"{name}":' in line else line
        for line in text.split("\n")
    )
    assert altered != text
    (path / run_dir.CONFIG).write_text(altered)
    assert run_dir.read_config(path) not in (None, CONFIG)
    assert repair(path, CONFIG) == [run_dir.CONFIG]
    assert run_dir.read_json(path / run_dir.CONFIG) == run_dir.read_json(half / run_dir.CONFIG)
    assert values == CONFIG.to_dict()
    assert ends_like(path, whole, images)["starts"] == [0, 4]


def test_what_was_made_of_other_images_goes_aside(whole: Path, images, tmp_path: Path) -> None:
    path = tmp_path / "trial"
    shutil.copytree(whole, path)
    assert repair(path, CONFIG, images.fingerprint) == []
    damaged = repair(path, CONFIG, "other")
    assert all("of other images" in name for name in damaged) and len(damaged) >= 4
    assert {p.name for p in path.glob("*.json*") if ".damaged" not in p.name} == {run_dir.CONFIG}
    assert not (path / run_dir.CHECKPOINT).exists()
    ends_like(path, whole, images)


def test_a_checkpoint_of_earlier_code_goes_on_with_all_of_its_evaluations_or_not_at_all(
    half: Path, whole: Path, images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, rows, start in (("all", None, 4), ("none", b"", 0)):
        path = tmp_path / name
        shutil.copytree(half, path)
        names = (run_dir.CHECKPOINT, run_dir.PREVIOUS_CHECKPOINT)
        found = run_dir.read_checkpoints(path)[0]
        payloads = {n: c.payload for n, c in zip(names, found, strict=True)}
        for file in names:
            payload = payloads[file]
            (path / file).write_bytes(with_hash(OLD_MAGIC, payload))
        if rows is not None:
            (path / run_dir.METRICS).write_bytes(rows)
        repair(path, CONFIG)
        assert ends_like(path, whole, images)["starts"][1] == start
    assert "has lost its evaluations" in caplog.text


def test_a_checkpoint_that_would_run_code_costs_only_itself_whatever_lies_beside(
    half: Path, whole: Path, images, tmp_path: Path
) -> None:
    path, canary = tmp_path / "trial", tmp_path / "canary"
    shutil.copytree(half, path)
    payload = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    (path / run_dir.CHECKPOINT).write_bytes(with_hash(OLD_MAGIC, payload))
    (path / run_dir.METRICS).write_bytes(payload)
    assert repair(path, CONFIG) == [run_dir.METRICS]
    assert ends_like(path, whole, images)["starts"][1] == 2
    assert not canary.exists()
