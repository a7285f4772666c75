"""What is looked at before the first trial."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mpcc.config import PRESETS
from tune import ledger, preflight, tracking
from tune.grid import cells, parse_grid
from tune.ledger import Trial


def trials(preset: str = "tiny") -> list[Trial]:
    made = cells(PRESETS[preset], parse_grid(["esteps=1,2"], preset))
    return [trial for cell in made for trial in ledger.trials(cell, (0, 1))]


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    preflight.check(trials(), tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_too_small_a_disk_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(preflight.PreflightError, match="1 MB are free; make room"):
        preflight.check(trials(), tmp_path)


def test_too_little_memory_is_refused_with_the_number_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = preflight.memory_need(PRESETS["tiny"])
    monkeypatch.setattr(preflight, "free_memory", lambda: int(2.5 * need))
    preflight.check_memory(trials(), 2)
    with pytest.raises(preflight.PreflightError, match="--max-concurrent 2$"):
        preflight.check_memory(trials(), 4)
    monkeypatch.setattr(preflight, "free_memory", lambda: need // 2)
    with pytest.raises(preflight.PreflightError, match="free some"):
        preflight.check_memory(trials(), 1)


def test_the_free_memory_is_some_of_this_machines() -> None:
    free = preflight.free_memory()
    assert free is None or 2**20 < free < 2**50


def test_a_data_base_that_is_locked_or_broken_is_refused_at_first_and_waited_for_later(
    tmp_path: Path,
) -> None:
    uri = tracking.default_uri(tmp_path)
    assert preflight.check_tracking(uri, tmp_path, "tiny", begun=False) is None
    file = tmp_path / tracking.DATABASE
    assert not file.exists()
    with closing(sqlite3.connect(file)) as holder:
        holder.execute("create table t (x)")
        holder.execute("begin exclusive")
        with pytest.raises(preflight.PreflightError, match="locked.*leave that out"):
            preflight.check_tracking(uri, tmp_path, "tiny", begun=False)
        assert "locked" in str(preflight.check_tracking(uri, tmp_path, "tiny", begun=True))
    file.write_bytes(b"no data base" * 100)
    with pytest.raises(preflight.PreflightError, match="not a database"):
        preflight.check_tracking(uri, tmp_path, "tiny", begun=False)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_refused_at_first_and_waited_for_later(
    tmp_path: Path,
) -> None:
    uri = "http://127.0.0.1:9"
    with pytest.raises(preflight.PreflightError, match=f"MLflow at {uri} cannot be written to"):
        preflight.check_tracking(uri, tmp_path, "tiny", begun=False)
    assert preflight.check_tracking(uri, tmp_path, "tiny", begun=True)


def test_the_write_probe_leaves_nothing_and_names_what_hinders(tmp_path: Path) -> None:
    assert preflight.write_probe(str(tmp_path / "new")) is None
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert preflight.write_probe(str(tmp_path / "file" / "under"))
