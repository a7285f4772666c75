"""Folders that older code wrote are read, shown, tabulated and gone on with (tests/old/folders.py).

By the command line and the files alone, whatever the code in between is called.
"""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mpcc.evaluation.metrics import METRICS, column
from tests.old.folders import HERE, NEUTRAL, STORE, SWEEP, command, processor, tables_text, unpack
from tests.test_promises import answered, said

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = json.loads((HERE / "expected.json").read_text())
FOLDERS: dict[str, dict[str, Any]] = EXPECTED["folders"]
FINISHED = [name for name, folder in FOLDERS.items() if folder["status"]["code"] == 0]
UNFINISHED = [name for name in FOLDERS if name not in FINISHED]
ENDED = ("done", "pruned")
RENAMED = {name for old, m in METRICS.items() if m.replaced_by for name in (old, m.replaced_by)}
OF_OLD = {name for trial in FOLDERS["finished"]["trials"].values() for name in trial["metrics"]}
STILL_MEASURED = OF_OLD & set(METRICS) - RENAMED
"""Metrics that the old code had and the new one has, in the same sense."""


@pytest.fixture(scope="module", autouse=True)
def neutral_place_is_not_made() -> Iterator[None]:
    """Nothing is written where the folders once lay."""
    existed = Path(NEUTRAL).exists()
    yield
    assert existed or not Path(NEUTRAL).exists()


def tune(words: list[str], place: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """What the command answers, in this process: it must start no Ray."""
    _, program, *rest = command(words, ROOT, place)
    return answered(Path(program).stem, *rest, *more, cwd=place)


def trained(words: list[str], place: Path) -> "subprocess.CompletedProcess[str]":
    """The same in a process of its own, with Ray."""
    argv = [*command(words, ROOT, place), "--accept-changed-code"]
    return subprocess.run(argv, cwd=place, capture_output=True, text=True, timeout=600)


def tables(place: Path, *source: str) -> str:
    made = said("make_tables", *source, "--out", place / "tables", cwd=place, COLUMNS=None)
    return tables_text(made).replace(str(place), NEUTRAL)


def results(out: Path) -> dict[str, tuple[int, bytes]]:
    """Trial key -> when its result was written, and what it says."""
    return {
        file.parent.name: (file.stat().st_mtime_ns, file.read_bytes())
        for file in out.glob("trials/*/result.json")
    }


def ends(trials: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What of the trials must come out alike: their ends, their weights to the bit, and the metrics
    that still have their meaning, to nine digits."""
    found = {}
    for key, trial in trials.items():
        found[key] = {name: trial.get(name) for name in ("state", "iteration", "weights_sha256")}
        for name, value in trial["metrics"].items():
            if name in STILL_MEASURED and not isinstance(value, str):  # As nan is written.
                found[key][f"metrics {name}"] = round(float(f"{value:.9g}"), 9)
    return found


def ends_of(out: Path) -> dict[str, Any]:
    return ends({key: json.loads(data) for key, (_, data) in results(out).items()})


def points(out: Path) -> list[str] | None:
    search = json.loads((out / "sweep.json").read_text()).get("search")
    return list(search["points"]) if search else None


def runs_of(out: Path) -> list[str | None]:
    """The trial key of every run in mlflow.db; None for that of the whole sweep."""
    with closing(sqlite3.connect(out / "mlflow.db")) as database:
        rows = database.execute(
            "select t.value from runs r left join tags t on t.run_uuid = r.run_uuid and "
            "t.key = 'trial_key' where r.lifecycle_stage = 'active'"
        ).fetchall()
    return [key for (key,) in rows]


def skip_where_numbers_differ() -> None:
    """Another kind of processor, or another torch, rounds otherwise: nothing to compare."""
    import torch

    maker, capability = processor(), torch.backends.cpu.get_cpu_capability()
    here = {"processor": maker, "cpu_capability": capability, "torch": torch.__version__}
    there = {name: EXPECTED[name] for name in here}
    if here != there:
        pytest.skip(f"trained with {there}, here {here}")


def check_status(folder: dict[str, Any], said: str) -> None:
    """Every trial's state is named: a line for each of a grid, one for each point of a search."""
    lines = said.splitlines()
    if "points" not in folder:
        for key, trial in folder["trials"].items():
            line = next(line for line in lines if key in line)
            assert trial["state"] in line and f"{trial['iteration']} of" in line
        return
    cells: dict[str, list[dict[str, Any]]] = {}
    for trial in folder["trials"].values():
        cells.setdefault(trial["cell"], []).append(trial)
    assert len(cells) == len(folder["points"])
    for number, (cell, seeds) in enumerate(cells.items()):
        line = next(line for line in lines if line.endswith(cell))
        assert str(number) in line.split()[:2]
        states = [trial["state"] for trial in seeds]
        if not set(states) <= set(ENDED):
            for trial in seeds:
                assert f"seed {trial['seed']} {trial['state']}" in line
        elif "pruned" in states:
            assert "pruned" in line
        else:
            mean = sum(trial["metrics"]["cluster_information"] for trial in seeds) / len(seeds)
            assert column("cluster_information").reading(mean) in line


@pytest.mark.parametrize("name", FOLDERS)
def test_status_names_the_states_that_the_old_code_saw(name: str, tmp_path: Path) -> None:
    folder, out = FOLDERS[name], unpack(name, tmp_path)
    before = results(out)
    status = tune(folder["command"][:1], tmp_path, "--status")
    assert status.returncode == folder["status"]["code"], status.stderr
    assert status.returncode == (0 if name in FINISHED else 3)
    check_status(folder, status.stdout)
    assert {key: results(out)[key] for key in before} == before


@pytest.mark.parametrize("name", FOLDERS)
def test_the_tables_are_those_of_the_old_code(name: str, tmp_path: Path) -> None:
    out = unpack(name, tmp_path)
    if name == "storage":  # Its records come with the first look, as for the old code.
        tune(FOLDERS[name]["command"][:1], tmp_path, "--status")
    assert tables(tmp_path, "--runs", str(out)) == (HERE / f"{name}.txt").read_text()


@pytest.mark.slow
def test_the_tables_from_mlflow_alone_are_too(tmp_path: Path) -> None:
    database = unpack("finished", tmp_path) / "mlflow.db"
    shutil.rmtree(tmp_path / SWEEP / "trials")
    text = tables(tmp_path, "--mlflow", f"sqlite:///{database}")
    assert text == (HERE / "finished-mlflow.txt").read_text()


def test_a_storage_is_enough_to_see_its_sweep(tmp_path: Path) -> None:
    folder = FOLDERS["storage"]
    shutil.rmtree(unpack("storage", tmp_path))
    words = [folder["command"][0], "--storage", f"{NEUTRAL}/{STORE}"]
    status = tune(words, tmp_path, "--status")
    assert status.returncode == 3, status.stderr
    check_status(folder, status.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", FINISHED)
def test_the_command_of_a_finished_one_runs_nothing(name: str, tmp_path: Path) -> None:
    folder, out = FOLDERS[name], unpack(name, tmp_path)
    before, runs = results(out), sorted(map(str, runs_of(out)))
    assert ends_of(out) == ends(folder["trials"])
    again = tune(folder["command"], tmp_path, "--accept-changed-code")
    assert again.returncode == 0, again.stderr
    n = len(folder["trials"])
    assert f"{n} of {n} trials done" in again.stdout and "starting Ray" not in again.stderr
    assert results(out) == before and points(out) == folder.get("points")
    assert sorted(map(str, runs_of(out))) == runs


@pytest.mark.slow
def test_a_finished_one_can_be_trained_further_from_its_checkpoints(tmp_path: Path) -> None:
    longer, out = FOLDERS["finished"]["longer"], unpack("finished", tmp_path)
    more = trained(longer["command"], tmp_path)
    assert more.returncode == 0, more.stderr
    for key, trial in longer["trials"].items():
        rows = (out / "trials" / key / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["iteration"] for row in rows] == [4, 8, 12]
        provenance = json.loads((out / "trials" / key / "provenance.json").read_text())
        assert provenance["starts"] == [0, 8] and trial["state"] == "done"
    skip_where_numbers_differ()
    assert ends_of(out) == ends(longer["trials"])


@dataclass
class Story:
    """An unfinished folder, gone on with by the command that it was begun with."""

    folder: dict[str, Any]
    out: Path
    cut_off: list[str]
    """Keys of the trials that had begun and had no result."""
    before: dict[str, tuple[int, bytes]]
    code: int
    said: str
    noise: str


@pytest.fixture(scope="module", params=sorted(set(UNFINISHED) - {"drivers"}))
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder, place = FOLDERS[request.param], tmp_path_factory.mktemp(request.param)
    out = unpack(request.param, place)
    before = results(out)
    cut_off = [key for key, trial in folder["trials"].items() if trial["state"] == "stopped"]
    assert before and cut_off and list(place.rglob("checkpoint.pt"))
    end = trained(folder["command"], place)
    return Story(folder, out, cut_off, before, end.returncode, end.stdout, end.stderr)


@pytest.mark.slow
def test_the_same_command_finishes_it(story: Story) -> None:
    assert story.code == 0, story.said + story.noise
    n = len(story.folder["end"]["trials"])
    assert f" of {n} trials done" in story.said
    found = results(story.out)
    assert len(found) == n and set(story.before) < set(found)
    assert {json.loads(data)["state"] for _, data in found.values()} <= set(ENDED)


@pytest.mark.slow
def test_what_had_ended_is_not_run_again(story: Story) -> None:
    after = results(story.out)
    assert {key: after[key] for key in story.before} == story.before


@pytest.mark.slow
def test_what_had_begun_goes_on_from_its_checkpoint_and_the_rest_begins_once(story: Story) -> None:
    old = story.folder["end"]["trials"]
    for key in results(story.out):
        provenance = json.loads((story.out / "trials" / key / "provenance.json").read_text())
        assert provenance["starts"] == (old[key]["starts"] if key in story.cut_off else [0])
        assert (provenance["starts"][-1] > 0) == (key in story.cut_off)


@pytest.mark.slow
def test_mlflow_has_one_run_for_each_trial(story: Story) -> None:
    runs = runs_of(story.out)
    assert sorted(key for key in runs if key) == sorted(results(story.out))
    assert runs.count(None) == 1


@pytest.mark.slow
def test_it_ends_where_the_old_code_did_by_the_same_points(story: Story) -> None:
    skip_where_numbers_differ()
    assert points(story.out) == story.folder["end"].get("points")
    assert ends_of(story.out) == ends(story.folder["end"]["trials"])
