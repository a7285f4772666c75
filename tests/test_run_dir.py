"""What is on disk is whole or not at all, and what is not ours is refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpcc import code_version as code_version_module
from mpcc import run_dir
from mpcc.code_version import code_version
from mpcc.config import PRESETS


def test_open_run_makes_it_once_and_accepts_it_again(tmp_path, tiny):
    for _ in range(2):
        assert run_dir.open_run(tmp_path / "a" / "b", tiny) == tmp_path / "a" / "b"
    assert run_dir.read_config(tmp_path / "a" / "b") == tiny


def test_other_settings_are_refused_by_the_field_that_differs(tmp_path, tiny):
    run_dir.open_run(tmp_path / "r", tiny.override(prior_lr=6e-4))
    with pytest.raises(run_dir.RunDirError, match="prior_lr=6e-4, now 2e-4"):
        run_dir.open_run(tmp_path / "r", tiny.override(prior_lr=2e-4))


def test_a_folder_of_other_files_is_left_alone(tmp_path, tiny):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(run_dir.RunDirError, match="holds other files"):
        run_dir.open_run(tmp_path, tiny)
    with pytest.raises(run_dir.RunDirError, match="is a file"):
        run_dir.open_run(tmp_path / "thesis.tex", tiny)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dataset": 3}', '{"nosuch": 1}', "\x00\xff"])
def test_a_broken_configuration_is_one_line(tmp_path, content):
    (tmp_path / run_dir.CONFIG).write_text(content)
    with pytest.raises(run_dir.RunDirError) as caught:
        run_dir.read_config(tmp_path)
    assert "\n" not in str(caught.value) and run_dir.CONFIG in str(caught.value)


def test_a_result_without_a_known_state_is_refused(tmp_path):
    assert run_dir.read_result(tmp_path) is None
    (tmp_path / run_dir.RESULT).write_text('{"state": "finished"}')
    with pytest.raises(run_dir.RunDirError, match="no state that is known"):
        run_dir.read_result(tmp_path)


def test_rows_are_read_by_iteration_and_the_last_of_two_counts(tmp_path):
    for i, value in ((4, 1.0), (2, 2.0), (4, 3.0)):
        run_dir.append_metrics(tmp_path, {"iteration": i, "mse": value})
    assert run_dir.read_metrics(tmp_path) == [
        {"iteration": 2, "mse": 2.0},
        {"iteration": 4, "mse": 3.0},
    ]
    run_dir.drop_metrics_after(tmp_path, 3)
    assert run_dir.read_metrics(tmp_path) == [{"iteration": 2, "mse": 2.0}]


def test_a_torn_last_line_is_left_out_and_a_torn_middle_refused(tmp_path):
    run_dir.append_metrics(tmp_path, {"iteration": 1})
    with (tmp_path / run_dir.METRICS).open("a") as file:
        file.write('{"iterat')
    assert run_dir.read_metrics(tmp_path) == [{"iteration": 1}]
    with (tmp_path / run_dir.METRICS).open("a") as file:
        file.write('\n{"iteration": 2}\n')
    with pytest.raises(run_dir.RunDirError, match="line 2"):
        run_dir.read_metrics(tmp_path)


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path):
    run_dir.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "nan", "b": ["inf"]}


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path, monkeypatch):
    run_dir.write_json(tmp_path / "x.json", {"a": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no room on the disk for"):
        run_dir.write_json(tmp_path / "x.json", {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_checkpoints_keep_the_one_before(tmp_path):
    for payload in (b"one", b"two", b"three"):
        run_dir.write_checkpoint(tmp_path, payload)
    assert run_dir.read_checkpoints(tmp_path) == ([b"three", b"two"], [])


@pytest.mark.parametrize("damage", ["empty", "short", "flip", "foreign"])
def test_damaged_checkpoints_are_named_and_the_intact_one_is_used(tmp_path, damage):
    run_dir.write_checkpoint(tmp_path, b"one" * 100)
    run_dir.write_checkpoint(tmp_path, b"two" * 100)
    file = tmp_path / run_dir.CHECKPOINT
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(
        {"empty": b"", "short": data[:-5], "flip": bytes(data), "foreign": b"PK\x03\x04"}[damage]
    )
    payloads, problems = run_dir.read_checkpoints(tmp_path)
    assert payloads == [b"one" * 100]
    assert len(problems) == 1 and str(file) in problems[0]


def test_a_checkpoint_of_another_program_is_refused_and_left_alone(tmp_path, tiny):
    run_dir.open_run(tmp_path / "r", tiny)
    file = tmp_path / "r" / run_dir.CHECKPOINT
    file.write_bytes(b"PK\x03\x04 somebody's weights")
    with pytest.raises(run_dir.RunDirError, match="not a checkpoint of this program"):
        run_dir.open_run(tmp_path / "r", tiny)
    assert file.read_bytes().startswith(b"PK")
    file.write_bytes(b"")  # cut short by a full disk: ours, and trained over
    run_dir.open_run(tmp_path / "r", tiny)


def test_code_version_is_a_commit_or_unknown():
    version = code_version()
    assert version == "unknown" or len(version.removesuffix("+changes")) == 12


def test_every_preset_survives_the_disk(tmp_path):
    for name, preset in PRESETS.items():
        run_dir.open_run(tmp_path / name, preset)
        assert run_dir.read_config(tmp_path / name) == preset


def test_code_without_its_repository_is_of_the_version_that_the_sender_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mpcc" / "code_version.py"
    copy.parent.mkdir()
    copy.write_text(Path(code_version_module.__file__).read_text())
    program = "import mpcc.code_version as m; print(m.code_version())"

    def said(**variables: str) -> str:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)} | variables
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert said() == "unknown"
    assert said(MPCC_CODE_VERSION="abc123") == "abc123"
    monkeypatch.setenv("MPCC_CODE_VERSION", "abc123")
    code_version.cache_clear()
    in_repository = (Path(code_version_module.__file__).parents[1] / ".git").exists()
    assert (code_version() == "abc123") != in_repository
    code_version.cache_clear()
